"""PostgreSQL crashes and comes back under load, and connections are ended at random: 0 bad, and it goes on at once.

In full a restart every 5 to 40 s, as `pg_ctl restart -m immediate` does it, and a connection ended every second.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import AgentflowError, ConfigurationError, DatabaseUnavailable, NoWaiter
from agentflow.settings import Settings
from agentflow.step import Step
from tests.faults.load import Load
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS, ignore_what_the_driver_forgot, read_rows
from tests.postgres_server import PostgresServer

LOADED_SECONDS = 300 if IS_FULL else 4
PAUSES = (5.0, 40.0) if IS_FULL else (0.8, 1.6)
CUT_EVERY = (0.2, 2.0) if IS_FULL else (0.1, 0.4)
GOES_ON_WITHIN = 5.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
async def own_postgres(server: PostgresServer) -> AsyncIterator[str]:
    """The URL of a database on a server that may be stopped."""
    name = f"own_{time.monotonic_ns()}"
    await execute(server.url(), f"CREATE DATABASE {name}")
    await App("t", database_url=server.url(name)).migrate()
    yield server.url(name)
    await execute(server.url(), f"DROP DATABASE {name} WITH (FORCE)")


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def end_some_connections(url: str, rng: random.Random) -> int:
    """For ever, one of agentflow's connections at a time; how many is known when it is cancelled."""
    ended = 0
    try:
        while True:
            await asyncio.sleep(rng.uniform(*CUT_EVERY))
            try:
                pids = await read_rows(
                    url,
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'agentflow' AND "
                    "datname = current_database() ORDER BY pid",
                )
                if pids:
                    await execute(url, f"SELECT pg_terminate_backend({rng.choice(pids)[0]})")
                    ended += 1
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                continue  # it is being restarted
    except asyncio.CancelledError:
        return ended


@pytest.mark.fault(5)
@pytest.mark.timeout(SECONDS)
async def test_nothing_is_lost_while_the_server_crashes_and_connections_are_ended(
    server: PostgresServer, own_postgres: str, report: Report
) -> None:
    ignore_what_the_driver_forgot()
    rng = random.Random(FIRST_SEED)
    went_on_after: list[float] = []
    began = time.monotonic()
    async with Load(own_postgres, own_postgres) as load:
        await load.goes_on(20)
        cutting = asyncio.create_task(end_some_connections(own_postgres, rng))
        while time.monotonic() - began < LOADED_SECONDS:
            await asyncio.sleep(rng.uniform(*PAUSES))
            await asyncio.to_thread(server.restart, "immediate")
            went_on_after.append(await load.goes_on(60))
        cutting.cancel()
        ended = await cutting
        await load.finish(60)
        await load.check()
        took = time.monotonic() - began
    assert max(went_on_after) < GOES_ON_WITHIN, went_on_after
    assert ended
    report(
        f"{len(load.started)} runs in {took:.0f} s, {len(went_on_after)} restarts, {ended} connections ended: 0 bad, "
        f"{load.twice} bodies ran twice; a step was stored within {max(went_on_after):.1f} s of each restart"
    )


# ------------------------------------------------------------------- who has no worker, while the server is away


def make_app(url: str) -> App:
    app = App("t", settings=Settings(database_url=url))

    @app.function
    async def wait(ctx: Context[str], step: Step) -> str | None:
        signal = await step.wait_for_signal("wait", signal=ctx.data, timeout="1h")
        return signal and signal.data

    return app


@pytest.mark.fault(5)
async def test_a_sender_rides_over_an_outage(
    server: PostgresServer, own_postgres: str, report: Report
) -> None:
    """Everything that is asked while the server is away is answered when it is back, once."""
    ignore_what_the_driver_forgot()
    async with make_app(own_postgres).running(), make_app(own_postgres) as sender:
        first = await sender.start("wait", "first")
        while (await first.status()) != "waiting":
            await asyncio.sleep(0.01)
        result = asyncio.create_task(first.result())
        server.stop("immediate")
        asked = [
            sender.start("wait", "second"),
            sender.start("wait", "third", idempotency_key="only one"),
            sender.start("wait", "third", idempotency_key="only one"),
            sender.signal("first", "heard"),
            sender.runs.get(first.id),
            first.status(),
            sender.runs.list(),
            sender.send({"name": "nobody listens", "id": "an event"}),
        ]
        answers = [asyncio.create_task(ask) for ask in asked]
        done, _ = await asyncio.wait(answers, timeout=1.0)
        assert not done, "they wait for the server"
        server.start()
        began = time.monotonic()
        second, third, same, delivered, run, status, listed, sent = await asyncio.gather(*answers)
        took = time.monotonic() - began
        assert took < GOES_ON_WITHIN
        assert (delivered, run.id) == (first.id, first.id)
        assert third.id == same.id
        assert status in ("waiting", "queued", "running", "completed")
        assert first.id in [found.id for found in listed.data]
        assert len(sent) == 1
        assert await result == "heard"
        for handle, name in ((second, "second"), (third, "third")):
            await signal(sender, name)
            assert await handle.result() == name
    assert await read_rows(own_postgres, "SELECT count(*) FROM agentflow_run") == [(3,)]
    assert await read_rows(own_postgres, "SELECT count(*) FROM agentflow_event") == [(1,)]
    report(f"8 questions asked while the server was away were answered {took:.1f} s after it was back")


async def signal(app: App, name: str) -> None:
    while True:
        try:
            await app.signal(name, name)
            return
        except NoWaiter:
            await asyncio.sleep(0.05)


@pytest.mark.fault(5)
async def test_what_is_given_up_while_the_server_is_away_says_so(
    server: PostgresServer,
    own_postgres: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Reads after a while, writes when the app is closed; by an error of agentflow, never one of the driver."""
    ignore_what_the_driver_forgot()
    monkeypatch.setattr("agentflow.store.reader.PATIENCE", 0.3)
    monkeypatch.setattr("agentflow.store.loop_writer.CLOSE_PATIENCE", 0.1)
    caplog.set_level(logging.CRITICAL, "agentflow")
    app = make_app(own_postgres)
    await app.open()
    handle = app.runs.handle((await app.start("wait", "it")).id)
    server.stop("immediate")
    try:
        for read in (handle.status(), app.runs.get(handle.id), app.runs.list(), handle.result()):
            with pytest.raises(DatabaseUnavailable, match="cannot be read"):
                await read
        writes = [
            asyncio.create_task(app.start("wait", "more")),
            asyncio.create_task(app.signal("it", 1)),
            asyncio.create_task(app.send({"name": "told"})),
            asyncio.create_task(app.runs.cancel(handle.id)),
        ]
        await asyncio.sleep(0.05)
        await app.close()
        for failed in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(failed, DatabaseUnavailable), repr(failed)
        with pytest.raises(ConfigurationError, match="cannot be used"):
            await app.open()
        with pytest.raises(AgentflowError, match="cannot be used"):
            await app.migrate()
    finally:
        server.start()
