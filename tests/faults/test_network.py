"""A network that cuts, swallows and delays in the middle of a commit: every batch ends in exactly one outcome.

Each kind of batch meets each fate at the instant at which it is sent, and in full every message of a loaded worker may
meet any of them, while whole connections fall silent: the writer's, the heartbeat's, that for notifications.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agentflow.app import App
from agentflow.context import Context
from agentflow.settings import Settings
from agentflow.step import Step
from agentflow.store.claim_types import ClaimedRun
from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import (
    CommitStep,
    Finish,
    SendEvents,
    SendSignal,
    StartRun,
    Suspend,
    WithdrawWait,
)
from agentflow.store.outcome_types import Delivered, Done, Exists, Sent, Started, Waits
from agentflow.store.stored_types import NewEvent, Status
from tests.faults.load import Load
from tests.faults.network import Fate, Network, network_to
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS, ignore_what_the_driver_forgot, read_rows
from tests.store.support import NEVER, World, a_run, a_step, a_wait, fresh, make_store, until, with_worker

ANSWER_SECONDS = 0.2
ROUNDS = 8 if IS_FULL else 1
LOADED_SECONDS = 90 if IS_FULL else 3
FATES = [Fate.CUT_BEFORE, Fate.CUT_AT_ONCE, Fate.LOSE_ANSWER, Fate.SWALLOW, Fate.SWALLOW_ANSWER]


@pytest.fixture
def short_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that was swallowed in its transaction holds its runs until the server ends the session: sooner here."""
    monkeypatch.setattr("agentflow.store.postgres.connection.IDLE_IN_TRANSACTION", "500ms")


