"""`RunHandle`: a run seen from outside, in this process or another; and who is told when a run ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar, cast

from agentflow.codec import PLAIN, Codec
from agentflow.errors import NotFound, RunCancelled, RunFailed, RunSkipped
from agentflow.runs import ErrorInfo, Run, RunStatus, StreamItem
from agentflow.store.protocol import Hint, HintKind, Store

R = TypeVar("R")

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0


class Watchers:
    """Wakes those in this process who wait for news of a run; the poll makes up for hints that do not come."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    def hear(self, hint: Hint) -> None:
        if hint.kind is HintKind.ANY:
            for events in self._events.values():
                _set_all(events)
        elif hint.run_id is not None and hint.kind is not HintKind.READY:
            _set_all(self._events.get(hint.run_id, set()))

    def watch(self, run_id: str) -> Watch:
        return Watch(self._events, run_id)


class Watch:
    """A context in which `news` returns when there may be some."""

    def __init__(self, events: dict[str, set[asyncio.Event]], run_id: str) -> None:
        self._events = events
        self._run_id = run_id
        self._event = asyncio.Event()
        self._pause = FIRST_PAUSE

    def __enter__(self) -> Watch:
        self._events.setdefault(self._run_id, set()).add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        watching = self._events[self._run_id]
        watching.discard(self._event)
        if not watching:
            del self._events[self._run_id]

    async def news(self) -> None:
        """Wait for a hint, or for the next poll."""
        try:
            async with asyncio.timeout(self._pause):
                await self._event.wait()
            self._pause = FIRST_PAUSE
        except TimeoutError:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._event.clear()


class RunHandle(Generic[R]):
    """A run by its id. Works from any process that has opened the same database."""

    def __init__(self, run_id: str, *, store: Store, watchers: Watchers, codec: Codec[Any] = PLAIN) -> None:
        self.id = run_id
        self._store = store
        self._watchers = watchers
        self._codec = codec

    def __repr__(self) -> str:
        return f"<RunHandle {self.id}>"

    async def status(self) -> RunStatus:
        """Where the run stands. Raises `NotFound`."""
        status = await self._store.queries.get_status(self.id)
        if status is None:
            raise NotFound(f"there is no run {self.id}")
        return status

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the run's end and give its output, typed where its function is known here.

        Raises `RunFailed`, `RunCancelled`, `RunSkipped`, `NotFound`, or `TimeoutError` after `timeout` seconds; the
        run goes on then.
        """
        async with asyncio.timeout(timeout):
            await self._wait_for_end()
        run = await self._store.queries.get_run(self.id)
        assert run is not None, "a run that has ended is not removed at once"
        return self._output_of(run)

    async def stream(self, after: int = 0) -> AsyncIterator[StreamItem]:
        """The run's steps and text as they come, those with a `seq` over `after`; ends with an item `done`.

        Between them `run.<status>` tells what the run waits for; it repeats the last `seq`.
        """
        seq, told = after, None
        with self._watchers.watch(self.id) as watch:
            while True:
                run = await self._store.queries.get_run(self.id)
                if run is None:
                    raise NotFound(f"there is no run {self.id}")
                while items := await self._store.queries.list_stream(self.id, after=seq):
                    for item in items:
                        seq = item.seq
                        yield item
                state = (run.status, [(waiting.step_key, waiting.kind) for waiting in run.waiting])
                if run.status.is_final:
                    done = StreamItem(seq=seq + 1, kind="done", data=_end_of(run))
                    if after <= seq:
                        yield done
                    return
                if state != told:
                    told = state
                    waiting = [item.model_dump(mode="json") for item in run.waiting]
                    yield StreamItem(seq=seq, kind=f"run.{run.status}", data={"waiting": waiting})
                await watch.news()

    async def _wait_for_end(self) -> None:
        with self._watchers.watch(self.id) as watch:
            while not (await self.status()).is_final:
                await watch.news()

    def _output_of(self, run: Run) -> R:
        match run.status:
            case RunStatus.COMPLETED:
                return cast(R, self._codec.decode(json.dumps(run.output)))
            case RunStatus.CANCELLED:
                raise RunCancelled(run.id, run.reason)
            case RunStatus.SKIPPED:
                raise RunSkipped(run.id, run.reason)
            case _:
                raise RunFailed(run.id, run.error or ErrorInfo(name="Error", message="unknown"))


def _end_of(run: Run) -> dict[str, Any]:
    error = None if run.error is None else {"name": run.error.name, "message": run.error.message}
    return {"status": run.status, "reason": run.reason, "output": run.output, "error": error}


def _set_all(events: set[asyncio.Event]) -> None:
    for event in events:
        event.set()
