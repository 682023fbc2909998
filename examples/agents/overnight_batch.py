"""Letters are labelled overnight by the provider's batch API, for half the price; in the morning there is a report.

Each letter is a batch of its own: a run that waits costs nothing, a letter that fails does not stop the others, and
whatever is killed during the night, no letter is labelled and paid for twice.

    python examples/agents/overnight_batch.py                # at once, with a function in the model's place
    OVERNIGHT_MODEL=anthropic:claude-sonnet-4-5 python examples/agents/overnight_batch.py    # a real batch: hours
    agentflow worker -a examples.agents.overnight_batch      # every night at ten
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from agentflow import App, Context, ModelRequest, ModelSettings, Step, cron
from agentflow.errors import AgentflowError
from agentflow.flow import CronTick

LETTERS = Path(os.environ.get("OVERNIGHT_LETTERS", "letters"))
REPORTS = Path(os.environ.get("OVERNIGHT_REPORTS", "reports"))


class Letter(BaseModel):
    name: str
    text: str


class Label(BaseModel):
    topic: Literal["complaint", "praise", "question"]
    urgent: bool


async def offline(request: ModelRequest) -> Label:
    """What a model would say, so that the example needs no key."""
    text = request.prompt.lower()
    topic = "question" if "?" in text else "complaint" if "broken" in text else "praise"
    return Label.model_validate({"topic": topic, "urgent": "today" in text})


MODEL = os.environ.get("OVERNIGHT_MODEL") or offline

app = App("overnight")


@app.function
async def label_letter(ctx: Context[Letter], step: Step) -> Label:
    answer = await step.ai.infer(
        "label",
        model=MODEL,
        instructions="Label this letter to our shop.",
        messages=ctx.data.text,
        output=Label,
        settings=ModelSettings(latency="batch"),
    )
    label: Label = answer.output
    return label


@app.function(on=cron("0 22 * * *", tz="Europe/Berlin"))
async def overnight(ctx: Context[CronTick], step: Step) -> str:
    day = ctx.data.nominal_at
    letters = await step.run("collect", collect)
    labels = await asyncio.gather(*(label_or_none(step, letter) for letter in letters))
    await step.sleep_until("morning", day + timedelta(hours=9))
    named = list(zip((letter.name for letter in letters), labels, strict=True))
    return await step.run("report", write_report, day, dict(named))


async def label_or_none(step: Step, letter: Letter) -> Label | None:
    """One letter that fails, or that a person gives up, leaves the others alone."""
    try:
        return await step.invoke(letter.name, label_letter, data=letter)
    except AgentflowError:
        return None


def collect() -> list[Letter]:
    return [Letter(name=path.stem, text=path.read_text()) for path in sorted(LETTERS.glob("*.txt"))]


def write_report(day: datetime, labels: dict[str, Label | None]) -> str:
    """Under the day's name: doing it twice changes nothing."""
    topics = Counter(label.topic for label in labels.values() if label is not None)
    urgent = [name for name, label in labels.items() if label is not None and label.urgent]
    failed = [name for name, label in labels.items() if label is None]
    told = [
        f"{len(labels)} letters: " + ", ".join(f"{count} {topic}" for topic, count in sorted(topics.items()))
    ]
    told += [f"today: {', '.join(urgent)}"] * bool(urgent) + [f"not labelled: {', '.join(failed)}"] * bool(
        failed
    )
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{day:%Y-%m-%d}.txt").write_text("\n".join(told))
    return "\n".join(told)


def fill_letters() -> None:
    """With something to label, where there is nothing yet."""
    if not LETTERS.exists():
        LETTERS.mkdir(parents=True)
        (LETTERS / "ana.txt").write_text("The kettle came broken. I need one today.")
        (LETTERS / "ben.txt").write_text("When do you open on Sundays?")
        (LETTERS / "cleo.txt").write_text("The best tea I ever had.")


async def main() -> None:
    fill_letters()
    last_night = datetime.now(UTC) - timedelta(hours=9)  # so that the morning is now
    async with app.running():
        run = await app.start(overnight, CronTick(nominal_at=last_night))
        print(await run.result(timeout=86_400))


if __name__ == "__main__":
    asyncio.run(main())
