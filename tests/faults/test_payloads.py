"""Any value as a step's result, a run's input and output, an event's, a signal's and a child's data, on both databases.

What comes back equals what went in, at once and on replay; or an error of agentflow's says what is wrong. Nothing else
may happen: no error of a database or a library, no run that does not end, no neighbour that suffers by it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from agentflow import App, Context, RunStatus, Settings, Step
from agentflow.errors import InvalidInput, LimitExceeded, RunFailed, SignalConflict, StepError, Unserialisable
from agentflow.testing import Harness, harness
from tests.faults.payloads import Refused, any_text, is_same, plain, stored_form, typed, typed_values
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS

EXAMPLES = 200 if IS_FULL else 8
TOGETHER = 12
# Two texts may be the same one.
NAMED = (Unserialisable, InvalidInput, LimitExceeded, SignalConflict)

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a shorter value would be looked for by hundreds of runs
)


class Carrier:
    """An app that carries values by every way there is; each run finds what it is about under its number."""

    def __init__(self) -> None:
        self.app = app = App("t", settings=Settings(durability="process"))
        self.values: dict[int, tuple[Any, Any]] = {}
        self.got: dict[tuple[int, str], list[Any]] = {}

        async def taken(n: int, way: str, coroutine: Any) -> Any:
            """Note what a step gave: a value, or the error that the user would see."""
            try:
                value = await coroutine
            except StepError as error:
                value = error
            except NAMED as error:
                value = error
            self.got.setdefault((n, way), []).append(value)
            return value

        @app.function(retries=0)
        async def step(ctx: Context[int], step: Step) -> Any:
            annotation, value = self.values[ctx.data]
            options = {} if annotation is None else {"output": annotation}
            await taken(ctx.data, "step", step.run("it", lambda: value, retry=0, **options))
            await step.sleep("nap", "1h")

        @app.function(retries=0)
        async def output(ctx: Context[int], step: Step) -> Any:
            return self.values[ctx.data][1]

        @app.function(retries=0)
        async def input(ctx: Context[Any], step: Step) -> None:
            await step.sleep("nap", "1h")
            self.got.setdefault((0, ctx.run_id), []).append(ctx.data)

        @app.function(retries=0, on="carried")
        async def event(ctx: Context[Any], step: Step) -> None:
            self.got.setdefault((0, ctx.run_id), []).append(ctx.event.data)
            await step.sleep("nap", "1h")

        @app.function(retries=0)
        async def signal(ctx: Context[int], step: Step) -> None:
            got = await step.wait_for_signal("it", signal=f"to {ctx.data}", timeout="1d")
            self.got.setdefault((ctx.data, "signal"), []).append(got and got.data)
            await step.sleep("nap", "1h")

        @app.function(retries=0)
        async def echo(ctx: Context[Any], step: Step) -> Any:
            return ctx.data

        @app.function(retries=0)
        async def parent(ctx: Context[int], step: Step) -> None:
            await taken(ctx.data, "child", step.invoke("it", "echo", data=self.values[ctx.data][1]))
            await step.sleep("nap", "1h")

        @app.function(retries=0)
        async def fails(ctx: Context[int], step: Step) -> None:
            error = ValueError(*self.values[ctx.data])
            error.about = self.values[ctx.data][1]  # type: ignore[attr-defined]

            def body() -> None:
                raise error

            await taken(ctx.data, "error", step.run("it", body, retry=0))
            await step.sleep("nap", "1h")

        @app.function(retries=0)
        async def named(ctx: Context[int], step: Step) -> None:
            name = self.values[ctx.data][1]

            async def wait() -> Any:
                return await step.wait_for_signal("wait", signal=name, timeout=0)

            async def call() -> Any:
                return await step.run(name, lambda: "called")

            await taken(ctx.data, "step id", call())
            await taken(ctx.data, "signal name", wait())
            await taken(ctx.data, "event name", step.send_event("send", {"name": name, "data": {}}))
            await step.sleep("nap", "1h")


@pytest.fixture
def carried(database_url: str) -> Iterator[tuple[asyncio.Runner, Harness, Carrier]]:
    """One harness for all examples of a test: hypothesis calls from outside of the loop."""
    carrier = Carrier()
    opened = harness(carrier.app, database_url=database_url)
    with asyncio.Runner() as runner:
        h = runner.run(opened.__aenter__())
        try:
            yield runner, h, carrier
        finally:
            runner.run(opened.__aexit__(None, None, None))


async def attempt(coroutine: Any) -> Any:
    """What it gives, or the error of agentflow's that names what is wrong."""
    try:
        return await coroutine
    except NAMED as error:
        return error


