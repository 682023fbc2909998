"""A run's live stream gives every item once, in the order of the numbers, whatever is committed while it is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentflow import Agent, App, Approve, Context, Deny, ModelRequest, Step, handles
from agentflow.errors import NotFound
from agentflow.models.function import FunctionModel
from agentflow.models.replies import encode_reply
from agentflow.providers import AttemptReset, TextDelta
from agentflow.runs import StreamItem
from agentflow.store.hints import HintKind
from agentflow.store.operation_types import Prune
from agentflow.testing import ScriptedModel, harness


@pytest.mark.parametrize("at", [1, 2])
async def test_what_is_committed_between_two_reads_of_the_stream_is_not_passed_over(
    database_url: str, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Steps and messages are in two tables, which are read one after the other."""
    app = App("stream")
    may_go_on = asyncio.Event()

    @app.function
    async def flow(ctx: Context[None], step: Step) -> None:
        await step.publish("one", "progress")
        await step.run("wait", may_go_on.wait, output=bool)
        await step.publish("two", "progress")
        await step.publish("three", "progress")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(flow)
        queries = app.client.store.queries
        while len(await queries.list_stream(run.id)) < 2:  # the message, and its step
            await asyncio.sleep(0.005)
        reader = queries._reader  # type: ignore[attr-defined]
        read = reader.tuples
        reads = 0

        async def read_and_go_on(statement: Any, **parameters: Any) -> Any:
            nonlocal reads
            rows = await read(statement, **parameters)
            reads += 1
            if reads == at:
                may_go_on.set()
                await run.result(10)
            return rows

        monkeypatch.setattr(reader, "tuples", read_and_go_on)
        told: list[StreamItem] = []
        while items := await queries.list_stream(run.id, after=told[-1].seq if told else 0):
            told += items
        monkeypatch.setattr(reader, "tuples", read)
        assert may_go_on.is_set()
        assert told == await queries.list_stream(run.id)
        assert [item.step_key for item in told if item.kind == "publish"] == ["one", "two", "three"]


async def test_a_run_that_is_removed_while_it_is_told_is_not_told_as_if_that_were_all(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "MOST_ITEMS", 2)
    app = App("stream")

    @app.function
    async def flow(ctx: Context[None], step: Step) -> None:
        for number in range(3):
            await step.publish(f"say {number}", "progress")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(flow)
        await run.result(10)
        items = run.stream()
        assert [(await anext(items)).seq for _ in range(2)] == [1, 2]
        pruned = await app.client.store.submit(Prune(before=app.client.clock.now() + 1, after=None, most=10))
        assert pruned.runs == 1
        with pytest.raises(NotFound):
            await anext(items)


class Stepwise(FunctionModel):
    """Says a word when it is let."""

    def __init__(self, words: int) -> None:
        super().__init__(lambda request: "word " * words, name="stepwise")
        self._words = words
        self.may_speak = asyncio.Semaphore(1)

    async def stream(self, request: ModelRequest) -> Any:
        for _ in range(self._words):
            await self.may_speak.acquire()
            yield TextDelta(text="word ")
        yield await self.request(request)


