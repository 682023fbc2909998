"""Rules 19, 20 and 22: events, triggers, deduplication, waits for events."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from agentflow import App, Context, Event, Step, on_event
from agentflow.errors import ConfigurationError, InvalidInput, LimitExceeded, NotFound, Unserialisable
from agentflow.testing import harness
from tests.behaviours.looking import restarted, steps_of

# 19


def counting(app: App, name: str = "f", *on: str) -> list[Any]:
    """A function that notes the data it is started with."""
    seen: list[Any] = []

    @app.function(name, on=list(on) or ["app/happened"])
    async def f(ctx: Context[Any], step: Step) -> None:
        seen.append(ctx.data)

    return seen


async def test_an_event_id_deduplicates_for_exactly_24_hours(database_url: str) -> None:
    app = App("t")
    seen = counting(app)
    event = Event(name="app/happened", id="payment-1")
    async with harness(app, database_url=database_url) as h:
        first = await h.send(event)
        await h.advance("12h")
        await h.send(event)
        await h.advance(timedelta(hours=12) - timedelta(microseconds=1))
        assert await h.send(event) == first
        await h.idle()
        assert len(seen) == 1
        await h.advance(timedelta(microseconds=1))
        await h.send(event)
        await h.idle()
        assert len(seen) == 2


async def test_the_same_event_id_twice_in_one_call_is_one_event(database_url: str) -> None:
    app = App("t")
    seen = counting(app)
    async with harness(app, database_url=database_url) as h:
        ids = await h.send([Event(name="app/happened", id="x"), Event(name="app/happened", id="x")])
        await h.idle()
    assert len(seen) == 1
    assert len(set(ids)) == 1


async def test_two_senders_of_one_event_id_at_once_start_one_run(database_url: str) -> None:
    app = App("t")
    seen = counting(app)
    async with harness(app, database_url=database_url) as h:
        await asyncio.gather(*(h.send(Event(name="app/happened", id="x")) for _ in range(20)))
        await h.idle()
    assert len(seen) == 1


async def test_events_without_an_id_are_all_different(database_url: str) -> None:
    app = App("t")
    seen = counting(app)
    async with harness(app, database_url=database_url) as h:
        ids = await h.send([{"name": "app/happened"}, {"name": "app/happened"}])
        await h.idle()
    assert len(seen) == len(set(ids)) == 2


@pytest.mark.parametrize(
    ("trigger", "name", "fits"),
    [
        ("app/user", "app/user", True),
        ("app/user", "app/user.created", False),
        ("app/user", "app/user/x", False),
        ("app/user", "App/User", False),
        ("app/*", "app/user", True),
        ("app/*", "app/user/created.x", True),
        ("app/*", "app", False),
        ("app/*", "application/user", False),
        ("app/*", "other/app/user", False),
        ("app_/*", "appx/user", False),
        ("app%/*", "app-long/user", False),
    ],
)
async def test_a_trigger_is_an_exact_name_or_everything_after_the_slash(
    sqlite_url: str, trigger: str, name: str, fits: bool
) -> None:
    app = App("t")
    seen = counting(app, "f", trigger)
    async with harness(app, database_url=sqlite_url) as h:
        await h.send(Event(name=name, data={"n": 1}))
        await h.idle()
    assert seen == ([{"n": 1}] if fits else [])


async def test_an_event_that_fits_two_triggers_of_a_function_starts_one_run(database_url: str) -> None:
    app = App("t")
    seen = counting(app, "f", "app/happened", "app/*")
    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="app/happened"))
        await h.idle()
    assert len(seen) == 1


async def test_an_event_starts_every_function_that_it_triggers(database_url: str) -> None:
    app = App("t")
    first, second, other = counting(app, "a"), counting(app, "b", "app/*"), counting(app, "c", "else")
    async with harness(app, database_url=database_url) as h:
        [event_id] = await h.send(Event(name="app/happened"))
        await h.idle()
        runs = (await app.events.runs(event_id)).data
    assert (len(first), len(second), len(other)) == (1, 1, 0)
    assert {run.function for run in runs} == {"a", "b"}


async def test_a_context_has_the_event_that_started_its_run(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function(on=on_event("app/happened"))
    async def f(ctx: Context[dict[str, int]], step: Step) -> None:
        seen.append(ctx.event)
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        now = h.now()
        await h.send(Event(name="app/happened", data={"n": 1}, id="mine"))
        await h.advance("2m")
    assert seen == [Event(name="app/happened", data={"n": 1}, id="mine", ts=now)] * 2


async def test_several_events_are_sent_in_one_transaction(database_url: str) -> None:
    app = App("t")
    seen = counting(app)
    async with harness(app, database_url=database_url) as h:
        with pytest.raises(Unserialisable):
            await h.send([{"name": "app/happened"}, {"name": "app/happened", "data": {"x": float("nan")}}])
        await h.idle()
        assert (await app.events.list()).data == []
    assert seen == []


@pytest.mark.parametrize(
    "event",
    [
        {"name": ""},
        {"data": {}},
        {"name": "x", "data": [1]},
        {"name": "agentflow/x"},
        {"name": "x", "idd": "y"},
        "x",
    ],
    ids=repr,
)
async def test_what_is_no_event_is_invalid_input(sqlite_url: str, event: Any) -> None:
    async with harness(App("t"), database_url=sqlite_url) as h:
        with pytest.raises(InvalidInput):
            await h.send(event)


async def test_an_event_has_512_kb_at_most(database_url: str) -> None:
    async with harness(App("t"), database_url=database_url) as h:
        await h.send(Event(name="x", data={"x": "y" * (512 * 1024 - 8)}))
        with pytest.raises(LimitExceeded):
            await h.send(Event(name="x", data={"x": "y" * (512 * 1024 - 7)}))


async def test_a_future_ts_delays_the_run_a_past_one_does_not(database_url: str) -> None:
    app = App("t")
    seen = counting(app)
    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="app/happened", data={"n": "later"}, ts=h.now() + timedelta(hours=1)))
        await h.send(Event(name="app/happened", data={"n": "past"}, ts=h.now() - timedelta(hours=1)))
        await h.advance(timedelta(hours=1) - timedelta(microseconds=1))
        assert seen == [{"n": "past"}]
        assert [run.status for run in (await app.runs.list(status="queued")).data] == ["queued"]
        await h.advance(timedelta(microseconds=1))
    assert seen == [{"n": "past"}, {"n": "later"}]


async def test_an_events_data_becomes_the_functions_type(database_url: str) -> None:
    app, seen = App("t"), []

    @app.function(on="order")
    async def f(ctx: Context[Event], step: Step) -> None:
        seen.append(ctx.data)

    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="order", data={"name": "inner"}))
        await h.idle()
    assert seen == [Event(name="inner")]


def test_more_than_ten_triggers_are_refused() -> None:
    app = App("t")
    counting(app, "ten", *(f"e{n}" for n in range(10)))
    with pytest.raises(ConfigurationError):
        counting(app, "eleven", *(f"e{n}" for n in range(11)))


async def test_events_are_listed_page_by_page_and_got_by_id(database_url: str) -> None:
    app = App("t")
    async with harness(app, database_url=database_url) as h:
        sent = await h.send([Event(name="n", data={"n": n}) for n in range(5)])
        seen, cursor = [], None
        for _ in range(3):
            page = await app.events.list(limit=2, cursor=cursor)
            seen += [event.id for event in page.data]
            cursor = page.cursor
        assert not page.has_more
        assert sorted(seen) == sorted(sent)
        assert (await app.events.get(sent[3])).data == {"n": 3}
        with pytest.raises(NotFound):
            await app.events.get("evt_none")


# 19: match


MATCHES = [
    (1, 1, True),
    (1, 1.0, True),
    (1, "1", False),
    (1, True, False),
    (0, False, False),
    (None, None, True),
    (None, 0, False),
    ("ü", "ü", True),
    ("ü", "u\u0308", False),
    ("", "", True),
    ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, True),
    ([1, 2], [2, 1], False),
    ("x" * 5000, "x" * 5000, True),
    ("x" * 5000, "x" * 4999 + "y", False),
    (10**20, 10**20, True),
    (2**53, 2**53 + 1, False),
]


async def test_match_compares_the_json_values_of_trigger_and_event(database_url: str) -> None:
    app = App("t")

    @app.function(on="begin")
    async def f(ctx: Context[Any], step: Step) -> bool:
        name = f"arrive-{ctx.data['n']}"
        return await step.wait_for_event("w", event=name, match="data.v.x", timeout="1h") is not None

    async with harness(app, database_url=database_url) as h:
        await h.send(
            [Event(name="begin", data={"n": n, "v": {"x": a}}) for n, (a, _, _) in enumerate(MATCHES)]
        )
        await h.idle()
        await h.send([Event(name=f"arrive-{n}", data={"v": {"x": b}}) for n, (_, b, _) in enumerate(MATCHES)])
        await h.advance("2h")
        runs = [await app.runs.get(run.id) for run in (await app.runs.list()).data]
    found = {run.input["n"]: run.output for run in runs}
    assert [found[n] for n in range(len(MATCHES))] == [expected for _, _, expected in MATCHES]


@pytest.mark.parametrize("where", ["trigger", "event", "both"])
async def test_a_missing_path_never_matches(database_url: str, where: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[dict[str, int]], step: Step) -> str:
        got = await step.wait_for_event("w", event="e", match="data.user_id", timeout="1h")
        return "timeout" if got is None else "matched"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, {"user_id": 1} if where == "event" else {})
        await h.idle()
        await h.send(Event(name="e", data={"user_id": 1} if where == "trigger" else {}))
        await h.idle()
        assert await run.status() == "waiting"
        await h.advance("1h")
        assert await run.result(10) == "timeout"


async def test_a_run_without_an_event_counts_as_its_input(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[dict[str, int]], step: Step) -> Event | None:
        return await step.wait_for_event("w", event="e", match="data.user_id", timeout="1h")

    @app.function
    async def g(ctx: Context[int], step: Step) -> Event | None:
        return await step.wait_for_event("w", event="e", match="data", timeout="1h")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, {"user_id": 7})
        plain = await h.start(g, 7)
        await h.idle()
        await h.send([Event(name="e", data={"user_id": 8}), Event(name="e", data={"user_id": 7})])
        await h.idle()
        got = await run.result(10)
        assert got is not None
        assert got.data == {"user_id": 7}
        assert await plain.status() == "waiting"


# 20


async def test_a_wait_sees_only_what_arrives_after_it_is_registered(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        await step.sleep("s", "1m")
        got = await step.wait_for_event("w", event="e", timeout="1h")
        return got and got.data["n"]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.send(Event(name="e", data={"n": "too early"}))
        await h.advance("1m")
        assert await run.status() == "waiting"
        await h.send(Event(name="e", data={"n": "in time"}))
        assert await run.result(10) == "in time"


@pytest.mark.parametrize(("lookback", "expected"), [("5m", "e"), ("4m59s", None), ("1h", "e")])
async def test_lookback_also_takes_an_event_from_before_counted_from_registration(
    database_url: str, lookback: str, expected: str | None
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        await step.sleep("s", "1h")
        got = await step.wait_for_event("w", event="e", timeout="1h", lookback=lookback)
        return got and got.name

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance("55m")
        await h.send(Event(name="e"))
        await h.advance("3h")
        assert await run.result(10) == expected


async def test_lookback_heeds_match(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[dict[str, int]], step: Step) -> Any:
        await step.sleep("s", "1m")
        got = await step.wait_for_event("w", event="e", match="data.u", timeout="1h", lookback="5m")
        return got and got.data

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f, {"u": 1})
        await h.send([Event(name="e", data={"u": 1, "mine": True}), Event(name="e", data={"u": 2})])
        await h.advance("2m")
        assert await run.result(10) == {"u": 1, "mine": True}


async def test_the_triggering_event_never_wakes_its_own_run(database_url: str) -> None:
    app = App("t")

    @app.function(on="e")
    async def f(ctx: Context[dict[str, int]], step: Step) -> Any:
        got = await step.wait_for_event("w", event="e", timeout="1h", lookback="1h")
        return got and got.data["n"]

    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="e", data={"n": 1}))
        await h.idle()
        [run] = (await app.runs.list()).data
        assert run.status == "waiting"
        await h.send(Event(name="e", data={"n": 2}))
        await h.idle()
        assert (await app.runs.get(run.id)).output == 2


async def test_gather_of_a_wait_and_a_send_of_the_same_name_resolves(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        got, _ = await asyncio.gather(
            step.wait_for_event("w", event="e", timeout="1h"), step.send_event("s", {"name": "e"})
        )
        return got and got.name

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == "e"


async def test_a_wait_in_a_task_of_its_own_is_registered_before_a_later_send(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        wait = asyncio.create_task(step.wait_for_event("w", event="e", timeout="1h"))
        await asyncio.sleep(0)
        await step.send_event("s", {"name": "e"})
        got = await wait
        return got and got.name

    async with harness(app, database_url=database_url) as h:
        assert await (await h.start(f)).result(10) == "e"


async def test_an_event_in_time_wins_over_the_timeout_for_ever(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        got = await step.wait_for_event("w", event="e", timeout="1h")
        await step.sleep("s", "1d")
        return got and got.name

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.advance(timedelta(hours=1) - timedelta(microseconds=1))
        await h.send(Event(name="e"))
        await h.advance("2d")
        assert await run.result(10) == "e"


async def test_an_event_while_no_worker_lives_wins_over_a_timeout_that_has_not_passed(
    database_url: str,
) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        got = await step.wait_for_event("w", event="e", timeout="1h")
        return got and got.name

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await h.crash()
        await h.advance("30m")
        await h.send(Event(name="e"))
        await h.advance("3h")
        await h.restart()
        assert await run.result(10) == "e"


async def test_an_event_after_the_timeout_is_not_taken(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        got = await step.wait_for_event("w", event="e", timeout="1h")
        await step.sleep("s", "1d")
        return got and got.name

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await h.crash()
        await h.advance("2h")
        await h.send(Event(name="e"))
        await h.restart()
        await h.advance("2d")
        assert await run.result(10) is None


async def test_a_timeout_of_0_is_none_at_once(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        return [
            await step.wait_for_event("e", event="e", timeout=0),
            await step.wait_for_signal("s", signal="s", timeout=0),
        ]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        assert await run.result(10) == [None, None]


async def test_one_event_wakes_every_matching_run_and_every_wait_of_one(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        waits = [step.wait_for_event("w", event="e", timeout="1h") for _ in range(2)]
        return [got and got.data for got in await asyncio.gather(*waits)]

    async with harness(app, database_url=database_url) as h:
        runs = [await h.start(f) for _ in range(5)]
        await h.idle()
        await h.send(Event(name="e", data={"n": 1}))
        assert [await run.result(10) for run in runs] == [[{"n": 1}, {"n": 1}]] * 5


async def test_a_second_wait_needs_an_event_of_its_own(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> list[Any]:
        got = [await step.wait_for_event("w", event="e", timeout="1h") for _ in range(2)]
        return [event and event.data["n"] for event in got]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await h.send(Event(name="e", data={"n": 1}))
        await h.idle()
        assert await run.status() == "waiting"
        await h.send(Event(name="e", data={"n": 2}))
        assert await run.result(10) == [1, 2]


async def test_an_event_that_was_sent_before_wakes_nobody_again(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Event | None:
        return await step.wait_for_event("w", event="e", timeout="1h")

    async with harness(app, database_url=database_url) as h:
        await h.send(Event(name="e", id="once"))
        run = await h.start(f)
        await h.idle()
        await h.send(Event(name="e", id="once"))
        await h.idle()
        assert await run.status() == "waiting"


async def test_send_event_sends_once_whatever_crashes_and_gives_the_same_ids(database_url: str) -> None:
    app, ids = App("t"), []
    seen = counting(app, "listener")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        ids.append(await step.send_event("send", [{"name": "app/happened"}, Event(name="app/happened")]))
        await step.sleep("s", 60)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await restarted(h)
        await h.advance("2m")
        await run.result(10)
        assert (await steps_of(app, run))["send"].output == ids[0]
    assert ids[0] == ids[-1]
    assert len(ids[0]) == len(seen) == 2


async def test_a_waiting_record_names_step_kind_event_and_deadline(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await asyncio.gather(
            step.wait_for_event("we", event="the/event", timeout="1h"),
            step.wait_for_signal("ws", signal="the-signal", timeout="2h"),
            step.sleep("zz", "3h"),
        )

    async with harness(app, database_url=database_url) as h:
        now = h.now()
        run = await h.start(f)
        await h.idle()
        record = await app.runs.get(run.id)
        told = {one.step_key: (one.kind, one.name, one.since, one.until) for one in record.waiting}
    assert record.status == "waiting"
    assert told == {
        "we": ("event", "the/event", now, now + timedelta(hours=1)),
        "ws": ("signal", "the-signal", now, now + timedelta(hours=2)),
        "zz": ("sleep", None, now, now + timedelta(hours=3)),
    }


# 22


async def test_no_wake_up_is_lost_between_looking_and_registering(database_url: str) -> None:
    app = App("t")

    @app.function
    async def f(ctx: Context[int], step: Step) -> int:
        for n in range(5):
            await step.wait_for_signal("w", signal=f"{ctx.data}-{n}", timeout="1h")
        return ctx.data

    async with harness(app, database_url=database_url) as h:
        runs = [await h.start(f, n) for n in range(8)]
        for n in range(5):
            await asyncio.gather(*(h.signal(f"{m}-{n}", buffer="1h") for m in range(8)))
        await h.idle()
        assert [await run.result(10) for run in runs] == list(range(8))
