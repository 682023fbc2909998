"""A moderation queue: a model sorts reported posts, and where it is not sure two moderators have to agree.

Until they have, or a day is over, nothing of the run is in memory. Who decides is who is signed in: `approvers` are
roles or ids, and one person counts once.

    python examples/agents/moderation.py
    MODERATION_MODEL=openai:gpt-5-mini python examples/agents/moderation.py
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

from pydantic import BaseModel

from agentflow import App, Approval, Approve, Context, Event, ModelRequest, Step
from agentflow.auth import Principal


class Post(BaseModel):
    id: str
    text: str


class Opinion(BaseModel):
    verdict: Literal["fine", "harmful", "unsure"]
    why: str


async def offline(request: ModelRequest) -> Any:
    """What a model would say, so that the example needs no key."""
    if "cake" in request.prompt:
        return Opinion(verdict="fine", why="It is about cake.")
    return Opinion(verdict="unsure", why="It may be a joke.")


MODEL = os.environ.get("MODERATION_MODEL") or offline
QUORUM = Approval(approvers=("moderator",), min_approvals=2, timeout="1d")

app = App("moderation")


@app.function(on="post.reported")
async def moderate(ctx: Context[Post], step: Step) -> str:
    sorted_by_model = await step.ai.infer(
        "sort", model=MODEL, instructions="May this stay on a forum?", messages=ctx.data.text, output=Opinion
    )
    opinion: Opinion = sorted_by_model.output
    if opinion.verdict == "fine":
        return "kept"
    if opinion.verdict == "unsure":
        decision = await step.approval(
            "quorum",
            title=f"Take down post {ctx.data.id}?",
            details={"text": ctx.data.text, "model": opinion.why},
            policy=QUORUM,
        )
        if not decision.approved:
            return f"kept ({decision.reason})"
    await step.run("take down", take_down, ctx.data.id)
    return "taken down"


def take_down(post_id: str) -> None:
    """Where the forum would be called."""


async def decide_all(*moderators: str) -> None:
    """Each of them agrees to all that waits."""
    for name in moderators:
        for request in (await app.approvals.list(status="pending")).data:
            print(f"{name}: {request.title} Yes.")
            await app.approvals.decide(
                request.id,
                Approve(),
                by=Principal(id=name, roles=("moderator",)),
                args_digest=request.args_digest,
            )


async def main() -> None:
    async with app.running():
        posts = [Post(id="1", text="I like cake."), Post(id="2", text="I will eat you all.")]
        events = await app.send([Event(name="post.reported", data=post.model_dump()) for post in posts])
        runs = [(await app.events.runs(event)).data[0] for event in events]
        handles = [app.runs.handle(run.id) for run in runs]
        async for item in handles[1].stream():
            if item.kind == "run.waiting":
                break
        await decide_all("ana", "ben")
        for post, handle in zip(posts, handles, strict=True):
            print(f"post {post.id}: {await handle.result(timeout=60)}")


if __name__ == "__main__":
    asyncio.run(main())
