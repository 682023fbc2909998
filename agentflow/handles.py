"""`RunHandle`: a run seen from outside, in this process or another; and who is told when a run ends."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar, cast

from agentflow.codec import PLAIN, Codec
from agentflow.errors import AgentflowError, NotFound, RunCancelled, RunFailed, RunSkipped
from agentflow.runs import End, ErrorInfo, Run, RunStatus, StreamItem
from agentflow.store.hints import Hint, HintKind
from agentflow.store.protocol import Store

R = TypeVar("R")
V = TypeVar("V")

logger = logging.getLogger("agentflow.client")

SHORTEST_PAUSE = 0.01
FIRST_PAUSE = 0.05
TOLD_PAUSE = 0.1
LONGEST_PAUSE = 1.0
MOST_ENDS = 1000
LARGEST_END = 64 * 1024
MOST_ITEMS = 500
"""That are read of a stream at once."""
UNKNOWN_ERROR = '{"name": "Error", "message": "the run failed, and its error could not be read"}'


class Watchers:
    """Tells those in this process who wait for a run: at once what ended here, by one poll what ended elsewhere.

    The ends of the latest runs of this process are kept, so that asking for a result costs no read. `is_here` says
    whether a run is in memory here: its worker is about to say how it has ended, or that it is gone.
    """

    def __init__(self, store: Store, *, is_here: Callable[[str], bool]) -> None:
        self._store = store
        self._is_here = is_here
        self._ends: OrderedDict[str, End] = OrderedDict()
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._watches: dict[str, set[Watch]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._said_to_end: set[str] = set()
        self._to_be_read: OrderedDict[str, None] = OrderedDict()
        """What has ended, it is not known how: elsewhere while nobody here waited, or its end is large."""
        self._must_look_at_all = False

    def hear(self, hint: Hint) -> None:
        """Take a hint from the store."""
        if hint.kind is HintKind.ANY:
            self._must_look_at_all = True
            self._hurry.set()
            for watches in self._watches.values():
                for watch in watches:
                    watch.hurry()
        elif hint.run_id is not None and hint.kind is not HintKind.READY:
            for watch in self._watches.get(hint.run_id, ()):
                watch.wake()
            if hint.kind is HintKind.ENDED and hint.run_id not in self._ends:
                # If it ended in this process its worker is about to say how; else the poll reads it.
                if hint.run_id in self._waiting:
                    self._said_to_end.add(hint.run_id)
                    self._hurry.set()
                else:
                    _keep(self._to_be_read, hint.run_id, None)

    def note_written(self, run_id: str) -> None:
        """Something of a run was committed in this process: of its steps and waits there are no hints."""
        for watch in self._watches.get(run_id, ()):
            watch.hurry()

    def note_end(self, end: End) -> None:
        """A run has ended in this process, and that is committed."""
        if len(end.output or "") + len(end.error or "") <= LARGEST_END:
            self._to_be_read.pop(end.run_id, None)
            _keep(self._ends, end.run_id, end)
        else:
            _keep(self._to_be_read, end.run_id, None)
        self._tell(end.run_id)

    def find_end(self, run_id: str) -> End | None:
        return self._ends.get(run_id)

    async def ended(self, run_id: str) -> None:
        """Wait until the run has ended."""
        if run_id in self._ends or run_id in self._to_be_read:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run_id, set()).add(future)
        if self._poller is None or self._poller.done():
            self._poller = self._start_poll()
        try:
            await future
        finally:
            waiting = self._waiting.get(run_id, set())
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(run_id, None)

    def watch(self, run_id: str) -> Watch:
        return Watch(self._watches, run_id)

    async def close(self) -> None:
        """Nobody is told any more: who still waits gets an error."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for run_id, futures in self._waiting.items():
            for future in futures:
                if not future.done():
                    future.set_exception(
                        AgentflowError(
                            f"the app was closed before run {run_id} had ended; the run goes on: "
                            "ask for its result where the app is open"
                        )
                    )

    def _start_poll(self) -> asyncio.Task[None]:
        # Not by the loop, whose tasks belong to the run that starts them: this one serves everybody who waits.
        loop = asyncio.get_running_loop()
        return contextvars.Context().run(lambda: asyncio.Task(self._poll(), loop=loop, name="agentflow-ends"))

    async def _poll(self) -> None:
        pause = FIRST_PAUSE
        while self._waiting:
            try:
                async with asyncio.timeout(pause):
                    await self._hurry.wait()
                # There may be many hints: one look serves all that come in a while.
                self._hurry.clear()
                await asyncio.sleep(SHORTEST_PAUSE)
                if self._must_look_at_all:
                    pause = FIRST_PAUSE
            except TimeoutError:
                pause = min(pause * 2, LONGEST_PAUSE)
                self._must_look_at_all = True
            # What ended in this process has been told meanwhile: then nobody waits for it any more.
            here = {run_id for run_id in self._said_to_end if self._is_here(run_id)}
            wanted = (
                self._waiting.keys()
                if self._must_look_at_all
                else self._waiting.keys() & self._said_to_end - here
            )
            self._must_look_at_all = False
            self._said_to_end = here
            if here:
                self._hurry.set()
            if not wanted:
                continue
            try:
                for run_id in await self._store.queries.list_ended(list(wanted)):
                    self._tell(run_id)
            except Exception:
                logger.exception("could not look which runs have ended; trying again")
                pause = LONGEST_PAUSE

    def _tell(self, run_id: str) -> None:
        for future in self._waiting.get(run_id, ()):
            if not future.done():
                future.set_result(None)


