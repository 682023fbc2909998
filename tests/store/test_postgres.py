"""PostgreSQL's races, stepped by hand on two connections; each test names the naive form that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import CommitStep, SendSignal, Suspend
from agentflow.store.operations.dispatch import apply
from agentflow.store.operations.workers import Claim
from agentflow.store.outcome_types import Delivered, Done, Fenced
from agentflow.store.postgres import connection as postgres_connection
from agentflow.store.postgres.backend import alive, answer, drive
from agentflow.store.postgres.connection import connect
from agentflow.store.postgres.store import _REAP, _RENEW
from agentflow.store.postgres.vectors import FENCE
from agentflow.store.statements import core as sql
from agentflow.store.statements import workers as worker_sql
from agentflow.store.stored_types import Status
from agentflow.store.transaction import Transaction
from tests.migrated import Emptying
from tests.store.support import APP, FUNCTION, NEVER, World, a_step, a_wait, make_store, until, with_worker

Connection = asyncpg.Connection
REAPED_AT = "SELECT reaped_at FROM agentflow_worker WHERE id = $1"


@pytest.fixture
async def world(postgres_ready: str) -> AsyncIterator[World]:
    store = make_store(postgres_ready)
    await store.open()
    yield await with_worker(store)
    await store.close()


@pytest.fixture
async def by_hand(postgres_ready: str) -> AsyncIterator[tuple[Connection, Connection]]:
    first, second = await asyncpg.connect(postgres_ready), await asyncpg.connect(postgres_ready)
    yield first, second
    for connection in (first, second):
        if not connection.is_closed():
            await connection.close()


async def is_blocked(connection: Connection, work: asyncio.Future[Any]) -> bool:
    """Whether the server says that this connection's statement waits for a lock; or it has ended."""
    watcher = await asyncpg.connect(**_address(connection))
    try:
        while not work.done():
            waits = await watcher.fetchval(
                "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1",
                connection.get_server_pid(),
            )
            if waits:
                return True
            await asyncio.sleep(0.005)
        return False
    finally:
        await watcher.close()


def _address(connection: Connection) -> dict[str, Any]:
    host, port = connection._addr
    parameters = connection._params
    return {
        "host": host,
        "port": port,
        "user": parameters.user,
        "password": parameters.password,
        "database": parameters.database,
    }


def begin(work: Awaitable[Any]) -> asyncio.Future[Any]:
    return asyncio.ensure_future(work)


async def hold_fence(connection: Connection, world: World) -> Any:
    """A batch that has passed its fence and not committed."""
    transaction = connection.transaction()
    await transaction.start()
    assert await connection.fetch(FENCE, [world.worker], [world.epoch])
    return transaction


async def expire(connection: Connection, world: World) -> None:
    await connection.execute("UPDATE agentflow_worker SET lease_until = 1 WHERE id = $1", world.worker)


# ------------------------------------------------------------------------------------------------- the fence