async def test_a_piece_of_text_costs_who_follows_one_read(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the run, what it waits for and its steps each time: many people may follow many runs."""
    app, model = App("stream"), Stepwise(words=12)

    @app.function
    async def flow(ctx: Context[None], step: Step) -> str:
        return (await step.ai.infer("speak", model=model, messages="go", stream=True)).text

    async with harness(app, database_url=database_url) as h:
        run = await h.start(flow)
        reader = app.client.store.queries._reader  # type: ignore[attr-defined]
        read, reads = reader.tuples, [0]

        async def count(statement: Any, **parameters: Any) -> Any:
            reads[-1] += 1
            return await read(statement, **parameters)

        monkeypatch.setattr(reader, "tuples", count)
        # What others may have done is looked for beside that, now and then.
        monkeypatch.setattr(handles, "TOLD_PAUSE", 3600.0)
        monkeypatch.setattr(handles.Watch, "hurry", lambda watch: None)
        async for item in run.stream():
            if item.kind == "text.delta":
                reads.append(0)
                model.may_speak.release()
        assert await run.result() == "word " * 12
        assert len(reads) == 13
        assert reads[3:-2] == [1] * 8  # the run has begun, and the last word comes with the end


async def test_a_step_is_told_at_once_in_the_process_that_did_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No poll is there to help, nor what others write."""
    for pause in ("FIRST_PAUSE", "TOLD_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(handles, pause, 3600.0)
    monkeypatch.setattr(handles.Watch, "hurry", handles.Watch.wake)  # not only once in so long
    hear = handles.Watchers.hear
    monkeypatch.setattr(
        handles.Watchers, "hear", lambda its, hint: None if hint.kind is HintKind.ANY else hear(its, hint)
    )
    app, may_go_on = App("stream"), asyncio.Semaphore(1)

    @app.function
    async def flow(ctx: Context[None], step: Step) -> None:
        for _ in range(4):
            await step.run("wait", may_go_on.acquire, output=bool)
        await step.wait_for_signal("signal", signal="go on", timeout="1h")

    async with harness(app, database_url=database_url) as h, asyncio.timeout(20):
        run = await h.start(flow)
        told: list[str] = []
        async for item in run.stream():
            told.append(item.kind)
            if item.kind == "step.completed":
                may_go_on.release()
            if item.kind == "run.waiting":
                await h.signal("go on")
        assert told.count("step.completed") == 5
        assert told[-1] == "done"


class Breaking(FunctionModel):
    """Says half of what it has to say and breaks off, so often; then it says all."""

    def __init__(self, times: int) -> None:
        super().__init__(lambda request: "All of it.", name="breaking")
        self._times = times

    async def stream(self, request: ModelRequest) -> Any:
        self._times -= 1
        if self._times >= 0:
            yield TextDelta(text="All o")
            raise ConnectionResetError("cut")
        async for item in super().stream(request):
            yield item


def assembled(items: list[StreamItem]) -> str:
    text = ""
    for item in items:
        if item.kind == "attempt.reset":
            text = ""
        elif item.kind == "text.delta":
            text += item.data
    return text


async def test_a_retry_says_that_what_was_told_is_void(sqlite_url: str) -> None:
    app = App("stream")
    agent = Agent("speaker", model=Breaking(2))
    app.add(agent)
    heard: list[Any] = []

    @app.function
    async def listen(ctx: Context[None], step: Step) -> str:
        heard.clear()
        async for item in agent.stream(step, "Speak."):
            heard.append(item)
        return "ended"

    async with harness(app, database_url=sqlite_url) as h:
        for function, data in ((agent, "Speak."), (listen, None)):
            agent.model = Breaking(2)
            run = await h.start(function, data)
            await h.advance("1h")
            await run.result(5)
            items = [item async for item in run.stream()]
            assert [item.kind for item in items].count("attempt.reset") == 2
            assert assembled(items) == "All of it."
    after = [index for index, item in enumerate(heard) if isinstance(item, AttemptReset)]
    if after:  # the run may have left memory, and begun to listen anew
        heard = heard[after[-1] + 1 :]
    assert "".join(item.text for item in heard if isinstance(item, TextDelta)) == "All of it."


async def test_who_listens_to_an_agent_is_told_of_a_reset_by_a_fallback(sqlite_url: str) -> None:
    """The second model is asked in the same attempt: nothing else would part its words from the first one's."""
    from agentflow.errors import RateLimited

    class Limited(FunctionModel):
        async def stream(self, request: ModelRequest) -> Any:
            yield TextDelta(text="I can")
            raise RateLimited("slow down", provider="function", model="limited", billed="no", retriable=True)

        def classify(self, error: BaseException) -> Any:
            from agentflow.providers import Failure

            assert isinstance(error, RateLimited)
            return Failure(error)

    app = App("stream")
    agent = Agent("speaker", model=Limited(lambda _: "", name="limited"), fallback=[Breaking(0)])
    heard: list[Any] = []

    @app.function
    async def listen(ctx: Context[None], step: Step) -> str:
        async for item in agent.stream(step, "Speak."):
            heard.append(item)
        return "ended"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(listen)
        await h.advance("1h")
        await run.result(5)
        items = [item async for item in run.stream()]
    kinds = [item.kind for item in items if item.kind in ("text.delta", "attempt.reset")]
    assert kinds == ["text.delta", "attempt.reset", "text.delta"]
    assert assembled(items) == "All of it."
    assert [type(item).__name__ for item in heard[:2]] == ["TextDelta", "AttemptReset"]


async def test_a_crash_in_the_middle_of_an_answer_says_so_before_it_is_told_again(database_url: str) -> None:
    app = App("stream")
    told, go_on = asyncio.Event(), asyncio.Event()

    class Pausing(FunctionModel):
        async def stream(self, request: ModelRequest) -> Any:
            yield TextDelta(text="All o")
            told.set()
            await go_on.wait()
            yield TextDelta(text="f it.")
            yield self._answer(encode_reply("All of it.", request, name=self.model))

    agent = Agent("speaker", model=Pausing(lambda _: "", name="pausing"))
    app.add(agent)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(agent, "Speak.")
        await told.wait()
        while not assembled(await app.client.store.queries.list_stream(run.id)):
            await asyncio.sleep(0.005)
        await h.crash()
        go_on.set()
        await h.restart()
        await h.idle()
        assert await run.result(5) == "All of it."
        items = [item async for item in run.stream()]
    kinds = [item.kind for item in items if item.kind in ("text.delta", "attempt.reset")]
    assert kinds[:2] == ["text.delta", "attempt.reset"]
    assert assembled(items) == "All of it."


async def test_structured_output_and_arguments_are_told_as_they_are_written(sqlite_url: str) -> None:
    app = App("stream")

    async def weigh(thing: str) -> int:
        """Weigh it."""
        return len(thing)

    agent: Agent[Any, Any] = Agent("speaker", model="test:none", tools=[weigh], output=dict[str, int])
    app.add(agent)
    from tests.agents.support import call

    model = ScriptedModel([[call("weigh", thing="an anvil"), call("weigh", thing="a feather")], {"grams": 9}])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "Weigh.")
        await h.idle()
        await run.result(5)
        items = [item async for item in run.stream()]
    of_first = [item for item in items if item.step_key == "speaker#0/turn0/model"]
    written: dict[int, str] = {}
    for item in of_first:
        if item.kind == "tool_call":
            current = item.data["index"]
            assert item.data["name"] == "weigh"
        elif item.kind == "tool_args.delta":
            written[current] = written.get(current, "") + item.data
    assert written == {0: '{"thing":"an anvil"}', 1: '{"thing":"a feather"}'}
    second = [item for item in items if item.step_key == "speaker#0/turn1/model"]
    assert assembled(second) == '{"grams":9}'


async def test_a_reader_is_told_of_each_approval_when_it_is_asked_for_and_when_it_is_decided(
    sqlite_url: str,
) -> None:
    app = App("stream")

    @app.function
    async def flow(ctx: Context[None], step: Step) -> list[bool]:
        return [(await step.approval(f"may {number}", title="May I?")).approved for number in range(2)]

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(flow)
        told: list[tuple[str, str | None, Any]] = []
        async for item in run.stream():
            if item.kind == "approval.pending":
                decision = Approve() if item.step_key == "may 0" else Deny()
                digest = item.data["args_digest"]
                await app.approvals.decide(item.data["id"], decision, by="ana", args_digest=digest)
            if item.kind.startswith(("approval.", "step.")):
                told.append((item.kind, item.step_key, item.seq))
        assert await run.result(5) == [True, False]
        again = [item.kind async for item in run.stream()]
    assert told[0][:2] == ("approval.pending", "may 0")
    assert ("step.completed", "may 0") in [(kind, key) for kind, key, _ in told]
    numbers = [seq for kind, _, seq in told if kind.startswith("step.")]
    assert numbers == sorted(set(numbers))
    # What has ended waits for nobody: its history is its steps.
    assert again == ["step.completed", "step.completed", "done"]
