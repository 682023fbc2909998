"""The loop of an agent's run: ask the model, make the tool calls it wants, and again, until it gives its output.

Nothing of it is stored but the steps. On replay the loop runs again over their memos and comes to where it stood.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic

from agentflow.agents.calls import Answer, Made, Told, answer_all
from agentflow.agents.conversation import Conversation
from agentflow.agents.guardrails import Guardrail, On
from agentflow.agents.handoffs import handoff_name
from agentflow.agents.limits import Budget, Rest, Spent, SubAgents
from agentflow.agents.pins import Kept, Pinned, pin, pinned_models, told_of_version
from agentflow.agents.result import AgentResult, Prompt, T
from agentflow.agents.subagents import AgentTool, Delegated, Invoked
from agentflow.agents.surroundings import Surroundings
from agentflow.agents.threads import Turn
from agentflow.agents.tools import FunctionTool
from agentflow.agents.toolset import Toolset
from agentflow.codec import Codec, codec_for
from agentflow.errors import (
    AgentflowError,
    ConfigurationError,
    InvalidInput,
    NotFound,
    OutputInvalid,
    Refused,
)
from agentflow.inference import Asked, ask_model, check_unchanged
from agentflow.models.deferral import billing_under
from agentflow.models.ledger import CallState
from agentflow.models.memo import Question, name_of, read_memo
from agentflow.models.messages import Message, Origin, ToolCall, ToolResult, to_messages
from agentflow.models.output import FINAL_ANSWER, ask_again
from agentflow.models.registry import resolve_model
from agentflow.models.response import ModelResponse
from agentflow.runs import StepKind
from agentflow.step import Step, runner_of, take_key
from agentflow.step_runner import Attempt, Body, RawId
from agentflow.store.stored_types import Reservation
from agentflow.telling import DeltaListener

if TYPE_CHECKING:
    from agentflow.agents.agent import Agent

logger = logging.getLogger("agentflow.agents")

MOST_ASKS_AGAIN = 2
"""How often an output that does not validate is asked for again."""


class Loop(Generic[T]):
    """One run of an agent inside a run. `step` is scoped to it."""

    def __init__(
        self,
        agent: Agent[T, Any],
        step: Step,
        prompt: Prompt,
        *,
        deps: Any = None,
        thread: str | None = None,
        budget: Rest | None = None,
        on_delta: DeltaListener | None = None,
    ) -> None:
        self._first = agent
        self._active: Agent[Any, Any] = agent
        self._step = step
        self._runner = runner_of(step)
        self._prompt = prompt
        self._deps = deps
        self._budget = Budget(agent.name, agent.limits, budget)
        self._on_delta = on_delta
        self._turn = None if thread is None else Turn(step, thread)
        self._said = Conversation(())
        self._last_tokens = 0
        """Of the last model call, where nothing was summarised since."""
        self._spent = Spent()
        self._asked_again = 0
        self._steps: list[str] = []
        self._asked = ""
        """The key of the last model call."""
        self._pins: dict[str, Pinned] = {}
        self._around: dict[str, Surroundings] = {}
        self._tools = Toolset(step)
        self._unpaid: list[str] = []
        self._started_at: int | None = None

    async def execute(self) -> AgentResult[T]:
        """Go on until there is an output; on a thread, from what was said there and to be kept there."""
        await self._check_registered()
        if self._turn is None:
            self._said = Conversation(await self._prompted())
            return await self._go_on()
        earlier = await self._turn.begin()
        try:
            self._said = Conversation(await self._prompted(), earlier=earlier.said(), summary=earlier.summary)
            result = await self._go_on()
        except AgentflowError:
            await self._turn.leave()
            raise
        await self._turn.end(
            self._said.own,
            earlier=earlier,
            summary=self._said.summary,
            summary_upto=earlier.first_n + self._said.cut,
        )
        return result

    async def _go_on(self) -> AgentResult[T]:
        while True:
            await self._compact()
            try:
                response = await self._ask()
            except OutputInvalid as invalid:
                self._ask_again(invalid)
                continue
            self._said.add(*_to_go_on_from(response))
            if response.finish_reason in ("refusal", "content_filter"):
                raise self._refusal(response)
            if response.finish_reason == "pause":
                continue
            if is_final(response):
                self._answer_the_rest(response.tool_calls, "Not called: the final answer was given.")
                return await self._result(response)
            await self._make_calls(response.tool_calls)

    # ------------------------------------------------------------------------------------ before the first turn

    async def _check_registered(self) -> None:
        for agent in self._first.sub_agents():
            try:
                await self._runner.resolve_target(agent)
            except NotFound as error:
                raise ConfigurationError(
                    f"agent {self._first.name!r} needs agent {agent.name!r}, which app {self._runner.app!r} does not "
                    f"have: register {self._first.name!r} with app.add, or {agent.name!r} alone"
                ) from error

    async def _prompted(self) -> list[Message]:
        messages = to_messages(self._prompt)
        if not messages or messages[-1].role != "user" or not (messages[-1].text or messages[-1].media):
            raise InvalidInput(
                f"the prompt of agent {self._first.name!r} is empty, or does not end with the user"
            )
        told = messages[-1].text
        passed = await self._guarded("input", told, codec_for(str))
        if passed != told:
            messages[-1] = messages[-1].with_text(passed)
        return messages

    async def _guarded(self, place: On, value: Any, codec: Codec[Any]) -> Any:
        for guardrail in self._guardrails(place):
            look = functools.partial(self._look, guardrail, value)
            key = self._take(f"{place}/{guardrail.name}")
            value = await self._runner.perform(key, Body(StepKind.RUN, guardrail.name, look, codec))
        return value

    async def _look(self, guardrail: Guardrail, value: Any, attempt: Attempt) -> Any:
        context = await self._surroundings().tool_context(attempt.key, attempt=attempt.number)
        return await guardrail.look(attempt, context, value)

    def _guardrails(self, place: On) -> list[Guardrail]:
        return [guardrail for guardrail in self._active.guardrails if place in guardrail.on]

    # ------------------------------------------------------------------------------------------- the model call

    async def _ask(self) -> ModelResponse:
        """The model's next answer. Raises `OutputInvalid`, `BudgetExceeded`, `ProviderError`."""
        agent, turn = self._active, self._spent.turns
        self._budget.check_model_call(self._spent)
        await self._tools.prepare(agent)
        draft: dict[str, Pinned] = {}
        asking = ask_model(
            self._step,
            RawId(f"turn{turn}/model"),
            functools.partial(self._prepare, draft),
            name=name_of(agent.model),
            models=lambda: pinned_models(agent, draft["pinned"]),
            billing=billing_under(agent.billing, agent.settings.latency),
            agent=agent.name,
            shared=self._shared(),
            stream=agent.settings.latency is None,
            on_delta=self._on_delta,
        )
        asked = await asking
        self._take_in(asked)
        if not asked.is_new:
            pinned = self._pins[agent.name]
            check_unchanged(self._step, asked, self._question(pinned), because=told_of_version(agent, pinned))
        try:
            response = read_memo(asked.memo, (agent.model, *agent.fallback), output=agent.output)
        except OutputInvalid as invalid:
            if invalid.response is not None:
                self._spent = self._spent.with_answer(invalid.response)
            raise
        if asked.is_new and response.finish_reason == "length":
            logger.warning(
                "the answer %s of agent %r in run %s was cut at max_tokens: ModelSettings(max_tokens=) gives it more",
                asked.key,
                agent.name,
                self._runner.run_id,
            )
        self._spent = self._spent.with_answer(response)
        self._last_tokens = response.usage.total_tokens
        return response

    async def _prepare(self, draft: dict[str, Pinned], attempt: Attempt) -> Question:
        """What to ask, in the body of the step: instructions are rendered and the clock is read on the first run."""
        agent, kept = self._active, Kept()
        call = attempt.open_call
        # A job that is under way was asked for then, and is not given up for a deadline that passes meanwhile.
        is_under_way = call is not None and call.state == CallState.SUBMITTED
        now = call.started_at if call is not None and is_under_way else self._runner.now()
        if self._unpaid:
            calls = [call for run_id in self._unpaid for call in await attempt.list_model_calls(run_id)]
            kept.sub_agents = SubAgents.of(calls)
            self._budget.check_model_call(self._spent.with_sub_agents(kept.sub_agents))
        pinned = self._pins.get(agent.name)
        if pinned is None:
            pinned = kept.pinned = await pin(agent, self._tools.of(agent), self._runner.context, now)
        self._budget.check_deadline(pinned.started_at if self._started_at is None else self._started_at, now)
        draft["pinned"] = pinned
        keep = {name: value for name, value in kept.model_dump(mode="json").items() if value is not None}
        return self._question(pinned, keep=keep or None)

    def _question(self, pinned: Pinned, *, keep: dict[str, Any] | None = None) -> Question:
        return Question(
            messages=tuple(self._said.told),
            instructions=pinned.instructions,
            tools=tuple(pinned.tools),
            output=self._active.output,
            settings=self._active.settings,
            keep=keep,
        )

    def _shared(self) -> list[Reservation]:
        """What the agent may use together with others."""
        return [each.reservation(self._runner.now()) for each in self._budget.together]

    def _take_in(self, asked: Asked) -> None:
        """What was stored beside the answer."""
        self._asked = asked.key
        self._steps.append(asked.key)
        kept = Kept.model_validate(asked.memo.keep or {})
        if kept.pinned is not None:
            self._pins[self._active.name] = kept.pinned
            if told := told_of_version(self._active, kept.pinned):
                logger.info("run %s goes on with what it pinned: %s", self._runner.run_id, told)
            if self._started_at is None:
                self._started_at = kept.pinned.started_at
        if kept.sub_agents is not None:
            self._spent = self._spent.with_sub_agents(kept.sub_agents)
        self._unpaid.clear()

    def _ask_again(self, invalid: OutputInvalid) -> None:
        """Tell the model what is wrong with its answer. Raises the error when it was told often enough."""
        if invalid.response is None or self._asked_again == MOST_ASKS_AGAIN:
            raise invalid
        self._asked_again += 1
        self._said.add(*ask_again(invalid))
        others = [call for call in invalid.response.tool_calls if call.name != FINAL_ANSWER]
        self._answer_the_rest(others, "Not called: the final answer beside it does not validate.")

    async def _compact(self) -> None:
        """Have what was said before the last turns summarised, where the agent's compaction says so."""
        agent = self._active
        if agent.compaction is None:
            return
        cut = agent.compaction.place_to_cut(self._said, last_known=self._last_tokens)
        if cut is None:
            return
        self._budget.check_model_call(self._spent)
        question = agent.compaction.question(self._said, cut)
        models = (agent.compaction.model or agent.model, *agent.fallback)
        asked = await ask_model(
            self._step,
            self._take(f"turn{self._spent.turns}/compaction"),
            _asking(question),
            name=name_of(models[0]),
            models=lambda: [resolve_model(model) for model in models],
            agent=agent.name,
            shared=self._shared(),
        )
        self._steps.append(asked.key)
        if not asked.is_new:
            check_unchanged(self._step, asked, question)
        response = read_memo(asked.memo, models, output=str)
        self._spent = self._spent.with_summary(response)
        if response.finish_reason != "stop" or not response.text.strip():
            logger.warning(
                "agent %r of run %s: the model gave no summary (%s); the conversation goes on as it is",
                agent.name,
                self._runner.run_id,
                response.finish_reason,
            )
            return
        self._said.summarise(response.text, cut)
        self._last_tokens = 0

    # ------------------------------------------------------------------------------------------- the tool calls

    async def _make_calls(self, calls: Sequence[ToolCall]) -> None:
        """Make the calls of one turn, and let the model know what came of them."""
        self._budget.check_tool_calls(self._spent, len(calls))
        turn = self._spent.turns - 1
        is_shared = (
            sum(isinstance(self._tools.find(self._active, call.name), AgentTool) for call in calls) > 1
        )
        successor: Agent[Any, Any] | None = None
        answers: list[Answer] = []
        for call in calls:
            target = self._handoff(call)
            if target is None:
                answers.append(self._call(call, turn, is_shared=is_shared))
            elif successor is None:
                successor = target
                answers.append(Told(call, f"{target.name} goes on with the conversation.", is_error=False))
            else:
                answers.append(
                    Told(call, f"Not done: the conversation was handed to {successor.name} already.")
                )
        self._steps += [answer.key for answer in answers if isinstance(answer, Made) and answer.key]
        self._spent = self._spent.with_tool_calls(len(calls))
        results = await answer_all(answers)
        self._said.add(Message(role="tool", parts=[*results]))
        if successor is not None:
            self._active = successor

    def _handoff(self, call: ToolCall) -> Agent[Any, Any] | None:
        return next((agent for agent in self._active.handoffs if handoff_name(agent.name) == call.name), None)

    def _call(self, call: ToolCall, turn: int, *, is_shared: bool) -> Answer:
        tool = self._tools.find(self._active, call.name)
        if tool is None:
            known = ", ".join(self._known_tools()) or "no tool at all"
            return Told(call, f"There is no tool {call.name!r}. There is: {known}.")
        around, guardrails = self._surroundings(), self._guardrails("tool")
        if isinstance(tool, FunctionTool):
            invoked = Invoked(call, tool, step=self._step, turn=turn, around=around, guardrails=guardrails)
            self._unpaid.append(invoked.run_id)
            return invoked
        if not isinstance(tool, AgentTool):
            return Made(call, tool, step=self._step, turn=turn, around=around, guardrails=guardrails)
        together = f"{self._runner.run_id}:{self._asked}" if is_shared else None
        budget = self._budget.rest(self._spent, self._started_at or 0, turn=together)
        delegated = Delegated(
            call, tool, step=self._step, turn=turn, around=around, guardrails=guardrails, budget=budget
        )
        self._unpaid.append(delegated.run_id)
        return delegated

    def _known_tools(self) -> list[str]:
        """The tools that the model was told of and the code still has."""
        agent = self._active
        now = {handoff_name(other.name) for other in agent.handoffs} | {
            tool.name for tool in self._tools.of(agent)
        }
        return [tool.name for tool in self._pins[agent.name].tools if tool.name in now]

    def _answer_the_rest(self, calls: Sequence[ToolCall], why: str) -> None:
        """Every call gets its result, also those that are not made."""
        results = [ToolResult(call_id=call.id, content=why, is_error=True) for call in calls]
        if results:
            self._said.add(Message(role="tool", parts=[*results]))

    # -------------------------------------------------------------------------------------------------- the end

    async def _result(self, response: ModelResponse) -> AgentResult[T]:
        output = await self._guarded("output", response.output, codec_for(self._active.output, coerce=True))
        return AgentResult(
            output=output,
            messages=self._said.own,
            usage=self._spent.usage,
            cost=self._spent.cost,
            steps=[*self._tools.steps, *self._steps],
        )

    def _refusal(self, response: ModelResponse) -> Refused:
        provider = self._pins[self._active.name].model.partition(":")[0]
        told = f": {response.text[:500]}" if response.text else ""
        return Refused(
            f"the model of agent {self._active.name!r} refused to answer ({response.finish_reason}){told}",
            provider=provider,
            model=response.model,
            code=response.finish_reason,
            billed="yes",
        )

    def _surroundings(self) -> Surroundings:
        agent = self._active
        if agent.name not in self._around:
            self._around[agent.name] = Surroundings(
                agent.name, self._runner.context, deps=self._deps, factory=agent.deps
            )
        return self._around[agent.name]

    def _take(self, id: str) -> str:
        return take_key(self._step, RawId(id))


def _asking(question: Question) -> Callable[[Attempt], Awaitable[Question]]:
    async def prepare(_: Attempt) -> Question:
        return question

    return prepare


def is_final(response: ModelResponse) -> bool:
    """Whether the answer is the last one: no tool is to be called, or the `final_answer` tool was."""
    return not response.tool_calls or response.messages[-1].role == "tool"


def _to_go_on_from(response: ModelResponse) -> list[Message]:
    """What the answer adds to the conversation. After a pause it is sent back as the model's own last words."""
    if response.finish_reason != "pause":
        return response.messages
    return [
        message if message.origin else message.model_copy(update={"origin": Origin(provider="", items=[])})
        for message in response.messages
    ]
