"""A load that uses everything a run can wait for, and the proof that nothing of it went wrong: "0 bad".

Runs are started and signalled by a sender that has no worker, while workers in this process execute them. Triggers in
the database see what no look from outside would: a step that changes after its commit, an end that changes, a step
stored for a run whose owner was fenced.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import asyncpg

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import NoWaiter
from agentflow.handles import RunHandle
from agentflow.info import step_info
from agentflow.settings import Settings
from agentflow.step import Step

STEPS = ["s0", "s1", "s2", "left", "right", "nap", "wait", "call", "last"]

_AUDIT = """
    CREATE TABLE audit (what text, run_id text, key text, was text, is_now text);
    CREATE FUNCTION audit_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO audit VALUES ('a step was removed', OLD.run_id, OLD.key, OLD.output, NULL);
        ELSIF TG_OP = 'UPDATE' THEN
            IF (OLD.ok, OLD.output, OLD.error) IS DISTINCT FROM (NEW.ok, NEW.output, NEW.error) THEN
                INSERT INTO audit VALUES ('a step has changed', OLD.run_id, OLD.key, OLD.output, NEW.output);
            END IF;
        ELSIF NEW.kind = 'run' AND NOT EXISTS (
            SELECT 1 FROM agentflow_run r JOIN agentflow_worker w ON w.id = r.owner
            WHERE r.id = NEW.run_id AND r.status = 1 AND w.reaped_at IS NULL
        ) THEN
            INSERT INTO audit VALUES ('written by a fenced worker', NEW.run_id, NEW.key, NULL, NEW.output);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON agentflow_step FOR EACH ROW EXECUTE FUNCTION audit_step();
    CREATE FUNCTION audit_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO audit VALUES ('an end has changed', OLD.id, '', OLD.status::text, NEW.status::text);
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER UPDATE ON agentflow_run FOR EACH ROW
        WHEN (OLD.status >= 4 AND NEW.status <> OLD.status) EXECUTE FUNCTION audit_end();