def check_plain(value: Any, got: Any, told: Counter[str], *, nested: int = 0) -> None:
    """`nested` levels are added around it where it is stored."""
    try:
        expected = stored_form(value, nested)
    except Refused:
        assert isinstance(got, NAMED), (value, got)
        told["refused by name"] += 1
    else:
        assert is_same(got, expected), (value, got)
        told["equal"] += 1


@pytest.mark.fault(21)
@pytest.mark.timeout(SECONDS)
def test_a_value_that_nobody_annotated_comes_back_or_is_refused_by_name(
    carried: tuple[asyncio.Runner, Harness, Carrier], report: Report
) -> None:
    runner, h, carrier = carried
    told: Counter[str] = Counter()

    @seed(FIRST_SEED)
    @given(st.lists(plain, min_size=1, max_size=TOGETHER))
    @many
    def carry(values: Sequence[Any]) -> None:
        runner.run(carry_plain(h, carrier, values, told))

    carry()
    assert told["equal"] > told["refused by name"] > 0
    report(
        f"{told['values']:,} unannotated values (unicode, NUL, lone surrogates, NaN, integers of 5,000 digits, up to "
        "300 levels deep) as a step's result, run input and output, event, signal and child's data, and in exceptions: "
        f"{told['equal']:,} came back equal, {told['refused by name']:,} were refused by a named error, none else"
    )


async def carry_plain(h: Harness, carrier: Carrier, values: Sequence[Any], told: Counter[str]) -> None:
    carrier.values.clear()
    carrier.got.clear()
    waits = [await h.start("signal", n) for n in range(len(values))]
    await h.idle()
    handles: list[Any] = []
    inputs, events, signals, outputs = [], [], [], []
    for n, value in enumerate(values):
        carrier.values[n] = None, value
        handles += [await h.start(name, n) for name in ("step", "parent", "fails")]
        outputs.append(await h.start("output", n))
        inputs.append(await attempt(h.start("input", value)))
        events.append(await attempt(h.send({"name": "carried", "data": {"it": value}})))
        signals.append(await attempt(h.signal(f"to {n}", value)))
        if isinstance(signals[-1], NAMED):
            await h.signal(f"to {n}", "in its place")
    await h.advance("2h")
    for run in [*handles, *waits]:
        assert await run.status() is RunStatus.COMPLETED, await h.app.runs.get(run.id)
    for n, value in enumerate(values):
        told["values"] += 1
        for way in ("step", "child"):
            for got in carrier.got[n, way]:  # the first time, and the replay
                check_plain(value, got, told)
        for got in carrier.got[n, "signal"]:
            check_plain(value, signals[n] if isinstance(signals[n], NAMED) else got, told)
        check_plain(value, await output_of(outputs[n]), told)
        check_plain(value, await seen_by(h, carrier, inputs[n]), told)
        got = await seen_by(h, carrier, await started_by(h, events[n]))
        check_plain({"it": value}, got, told)
        check_error(value, carrier.got[n, "error"])


async def output_of(run: Any) -> Any:
    try:
        return await run.result(10)
    except RunFailed as failed:
        return Unserialisable(str(failed)) if "Unserialisable" in repr(failed.error) else failed


async def started_by(h: Harness, sent: Any) -> Any:
    if isinstance(sent, NAMED):
        return sent
    [run] = (await h.app.events.runs(sent[0])).data
    return h.app.runs.handle(run.id)


async def seen_by(h: Harness, carrier: Carrier, run: Any) -> Any:
    if isinstance(run, NAMED):
        return run
    assert await run.result(10) is None
    return carrier.got[0, run.id][-1]


def check_error(value: Any, seen: list[Any]) -> None:
    """The exception is the same one on replay, and what of it is plain JSON is there."""
    first, again = seen
    assert isinstance(first, StepError)
    assert isinstance(again, StepError)
    assert first.name == again.name == "ValueError"
    assert (first.message, first.attributes) == (again.message, again.attributes)
    try:
        expected = stored_form(value, 1)
    except Refused:
        assert "about" not in first.attributes
    else:
        if len(json.dumps(expected)) < 10_000:
            assert is_same(first.attributes["about"], expected)


