"""A draft waits up to three days for a person; a signal publishes or drops it.

Served by `uvicorn examples.api:api`, the answer comes over HTTP:

    POST /agentflow/functions/review-article/runs   {"id": "42", "topic": "durable steps"}
    POST /agentflow/signals                         {"signal": "review:42", "data": {"approved": true}}

`python examples/agents/review_gate.py` plays both sides. The process may end and begin again at any point: the draft
is not written twice, and the wait goes on.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from agentflow import App, Context, Step

PUBLISHED = Path(os.environ.get("REVIEW_GATE_PUBLISHED", "published"))

app = App("review-gate")


class Article(BaseModel):
    id: str
    topic: str


class Verdict(BaseModel):
    approved: bool
    comment: str = ""


class Outcome(BaseModel):
    status: Literal["published", "dropped"]
    draft: str
    comment: str = ""


def write_draft(topic: str) -> str:
    """Where a model would be asked."""
    return f"{topic.capitalize()}: what you need to know."


def publish(article_id: str, text: str) -> str:
    """Written under the article's id: doing it twice changes nothing."""
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    file = PUBLISHED / f"{article_id}.txt"
    file.write_text(text)
    return file.name


@app.function(on="article.requested")
async def review_article(ctx: Context[Article], step: Step) -> Outcome:
    """Draft an article, and publish it once a person has said yes."""
    draft = await step.run("draft", write_draft, ctx.data.topic)
    answer = await step.wait_for_signal(
        "review", signal=f"review:{ctx.data.id}", timeout="3d", output=Verdict
    )
    if answer is None:
        return Outcome(status="dropped", draft=draft, comment="nobody answered in three days")
    verdict: Verdict = answer.data
    if not verdict.approved:
        return Outcome(status="dropped", draft=draft, comment=verdict.comment)
    await step.run("publish", publish, ctx.data.id, draft)
    return Outcome(status="published", draft=draft, comment=verdict.comment)


async def main() -> None:
    async with app.running():
        run = await app.start(review_article, Article(id="42", topic="durable steps"))
        async for item in run.stream():
            if item.kind == "run.waiting":
                break
        print(f"run {run.id} waits for the signal review:42")
        await app.signal("review:42", {"approved": True, "comment": "well said"})
        outcome = await run.result(timeout=30)
        print(f"{outcome.status}: {outcome.draft}")


if __name__ == "__main__":
    asyncio.run(main())
