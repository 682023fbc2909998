"""What flow control asks of one start: a function's rules, with their keys evaluated for the event.

The rules of a function are kept as JSON with it, so that whoever sends an event can apply them. A key that is a Python
function is known only where the function is: elsewhere the run is stored unplanned, and the worker that claims it does
the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from agentflow.codec import canonical_json
from agentflow.durations import to_micros
from agentflow.errors import AgentflowError
from agentflow.expressions import Expression
from agentflow.flow import (
    Batch,
    Concurrency,
    Debounce,
    Idempotency,
    Key,
    RateLimit,
    Singleton,
    Throttle,
    is_path,
)
from agentflow.flow_control import FlowControl
from agentflow.matching import MISSING, find
from agentflow.store.stored_types import (
    Admission,
    CollectRule,
    GateLimits,
    Gates,
    NewRun,
    RateRule,
    SingletonRule,
)

logger = logging.getLogger("agentflow.flow")

MOST_PRIORITY_SECONDS = 600
LONGEST_VALUE = 200
MOST_SLACK_MICROS = 50_000

Event = dict[str, Any]
"""An event as keys see it: `{"id", "name", "ts", "data"}`; of a run without one `{"data": input}`."""


class KeyElsewhere(Exception):
    """The key is a Python function of a process that registered it; this one has only its name."""


def rules_as_json(rules: FlowControl) -> dict[str, Any]:
    """Rules as they are kept with the function."""
    return {name: _described(value) for name, value in asdict(rules).items() if value}


def rules_from_json(stored: dict[str, Any]) -> FlowControl:
    """Rules of a function that may be unknown here; a Python key of theirs raises `KeyElsewhere` when it is asked."""
    given = {name: _restored(value) for name, value in stored.items()}
    kinds: dict[str, Callable[..., Any]] = {
        "throttle": Throttle,
        "rate_limit": RateLimit,
        "debounce": Debounce,
        "batch": Batch,
        "singleton": Singleton,
        "idempotency": Idempotency,
    }
    made = {name: kinds[name](**value) if name in kinds else value for name, value in given.items()}
    made["concurrency"] = tuple(Concurrency(**each) for each in given.get("concurrency", ()))
    return FlowControl(**made)


def gate_limits(rules: FlowControl) -> GateLimits | None:
    """How wide the gates are; `None` for a function whose runs have none to pass."""
    slots = tuple(rule.limit for rule in rules.concurrency)
    if rules.singleton is not None and rules.singleton.mode == "cancel":
        slots += (1,)  # the one that was cancelled may still be at work
    interval, slack = 0, 0
    if rules.throttle is not None:
        period = to_micros(rules.throttle.period)
        interval = max(1, period // rules.throttle.limit)
        slack = min(period // 20, MOST_SLACK_MICROS)
    burst = 1 if rules.throttle is None else rules.throttle.burst
    limits = GateLimits(slots, interval, burst, slack, is_batch=rules.batch is not None)
    return limits if limits != GateLimits() or rules.priority is not None else None


def admitted(run: NewRun, rules: FlowControl, event: Event, *, is_child: bool = False) -> NewRun:
    """The run with what flow control asks of it. An invoked run is never one of several: it neither joins nor waits."""
    if not rules:
        return run
    try:
        seconds = _priority(rules, event, run.function)
        admission = _admission(run, rules, event, is_child=is_child)
    except KeyElsewhere:
        return run._replace(is_unplanned=True)
    if admission.collect is None:
        run = run._replace(ready_at=run.ready_at - round(seconds * 1_000_000))
    return run._replace(admission=admission._replace(lags=seconds < 0 and admission.collect is None))


def gated(run: NewRun, rules: FlowControl, event: Event) -> NewRun:
    """The run with its gates only: it has been admitted before, or somebody asked for just this run."""
    if not rules:
        return run
    try:
        return run._replace(admission=Admission(_gates(run.app, run.function, rules, event)))
    except KeyElsewhere:
        return run


def _admission(run: NewRun, rules: FlowControl, event: Event, *, is_child: bool) -> Admission:
    name = f"{run.app}/{run.function}"

    def key_of(kind: str, key: Key | None) -> str:
        return f"{kind}:{name}:{_value(key, event, run.function)}"

    rate = collect = singleton = idempotency = None
    if rules.rate_limit is not None:
        rule = rules.rate_limit
        rate = RateRule(key_of("rate", rule.key), rule.limit, to_micros(rule.period))
    if rules.debounce is not None and not is_child:
        longest = None if rules.debounce.timeout is None else to_micros(rules.debounce.timeout)
        collect = CollectRule(
            key_of("debounce", rules.debounce.key), to_micros(rules.debounce.period), longest=longest
        )
    if rules.batch is not None and not is_child:
        batch = rules.batch
        collect = CollectRule(key_of("batch", batch.key), to_micros(batch.timeout), most=batch.max_size)
    if rules.singleton is not None:
        singleton = SingletonRule(key_of("singleton", rules.singleton.key), rules.singleton.mode == "cancel")
    if rules.idempotency is not None:
        idempotency = _value(rules.idempotency.key, event, run.function)
    return Admission(_gates(run.app, run.function, rules, event), idempotency, rate, collect, singleton)


def _gates(app: str, function: str, rules: FlowControl, event: Event) -> Gates:
    slots = []
    for rule in rules.concurrency:
        value = _value(rule.key, event, function)
        if rule.scope == "app":
            # Functions share what they name alike: the same expression, with the same value.
            slots.append(f"slot:{app}::{'' if rule.key is None else _name(rule.key)}={value}")
        else:
            slots.append(f"slot:{app}/{function}:{'' if rule.key is None else _name(rule.key)}={value}")
    if rules.singleton is not None and rules.singleton.mode == "cancel":
        slots.append(f"slot:{app}/{function}:singleton={_value(rules.singleton.key, event, function)}")
    throttle = None
    if rules.throttle is not None:
        throttle = f"throttle:{app}/{function}:{_value(rules.throttle.key, event, function)}"
    return Gates(tuple(slots), throttle)


def _priority(rules: FlowControl, event: Event, function: str) -> float:
    if rules.priority is None:
        return 0.0
    seconds = _evaluate(rules.priority, event, function)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:
        return 0.0
    return max(-MOST_PRIORITY_SECONDS, min(MOST_PRIORITY_SECONDS, seconds))


def find_value(key: Key, event: Event, function: str) -> str | None:
    """A key's value as a text, short whatever the value; `None` where the event has none."""
    value = _evaluate(key, event, function)
    return None if value is None else _as_text(value, key, function)


