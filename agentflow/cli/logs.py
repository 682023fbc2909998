"""Logs of the long-running commands: to stderr, one line each."""

from __future__ import annotations

import logging
import os


def log_to_stderr() -> None:
    """`AGENTFLOW_LOG_LEVEL` sets the level (INFO); an app that has configured logging itself is left alone."""
    level = os.environ.get("AGENTFLOW_LOG_LEVEL", "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        level = "INFO"
    handler = logging.StreamHandler()
    handler.setFormatter(Readable())
    logging.basicConfig(level=level, handlers=[handler])
    if level == "INFO":
        # It tells about each step of making the tables; who wants to know asks for DEBUG.
        logging.getLogger("alembic").setLevel(logging.WARNING)


class Readable(logging.Formatter):
    """`2026-01-02 03:04:05 INFO     what happened`; who says it only where it is neither agentflow nor its server."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(said_by)s%(message)s", datefmt="%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.said_by = (
            "" if record.name.partition(".")[0] in ("agentflow", "uvicorn") else f"{record.name}: "
        )
        return super().format(record)
