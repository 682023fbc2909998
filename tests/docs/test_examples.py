"""Every example runs offline, as a newcomer would start it, and does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import pytest

from agentflow import Approve, ModelRequest
from agentflow.auth import Principal
from agentflow.errors import NotPermitted
from agentflow.models.clients import close_clients
from agentflow.testing import HttpError, Job, block_models, fake_provider, harness
from tests import forked
from tests.docs.pages import ROOT
from tests.http.servers import Server, read_events

EXAMPLES = ROOT / "examples" / "agents"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs an example in an empty folder, without any key, the first time in a new interpreter; gives what it
    printed."""
    keys = ("OPENAI_", "ANTHROPIC_", "AGENTFLOW_")
    keyless = {key: value for key, value in os.environ.items() if not key.startswith(keys)}
    was_run = set()

    def run(name: str, *arguments: str) -> list[str]:
        words = [str(EXAMPLES / name), *arguments]
        if name in was_run:
            done = forked.run(words, cwd=tmp_path, env=keyless)
        else:
            was_run.add(name)
            done = subprocess.run(
                [sys.executable, *words],
                cwd=tmp_path,
                env=keyless,
                capture_output=True,
                text=True,
                timeout=50,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return run


def test_research_is_done_by_three_sub_agents_once(run: Callable[..., list[str]]) -> None:
    first = run("research.py")
    assert first[0] == "Not well: water boils too cold there."
    assert len(first) == 5
    assert first[-1] == "8 model calls"
    assert run("research.py") == first  # the same run: nothing was asked again


async def test_the_sub_agents_of_research_work_at_the_same_time(sqlite_url: str) -> None:
    from examples.agents.research import app, researcher

    with block_models():
        async with harness(app, database_url=sqlite_url) as h:
            run = await h.start(researcher, "Can one make good tea on Mount Everest?")
            await h.idle()
            await run.result(5)
            steps = {step.key: step for step in (await app.runs.steps(run.id)).data}
            invoked = [steps[f"researcher#0/turn0/{number}:librarian"] for number in range(3)]
            children = (await app.runs.list(function="agents/librarian")).data
    assert {step.kind for step in invoked} == {"invoke"}
    assert {child.parent_id for child in children} == {run.id}
    assert max(child.created_at for child in children) <= min(
        child.ended_at for child in children if child.ended_at
    )


def test_a_long_document_is_summarised_chapter_by_chapter(
    run: Callable[..., list[str]], tmp_path: Path
) -> None:
    [told] = run("long_document.py")
    assert [f"Chapter {number}: In chapter {number} it rained." in told for number in range(1, 9)] == [
        True
    ] * 8
    (tmp_path / "mine.txt").write_text("# One\nIt began. It went on.\n# Two\nIt ended.\n")
    assert run("long_document.py", "mine.txt") == ["One: It began. Two: It ended."]


def test_a_digest_is_written_under_its_day(run: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run("digest.py") == ["2 notes: The coffee machine is broken.; Lunch is at one."]
    [digest] = (tmp_path / "digests").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\.txt", digest.name)
    assert digest.read_text().startswith("2 notes")


async def test_a_digest_begins_every_morning(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import examples.agents.digest as example

    days: list[str] = []
    monkeypatch.setattr(example, "collect", lambda since, until: [f"since {since:%d} until {until:%d}"])
    monkeypatch.setattr(example, "write", lambda day, text: days.append(f"{day:%H:%M}") or text)
    async with harness(example.app, database_url=sqlite_url) as h:
        await h.advance("3d")
        assert len((await example.app.runs.list(function="morning-digest")).data) == 3
    assert days == ["08:00"] * 3


def test_letters_are_labelled_and_reported(run: Callable[..., list[str]], tmp_path: Path) -> None:
    told = ["3 letters: 1 complaint, 1 praise, 1 question", "today: ana"]
    assert run("overnight_batch.py") == told
    [report] = (tmp_path / "reports").iterdir()
    assert report.read_text().splitlines() == told


async def test_each_letter_is_one_batch_whatever_dies_at_night(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import examples.agents.overnight_batch as example

    def reply(request: ModelRequest) -> object:
        if request.prompt == "letter 7":
            return HttpError(400)
        return Job({"topic": "praise", "urgent": request.prompt == "letter 3"}, queued=9)

    for number in range(12):
        (tmp_path / f"l{number}.txt").write_text(f"letter {number}")
    monkeypatch.setattr(example, "MODEL", "anthropic:claude-sonnet-4-5")
    monkeypatch.setattr(example, "LETTERS", tmp_path)
    monkeypatch.setattr(example, "REPORTS", tmp_path / "reports")
    async with fake_provider(reply) as provider, harness(example.app, database_url=sqlite_url) as h:
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        # Begun by its own schedule: by hand, and at some hours of the day, the schedule would begin another one.
        here = h.now().astimezone(ZoneInfo("Europe/Berlin"))
        tonight = here.replace(hour=22, minute=0, second=0, microsecond=0)
        if tonight <= here:
            tonight += timedelta(days=1)
        await h.advance(tonight.astimezone(UTC) - h.now())
        [begun] = (await example.app.runs.list(function="overnight")).data
        run = example.app.runs.handle(begun.id)
        await h.advance("10m")
        await h.crash()
        await h.restart()
        await h.advance("8h")
        assert await run.status() == "sleeping"
        await h.advance("1h")
        assert await run.result(5) == "12 letters: 11 praise\ntoday: l3\nnot labelled: l7"
        assert provider.generations == len(provider.batches.batches) == 11
        await close_clients()


def test_two_moderators_take_a_post_down(run: Callable[..., list[str]]) -> None:
    assert run("moderation.py") == [
        "ana: Take down post 2? Yes.",
        "ben: Take down post 2? Yes.",
        "post 1: kept",
        "post 2: taken down",
    ]


async def test_one_moderator_and_a_stranger_are_no_quorum(sqlite_url: str) -> None:
    from examples.agents.moderation import Post, app, decide_all, moderate

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(moderate, Post(id="2", text="I will eat you all."))
        await h.idle()
        await decide_all("ana", "ana")
        [request] = (await app.approvals.list(status="pending")).data
        with pytest.raises(NotPermitted):
            await app.approvals.decide(request.id, Approve(), by=Principal(id="eve"))
        await h.advance("1d")
        assert await run.result(5) == "kept (timeout)"


def test_the_chat_streams_to_its_page(tmp_path: Path) -> None:
    server = Server(
        "examples.agents.chat:api", {"AGENTFLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'chat.db'}"}
    )
    server.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30, verify=False) as browser:
            page = browser.get("/").text
            assert page == (EXAMPLES / "chat.html").read_text(encoding="utf-8")
            [start] = re.findall(r'fetch\("([^"]+)"', page)
            [stream] = re.findall(r"EventSource\(`([^`]+)`", page)
            messages: list[dict[str, Any]] = []
            for question in ("Who are you?", "And again?"):
                messages.append({"role": "user", "content": question})
                started = browser.post(start, json=messages)
                assert started.status_code == 202
                with browser.stream("GET", stream.replace("${run.id}", started.json()["id"])) as response:
                    events = list(read_events(response))
                told = "".join(event.data["data"] for event in events if event.event == "text.delta")
                assert events[-1].data["data"]["output"] == told
                messages.append({"role": "assistant", "content": told})
            listened = set(re.findall(r'on\("([\w.]+)"', page))
            assert {"text.delta", "done"} <= listened & {event.event for event in events}
    finally:
        server.stop()
    assert messages[-1]["content"] == ("You asked: And again? That was question 2, and I remember them all.")


def test_each_example_is_run_by_a_test_and_named_in_the_readme() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"{path.name}" in tests or f"examples.agents.{path.stem}" in tests, path.name
        assert f"(examples/agents/{path.name})" in readme, path.name
