"""Events in the store: kept, deduplicated, starting runs."""

from __future__ import annotations

from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import SendEvents
from agentflow.store.operations.messages import DEDUP_MICROS
from agentflow.store.outcome_types import Fenced, Sent
from tests.store.support import World, a_run, an_event


async def test_events_are_stored_and_start_their_runs_in_one_go(world: World) -> None:
    one, two = a_run(), a_run()
    event = an_event(starts=(one, two))
    plain = an_event("other")
    assert await world.submit(SendEvents((event, plain), 1_500)) == Sent(
        (event.id, plain.id), (one.id, two.id)
    )
    assert Hint(HintKind.READY) in world.hints
    started = await world.store.queries.list_event_runs(event.id)
    assert {run.id for run in started.data} == {one.id, two.id}
    record = await world.store.queries.get_event(event.id)
    assert record is not None
    assert (record.name, record.data) == ("paid", {"user": 7})
    assert [found.id for found in (await world.store.queries.list_events(name="other")).data] == [plain.id]


async def test_a_send_played_again_gives_its_first_answer(world: World) -> None:
    send = SendEvents((an_event(starts=(a_run(),), dedup_key="k"),), 1_500)
    first = await world.submit(send)
    assert await world.submit(send) == first
    assert len(await world.claim()) == 1


async def test_a_duplicate_of_the_user_s_starts_nothing_for_a_day(world: World) -> None:
    first = an_event(dedup_key="k", starts=(a_run(),))
    await world.submit(SendEvents((first,), 1_500))
    second = an_event(dedup_key="k", starts=(a_run(),), received_at=1_600)
    assert await world.submit(SendEvents((second,), 1_600)) == Sent((first.id,), ())
    later = first.received_at + DEDUP_MICROS
    third = an_event(dedup_key="k", starts=(a_run(),), received_at=later)
    assert await world.submit(SendEvents((third,), later)) == Sent((third.id,), (third.starts[0].id,))


async def test_duplicates_within_one_send_count_too(world: World) -> None:
    first, second = an_event(dedup_key="k"), an_event(dedup_key="k")
    assert await world.submit(SendEvents((first, second), 1_500)) == Sent((first.id, first.id), ())


async def test_a_fenced_run_sends_nothing(world: World) -> None:
    key = await world.start()
    event = an_event()
    assert isinstance(await world.submit(SendEvents((event,), 1_500, key._replace(epoch=9))), Fenced)
    assert await world.store.queries.get_event(event.id) is None
    assert await world.submit(SendEvents((event,), 1_500, key)) == Sent((event.id,), ())
