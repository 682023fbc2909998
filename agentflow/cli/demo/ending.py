"""How a demo ended: its steps, what to try next, and the three lines that sum it up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agentflow.cli.demo.agent import find_source
from agentflow.cli.output import duration, show_table, visible
from agentflow.cli.program import program, shown_path
from agentflow.cli.progress import Progress
from agentflow.cli.watching import tokens_and_cost
from agentflow.runs import RunStatus


def tell_ending(progress: Progress, *, model_calls: int, refunds: int) -> None:
    """The last lines are always these three: a script may read them."""
    now = datetime.now(UTC)
    print()
    show_table(
        ("step", "kind", "status", "attempts", "took", "used"),
        [
            (
                "  " * line.depth + line.key,
                line.kind,
                line.status,
                line.attempts,
                duration(line.seconds(now)),
                tokens_and_cost(line),
            )
            for line in progress.lines
        ],
        empty="no steps",
    )
    print()
    print("now try")
    for command, why in _suggestions(progress.run.id):
        print(f"  {command}\n      {why}")
    print()
    print(f"answer: {_answer(progress)}")
    print(f"model calls: {model_calls}")
    print(f"refunds: {refunds}", flush=True)


def _suggestions(run_id: str) -> list[tuple[str, str]]:
    name, source = program(), shown_path(find_source())
    return [
        (
            f"{name} demo",
            "once more; kill it in the middle (Ctrl-C, kill -9), start it again, and it goes on",
        ),
        (f"{name} demo --auto deny", "nothing is paid, and the agent answers accordingly"),
        (f"{name} runs show {run_id}", "the run with its steps"),
        (f"{name} runs list", "all runs so far; they are in .agentflow/demo.db"),
        (source, "the agent, its tools, and the script in the model's place"),
    ]


def _answer(progress: Progress) -> str:
    output: Any = progress.run.output
    if isinstance(output, dict) and isinstance(output.get("reply"), str):
        return visible(output["reply"])
    error = progress.run.error
    why = (
        f": {error.name}: {error.message}"
        if error
        else f": {progress.run.reason}"
        if progress.run.reason
        else ""
    )
    how = "failed" if progress.run.status is RunStatus.FAILED else f"was {progress.run.status}"
    return visible(f"none, the run {how}{why}")
