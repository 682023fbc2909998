"""Limits of an agent's run, checked before the call that would pass them, and what has been spent so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from agentflow.clock import from_datetime, to_datetime
from agentflow.durations import parse_duration, to_micros
from agentflow.errors import BudgetExceeded, InvalidInput
from agentflow.models.response import ModelResponse, Usage
from agentflow.store.charges import OF_A_TURN, to_nanos
from agentflow.store.stored_types import Micros, ModelCall, Reservation

KEPT = to_micros("30d")
"""For so long it is known what the agents of a turn have used."""

T = TypeVar("T", int, Decimal)


class Limits(BaseModel):
    """How much an agent may do in one run of it. `None` is no limit.

    `turns` counts model calls and `tool_calls` the agent's own; `tokens`, `cost_usd` and `deadline` hold for its
    sub-agents too. `deadline` is a duration from the agent's first call, or an aware datetime. A money limit fails
    closed: when the cost of a call is not known, no further call is made.

    A call is made as long as something is left, so an agent passes `tokens` and `cost_usd` by its last call at most.
    Sub-agents that are called in one turn share what is left: together they pass it by one call each at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    turns: int = Field(default=20, ge=1)
    tool_calls: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    cost_usd: Decimal | None = Field(default=None, ge=0)
    deadline: timedelta | AwareDatetime | None = None

    @field_validator("cost_usd", mode="before")
    @classmethod
    def _as_written(cls, value: object) -> object:
        return str(value) if isinstance(value, float) else value  # 0.1 is a tenth, not its binary neighbour

    @field_validator("deadline", mode="before")
    @classmethod
    def _as_duration(cls, value: object) -> object:
        if isinstance(value, int | float | str):
            try:
                return parse_duration(value)
            except InvalidInput:
                return value
        return value


class Together(BaseModel):
    """What the agents that are called in one turn, and those that they call, may use together."""

    model_config = ConfigDict(frozen=True)

    turn: str
    """The turn's model call: run and step key."""
    tokens: int | None = None
    cost_usd: Decimal | None = None

    def reservation(self, now: Micros) -> Reservation:
        """By which it is looked at before a call, and told what that has used. Nothing is reserved: as everywhere in
        `Limits`, a call is made as long as something is left."""
        return Reservation(
            key=f"turn:{self.turn}",
            name=OF_A_TURN,
            value=self.turn,
            period_start=0,
            ends_at=now + KEPT,
            cost=0,
            tokens=0,
            cost_limit=None if self.cost_usd is None else to_nanos(self.cost_usd),
            token_limit=self.tokens,
        )


class Rest(Limits):
    """What a sub-agent may use: the rest of its parent's limits."""

    together: tuple[Together, ...] = Field(default=(), exclude_if=lambda together: not together)
    """And with those beside it, in its parent's turn and in those above that."""


@dataclass(frozen=True)
class Spent:
    """What an agent and its sub-agents have used."""

    turns: int = 0
    tool_calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = Decimal(0)
    """`None` as soon as the cost of one call is not known."""

    def with_answer(self, response: ModelResponse) -> Spent:
        return replace(
            self,
            turns=self.turns + 1,
            usage=self.usage + response.usage,
            cost=_sum(self.cost, response.cost),
        )

    def with_summary(self, response: ModelResponse) -> Spent:
        """A summary is paid for, and is no turn."""
        return replace(self, usage=self.usage + response.usage, cost=_sum(self.cost, response.cost))

    def with_tool_calls(self, count: int) -> Spent:
        return replace(self, tool_calls=self.tool_calls + count)

    def with_sub_agents(self, spent: SubAgents) -> Spent:
        return replace(self, usage=self.usage + spent.usage, cost=_sum(self.cost, spent.cost))


