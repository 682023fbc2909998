"""A hundred runs that stand in the middle of their work, stored as an earlier agentflow left them in its tables.

`python -m tests.faults.histories` makes them: `histories.json` holds the rows, and how each run ended when the same
code went on. `test_old_and_new.py` lets today's code go on from the same rows. Before the first release a change that
breaks what is stored may make them anew; after it such a change needs a migration, and these show that it works.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Table, create_engine, insert, select
from sqlalchemy.ext.asyncio import create_async_engine

from agentflow import App, Context, RunStatus, Settings, Step, step_info
from agentflow.approvals import Approval, Approve
from agentflow.errors import NonRetriable, NoWaiter, RetryAfter, StepError
from agentflow.flow import Debounce, Timeouts
from agentflow.store.rows import Base
from agentflow.testing import Harness, harness

FILE = Path(__file__).with_name("histories.json")
EACH = 6
LONG = "36500d"

made = "now"
"""What the bodies write into their results: "then" before the rows were stored, "now" when the runs go on."""


class Order(BaseModel):
    """A result of many types."""

    id: UUID
    total: Decimal
    on: date
    at: datetime
    within: timedelta
    parts: tuple[int, str]
    said: dict[str, list[float | None]] = {}


def make_app() -> App:
    app = App("histories", settings=Settings(max_wait="40000d"))

    def say(text: object) -> str:
        return f"{text} {made}"

    def order(n: int) -> Order:
        return Order(
            id=UUID(int=n),
            total=Decimal(n) / 7,
            on=date(2026, 1, 1 + n),
            at=datetime(2026, 3, 29, 1, n, tzinfo=UTC),
            within=timedelta(days=n, microseconds=1),
            parts=(n, made),
            said={"é\u2028💥": [n / 3, None, -0.0]},
        )

    async def park(step: Step) -> None:
        await step.sleep("park", "1d")

    @app.function
    async def sequence(ctx: Context[int], step: Step) -> list[Any]:
        done: list[Any] = [await step.run("loop", say, i) for i in range(1 + ctx.data % 3)]
        got = await step.run("order", order, ctx.data)
        await park(step)
        last = await step.run("loop", say, "last")
        return [*done, got.model_dump(mode="json"), str(got.said), last]

    @app.function
    async def names(ctx: Context[int], step: Step) -> list[str]:
        ids = ["a:1", "a@0", "a\\", "é 💥", "x" * 512, "@", ":"]
        done = [await step.run(id, say, len(id)) for id in ids]
        await park(step)
        return done + [await step.run(id, say, id[:5]) for id in reversed(ids)]

    @app.function
    async def branches(ctx: Context[int], step: Step) -> Any:
        async def branch(n: int) -> list[str]:
            done = [await step.run("same", say, f"{n} {i}") for i in range(2)]
            if n == ctx.data % 3:
                await step.sleep("nap", "1d")
            inner = asyncio.create_task(step.run("inner", say, n))
            return [*done, await step.run("same", say, f"{n} again"), await inner]

        return await asyncio.gather(*map(branch, range(3)), step.run("same", say, "beside"))

    @app.function
    async def signals(ctx: Context[int], step: Step) -> Any:
        got = await step.wait_for_signal("early", signal=f"early {ctx.data}", timeout=LONG)
        missed = await step.wait_for_signal("missed", signal="nobody", timeout=0)
        late = await step.wait_for_signal("late", signal=f"late {ctx.data}", timeout=LONG)
        return [got and got.data, missed, late and late.data, await step.run("last", say, "signals")]

    @app.function(on="history/begun")
    async def events(ctx: Context[Any], step: Step) -> Any:
        got = await step.wait_for_event("wait", event="history/over", match="data.n", timeout=LONG)
        return [ctx.data["n"], got and got.data, await step.run("last", say, "events")]

    @app.function
    async def tries(ctx: Context[int], step: Step) -> Any:
        async def stumble() -> str:
            if made == "then" and step_info().attempt >= ctx.data % 2:
                raise RetryAfter("1d")
            if made == "then":
                raise ValueError("stumbled")
            return say(f"attempt {step_info().attempt}")

        return [await step.run("before", say, "tries"), await step.run("stumble", stumble, retry=5)]

    @app.function
    async def failures(ctx: Context[int], step: Step) -> Any:
        def fail() -> None:
            error = NonRetriable(f"no {ctx.data} {made}") if ctx.data % 2 else KeyError(made)
            error.code = ctx.data  # type: ignore[attr-defined]
            raise error

        try:
            await step.run("fail", fail, retry=0)
        except StepError as error:
            told = [error.name, error.message, error.attributes, error.attempts]
        await park(step)
        try:
            await step.run("fail", fail, retry=0)
        except StepError as error:
            told += [error.message]
        if ctx.data == 5:
            raise NonRetriable("and the run with it")
        return told

    @app.function
    async def child(ctx: Context[int], step: Step) -> str:
        first = await step.run("first", say, f"child {ctx.data}")
        if ctx.data % 2:
            await park(step)
        if ctx.data == 4:
            raise NonRetriable("a child")
        return f"{first}, {await step.run('last', say, 'child')}"

    @app.function
    async def parents(ctx: Context[int], step: Step) -> Any:
        try:
            got = await step.invoke("child", "child", data=ctx.data)
        except StepError as error:
            got = [error.name, error.message]
        await park(step)
        return got

    @app.function
    async def races(ctx: Context[int], step: Step) -> Any:
        async def quick(step: Step) -> str:
            return await step.run("run", say, "quick")

        async def slow(step: Step) -> str:
            await step.sleep("nap", LONG)
            return "slow"

        async def waits(step: Step) -> str:
            await step.run("before", say, "race")
            await step.wait_for_signal("wait", signal=f"race {ctx.data}", timeout=LONG)
            return await step.run("after", say, "race")

        over = await step.race("over", quick=quick, slow=slow)
        return [over, await step.race("open", waits=waits, slow=slow)]

    @app.function
    async def sends(ctx: Context[int], step: Step) -> Any:
        sent = await step.send_event("send", [{"name": "history/heard", "data": {"n": ctx.data}}])
        signalled = await step.send_signal("tell", f"sent {ctx.data}", {"n": made}, buffer=LONG)
        await step.publish("publish", "topic", {"n": made})
        await park(step)
        got = await step.wait_for_signal("told", signal=f"sent {ctx.data}", timeout=LONG)
        return [len(sent), signalled, got and got.data]

    @app.function(on="history/heard", concurrency=1)
    async def one_by_one(ctx: Context[Any], step: Step) -> str:
        await park(step)
        return await step.run("last", say, ctx.data["n"])

    @app.function(debounce=Debounce("1d", key="data.n"))
    async def later(ctx: Context[Any], step: Step) -> str:
        return await step.run("only", say, ctx.data["n"])

    @app.function
    async def approvals(ctx: Context[int], step: Step) -> Any:
        policy = Approval(timeout=LONG)
        first = await step.approval(
            "ask", title=f"May it? {ctx.data}", details={"n": ctx.data}, policy=policy
        )
        await step.run("between", say, "approvals")
        again = await step.approval("ask", title=f"Again? {ctx.data}", policy=policy)
        return [first.approved, first.by, again.approved]

    async def mourn(ctx: Context[Any], step: Step) -> str:
        await park(step)
        return await step.run("mourn", say, ctx.data.error.message)

    @app.function(retries=0, on_failure=mourn)
    async def mourned(ctx: Context[int], step: Step) -> None:
        await step.run("before", say, "mourned")
        raise ValueError(f"broken {ctx.data}")

    @app.function(timeouts=Timeouts(finish=LONG), priority="data")
    async def ended(ctx: Context[int], step: Step) -> Any:
        got = await step.run("only", say, ctx.data)
        if ctx.data % 3 == 1:
            raise NonRetriable(got)
        if ctx.data % 3 == 2:
            await park(step)
        return got

    return app


STARTED = ["sequence", "names", "branches", "signals", "tries", "failures", "parents", "races", "sends"]
STARTED += ["approvals", "mourned", "ended"]


async def begin(h: Harness) -> None:
    """Bring every run to where it waits."""
    for n in range(EACH):
        for function in STARTED:
            await h.start(function, n, tags=[f"n={n}"])
        await h.start("later", {"n": n})
        await h.send({"name": "history/begun", "data": {"n": n, "id": f"{n}"}})
    await h.idle()
    for n in range(EACH):
        await h.signal(f"early {n}", {"n": n, "was": made})
    await decide(h, "May it?")
    await h.idle()
    for run in await all_runs(h):
        if run.function == "ended" and run.status is RunStatus.SLEEPING:
            await h.app.runs.cancel(run.id, "enough")


async def go_on(h: Harness) -> None:
    """Give every run what it waits for, until all have ended."""
    for n in range(EACH):
        for name in ("late", "race"):
            try:
                await h.signal(f"{name} {n}", {"n": n, "is": made})
            except NoWaiter as error:
                raise AssertionError(f"the run that waits for {name!r} {n} is not there") from error
        # Its time is part of what the wait gives.
        over = {"name": "history/over", "ts": "2026-06-01T00:00:00Z"}
        await h.send(over | {"data": {"n": n, "over": made}})
    await decide(h, "Again?")
    for _ in range(2 * EACH):
        await h.advance("2d")


async def decide(h: Harness, title: str) -> None:
    page = await h.app.approvals.list(status="pending", limit=100)
    for request in page.data:
        assert request.title.startswith(title)
        await h.app.approvals.decide(request.id, Approve(), by="ana")
    assert len(page.data) == EACH


async def all_runs(h: Harness) -> list[Any]:
    found, cursor = [], None
    while True:
        page = await h.app.runs.list(limit=100, cursor=cursor)
        found += page.data
        cursor = page.cursor
        if cursor is None:
            return found


async def outcomes_of(h: Harness) -> dict[str, Any]:
    """How each run stands: its end, and its steps by their keys."""
    told = {}
    for run in await all_runs(h):
        full = await h.app.runs.get(run.id)
        steps = (await h.app.runs.steps(run.id, limit=100)).data
        told[run.id] = {
            "function": run.function,
            "status": str(full.status),
            "output": full.output,
            "error": full.error and [full.error.name, full.error.message],
            "reason": full.reason,
            "steps": {step.key: [str(step.kind), str(step.status), _timeless(step)] for step in steps},
        }
    return told


def _timeless(step: Any) -> Any:
    """A step's output; of an event without its id, which is made when it is sent."""
    if step.kind == "event" and step.output is not None:
        return {name: value for name, value in step.output.items() if name != "id"}
    return step.output


