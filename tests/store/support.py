"""Short ways to write operations, for tests of the store."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from agentflow.clock import NEVER
from agentflow.settings import Settings
from agentflow.store.claim_types import ClaimedRun
from agentflow.store.hints import Hint, HintKind
from agentflow.store.opening import open_store
from agentflow.store.operation_types import CommitStep, RegisterWait, StartRun
from agentflow.store.protocol import Store
from agentflow.store.stored_types import NewApproval, NewEvent, NewRun, RunKey, StoredStep, StoredWait

APP, FUNCTION = "shop", "order"
_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    return f"{prefix}-{next(_numbers)}"


def a_run(run_id: str | None = None, **changes: Any) -> NewRun:
    run_id = run_id or fresh("run")
    return NewRun(run_id, APP, FUNCTION, '{"n":1}', 1_000, 1_000, run_id)._replace(**changes)


def a_step(key: str = "a", seq: int | None = 1, output: str | None = '"done"', **changes: Any) -> StoredStep:
    return StoredStep(key, seq, "run", None, True, output, None, 1, 1_100, 1_200)._replace(**changes)


def a_wait(
    key: str = "w", kind: str = "signal", topic: str | None = "go", deadline: int = 9_000, **changes: Any
) -> StoredWait:
    return StoredWait(key, kind, topic, topic, None, deadline, 1_300, True, "null", None)._replace(**changes)


def an_event(name: str = "paid", event_id: str | None = None, **changes: Any) -> NewEvent:
    return NewEvent(event_id or fresh("event"), name, '{"user":7}', 1_400, 1_400)._replace(**changes)


def an_approval(approval_id: str | None = None, **changes: Any) -> NewApproval:
    return NewApproval(
        approval_id or fresh("approval"),
        "refund",
        "Refund?",
        None,
        '{"amount":5,"to":"ana"}',
        "digest",
        (),
        1,
        None,
        "{}",
        1_300,
        9_000,
    )._replace(**changes)


@dataclass
class World:
    """A store with one worker."""

    store: Store
    worker: str
    epoch: int
    hints: list[Hint] = field(default_factory=list)

    async def submit(self, operation: Any) -> Any:
        outcome = await self.store.submit(operation)
        await asyncio.sleep(0)  # hints come a turn of the loop later
        return outcome

    async def start(self, run_id: str | None = None, **changes: Any) -> RunKey:
        """A run that is running and owned by the worker."""
        run = a_run(run_id, **changes)
        started = await self.submit(StartRun(run, 1_000, owner=self.worker))
        assert started.epoch == 1
        return RunKey(run.id, self.worker, 1)

    async def queue(self, run_id: str | None = None, **changes: Any) -> str:
        run = a_run(run_id, **changes)
        await self.submit(StartRun(run, 1_000))
        return run.id

    async def step(self, key: RunKey, name: str = "a", seq: int = 1, output: str = '"done"') -> Any:
        return await self.submit(CommitStep(key, a_step(name, seq, output)))

    async def wait(
        self, key: RunKey, wait: StoredWait, *, seq: int = 9, now: int = 1_300, **changes: Any
    ) -> Any:
        return await self.submit(RegisterWait(key, wait, seq, now)._replace(**changes))

    async def claim(
        self, *, now: int = 2_000, limit: int = 10, app: str = APP, functions: tuple[str, ...] = (FUNCTION,)
    ) -> list[ClaimedRun]:
        return await self.store.claim(
            self.worker, epoch=self.epoch, app=app, functions=functions, limit=limit, now=now
        )

    async def claim_one(self, *, now: int = 2_000) -> ClaimedRun:
        [claimed] = await self.claim(now=now)
        return claimed

    async def other_worker(self, *, lease_seconds: float = 60.0) -> World:
        """A second worker of the same store."""
        return await with_worker(self.store, lease_seconds=lease_seconds)


async def with_worker(store: Store, *, lease_seconds: float = 60.0) -> World:
    worker = fresh("worker")
    epoch = await store.register_worker(worker, lease_seconds=lease_seconds, version="1")
    world = World(store, worker, epoch)
    # "Look at everything" may come at any time, so no test can say when it does not.
    store.subscribe(lambda hint: None if hint.kind is HintKind.ANY else world.hints.append(hint))
    return world


def make_store(url: str, **settings: Any) -> Store:
    return open_store(url, settings=Settings(**settings))


__all__ = [
    "APP",
    "FUNCTION",
    "NEVER",
    "World",
    "a_run",
    "a_step",
    "a_wait",
    "an_approval",
    "an_event",
    "fresh",
    "make_store",
    "with_worker",
]


async def until(condition: Callable[[], Any | Awaitable[Any]]) -> None:
    """Wait until it is so, at most ten seconds."""
    for _ in range(2_000):
        answer = condition()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not become so within ten seconds")


async def expire_leases(store: Store, *, keep: str) -> None:
    """Let the leases of all other workers be over now, as time would."""
    path = getattr(store, "_path", None)
    statement = "UPDATE agentflow_worker SET lease_until = 0 WHERE id <> "
    if path is not None:
        import sqlite3

        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(statement + "?", (keep,))
        connection.close()
    else:
        import asyncpg

        database = await asyncpg.connect(store._dsn)  # type: ignore[attr-defined]
        await database.execute(statement + "$1", keep)
        await database.close()
