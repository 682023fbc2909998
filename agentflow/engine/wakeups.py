"""What wakes a worker: hints from the database, its own timers, and a poll that makes both unnecessary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentflow.store.hints import Hint, HintKind


class Wakeups:
    """Turns hints into calls: look for ready runs, look into one run's mail, or into everybody's.

    `on_ready` says whether it sees to that run itself.
    """

    def __init__(
        self,
        *,
        on_ready: Callable[[str], bool],
        on_mail: Callable[[str], None],
        on_any: Callable[[], None],
    ) -> None:
        self._on_ready = on_ready
        self._on_mail = on_mail
        self._on_any = on_any
        self._ready = asyncio.Event()

    def hear(self, hint: Hint) -> None:
        """Take a hint from the store."""
        match hint.kind:
            case HintKind.READY:
                if hint.run_id is None or not self._on_ready(hint.run_id):
                    self._ready.set()
            case HintKind.MAIL if hint.run_id is not None:
                self._on_mail(hint.run_id)
            case HintKind.ANY | HintKind.MAIL:
                self._ready.set()
                self._on_any()

    def look_for_runs(self) -> None:
        self._ready.set()

    async def wait(self, timeout: float | None) -> None:
        """Until there may be a ready run, or `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            pass
        self._ready.clear()
