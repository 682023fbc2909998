"""What may be done from outside a run: start, send, signal, look, cancel, decide. App, HTTP and shell all call this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from agentflow.approvals import ApprovalRequest, Approve, DecisionInput, Deny, Edit, Respond
from agentflow.audit import Audit
from agentflow.clock import Clock, from_datetime
from agentflow.codec import PLAIN, digest, loads
from agentflow.durations import Duration, to_micros
from agentflow.engine.attempts import delivered_to
from agentflow.errors import (
    AgentflowError,
    AlreadyDecided,
    ApprovalExpired,
    DigestMismatch,
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    NotPermitted,
)
from agentflow.events import EventRecord
from agentflow.functions import Function, FunctionRef, RegisteredRef, Registry, Target
from agentflow.handles import RunHandle, Watchers
from agentflow.ids import is_storable, new_id, validate_id, validate_text
from agentflow.principals import Principal
from agentflow.roundtrip import Fault, to_plain
from agentflow.runs import Page, Run, RunStatus, StepRecord
from agentflow.settings import Settings
from agentflow.starts import (
    KEY_LIFETIME,
    encode_input,
    local_infos,
    new_event,
    new_run,
    rerun_of,
    signal_data,
)
from agentflow.step import EventLike, as_events
from agentflow.store.claim_types import FunctionInfo
from agentflow.store.operation_types import (
    CancelRun,
    Decide,
    PauseFunction,
    Rerun,
    SendEvents,
    SendSignal,
    StartRun,
)
from agentflow.store.outcome_types import (
    Cancelled,
    Decided,
    DecisionResult,
    KeyConflict,
    NoSuchStep,
    Sent,
    Started,
)
from agentflow.store.protocol import Store
from agentflow.store.stored_types import ModelCall, NewRun
from agentflow.threads import Threads
from agentflow.usage import BudgetReport, Grouping, UsageReport, grouped

FUNCTIONS_KEPT_SECONDS = 2.0


class LocalWorker(Protocol):
    """A worker in this process, which may begin a run at once."""

    def offer(self, run: NewRun) -> str | None: ...

    def begin(self, run: NewRun, owner: str) -> None: ...

    def decline(self, run: NewRun) -> None: ...

    def has_run(self, run_id: str) -> bool: ...


@dataclass
class Client:
    """The operations on one opened database."""

    app: str
    store: Store
    registry: Registry
    settings: Settings
    clock: Clock

    def __post_init__(self) -> None:
        self.watchers = Watchers(
            self.store, is_here=lambda run_id: bool(self.local_worker and self.local_worker.has_run(run_id))
        )
        self.runs = Runs(self)
        self.approvals = Approvals(self)
        self.audit = Audit(self.store)
        self.threads = Threads(self.app, self.store)
        self.functions = Functions(self)
        self.events = Events(self)
        self.local_worker: LocalWorker | None = None
        self._functions: list[FunctionInfo] = []
        self._functions_read_at = float("-inf")
        self._functions_asked: asyncio.Event | None = None

    async def start(
        self,
        function: Target,
        data: Any = None,
        *,
        idempotency_key: str | None = None,
        tags: Sequence[str] = (),
        by: str | Principal | None = None,
    ) -> RunHandle[Any]:
        """Start one run. See `App.start`."""
        resolved = await self.resolve(function)
        if idempotency_key is not None:
            validate_id(idempotency_key, "idempotency key")
        run = new_run(
            resolved,
            data,
            app=self.app,
            now=self.clock.now(),
            idempotency_key=idempotency_key,
            tags=_tags(tags),
        )._replace(started_by=_starter(by))
        worker = self.local_worker
        owner = None if worker is None else worker.offer(run)
        future = self.store.submit(StartRun(run, run.created_at, owner))
        if worker is not None and owner is not None:
            # Not after the await: whoever starts the run may be cancelled, and then it would belong to nobody.
            future.add_done_callback(lambda done: _begin(worker, run, owner, done))
        answer = await asyncio.shield(future)
        match answer:
            case Started(run_id=run_id, created=created):
                # Under flow control it may have ended already, as skipped.
                return self._handle(run_id, resolved, is_new=created and run.admission is None)
            case KeyConflict(run_id=run_id):
                raise IdempotencyConflict(
                    f"idempotency key {idempotency_key!r} of {resolved.id!r} was used with other data, for run {run_id}"
                )
        raise AssertionError(f"unexpected answer to a start: {answer!r}")

    async def send(
        self, event_or_events: EventLike | Sequence[EventLike], *, by: str | Principal | None = None
    ) -> Sent:
        """Send events in one transaction. `by` started the runs that they start."""
        functions = await self.list_functions()
        now = self.clock.now()
        events = [
            new_event(event, now=now, functions=functions, settings=self.settings)
            for event in as_events(event_or_events)
        ]
        starter = _starter(by)
        if starter is not None:
            events = [
                event._replace(starts=tuple(run._replace(started_by=starter) for run in event.starts))
                for event in events
            ]
        sent = await self.store.submit(SendEvents(tuple(events), now))
        assert isinstance(sent, Sent)
        return sent

    async def signal(self, name: str, data: Any = None, *, buffer: Duration | None = None) -> str | None:
        """Resolve the one waiter of that name. See `App.signal`."""
        text = signal_data(name, data, settings=self.settings)
        now = self.clock.now()
        answer = await self.store.submit(
            SendSignal(
                id=new_id("sig", now),
                name=name,
                data=text,
                now=now,
                buffer_until=None if buffer is None else now + to_micros(buffer),
            )
        )
        return delivered_to(answer, name)

    async def usage(
        self,
        *,
        run: str | None = None,
        thread: str | None = None,
        tag: str | None = None,
        agent: str | None = None,
        since: datetime | None = None,
    ) -> UsageReport:
        """Tokens, cost, and how often a call was billed or possibly billed."""
        calls = await self._model_calls(run, thread, tag, agent, since)
        return UsageReport.of([call for _, call in calls])

    async def usage_by(
        self,
        by: Grouping,
        *,
        run: str | None = None,
        thread: str | None = None,
        tag: str | None = None,
        agent: str | None = None,
        since: datetime | None = None,
    ) -> dict[str, UsageReport]:
        """The same for each run, agent, model or day."""
        calls = await self._model_calls(run, thread, tag, agent, since)
        return {name: UsageReport.of(some) for name, some in grouped(calls, by).items()}

    async def _model_calls(
        self,
        run: str | None,
        thread: str | None,
        tag: str | None,
        agent: str | None,
        since: datetime | None,
    ) -> list[tuple[str, ModelCall]]:
        return await self.store.queries.list_model_calls(
            run=run,
            tag=tag,
            agent=agent,
            since=None if since is None else from_datetime(since),
            thread=None if thread is None else (self.app, thread),
        )

    async def budgets(self, name: str | None = None) -> list[BudgetReport]:
        """How budgets stand of which something was used in their present period."""
        states = await self.store.queries.list_budgets(now=self.clock.now(), name=name)
        return [BudgetReport.of(state) for state in states]

    async def resolve(self, target: Target) -> Function[Any, Any] | FunctionRef:
        """The function where it is known here, else a reference to one that another app has registered."""
        try:
            resolved = self.registry.resolve(target)
        except NotFound:
            # A process that only starts runs need not import the functions: the database knows them.
            if isinstance(target, str):
                target = FunctionRef(target)
            known = await self._registered(target) if isinstance(target, FunctionRef) else None
            if known is None:
                raise
            return known
        if isinstance(resolved, Function):
            return resolved
        known = await self._registered(resolved)
        if known is None:
            raise NotFound(
                f"no app {resolved.app!r} with a function {resolved.id!r} has registered in this database"
            )
        return known

    async def _registered(self, ref: FunctionRef) -> RegisteredRef | None:
        return RegisteredRef.find(ref, await self.list_functions(), app=self.app)

    async def list_functions(self) -> list[FunctionInfo]:
        """All functions of all apps, this process's own as they are now."""
        while time.monotonic() - self._functions_read_at > FUNCTIONS_KEPT_SECONDS:
            if self._functions_asked is None:
                await self._read_functions()
            else:
                await self._functions_asked.wait()
        stored = {(info.app, info.id): info for info in self._functions}
        own = {(info.app, info.id): info for info in local_infos(self.registry)}
        for key, info in own.items():
            if key in stored:
                own[key] = replace(info, paused_at=stored[key].paused_at)
        return list((own | {key: info for key, info in stored.items() if key not in own}).values())

    def forget_functions(self) -> None:
        """Read them again the next time; what is being read is out of date already."""
        self._functions_read_at = float("-inf")
        self._functions_asked = None

    async def _read_functions(self) -> None:
        """Ask the database, for all who want to know meanwhile. Whoever gives up leaves it to the next of them."""
        self._functions_asked = asked = asyncio.Event()
        try:
            functions = await self.store.queries.list_functions()
            if self._functions_asked is asked:
                self._functions, self._functions_read_at = functions, time.monotonic()
        finally:
            if self._functions_asked is asked:
                self._functions_asked = None
            asked.set()

    def _handle(
        self, run_id: str, function: Function[Any, Any] | FunctionRef | None, *, is_new: bool = False
    ) -> RunHandle[Any]:
        codec = function.output_codec if isinstance(function, Function) else PLAIN
        return RunHandle(run_id, store=self.store, watchers=self.watchers, codec=codec, is_new=is_new)


