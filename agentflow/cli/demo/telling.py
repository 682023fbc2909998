"""What the demo says while it runs: a line when a step begins, and one when it ends.

Lines, not a picture that is drawn again and again: a killed process leaves the terminal as it should be.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime

from agentflow.cli.output import duration, visible
from agentflow.cli.progress import Line, Progress
from agentflow.cli.watching import MARKS, tokens_and_cost
from agentflow.runs import StepKind, StepStatus

_COLOURS = {"✓": "32", "✗": "31", "▸": "36", "…": "35", "?": "1;35", "!": "1", "=": "2"}
_WIDTH = 44
_BOOKKEEPING = (StepKind.APPROVAL, StepKind.INVOKE)


class Teller:
    """Tells what is new since it was last called."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], StepStatus] = {}
        self._messages: list[tuple[datetime, str]] = []
        self._is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        log = logging.getLogger("agentflow.run")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.handlers = [_Heard(self._messages)]

    def introduce(self, run_id: str, progress: Progress) -> None:
        """Say whether it begins or goes on; what is done already is kept, not run again."""
        kept = [line for line in progress.lines if line.status is StepStatus.COMPLETED]
        if not kept:
            self.say(f"run {run_id}: a customer wants money back; an agent sees to it")
            return
        self.say(
            f"run {run_id} goes on; {len(kept)} step{'s' if len(kept) > 1 else ''} done before, not run again:"
        )
        for line in kept:
            self._told[(line.run_id, line.key)] = line.status
            self.say(f"= {_name(line)}")

    def tell(self, progress: Progress) -> None:
        """Say which steps have begun, which have ended, and what is waited for."""
        news, self._messages[:] = list(self._messages), []
        latest: dict[str, datetime] = {}
        for line in progress.lines:
            place = (line.run_id, line.key)
            # Within a run the lines come by their seq, and no clock may put them in another order.
            at = line.ended_at or line.started_at or progress.run.created_at
            latest[line.run_id] = at = max(at, latest.get(line.run_id, at))
            if self._told.get(place) is not line.status:
                self._told[place] = line.status
                news.append((at, self._described(line)))
        self.say(*(text for _, text in sorted(news, key=lambda told: told[0])))

    def say(self, *texts: str) -> None:
        """Print lines; the mark at the beginning of each gives its colour."""
        for text in texts:
            colour = _COLOURS.get(text[:1]) if self._is_coloured else None
            if colour is not None:
                text = f"\x1b[{colour}m{text[:1]}\x1b[0m{text[1:]}"
            print(text, flush=True)

    def count_calls(self, progress: Progress) -> int:
        """Requests that a model has answered, or may have."""
        return sum(call.billed != "no" for line in progress.lines for call in line.calls)

    def _described(self, line: Line) -> str:
        mark, name = MARKS[line.status], _name(line)
        match line.status:
            case StepStatus.RUNNING:
                return f"{mark} {name}  asks the model" + (
                    "" if line.attempts < 2 else f", attempt {line.attempts}"
                )
            case StepStatus.WAITING:
                return f"{mark} {name}  waits for {_awaited(line)}"
            case _:
                used = tokens_and_cost(line)
                took = duration(line.seconds(datetime.now(UTC)))
                why = f"  {visible(line.error)}" if line.error else ""
                return f"{mark} {name:<{_WIDTH}} {took:>8}" + (f"   {used}" if used else "") + why


class _Heard(logging.Handler):
    """What the tools log: they say so when they begin."""

    def __init__(self, messages: list[tuple[datetime, str]]) -> None:
        super().__init__(logging.INFO)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        at = datetime.fromtimestamp(record.created, UTC)
        self._messages.append((at, f"▸     {visible(record.getMessage())}"))


def _name(line: Line) -> str:
    return "  " * line.depth + visible(line.key)


def _awaited(line: Line) -> str:
    match line.kind:
        case StepKind.APPROVAL:
            return "a person"
        case StepKind.INVOKE:
            return "the run of its agent"
        case _:
            return "its next attempt" if line.attempts else str(line.kind)
