"""Named points of the engine where a test lets the process die; `point(name)` does nothing otherwise."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from agentflow.errors import ConfigurationError

VARIABLE: Final = "AGENTFLOW_CRASH_AT"

CRASH_POINTS: Final[tuple[str, ...]] = (
    "before_claim",
    "after_claim",
    "after_start",
    "before_commit",
    "after_commit",
    "before_acknowledge",
    "before_heartbeat",
    "before_suspend",
    "after_suspend",
    "before_finish",
    "after_finish",
    "before_request",
    "after_request",
    "before_notify",
)


class Armed:
    """One point, and how often it was passed."""

    def __init__(self, name: str, n: int, action: Callable[[], None]) -> None:
        self.name = name
        self.passes = 0
        """How often it was passed while it was armed."""
        self._n = n
        self._action = action
        self._lock = threading.Lock()  # the writer and the heartbeat pass points in threads of their own

    def passed(self) -> None:
        with self._lock:
            self.passes += 1
            is_due = self.passes == self._n
        if is_due:
            self._action()


_armed: Armed | None = None


def point(name: str) -> None:
    """Mark a place where a crash must do no harm. Costs nothing unless a point is armed."""
    armed = _armed  # read once: another thread may disarm it
    if armed is not None and armed.name == name:
        armed.passed()


def arm(name: str, n: int, action: Callable[[], None]) -> Armed:
    """Have `action` called at the n-th pass of that point, once. Raises `ConfigurationError`."""
    global _armed
    if name not in CRASH_POINTS:
        raise ConfigurationError(f"there is no crash point {name!r}; there are {', '.join(CRASH_POINTS)}")
    if n < 1:
        raise ConfigurationError(f"crash point {name!r}: n is {n}, the first pass is 1")
    _armed = Armed(name, n, action)
    return _armed


def is_armed() -> bool:
    return _armed is not None


def disarm() -> None:
    """Make every point a no-op again."""
    global _armed
    _armed = None


def arm_from(setting: str) -> None:
    """Arm what `AGENTFLOW_CRASH_AT=point:n` says: that pass kills the process as `kill -9` does."""
    name, _, count = setting.partition(":")
    if count and not (count.isascii() and count.isdecimal()):
        raise ConfigurationError(f"{VARIABLE}={setting}: write point:n, n is a number from 1")
    arm(name, int(count or 1), _kill_this_process)


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# The variable is meant for a process that another one starts, so it has to work without a line of code there.
if os.environ.get(VARIABLE):
    arm_from(os.environ[VARIABLE])