class SubAgents(BaseModel):
    """What sub-agents have used, by the ledger; stored with the model call that follows them."""

    usage: Usage = Usage()
    cost: Decimal | None = Decimal(0)

    @classmethod
    def of(cls, calls: Iterable[ModelCall]) -> SubAgents:
        usage, cost = Usage(), Decimal(0)
        is_known = True
        for call in calls:
            usage += Usage(
                input_tokens=call.input_tokens or 0,
                cached_tokens=call.cached_tokens or 0,
                cache_write_tokens=call.cache_write_tokens or 0,
                output_tokens=call.output_tokens or 0,
                reasoning_tokens=call.reasoning_tokens or 0,
            )
            if call.cost is not None:
                cost += Decimal(call.cost)
            elif call.billed != "no":
                is_known = False
        return cls(usage=usage, cost=cost if is_known else None)


class Budget:
    """The limits of one run of an agent, within those of the agent that invoked it."""

    def __init__(self, agent: str, limits: Limits, parent: Rest | None = None) -> None:
        self._agent = agent
        self.together = () if parent is None else parent.together
        self._limits = limits
        self._deadlines = [limits.deadline, parent.deadline if parent else None]
        # Not the turns, which are everybody's own.
        self._tool_calls = _least(limits.tool_calls, parent.tool_calls if parent else None)
        self._tokens = _least(limits.tokens, parent.tokens if parent else None)
        self._cost = _least(limits.cost_usd, parent.cost_usd if parent else None)

    def check_model_call(self, spent: Spent) -> None:
        """Raise `BudgetExceeded` when another model call would pass a limit."""
        if spent.turns >= self._limits.turns:
            raise self._exceeded(f"turn {spent.turns + 1} would pass turns={self._limits.turns}")
        used = spent.usage.total_tokens
        if self._tokens is not None and used >= self._tokens:
            raise self._exceeded(
                f"{used} tokens are used, another model call would pass tokens={self._tokens}"
            )
        if self._cost is None:
            return
        if spent.cost is None:
            raise self._exceeded(
                f"the cost of a model call is not known, so another one may pass cost_usd={self._cost}"
            )
        if spent.cost >= self._cost:
            raise self._exceeded(
                f"{spent.cost} US dollars are spent, another model call would pass {self._cost}"
            )

    def check_tool_calls(self, spent: Spent, count: int) -> None:
        """Raise `BudgetExceeded` when so many tool calls would pass a limit."""
        most = self._tool_calls
        if most is not None and spent.tool_calls + count > most:
            raise self._exceeded(
                f"{spent.tool_calls} tool calls are made, {count} more would pass tool_calls={most}"
            )

    def check_deadline(self, started_at: Micros, now: Micros) -> None:
        """Raise `BudgetExceeded` when the deadline is over."""
        due = self._due(started_at)
        if due is not None and now >= due:
            raise self._exceeded(f"its deadline was {to_datetime(due).isoformat()}")

    def rest(self, spent: Spent, started_at: Micros, *, turn: str | None = None) -> Rest | None:
        """What a sub-agent may use; `None` when there is no limit to share. `turn`: others are called in it as well."""
        due = self._due(started_at)
        if self._tokens is None and self._cost is None and due is None:
            return None
        tokens = None if self._tokens is None else max(0, self._tokens - spent.usage.total_tokens)
        cost = None if self._cost is None else max(Decimal(0), self._cost - (spent.cost or 0))
        together = self.together
        if turn is not None and not (tokens is None and cost is None):
            together = (*together, Together(turn=turn, tokens=tokens, cost_usd=cost))
        return Rest(
            tokens=tokens,
            cost_usd=cost,
            deadline=None if due is None else to_datetime(due),
            together=together,
        )

    def _due(self, started_at: Micros) -> Micros | None:
        dues = [
            from_datetime(deadline) if isinstance(deadline, datetime) else started_at + to_micros(deadline)
            for deadline in self._deadlines
            if deadline is not None
        ]
        return min(dues, default=None)

    def _exceeded(self, why: str) -> BudgetExceeded:
        return BudgetExceeded(f"agent {self._agent!r} has reached its limits: {why}")


def _least(left: T | None, right: T | None) -> T | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)


def _sum(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return None if left is None or right is None else left + right
