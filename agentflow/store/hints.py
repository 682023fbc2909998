"""Hints to those who listen in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

logger = logging.getLogger("agentflow.store")


class HintKind(StrEnum):
    """What may have happened. A hint may come late, twice, or not at all; polling makes everything correct."""

    READY = "ready"
    """Some run can be claimed."""
    MAIL = "mail"
    """Something was delivered to, or asked of, this run, which may be in memory."""
    ENDED = "ended"
    """This run has ended."""
    STREAM = "stream"
    """This run's stream has grown."""
    ANY = "any"
    """Another process wrote: look at everything."""


class Hint(NamedTuple):
    kind: HintKind
    run_id: str | None = None


HintListener = Callable[[Hint], None]


class Hints:
    """The listeners. One that fails does not keep the others from hearing."""

    def __init__(self) -> None:
        self._listeners: list[HintListener] = []

    def subscribe(self, listener: HintListener) -> Callable[[], None]:
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def tell(self, hints: Iterable[Hint]) -> None:
        """Tell each hint once, in order."""
        for hint in dict.fromkeys(hints):
            for listener in tuple(self._listeners):
                try:
                    listener(hint)
                except Exception:
                    logger.exception("a listener failed on %s", hint)
