"""What both stores do for a worker's runs: each act is one operation in a transaction of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from agentflow.crashpoints import point
from agentflow.store.claim_types import ClaimedRun, Reclaimed
from agentflow.store.operations.gates import TendLanes
from agentflow.store.operations.reclaim import Reclaim
from agentflow.store.operations.workers import Claim, ListMail, NextReady, ReleaseOrphans, Suspects
from agentflow.store.protocol import NO_GATES
from agentflow.store.stored_types import GateLimits, Micros, RunKey


class HasEpoch(Protocol):
    """A lease, as far as claims look at it."""

    @property
    def epoch(self) -> int: ...


L = TypeVar("L", bound=HasEpoch)


class Claiming(ABC, Generic[L]):
    """Claims, and the care of what was claimed, for the workers of this process."""

    def __init__(self) -> None:
        self._leases: dict[str, L] = {}
        self._suspects: dict[str, Suspects] = {}

    @abstractmethod
    async def _transact(self, operation: Any) -> Any:
        """Carry out one operation in a transaction of its own."""

    async def _reclaim(self, operation: Reclaim, epoch: int) -> Reclaimed | None:
        """Take the run up again, if nothing has happened to it."""
        found: Reclaimed | None = await self._transact(operation)
        return found

    async def reclaim(
        self, worker_id: str, *, epoch: int, last: RunKey, next_seq: int, now: Micros
    ) -> Reclaimed | None:
        point("before_claim")
        if not self._holds(worker_id, epoch):
            return None
        found = await self._reclaim(Reclaim(last, worker_id, next_seq, now), epoch)
        point("after_claim")
        return found

    async def claim(
        self,
        worker_id: str,
        *,
        epoch: int,
        app: str,
        functions: Sequence[str],
        limit: int,
        now: Micros,
        gates: Mapping[str, GateLimits] = NO_GATES,
    ) -> list[ClaimedRun]:
        point("before_claim")
        if not self._holds(worker_id, epoch):
            return []
        claimed: list[ClaimedRun] = await self._transact(
            Claim(worker_id, app, tuple(functions), limit, now, gates)
        )
        point("after_claim")
        return claimed

    async def tend_lanes(
        self, *, app: str, functions: Sequence[str], now: Micros, gates: Mapping[str, GateLimits]
    ) -> int:
        let_through: int = await self._transact(TendLanes(app, tuple(functions), now, gates))
        return let_through

    async def next_ready_at(self, *, app: str, functions: Sequence[str]) -> Micros | None:
        due: Micros | None = await self._transact(NextReady(app, tuple(functions)))
        return due

    async def list_mail(self, worker_id: str) -> list[tuple[str, int, bool]]:
        mail: list[tuple[str, int, bool]] = await self._transact(ListMail(worker_id))
        return mail

    async def release_orphans(self, worker_id: str, held: Collection[str], *, now: Micros) -> list[str]:
        suspects = self._suspects.get(worker_id, frozenset())
        operation = ReleaseOrphans(worker_id, frozenset(held), suspects, now)
        released, self._suspects[worker_id] = await self._transact(operation)
        return list(released)

    def disown_worker(self, worker_id: str) -> None:
        self._leases.pop(worker_id, None)

    def _forget(self, worker_id: str) -> None:
        self._leases.pop(worker_id, None)
        self._suspects.pop(worker_id, None)

    def _holds(self, worker_id: str, epoch: int) -> bool:
        lease = self._leases.get(worker_id)
        return lease is not None and lease.epoch == epoch
