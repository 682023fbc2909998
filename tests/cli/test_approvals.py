"""`agentflow approvals`: a person's decision from the shell."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentflow.step import new_secret_id
from tests.cli.conftest import Project


@pytest.fixture
def asked(project: Project) -> dict[str, Any]:
    """The approval that a run of the agent waits for."""
    project.start("agents/payer", '{"prompt": "pay"}')
    [request] = json.loads(project.run("approvals", "list", "--json").stdout)["data"]
    return dict(request)


def output_of(project: Project, request: dict[str, Any]) -> Any:
    project.work()
    return json.loads(project.run("runs", "show", request["run_id"], "--json").stdout)["output"]


def test_what_waits_is_listed_with_its_arguments(project: Project, asked: dict[str, Any]) -> None:
    line = project.run("approvals", "list").stdout.splitlines()[1]
    assert line.startswith(f"{asked['id']}\t")
    assert '"amount": "12.50"' in line
    assert "account\t1001" in project.run("approvals", "show", asked["id"]).stdout


def test_approved_by_the_beginning_of_its_id_it_runs(project: Project, asked: dict[str, Any]) -> None:
    beginning = asked["id"].lstrip("-")[:8]  # a `-` in front may be left out
    decided = project.run("approvals", "approve", beginning, "--by", "ana", "--comment", "fine")
    assert decided.exit_code == 0, decided.stderr
    assert decided.stdout == f'{asked["id"]}: approved: pay(account="1001", amount="12.50")\n'
    assert output_of(project, asked) == "paid 12.50 to 1001"
    shown = json.loads(project.run("approvals", "show", asked["id"], "--json").stdout)
    assert [(given["by"], given["comment"]) for given in shown["decisions"]] == [("ana", "fine")]


def test_denied_it_does_not_run_and_the_model_is_told_why(project: Project, asked: dict[str, Any]) -> None:
    assert project.run("approvals", "deny", asked["id"].lstrip("-"), "--message", "too much").exit_code == 0
    assert output_of(project, asked) == "too much"


def test_a_response_is_the_result_in_place_of_the_call(project: Project, asked: dict[str, Any]) -> None:
    identity = asked["id"].lstrip("-")
    refused = project.run("approvals", "respond", identity)
    assert (refused.exit_code, "give --value" in refused.stderr) == (2, True)
    assert project.run("approvals", "respond", identity, "--value", '"paid by hand"').exit_code == 0
    assert output_of(project, asked) == "paid by hand"


def test_an_edit_keeps_texts_as_texts(project: Project, asked: dict[str, Any]) -> None:
    edited = project.run(
        "approvals", "edit", asked["id"].lstrip("-"), "--set", "account=2002", "--set", "amount=3"
    )
    assert edited.exit_code == 0, edited.stderr
    assert output_of(project, asked) == "paid 3 to 2002"


def test_an_edit_may_give_all_arguments(project: Project, asked: dict[str, Any]) -> None:
    project.run("approvals", "edit", asked["id"].lstrip("-"), "--args", '{"account": "3003", "amount": "1"}')
    assert output_of(project, asked) == "paid 1 to 3003"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--set", "nothing"),
        ("--set", "unknown=1"),
        ("--args", "[1]"),
        ("--args", "{"),
        ("--args", "{}", "--set", "a=1"),
    ],
)
def test_an_edit_that_makes_no_sense_exits_2_and_decides_nothing(
    project: Project, asked: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    refused = project.run("approvals", "edit", asked["id"].lstrip("-"), *arguments)
    assert refused.exit_code == 2
    assert asked["id"] in project.run("approvals", "list").stdout


def test_what_is_missing_of_several_is_told_and_an_edit_begins_anew(project: Project) -> None:
    run_id = project.start("agree", "{}")
    [request] = json.loads(project.run("approvals", "list", "--json").stdout)["data"]

    def decide(command: str, by: str, *more: str) -> str:
        return project.run("approvals", command, request["id"], "--by", by, *more).stdout.partition(": ")[2]

    assert decide("approve", "ana") == "noted; it needs 1 more approval\n"
    assert decide("edit", "bob", "--args", '{"n": 1}') == "noted; it needs 1 more approval\n"
    assert decide("approve", "ana").startswith("approved")
    assert output_of(project, {"run_id": run_id}) == {"approved": True, "edited": {"n": 1}}


def test_nobody_decides_in_an_empty_name_or_for_an_empty_digest(
    project: Project, asked: dict[str, Any]
) -> None:
    for option in ("--by", "--digest"):  # as an unset variable of a shell gives it
        refused = project.run("approvals", "approve", asked["id"].lstrip("-"), option, "")
        assert (refused.exit_code, refused.stdout) == (1, "")
    [request] = json.loads(project.run("approvals", "list", "--json").stdout)["data"]
    assert request["status"] == "pending"


def test_a_second_decision_is_refused_and_says_who_was_first(project: Project, asked: dict[str, Any]) -> None:
    id = asked["id"].lstrip("-")
    project.run("approvals", "approve", id, "--by", "ana")
    second = project.run("approvals", "deny", id, "--by", "bo")
    assert (second.exit_code, "approved by ana" in second.stderr) == (1, True)
    assert project.run("approvals", "list").stderr == "nothing waits for a decision\n"
    assert id in project.run("approvals", "list", "--status", "all").stdout


def test_a_decision_for_other_arguments_is_refused(project: Project, asked: dict[str, Any]) -> None:
    refused = project.run("approvals", "approve", asked["id"].lstrip("-"), "--digest", "0" * 64)
    assert refused.exit_code == 1
    assert asked["id"] in project.run("approvals", "list").stdout


def test_an_approval_of_a_cancelled_run_exits_5(project: Project, asked: dict[str, Any]) -> None:
    project.run("runs", "cancel", asked["run_id"])
    assert project.run("approvals", "approve", asked["id"].lstrip("-")).exit_code == 5


def test_an_unknown_approval_exits_4(project: Project) -> None:
    project.start("double", "1")
    missing = project.run("approvals", "show", "nowhere")
    assert (missing.exit_code, missing.stderr) == (4, "agentflow: there is no approval 'nowhere'\n")


def test_no_id_of_an_approval_looks_like_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter(["-aa", "_bb", "cc-", "-dd", "1ee"])
    monkeypatch.setattr("secrets.token_urlsafe", lambda size: next(made))
    assert [new_secret_id(), new_secret_id()] == ["cc-", "1ee"]
