"""Runs of every kind of `killed_flow`, started while workers are killed again and again."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from agentflow import App
from agentflow.errors import NoWaiter, RunFailed
from tests.crash.processes import WorkerProcess, Workers
from tests.faults.facts import Facts
from tests.faults.support import read_rows

OTHERS = ("branches", "parent", "failing", "listener", "keyed", "with-agent", "keeper")
CHILDREN = {
    "parent": {"leaf": 3, "middle": 1, "broken": 1},
    "failing": {"failing-failure": 1},
    "listener": {"echo": 1},
    "with-agent": {"agents/clerk": 1},
    "keeper": {"middle": 1, "leaf": 1},
}
"""What each starts besides itself."""


@dataclass
class Load:
    """What is started, and what came of it."""

    app: App
    rng: random.Random
    first: int = 0
    """The number of the first run: no two of a test have the same."""
    results: dict[tuple[str, int], Any] = field(default_factory=dict)
    ids: dict[tuple[str, int], str] = field(default_factory=dict)
    rows: int = 0
    release_keepers: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def expected(self) -> Counter[str]:
        """How many runs of each function there have to be; `batched` ones are as many as come together."""
        found: Counter[str] = Counter(kind for kind, _ in self.ids)
        for kind, children in CHILDREN.items():
            for child, n in children.items():
                found[child] += n * sum(of == kind for of, _ in self.ids)
        return found

    async def bring(self, plain: int, *, others: int, seconds: float) -> None:
        """Start so many `plain` runs and of each other kind so many, spread over a time; return when all have ended."""
        kinds = ["plain"] * plain + [kind for kind in OTHERS for _ in range(others)]
        self.rng.shuffle(kinds)
        async with asyncio.TaskGroup() as group:
            for n, kind in enumerate(kinds, self.first):
                group.create_task(self._live(kind, n, self.rng.random() * seconds))
            for n in range(self.first, self.first + others * 5):
                group.create_task(self._send_row(n, self.rng.random() * seconds))
        self.rows = others * 5

    async def _live(self, kind: str, n: int, begin_after: float) -> None:
        await asyncio.sleep(begin_after)
        data = {"n": n, "key": n % 5} if kind == "keyed" else {"n": n}
        run = await self.app.start(kind, data, idempotency_key=f"{kind} {n}")
        self.ids[kind, n] = run.id
        again = await self.app.start(kind, data, idempotency_key=f"{kind} {n}")
        assert again.id == run.id
        helper = asyncio.create_task(self._help(kind, n))
        try:
            self.results[kind, n] = await run.result()
        except RunFailed as failed:
            self.results[kind, n] = failed.error.name
        finally:
            if kind == "listener":
                helper.cancel()
            await asyncio.gather(helper, return_exceptions=kind == "listener")

    async def _help(self, kind: str, n: int) -> None:
        """Send what the run waits for."""
        await asyncio.sleep(self.rng.random() * 2)
        if kind == "keeper":
            await self.release_keepers.wait()
            await self.app.signal(f"go {n}", n, buffer="1h")
        elif kind == "plain" and n % 10 == 0:
            run = await self.app.start("sender", {"n": n})
            self.ids["sender", n] = run.id
            self.results["sender", n] = await run.result()
        elif kind == "plain" and n % 3 == 0:
            await self.app.signal(f"go {n}", n, buffer="1h")
        elif kind == "plain":
            pause = 0.2
            while True:
                try:
                    await self.app.signal(f"go {n}", n)
                    return
                except NoWaiter:
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, 5)  # else those that wait keep the database from those that work
        while kind == "listener":  # one that comes before the wait is not for it
            await self.app.send({"name": "told", "data": {"n": n}})
            await asyncio.sleep(0.7)

    async def _send_row(self, n: int, after: float) -> None:
        await asyncio.sleep(after)
        await self.app.send({"name": "row", "data": {"n": n}, "id": f"row {n}"})
        await self.app.send({"name": "row", "data": {"n": n}, "id": f"row {n}"})


@dataclass
class Killer:
    """Kills one of the workers again and again."""

    group: Workers
    rng: random.Random
    killed: dict[int, int] = field(default_factory=dict)
    """When each was killed, by its process id."""
    live: list[WorkerProcess] = field(default_factory=list)
    arguments: tuple[str, ...] = ()

    async def kill(self, times: int, *, workers: int) -> None:
        """Kill one of so many every 0.3 to 1 s; with one worker, so long after it has begun to work."""
        self.live = await asyncio.gather(*[self.group.start(*self.arguments) for _ in range(workers)])
        for _ in range(times):
            victim = self.rng.choice(self.live)
            if workers == 1:
                await victim.started()
            await asyncio.sleep(self.rng.uniform(0.3, 1))
            self.live.remove(victim)
            victim.kill()
            self.killed[victim.pid] = time.monotonic_ns()
            self.live.append(self.group.begin(*self.arguments))


async def everything_ended(app: App) -> None:
    """Wait until no run is left, of those that others have started too."""
    async with asyncio.timeout(60):
        while (await app.runs.list(status=["queued", "running", "sleeping", "waiting"], limit=1)).data:
            await asyncio.sleep(0.1)


class Stored:
    """All runs and steps of the database, as they are in it."""

    def __init__(
        self, runs: list[tuple[Any, ...]], steps: list[tuple[Any, ...]], attempts: list[tuple[Any, ...]]
    ) -> None:
        self.runs = runs
        self.steps: dict[str, dict[str, str | None]] = {}
        self.tokens: set[str] = set()
        """Of the bodies whose outcome is stored, a failed attempt's too."""
        for run_id, key, output, error in steps:
            self.steps.setdefault(run_id, {})[key] = output
            self.tokens.update(_tokens_in(f"{output} {error}"))
        for (error,) in attempts:
            self.tokens.update(_tokens_in(error))

    @classmethod
    async def read(cls, url: str) -> Stored:
        return cls(
            await read_rows(
                url,
                "SELECT r.id, r.function, r.status, r.parent_id, r.crash_count, r.reason, io.output "
                "FROM agentflow_run r JOIN agentflow_run_io io ON io.run_id = r.id ORDER BY r.id",
            ),
            await read_rows(
                url, "SELECT run_id, key, output, error FROM agentflow_step ORDER BY run_id, seq, key"
            ),
            await read_rows(url, "SELECT error FROM agentflow_step_attempt"),
        )

    def functions(self) -> Counter[str]:
        return Counter(row[1] for row in self.runs)

    def batched(self) -> list[int]:
        return [n for row in self.runs if row[1] == "batched" for n in json.loads(row[6] or "[]")]


def _tokens_in(text: str) -> list[str]:
    return re.findall(r"\b[0-9a-f]{12}\b", text)


def check_load(load: Load, facts: Facts) -> None:
    """Each run has ended as it has to, with values that bodies made and that its code saw."""
    tokens = facts.tokens
    for (kind, n), result in load.results.items():
        found = [result] if isinstance(result, str) else result
        where = f"{kind} {n} ({load.ids[kind, n]}): {result}"
        match kind:
            case "plain":
                assert len(found) == 5, where
            case "failing":
                assert found == ["ValueError"], where
                continue
            case "branches":
                assert [len(branch) for branch in found] == [2, 2, 4, 2], where
                found = [token for branch in found for token in branch]
            case "parent":
                assert found.pop(3) == "ValueError", where
            case "listener":
                token, event_id, name, value = found
                assert event_id.startswith("evt_"), where
                assert name == "quick", where
                found = [token, value]
            case "with-agent":
                assert found.pop(0) == "done", where
            case "keyed":
                found = found[0].split("+")
        assert set(found) <= tokens, f"{where}: a value that no body made"
        assert len(set(found)) == len(found), where
