"""Logs of the long-running commands: to stderr, one line each."""

from __future__ import annotations

import logging
import os


def log_to_stderr() -> None:
    """`AGENTFLOW_LOG_LEVEL` sets the level (INFO); an app that has configured logging itself is left alone."""
    level = os.environ.get("AGENTFLOW_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        level = "INFO"
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
