"""Answers by a script or a function, without a network and without a key: for examples, demos and crash
tests.

The answer depends on the request alone. A process that crashed and starts again is told the same, and a
test that kills processes can count what was really generated: each answer is a line in the file that
`AGENTFLOW_SCRIPTED_GENERATIONS` names, on the disk before the answer is given.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentflow.errors import ConfigurationError
from agentflow.models.function import FunctionModel
from agentflow.models.replies import Reply
from agentflow.providers import ModelRequest
from agentflow_scripted.script import Rule, Script

GENERATIONS_FILE = "AGENTFLOW_SCRIPTED_GENERATIONS"


class Scripted(FunctionModel):
    """A model that follows a script.

    Args: source: `path/to/script.json`; or `module:attribute`, which is a list of rules, a `Script`, or a
    function of the `ModelRequest`, sync or async, whose reply must depend on the request alone; or the
    rules themselves. generations_file: a line is appended to it, and synced, for each answer generated.
    """

    provider = "scripted"
    # A provider that is named, not a stand-in: what it cannot do is told, as of any other.
    capabilities = replace(FunctionModel.capabilities, latencies=())

    def __init__(
        self,
        source: str | Script | Sequence[Rule | dict[str, Any]],
        *,
        generations_file: str | Path | None = None,
    ) -> None:
        name = source if isinstance(source, str) else "rules"
        super().__init__(self._generate, name=name)
        self._source = source
        self._generations_file = generations_file
        self._follow: Callable[[ModelRequest], Any] | None = None

    async def _generate(self, request: ModelRequest) -> Reply:
        if self._follow is None:
            self._follow = _followed(self._source)
        reply = self._follow(request)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, Rule):
            if reply.delay_seconds:
                await asyncio.sleep(reply.delay_seconds)
            reply = reply.reply(request)
        self._count(request)
        replied: Reply = reply
        return replied

    def _count(self, request: ModelRequest) -> None:
        path = self._generations_file or os.environ.get(GENERATIONS_FILE)
        if not path:
            return
        # One write of one line at the end of the file: lines of several processes do not mix.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, f"{self.model} {request.digest()}\n".encode())
            os.fsync(file)
        finally:
            os.close(file)


def _followed(source: str | Script | Sequence[Rule | dict[str, Any]]) -> Callable[[ModelRequest], Any]:
    if not isinstance(source, str):
        return Script.of(source, source="given in code").rule_for
    module, colon, attribute = source.partition(":")
    if not colon:
        return Script.read(Path(source)).rule_for
    found = _imported(module, attribute, source)
    return found if callable(found) else Script.of(found, source=source).rule_for


def _imported(module: str, attribute: str, source: str) -> Any:
    # A script beside the program is found as `python -m` would find it, also under a console script.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"the scripted model 'scripted:{source}' cannot be found: {error}. Write "
            "scripted:module:attribute, or scripted:path/to/script.json"
        ) from error
