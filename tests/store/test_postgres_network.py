"""PostgreSQL over a network that fails: what each connection of the store does about it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from agentflow.errors import DatabaseUnavailable
from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import StartRun
from agentflow.store.postgres.connection import connect
from tests.faults.network import Fate, network_to
from tests.store.support import a_run, make_store, with_worker


async def test_a_store_that_only_listens_notices_that_its_connection_is_silent(
    postgres_ready: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a connection that is dead nothing is ever heard: it has to be asked."""
    monkeypatch.setattr("agentflow.store.postgres.notices.QUIET_SECONDS", 0.2)
    monkeypatch.setattr("agentflow.store.postgres.notices.ANSWER_SECONDS", 0.2)
    async with network_to(postgres_ready) as network:
        store = make_store(network.url)
        await store.open()
        try:
            heard: asyncio.Queue[Hint] = asyncio.Queue()
            await asyncio.wait_for(store._notices.connected.wait(), 5)  # type: ignore[attr-defined]
            store.subscribe(heard.put_nowait)
            network.silence()
            assert (await asyncio.wait_for(heard.get(), 10)).kind is HintKind.ANY
        finally:
            await store.close()


async def test_a_hint_that_could_not_be_sent_is_sent_by_the_next_connection(postgres_ready: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(postgres_ready)
    await listener.add_listener("agentflow", lambda *notice: heard.put_nowait(notice[-1]))
    async with network_to(postgres_ready) as network:
        store = make_store(network.url)
        await store.open()
        try:
            await asyncio.wait_for(store._notices.connected.wait(), 5)  # type: ignore[attr-defined]
            network.on(b"run-to-tell-of", Fate.CUT_BEFORE)
            store._notices.send([Hint(HintKind.MAIL, "run-to-tell-of")])  # type: ignore[attr-defined]
            while "run-to-tell-of" not in await asyncio.wait_for(heard.get(), 10):
                pass
            assert network.met == [Fate.CUT_BEFORE]
        finally:
            await store.close()
            await listener.close()


async def test_a_query_is_asked_again_on_a_connection_that_answers(
    postgres_ready: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentflow.store.postgres.reading.SURELY_THERE_SECONDS", 0.0)
    monkeypatch.setattr("agentflow.store.postgres.reading.IS_THERE_SECONDS", 0.2)
    async with network_to(postgres_ready) as network:
        store = make_store(network.url)
        await store.open()
        try:
            for _ in range(2):
                assert await store.queries.get_status("nobody") is None
                network.silence()
            network.cut()
            assert (
                await asyncio.gather(*[store.queries.get_status("nobody") for _ in range(20)]) == [None] * 20
            )
        finally:
            await store.close()


async def test_a_store_on_a_silent_connection_closes_soon(
    postgres_ready: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a farewell that nobody hears nor a batch that nobody answers keeps a process from ending."""
    monkeypatch.setattr("agentflow.store.postgres.connection.COMMAND_SECONDS", 0.5)
    monkeypatch.setattr("agentflow.store.postgres.connection.FAREWELL_SECONDS", 0.1)
    monkeypatch.setattr("agentflow.store.postgres.store.CLOSE_SECONDS", 0.2)
    monkeypatch.setattr("agentflow.store.loop_writer.CLOSE_PATIENCE", 0.2)
    async with network_to(postgres_ready) as network:
        store = make_store(network.url)
        await store.open()
        world = await with_worker(store)
        await store.queries.get_status("nobody")
        network.silence()
        network.swallows_new = True
        asked = [store.submit(StartRun(a_run(), 1_000, owner=world.worker)) for _ in range(3)]
        began = asyncio.get_running_loop().time()
        await store.close()
        assert asyncio.get_running_loop().time() - began < 5
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(answer, DatabaseUnavailable), repr(answer)
    assert "Exception closing connection" not in caplog.text


async def test_the_server_is_told_to_find_out_within_a_minute_that_a_client_is_gone(
    postgres_ready: str,
) -> None:
    connection = await connect(postgres_ready)
    try:
        settings = [
            await connection.fetchval(f"SHOW tcp_keepalives_{name}") for name in ("idle", "interval", "count")
        ]
        assert settings == ["30", "10", "3"]
    finally:
        await connection.close()


async def test_many_who_read_from_a_silent_server_are_told_soon(
    postgres_ready: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one after the other, as long as each of them waits for an answer."""
    monkeypatch.setattr("agentflow.store.postgres.connection.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("agentflow.store.postgres.reading.FREE_SECONDS", 0.5)
    monkeypatch.setattr("agentflow.store.reader.PATIENCE", 0.5)
    async with network_to(postgres_ready) as network:
        store = make_store(network.url)
        await store.open()
        try:
            network.silence()
            network.swallows_new = True
            began = asyncio.get_running_loop().time()
            reads = [store.queries.get_status("nobody") for _ in range(60)]
            for answer in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(answer, DatabaseUnavailable), repr(answer)
            assert asyncio.get_running_loop().time() - began < 5
        finally:
            network.cut()
            await store.close()