def _value(key: Key | None, event: Event, function: str) -> str:
    """A key's value as a text, short whatever the value."""
    return "" if key is None else _as_text(_evaluate(key, event, function), key, function)


def _as_text(value: Any, key: Key, function: str) -> str:
    try:
        text = canonical_json(value)
    except AgentflowError:
        logger.warning("the key %s of %s gave what is no JSON; it counts as null", _name(key), function)
        text = "null"
    return text if len(text) <= LONGEST_VALUE else "#" + sha256(text.encode()).hexdigest()


def _evaluate(key: Key, event: Event, function: str) -> Any:
    """A key's value; `None` where the event has none, or the key cannot be evaluated for it."""
    if isinstance(key, str) and is_path(key):
        value = find(key.removeprefix("event."), event)
        return None if value is MISSING else value
    try:
        if isinstance(key, str):
            return Expression.compile(key).evaluate(event=event)
        return key(event)
    except KeyElsewhere:
        raise
    except Exception as error:
        logger.warning(
            "the key %s of %s could not be evaluated: %r; it counts as null", _name(key), function, error
        )
        return None


def _name(key: Key) -> str:
    if isinstance(key, str):
        return key
    return f"{getattr(key, '__module__', '?')}.{getattr(key, '__qualname__', repr(key))}"


class _PythonKey:
    """A key of a function that is registered in another process."""

    def __init__(self, name: str) -> None:
        self.__module__, _, self.__qualname__ = name.rpartition(".")

    def __call__(self, event: Event) -> Any:
        raise KeyElsewhere(self.__qualname__)


def _described(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _described(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if callable(value):
        return {"python": _name(value)}
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return (
            _PythonKey(value["python"])
            if set(value) == {"python"}
            else {k: _restored(v) for k, v in value.items()}
        )
    return [_restored(each) for each in value] if isinstance(value, list) else value
