"""The billing states: which may follow which, and what the billing policy makes of a doubt."""

from __future__ import annotations

from typing import Any

import pytest

from agentflow.errors import ProviderError
from agentflow.models.ledger import (
    Billing,
    CallState,
    NextAct,
    act_on,
    advance,
    billed_in_sum,
    state_after,
    state_after_crash,
)
from agentflow.models.protocol import Capabilities, Failure

S = CallState
PLAIN, LOOKUP = Capabilities(), Capabilities(lookup=True)


def test_a_call_goes_from_planned_to_done() -> None:
    state = S.PLANNED
    for following in (S.ATTEMPTED, S.SUBMITTED, S.IN_DOUBT, S.RECOVERED, S.DONE):
        state = advance(state, following)
    assert state.is_final


@pytest.mark.parametrize(
    ("state", "following"),
    [
        (S.PLANNED, S.DONE),  # never without its attempt on record
        (S.DONE, S.ATTEMPTED),  # a committed answer is never requested again
        (S.DONE, S.IN_DOUBT),
        (S.FAILED, S.ATTEMPTED),
        (S.NOT_BILLED, S.DONE),
        (S.SUBMITTED, S.ATTEMPTED),
    ],
)
def test_what_would_lose_or_repeat_a_bill_is_refused(state: CallState, following: CallState) -> None:
    with pytest.raises(ValueError, match=f"{state} cannot become {following}"):
        advance(state, following)


@pytest.mark.parametrize(
    ("billed", "state"), [("no", S.NOT_BILLED), ("possible", S.IN_DOUBT), ("yes", S.FAILED)]
)
def test_a_failure_leads_where_its_bill_says(billed: Any, state: CallState) -> None:
    assert state_after(Failure(ProviderError("x", billed=billed))) is state
    advance(S.ATTEMPTED, state)


def test_a_crash_leaves_an_attempt_in_doubt_and_a_submitted_job_findable() -> None:
    assert state_after_crash(S.ATTEMPTED) is S.IN_DOUBT
    assert state_after_crash(S.SUBMITTED) is S.SUBMITTED
    assert state_after_crash(S.DONE) is S.DONE


@pytest.mark.parametrize(
    ("state", "billing", "capabilities", "looked_up", "act"),
    [
        (S.NOT_BILLED, "strict", PLAIN, False, NextAct.RETRY),
        (S.IN_DOUBT, "at_least_once", PLAIN, False, NextAct.RETRY),
        (S.IN_DOUBT, "at_least_once", LOOKUP, False, NextAct.RETRY),
        (S.IN_DOUBT, "recover", PLAIN, False, NextAct.RETRY),
        (S.IN_DOUBT, "recover", LOOKUP, False, NextAct.RECOVER),
        (S.IN_DOUBT, "recover", LOOKUP, True, NextAct.RETRY),
        (S.IN_DOUBT, "strict", PLAIN, False, NextAct.ASK_PERSON),
        (S.IN_DOUBT, "strict", LOOKUP, False, NextAct.RECOVER),
        (S.IN_DOUBT, "strict", LOOKUP, True, NextAct.ASK_PERSON),
        (S.SUBMITTED, "recover", PLAIN, False, NextAct.RECOVER),
    ],
)
def test_the_policy_decides_what_a_doubt_leads_to(
    state: CallState, billing: Billing, capabilities: Capabilities, looked_up: bool, act: NextAct
) -> None:
    assert act_on(state, billing=billing, capabilities=capabilities, looked_up=looked_up) is act


def test_what_is_not_retriable_is_not_asked_again() -> None:
    for state in (S.NOT_BILLED, S.IN_DOUBT):
        assert act_on(state, billing="at_least_once", capabilities=PLAIN, retriable=False) is NextAct.FAIL


def test_a_call_is_billed_as_its_worst_attempt() -> None:
    assert billed_in_sum([]) == "no"
    assert billed_in_sum(["no", "possible"]) == "possible"
    assert billed_in_sum(["no", "yes", "possible"]) == "yes"
