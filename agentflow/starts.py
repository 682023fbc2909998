"""How a run begins: a function and its data, or an event, made into a `NewRun`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from agentflow.admission import admitted, gated
from agentflow.clock import NEVER, from_datetime, to_datetime
from agentflow.codec import PLAIN, digest, loads, size_of
from agentflow.durations import to_micros
from agentflow.errors import ConfigurationError, InvalidInput, LimitExceeded
from agentflow.events import Event, EventTrigger
from agentflow.expressions import Expression
from agentflow.flow import CancelOn
from agentflow.flow_control import NO_FLOW_CONTROL, FlowControl
from agentflow.functions import (
    Function,
    FunctionRef,
    RegisteredRef,
    Registry,
    cancel_on_of,
    flow_of,
    start_within_of,
)
from agentflow.ids import derived_id, new_id, validate_id, validate_text
from agentflow.matching import MISSING, correlation, correlations, find
from agentflow.settings import Settings
from agentflow.store.claim_types import ClaimedRun, FunctionInfo, Origin, Plan
from agentflow.store.stored_types import CANCEL_KIND, Admission, Json, Micros, NewEvent, NewRun, StoredWait
from agentflow.timetable import Schedule

MAX_DEPTH = 32
DIRECT_START = "agentflow/start"
"""The name, in a batch, of what was started without an event."""
KEY_LIFETIME = 24 * 3600 * 1_000_000
"""How long an idempotency key or an event's id is remembered, in microseconds."""


class Parent(Protocol):
    """The run that invokes another one."""

    run_id: str
    app: str
    root_id: str
    depth: int

    def now(self) -> Micros: ...


def encode_input(function: Function[Any, Any] | FunctionRef, data: object) -> Json:
    """The input as it is stored. Raises `InvalidInput` when it does not fit the function."""
    codec = PLAIN if isinstance(function, FunctionRef) else function.input_codec
    try:
        return codec.encode(codec.validate(data), f"the input of {function.id!r}")
    except InvalidInput as error:
        raise InvalidInput(f"the input of {function.id!r} is not valid: {error}") from error


def new_run(
    function: Function[Any, Any] | FunctionRef,
    data: object,
    *,
    app: str,
    now: Micros,
    idempotency_key: str | None = None,
    tags: Sequence[str] = (),
) -> NewRun:
    """A run that somebody starts directly."""
    encoded = encode_input(function, data)
    run_id = new_id("run", now)
    run = NewRun(
        id=run_id,
        app=function.app or app,
        function=function.id,
        input=encoded,
        created_at=now,
        ready_at=now,
        root_id=run_id,
        tags=tuple(tags),
        idempotency_key=idempotency_key,
        idempotency_digest=None if idempotency_key is None else digest(loads(encoded)),
        idempotency_until=None if idempotency_key is None else now + KEY_LIFETIME,
        cancel_on=cancel_waits(_rules_of(function), None, encoded, since=now),
        start_by=_start_by(now, _start_within(function)),
    )
    return _admitted(run, _flow_of(function))


def rerun_of(
    origin: Origin, function: Function[Any, Any] | FunctionRef, *, now: Micros, input: Json
) -> NewRun:
    """A run that does again what another one did, of nobody's parentage. What that one's parent got stands."""
    run_id = new_id("run", now)
    run = NewRun(
        id=run_id,
        app=origin.app,
        function=origin.function,
        input=input,
        created_at=now,
        ready_at=now,
        root_id=run_id,
        trigger=origin.trigger,
        event_id=origin.event_id,
        rerun_of=origin.run_id,
        tags=origin.tags,
        cancel_on=cancel_waits(_rules_of(function), origin.trigger, input, since=now),
        start_by=_start_by(now, _start_within(function)),
    )
    return gated(run, _flow_of(function), _event_of(run))


def child_run(
    function: Function[Any, Any] | FunctionRef,
    data: object,
    *,
    run_id: str,
    parent: Parent,
    parent_key: str | None,
) -> NewRun:
    """A run that another one invokes; without `parent_key` it is detached."""
    if parent.depth >= MAX_DEPTH:
        raise LimitExceeded(
            f"run {parent.run_id} is {MAX_DEPTH} runs deep: it may not invoke {function.id!r}"
        )
    now = parent.now()
    encoded = encode_input(function, data)
    run = NewRun(
        id=run_id,
        app=function.app or parent.app,
        function=function.id,
        input=encoded,
        created_at=now,
        ready_at=now,
        root_id=parent.root_id,
        parent_id=parent.run_id,
        parent_key=parent_key,
        depth=parent.depth + 1,
        cancel_on=cancel_waits(_rules_of(function), None, encoded, since=now),
        start_by=_start_by(now, _start_within(function)),
    )
    return _admitted(run, _flow_of(function), is_child=True)