def tables() -> list[Table]:
    return [table for table in Base.metadata.sorted_tables if table.name != "agentflow_worker"]


def read_tables(path: Path) -> dict[str, Any]:
    """All rows: per table its columns, and the values of each row."""
    engine = create_engine(f"sqlite:///{path}")
    stored: dict[str, Any] = {}
    with engine.connect() as connection:
        for table in tables():
            rows = [list(row) for row in connection.execute(select(table))]
            if rows:
                stored[table.name] = {"columns": [column.key for column in table.columns], "rows": rows}
    engine.dispose()
    return stored


async def write_tables(url: str, stored: dict[str, Any]) -> None:
    """Put the rows into a database that has its tables; a column that came later gets its default."""
    driver = url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(driver)
    by_name = {table.name: table for table in tables()}
    async with engine.begin() as connection:
        for name, content in stored.items():
            rows = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
            await connection.execute(insert(by_name[name]), rows)
    await engine.dispose()


async def make() -> None:
    global made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "histories.db"
        made = "then"
        async with harness(make_app(), database_url=f"sqlite:///{path}") as h:
            await begin(h)
            await h.stop()
            stored = read_tables(path)
            made = "now"
            await h.restart()
            await go_on(h)
            outcomes = await outcomes_of(h)
    left = [run for run, told in outcomes.items() if not RunStatus(told["status"]).is_final]
    assert not left, [outcomes[run] for run in left]
    text = json.dumps({"tables": stored, "outcomes": outcomes}, ensure_ascii=False, separators=(",", ":"))
    # Of a path in a traceback only what is not this machine's.
    text = re.sub(r'/[^\s"\\]*/(?=(agentflow|tests|lib)/)', "", text)
    FILE.write_text(text.replace("],[", "],\n[") + "\n")
    print(
        f"{len(outcomes)} runs, {sum(len(content['rows']) for content in stored.values())} rows: {FILE.name}"
    )


if __name__ == "__main__":
    asyncio.run(make())
