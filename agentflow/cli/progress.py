"""How far a run is: its steps and those of its children, with what their model calls used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from agentflow.cli.runs import all_steps
from agentflow.clock import to_datetime
from agentflow.runs import Run, StepKind, StepRecord, StepStatus

if TYPE_CHECKING:
    from agentflow.app import App
    from agentflow.store.stored_types import ModelCall

    CallsByStep = dict[tuple[str, str], list[ModelCall]]


@dataclass(frozen=True)
class Line:
    """A step as it is shown. `depth` counts the invokes above it."""

    run_id: str
    key: str
    depth: int
    kind: StepKind
    status: StepStatus
    started_at: datetime | None
    ended_at: datetime | None
    attempts: int = 1
    error: str | None = None
    calls: tuple[ModelCall, ...] = ()

    @property
    def tokens(self) -> tuple[int, int]:
        """Input and output tokens of its model calls."""
        return (
            sum(call.input_tokens or 0 for call in self.calls),
            sum(call.output_tokens or 0 for call in self.calls),
        )

    def seconds(self, now: datetime) -> float:
        """How long it took, or has taken by now."""
        if self.started_at is None:
            return 0.0
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds())


@dataclass(frozen=True)
class Progress:
    """A run as it stands now, its lines in the order in which they are shown."""

    run: Run
    lines: list[Line] = field(default_factory=list)


async def read_progress(app: App, run_id: str) -> Progress:
    """The run and its children by now. Raises `NotFound`."""
    run = await app.runs.get(run_id)
    # Before the steps: what had ended when a call was on its way is then among them, and is told before it.
    flying = {place for place, made in (await _calls(app, run_id)).items() if made[-1].ended_at is None}
    steps = await _steps(app, run_id, depth=0)
    # After the steps: a call whose step is known has its tokens then.
    calls = await _calls(app, run_id)
    return Progress(run, [*_lines(steps, calls, flying)])


def line_of(step: StepRecord, *, depth: int = 0, calls: Sequence[ModelCall] = ()) -> Line:
    """A step with its model calls. Each request is an attempt: one that was killed left nothing but its call."""
    return Line(
        run_id=step.run_id,
        key=step.key,
        depth=depth,
        kind=step.kind,
        status=step.status,
        started_at=step.started_at,
        ended_at=step.ended_at,
        attempts=max(step.attempts, len(calls)),
        error=None if step.error is None else f"{step.error.name}: {step.error.message}",
        calls=tuple(calls),
    )


class CallsOfSteps:
    """The model calls of one run's steps, read anew only where a step's are not known yet."""

    def __init__(self, app: App, run_id: str) -> None:
        self._app = app
        self._run_id = run_id
        self._known: CallsByStep = {}

    async def find(self, step: StepRecord) -> Sequence[ModelCall]:
        """Those of a step that has ended."""
        if step.kind is not StepKind.INFER:
            return ()
        place = (step.run_id, step.key)
        if not (made := self._known.get(place)) or made[-1].ended_at is None:
            self._known = await _calls(self._app, self._run_id)
        return self._known.get(place, [])


async def _calls(app: App, run_id: str) -> CallsByStep:
    """The model calls of the run and its children by run and step."""
    calls: CallsByStep = defaultdict(list)
    for owner, call in await app.client.store.queries.list_model_calls(run=run_id):
        calls[(owner, call.key)].append(call)
    return calls


async def _steps(app: App, run_id: str, *, depth: int) -> list[tuple[int, StepRecord]]:
    """The run's steps with their depth, below each invoke those of its child."""
    steps = await all_steps(app, run_id)
    children: dict[str, list[Run]] = defaultdict(list)
    if any(step.kind is StepKind.INVOKE for step in steps):
        page = await app.client.store.queries.list_runs(parent=run_id, limit=100)
        for child in reversed(page.data):  # they come newest first
            children[child.function].append(child)
    found: list[tuple[int, StepRecord]] = []
    for step in steps:
        found.append((depth, step))
        if step.kind is StepKind.INVOKE and (started := children.get(step.name or "")):
            found += await _steps(app, started.pop(0).id, depth=depth + 1)
    return found


def _lines(
    steps: list[tuple[int, StepRecord]], calls: CallsByStep, on_their_way: Collection[tuple[str, str]]
) -> Iterator[Line]:
    known = {(step.run_id, step.key) for _, step in steps}
    depths = {step.run_id: depth for depth, step in steps}
    # A model call that is on its way has a row in the ledger, and no outcome yet.
    flying = [
        _in_flight(run_id, key, depths.get(run_id, len(depths)), made)
        for (run_id, key), made in calls.items()
        if (run_id, key) not in known and (run_id, key) in on_their_way
    ]
    for position, (depth, step) in enumerate(steps):
        yield line_of(step, depth=depth, calls=calls.get((step.run_id, step.key), ()))
        is_last = position + 1 == len(steps) or steps[position + 1][1].run_id != step.run_id
        if is_last and not any(later.run_id == step.run_id for _, later in steps[position + 1 :]):
            yield from (line for line in flying if line.run_id == step.run_id)
    yield from (line for line in flying if line.run_id not in depths)


def _in_flight(run_id: str, key: str, depth: int, calls: Sequence[ModelCall]) -> Line:
    return Line(
        run_id=run_id,
        key=key,
        depth=depth,
        kind=StepKind.INFER,
        status=StepStatus.RUNNING,
        started_at=to_datetime(calls[-1].started_at),
        ended_at=None,
        attempts=len(calls),
        calls=tuple(calls),
    )
