"""`agentflow db`, and what is said of a database that cannot be used."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Project

Shell = Callable[..., subprocess.CompletedProcess[str]]


def test_upgrade_needs_only_the_databases_url(
    empty_folder: Path, shell: Shell, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "app.py").write_text(
        "raise RuntimeError('the code is not there when a database is upgraded')"
    )
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", postgres_url)
    before = shell("db", "current")
    assert (before.returncode, "run `agentflow db upgrade`" in before.stderr) == (1, True)
    upgraded = shell("db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    current = shell("db", "current")
    assert (current.returncode, ", the newest\n" in current.stdout) == (0, True)
    password = postgres_url.partition("://")[2].partition("@")[0].partition(":")[2]
    assert password
    assert password not in before.stderr + upgraded.stdout + current.stdout


def test_a_database_without_tables_names_the_remedy(
    project: Project, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", postgres_url)
    (project.folder / "app.py").write_text("from agentflow import App\napp = App('elsewhere')\n")
    listed = project.run("runs", "list", "-a", "app:app")
    assert listed.exit_code == 1
    assert "agentflow db upgrade" in listed.stderr
    assert "Traceback" not in listed.output


def test_a_server_that_is_not_there_is_said_without_the_password(
    empty_folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", "postgresql://ana:secret@127.0.0.1:1/flow")
    for arguments in (("runs", "list"), ("db", "upgrade"), ("db", "current")):
        refused = shell(*arguments)
        assert refused.returncode == 1
        assert "Connect call failed" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert "secret" not in refused.stderr


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite:///"])
def test_a_url_that_names_no_database_is_said(
    project: Project, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", url)
    refused = project.run("db", "upgrade")
    assert refused.exit_code == 1
    assert "sqlite:///relative.db" in refused.stderr
    assert "Traceback" not in refused.output


def test_a_file_that_is_no_database_is_said(project: Project) -> None:
    (project.folder / "shop.db").write_text("this is a letter, not a database\n" * 100)
    refused = project.run("runs", "list")
    assert refused.exit_code == 1
    assert "shop.db" in refused.stderr
    assert "Traceback" not in refused.output


def test_a_folder_that_is_not_there_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", "sqlite:///no/such/folder/flow.db")
    refused = project.run("db", "upgrade")
    assert refused.exit_code == 1
    assert "no/such/folder" in refused.stderr
    assert "Traceback" not in refused.output


def test_the_tables_of_an_app_are_upgraded_by_its_name(project: Project) -> None:
    upgraded = project.run("db", "upgrade", "-a", project.ref)
    assert upgraded.stdout.startswith("sqlite:///shop.db is at revision ")
    assert asyncio.run(_is_open_without_migrating(project))


async def _is_open_without_migrating(project: Project) -> bool:
    from agentflow.store.opening import open_store

    store = open_store("sqlite:///shop.db", settings=project.app.settings)
    await store.open(migrate=False)
    await store.close()
    return True


def test_prune_removes_what_ended_long_ago_and_wants_to_know_how_long(
    project: Project, empty_folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", f"sqlite:///{empty_folder / 'some.db'}")
    assert shell("db", "upgrade").returncode == 0
    unsaid = shell("db", "prune")
    assert (unsaid.returncode, "--older-than" in unsaid.stderr) == (2, True)
    wrong = shell("db", "prune", "--older-than", "soon")
    assert (wrong.returncode, "soon" in wrong.stderr) == (2, True)
    pruned = shell("db", "prune", "--older-than", "30d")
    assert pruned.returncode == 0, pruned.stderr
    assert pruned.stdout == "removed 0 run(s) and 0 event(s) that were older than 30 days, 0:00:00\n"
    monkeypatch.setenv("AGENTFLOW_RETENTION", "7d")
    assert shell("db", "prune", "--json").stdout == '{"runs": 0, "events": 0}\n'