def scheduled_run(
    function: Function[Any, Any], schedule: Schedule, *, schedule_id: str, nominal: Micros, now: Micros
) -> NewRun:
    """The run of one nominal time. Its id follows from that: there cannot be a second one."""
    run_id = derived_id("run", nominal, f"{schedule_id} {nominal}")
    encoded = tick_input(schedule, nominal)
    ready_at = schedule.delayed(nominal, schedule_id)
    run = NewRun(
        id=run_id,
        app=function.app,
        function=function.id,
        input=encoded,
        created_at=now,
        ready_at=ready_at,
        root_id=run_id,
        cancel_on=cancel_waits(_rules_of(function), None, encoded, since=now),
        start_by=_start_by(max(ready_at, now), function.config.start_within),
    )
    return _admitted(run, function.config.flow)


def plan_admission(claimed: ClaimedRun, function: Function[Any, Any], plan: Plan) -> tuple[Admission, Micros]:
    """What flow control asks of a run that was stored without it, and when it may begin."""
    run = NewRun(
        id=claimed.key.run_id,
        app=claimed.app,
        function=claimed.function,
        input=claimed.input,
        created_at=claimed.created_at,
        ready_at=claimed.created_at,
        root_id=claimed.root_id,
        trigger=claimed.trigger,
    )
    event, rules = _event_of(run), function.config.flow
    if plan is Plan.GATES:
        planned = gated(run, rules, event)
    else:
        planned = admitted(run, rules, event, is_child=claimed.parent_id is not None)
    return planned.admission or Admission(), planned.ready_at


def tick_input(schedule: Schedule, nominal: Micros) -> Json:
    """A `flow.CronTick` as JSON."""
    return json.dumps({"nominal_at": schedule.local(nominal).isoformat()})


def signal_data(name: str, data: object, *, settings: Settings) -> Json:
    """A signal's data as they are stored. They become the output of the step that waits, and are held to its limit."""
    validate_id(name, "signal name")
    text = PLAIN.encode(data, f"the data of signal {name!r}")
    if size_of(text) > settings.max_step_bytes:
        raise LimitExceeded(
            f"signal {name!r} has {size_of(text)} bytes of data, over the limit of {settings.max_step_bytes} "
            "(Settings.max_step_bytes)"
        )
    return text


def new_event(
    event: Event,
    *,
    now: Micros,
    functions: Iterable[FunctionInfo],
    settings: Settings,
    event_id: str | None = None,
    source_run: str | None = None,
) -> NewEvent:
    """An event as it is stored, with the runs it starts in all apps of the database."""
    if event.name.startswith("agentflow/"):
        raise InvalidInput(
            f"event {event.name!r}: names that begin with 'agentflow/' are the framework's own"
        )
    validate_text(event.name, "event name")
    if event.id is not None:
        validate_text(event.id, "event id")
    data = PLAIN.encode(event.data, f"the data of event {event.name!r}")
    if size_of(data) > settings.max_event_bytes:
        raise LimitExceeded(
            f"event {event.name!r} has {size_of(data)} bytes of data, over the limit of {settings.max_event_bytes} "
            "(Settings.max_event_bytes)"
        )
    stored_id = event_id or new_id("evt", now)
    ts = now if event.ts is None else from_datetime(event.ts)
    envelope = {"id": event.id or stored_id, "name": event.name, "ts": to_datetime(ts).isoformat()}
    begins_at = max(ts, now)
    trigger_json = json.dumps(envelope)
    seen = envelope | {"data": loads(data)}
    starts = tuple(
        admitted(
            NewRun(
                id=(run_id := new_id("run", now)),
                app=info.app,
                function=info.id,
                input=data,
                created_at=now,
                ready_at=begins_at,
                root_id=run_id,
                trigger=trigger_json,
                event_id=stored_id,
                cancel_on=cancel_waits(cancel_on_of(info), trigger_json, data, since=begins_at),
                start_by=_start_by(begins_at, start_within_of(info)),
            ),
            flow_of(info),
            seen,
        )
        for info in functions
        if _is_started(info, event.name, seen)
    )
    return NewEvent(
        id=stored_id,
        name=event.name,
        data=data,
        ts=ts,
        received_at=now,
        dedup_key=event.id,
        starts=starts,
        correlations=_correlations(seen),
        source_run=source_run,
    )