def _keep(latest: OrderedDict[str, V], run_id: str, value: V) -> None:
    latest[run_id] = value
    if len(latest) > MOST_ENDS:
        latest.popitem(last=False)


class Watch:
    """A context in which `news` returns when there may be some of a run."""

    def __init__(self, watches: dict[str, set[Watch]], run_id: str) -> None:
        self._watches = watches
        self._run_id = run_id
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._pause = FIRST_PAUSE
        self._limit: asyncio.Timeout | None = None
        """Of the wait that goes on."""
        self._looked_at = 0.0

    def __enter__(self) -> Watch:
        self._watches.setdefault(self._run_id, set()).add(self)
        return self

    def __exit__(self, *_: object) -> None:
        watching = self._watches[self._run_id]
        watching.discard(self)
        if not watching:
            del self._watches[self._run_id]

    def wake(self) -> None:
        """There is some. Where the run is told of, the poll has time."""
        self._pause = TOLD_PAUSE
        self._event.set()

    def hurry(self) -> None:
        """There may be some: look, but not sooner after the last look than the shortest poll, as many such hints may
        come."""
        self._pause = FIRST_PAUSE
        due = self._looked_at + FIRST_PAUSE
        if self._loop.time() >= due:
            self._event.set()
        elif self._limit is not None and not self._limit.expired() and due < (self._limit.when() or due):
            self._limit.reschedule(due)

    async def news(self) -> None:
        """Wait for a hint, or for the next poll."""
        self._looked_at = self._loop.time()
        try:
            async with asyncio.timeout(self._pause) as self._limit:
                await self._event.wait()
        except TimeoutError:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        finally:
            self._limit = None
        self._event.clear()