async def test_a_heartbeat_passes_a_batch_s_fence(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    batch, heart = by_hand
    transaction = await hold_fence(batch, world)
    renewed = begin(heart.fetch(_RENEW, world.worker, world.epoch, 1_000_000))
    assert not await is_blocked(heart, renewed)
    assert await renewed
    await transaction.commit()


async def test_the_reaper_leaves_a_worker_whose_batch_is_under_way(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    """A plain UPDATE would not be held up by KEY SHARE: the batch would commit after the takeover."""
    batch, reaper = by_hand
    transaction = await hold_fence(batch, world)
    await expire(reaper, world)
    assert await reaper.execute(_REAP, 2_000) == "UPDATE 0"
    locked = begin(reaper.fetch("SELECT 1 FROM agentflow_worker WHERE id = $1 FOR UPDATE", world.worker))
    assert await is_blocked(reaper, locked)
    await transaction.commit()
    await locked
    assert await reaper.execute(_REAP, 2_000) == "UPDATE 1"


async def test_a_worker_stopped_in_the_middle_of_a_statement_is_reaped(
    world: World, postgres_ready: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the server it is active, waiting for the second message: no limit on idle transactions ends it."""
    stopped = await connect(postgres_ready)
    await hold_fence(stopped, world)
    await stopped.prepare("SELECT $1::int + 1")
    watcher = await asyncpg.connect(postgres_ready)
    await expire(watcher, world)
    state = "SELECT state, wait_event FROM pg_stat_activity WHERE pid = $1"
    assert tuple(await watcher.fetchrow(state, stopped.get_server_pid())) == ("active", "ClientRead")
    await world.store.reap(now=1_000)
    assert await watcher.fetchval(REAPED_AT, world.worker) is None, "it has its five seconds"
    monkeypatch.setattr("agentflow.store.postgres.store.IDLE_IN_TRANSACTION", "1ms")

    async def is_reaped() -> bool:
        await world.store.reap(now=2_000)
        return await watcher.fetchval(REAPED_AT, world.worker) is not None

    await until(is_reaped)
    await until(stopped.is_closed)
    await watcher.close()


async def test_a_batch_that_waited_for_the_reaper_is_fenced(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    reaper, _ = by_hand
    key = await world.start()
    transaction = reaper.transaction()
    await transaction.start()
    await expire(reaper, world)
    assert await reaper.execute(_REAP, 2_000) == "UPDATE 1"
    step = world.store.submit(CommitStep(key, a_step()))
    await _until_someone_waits(by_hand[1])
    await transaction.commit()
    assert isinstance(await step, Fenced)
    assert (await world.store.queries.list_steps(key.run_id)).data == []


async def test_a_run_that_a_dying_batch_started_is_found_by_the_second_statement(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    """In one statement with the reaping, its snapshot would be older than the batch."""
    batch, reaper = by_hand
    transaction = await hold_fence(batch, world)
    await expire(reaper, world)
    await batch.execute(
        "INSERT INTO agentflow_run (id, app, function, status, ready_at, owner, epoch, mail, crash_count, depth, "
        "root_id, created_at) VALUES ('late', 'a', 'f', 1, 0, $1, 1, 0, 0, 0, 'late', 0)",
        world.worker,
    )
    assert await world.store.reap(now=2_000) == []
    await transaction.commit()
    assert await world.store.reap(now=2_000) == ["late"]


async def test_a_run_claimed_anew_while_the_reaper_looked_is_left_alone(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    """The owner and epoch seen are compared again under the row's lock."""
    first, second = by_hand
    key = await world.start()
    text, arguments = worker_sql.TAKE_FROM_OWNER.postgres
    seen = {"now": 2_000, "crashes": 1, "run": key.run_id, "by": world.worker, "at_epoch": key.epoch}
    transaction = first.transaction()
    await transaction.start()
    await first.execute("UPDATE agentflow_run SET owner = 'new', epoch = 2 WHERE id = $1", key.run_id)
    taken = begin(second.fetch(text, *arguments(seen)))
    assert await is_blocked(second, taken)
    await transaction.commit()
    assert await taken == []


async def test_a_start_by_a_worker_that_is_being_reaped_is_queued(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    from agentflow.store.operation_types import StartRun
    from agentflow.store.outcome_types import Started
    from tests.store.support import a_run

    await expire(by_hand[0], world)
    run = a_run()
    assert await world.submit(StartRun(run, 1_000, owner=world.worker)) == Started(run.id, True, 0)


# ------------------------------------------------------------------------------------------------ the claim


async def test_a_signal_delivered_while_a_claim_ran_is_in_its_journal(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    """Journals read inside the claim's statement have a snapshot older than its lock, and miss the outcome."""
    claimer, _ = by_hand
    key = await world.start()
    await world.wait(key, a_wait(deadline=NEVER))
    await world.submit(Suspend(key, 0, Status.WAITING, 1_000))
    tx = Transaction(frozenset({world.worker}))
    work = apply(tx, Claim(world.worker, APP, (FUNCTION,), 5, 2_000))
    statement, params = next(work)
    assert statement is worker_sql.CLAIM_RUNS
    text, arguments = statement.postgres
    # The claim's statement stands still between its snapshot and its locks, while the signal is delivered.
    slow = text.replace("WITH ready AS", "WITH pause AS MATERIALIZED (SELECT pg_sleep(0.6)), ready AS", 1)
    slow = slow.replace("SELECT locked.id FROM page", "SELECT locked.id FROM pause CROSS JOIN page", 1)
    for part in ("WITH pause", "FROM pause", "FOR UPDATE SKIP LOCKED"):
        assert part in slow
    transaction = claimer.transaction()
    await transaction.start()
    claiming = begin(claimer.fetch(slow, *arguments(params)))
    await _until_it_sleeps(by_hand[1], claimer)
    assert await world.submit(SendSignal("s", "go", "1", 1_500)) == Delivered(key.run_id)
    rows = await claiming
    try:
        while True:
            statement, params = work.send(rows)
            rows = await answer(claimer, statement, params)
    except StopIteration as stop:
        [claimed] = stop.value
    await transaction.commit()
    assert claimed.mail == 1
    assert [step.key for step in claimed.steps] == ["w"]


async def test_a_claim_passes_over_what_another_one_holds(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    claimer, _ = by_hand
    await world.queue("a")
    await world.queue("b")
    transaction = claimer.transaction()
    await transaction.start()
    tx = Transaction(await alive(claimer, [world.worker], world.store._leases))  # type: ignore[attr-defined]
    [held] = await drive(claimer, apply(tx, Claim(world.worker, APP, (FUNCTION,), 1, 2_000)))
    assert held.key.run_id == "a"
    assert [run.key.run_id for run in await world.claim()] == ["b"]
    await transaction.commit()


# ---------------------------------------------------------------------------------------------------- waits


async def test_a_delivery_that_is_not_committed_yet_keeps_the_run_from_being_suspended(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    """`NOT EXISTS (unread outcome)` would not see it; the count of `mail` is read again under the row's lock."""
    sender, _ = by_hand
    key = await world.start()
    await world.wait(key, a_wait())
    transaction = sender.transaction()
    await transaction.start()
    outcome = await drive(sender, apply(Transaction(frozenset()), SendSignal("s", "go", "1", 1_500)))
    assert outcome == Delivered(key.run_id)
    suspend = world.store.submit(Suspend(key, 0, Status.WAITING, 9_000))
    await _until_someone_waits(by_hand[1])
    await transaction.commit()
    assert (await suspend).mail == 1
    assert await world.store.queries.get_status(key.run_id) == "running"


async def test_mail_is_read_before_the_outcomes_it_counts(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    """Read last, it would count a delivery whose outcome was not there when they were read: lost."""
    from agentflow.store.operation_types import Adopt

    owner, _ = by_hand
    key = await world.start()
    await world.wait(key, a_wait())
    transaction = owner.transaction()
    await transaction.start()
    work = apply(Transaction(frozenset({world.worker})), Adopt(key, 1, 1_400))
    statement, params = next(work)
    try:
        while True:
            rows = await answer(owner, statement, params)
            if statement is sql.READ_UNREAD:
                assert await world.submit(SendSignal("s", "go", "1", 1_500)) == Delivered(key.run_id)
            statement, params = work.send(rows)
    except StopIteration as stop:
        adopted = stop.value
    await transaction.commit()
    assert (adopted.steps, adopted.mail) == ((), 0)
    assert (await world.submit(Suspend(key, adopted.mail, Status.WAITING, 9_000))).mail == 1
    assert len((await world.submit(Adopt(key, 1, 2_000))).steps) == 1


async def test_of_two_deliveries_at_once_one_resolves_the_wait(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    from agentflow.store.operation_types import Adopt, ResolveWait

    sender, _ = by_hand
    key = await world.start()
    await world.wait(key, a_wait())
    transaction = sender.transaction()
    await transaction.start()
    await drive(sender, apply(Transaction(frozenset()), SendSignal("s", "go", "1", 1_500)))
    own = world.store.submit(ResolveWait(key, a_step("w", 1, '"mine"')))
    await _until_someone_waits(by_hand[1])
    await transaction.commit()
    assert (await own).step.output == '{"name":"go","data":1}'
    assert (await world.submit(Adopt(key, 2, 2_000))).steps == ()


async def test_a_wait_and_a_send_of_one_name_do_not_miss_each_other(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    """Neither sees the other's row before it commits: the name's lock makes one go first."""
    sender, _ = by_hand
    key = await world.start()
    transaction = sender.transaction()
    await transaction.start()
    send = SendSignal("s", "go", "1", 1_500, buffer_until=5_000)
    assert await drive(sender, apply(Transaction(frozenset()), send)) == Delivered(None)
    wait = begin(world.wait(key, a_wait()))
    await _until_someone_waits(by_hand[1])
    await transaction.commit()
    assert (await wait).step.output == '{"name":"go","data":1}'


async def test_two_changes_of_one_row_in_one_batch_both_happen(world: World) -> None:
    """In one statement one of them would vanish without a word."""
    key = await world.start()
    await world.wait(key, a_wait())
    deliver = world.store.submit(SendSignal("s", "go", "1", 1_500))
    suspend = world.store.submit(Suspend(key, 0, Status.WAITING, 9_000))
    assert await deliver == Delivered(key.run_id)
    assert (await suspend).mail == 1


# ------------------------------------------------------------------------------------------ the connections


async def test_a_write_goes_on_after_its_connection_is_cut(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    key = await world.start()
    await _cut_all_others(by_hand)
    assert await world.step(key) == Done()
    assert await world.claim() == []
    assert await world.store.queries.get_status(key.run_id) == "running"


async def test_a_batch_cut_in_its_transaction_ends_in_one_outcome(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    locker, _ = by_hand
    key = await world.start()
    await world.wait(key, a_wait())
    transaction = locker.transaction()
    await transaction.start()
    await locker.execute("SELECT 1 FROM agentflow_run WHERE id = $1 FOR UPDATE", key.run_id)
    send = world.store.submit(SendSignal("s", "go", "1", 1_500))
    await _until_someone_waits(by_hand[1])
    await by_hand[1].execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    await transaction.commit()
    assert await send == Delivered(key.run_id)
    assert (await world.step(key)).mail == 1


async def test_others_hear_of_what_was_committed_here(world: World, postgres_ready: str) -> None:
    other = make_store(postgres_ready)
    await other.open()
    try:
        heard: asyncio.Queue[Hint] = asyncio.Queue()
        other.subscribe(heard.put_nowait)
        await asyncio.wait_for(other._notices.connected.wait(), 5)  # type: ignore[attr-defined]
        await world.queue()
        while (hint := await asyncio.wait_for(heard.get(), 5)).kind is not HintKind.READY:
            assert hint.kind is HintKind.ANY
    finally:
        await other.close()


async def test_listening_again_after_a_cut_wakes_everything(
    world: World, by_hand: tuple[Connection, Connection]
) -> None:
    notices = world.store._notices  # type: ignore[attr-defined]
    await asyncio.wait_for(notices.connected.wait(), 5)
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    world.store.subscribe(heard.put_nowait)
    await _cut_all_others(by_hand)
    assert (await asyncio.wait_for(heard.get(), 10)).kind is HintKind.ANY


async def test_a_store_opens_by_a_unix_socket(postgres_server: Any, migrated_postgres: Emptying) -> None:
    name = urlsplit(migrated_postgres.url).path.strip("/")
    store = make_store(postgres_server.socket_url(name))
    await store.open()
    try:
        assert await store.database_now() > 10**15
        assert await store.queries.get_run("nothing") is None
    finally:
        await store.close()


async def test_what_an_array_is_is_asked_once_by_a_process(
    postgres_ready: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "_types", {})
    asked: list[int] = []
    for _ in range(2):
        connection, told = await connect(postgres_ready), list[str]()
        connection.add_query_logger(lambda record, told=told: told.append(record.query))
        try:
            row = await connection.fetchrow("SELECT $1::bigint[], $2::bool[]", [1, None, 3], [True])
            assert tuple(row) == ([1, None, 3], [True])
            [record] = await connection.fetch("SELECT ARRAY[1.5::float8]")
            assert record[0] == [1.5]
        finally:
            await connection.close()
        asked.append(len(told))
    assert asked[0] > asked[1] == 2


async def test_bulk_is_one_statement_per_batch(world: World) -> None:
    backend = world.store._writer._backend  # type: ignore[attr-defined]
    key = await world.start()
    # The driver looks up the types of the parameters once.
    await asyncio.gather(*(world.step(key, f"first{n}", n) for n in range(2)))
    told: list[str] = []
    backend._connection.add_query_logger(lambda record: told.append(record.query))
    await asyncio.gather(*(world.step(key, f"s{n}", n) for n in range(2, 102)))
    inserts = [text for text in told if "INSERT INTO agentflow_step" in text]
    assert len(inserts) == len(told) < 50


async def test_what_is_alone_is_one_statement(world: World) -> None:
    """One round trip: a step, and a signal to a run that waits for it."""
    backend = world.store._writer._backend  # type: ignore[attr-defined]
    first, second = await world.start(), await world.start()
    await world.wait(first, a_wait(topic="first"))
    await world.wait(second, a_wait(topic="second"))
    await world.submit(SendSignal("warm-up", "first", "1", 1_500))
    await world.step(second, "warm-up", 1)
    told: list[str] = []
    backend._connection.add_query_logger(lambda record: told.append(record.query))
    assert await world.submit(SendSignal("s", "second", "1", 1_500)) == Delivered(second.run_id)
    assert await world.step(second, "a", 2) == Done(mail=1)
    signal, *step = told
    assert "agentflow_signal" in signal
    # It does not know of the mail: a transaction tells it.
    assert step[0].lstrip().startswith("INSERT INTO agentflow_step")
    assert len(step) > 1
    told.clear()
    assert await world.submit(CommitStep(second, a_step("b", 3), mail=1)) == Done(mail=1)
    assert len(told) == 1


async def _until_someone_waits(watcher: Connection) -> None:
    """Until some connection of this database waits for a lock."""
    text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    await until(lambda: watcher.fetchval(text))


async def _until_it_sleeps(watcher: Connection, sleeper: Connection) -> None:
    text = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1"
    await until(lambda: watcher.fetchval(text, sleeper.get_server_pid()))


async def _cut_all_others(by_hand: tuple[Connection, Connection]) -> None:
    await by_hand[1].close()
    await by_hand[0].execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
