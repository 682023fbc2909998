"""A long document: cut into chapters, each summarised in a run of its own, three at a time, then put together.

A chapter that is done stays done: kill the process and start it again, and only what is missing is asked for.

    python examples/agents/long_document.py [FILE]
    DOCUMENT_MODEL=anthropic:claude-sonnet-4-5 python examples/agents/long_document.py report.txt
"""

from __future__ import annotations

import asyncio
import os
import sys
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel

from agentflow import App, Context, ModelRequest, Step
from agentflow.flow import Concurrency


class Chapter(BaseModel):
    title: str
    text: str


async def offline(request: ModelRequest) -> str:
    """What a model would say, so that the example needs no key: the first sentence of each paragraph."""
    return " ".join(part.split(". ")[0].strip(". \n") + "." for part in request.prompt.split("\n\n") if part)


MODEL = os.environ.get("DOCUMENT_MODEL") or offline

app = App("long-document")


@app.function(concurrency=Concurrency(3))  # over all processes: the provider's limit, not the machine's
async def summarise_chapter(ctx: Context[Chapter], step: Step) -> str:
    answer = await step.ai.infer(
        "summarise", model=MODEL, instructions="Summarise in three sentences.", messages=ctx.data.text
    )
    return f"{ctx.data.title}: {answer.text}"


@app.function
async def summarise(ctx: Context[str], step: Step) -> str:
    chapters = await step.run("cut", cut, ctx.data)
    summaries = await asyncio.gather(
        *(step.invoke("chapter", summarise_chapter, data=chapter) for chapter in chapters)
    )
    whole = await step.ai.infer(
        "put together", model=MODEL, instructions="Make one text of it.", messages="\n\n".join(summaries)
    )
    return whole.text


def cut(text: str) -> list[Chapter]:
    """At every line that begins with '# '."""
    parts = [part.partition("\n") for part in f"\n{text}".split("\n# ") if part.strip()]
    return [Chapter(title=title.strip(), text=body.strip()) for title, _, body in parts]


SAMPLE = "\n".join(
    f"# Chapter {number}\nIn chapter {number} it rained. Nobody went out.\n\nThen the sun came. All went out.\n"
    for number in range(1, 9)
)


async def main(text: str) -> None:
    async with app.running():
        run = await app.start(summarise, text, idempotency_key=sha256(text.encode()).hexdigest())
        print(await run.result(timeout=3600))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else SAMPLE))