class RunHandle(Generic[R]):
    """A run by its id. Works from any process that has opened the same database."""

    def __init__(
        self,
        run_id: str,
        *,
        store: Store,
        watchers: Watchers,
        codec: Codec[Any] = PLAIN,
        is_new: bool = False,
    ) -> None:
        self.id = run_id
        self._is_new = is_new
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
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                end = await self._wait_for_end()
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(await self._why_not_ended(timeout)) from None
        return self._result_of(end)

    async def stream(self, after: int = 0) -> AsyncIterator[StreamItem]:
        """The run's steps and text as they come, those with a `seq` over `after`; ends with an item `done`.

        Between them `run.<status>` tells what the run waits for, and `approval.<status>` of each person's decision that
        it asks for; they repeat the last `seq`.
        """
        queries = self._store.queries
        seq, standing, told, is_sure = after, None, None, False
        approvals: dict[str, str] = {}
        with self._watchers.watch(self.id) as watch:
            while True:
                # Each reader comes here for each piece of text: no more is read than is new.
                look = await queries.look(self.id, after=seq, most=MOST_ITEMS)
                if look is not None and look.standing == standing and is_sure:
                    for item in look.chunks:
                        seq = item.seq
                        yield item
                    if seq == look.last_seq or not look.chunks:
                        await watch.news()
                    continue
                # How it stands is told after all items before that, so it is read before them.
                run = look and await queries.get_run(self.id, payloads=look.is_final)
                if look is None or run is None:
                    raise NotFound(f"there is no run {self.id}")
                state = (run.status, [(waiting.step_key, waiting.kind) for waiting in run.waiting])
                # What was read after the look may have been so for a moment only: it is read once more.
                is_sure = look.standing == standing and state == told
                standing = look.standing
                if run.status.is_final and not look.is_final:
                    continue  # it has ended between the two
                has_more = True
                while has_more:
                    items = await queries.list_stream(self.id, after=seq, limit=MOST_ITEMS)
                    has_more = len(items) == MOST_ITEMS
                    for item in items:
                        seq = item.seq
                        yield item
                if run.status.is_final:
                    if seq < look.last_seq:
                        raise NotFound(
                            f"there is no run {self.id} any more: it was removed while it was told"
                        )
                    if seq > after or await self._has_item(after):
                        yield StreamItem(seq=seq + 1, kind="done", data=_end_of(run))
                    return
                if state != told:
                    told = state
                    waiting = [item.model_dump(mode="json") for item in run.waiting]
                    yield StreamItem(seq=seq, kind=f"run.{run.status}", data={"waiting": waiting})
                    if approvals or any(item.kind == "approval" for item in run.waiting):
                        for item in await self._approvals(seq, approvals):
                            yield item
                await watch.news()

    async def _approvals(self, seq: int, told: dict[str, str]) -> list[StreamItem]:
        """The run's approvals that stand otherwise than was told."""
        items: list[StreamItem] = []
        cursor: str | None = None
        while True:
            page = await self._store.queries.list_approvals(run=self.id, limit=100, cursor=cursor)
            for request in page.data:
                if told.get(request.id) != request.status:
                    told[request.id] = request.status
                    data = request.model_dump(mode="json")
                    kind, key = f"approval.{request.status}", request.step_key
                    items.append(StreamItem(seq=seq, kind=kind, step_key=key, data=data))
            cursor = page.cursor
            if not page.has_more:
                return items

    async def _has_item(self, seq: int) -> bool:
        """Whether that number is an item's, and not that of `done`, after which nothing follows."""
        items = await self._store.queries.list_stream(self.id, after=seq - 1, limit=1)
        return seq <= 0 or any(item.seq == seq for item in items)

    async def _wait_for_end(self) -> End:
        end = self._watchers.find_end(self.id)
        if end is None:
            # A run that was stored a moment ago is not looked up: its end will be told.
            if not self._is_new and (await self.status()).is_final:
                return await self._read_end()
            self._is_new = False
            await self._watchers.ended(self.id)
            end = self._watchers.find_end(self.id)
        return end or await self._read_end()

    async def _why_not_ended(self, timeout: float | None) -> str:
        told = f"run {self.id} has not ended within {timeout} s; it goes on"
        try:
            run = await self._store.queries.get_run(self.id)
        except Exception:  # the database may be what it waits for
            return told
        if run is None:
            return told
        hint = ": is a worker of its app running?" if run.status is RunStatus.QUEUED else ""
        waiting = ", ".join(f"{item.kind} {item.name or item.step_key!r}" for item in run.waiting)
        return f"{told} ({run.status}{f': {waiting}' if waiting else ''}{hint})"

    async def _read_end(self) -> End:
        run = await self._store.queries.get_run(self.id)
        if run is None:
            raise NotFound(
                f"there is no run {self.id} any more: it had ended, and was removed before its result was read "
                "(Settings.retention is how long what has ended is kept)"
            )
        error = None if run.error is None else run.error.model_dump_json()
        return End(run.id, run.status, json.dumps(run.output), error, run.reason)

    def _result_of(self, end: End) -> R:
        match end.status:
            case RunStatus.COMPLETED:
                return cast(R, self._codec.decode(end.output or "null"))
            case RunStatus.CANCELLED:
                raise RunCancelled(end.run_id, end.reason)
            case RunStatus.SKIPPED:
                raise RunSkipped(end.run_id, end.reason)
            case _:
                raise RunFailed(end.run_id, ErrorInfo.model_validate_json(end.error or UNKNOWN_ERROR))


def _end_of(run: Run) -> dict[str, Any]:
    error = None if run.error is None else {"name": run.error.name, "message": run.error.message}
    return {"status": run.status, "reason": run.reason, "output": run.output, "error": error}
