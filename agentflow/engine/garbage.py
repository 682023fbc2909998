"""How often Python looks for garbage in cycles while a worker is at work.

Python looks after every 700 new objects. What a run keeps in memory lives much longer than that, so it is looked at
again and again; and each time a quarter has been added, everything in the process is. With a thousand agents that is a
fifth of the processor, and pauses of a tenth of a second. Runs leave next to nothing in cycles behind.
"""

from __future__ import annotations

import gc
from typing import Final

NEW_OBJECTS: Final = 5_000
"""After so many it looks: one look takes about 2 ms, and what it lets lie meanwhile is a few megabytes at most."""
_DEFAULTS: Final = (700, 2_000)
"""Python's own, until 3.12 and since 3.13."""


def collect_seldom() -> None:
    """Look for garbage after `NEW_OBJECTS`, unless somebody has chosen a threshold for this process before."""
    first, second, third = gc.get_threshold()
    if first in _DEFAULTS:
        gc.set_threshold(NEW_OBJECTS, second, third)
