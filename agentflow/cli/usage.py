"""`agentflow usage`: tokens and cost of the model calls."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from agentflow.cli.exits import run_async
from agentflow.cli.exits import usage as usage_error
from agentflow.cli.options import AppRef, AsJson


class Grouping(StrEnum):
    RUN = "run"
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
    budgets: Annotated[
        bool, typer.Option("--budgets", help="How the budgets stand in their present periods, instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tokens and cost. `possibly` counts calls of which nobody can tell whether they were billed."""
    from agentflow.cli.costs import cost_in_words, with_known_costs
    from agentflow.cli.data import read_since
    from agentflow.cli.ids import run_id_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json, show_table
    from agentflow.clock import from_datetime
    from agentflow.usage import UsageReport, grouped

    if budgets:
        if since or run or tag:
            usage_error("--budgets shows their present periods: it goes with --json alone")
        show_budgets(app, as_json=as_json)
        return
    begin = read_since(since)

    async def work() -> None:
        async with opened(app) as found:
            rows = await found.client.store.queries.list_model_calls(
                run=None if run is None else await run_id_of(found, run),
                tag=tag,
                since=None if begin is None else from_datetime(begin),
            )
        calls = with_known_costs([call for _, call in rows])
        groups = grouped(zip((owner for owner, _ in rows), calls, strict=True), by.value)
        reports = {name: UsageReport.of(some) for name, some in groups.items()}
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


def show_budgets(app: str | None, *, as_json: bool) -> None:
    """How the budgets stand: of all apps on the database."""
    from agentflow.cli.opened import opened
    from agentflow.cli.output import money, show_json, show_table
    from agentflow.usage import BudgetReport

    def amounts(report: BudgetReport) -> tuple[object, ...]:
        """Limit, spent, reserved: of money, of tokens, or of both."""
        if report.tokens is None:
            return money(report.cost_usd), money(report.spent_usd), money(report.reserved_usd)
        counts = (report.tokens, report.spent_tokens, report.reserved_tokens)
        tokens = tuple(f"{count} tokens" for count in counts)
        if report.cost_usd is None:
            return tokens
        sums = (report.cost_usd, report.spent_usd, report.reserved_usd)
        return tuple(f"{money(usd)}, {count}" for usd, count in zip(sums, tokens, strict=True))

    async def work() -> None:
        async with opened(app) as found:
            reports = await found.budgets()
        if as_json:
            show_json({"data": [report.model_dump() for report in reports]})
            return
        show_table(
            ("budget", "of", "limit", "spent", "reserved", "begins again"),
            [
                (report.name, report.value or "", *amounts(report), report.ends_at or "never")
                for report in reports
            ],
            empty="no budget was used in its present period",
        )

    run_async(work())
