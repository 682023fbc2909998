"""A chat in the browser: the answer appears while the model writes it, and goes on after a reload of the server.

    uvicorn examples.agents.chat:api        then open http://127.0.0.1:8000
    CHAT_MODEL=anthropic:claude-sonnet-4-5 uvicorn examples.agents.chat:api

The page (chat.html, beside this file) keeps the conversation and starts a run for each question. It reads the run's
stream; when the connection breaks the browser connects again by itself and says which number it has had last.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from agentflow import Agent, App, Context, Message, ModelRequest, Step


async def offline(request: ModelRequest) -> str:
    """What a model would say, so that the example needs no key."""
    await asyncio.sleep(0.2)
    questions = sum(message.role == "user" for message in request.messages)
    return f"You asked: {request.prompt} That was question {questions}, and I remember them all."


app = App("chat")
assistant = Agent(
    "assistant", model=os.environ.get("CHAT_MODEL") or offline, instructions="Be brief and kind."
)
app.add(assistant)


@app.function
async def answer(ctx: Context[list[Message]], step: Step) -> str:
    """The next answer in a conversation."""
    return (await assistant.run(step, ctx.data)).output


api = FastAPI(title="Chat")
api.include_router(
    app.router(prefix="/agentflow")
)  # answers to this machine alone: see docs/how-to/http-api.md


@api.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = (Path(__file__).parent / "chat.html").read_text(encoding="utf-8")
