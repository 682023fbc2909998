"""Options that many commands share, named once."""

from __future__ import annotations

from typing import Annotated

import typer

AppRef = Annotated[
    str | None,
    typer.Option(
        "-a",
        "--app",
        metavar="MODULE:APP",
        help="The app: module:attribute, or path/to/file.py.",
        show_default=False,
    ),
]
AppArgument = Annotated[
    str | None, typer.Argument(metavar="[MODULE:APP]", help="The app; as -a.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, and nothing else, on stdout.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100, help="How many at most.")]
Cursor = Annotated[
    str | None, typer.Option("--cursor", help="Go on where the last page ended.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option("--data", "-d", metavar="JSON|@FILE|-", help="JSON, a file or stdin.", show_default=False),
]
