"""One attempt of a body: its thread, its rows in the ledger, its part of the run's stream."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from agentflow.budgets import exceeded
from agentflow.clock import to_datetime
from agentflow.durations import parse_duration, to_micros
from agentflow.engine.reading import undisturbed
from agentflow.engine.streams import RunStream
from agentflow.errors import ConfigurationError, NoWaiter, SignalConflict
from agentflow.events import Event
from agentflow.flow import Budget, Key, ModelRateLimit
from agentflow.starts import signal_data
from agentflow.step_runner import NotYet
from agentflow.store.operation_types import (
    BeginModelCall,
    BeginTurn,
    MarkEffect,
    Operation,
    SendEvents,
    SendSignal,
    SettleModelCall,
    SlowModelCalls,
    TurnEnd,
    UnmarkEffect,
    WriteModelCall,
)
from agentflow.store.outcome_types import (
    AlreadyBuffered,
    AlreadyMarked,
    Delivered,
    Fenced,
    NobodyWaits,
    NotBefore,
    Outcome,
    OverBudget,
    Sent,
    ThreadTaken,
    TurnBegun,
)
from agentflow.store.stored_types import ModelCall, Reservation

if TYPE_CHECKING:
    from agentflow.engine.runner import Runner

R = TypeVar("R")


class BodyAttempt:
    """What a body sees of its run."""

    __slots__ = (
        "_runner",
        "_thread",
        "_threads",
        "key",
        "model_call",
        "number",
        "open_call",
        "timeout",
        "turn",
    )

    def __init__(
        self, runner: Runner, key: str, number: int, *, threads: Executor, timeout: timedelta | None
    ) -> None:
        self._runner = runner
        self._threads = threads
        self._thread: asyncio.Future[Any] | None = None
        self.key = key
        self.number = number
        self.timeout = timeout
        self.model_call: ModelCall | None = None
        self.turn: TurnEnd | None = None
        self.open_call = runner.journal.open_calls.get(key)

    @property
    def goes_on(self) -> bool:
        return not self._runner.is_over

    async def in_thread(self, fn: Callable[[], R]) -> R:
        job = self._threads.submit(contextvars.copy_context().run, _outcome_of, fn)
        self._thread = asyncio.wrap_future(job)
        self._thread.add_done_callback(_retrieve)
        try:
            # A thread cannot be stopped: the await may be cancelled, the thread's future must not be.
            result, error = await asyncio.shield(self._thread)
        except asyncio.CancelledError:
            job.cancel()  # unless it has begun: then its result is dropped
            raise
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    async def thread_ended(self) -> None:
        """Wait until the thread of an attempt that timed out has ended, before another one begins."""
        if self._thread is not None and not self._thread.done():
            await asyncio.wait([self._thread])

    async def write_model_call(self, call: ModelCall, reservations: Sequence[Reservation] = ()) -> None:
        answer = await self._commit(WriteModelCall(self._runner.run_key, call, tuple(reservations)))
        if isinstance(answer, OverBudget):
            raise exceeded(answer, key=self.key)
        self._runner.journal.note_model_call(call)

    def end_model_call(self, call: ModelCall) -> None:
        self.model_call = call

    async def list_own_model_calls(self) -> list[ModelCall]:
        own = self._runner.run_id
        calls = await undisturbed(self._runner.host.store.queries.list_model_calls(run=own))
        return [call for run_id, call in calls if run_id == own and call.key == self.key]

    async def list_model_calls(self, run_id: str) -> list[ModelCall]:
        return [call for _, call in await self._runner.host.store.queries.list_model_calls(run=run_id)]

    @property
    def budgets(self) -> Sequence[Budget]:
        return self._runner.host.budgets

    async def budget_value(self, key: Key) -> str:
        return await self._runner.origins.find(key)

    async def begin_model_call(self, provider: str, *, number: int, tokens: Callable[[], int]) -> None:
        host = self._runner.host
        limit = host.model_limits.get(provider)
        if limit is None:
            return
        answer = await self._commit(
            BeginModelCall(
                id=self._call_id(number),
                provider=provider,
                requests=limit.requests,
                tokens=limit.tokens,
                period=to_micros(limit.period),
                needs=tokens(),
                spread=host.rng.randrange(1000),
                now=self._runner.now(),
            )
        )
        if isinstance(answer, NotBefore):
            until = to_datetime(answer.at).isoformat(timespec="seconds")
            raise NotYet(
                answer.at, f"step {self.key!r} waits for {_awaited(limit, answer.because)}; until {until}"
            )

    def settle_model_call(self, provider: str, *, number: int, used: int | None) -> None:
        if provider in self._runner.host.model_limits:
            now = self._runner.now()
            self._runner.submit(SettleModelCall(self._call_id(number), provider, used, now))

    def slow_model_calls(self, provider: str, seconds: float) -> None:
        self._runner.submit(SlowModelCalls(provider, self._runner.now() + int(seconds * 1e6)))

    def _call_id(self, number: int) -> str:
        return f"{self._runner.run_id}:{self.key}:{number}"

    async def begin_turn(self, thread: str, key: str) -> TurnBegun:
        runner = self._runner
        answer = await self._commit(BeginTurn(runner.run_key, runner.app, thread, key, runner.now()))
        if isinstance(answer, ThreadTaken):
            taken = f"thread {thread!r} is taken by {answer.key!r} of run {answer.run_id}"
            if answer.is_deadlock:
                raise ConfigurationError(
                    f"{taken}, which waits for {key!r} of run {runner.run_id}: neither would ever go on. Let an agent "
                    "that is called from within a turn work on another thread, or on none"
                )
            until = to_datetime(answer.at).isoformat(timespec="seconds")
            raise NotYet(
                answer.at,
                f"step {self.key!r} waits for its turn: {taken}; asked again at {until}",
                is_woken=True,
            )
        assert isinstance(answer, TurnBegun)
        return answer

    def end_turn(self, turn: TurnEnd) -> None:
        self.turn = turn

    async def mark_effect(self) -> bool:
        runner = self._runner
        answer = await self._commit(MarkEffect(runner.run_key, self.key, self.number, runner.now()))
        return not isinstance(answer, AlreadyMarked)

    async def unmark_effect(self) -> None:
        await self._commit(UnmarkEffect(self._runner.run_key, self.key))

    async def approved_digest(self, key: str) -> str | None:
        queries, cursor = self._runner.host.store.queries, None
        while True:
            page = await queries.list_approvals(run=self._runner.run_id, limit=100, cursor=cursor)
            for request in page.data:
                if request.step_key == key and request.status == "approved":
                    return request.args_digest
            if not page.has_more:
                return None
            cursor = page.cursor

    def stream(self, kind: str, data: Any) -> None:
        self._stream.append(kind, data, step_key=self.key, attempt=self.number)

    async def send_events(self, events: Sequence[Event]) -> list[str]:
        runner = self._runner
        new_events = await runner.new_events(events, source_key=self.key)
        sent = await self._commit(SendEvents(tuple(new_events), runner.now(), runner.run_key))
        assert isinstance(sent, Sent)
        return list(sent.event_ids)

    async def send_signal(self, name: str, data: Any, buffer: timedelta | None) -> str | None:
        runner = self._runner
        now = runner.now()
        text = signal_data(name, data, settings=runner.settings)
        answer = await self._commit(
            SendSignal(
                # The step's own name: played again after a crash it finds what it did before.
                id=f"{runner.run_id}:{self.key}",
                name=name,
                data=text,
                now=now,
                buffer_until=None if buffer is None else now + to_micros(buffer),
                run=runner.run_key,
            )
        )
        return delivered_to(answer, name)

    @property
    def _stream(self) -> RunStream:
        return self._runner.stream

    async def _commit(self, operation: Operation) -> Outcome:
        answer: Outcome = await self._runner.host.store.submit(operation)
        if isinstance(answer, Fenced):
            raise self._runner.lost(answer.why)
        return answer


def _awaited(limit: ModelRateLimit, because: str) -> str:
    if because == "paused":
        return f"{limit.provider}, which has answered that there are too many calls"
    most = limit.requests if because == "requests" else limit.tokens
    return f"its turn at {limit.provider}: {most} {because} in {parse_duration(limit.period)} are the limit"


def _outcome_of(fn: Callable[[], R]) -> tuple[R, None] | tuple[None, Exception]:
    """What `fn` gives, or raises: a value too, since no future can hold a StopIteration (it would never be done)"""
    try:
        return fn(), None
    except Exception as error:
        return None, error


def _retrieve(thread: asyncio.Future[Any]) -> None:
    """Whoever waited for it may be gone."""
    if not thread.cancelled():
        thread.exception()


def delivered_to(answer: Outcome, name: str) -> str | None:
    """The run that got a signal, `None` when it is buffered. Raises `NoWaiter`, `SignalConflict`."""
    match answer:
        case Delivered(run_id=run_id):
            return run_id
        case NobodyWaits():
            raise NoWaiter(
                f"nobody waits for signal {name!r}; to keep it for a wait that comes later, give buffer="
            )
        case AlreadyBuffered():
            raise SignalConflict(f"a signal {name!r} is buffered already, and nobody has waited for it yet")
    raise AssertionError(f"unexpected answer to a signal: {answer!r}")
