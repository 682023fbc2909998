"""A script: rules that tell the reply to a request from the request alone, so that any process gives the
same one.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agentflow.errors import ConfigurationError
from agentflow.providers import ModelRequest, ModelResponse, ToolCall, Usage


class Rule(BaseModel):
    """One reply and when it is given. Conditions that are left out hold always; the first rule that fits
    replies.

    `when`: the last user message contains this, upper or lower case. `instructions`: the instructions do.
    `turn`: how many times the model has answered since that message. `after`: the results that wait for an
    answer are of this tool.

    The reply is `text`, `calls` (`{"name": ..., "args": {...}}`), both, or `output` for a structured one.
    In texts, `$prompt` is the last user message and `$result` the last tool result. `delay_seconds` makes
    the model slow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: str | None = None
    instructions: str | None = None
    turn: int | None = None
    after: str | None = None
    text: str | None = None
    calls: tuple[ToolCall, ...] = ()
    output: Any = None
    usage: Usage | None = None
    delay_seconds: float = 0.0

    def fits(self, request: ModelRequest) -> bool:
        return (
            (self.when is None or self.when.lower() in request.prompt.lower())
            and (
                self.instructions is None or self.instructions.lower() in (request.instructions or "").lower()
            )
            and (self.turn is None or self.turn == turn_of(request))
            and (self.after is None or self.after in tools_answered(request))
        )

    def reply(self, request: ModelRequest) -> Any:
        """What a model replies by this rule: text, calls, both, a structured output, or these with their
        usage.
        """
        words = {"prompt": request.prompt, "result": last_result(request)}
        if self.output is not None:
            return _filled(self.output, words)
        calls = [call.model_copy(update={"args": _filled(call.args, words)}) for call in self.calls]
        text = _filled(self.text or "", words)
        if self.usage is not None:
            return ModelResponse(text=text, tool_calls=calls, usage=self.usage)
        return [text, *calls] if text or not calls else calls


class Script(BaseModel):
    """Rules in the order in which they are tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, rules: Script | Sequence[Rule | dict[str, Any]], *, source: str) -> Script:
        """Raises `ConfigurationError` that names the `source`."""
        if isinstance(rules, Script):
            return rules
        try:
            return cls.model_validate({"rules": rules} if not isinstance(rules, dict) else rules)
        except ValidationError as error:
            raise ConfigurationError(f"the script {source} does not validate: {error}") from error

    @classmethod
    def read(cls, path: Path) -> Script:
        """A script from a JSON file: `{"rules": [...]}` or the list alone."""
        try:
            rules = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"the script {path} cannot be read: {error}") from error
        except ValueError as error:
            raise ConfigurationError(f"the script {path} is not JSON: {error}") from error
        return cls.of(rules, source=str(path))

    def rule_for(self, request: ModelRequest) -> Rule:
        for rule in self.rules:
            if rule.fits(request):
                return rule
        raise ConfigurationError(
            f"none of the script's {len(self.rules)} rules fits turn {turn_of(request)} of the prompt "
            f"{request.prompt!r} with results of {sorted(tools_answered(request)) or 'no tool'}. Add a rule "
            "without conditions as the last one"
        )


def turn_of(request: ModelRequest) -> int:
    """How many times the model has answered since the last user message."""
    turn = 0
    for message in reversed(request.messages):
        if message.role == "user":
            break
        turn += message.role == "assistant"
    return turn


def tools_answered(request: ModelRequest) -> set[str]:
    """The tools whose results wait for an answer."""
    waiting: set[str] = set()
    for message in reversed(request.messages):
        if message.role == "tool":
            waiting |= {result.call_id for result in message.tool_results}
        elif message.role == "assistant":
            return {call.name for call in message.tool_calls if call.id in waiting}
        else:
            return set()
    return set()


def last_result(request: ModelRequest) -> str:
    """The last tool result as the model sees it, `""` when there is none since the last user message."""
    last = request.messages[-1]
    return last.tool_results[-1].text if last.role == "tool" else ""


def _filled(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, str):
        return string.Template(value).safe_substitute(words)
    if isinstance(value, dict):
        return {key: _filled(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    return value