class Runs:
    """`app.runs`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def get(self, run_id: str) -> Run:
        """The run with its payloads. Raises `NotFound`."""
        run = await self._client.store.queries.get_run(run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id!r}")
        return run

    async def list(
        self,
        *,
        status: RunStatus | str | Collection[RunStatus | str] | None = None,
        function: str | None = None,
        since: datetime | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Run]:
        """Runs of this app, newest first, without payloads. `q` is the beginning of an id."""
        return await self._client.store.queries.list_runs(
            status=_statuses(status),
            app=self._client.app,
            function=function,
            since=None if since is None else from_datetime(since),
            q=q,
            limit=_limit(limit),
            cursor=cursor,
        )

    async def steps(self, run_id: str, *, limit: int = 100, cursor: str | None = None) -> Page[StepRecord]:
        """The run's steps, in their order. Raises `NotFound`."""
        await self.handle(run_id).status()
        return await self._client.store.queries.list_steps(run_id, limit=_limit(limit), cursor=cursor)

    def handle(self, run_id: str) -> RunHandle[Any]:
        """A handle on a run, without a look at the database."""
        return self._client._handle(run_id, None)

    async def cancel(self, run_id: str, reason: str | None = None) -> Run:
        """End the run and its children; one that has ended is left as it is. Raises `NotFound`."""
        if not is_storable(run_id):
            raise NotFound(f"there is no run {run_id!r}")
        if reason is not None:
            validate_text(reason, "reason")
        answer = await self._client.store.submit(CancelRun(run_id, reason, self._client.clock.now()))
        assert isinstance(answer, Cancelled)
        return await self.get(run_id)

    async def rerun(
        self,
        run_id: str,
        from_step: str | None = None,
        data: Any = None,
        *,
        idempotency_key: str | None = None,
        by: str | Principal | None = None,
    ) -> RunHandle[Any]:
        """Do a run's work again, as a new run with `rerun_of`; `data` takes the place of its input.

        `from_step` is the key of the first step that runs again: what ended before it is copied, but for approvals,
        which are asked for again. The key is one of the function's, as in `App.start`. Raises `NotFound` for an
        unknown run, function or step, `InvalidInput` for bad data, `IdempotencyConflict`.
        """
        client = self._client
        validate_text(from_step or "", "from_step")
        origin = await client.store.queries.get_origin(run_id)
        if origin is None:
            raise NotFound(f"there is no run {run_id!r}")
        function = await client.resolve(FunctionRef(origin.function, app=origin.app))
        encoded = origin.input if data is None else encode_input(function, data)
        run = rerun_of(origin, function, now=client.clock.now(), input=encoded)
        run = run._replace(started_by=_starter(by))
        if idempotency_key is not None:
            validate_id(idempotency_key, "idempotency key")
            run = run._replace(
                idempotency_key=idempotency_key,
                idempotency_digest=digest([run_id, from_step, loads(encoded)]),
                idempotency_until=run.created_at + KEY_LIFETIME,
            )
        answer = await client.store.submit(Rerun(run, run.created_at, from_step))
        if isinstance(answer, NoSuchStep):
            raise NotFound(f"run {run_id} has no step {from_step!r}")
        if isinstance(answer, KeyConflict):
            raise IdempotencyConflict(
                f"idempotency key {idempotency_key!r} of {origin.function!r} was used for something else, "
                f"run {answer.run_id}"
            )
        assert isinstance(answer, Started)
        return client._handle(answer.run_id, function, is_new=answer.created)


