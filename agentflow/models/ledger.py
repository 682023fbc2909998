"""The billing states of a model call and what may follow what: pure rules, kept by whoever writes the ledger.

planned -> attempted -> submitted -> done
              |-> not_billed (safe to retry) -> attempted | failed
              |-> in_doubt (possibly billed) -> recovered -> done | submitted (a job's id is found)
              |                              -> attempted (asked again) | failed
              +-> failed
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

from agentflow.errors import Billed
from agentflow.models.protocol import Capabilities, Failure

Billing: TypeAlias = Literal["at_least_once", "recover", "strict"]


class CallState(StrEnum):
    """Where a model call stands. `attempted` is committed before the request leaves, so a crash is known
    afterwards.
    """

    PLANNED = "planned"
    ATTEMPTED = "attempted"
    SUBMITTED = "submitted"
    NOT_BILLED = "not_billed"
    IN_DOUBT = "in_doubt"
    RECOVERED = "recovered"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return not _NEXT[self]


_NEXT: dict[CallState, frozenset[CallState]] = {
    CallState.PLANNED: frozenset({CallState.ATTEMPTED, CallState.FAILED}),
    CallState.ATTEMPTED: frozenset(
        {CallState.SUBMITTED, CallState.DONE, CallState.NOT_BILLED, CallState.IN_DOUBT, CallState.FAILED}
    ),
    CallState.SUBMITTED: frozenset(
        {CallState.DONE, CallState.RECOVERED, CallState.NOT_BILLED, CallState.IN_DOUBT, CallState.FAILED}
    ),
    CallState.NOT_BILLED: frozenset({CallState.ATTEMPTED, CallState.FAILED}),
    # Submitted again: the id of a job that was lost in its submission is found.
    CallState.IN_DOUBT: frozenset(
        {CallState.SUBMITTED, CallState.RECOVERED, CallState.ATTEMPTED, CallState.FAILED}
    ),
    CallState.RECOVERED: frozenset({CallState.DONE}),
    CallState.DONE: frozenset(),
    CallState.FAILED: frozenset(),
}


class NextAct(StrEnum):
    """What to do about a call that did not bring an answer."""

    RETRY = "retry"
    """Ask again under the step's retry policy."""
    RECOVER = "recover"
    """Look for the answer at the provider first."""
    ASK_PERSON = "ask_person"
    """`InDoubt`: never ask again silently."""
    FAIL = "fail"


def advance(state: CallState, to: CallState) -> CallState:
    """`to`, if it may follow `state`; raises `ValueError` otherwise."""
    if to not in _NEXT[state]:
        raise ValueError(f"a model call that is {state} cannot become {to}")
    return to


def state_after(failure: Failure) -> CallState:
    """Where an attempted call stands after this failure."""
    if failure.billed == "no":
        return CallState.NOT_BILLED
    return CallState.IN_DOUBT if failure.billed == "possible" else CallState.FAILED


def state_after_crash(state: CallState) -> CallState:
    """Where a call stands whose worker died; a submitted one is still found by its id."""
    return CallState.IN_DOUBT if state is CallState.ATTEMPTED else state


def act_on(
    state: CallState,
    *,
    billing: Billing,
    capabilities: Capabilities,
    looked_up: bool = False,
    retriable: bool = True,
) -> NextAct:
    """What the billing policy wants done about a call that stands at `state`.

    `looked_up`: the provider was asked for the answer and did not have it. `retriable` is the failure's.
    """
    if state is CallState.NOT_BILLED:
        return NextAct.RETRY if retriable else NextAct.FAIL
    if state is CallState.SUBMITTED:
        return NextAct.RECOVER
    if state is not CallState.IN_DOUBT:
        raise ValueError(f"nothing is to be decided about a model call that is {state}")
    if billing != "at_least_once" and capabilities.lookup and not looked_up:
        return NextAct.RECOVER
    if billing == "strict":
        return NextAct.ASK_PERSON
    return NextAct.RETRY if retriable else NextAct.FAIL


def billed_in_sum(attempts: list[Billed]) -> Billed:
    """Whether a call is billed, all its attempts taken together."""
    return max(attempts, key=("no", "possible", "yes").index, default="no")
