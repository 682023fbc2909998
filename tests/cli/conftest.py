"""A project in a folder of the test's own, and the command line as a user has it there."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from agentflow.app import App
from agentflow.cli import cli
from agentflow.cli.find_app import load_app
from tests import forked

SHOP = """
from decimal import Decimal

from pydantic import BaseModel
from tenacity import AsyncRetrying, stop_after_attempt, wait_fixed

from agentflow import App, Approval, Context, Step
from agentflow.agents import Agent, tool
from agentflow.errors import StepError
from agentflow.flow import Budget
from agentflow.models.function import FunctionModel

talk = Budget("talk", cost_usd="2.5", tokens=100_000, agent="talker", key="data.prompt")
app = App("shop", database_url="sqlite:///shop.db", budgets=[talk])


class Order(BaseModel):
    id: str
    amount: int = 1


@app.function(on="shop/order.paid")
async def ship(ctx: Context[Order], step: Step) -> str:
    await step.run("pack", lambda: {"packed": ctx.data.id})
    signal = await step.wait_for_signal("collected", signal=f"collected/{ctx.data.id}", timeout="1h")
    return f"collected by {signal.data}" if signal else "nobody came"


@app.function
async def agree(ctx: Context[dict], step: Step) -> dict:
    decision = await step.approval("all", title="All agree", policy=Approval(min_approvals=2))
    return {"approved": decision.approved, "edited": decision.edited}


@app.function
async def double(ctx: Context[int], step: Step) -> int:
    return await step.run("double", lambda: ctx.data * 2, output=int)


@app.function(retries=0)
async def breaks(ctx: Context[dict], step: Step) -> None:
    raise ValueError("it broke")


@app.function
async def stumbles(ctx: Context[dict], step: Step) -> None:
    retrying = AsyncRetrying(stop=stop_after_attempt(3), wait=wait_fixed(3600))
    await step.run("look", lambda: {}["nowhere"], retry=retrying)


@app.function
async def catches(ctx: Context[dict], step: Step) -> None:
    try:
        await step.run("look", lambda: {}["nowhere"], retry=0)
    except StepError:
        pass


@tool(approval=True)
async def pay(account: str, amount: Decimal) -> str:
    '''Pay money.'''
    return f"paid {amount} to {account}"


def reply(request):
    last = request.messages[-1]
    if last.role == "tool":
        return last.tool_results[-1].text
    from agentflow import ToolCall

    return ToolCall(name="pay", args={"account": "1001", "amount": "12.50"})


app.add(Agent("payer", model=FunctionModel(reply, name="reply"), tools=[pay]))


def say(request):
    return "a" * 1000


app.add(Agent("talker", model=f"scripted:{__name__}:say"))
"""

_numbers = itertools.count()


@dataclass
class Project:
    """A folder with an app; `work` runs its functions until nothing more happens by itself."""

    folder: Path
    ref: str

    @property
    def app(self) -> App:
        return load_app(self.ref)

    def run(self, *arguments: str, input: str | None = None) -> Result:
        """The command line, in this process."""
        return CliRunner().invoke(cli, list(arguments), input=input)

    def work(self) -> None:
        """Let a worker work until every run has ended or waits."""

        async def until_quiet() -> None:
            app = self.app
            async with app.running(), asyncio.timeout(20):
                while (await app.runs.list(status=["queued", "running"])).data:
                    await asyncio.sleep(0.01)

        asyncio.run(until_quiet())

    def start(self, function: str, data: str) -> str:
        """The id of a new run, as far as it comes by itself."""
        result = self.run("start", function, "--data", data)
        assert result.exit_code == 0, result.stderr
        self.work()
        return result.stdout.strip()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AGENTFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> Iterator[Path]:
    """The current folder, with nothing in it; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path, modules = list(sys.path), set(sys.modules)
    yield folder
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def project(empty_folder: Path) -> Project:
    name = f"shop_{next(_numbers)}"
    (empty_folder / f"{name}.py").write_text(SHOP)
    (empty_folder / "pyproject.toml").write_text(f'[tool.agentflow]\napp = "{name}:app"\n')
    return Project(empty_folder, f"{name}:app")


@pytest.fixture
def shell(empty_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line as a process of its own, in the current folder."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return forked.run(["-P", "-m", "agentflow", *arguments], **{"cwd": empty_folder, **options})

    return run


@pytest.fixture
def real_shell(empty_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same with an interpreter of its own, as a user starts it."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "agentflow", *arguments],
            capture_output=True,
            text=True,
            timeout=50,
            **{"cwd": empty_folder, "stdin": subprocess.DEVNULL, **options},
        )

    return run
