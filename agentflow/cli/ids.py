"""Ids by their unique beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentflow.cli.exits import ExitCode, Stop

if TYPE_CHECKING:
    from agentflow.app import App
    from agentflow.approvals import ApprovalRequest

MOST_SHOWN = 5


async def run_id_of(app: App, given: str) -> str:
    """The id of the one run that begins so; `run_` may be left out."""
    if "run_".startswith(given):
        # What an unset variable of a shell gives; that there is one run only does not make it the one that is meant.
        raise Stop(f"{given!r} is the beginning of every run's id: give more of it", ExitCode.USAGE)
    for beginning in dict.fromkeys((given, f"run_{given}")):
        page = await app.client.store.queries.list_runs(q=beginning, limit=MOST_SHOWN + 1)
        ids = [run.id for run in page.data]
        if ids:
            return beginning if beginning in ids else _the_one(given, ids, "run")
    raise Stop(f"there is no run {given!r}", ExitCode.NOT_FOUND)


async def approval_of(app: App, given: str) -> ApprovalRequest:
    """The one approval that begins so. A `-` in front, which a shell would take for an option, may be left out."""
    queries = app.client.store.queries
    exact = await queries.get_approval(given)
    if exact is not None:
        return exact
    found: list[ApprovalRequest] = []
    cursor: str | None = None
    while given.strip("-"):
        page = await queries.list_approvals(limit=100, cursor=cursor)
        found.extend(request for request in page.data if _begins(request.id, given))
        cursor = page.cursor
        if not page.has_more or cursor is None:
            break
    if not found:
        raise Stop(f"there is no approval {given!r}", ExitCode.NOT_FOUND)
    wanted = _the_one(given, [request.id for request in found], "approval")
    return next(request for request in found if request.id == wanted)


def as_argument(approval_id: str) -> str:
    """The id as it can be typed after a command."""
    return approval_id.lstrip("-")


def _begins(id: str, given: str) -> bool:
    return id.startswith(given) or id.lstrip("-").startswith(given)


def _the_one(given: str, ids: Sequence[str], what: str) -> str:
    if len(ids) == 1:
        return ids[0]
    shown = ", ".join(ids[:MOST_SHOWN]) + (", ..." if len(ids) > MOST_SHOWN else "")
    raise Stop(f"{given!r} is the beginning of several {what}s: {shown}", ExitCode.USAGE)
