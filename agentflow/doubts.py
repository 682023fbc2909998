"""A model call that is in doubt, put before a person: ask again, give it up, or say what the answer is."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from agentflow.approvals import Approval, Decision
from agentflow.errors import InDoubt
from agentflow.models.memo import ModelMemo, Question
from agentflow.models.output import output_spec
from agentflow.models.protocol import Capabilities
from agentflow.models.replies import encode_reply
from agentflow.models.response import ModelResponse, OutputSpec, RawAnswer
from agentflow.models.values import canonical_json
from agentflow.step_runner import RawId

if TYPE_CHECKING:
    from agentflow.step import Step

PERSON = "function:person"
"""The model that a person's own answer is said to come from."""
_POLICY = Approval(editable=())


async def decide(step: Step, id: str, doubt: InDoubt) -> Decision:
    """What a person wants done about it; the run waits durably. Raises the doubt itself when that is to give up."""
    decision = await step.approval(
        RawId(f"{id}/in-doubt"),
        title=f"{doubt.model or 'A model'} may have been paid for an answer that is lost. Ask again?",
        details={
            "what happened": str(doubt),
            "model": doubt.model,
            "provider_id": doubt.provider_id,
            "approve": "ask again, and perhaps pay twice",
            "deny": "fail",
            "respond": "go on with this answer: text, or the JSON of the output",
        },
        policy=_POLICY,
    )
    if decision.reason is not None:
        doubt.args = (f"{doubt.args[0]}: {_refused(decision)}",)
        raise doubt
    return decision


def _refused(decision: Decision) -> str:
    if decision.reason == "timeout":
        return "nobody decided in time"
    said = f": {decision.comment}" if decision.comment else ""
    return f"{decision.by} denied to ask again{said}"


def memo_of_person(question: Question, value: Any) -> ModelMemo:
    """The memo of the answer that a person gave in the model's place."""
    spec = output_spec(question.output, capabilities=Capabilities(json_schema=True))
    request = question.request(PERSON, spec)
    provider, _, name = PERSON.partition(":")
    # Nobody is paid for it: a cost of None would stop an agent that has a limit of money.
    reply = ModelResponse(text=_text(value, spec), cost=Decimal(0))
    raw = encode_reply(reply, request, name=name)
    answer = RawAnswer(provider=provider, model=name, raw=raw, provider_id=raw["provider_id"])
    return ModelMemo.of(answer, request, question.keep)


def _text(value: Any, spec: OutputSpec | None) -> str:
    """What a model would have said: the value's JSON, in the wrapper that the output may have."""
    if isinstance(value, str) and (spec is None or not spec.wrapped):
        return value
    if spec is not None and spec.wrapped and not (isinstance(value, dict) and value.keys() == {"value"}):
        value = {"value": value}
    return canonical_json(value)
