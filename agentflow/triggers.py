"""What starts a function by itself: `on_event` and `cron`, for `@app.function(on=...)`."""

from __future__ import annotations

from typing import Literal

from agentflow.durations import Duration, parse_duration
from agentflow.events import CronTrigger, EventTrigger


def on_event(name: str, *, if_: str | None = None) -> EventTrigger:
    """Start the function on events of this name, exact or `app/*`; with `if_` only where that expression is true."""
    return EventTrigger(name=name, if_=if_)


def cron(
    expr: str,
    *,
    tz: str | None = None,
    jitter: Duration | None = None,
    catch_up: Literal["skip", "one", "all"] = "skip",
) -> CronTrigger:
    """Start the function at the times of a cron expression of five fields, in a time zone."""
    seconds = 0.0 if jitter is None else parse_duration(jitter).total_seconds()
    return CronTrigger(expr=expr, tz=tz, jitter_seconds=seconds, catch_up=catch_up)
