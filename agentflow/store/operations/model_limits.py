"""Model limits: when a call of a provider may begin, by every worker's calls together.

One row a provider, locked while it is read and moved. Requests and tokens are counted by GCRA: `tat` is the instant at
which all that was taken would be used up at the limit's even pace, and a call may begin while that is at most a
burst ahead of `now`. Burst and pace are such that in no period more begins than the limit says.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from agentflow.store.operation_types import BeginModelCall, SettleModelCall, SlowModelCalls
from agentflow.store.outcome_types import Done, NotBefore
from agentflow.store.statements import model_limits as sql
from agentflow.store.stored_types import Micros
from agentflow.store.transaction import Transaction, Work

BURST_SHARE = 10
"""A tenth of a limit may be taken at once."""
SECOND = 1_000_000
KEEP_HOLDS = 86_400 * SECOND
"""After that a call whose end was never told is forgotten; what it took was free again after a period."""


class Pace(NamedTuple):
    """How a limit is shared out over its period."""

    burst: int
    rest: int
    period: Micros

    @classmethod
    def of(cls, limit: int, period: Micros) -> Pace:
        burst = max(1, limit // BURST_SHARE)
        # A burst, and then `rest - 1` before the period is over: together the limit, and never one more.
        return cls(burst, limit - burst + 1, period)

    def micros(self, count: int) -> Micros:
        """How long so much lasts."""
        return -(-count * self.period // self.rest)


class _Taken(NamedTuple):
    """The provider's row."""

    requests_tat: Micros = 0
    tokens_tat: Micros = 0
    line_at: Micros = 0
    """The last instant that was told to a call which had to wait."""
    paused_until: Micros = 0


def begin_model_call(tx: Transaction, op: BeginModelCall) -> Work[Done | NotBefore]:
    """Take what the call needs, or say when to ask again. Played again, a call that has it keeps it."""
    taken = yield from _locked(op.provider)
    held = yield sql.READ_HOLD, {"id": op.id}
    place: Micros | None = held[0][0] if held else 0
    if place is None:
        return Done()
    requests = None if op.requests is None else Pace.of(op.requests, op.period)
    tokens = None if op.tokens is None else Pace.of(op.tokens, op.period)
    # What is larger than the whole limit can only begin when nothing else is under way.
    needs = 0 if op.tokens is None else max(1, min(op.needs, op.tokens))
    request_cost = 0 if requests is None else requests.micros(1)
    token_cost = 0 if tokens is None else tokens.micros(needs)
    starts = [(taken.paused_until, "paused")]
    if requests is not None:
        starts.append((taken.requests_tat + (1 - requests.burst) * request_cost, "requests"))
    if tokens is not None:
        free = tokens.micros(min(needs, tokens.burst)) - tokens.micros(tokens.burst)
        starts.append((taken.tokens_tat + free, "tokens"))
    at, because = max(starts)
    if place > op.now:
        # Its run was taken up for something else. It has its place, and another one would make the line longer.
        return NotBefore(place, because)
    if at > op.now:
        told, line_at = _place_in_line(taken, op, at, spacing=max(request_cost, token_cost, 1))
        yield from _move(op.provider, taken._replace(line_at=line_at))
        yield from _keep(op, not_before=told)
        return NotBefore(told, because)
    yield from _move(
        op.provider,
        taken._replace(
            requests_tat=max(taken.requests_tat, op.now) + request_cost,
            tokens_tat=max(taken.tokens_tat, op.now) + token_cost,
        ),
    )
    yield sql.FORGET_HOLDS, {"of": op.provider, "horizon": op.now - KEEP_HOLDS}
    yield from _keep(op, tokens=needs, cost=token_cost)
    return Done()


def settle_model_call(tx: Transaction, op: SettleModelCall) -> Work[Done]:
    """Give back what the call did not use, or take what it used more. Played again it changes nothing."""
    taken = yield from _locked(op.provider)
    rows = yield sql.TAKE_HOLD, {"hold": op.id}
    if rows and op.used is not None:
        tokens, cost = rows[0]
        more = cost * op.used // tokens - cost if tokens else 0
        tat = taken.tokens_tat + more if more < 0 else max(taken.tokens_tat, op.now) + more
        yield from _move(op.provider, taken._replace(tokens_tat=tat))
    return Done()


def slow_model_calls(tx: Transaction, op: SlowModelCalls) -> Work[Done]:
    """Let no call of the provider begin before an instant."""
    taken = yield from _locked(op.provider)
    if op.until > taken.paused_until:
        yield from _move(op.provider, taken._replace(paused_until=op.until))
    return Done()


def _place_in_line(
    taken: _Taken, op: BeginModelCall, at: Micros, *, spacing: Micros
) -> tuple[Micros, Micros]:
    """When to ask again, and where the line ends then.

    Those who wait are told instants apart from each other, so that they do not all come for one place. The line is no
    promise and holds nothing back: who was told one and never comes costs nobody anything for longer than a period.
    """
    if at - op.now <= min(SECOND, spacing // 2):
        return at, max(taken.line_at, at)  # it came a moment too early: not to the end of the line for that
    told = max(at, taken.line_at + spacing)
    if told <= at + op.period:
        return told, told
    return at + op.period * op.spread // 1000, taken.line_at


def _keep(
    op: BeginModelCall, *, tokens: int = 0, cost: Micros = 0, not_before: Micros | None = None
) -> Work[None]:
    """Keep what the call has taken, or when it is to ask again."""
    yield sql.TAKE_HOLD, {"hold": op.id}
    yield (
        sql.INSERT_HOLD,
        {
            "id": op.id,
            "provider": op.provider,
            "tokens": tokens,
            "cost": cost,
            "asked_at": op.now,
            "not_before": not_before,
        },
    )


def _locked(provider: str) -> Work[_Taken]:
    yield sql.INSERT_MODEL_LIMIT, {"provider": provider, **_Taken()._asdict()}
    rows: list[Any] = yield sql.READ_MODEL_LIMIT, {"provider": provider}
    return _Taken(*rows[0])


def _move(provider: str, taken: _Taken) -> Work[None]:
    yield (
        sql.MOVE_MODEL_LIMIT,
        {
            "requests": taken.requests_tat,
            "tokens": taken.tokens_tat,
            "line": taken.line_at,
            "paused": taken.paused_until,
            "of": provider,
        },
    )
