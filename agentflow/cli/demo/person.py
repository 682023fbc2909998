"""Asking the person at the terminal."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from agentflow.approvals import ApprovalRequest, Approve, DecisionInput, Deny, Edit
from agentflow.cli.approvals import typed_like
from agentflow.cli.output import as_text, one_line, visible

Check = Callable[[dict[str, Any]], str | None]
"""Says what is wrong with edited arguments, or None."""


class NobodyThere(Exception):
    """The end of standard input: no person will answer."""


class Lines:
    """Lines from standard input. Reading them can be given up at any moment, and never keeps the process alive."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._reader: threading.Thread | None = None

    async def next(self, prompt: str) -> str:
        """The next line, without its end. Raises `NobodyThere` at the end of the input."""
        print(prompt, end="", flush=True)
        if self._reader is None:
            # Not input(): a thread inside it holds a lock that the interpreter needs to end.
            self._reader = threading.Thread(target=self._read, name="agentflow-stdin", daemon=True)
            self._reader.start()
        line = await self._lines.get()
        if line is None:
            self._lines.put_nowait(None)
            raise NobodyThere
        return line

    def _read(self) -> None:
        pending = b""
        while True:
            try:
                block = os.read(sys.stdin.fileno(), 4096)
            except (OSError, ValueError):
                block = b""
            pending += block
            *lines, pending = pending.split(b"\n")
            for line in lines:
                self._tell(line.decode(errors="replace").rstrip("\r"))
            if not block:
                self._tell(None)
                return

    def _tell(self, line: str | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
        except RuntimeError:  # the loop has ended meanwhile
            return


async def ask(request: ApprovalRequest, lines: Lines, check: Check) -> DecisionInput:
    """The person's decision; what makes no sense is asked again. Raises `NobodyThere`."""
    while True:
        answer = (await lines.next("[a]pprove, [d]eny or [e]dit? ")).strip().lower()
        match answer:
            case "a" | "approve" | "y" | "yes":
                return Approve()
            case "d" | "deny" | "n" | "no":
                return Deny()
            case "e" | "edit":
                return Edit(await _edited(request.args or {}, lines, check))
            case _:
                print(f"{visible(answer)!r} is none of them: type a, d or e, then Enter")


async def _edited(args: dict[str, Any], lines: Lines, check: Check) -> dict[str, Any]:
    print("new arguments; Enter alone keeps what is there")
    edited = dict(args)
    while True:
        for name, value in edited.items():
            text = (await lines.next(f"  {visible(name)} [{as_text(value)}]: ")).strip()
            if text:
                edited[name] = typed_like(value, text)
        wrong = check(edited)
        if wrong is None:
            return edited
        print(f"these cannot be used: {wrong}")
        edited = dict(args)


def question(request: ApprovalRequest) -> list[str]:
    """The question with the arguments as they are."""
    return [
        f"? {visible(request.title)}",
        *(
            f"      {visible(name)} = {visible(one_line(value))}"
            for name, value in (request.args or {}).items()
        ),
    ]