def _is_started(info: FunctionInfo, name: str, event: dict[str, Any]) -> bool:
    """Whether one of the function's triggers has that name, and its condition is true of the event."""
    for stored in json.loads(info.triggers):
        if "name" not in stored:  # a schedule has none
            continue
        trigger = EventTrigger(**stored)
        if not trigger.fits(name):
            continue
        if trigger.if_ is None:
            return True
        try:
            condition = Expression.compile(trigger.if_)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"event {name!r} cannot be sent from here, as function {info.id!r} of app {info.app!r} "
                f"takes it by a condition: {error}"
            ) from error
        if condition.is_true(event=event):
            return True
    return False


def trigger_event(trigger: Json | None, input_json: Json) -> tuple[Event | None, dict[str, Any]]:
    """The event that started a run, as `ctx.event` and as the paths of `match` see it."""
    data = loads(input_json)
    if trigger is None:
        return None, {"data": data}
    envelope = json.loads(trigger)
    return Event(**envelope, data=data), envelope | {"data": data}


def all_events(
    event: Event | None, data: Any, joined_by: Sequence[Json], *, is_batch: bool
) -> tuple[Event, ...]:
    """`ctx.events`: of a batch those that joined it too; one that was started without an event is one all the same."""
    if not is_batch:
        return () if event is None else (event,)
    joined = [trigger_event(*json.loads(text)) for text in joined_by]
    return tuple(
        Event.model_construct(name=DIRECT_START, data=seen["data"], id=None, ts=None)
        if found is None
        else found
        for found, seen in [(event, {"data": data}), *joined]
    )


def cancel_waits(
    rules: Sequence[CancelOn], trigger: Json | None, input_json: Json, *, since: Micros
) -> tuple[StoredWait, ...]:
    """What is stored with a run for each event that cancels it. A rule whose path the run's event lacks never does."""
    if not rules:
        return ()
    _, event = trigger_event(trigger, input_json)
    waits = []
    for number, rule in enumerate(rules):
        value = None if rule.match is None else find(rule.match, event)
        if value is MISSING:
            continue
        waits.append(
            StoredWait(
                key=f"@cancel{number}",  # no step has a key that begins so
                kind=CANCEL_KIND,
                name=rule.event,
                topic=rule.event,
                correlation=None if rule.match is None else correlation(rule.match, value),
                deadline=NEVER if rule.timeout is None else since + to_micros(rule.timeout),
                since=since,
                timeout_ok=True,
                timeout_output=None,
                timeout_error=None,
                condition=rule.if_,
            )
        )
    return tuple(waits)


def _rules_of(function: Function[Any, Any] | FunctionRef) -> tuple[CancelOn, ...]:
    if isinstance(function, Function):
        return function.config.cancel_on
    return function.cancel_on if isinstance(function, RegisteredRef) else ()


def _flow_of(function: Function[Any, Any] | FunctionRef) -> FlowControl:
    if isinstance(function, Function):
        return function.config.flow
    return function.flow if isinstance(function, RegisteredRef) else NO_FLOW_CONTROL


def _start_within(function: Function[Any, Any] | FunctionRef) -> Micros | None:
    if isinstance(function, Function):
        return function.config.start_within
    return function.start_within if isinstance(function, RegisteredRef) else None


def _start_by(due_at: Micros, within: Micros | None) -> Micros | None:
    # One more than allowed: who begins at the last moment is not too late.
    return None if within is None else due_at + within + 1


def _admitted(run: NewRun, rules: FlowControl, *, is_child: bool = False) -> NewRun:
    return admitted(run, rules, _event_of(run), is_child=is_child) if rules else run


def _event_of(run: NewRun) -> dict[str, Any]:
    return trigger_event(run.trigger, run.input)[1]


def local_infos(registry: Registry) -> list[FunctionInfo]:
    """The functions of this process as the database describes them."""
    return [function.info() for function in registry]


def _correlations(event: dict[str, Any]) -> tuple[str, ...] | None:
    found = correlations(event)
    return None if found is None else tuple(found)
