"""One tool call of a turn: validated, guarded, decided by a person where it must be, run, and answered to the model."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from agentflow.agents.guardrails import Guardrail
from agentflow.agents.once import CHOICES, call_once, is_in_doubt, policy_in_doubt, result_of
from agentflow.agents.signatures import Arguments, ArgumentsInvalid
from agentflow.agents.surroundings import Surroundings
from agentflow.agents.tools import ResultCodec, Tool, ToolContext
from agentflow.approvals import Approval, Decision, approval_digest
from agentflow.codec import Codec, codec_for
from agentflow.errors import DigestMismatch, InDoubt, ModelRetry, StepError, ToolFailed
from agentflow.models.messages import ToolCall, ToolResult
from agentflow.models.origin import why_unreadable
from agentflow.runs import StepKind
from agentflow.step import Step, ask_person, runner_of, take_key, within
from agentflow.step_runner import Attempt, Body, RawId, TakenKey

_RESULT = ResultCodec()
_FLAG: Codec[bool] = codec_for(bool)
_ARGUMENTS: Codec[dict[str, Any]] = codec_for(dict[str, Any])
_NOTHING: Codec[None] = codec_for(None)

NO_DECISION = "Nobody decided in time, so the call was denied. It was not made."
DENIED = "A person denied the call. It was not made."


class Answer(Protocol):
    """What becomes of one call of a turn."""

    is_asking: bool
    """Whether it waits for a person."""

    async def answer(self) -> ToolResult: ...


class Told:
    """A call that is answered without a step."""

    is_asking = False

    def __init__(self, call: ToolCall, text: str, *, is_error: bool = True) -> None:
        self._result = ToolResult(call_id=call.id, content=text, is_error=is_error)

    async def answer(self) -> ToolResult:
        return self._result


class _NotMade(Exception):
    """The call is not made; the text is told to the model."""


class Made:
    """A call of a tool. All its step keys are taken when it is made, so that they do not depend on its task."""

    def __init__(
        self,
        call: ToolCall,
        tool: Tool[..., Any],
        *,
        step: Step,
        turn: int,
        around: Surroundings,
        guardrails: Sequence[Guardrail],
    ) -> None:
        self.is_asking = False
        self._call = call
        self._tool = tool
        self._step = step
        self._around = around
        self._id = f"turn{turn}/{call.index}:{tool.name}"
        self._guardrails = [(guardrail, self._take(guardrail.name)) for guardrail in guardrails]
        self._when_key = self._take("when") if tool.approval and tool.approval.when else ""
        self._approval_key = self._take("approval") if tool.approval else ""
        self._check_key = self._take("check") if tool.approval and not self._is_step else ""
        self.key: str = take_key(step, RawId(self._id)) if tool.step_parameter is None else ""

    @property
    def _is_step(self) -> bool:
        """Whether the tool is called in the body of a step."""
        return self._tool.step_parameter is None

    def _take(self, what: str) -> TakenKey:
        return take_key(self._step, RawId(f"{self._id}/{what}"))

    async def answer(self) -> ToolResult:
        try:
            content, is_error = await self._made(), False
        except (ArgumentsInvalid, ModelRetry, ToolFailed, _NotMade) as error:
            content, is_error = str(error), True
        return ToolResult(call_id=self._call.id, content=content, is_error=is_error)

    async def _made(self) -> Any:
        arguments = await self._guarded(self._asked_for())
        policy = self._tool.approval
        if policy is None or not await self._has_to_ask(policy, arguments):
            return await self._run(arguments, None)
        decision = await self._decision(policy, arguments)
        if decision.reason == "timeout":
            raise _NotMade(NO_DECISION)
        if decision.reason == "denied":
            raise _NotMade(decision.comment or DENIED)
        if not decision.approved:
            return decision.value
        if decision.edited is None:
            return await self._run(arguments, arguments.json)
        return await self._run(self._tool.validate(decision.edited), decision.edited)

    def _asked_for(self) -> Arguments:
        if self._call.invalid_args is not None:
            raise ArgumentsInvalid(why_unreadable(self._call.invalid_args))
        return self._tool.validate(self._call.args)

    async def _guarded(self, arguments: Arguments) -> Arguments:
        for guardrail, key in self._guardrails:
            look = functools.partial(self._look, guardrail, arguments.json)
            passed = await self._perform(key, Body(StepKind.RUN, guardrail.name, look, _ARGUMENTS))
            arguments = self._tool.validate(passed)
        return arguments

    async def _look(self, guardrail: Guardrail, value: dict[str, Any], attempt: Attempt) -> Any:
        return await guardrail.look(attempt, await self._context(attempt), value)

    async def _has_to_ask(self, policy: Approval, arguments: Arguments) -> bool:
        """What `Approval.when` says; asked once."""
        when = policy.when
        if when is None:
            return True

        async def ask(attempt: Attempt) -> bool:
            answer: Any = await attempt.in_thread(functools.partial(when, self._tool.plain(arguments)))
            return bool(await answer if inspect.isawaitable(answer) else answer)

        answer: bool = await self._perform(self._when_key, Body(StepKind.RUN, "when", ask, _FLAG))
        return answer

    async def _decision(self, policy: Approval, arguments: Arguments) -> Decision:
        title = f"{self._around.agent} wants to call {self._tool.name}"
        return await self._ask(self._approval_key, title, None, arguments.json, policy)

    async def _ask(
        self, key: str, title: str, details: Any, args: dict[str, Any], policy: Approval
    ) -> Decision:
        self.is_asking = True
        try:
            return await ask_person(
                self._step,
                key,
                tool=self._tool.name,
                title=title,
                details=details,
                args=args,
                policy=policy,
            )
        finally:
            self.is_asking = False

    async def _run(self, arguments: Arguments, approved: dict[str, Any] | None) -> Any:
        """Call the tool. `approved` is what a person agreed to, where one was asked."""
        if not self._is_step:
            if approved is not None:
                await self._check_approved(approved)
            return await self._run_steps(arguments)

        async def call(attempt: Attempt) -> Any:
            if approved is not None:
                await self._check_digest(approved, attempt)
            values = dict(arguments.values)
            if self._tool.context_parameter is not None:
                values[self._tool.context_parameter] = await self._context(attempt)
            bound = functools.partial(self._tool.function, **values)
            run = functools.partial(self._called, attempt, bound)
            return await (call_once(attempt, run, tool=tool) if tool.effect == "once" else run())

        tool = self._tool
        body = Body(StepKind.RUN, tool.name, call, _RESULT, tool.retry, tool.timeout)
        if tool.effect == "once":
            return await self._perform_once(body, arguments.json)
        return await self._perform(self.key, body)

    async def _called(self, attempt: Attempt, bound: Callable[[], Any]) -> Any:
        result = bound() if self._tool.is_async else await attempt.in_thread(bound)
        return await result if inspect.isawaitable(result) else result

    async def _perform_once(self, body: Body, args: dict[str, Any]) -> Any:
        """Run the step; while nobody knows what has become of it, ask a person."""
        key = self.key
        while True:
            try:
                return await self._perform(key, body)
            except (InDoubt, StepError) as error:
                if not is_in_doubt(error):
                    raise
                doubt = error
            title = f"Nobody knows whether {self._tool.name} has happened"
            details = {"why": str(doubt), **CHOICES}
            policy = policy_in_doubt(self._tool)
            decision = await self._ask(self._take("in-doubt"), title, details, args, policy)
            if not decision.approved:
                return result_of(decision, doubt)
            key = self._take("again")

    async def _run_steps(self, arguments: Arguments) -> Any:
        """Call a tool that runs steps of its own: its step keys begin with the call's."""
        tool, values = self._tool, dict(arguments.values)
        assert tool.step_parameter is not None
        values[tool.step_parameter] = within(self._step, self._id)
        if tool.context_parameter is not None:
            values[tool.context_parameter] = await self._around.tool_context(self._id, tool=tool.name)
        result = await tool.function(**values)
        return _RESULT.round_trip(result, f"tool {tool.name!r}")[1]

    async def _check_approved(self, approved: dict[str, Any]) -> None:
        """The same, as a step, for what is no body of a step itself."""
        check = functools.partial(self._check_digest, approved)
        await self._perform(self._check_key, Body(StepKind.RUN, "check", check, _NOTHING))

    async def _check_digest(self, approved: dict[str, Any], attempt: Attempt) -> None:
        """What runs now has to be what the server's row says a person agreed to."""
        digest = approval_digest(tool=self._tool.name, args=approved, title="", details=None)
        stored = await attempt.approved_digest(self._approval_key)
        if stored != digest:
            raise DigestMismatch(
                f"tool call {self._id!r} of agent {self._around.agent!r} was approved for other arguments than those "
                "it would run with now: it was not made. Rerun the run, so that a person is asked again"
            )

    async def _context(self, attempt: Attempt) -> ToolContext[Any]:
        return await self._around.tool_context(attempt.key, attempt=attempt.number, tool=self._tool.name)

    def _perform(self, key: str, body: Body) -> Coroutine[Any, Any, Any]:
        return runner_of(self._step).perform(key, body)


async def answer_all(answers: Sequence[Answer]) -> list[ToolResult]:
    """The answers to the calls of one turn, made at once, in the order of the calls.

    When one fails for good, those that run are let end, and those that wait for a person are withdrawn.
    """
    if len(answers) == 1:
        return [await answers[0].answer()]
    tasks = [asyncio.create_task(answer.answer()) for answer in answers]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for answer, task in zip(answers, tasks, strict=True):
            if not task.done() and answer.is_asking:
                task.cancel()
        if not all(task.done() for task in tasks):
            await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
    errors = [task.exception() for task in tasks if not task.cancelled()]
    for error in errors:
        if error is not None:
            raise error
    return [task.result() for task in tasks]