@pytest.mark.fault(21)
@pytest.mark.timeout(SECONDS)
def test_a_value_of_an_annotated_type_comes_back_or_is_refused_by_name(
    carried: tuple[asyncio.Runner, Harness, Carrier], report: Report
) -> None:
    runner, h, carrier = carried
    told: Counter[str] = Counter()
    came_back: set[str] = set()

    @seed(FIRST_SEED)
    @given(st.lists(typed_values, min_size=1, max_size=2 * TOGETHER))
    @many
    def carry(values: Sequence[tuple[Any, Any]]) -> None:
        runner.run(carry_typed(h, carrier, values, told, came_back))

    carry()
    assert len(came_back) >= (30 if IS_FULL else 15)
    report(
        f"{told['values']:,} values of {len(typed)} annotated types (time zones, Decimal, nested and generic models, "
        f"unions, sets, tuples, keys that are no text) as a step's result: {told['equal']:,} came back equal and of "
        f"the same type, at once and on replay, {told['refused by name']:,} were refused by a named error, none else"
    )


async def carry_typed(
    h: Harness,
    carrier: Carrier,
    values: Sequence[tuple[Any, Any]],
    told: Counter[str],
    came_back: set[str],
) -> None:
    carrier.got.clear()
    carrier.values = dict(enumerate(values))
    runs = [await h.start("step", n) for n in carrier.values]
    await h.advance("2h")
    assert [await run.status() for run in runs] == [RunStatus.COMPLETED] * len(runs)
    for n, (annotation, value) in carrier.values.items():
        told["values"] += 1
        first, again = carrier.got[n, "step"]
        if isinstance(first, NAMED):
            assert type(first) is type(again)
            assert str(first) == str(again)
            told["refused by name"] += 1
            continue
        assert is_same(first, again), (annotation, value, first, again)
        whole = float(value) if annotation is float else value  # `-> float` takes an int
        assert is_same(first, whole), (annotation, value, first)
        told["equal"] += 1
        came_back.add(str(annotation))


@pytest.mark.fault(21)
@pytest.mark.timeout(SECONDS)
def test_any_text_is_a_name_or_is_refused_by_name(
    carried: tuple[asyncio.Runner, Harness, Carrier], report: Report
) -> None:
    runner, h, carrier = carried
    told: Counter[str] = Counter()

    @seed(FIRST_SEED)
    @given(st.lists(any_text | st.text(min_size=100, max_size=600), min_size=1, max_size=TOGETHER))
    @many
    def carry(names: Sequence[str]) -> None:
        runner.run(carry_names(h, carrier, names, told))

    carry()
    assert told["taken"] > 0
    assert told["refused"] > 0
    report(
        f"{told['names']:,} texts as ids of steps, names of events and signals, idempotency keys and tags: "
        f"{told['taken']:,} taken and found again, {told['refused']:,} refused by a named error, none else"
    )


async def carry_names(h: Harness, carrier: Carrier, names: Sequence[str], told: Counter[str]) -> None:
    carrier.got.clear()
    carrier.values = dict(enumerate((None, name) for name in names))
    runs = [await h.start("named", n) for n in carrier.values]
    others: list[Any] = []
    for n, name in enumerate(names):
        others += [
            await attempt(h.start("echo", 0, idempotency_key=name)),
            await attempt(h.start("echo", n, tags=[name])),
            await attempt(h.send({"name": name, "data": {}})),
            await attempt(h.send({"name": "e", "data": {}, "id": name})),
            await attempt(h.signal(name, n, buffer="1m")),
        ]
    await h.advance("2h")
    told["names"] += len(names)
    for other in others:
        told["refused" if isinstance(other, NAMED) else "taken"] += 1
    for run in runs:
        assert await run.status() is RunStatus.COMPLETED, await h.app.runs.get(run.id)
    for n in carrier.values:
        for way in ("step id", "signal name", "event name"):
            first, again = carrier.got[n, way]
            assert type(first) is type(again), (names[n], way, first, again)
            assert not isinstance(first, StepError), (names[n], way, first)
            told["refused" if isinstance(first, NAMED) else "taken"] += 1
