"""`step.ai.wrap`: a call of a provider's own SDK as one durable step.

It is a model call like `step.ai.infer`: the same kind of step, the same rows in the ledger, the same errors. Only the
memo is another one: the JSON of the SDK's object, which is built again from it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from agentflow.errors import InvalidInput
from agentflow.inference import Asked, ask_model, check_unchanged
from agentflow.models.memo import Question
from agentflow.models.messages import to_messages
from agentflow.models.sdk_calls import SdkCall, check_sdk_call, describe_arguments, provider_of
from agentflow.models.wrapped import WrappedCall, model_of, open_wrapped

if TYPE_CHECKING:
    from agentflow.step import Step
    from agentflow.step_runner import Attempt


def wrap_call(step: Step, id: str, call: SdkCall, arguments: Mapping[str, Any]) -> Coroutine[Any, Any, Any]:
    """The step. Raises `ConfigurationError` at once for what cannot be one."""
    check_sdk_call(call, arguments)
    # Nobody reads this conversation: it gives the ledger and the replay the digest of what is asked.
    question = Question(messages=to_messages(describe_arguments(call, arguments)))
    made: list[WrappedCall] = []

    async def prepare(attempt: Attempt) -> Question:
        made[:] = [WrappedCall(call, arguments, in_thread=attempt.in_thread)]
        return question

    name = f"{provider_of(call)}:{model_of(call, arguments)}"
    asking = ask_model(step, id, prepare, name=name, models=lambda: made)
    return _object(step, asking, question, arguments)


async def _object(
    step: Step, asking: Coroutine[Any, Any, Asked], question: Question, arguments: Mapping[str, Any]
) -> Any:
    asked = await asking
    if not asked.is_new:
        check_unchanged(step, asked, question)
    try:
        return open_wrapped(asked.memo.answer.raw, arguments)
    except InvalidInput as error:
        from agentflow.step import runner_of

        raise runner_of(step).mismatch(f"step {asked.key!r}: {error}") from error