class Approvals:
    """`app.approvals`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(
        self, *, status: str | None = None, run: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[ApprovalRequest]:
        """Requests, oldest first."""
        return await self._client.store.queries.list_approvals(
            now=self._client.clock.now(), status=status, run=run, limit=_limit(limit), cursor=cursor
        )

    async def get(self, approval_id: str) -> ApprovalRequest:
        """One request. Raises `NotFound`."""
        request = await self._client.store.queries.get_approval(approval_id, now=self._client.clock.now())
        if request is None:
            raise NotFound(f"there is no approval {approval_id!r}")
        return request

    async def decide(
        self,
        approval_id: str,
        decision: DecisionInput,
        *,
        by: str | Principal,
        args_digest: str | None = None,
        comment: str | None = None,
    ) -> ApprovalRequest:
        """Decide, once. With `args_digest` only if that is still what would run.

        Raises `AlreadyDecided`, `ApprovalExpired`, `NotPermitted`, `DigestMismatch`, `NotFound`, `InvalidInput`.
        """
        if not isinstance(decision, Approve | Edit | Deny | Respond):
            raise InvalidInput(
                f"{decision!r} is no decision: give Approve(), Edit(args), Deny(message) or Respond(value)"
            )
        given: object = by
        if not isinstance(given, str | Principal):
            raise InvalidInput(f"by={given!r}: give the id of who decided, or a Principal")
        who = Principal(id=by) if isinstance(by, str) else by
        if not who.id:
            raise InvalidInput("a decision needs to say who decided: by= is empty")
        if not is_storable(approval_id):
            raise NotFound(f"there is no approval {approval_id!r}")
        for what, text in (("name by=", who.id), ("comment", comment), ("args_digest", args_digest)):
            validate_text(text or "", what)
        _check_storable(decision, approval_id)
        if isinstance(decision, Edit):
            await self._check_edit(approval_id, decision)
        now = self._client.clock.now()
        answer = await self._client.store.submit(
            Decide(new_id("dec", now), approval_id, decision, who.id, who.roles, args_digest, comment, now)
        )
        assert isinstance(answer, Decided)
        return _taken(answer, approval_id, decision, who)

    async def _check_edit(self, approval_id: str, edit: Edit) -> None:
        """Refuse arguments that the tool would not take, where this process knows the tool; the run checks again."""
        request = await self.get(approval_id)
        checks = [
            function.checks_of_tools[request.tool]
            for function in self._client.registry
            if request.tool is not None and request.tool in function.checks_of_tools
        ]
        refusals = []
        for check in checks:
            try:
                check(edit.args)
            except AgentflowError as error:
                refusals.append(error)
        if refusals and len(refusals) == len(checks):
            raise InvalidInput(
                f"approval {approval_id}: {request.tool!r} would refuse the edit: {refusals[0]}"
            )


class Functions:
    """`app.functions`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self) -> list[FunctionInfo]:
        """The functions of this app."""
        return [info for info in await self._client.list_functions() if info.app == self._client.app]

    async def get(self, function_id: str) -> FunctionInfo:
        """One function of this app. Raises `NotFound`."""
        for info in await self.list():
            if info.id == function_id:
                return info
        raise NotFound(f"app {self._client.app!r} has no function {function_id!r}")

    async def pause(self, function_id: str) -> FunctionInfo:
        """Let the function's runs stay `queued`, old and new ones; what executes goes on until it waits.

        It holds for all workers, and over restarts, until `resume`. Raises `NotFound`.
        """
        return await self._change(function_id, resume=False)

    async def resume(self, function_id: str) -> FunctionInfo:
        """Let the function's runs go on. Raises `NotFound`."""
        return await self._change(function_id, resume=True)

    async def _change(self, function_id: str, *, resume: bool) -> FunctionInfo:
        client = self._client
        await self.get(function_id)
        await client.store.submit(PauseFunction(client.app, function_id, client.clock.now(), resume))
        client.forget_functions()
        return await self.get(function_id)


