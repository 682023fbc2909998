"""A schedule's row: moved by compare-and-set, with the runs of its tick in the same transaction."""

from __future__ import annotations

from agentflow.store.operation_types import KeepSchedules, ListSchedules, TickSchedule
from agentflow.store.outcome_types import Ticked
from agentflow.store.stored_types import NewSchedule
from tests.store.support import APP, FUNCTION, World, a_run, fresh


def a_schedule(schedule_id: str, next_at: int = 2_000, function: str = FUNCTION) -> NewSchedule:
    return NewSchedule(schedule_id, APP, function, "* * * * *", None, next_at)


async def due(world: World, *ids: str) -> dict[str, int]:
    return dict((await world.submit(ListSchedules(ids))).due)


async def test_whoever_moves_a_schedule_first_starts_its_runs(world: World) -> None:
    schedule, first, second = fresh("sch"), a_run(), a_run()
    await world.submit(KeepSchedules(APP, (FUNCTION,), (a_schedule(schedule),)))
    assert await world.submit(TickSchedule(schedule, 2_000, 3_000, (first,), 2_000, 2_001)) == Ticked(
        (first.id,), moved=True
    )
    late = await world.submit(TickSchedule(schedule, 2_000, 3_000, (second,), 2_000, 2_002))
    assert late == Ticked((), moved=False)
    assert await due(world, schedule) == {schedule: 3_000}
    assert [claimed.key.run_id for claimed in await world.claim(now=2_003)] == [first.id]


async def test_a_tick_played_again_changes_nothing(world: World) -> None:
    schedule, run = fresh("sch"), a_run()
    await world.submit(KeepSchedules(APP, (FUNCTION,), (a_schedule(schedule),)))
    tick = TickSchedule(schedule, 2_000, 3_000, (run,), 2_000, 2_001)
    await world.submit(tick)
    assert await world.submit(tick) == Ticked((), moved=False)
    assert len(await world.claim(now=2_003)) == 1


async def test_a_run_that_is_there_already_is_not_started_again(world: World) -> None:
    schedule, run, other = fresh("sch"), a_run(), a_run()
    await world.queue(run.id)
    await world.submit(KeepSchedules(APP, (FUNCTION,), (a_schedule(schedule),)))
    ticked = await world.submit(TickSchedule(schedule, 2_000, 3_000, (run, other), 2_000, 2_001))
    assert ticked == Ticked((other.id,), moved=True)
    assert len(await world.claim(now=2_003)) == 2


async def test_a_schedule_that_is_gone_starts_nothing(world: World) -> None:
    ticked = await world.submit(TickSchedule(fresh("sch"), 2_000, 3_000, (a_run(),), 2_000, 2_001))
    assert ticked == Ticked((), moved=False)
    assert await world.claim(now=2_003) == []


async def test_kept_schedules_keep_their_next_time_and_others_of_the_functions_go(world: World) -> None:
    kept, dropped, of_another, of_another_app = (fresh("sch") for _ in range(4))
    schedules = (a_schedule(kept), a_schedule(dropped), a_schedule(of_another, function="another"))
    await world.submit(KeepSchedules(APP, (), schedules))
    await world.submit(KeepSchedules("other", (), (a_schedule(of_another_app)._replace(app="other"),)))
    await world.submit(KeepSchedules(APP, (FUNCTION,), (a_schedule(kept, next_at=9_000),)))
    assert await due(world, kept, dropped, of_another, of_another_app) == {
        kept: 2_000,
        of_another: 2_000,
        of_another_app: 2_000,
    }
