"""`agentflow approvals`: list, show, approve, deny, edit, respond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentflow.cli.exits import ExitCode, Stop, run_async
from agentflow.cli.options import AppRef, AsJson, Cursor, Limit

if TYPE_CHECKING:
    from agentflow.approvals import ApprovalRequest, DecisionInput

commands = typer.Typer(no_args_is_help=True, help="What waits for a person, and the person's decision.")

ApprovalId = Annotated[
    str, typer.Argument(metavar="ID", help="The approval's id, or a unique beginning of it.")
]
By = Annotated[
    str | None, typer.Option("--by", help="Who decides; your user name by default.", show_default=False)
]
Comment = Annotated[str | None, typer.Option("--comment", help="Kept with the decision.", show_default=False)]
Digest = Annotated[
    str | None,
    typer.Option("--digest", help="Decide only if this is still what would run.", show_default=False),
]


@commands.command("list")
def list_approvals(
    app: AppRef = None,
    status: Annotated[str, typer.Option("--status", "-s", help="A status, or `all`.")] = "pending",
    run: Annotated[
        str | None, typer.Option("--run", "-r", help="Only of this run.", show_default=False)
    ] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """Approvals, the oldest first; those that wait, unless `--status` says otherwise."""
    from agentflow.approvals import ApprovalStatus
    from agentflow.cli.ids import run_id_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import one_line, say, show_json, show_table

    if status != "all" and status not in list(ApprovalStatus):
        raise Stop(f"--status {status!r}: it is one of {', '.join(ApprovalStatus)}, all", ExitCode.USAGE)

    async def work() -> None:
        async with opened(app) as found:
            page = await found.approvals.list(
                status=None if status == "all" else status,
                run=None if run is None else await run_id_of(found, run),
                limit=limit,
                cursor=cursor,
            )
        if as_json:
            show_json(page)
            return
        show_table(
            ("id", "asks for", "arguments", "status", "since", "until"),
            [
                (
                    request.id,
                    request.title,
                    "" if request.args is None else one_line(request.args),
                    request.status,
                    request.requested_at,
                    request.expires_at,
                )
                for request in page.data
            ],
            empty="nothing waits for a decision" if status == "pending" else "no approvals",
        )
        if page.has_more:
            say(f"there are more: --cursor {page.cursor}")

    run_async(work())


@commands.command()
def show(approval: ApprovalId, app: AppRef = None, as_json: AsJson = False) -> None:
    """An approval: what would run, with which arguments, and who may decide."""
    from agentflow.cli.ids import approval_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json

    async def work() -> None:
        async with opened(app) as found:
            request = await approval_of(found, approval)
        if as_json:
            show_json(request)
        else:
            show_request(request)

    run_async(work())


@commands.command()
def approve(
    approval: ApprovalId,
    app: AppRef = None,
    by: By = None,
    comment: Comment = None,
    digest: Digest = None,
    as_json: AsJson = False,
) -> None:
    """Let it run as it stands."""
    from agentflow.approvals import Approve

    run_async(_decide(approval, Approve(), app=app, by=by, comment=comment, digest=digest, as_json=as_json))


@commands.command()
def deny(
    approval: ApprovalId,
    app: AppRef = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Told to the model.", show_default=False)
    ] = None,
    by: By = None,
    comment: Comment = None,
    digest: Digest = None,
    as_json: AsJson = False,
) -> None:
    """Do not let it run."""
    from agentflow.approvals import Deny

    run_async(
        _decide(approval, Deny(message), app=app, by=by, comment=comment, digest=digest, as_json=as_json)
    )


@commands.command()
def edit(
    approval: ApprovalId,
    app: AppRef = None,
    args: Annotated[
        str | None,
        typer.Option("--args", metavar="JSON|@FILE|-", help="All arguments, anew.", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Change one argument; may be repeated.", show_default=False
        ),
    ] = None,
    by: By = None,
    comment: Comment = None,
    digest: Digest = None,
    as_json: AsJson = False,
) -> None:
    """Let it run with other arguments."""
    from agentflow.cli.data import read_data

    if (args is None) == (not set_):
        raise Stop(
            "give --args with all arguments, or --set NAME=VALUE for those that change", ExitCode.USAGE
        )
    given = read_data(args, option="--args")
    if args is not None and not isinstance(given, dict):
        raise Stop(f"--args has to be a JSON object, not {type(given).__name__}", ExitCode.USAGE)
    changes = [_assignment(text) for text in set_ or ()]
    run_async(
        _decide(approval, given or changes, app=app, by=by, comment=comment, digest=digest, as_json=as_json)
    )


@commands.command()
def respond(
    approval: ApprovalId,
    app: AppRef = None,
    value: Annotated[
        str | None,
        typer.Option(
            "--value", metavar="JSON|@FILE|-", help="What the result is instead.", show_default=False
        ),
    ] = None,
    by: By = None,
    comment: Comment = None,
    digest: Digest = None,
    as_json: AsJson = False,
) -> None:
    """Do not let it run: say what its result is."""
    from agentflow.approvals import Respond
    from agentflow.cli.data import read_data

    if value is None:
        raise Stop("give --value with the result, as JSON: '\"paid by hand\"', or null", ExitCode.USAGE)
    decision = Respond(read_data(value, option="--value"))
    run_async(_decide(approval, decision, app=app, by=by, comment=comment, digest=digest, as_json=as_json))


def show_request(request: ApprovalRequest) -> None:
    """What a person has to know before deciding."""
    from agentflow.cli.output import show_fields

    show_fields(
        [
            ("id", request.id),
            ("run", request.run_id),
            ("asks for", request.title),
            ("tool", request.tool),
            *((f"  {name}", value) for name, value in (request.args or {}).items()),
            ("details", request.details),
            ("edited", request.edited_args),
            ("status", request.status),
            ("approvers", ", ".join(request.approvers) or "anybody"),
            ("needs", f"{request.min_approvals} people" if request.min_approvals > 1 else None),
            *(
                ("decision", f"{given.kind} by {given.by}" + (f": {given.comment}" if given.comment else ""))
                for given in request.decisions
            ),
            ("since", request.requested_at),
            ("until", request.expires_at),
            ("digest", request.args_digest),
        ]
    )


def user_name() -> str:
    """Who sits at this shell."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "command-line"


