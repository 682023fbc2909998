"""The loop that cancels jobs at model providers whose runs have ended without them: cancelled, or failed.

It is not the run that does this: a run is cancelled by whoever asks for it, also when it is in no memory.
"""

from __future__ import annotations

import asyncio
import logging

from agentflow.clock import Clock
from agentflow.engine.reading import undisturbed
from agentflow.models.deferral import deferred
from agentflow.models.ledger import CallState
from agentflow.models.protocol import BackgroundModel
from agentflow.models.registry import model_asked_before
from agentflow.store.operation_types import EndAbandonedCall
from agentflow.store.protocol import Store
from agentflow.store.stored_types import ModelCall

logger = logging.getLogger("agentflow.engine")

INTERVAL_SECONDS = 5.0
CANCEL_SECONDS = 10.0


class AbandonedJobs:
    """The jobs of one app. Any of its workers cancels them; two at once cancel nothing twice that matters."""

    def __init__(self, store: Store, clock: Clock, *, app: str) -> None:
        self._store = store
        self._clock = clock
        self._app = app

    async def run_once(self) -> int:
        """Cancel what is there, and enter it in the ledger as possibly billed; how many jobs it was."""
        calls = await undisturbed(self._store.queries.list_abandoned_calls(app=self._app))
        for run_id, call in calls:
            why = await self._cancel(run_id, call)
            ended = call._replace(state=CallState.IN_DOUBT, ended_at=self._clock.now(), error=why)
            await self._store.submit(EndAbandonedCall(run_id, ended))
        return len(calls)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                await self.run_once()
            except Exception:
                logger.exception("could not look for abandoned jobs; trying again in %d s", INTERVAL_SECONDS)

    async def _cancel(self, run_id: str, call: ModelCall) -> str:
        ref = f"{call.provider}:{call.model}"
        try:
            model = model_asked_before(ref)
            if call.latency is not None:
                model = deferred(model, call.latency)
            if not isinstance(model, BackgroundModel):
                raise TypeError(f"{ref} has no jobs")
            async with asyncio.timeout(CANCEL_SECONDS):
                await model.cancel(call.provider_id or "")
        except Exception as error:
            logger.warning(
                "job %s of %s goes on, although run %s has ended: it could not be cancelled: %r",
                call.provider_id,
                ref,
                run_id,
                error,
            )
            return "the run ended before the job, which could not be cancelled"
        logger.info("job %s of %s was cancelled, as run %s has ended", call.provider_id, ref, run_id)
        return "the run ended before the job, which was cancelled"
