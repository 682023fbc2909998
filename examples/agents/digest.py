"""A digest every morning: what came in since the last one, summed up by a model and written once for each day.

However many processes run this, each day has one digest; if none runs at eight, the next to start catches up.

    python examples/agents/digest.py            # writes today's at once, to show it
    agentflow worker -a examples.agents.digest  # writes one every morning
    DIGEST_MODEL=openai:gpt-5-mini ...          # ask a real model
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agentflow import App, Context, ModelRequest, Step, cron
from agentflow.flow import CronTick

INBOX = Path(os.environ.get("DIGEST_INBOX", "inbox"))
DIGESTS = Path(os.environ.get("DIGEST_FOLDER", "digests"))


async def offline(request: ModelRequest) -> str:
    """What a model would say, so that the example needs no key."""
    notes = request.prompt.splitlines()
    return f"{len(notes)} notes: " + "; ".join(notes)


MODEL = os.environ.get("DIGEST_MODEL") or offline

app = App("digest")


@app.function(on=cron("0 8 * * *", tz="Europe/Berlin", catch_up="one"))
async def morning_digest(ctx: Context[CronTick], step: Step) -> str:
    until = ctx.data.nominal_at  # the time of the plan, not of the clock: the same on every replay
    notes = await step.run("collect", collect, until - timedelta(days=1), until)
    if not notes:
        return "nothing came in"
    digest = await step.ai.infer(
        "sum up", model=MODEL, instructions="Sum up these notes for the team.", messages="\n".join(notes)
    )
    return await step.run("write", write, until, digest.text)


def collect(since: datetime, until: datetime) -> list[str]:
    """The first line of every note of that day."""
    notes = sorted(INBOX.glob("*.txt"), key=lambda path: path.stat().st_mtime)
    return [
        path.read_text().partition("\n")[0]
        for path in notes
        if since <= datetime.fromtimestamp(path.stat().st_mtime, UTC) < until
    ]


def write(day: datetime, text: str) -> str:
    """Under the day's name: doing it twice changes nothing."""
    DIGESTS.mkdir(parents=True, exist_ok=True)
    (DIGESTS / f"{day:%Y-%m-%d}.txt").write_text(text)
    return text


def fill_inbox() -> None:
    """With something to sum up, where there is nothing yet."""
    if not INBOX.exists():
        INBOX.mkdir(parents=True)
        (INBOX / "1.txt").write_text("The coffee machine is broken.\nAgain.")
        (INBOX / "2.txt").write_text("Lunch is at one.")


async def main() -> None:
    fill_inbox()
    async with app.running():
        run = await app.start(morning_digest, CronTick(nominal_at=datetime.now(UTC)))
        print(await run.result(timeout=60))


if __name__ == "__main__":
    asyncio.run(main())
