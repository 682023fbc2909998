"""Exceptions through the database: agentflow's own keep their class, others become `StepError`."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import errors
from agentflow.approvals import ApprovalRequest, ApprovalStatus
from agentflow.codec import decode_error, encode_error, error_from
from agentflow.errors import AgentflowError, InvalidInput, NonRetriable, RateLimited, RunFailed, StepError
from agentflow.runs import ErrorInfo
from agentflow.stored_errors import (
    ATTRIBUTES_CAP,
    MESSAGE_CAP,
    TRACEBACK_CAP,
    register_error_attribute,
)


def through(error: BaseException) -> AgentflowError:
    return error_from(decode_error(encode_error(error)), step_id="charge", attempts=3)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


class CardDeclined(ValueError):
    def __init__(self, message: str, **attributes: Any) -> None:
        super().__init__(message)
        vars(self).update(attributes)


REQUEST = ApprovalRequest(
    id="apr_1",
    run_id="run_1",
    step_key="a",
    tool="refund",
    title="Refund",
    args={"amount": 5},
    args_digest="d",
    status=ApprovalStatus.APPROVED,
    requested_at=datetime(2025, 1, 1, tzinfo=UTC),
    expires_at=datetime(2025, 1, 4, tzinfo=UTC),
)

OWN: list[AgentflowError] = [
    errors.SignalConflict("two wait"),
    errors.InvokeTimeout("late"),
    errors.NoWaiter("nobody"),
    errors.OutputInvalid("bad"),
    errors.ProviderError(
        "busy", provider="openai", model="gpt", status=500, billed="possible", retriable=True
    ),
    errors.RateLimited("slow", provider="anthropic", status=429, retry_after=12.5, retriable=True),
    errors.Refused("no", billed="yes"),
    errors.ContextTooLong("long", code="context_length_exceeded"),
    errors.RunFailed("run_1", ErrorInfo(name="ValueError", message="x", step_id="a")),
    errors.RunCancelled("run_1", "by ana"),
    errors.RunSkipped("run_1"),
    errors.StepError(
        "inner", name="ValueError", message="x", attempts=2, attributes={"code": 1}, traceback="T"
    ),
    errors.AlreadyDecided("decided", request=REQUEST),
    errors.NestedStep("nested"),
    errors.LimitExceeded("limit"),
    errors.Unserialisable("at $"),
    errors.InvalidInput("bad"),
    errors.NotFound("gone"),
    errors.ToolFailed("tool"),
    errors.ModelRetry("again"),
    errors.Poisoned("code"),
    errors.ReplayMismatch("code"),
    errors.BudgetExceeded("money"),
    errors.GuardrailTripped("guard"),
    errors.InDoubt("doubt"),
]


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_an_error_of_agentflow_comes_back_as_its_class_with_message_and_fields(error: AgentflowError) -> None:
    back = through(raised(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_every_error_of_the_tree_is_known_or_stands_for_a_failed_step() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        back = through(kind.__new__(kind, "x"))
        as_step_error = kind in (AgentflowError, errors.NonRetriable, errors.RetryAfter)
        assert type(back) is (StepError if as_step_error else kind)


@pytest.mark.parametrize("error", [NonRetriable("no"), errors.RetryAfter(5, "later")])
def test_what_only_says_how_to_retry_comes_back_as_the_steps_failure(error: AgentflowError) -> None:
    back = through(error)
    assert isinstance(back, StepError)
    assert (back.step_id, back.name, back.message, back.attempts) == (
        "charge",
        type(error).__name__,
        str(error),
        3,
    )


def test_a_foreign_error_comes_back_as_step_error_with_all_that_can_be_told() -> None:
    back = through(raised(CardDeclined("insufficient funds", code="51", pair=(1, 2), amount=5.5)))
    assert isinstance(back, StepError)
    assert (back.name, back.message) == ("CardDeclined", "insufficient funds")
    assert back.attributes == {"code": "51", "pair": [1, 2], "amount": 5.5}
    assert back.traceback is not None
    assert "in raised" in back.traceback
    assert "CardDeclined: insufficient funds" in back.traceback
    assert "charge" in str(back)


def test_attributes_that_are_private_or_not_plain_json_are_left_out() -> None:
    error = CardDeclined(
        "x",
        _secret=1,
        when=datetime(2025, 1, 1, tzinfo=UTC),
        nan=float("nan"),
        args=(1,),
        ok=[],
        **{"a b": 1},
    )
    assert decode_error(encode_error(error)).attributes == {"ok": []}


def test_a_subclass_of_an_own_error_comes_back_as_the_nearest_own_class() -> None:
    class OpenAIRateLimited(RateLimited):
        pass

    class MyFinal(NonRetriable):
        pass

    class Mine(AgentflowError):
        pass

    class RunFailedElsewhere(Exception):
        pass

    RunFailedElsewhere.__name__ = "RunFailed"
    back = through(OpenAIRateLimited("slow", retry_after=3))
    assert type(back) is RateLimited
    assert back.retry_after == 3
    assert decode_error(encode_error(OpenAIRateLimited("slow"))).name == "OpenAIRateLimited"
    assert [type(through(kind("x"))) for kind in (MyFinal, Mine, RunFailedElsewhere)] == [StepError] * 3


def test_the_traceback_may_be_left_out() -> None:
    assert decode_error(encode_error(raised(OSError("x")), traceback=False)).traceback is None
    assert decode_error(encode_error(OSError("x"))).traceback is None


def test_each_part_is_capped_and_a_long_message_does_not_hide_the_frames() -> None:
    error = raised(CardDeclined("m" * 100_000, large="x" * 100_000, small=1))
    stored = decode_error(encode_error(error))
    assert len(stored.message) == MESSAGE_CAP
    assert stored.traceback is not None
    assert len(stored.traceback) <= TRACEBACK_CAP
    assert "in raised" in stored.traceback
    assert stored.attributes == {"small": 1}


def test_of_a_long_traceback_the_end_stays() -> None:
    error: BaseException = OSError("the first")
    for n in range(200):
        following = ValueError(f"number {n}")
        following.__cause__ = raised(error)
        error = following
    stored = decode_error(encode_error(raised(error)))
    assert stored.traceback is not None
    assert len(stored.traceback) <= TRACEBACK_CAP
    assert stored.traceback.rstrip().endswith("ValueError: number 199")


def test_all_attributes_together_are_capped() -> None:
    error = CardDeclined("x", **{f"a{n}": "x" * 1000 for n in range(100)})
    assert ATTRIBUTES_CAP / 2 < len(encode_error(error)) < ATTRIBUTES_CAP * 2


def test_text_that_no_database_takes_is_written_in_another_way() -> None:
    stored = decode_error(encode_error(OSError("a\x00b\ud800c")))
    assert stored.message == "a\\x00b\\ud800c"


def test_an_exception_that_cannot_be_printed_is_stored_all_the_same() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert decode_error(encode_error(raised(Silent()))).message == "<Silent without a printable message>"


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"name":1}', '{"name":"a","message":"b"}', "[" * 10_000, '"\ud800"']
)
def test_a_broken_row_is_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not an exception"):
        decode_error(text)


@pytest.mark.parametrize(
    "own", ["SystemExit", "os.system", "Billed", "Any", "annotations", "__builtins__", ""]
)
def test_a_name_from_the_text_never_reaches_beyond_the_tree_of_errors(own: str) -> None:
    stored = json.loads(encode_error(OSError("x"))) | {"own": own}
    assert type(error_from(decode_error(json.dumps(stored)), step_id="a")) is StepError


def test_a_row_cannot_overwrite_what_makes_an_exception_work() -> None:
    stored = json.loads(encode_error(errors.RateLimited("x")))
    stored["attributes"] |= {"args": [1], "__class__": 1, "with_traceback": 1, "__traceback__": 1}
    back = error_from(decode_error(json.dumps(stored)), step_id="a")
    assert type(back) is RateLimited
    assert str(back) == "x"
    raised(back)


def test_fields_missing_from_an_older_row_have_their_defaults() -> None:
    stored = json.loads(encode_error(errors.RateLimited("x"))) | {"attributes": {}}
    back = error_from(decode_error(json.dumps(stored)), step_id="a")
    assert isinstance(back, RateLimited)
    assert (back.billed, back.retriable, back.retry_after) == ("no", False, None)


def test_a_field_that_does_not_validate_is_invalid_input() -> None:
    stored = json.loads(encode_error(RunFailed("run_1", ErrorInfo(name="a", message="b"))))
    stored["attributes"]["error"] = {"name": 1}
    with pytest.raises(InvalidInput, match=r"RunFailed\.error"):
        error_from(decode_error(json.dumps(stored)), step_id="a")


def test_a_higher_layer_tells_the_type_of_its_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reply(BaseModel):
        text: str

    error = errors.OutputInvalid("bad")
    vars(error)["response"] = Reply(text="x" * 50_000)
    monkeypatch.setattr("agentflow.stored_errors._attribute_types", {})
    register_error_attribute(errors.OutputInvalid, "response", Reply)
    back = through(error)
    assert isinstance(back, errors.OutputInvalid)
    assert back.response == Reply(text="x" * 50_000)
