"""`killed_flow` on a machine whose clock is wrong: `python -m tests.faults.wrong_clock URL LOG hours=1`.

The clock is also set on by one hour at SIGUSR1, and back by one at SIGUSR2, while the worker works.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time

_right, _right_ns = time.time, time.time_ns
_wrong_by = 0.0


def _set(hours: float) -> None:
    global _wrong_by
    _wrong_by += hours * 3600


def main(database_url: str, log: str, *, hours: str, **settings: str) -> None:
    _set(float(hours))
    # Before anything of agentflow is imported: it might keep the functions that it finds.
    time.time = lambda: _right() + _wrong_by
    time.time_ns = lambda: _right_ns() + int(_wrong_by * 1e9)
    signal.signal(signal.SIGUSR1, lambda *_: _set(1))
    signal.signal(signal.SIGUSR2, lambda *_: _set(-1))
    from tests.faults import killed_flow

    asyncio.run(killed_flow.main(database_url, log, **settings))


if __name__ == "__main__":
    database_url, log, *rest = sys.argv[1:]
    main(database_url, log, **dict(word.split("=", 1) for word in rest))
