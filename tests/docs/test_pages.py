"""What holds for every page: its Python is Python, its links lead somewhere, and it promises only what there is."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow import App, Step
from agentflow.auth import __all__ as auth_names
from agentflow.client import Functions, Runs
from agentflow.inference import Inference
from agentflow.testing import harness
from tests.docs.pages import ROOT, blocks_of

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ALL = [*PAGES, *sorted(ROOT.glob("*.md")), ROOT / "providers" / "README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

COMPILED_ONLY = {"how-to/http-api.md"}
"""Its blocks stand in a host's application; tests/http does what they say."""

names = pytest.mark.parametrize("page", ALL, ids=lambda page: page.relative_to(ROOT).as_posix())


@names
def test_every_python_block_compiles(page: Path) -> None:
    for block in blocks_of(page, "python"):
        source = "\n" * (block.line - 1) + block.text
        compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@names
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    broken = [
        target
        for target in targets
        if not target.startswith(("http://", "https://")) and not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_page_with_python_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    tests += "".join(f'"{name}"' for name in COMPILED_ONLY)
    with_python = [page for page in PAGES if blocks_of(page, "python") and page.parent.name != "decisions"]
    not_run = [page.name for page in with_python if f'{page.parent.name}/{page.name}"' not in tests]
    assert not_run == []


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    decisions = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.parent.name == "decisions":
            assert page.name == "README.md" or f"]({page.name})" in decisions, page.name
        elif page.name != "README.md":
            assert f"]({page.relative_to(DOCS).as_posix()})" in index, page.name


def test_no_page_installs_another_distribution_of_that_name() -> None:
    # "agentflow" in a package index is somebody else's; ours is installed from a checkout.
    wrong = re.compile(r"(pip3? install|uv (add|pip install)|pipx install) [^\n]*\bagentflow(?![-/\w])")
    told = [
        page.name
        for page in ALL
        if wrong.search(page.read_text(encoding="utf-8").replace("../agentflow", ""))
    ]
    assert told == []


# --------------------------------------------------------------------------------------------- the README


def test_the_example_of_the_readme_is_the_file() -> None:
    example = (ROOT / "examples" / "agents" / "support.py").read_text(encoding="utf-8")
    assert blocks_of(ROOT / "README.md", "python")[0].text == example


async def test_the_example_waits_for_a_person_and_pays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where its script lies
    monkeypatch.delenv("SUPPORT_MODEL", raising=False)
    from agentflow import Approve
    from examples.agents.support import Ticket, app, handle_ticket

    async with harness(app) as h:
        run = await h.start(handle_ticket, Ticket(id="T-1", text="My espresso machine arrived broken."))
        await h.idle()
        [request] = (await app.approvals.list(status="pending")).data
        assert request.args == {"order_id": "A-1001", "amount": "189.00"}
        await h.crash()
        await app.approvals.decide(request.id, Approve(), by="ana", args_digest=request.args_digest)
        await h.restart()
        await h.advance("10s")
        assert (await run.result(5)).startswith(
            "T-1: Your money is on its way: 189.00 euros for order A-1001"
        )
        assert (await app.usage(run=run.id)).calls == 2


def test_what_the_readme_calls_missing_is_missing() -> None:
    section = README.partition("## Not in this version")[2].partition("\n## ")[0]
    there = {*dir(Step), *dir(Inference), *dir(Runs), *dir(Functions), *auth_names}
    assert "JWT" not in there
    settings = set(inspect.signature(App.function).parameters) - {"self", "id", "config"}
    assert "concurrency" in settings
    assert [name for name in settings if re.search(rf"`{name}\b", section)] == []


def test_the_commands_that_the_readme_calls_missing_are_missing() -> None:
    done = subprocess.run([sys.executable, "-m", "agentflow", "--help"], capture_output=True, text=True)
    commands = set(re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE))
    assert {"demo", "worker", "db"} <= commands
    assert commands & {"new", "serve", "keys", "doctor"} == set()
