"""Locks of the operating system beside a SQLite file: they end with the process that holds them, however it ends.

Each worker holds one, so that a peer, or the same command started again, knows at once that it is dead. Others see to
it that one process at a time migrates, and one checkpoints.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from agentflow.errors import ConfigurationError


class LockFolder:
    """The folder `<database>-workers` with its lock files."""

    def __init__(self, database: Path) -> None:
        self._folder = database.with_name(f"{database.name}-workers")
        self._held: dict[str, int] = {}

    def hold(self, worker_id: str) -> None:
        """Take the worker's lock for as long as this process lives."""
        descriptor = self._open(self._path(worker_id))
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise ConfigurationError(f"worker {worker_id} runs already: give each worker a fresh id")
        self._held[worker_id] = descriptor

    def drop(self, worker_id: str) -> None:
        """Let go of the worker's lock; its file stays for a peer to find."""
        descriptor = self._held.pop(worker_id, None)
        if descriptor is not None:
            os.close(descriptor)

    def drop_all(self) -> None:
        for worker_id in list(self._held):
            self.drop(worker_id)

    def is_dead(self, worker_id: str) -> bool:
        """Whether nobody holds the worker's lock."""
        try:
            descriptor = os.open(self._path(worker_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return (
                True  # the file is made before the worker's row: the database was copied, or the file removed
            )
        try:
            return _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, worker_id: str) -> None:
        """Remove a dead worker's file."""
        self._path(worker_id).unlink(missing_ok=True)

    @contextmanager
    def only_one(self, purpose: str, *, wait_seconds: float = 0.0) -> Iterator[bool]:
        """Whether this process alone does that now; waits for it up to so long."""
        descriptor = self._open(self._folder / f".{purpose}")
        try:
            give_up_at = time.monotonic() + wait_seconds
            while not (is_locked := _try_lock(descriptor)) and time.monotonic() < give_up_at:
                time.sleep(0.005)
            yield is_locked
        finally:
            os.close(descriptor)

    def is_time(self, purpose: str, *, pause_seconds: float) -> bool:
        """Whether no process was told so in the last seconds. Ask it as the `only_one` who does that."""
        path = self._folder / f".{purpose}"
        try:
            # Not `>`: somebody may have set the clock back.
            is_time = abs(time.time() - path.stat().st_mtime) > pause_seconds
        except FileNotFoundError:
            is_time = True
        if is_time:
            path.touch()
        return is_time

    def _path(self, worker_id: str) -> Path:
        return self._folder / f"{quote(worker_id, safe='')}.lock"

    def _open(self, path: Path) -> int:
        self._folder.mkdir(exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _try_lock(descriptor: int) -> bool:
    # flock, not lockf: its locks belong to the open file, so two stores of one process see each other's.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