@pytest.fixture
async def network(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    monkeypatch.setattr("agentflow.store.postgres.connection.COMMAND_SECONDS", ANSWER_SECONDS)
    async with network_to(postgres_url) as network:
        yield network


@pytest.fixture
async def world(network: Network) -> AsyncIterator[World]:
    store = make_store(network.url)
    await store.open()
    yield await with_worker(store, lease_seconds=SECONDS)
    await store.close()


Batch = Callable[[World, Network, Fate], Awaitable[None]]


async def a_lone_step(world: World, network: Network, fate: Fate) -> None:
    key = await world.start()
    network.on(key.run_id.encode(), fate)
    assert is_stored(await world.step(key, output='"once"'), '"once"')
    assert await read_steps(world, key.run_id) == [("a", "once")]


async def many_steps(world: World, network: Network, fate: Fate) -> None:
    keys = [await world.start() for _ in range(5)]
    network.on(keys[2].run_id.encode(), fate)
    steps = [CommitStep(key, a_step(f"k{n}", n + 1)) for key in keys for n in range(3)]
    assert all(is_stored(answer, '"done"') for answer in await submit_all(world, steps))
    for key in keys:
        assert [name for name, _ in await read_steps(world, key.run_id)] == ["k0", "k1", "k2"]


async def starts(world: World, network: Network, fate: Fate) -> None:
    for runs in ([a_run()], [a_run() for _ in range(5)]):
        network.on(runs[-1].id.encode(), fate)
        answers = await submit_all(world, [StartRun(run, 1_000, owner=world.worker) for run in runs])
        assert [answer.run_id for answer in answers] == [run.id for run in runs]
        assert {type(answer) for answer in answers} == {Started}
        for run in runs:
            assert await world.store.queries.get_status(run.id) == "running"


async def ends(world: World, network: Network, fate: Fate) -> None:
    for count in (1, 5):
        keys = [await world.start() for _ in range(count)]
        network.on(keys[-1].run_id.encode(), fate)
        finishes = [Finish(key, Status.COMPLETED, f'"{key.run_id}"', None, None, 3_000) for key in keys]
        assert {type(answer) for answer in await submit_all(world, finishes)} == {Done}
        for key in keys:
            run = await world.store.queries.get_run(key.run_id)
            assert run is not None
            assert (run.status, run.output) == ("completed", key.run_id)


async def a_signal_and_a_suspension(world: World, network: Network, fate: Fate) -> None:
    """In the middle of a transaction, and at its COMMIT."""
    for marker in (None, b"COMMIT"):
        key, other = await world.start(), await world.start()
        await world.wait(key, a_wait(topic=key.run_id, deadline=NEVER))
        await world.wait(other, a_wait(topic=other.run_id, deadline=NEVER))
        signal_id = fresh("signal")
        network.on(marker or signal_id.encode(), fate)
        delivered, suspended = await submit_all(
            world,
            [
                SendSignal(signal_id, key.run_id, '"go"', 1_500),
                Suspend(other, 0, Status.WAITING, NEVER),
            ],
        )
        assert delivered == Delivered(key.run_id)
        assert type(suspended) is Done
        assert [name for name, _ in await read_steps(world, key.run_id)] == ["w"]
        assert await world.store.queries.get_status(other.run_id) == "waiting"


async def an_event(world: World, network: Network, fate: Fate) -> None:
    for marker in (None, b"COMMIT"):
        event_id, run = fresh("event"), a_run()
        network.on(marker or event_id.encode(), fate)
        event = NewEvent(event_id, "paid", "{}", 1_400, 1_400, starts=(run,))
        assert await world.submit(SendEvents((event,), 1_400)) == Sent((event_id,), (run.id,))
        assert await world.store.queries.get_status(run.id) == "queued"
        assert len((await world.store.queries.list_event_runs(event_id)).data) == 1


async def a_claim(world: World, network: Network, fate: Fate) -> None:
    app = fresh("app")
    run_id = await world.queue(app=app)
    for marker in (world.worker.encode(), b"COMMIT"):
        network.on(marker, fate)
    claimed: list[ClaimedRun] = []

    async def is_claimed() -> bool:
        claimed.extend(await world.claim(app=app))
        # Claimed, and the answer was lost: then the worker finds that it owns what it does not know. Or a session that
        # is silent holds the run: then the server ends it after five seconds.
        await world.store.release_orphans(world.worker, {run.key.run_id for run in claimed}, now=2_000)
        return bool(claimed)

    await until(is_claimed)
    assert [run.key.run_id for run in claimed] == [run_id]
    assert (await world.store.queries.get_status(run_id)) == "running"


BATCHES: list[Batch] = [
    a_lone_step,
    many_steps,
    starts,
    ends,
    a_signal_and_a_suspension,
    an_event,
    a_claim,
]


def is_stored(answer: Any, output: str) -> bool:
    """Whether a step is said to be stored, by this try or by the one before it."""
    return type(answer) is Done or (type(answer) is Exists and answer.step.output == output)


async def submit_all(world: World, operations: list[Any]) -> list[Any]:
    """In one batch: they are queued before the writer looks."""
    return list(await asyncio.gather(*[world.store.submit(operation) for operation in operations]))


async def read_steps(world: World, run_id: str) -> list[tuple[str, Any]]:
    page = await world.store.queries.list_steps(run_id)
    return [(step.key, step.output) for step in page.data]


@pytest.mark.fault(6)
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
async def test_every_batch_ends_in_exactly_one_outcome(
    short_transactions: None, world: World, network: Network, fate: Fate, report: Report
) -> None:
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for batch in BATCHES:
            await batch(world, network, fate)
            network.be_sound()
    took = time.perf_counter() - began
    assert len(network.met) >= ROUNDS * len(BATCHES)
    report(
        f'{len(network.met):,} commits of {len(BATCHES)} kinds, "{fate.value}": one outcome each; {took:.0f} s'
    )


@pytest.mark.fault(6)
async def test_a_commit_that_the_network_holds_back_keeps_nobody_waiting_and_does_nothing_when_it_arrives(
    world: World, network: Network, postgres_url: str, report: Report
) -> None:
    """The session that holds the locks of the first try is ended before the second one, which would wait for them."""
    key = await world.start()
    network.on(b"COMMIT", Fate.HOLD)
    began = time.perf_counter()
    assert type(await world.wait(key, a_wait(deadline=NEVER))) is Waits
    took = time.perf_counter() - began
    assert took < 2.5, (
        "a session that is silent in a transaction is ended after 5 s, if nobody does it before"
    )
    assert type(await world.submit(WithdrawWait(key, "w", 1_400))) is Done
    [held] = network.held
    await held.release()
    assert await read_rows(postgres_url, "SELECT count(*) FROM agentflow_wait") == [(0,)]
    report(
        f"a COMMIT that is held back: the batch was played again {took - ANSWER_SECONDS:.2f} s after that, and "
        "what arrived later did nothing"
    )


@pytest.mark.fault(6)
async def test_a_worker_whose_connections_fall_silent_keeps_its_lease_and_goes_on(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    """As when a router forgets them: nobody is told, and only what connects anew comes through."""
    monkeypatch.setattr("agentflow.store.postgres.connection.COMMAND_SECONDS", 1.0)
    monkeypatch.setattr("agentflow.store.postgres.notices.QUIET_SECONDS", 0.5)
    monkeypatch.setattr("agentflow.store.postgres.notices.ANSWER_SECONDS", 0.5)

    async def add(n: int) -> int:
        return n + 1

    async with network_to(postgres_url) as network:
        app = App("t", settings=Settings(database_url=network.url, lease_seconds=5))

        @app.function
        async def work(ctx: Context[int], step: Step) -> int:
            return await step.run("add", add, ctx.data)

        async with app.running(), App("t", database_url=postgres_url) as sender:
            notices = app.client.store._notices  # type: ignore[attr-defined]
            await asyncio.wait_for(notices.connected.wait(), 5)
            assert await (await app.start(work, 1)).result() == 2
            [(worker,)] = await read_rows(postgres_url, "SELECT id FROM agentflow_worker")
            silenced, began = network.silence(), time.monotonic()
            assert silenced >= 3
            assert await (await app.start(work, 2)).result() == 3
            went_on = time.monotonic() - began
            # From the queue, by a notification: the one that listens has noticed too.
            while not (notices.connected.is_set() and time.monotonic() - began > 2):
                await asyncio.sleep(0.02)
            heard: asyncio.Queue[Hint] = asyncio.Queue()
            app.client.store.subscribe(heard.put_nowait)
            assert await (await sender.start("work", 3)).result() == 4
            while (await asyncio.wait_for(heard.get(), 5)).kind is not HintKind.READY:
                pass
            await asyncio.sleep(max(0.0, 5.5 - (time.monotonic() - began)))
            leases = await read_rows(postgres_url, "SELECT id, reaped_at FROM agentflow_worker")
            assert leases == [(worker, None)], "one lease, and it is still the first"
    assert went_on < 3
    report(
        f"{silenced} connections fell silent: the next step was stored {went_on:.1f} s later, the lease was kept"
    )


@pytest.mark.fault(6)
@pytest.mark.timeout(SECONDS)
async def test_a_worker_and_its_senders_go_on_over_a_network_that_fails_by_chance(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr("agentflow.store.postgres.connection.COMMAND_SECONDS", 2.0)
    rng = random.Random(FIRST_SEED)
    silences = silenced = cuts = 0
    ignore_what_the_driver_forgot()
    async with (
        network_to(postgres_url) as network,
        Load(network.url, postgres_url, lease_seconds=5) as load,
    ):
        began = time.monotonic()
        network.delay(lambda: rng.choice([0.0] * 9 + [rng.uniform(0, 0.05)]))
        network.by_chance(rng, 0.004, *FATES)
        while time.monotonic() - began < LOADED_SECONDS:
            await asyncio.sleep(rng.uniform(2, 6) if IS_FULL else 1)
            match rng.randrange(3):
                case 0:
                    silences += 1
                    silenced += network.silence()
                case 1:
                    cuts += 1
                    network.cut()
                case 2:  # all is silent for a while, what connects anew too
                    silences += 1
                    silenced += network.silence()
                    network.swallows_new = True
                    await asyncio.sleep(rng.uniform(0.5, 4 if IS_FULL else 1))
                    network.swallows_new = False
        network.be_sound()
        await load.finish(60)
        await load.check()
        report(
            f"{len(load.started)} runs in {time.monotonic() - began:.0f} s; {len(network.met)} messages met a fate, "
            f"{cuts} times all connections were cut, {silences} times all fell silent ({silenced}): 0 bad; "
            f"{load.twice} bodies ran twice, at most {load.longest_silence:.1f} s without a step"
        )