"""
_AUDIT_NO_MORE = "DROP TABLE audit; DROP FUNCTION audit_step CASCADE; DROP FUNCTION audit_end CASCADE"


class Load:
    """Workers and a sender by `url`; `straight_url` is the same database by a way that does not fail."""

    def __init__(
        self, url: str, straight_url: str, *, workers: int = 2, lease_seconds: float = 10.0, at_once: int = 20
    ) -> None:
        self._straight_url = straight_url
        self._settings = Settings(database_url=url, lease_seconds=lease_seconds)
        self._count = workers
        self._at_once = at_once
        self._stack = AsyncExitStack()
        self._returned: defaultdict[str, list[str]] = defaultdict(list)
        self._lanes: list[asyncio.Task[None]] = []
        self._is_over = False
        self.started: dict[int, str] = {}
        self.results: dict[str, Any] = {}
        self.progress_at = time.monotonic()
        """When a step was last committed."""
        self.longest_silence = 0.0

    async def __aenter__(self) -> Self:
        database = await asyncpg.connect(self._straight_url)
        await database.execute(_AUDIT)
        await database.close()
        self.workers = [self._make_app() for _ in range(self._count)]
        self.sender = self._make_app()
        for app in self.workers:
            await self._stack.enter_async_context(app.running())
        await self._stack.enter_async_context(self.sender)
        self._lanes = [asyncio.create_task(self._do_one_after_another(n)) for n in range(self._at_once)]
        self.progress_at = time.monotonic()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        await self._stack.aclose()
        database = await asyncpg.connect(self._straight_url)
        await database.execute(_AUDIT_NO_MORE)
        await database.close()

    async def goes_on(self, seconds: float) -> float:
        """Wait for the next step that is stored; how long that took."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while self.progress_at <= began:
                await asyncio.sleep(0.01)
        return self.progress_at - began

    async def finish(self, seconds: float) -> None:
        """Start no more; every run has to end within `seconds`."""
        self._is_over = True
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._lanes)

    async def check(self) -> None:
        """0 bad: no run lost or started twice, no step changed, nothing under a fenced epoch, all ended."""
        database = await asyncpg.connect(self._straight_url)
        try:
            assert await database.fetch("SELECT * FROM audit") == []
            runs = await database.fetch("SELECT id, function, status, parent_id FROM agentflow_run")
            steps = await database.fetch("SELECT run_id, key, output FROM agentflow_step")
            assert await database.fetchval("SELECT count(*) FROM agentflow_wait") == 0
        finally:
            await database.close()
        assert Counter(run["status"] for run in runs) == {4: len(runs)}, "every run ends, as completed"
        assert {run["id"] for run in runs if run["function"] == "work"} == set(self.started.values())
        children = Counter(run["parent_id"] for run in runs if run["function"] == "child")
        assert children == dict.fromkeys(self.started.values(), 1)
        told = [run for run in runs if run["function"] == "hear"]
        assert len(told) == len(self.started), "each event started one run"
        keys = defaultdict(set)
        for run_id, key, output in steps:
            keys[run_id].add(key)
            if key in ("s0", "s1", "s2", "left", "right", "last"):
                value = output.strip('"')
                assert value in self._returned[f"{run_id}/{key}"]
                if (result := self.results.get(run_id)) is not None:
                    assert result[key] == value, "what the function saw is what is stored"
        for run_id in self.started.values():
            assert keys[run_id] == {*STEPS, "tell"}

    def _note_progress(self) -> None:
        now = time.monotonic()
        self.longest_silence = max(self.longest_silence, now - self.progress_at)
        self.progress_at = now

    @property
    def twice(self) -> int:
        """How many bodies ran again."""
        return sum(len(values) - 1 for values in self._returned.values())

    def _make_app(self) -> App:
        app = App("load", settings=self._settings)

        async def body() -> str:
            await asyncio.sleep(random.uniform(0, 0.02))
            value = secrets.token_hex(8)
            info = step_info()
            self._returned[f"{info.run_id}/{info.step_id}"].append(value)
            return value

        async def run(step: Step, name: str) -> str:
            value: str = await step.run(name, body)
            self._note_progress()
            return value

        @app.function
        async def work(ctx: Context[int], step: Step) -> dict[str, Any]:
            seen: dict[str, Any] = {name: await run(step, name) for name in ("s0", "s1", "s2")}
            seen["left"], seen["right"] = await asyncio.gather(
                step.run("left", body), step.run("right", body)
            )
            await step.sleep("nap", 0.05)
            signal = await step.wait_for_signal("wait", signal=f"go {ctx.data}", timeout="1h")
            seen["wait"] = signal and signal.data
            seen["call"] = await step.invoke("call", "child", data=ctx.data)
            await step.send_event("tell", {"name": "told", "data": {"n": ctx.data}})
            seen["last"] = await run(step, "last")
            return seen

        @app.function
        async def child(ctx: Context[int], step: Step) -> int:
            await run(step, "s0")
            return ctx.data + 1

        @app.function(on="told")
        async def hear(ctx: Context[dict[str, int]], step: Step) -> int:
            await run(step, "s0")
            return ctx.data["n"]

        return app

    async def _do_one_after_another(self, first: int) -> None:
        number = first
        while not self._is_over:
            # Half of them begin in a worker's own process, the others come out of the queue.
            starter = self.workers[number % len(self.workers)] if number % 2 else self.sender
            handle: RunHandle[Any] = await starter.start("work", number)
            assert number not in self.started
            self.started[number] = handle.id
            assert await self._signal(number) == handle.id
            seen = await self.sender.runs.handle(handle.id).result()
            assert (seen["wait"], seen["call"]) == (number, number + 1)
            self.results[handle.id] = seen
            number += self._at_once

    async def _signal(self, number: int) -> str | None:
        while True:
            try:
                return await self.sender.signal(f"go {number}", number)
            except NoWaiter:
                await asyncio.sleep(0.05)