class Events:
    """`app.events`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(
        self, *, name: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[EventRecord]:
        """Events, newest first."""
        return await self._client.store.queries.list_events(name=name, limit=_limit(limit), cursor=cursor)

    async def get(self, event_id: str) -> EventRecord:
        """One event. Raises `NotFound`."""
        event = await self._client.store.queries.get_event(event_id)
        if event is None:
            raise NotFound(f"there is no event {event_id!r}")
        return event

    async def runs(self, event_id: str, *, limit: int = 50, cursor: str | None = None) -> Page[Run]:
        """The runs that an event started. Raises `NotFound`."""
        await self.get(event_id)
        return await self._client.store.queries.list_event_runs(event_id, limit=_limit(limit), cursor=cursor)


def _begin(worker: LocalWorker, run: NewRun, owner: str, done: asyncio.Future[Any]) -> None:
    answer = None if done.cancelled() or done.exception() is not None else done.result()
    if isinstance(answer, Started) and answer.created and answer.epoch == 1:
        worker.begin(run, owner)
    else:
        worker.decline(run)


def _check_storable(decision: DecisionInput, approval_id: str) -> None:
    given = {field: getattr(decision, field) for field in type(decision).model_fields}
    plain = to_plain(given)
    if isinstance(plain, Fault):
        raise InvalidInput(
            f"approval {approval_id}: the decision cannot be stored: at {plain.path}: {plain.reason}"
        )


def _taken(answer: Decided, approval_id: str, decision: DecisionInput, who: Principal) -> ApprovalRequest:
    """The request after the decision, or why it was not taken."""
    request = answer.request
    if request is None:
        raise NotFound(f"there is no approval {approval_id!r}")
    match answer.result:
        case DecisionResult.TAKEN | DecisionResult.NEEDS_MORE:
            return request
        case DecisionResult.ALREADY_DECIDED if request.status == "pending":
            raise AlreadyDecided(
                f"{who.id!r} has agreed to approval {approval_id} already, and one person decides once: this changes "
                f"nothing. It waits for {request.min_approvals} people; another one may still deny it",
                request=request,
            )
        case DecisionResult.ALREADY_DECIDED:
            winner = request.decisions[-1].by if request.decisions else "nobody"
            raise AlreadyDecided(
                f"approval {approval_id} was decided already: {request.status} by {winner}", request=request
            )
        case DecisionResult.EXPIRED:
            raise ApprovalExpired(
                f"approval {approval_id} is {request.status}: it expired or its run has ended"
            )
        case DecisionResult.NOT_PERMITTED:
            raise NotPermitted(
                f"{who.id!r} may not decide approval {approval_id}: its approvers are {', '.join(request.approvers)}"
            )
        case DecisionResult.DIGEST_MISMATCH:
            raise DigestMismatch(
                f"approval {approval_id} is about something else than what was decided about: "
                "read it again, and send the args_digest it has now"
            )
        case DecisionResult.NOT_EDITABLE:
            raise InvalidInput(
                f"approval {approval_id}: these arguments may not be edited so ({decision!r}); "
                "an edit gives all arguments, and changes only those that its policy names"
            )
        case DecisionResult.NOT_FOUND:
            raise NotFound(f"there is no approval {approval_id!r}")


def _statuses(given: RunStatus | str | Collection[RunStatus | str] | None) -> list[RunStatus] | None:
    if given is None:
        return None
    values = [given] if isinstance(given, str) else list(given)
    try:
        return [RunStatus(value) for value in values]
    except ValueError as error:
        raise InvalidInput(f"{error}: a run is one of {', '.join(RunStatus)}") from error


def _starter(by: str | Principal | None) -> str | None:
    """Who starts a run, as the run keeps it. Raises `InvalidInput`."""
    who = by.id if isinstance(by, Principal) else by
    return validate_id(who, "name by=") if who else None


def _limit(limit: int) -> int:
    if not 1 <= limit <= 100:
        raise InvalidInput(f"limit={limit}: a page has 1 to 100 items")
    return limit


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise InvalidInput(f"tags={tags!r}: give a list of strings")
    return tuple(validate_text(tag, "tag") for tag in tags)


__all__ = ["Client", "UsageReport"]
