"""Scripted models: a list of replies for one test, and a provider whose replies any process can repeat."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agentflow_scripted import GENERATIONS_FILE, Rule, Scripted
from pydantic import BaseModel

from agentflow.errors import ConfigurationError
from agentflow.models.answers import priced, read_answer
from agentflow.models.output import output_spec
from agentflow.providers import (
    Message,
    ModelRequest,
    ModelResponse,
    RawAnswer,
    TextDelta,
    ToolArgsDelta,
    ToolCall,
    ToolResult,
    Usage,
    resolve_model,
)
from agentflow.testing.scripted import ScriptedModel, ScriptExhausted


class Resolution(BaseModel):
    reply: str
    refunded: int


def asking(*messages: Any, **more: Any) -> ModelRequest:
    return ModelRequest(model="scripted:test", messages=list(messages) or ["Hi"], **more)


async def say(model: Any, request: ModelRequest) -> ModelResponse:
    response = model.parse((await model.request(request)).raw)
    assert isinstance(response, ModelResponse)
    return response


# --- ScriptedModel --------------------------------------------------------------------------------


async def test_replies_of_every_kind_are_given_in_order() -> None:
    async def later(request: ModelRequest) -> str:
        return f"heard {request.prompt}"

    spec = output_spec(Resolution, capabilities=ScriptedModel.capabilities)
    model = ScriptedModel(
        [
            "Hello",
            ToolCall(name="lookup", args={"id": "7"}),
            ["Both:", ToolCall(name="a"), ToolCall(name="b", id="mine")],
            Resolution(reply="Done", refunded=5),
            {"reply": "Done", "refunded": 6},
            ModelResponse(
                text="Whole", usage=Usage(input_tokens=10, output_tokens=2), finish_reason="length"
            ),
            lambda request: request.prompt.upper(),
            later,
        ]
    )

    hello, call, both = [await say(model, asking()) for _ in range(3)]
    outputs = [
        read_answer(model, await model.request(asking(output=spec)), spec=spec, output=Resolution).output
        for _ in range(2)
    ]
    whole, upper, heard = [await say(model, asking("hi")) for _ in range(3)]

    assert (hello.text, hello.finish_reason) == ("Hello", "stop")
    assert call.tool_calls == [ToolCall(index=0, id="call_0", name="lookup", args={"id": "7"})]
    assert call.finish_reason == "tool_calls"
    assert both.text == "Both:"
    assert [(c.index, c.id, c.name) for c in both.tool_calls] == [(0, "call_0", "a"), (1, "mine", "b")]
    assert outputs == [Resolution(reply="Done", refunded=5), Resolution(reply="Done", refunded=6)]
    assert (whole.usage.total_tokens, whole.finish_reason) == (12, "length")
    assert (upper.text, heard.text) == ("HI", "heard hi")
    assert (len(model.requests), model.remaining) == (8, 0)


async def test_an_exception_is_raised_and_counts_as_a_call() -> None:
    model = ScriptedModel([ValueError("overloaded"), "Hello"])
    with pytest.raises(ValueError, match="overloaded"):
        await model.request(asking())
    assert (await say(model, asking())).text == "Hello"
    assert len(model.requests) == 2


async def test_running_out_is_an_error_that_is_not_retried() -> None:
    model = ScriptedModel(["one"])
    await model.request(asking())
    with pytest.raises(ScriptExhausted, match=r"has 1 replies and was asked 2 times.*once more") as raised:
        await model.request(asking("once more"))
    failure = model.classify(raised.value)
    assert (failure.billed, failure.retriable) == ("no", False)


async def test_streaming_gives_the_text_in_pieces_and_the_same_answer() -> None:
    reply = ["A text of more than one piece.", ToolCall(name="lookup", args={"order_id": "A-1234"})]
    model = ScriptedModel([reply, reply])

    *deltas, answer = [event async for event in model.stream(asking())]

    assert answer == await model.request(asking())
    text = [delta.text for delta in deltas if isinstance(delta, TextDelta)]
    arguments = [delta for delta in deltas if isinstance(delta, ToolArgsDelta)]
    assert len(text) > 2
    assert "".join(text) == reply[0]
    assert json.loads("".join(delta.text for delta in arguments)) == {"order_id": "A-1234"}
    assert [delta.name for delta in arguments if delta.name] == ["lookup"]


async def test_a_raw_answer_is_json_and_tells_all_again() -> None:
    model = ScriptedModel([ModelResponse(text="Hi", cost="0.25", usage=Usage(input_tokens=3))])  # type: ignore[arg-type]
    stored = priced(model, await model.request(asking()))[0].model_dump_json()
    response = read_answer(model, RawAnswer.model_validate_json(stored))
    assert (response.text, str(response.cost), response.usage.input_tokens) == ("Hi", "0.25", 3)


# --- the provider `scripted:` ---------------------------------------------------------------------

RULES: list[dict[str, Any]] = [
    {"when": "order", "turn": 0, "calls": [{"name": "lookup", "args": {"text": "$prompt"}}]},
    {"after": "lookup", "text": "It says: $result"},
    {"when": "resolve", "output": {"reply": "For $prompt", "refunded": 5}},
    {"text": "I do not know.", "usage": {"input_tokens": 10, "output_tokens": 4}},
]


async def test_a_script_answers_by_what_is_asked() -> None:
    model = Scripted(RULES)

    first = await say(model, asking("Where is my ORDER?"))
    result = Message("tool", [ToolResult(first.tool_calls[0].id, {"status": "sent"})])
    second = await say(model, asking("Where is my ORDER?", *first.messages, result))
    third = await say(model, asking("Where is my ORDER?", *first.messages, result, *second.messages, "Why?"))
    spec = output_spec(Resolution, capabilities=model.capabilities)
    fourth = await model.request(asking("resolve 7", output=spec))

    assert first.tool_calls[0].args == {"text": "Where is my ORDER?"}
    assert second.text == 'It says: {"status":"sent"}'
    assert (third.text, third.usage.total_tokens) == ("I do not know.", 14)
    assert read_answer(model, fourth, spec=spec, output=Resolution).output == Resolution(
        reply="For resolve 7", refunded=5
    )


async def test_the_answer_depends_on_the_request_alone() -> None:
    one, another = Scripted(RULES), Scripted(RULES)
    await one.request(asking("something else first"))
    assert await one.request(asking("order")) == await another.request(asking("order"))


async def test_a_script_may_be_a_file_or_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "replies.json").write_text(json.dumps({"rules": RULES}))
    (tmp_path / "my_script.py").write_text(
        "RULES = [{'text': 'by rules'}]\nasync def reply(request):\n    return request.prompt[::-1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    assert (await say(resolve_model("scripted:replies.json"), asking("?"))).text == "I do not know."
    assert (await say(resolve_model("scripted:my_script:RULES"), asking())).text == "by rules"
    assert (await say(resolve_model("scripted:my_script:reply"), asking("abc"))).text == "cba"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere.json", "cannot be read"),
        ("json:no_such_name", "cannot be found"),
        ("no_such_module:rules", "scripted:module:attribute"),
        ([{"wen": "x"}], "wen"),
        ([{"when": "x", "text": "y"}], "Add a rule without conditions"),
    ],
)
async def test_a_script_that_cannot_be_followed_says_why(source: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        await Scripted(source).request(asking("Hi"))


async def test_generations_are_counted_on_disk_before_the_answer_is_given(tmp_path: Path) -> None:
    counted = tmp_path / "generations"
    model = Scripted([Rule(text="ok")], generations_file=counted)
    await asyncio.gather(*(model.request(asking(f"question {n}")) for n in range(5)))
    assert len(counted.read_text().splitlines()) == 5


def test_another_process_gives_the_same_answer_and_counts_too(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(json.dumps(RULES))
    code = (
        "import asyncio\nfrom agentflow.providers import *\n"
        "model = resolve_model('scripted:script.json')\n"
        "answer = asyncio.run(model.request(ModelRequest(model='scripted:x', messages='order')))\n"
        "print(answer.model_dump_json())\n"
    )
    environment = os.environ | {GENERATIONS_FILE: str(tmp_path / "counted")}
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    }
    assert len(told) == 1
    assert len((tmp_path / "counted").read_text().splitlines()) == 2
