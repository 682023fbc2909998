"""`agentflow usage`: tokens and cost of the model calls."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agentflow.cli.exits import run_async
from agentflow.cli.options import AppRef, AsJson

if TYPE_CHECKING:
    from agentflow.store.protocol import ModelCall


class Grouping(StrEnum):
    AGENT = "agent"
    MODEL = "model"
    DAY = "day"


def usage(
    app: AppRef = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only from then on: 7d, or an ISO date.", show_default=False)
    ] = None,
    by: Annotated[Grouping, typer.Option("--by", help="What makes a line.")] = Grouping.MODEL,
    run: Annotated[
        str | None, typer.Option("--run", "-r", help="Only of this run and its children.", show_default=False)
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", help="Only of runs with this tag.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tokens and cost. `possibly` counts calls of which nobody can tell whether they were billed."""
    from agentflow.cli.costs import cost_in_words, with_known_costs
    from agentflow.cli.data import read_since
    from agentflow.cli.ids import run_id_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json, show_table
    from agentflow.client import UsageReport
    from agentflow.clock import from_datetime

    begin = read_since(since)

    async def work() -> None:
        async with opened(app) as found:
            rows = await found.client.store.queries.list_model_calls(
                run=None if run is None else await run_id_of(found, run),
                tag=tag,
                since=None if begin is None else from_datetime(begin),
            )
        calls = with_known_costs([call for _, call in rows])
        groups: dict[str, list[ModelCall]] = {}
        for call in calls:
            groups.setdefault(_group(call, by), []).append(call)
        reports = {name: UsageReport.of(groups[name]) for name in sorted(groups)}
        total = UsageReport.of(calls)
        if as_json:
            lines = [{by.value: name, **report.model_dump()} for name, report in reports.items()]
            show_json({"data": lines, "total": total.model_dump()})
            return
        if len(reports) > 1:
            reports["total"], groups["total"] = total, calls
        show_table(
            (by.value, "calls", "input", "cached", "output", "cost", "billed", "possibly"),
            [
                (
                    name,
                    report.calls,
                    report.input_tokens,
                    report.cached_tokens,
                    report.output_tokens,
                    cost_in_words(groups[name]),
                    report.billed,
                    report.possibly_billed,
                )
                for name, report in reports.items()
            ],
            empty="no model calls",
        )

    run_async(work())


def _group(call: ModelCall, by: Grouping) -> str:
    from agentflow.clock import to_datetime

    match by:
        case Grouping.AGENT:
            return call.agent or "(no agent)"
        case Grouping.MODEL:
            return f"{call.provider}:{call.model}"
        case Grouping.DAY:
            return to_datetime(call.started_at).date().isoformat()
