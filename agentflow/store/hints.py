"""Hints to those who listen in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from agentflow.store.protocol import Hint, HintListener

logger = logging.getLogger("agentflow.store")


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
