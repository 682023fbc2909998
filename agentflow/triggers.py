"""What starts a function by itself: `on_event` and `cron`, for `@app.function(on=...)`."""

from __future__ import annotations

from typing import Literal

from agentflow.durations import Duration
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
    """Start the function at the times of a cron expression, once each; its data is a `flow.CronTick`.

    Five fields, `@hourly` and the like, with or without `TZ=Europe/Paris` in front; in UTC without a zone. `jitter`
    delays each run by less than that. `catch_up` says what is done about times at which no worker was there: nothing,
    one run for the last of them, or a run for each.
    """
    return CronTrigger(expr=expr, tz=tz, jitter=jitter, catch_up=catch_up)