async def _decide(
    approval: str,
    decision: DecisionInput | dict[str, Any] | list[tuple[str, str]],
    *,
    app: str | None,
    by: str | None,
    comment: str | None,
    digest: str | None,
    as_json: bool,
) -> None:
    from agentflow.approvals import Edit
    from agentflow.cli.ids import approval_of
    from agentflow.cli.opened import opened
    from agentflow.cli.output import show_json

    async with opened(app) as found:
        request = await approval_of(found, approval)
        if isinstance(decision, list):
            decision = _changed(request, dict(decision))
        if isinstance(decision, dict):
            decision = Edit(decision)
        # The digest of what was read, so that nothing else can have taken its place.
        decided = await found.approvals.decide(
            request.id,
            decision,
            by=user_name() if by is None else by,
            args_digest=request.args_digest if digest is None else digest,
            comment=comment,
        )
    if as_json:
        show_json(decided)
        return
    if decided.status == "pending":
        kinds = [given.kind for given in decided.decisions]
        # What was agreed to before an edit was other arguments.
        standing = kinds[::-1].index("edit") + 1 if "edit" in kinds else len(kinds)
        missing = decided.min_approvals - standing
        print(f"{decided.id}: noted; it needs {missing} more approval{'s' if missing > 1 else ''}")
    else:
        print(f"{decided.id}: {decided.status}: {call_text(decided)}")


def call_text(request: ApprovalRequest) -> str:
    """What was decided about, as a call: `refund(order_id="1001", amount=12)`."""
    from agentflow.cli.output import one_line, visible

    args = request.edited_args if request.edited_args is not None else request.args
    if request.tool is None or args is None:
        return visible(request.title)
    return visible(
        f"{request.tool}({', '.join(f'{name}={one_line(value)}' for name, value in args.items())})"
    )


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Stop(f"--set {text!r}: write NAME=VALUE", ExitCode.USAGE)
    return name, value


def _changed(request: ApprovalRequest, changes: dict[str, str]) -> dict[str, Any]:
    args = request.args or {}
    unknown = sorted(changes.keys() - args.keys())
    if unknown:
        raise Stop(
            f"approval {request.id} has no argument {', '.join(unknown)}; it has: {', '.join(args) or 'none'}",
            ExitCode.USAGE,
        )
    return {
        name: typed_like(value, changes[name]) if name in changes else value for name, value in args.items()
    }


def typed_like(value: Any, text: str) -> Any:
    """What a person typed in place of `value`: where that is a text it stays one, `1001` too; else JSON if it is."""
    import json

    if isinstance(value, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
