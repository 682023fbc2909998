"""What is put together wrongly is said when it is put together, with the function's name and the remedy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentflow import App, Context, RunStatus, Step, cron, handles, on_event
from agentflow.errors import ConfigurationError, NotFound
from agentflow.flow import Throttle


async def plain(ctx: Context[int], step: Step) -> int:
    return ctx.data


def test_a_function_stays_callable_and_gets_its_id_from_its_name() -> None:
    app = App("t")

    @app.function
    async def handle_ticket(ctx: Context[int], step: Step) -> int:
        return ctx + 1  # type: ignore[operator,no-any-return]

    assert handle_ticket.id == "handle-ticket"
    coroutine: Any = handle_ticket(1, None)  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as returned:
        coroutine.send(None)
    assert returned.value.value == 2


def test_two_functions_of_one_id_are_refused_with_both_places() -> None:
    app = App("t")
    app.function("f")(plain)
    with pytest.raises(
        ConfigurationError, match=r"'f' is registered twice .*plain.*give one of them another id"
    ):
        app.function("f")(plain)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"retries": 21}, "function 'f': retries=21"),
        ({"retries": -1}, "function 'f': retries=-1"),
        ({"retry": "often"}, "function 'f': retry='often'"),
        ({"step_timeout": "soon"}, "function 'f': step_timeout='soon': 'soon' is not a duration"),
        ({"step_timeout": -1}, "function 'f': step_timeout=-1: -1 is negative"),
        ({"on": ""}, "function 'f': on='' names no event"),
        ({"on": ["e"] * 11}, "function 'f' has 11 triggers"),
        ({"on": [3]}, "function 'f': on=3 is no trigger"),
        (
            {"on": ["a", on_event("e", if_="event.data.x >")]},
            "function 'f': on=on_event('e', if_=...): the expression 'event.data.x >' is wrong at line 1, column 15",
        ),
        (
            {"on": on_event("e", if_="async.data.x")},
            "function 'f': on=on_event('e', if_=...): the expression 'async.data.x' is wrong at line 1, column 11",
        ),
        (
            {"on": on_event("e", if_="'x'")},
            "function 'f': on=on_event('e', if_=...): the expression \"'x'\" is no condition",
        ),
        ({"on": cron("61 9 * * *")}, "function 'f': on=cron(expr='61 9 * * *'): bad minute"),
        ({"on": cron("@daily", tz="Mars")}, "function 'f': on=cron(tz='Mars'): there is no such time zone"),
        ({"on": cron("@daily", jitter="1y")}, "function 'f': on=cron(jitter='1y'): "),
        ({"on": cron("@daily", catch_up="x")}, "function 'f': on=cron(catch_up='x'): write 'skip'"),  # type: ignore[arg-type]
        (
            {"on": [cron("@daily"), cron("0 0 * * *")]},
            "function 'f': on=cron(expr='0 0 * * *') is there twice",
        ),
        (
            {"on": ["e", cron("@daily")]},
            "function 'f': on=cron('0 0 * * *'): its data is an agentflow.flow.CronTick",
        ),
        ({"retrys": 1}, "function 'f': there is no setting 'retrys'"),
        ({"concurrency": "x"}, "function 'f': concurrency='x' is no Concurrency"),
        ({"priority": 1}, "function 'f': priority=1: give a dotted path, an expression or a function"),
        ({"throttle": 1}, "function 'f': throttle=1: give Throttle(...)"),
        ({"rate_limit": 1}, "function 'f': rate_limit=1: give RateLimit(...)"),
        ({"debounce": 1}, "function 'f': debounce=1: give Debounce(...)"),
        ({"batch": 1}, "function 'f': batch=1: give Batch(...)"),
        ({"singleton": 1}, "function 'f': singleton=1: give Singleton(...)"),
        ({"idempotency": 1}, "function 'f': idempotency=1: give Idempotency(...)"),
        ({"priority": "event.data.("}, "function 'f': priority='event.data.(': the expression "),
        ({"throttle": Throttle(1, "1m", key="x(")}, "function 'f': throttle key='x(': the expression "),
    ],
)
def test_a_bad_setting_is_refused_with_the_functions_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        App("t").function("f", **config)(plain)
    assert str(refused.value).startswith(message)


def test_a_function_that_is_not_async_or_takes_other_arguments_is_refused() -> None:
    def sync(ctx: Context[int], step: Step) -> int:
        return 1

    async def short(ctx: Context[int]) -> int:
        return 1

    async def swapped(step: Step, ctx: Context[int]) -> int:
        return 1

    with pytest.raises(ConfigurationError, match=r"takes its context second.*\(ctx, step\)"):
        App("t").function(swapped)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is not async"):
        App("t").function(sync)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="takes 1 argument"):
        App("t").function(short)  # type: ignore[arg-type]


def test_an_app_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(ConfigurationError, match="async with app"):
        _ = App("t").runs


async def test_a_function_that_nobody_knows_is_not_found_with_those_that_are(sqlite_url: str) -> None:
    app = App("t", database_url=sqlite_url)
    app.function("f")(plain)
    async with app:
        with pytest.raises(NotFound, match="no function 'g'; it has: f"):
            await app.start("g", 1)


async def test_functions_registered_after_the_start_are_refused(sqlite_url: str) -> None:
    app = App("t", database_url=sqlite_url)
    app.function("f")(plain)
    async with app.running():
        with pytest.raises(ConfigurationError, match="registered after app 't' was started"):
            app.function("g")(plain)


async def test_an_app_may_be_opened_again_after_it_was_closed(database_url: str) -> None:
    app = App("t", database_url=database_url)
    app.function("f")(plain)
    await app.migrate()
    for n in range(2):
        async with app.running():
            assert await (await app.start("f", n)).result(10) == n


async def test_a_postgresql_database_without_tables_says_how_to_make_them(postgres_url: str) -> None:
    with pytest.raises(ConfigurationError, match="agentflow db upgrade"):
        await App("t", database_url=postgres_url).open()


async def test_a_run_is_started_by_a_process_that_does_not_know_its_function(database_url: str) -> None:
    app = App("t", database_url=database_url)
    app.function("f")(plain)
    await app.migrate()
    async with app.running(), App("t", database_url=database_url) as other:
        run = await other.start("f", 7)
        assert await run.result(10) == 7


async def test_a_worker_opens_the_app_for_as_long_as_it_works(sqlite_url: str) -> None:
    app = App("t", database_url=sqlite_url)
    app.function("f")(plain)
    worker = app.worker(concurrency=2)
    working = asyncio.create_task(worker.run())
    async with app:
        assert await (await app.start("f", 5)).result(10) == 5
    assert (await app.runs.list()).data[0].status == "completed"
    await worker.stop()
    await working
    with pytest.raises(ConfigurationError, match="is not open"):
        _ = app.runs
    with pytest.raises(ConfigurationError, match="started before"):
        await worker.start()


async def test_a_worker_that_is_told_to_stop_before_it_has_started_does_not_work(database_url: str) -> None:
    app = App("t", database_url=database_url)
    app.function("f")(plain)
    await app.migrate()
    never = app.worker()
    await never.stop()
    await asyncio.wait_for(never.run(), 20)

    worker = app.worker()
    working = asyncio.create_task(worker.run())
    await asyncio.sleep(0)  # it begins to open the App
    await worker.stop()
    await asyncio.wait_for(working, 20)
    with pytest.raises(ConfigurationError, match="not open"):
        await app.start("f", 1)


async def test_a_worker_whose_run_is_cancelled_stops(database_url: str) -> None:
    app = App("t", database_url=database_url)
    app.function("f")(plain)
    await app.migrate()
    async with app:
        working = asyncio.create_task(app.worker().run())
        assert await (await app.start("f", 1)).result(20) == 1
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert await (await app.start("f", 2)).status() is RunStatus.QUEUED
        async with app.running():
            pass
        assert await (await app.start("f", 3)).status() is RunStatus.QUEUED


async def test_two_workers_share_the_runs_of_one_app(database_url: str) -> None:
    app, running = App("t", database_url=database_url), 0
    both = asyncio.Event()

    async def meet() -> None:
        nonlocal running
        running += 1
        if running == 2:
            both.set()
        await both.wait()

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await step.run("meet", meet)

    await app.migrate()
    async with app.running(concurrency=1), app.running(concurrency=1):
        runs = [await app.start(f) for _ in range(2)]
        for run in runs:
            await run.result(10)


async def test_what_has_ended_elsewhere_before_anybody_asked_is_given_at_once(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is asked for after its end was told, so that no poll is needed: here there is none."""
    for pause in ("FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(handles, pause, 3600.0)
    client, other = (App("t", database_url=postgres_url) for _ in range(2))
    for app in (client, other):
        app.function("plain")(plain)
    await client.migrate()
    async with client, other.running():
        early = [await client.start("plain", n) for n in range(3)]
        for run in early:
            await other.runs.handle(run.id).result(10)
        # This one is told of after those, and is waited for.
        assert await (await client.start("plain", 7)).result(10) == 7
        assert [await run.result(10) for run in early] == [0, 1, 2]


@pytest.mark.parametrize("size", [1, handles.LARGEST_END + 1])
async def test_what_ends_while_its_status_is_read_is_given_at_once(
    database_url: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end is told when nobody waits for it yet, and what was read is older. No poll helps: it finds nothing."""
    app = App("t", database_url=database_url)

    async def letters(ctx: Context[int], step: Step) -> str:
        return "a" * ctx.data

    app.function(letters)
    await app.migrate()
    async with app.running():
        run = await app.start("letters", size)

        async def read_long_ago(run_id: str) -> RunStatus:
            assert len(await run.result(10)) == size
            return RunStatus.RUNNING

        async def find_nothing(run_ids: list[str]) -> list[str]:
            return []

        queries = app.client.store.queries
        monkeypatch.setattr(queries, "get_status", read_long_ago)
        monkeypatch.setattr(queries, "list_ended", find_nothing)
        assert len(await app.runs.handle(run.id).result(10)) == size


async def test_the_functions_are_asked_for_once_however_many_want_to_know(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("t", database_url=database_url)
    app.function("plain")(plain)
    await app.migrate()
    async with app:
        client = app.client
        queries, asked, may_answer = client.store.queries, 0, asyncio.Event()
        list_functions = queries.list_functions

        async def slow() -> Any:
            nonlocal asked
            asked += 1
            await may_answer.wait()
            return await list_functions()

        monkeypatch.setattr(queries, "list_functions", slow)
        client.forget_functions()
        callers = [asyncio.create_task(client.list_functions()) for _ in range(50)]
        await asyncio.sleep(0)
        assert asked == 1
        # Who asks for all gives up: another one does it.
        callers[0].cancel()
        while asked < 2:
            await asyncio.sleep(0)
        # What is being read is out of date: it is read once more.
        client.forget_functions()
        late = asyncio.create_task(client.list_functions())
        await asyncio.sleep(0)
        assert asked == 3
        may_answer.set()
        answers = await asyncio.gather(late, *callers[1:])
        assert [[info.id for info in answer] for answer in answers] == [["plain"]] * 50
        await asyncio.gather(*(client.list_functions() for _ in range(50)))
        assert asked == 3
        with pytest.raises(asyncio.CancelledError):
            await callers[0]
