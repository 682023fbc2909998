"""`agentflow runs`, `start`, `send`, `signal` and `usage` against a real database."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Project


def test_a_run_is_started_listed_woken_and_shown(project: Project) -> None:
    run_id = project.start("ship", '{"id": "o1"}')
    listed = project.run("runs", "list", "--status", "waiting")
    assert listed.stdout.splitlines()[0].split("\t")[:3] == ["ID", "FUNCTION", "STATUS"]
    assert listed.stdout.splitlines()[1].split("\t")[:3] == [run_id, "ship", "waiting"]
    assert "signal collected/o1" in listed.stdout

    assert project.run("signal", "collected/o1", "--data", '"ana"').stdout == f"run {run_id}\n"
    project.work()
    shown = project.run("runs", "show", run_id).stdout
    assert "status\tcompleted\n" in shown
    assert "output\tcollected by ana\n" in shown
    assert [line.split("\t")[:3] for line in shown.splitlines()[-2:]] == [
        ["pack", "run", "completed"],
        ["collected", "signal", "completed"],
    ]


def test_json_is_all_that_stdout_has(project: Project) -> None:
    run_id = project.start("double", "21")
    page = json.loads(project.run("runs", "list", "--json").stdout)
    assert [(run["id"], run["status"]) for run in page["data"]] == [(run_id, "completed")]
    shown = json.loads(project.run("runs", "show", run_id, "--json").stdout)
    assert (shown["output"], [step["key"] for step in shown["steps"]]) == (42, ["double"])


def test_pages_follow_each_other_by_their_cursor(project: Project) -> None:
    started = [project.run("start", "double", "-d", str(number)).stdout.strip() for number in range(3)]
    first = json.loads(project.run("runs", "list", "--limit", "2", "--json").stdout)
    rest = json.loads(
        project.run("runs", "list", "--limit", "2", "--json", "--cursor", first["cursor"]).stdout
    )
    assert [run["id"] for run in [*first["data"], *rest["data"]]] == started[::-1]


def test_the_beginning_of_an_id_is_enough_where_it_is_unique(project: Project) -> None:
    run_id = project.start("double", "1")
    for given in (run_id[:-3], run_id.removeprefix("run_")):
        assert project.run("runs", "show", given).stdout.startswith(f"id\t{run_id}\n")
    project.start("double", "2")
    ambiguous = project.run("runs", "show", "run_0")
    assert (ambiguous.exit_code, "the beginning of several runs" in ambiguous.stderr) == (2, True)
    missing = project.run("runs", "show", "run_nowhere")
    assert (missing.exit_code, missing.stderr) == (4, "agentflow: there is no run 'run_nowhere'\n")


@pytest.mark.parametrize("given", ["", "run_"])
def test_the_only_run_is_not_meant_by_an_empty_id(project: Project, given: str) -> None:
    run_id = project.start("ship", '{"id": "o1"}')
    refused = project.run("runs", "cancel", given)
    assert (refused.exit_code, "the beginning of every run's id" in refused.stderr) == (2, True)
    assert "status\twaiting\n" in project.run("runs", "show", run_id).stdout


@pytest.mark.parametrize(
    ("function", "data", "code", "told"),
    [
        ("breaks", "{}", 3, "failed: ValueError: it broke"),
        ("nowhere", "{}", 4, "app 'shop' has no function 'nowhere'"),
        ("double", '"x"', 1, "the input of 'double' is not valid"),
        ("double", "{bad", 2, "--data is not JSON"),
        ("double", "NaN", 2, "NaN is no JSON value"),
        ("double", "@missing.json", 2, "--data @missing.json cannot be read"),
    ],
)
def test_the_exit_code_tells_what_went_wrong(
    project: Project, function: str, data: str, code: int, told: str
) -> None:
    started = project.run("start", function, "--data", data)
    if code == 3:
        project.work()
        started = project.run("runs", "watch", started.stdout.strip())
    assert started.exit_code == code, started.output
    assert told in started.stderr
    assert "Traceback" not in started.output


def test_data_comes_from_a_file_or_from_stdin(project: Project) -> None:
    Path("number.json").write_text("4")
    by_file = project.start("double", "@number.json")
    by_stdin = project.run("start", "double", "--data", "-", input="5").stdout.strip()
    project.work()
    outputs = [
        json.loads(project.run("runs", "show", id, "--json").stdout)["output"] for id in (by_file, by_stdin)
    ]
    assert outputs == [8, 10]


def test_waiting_too_long_exits_6_and_the_run_goes_on(project: Project) -> None:
    started = project.run("start", "double", "--data", "1", "--wait", "10ms")
    assert started.exit_code == 6
    assert "goes on" in started.stderr
    project.work()
    assert '"status": "completed"' in project.run("runs", "list", "--json").stdout


def test_the_result_that_was_waited_for_is_on_stdout(project: Project) -> None:
    project.run("start", "double", "--data", "1", "--idempotency-key", "once")
    project.work()
    again = project.run("start", "double", "--data", "1", "--idempotency-key", "once", "--wait", "5s")
    assert (again.exit_code, again.stdout) == (0, "2\n")
    other = project.run("start", "double", "--data", "2", "--idempotency-key", "once")
    assert (other.exit_code, "was used with other data" in other.stderr) == (1, True)


def test_watching_tells_each_step_and_the_end(project: Project) -> None:
    run_id = project.start("double", "3")
    told = project.run("runs", "watch", run_id)
    assert told.exit_code == 0
    step, run = (line.split("\t") for line in told.stdout.splitlines())
    assert (step[:3], step[3].endswith(" s")) == (["double", "run", "completed"], True)
    assert (run[:3], run[3].endswith(" s")) == ([run_id, "double", "completed"], True)
    items = [json.loads(line) for line in project.run("runs", "watch", run_id, "--json").stdout.splitlines()]
    assert [item["kind"] for item in items] == ["step.completed", "done"]


def test_watching_shows_what_a_model_used_and_leaves_its_answer_to_json(project: Project) -> None:
    run_id = project.start("agents/talker", '{"prompt": "talk"}')
    call, *_ = project.run("runs", "watch", run_id).stdout.splitlines()
    assert re.fullmatch(r"talker#0/turn0/model\tinfer\tcompleted\t\d\.\d\d s\t\d+ in, \d+ out, no cost", call)
    assert "aaaa" in project.run("runs", "watch", run_id, "--json").stdout


def test_watching_tells_why_a_step_failed_and_what_the_run_waits_for(project: Project) -> None:
    caught = project.run("runs", "watch", project.start("catches", "{}")).stdout.splitlines()[0]
    assert caught.split("\t")[:3] + caught.split("\t")[4:] == ["look", "run", "failed", "KeyError: 'nowhere'"]
    waiting = project.run("runs", "watch", project.start("stumbles", "{}"), "--timeout", "200ms")
    assert "\tstumbles\tsleeping\t" in waiting.stdout
    assert "waits for the next attempt of look, due at " in waiting.stdout


def test_watching_what_waits_ends_with_6_after_the_timeout(project: Project) -> None:
    run_id = project.start("ship", '{"id": "o2"}')
    assert project.run("runs", "watch", run_id, "--timeout", "200ms").exit_code == 6


def test_a_cancelled_run_exits_5(project: Project) -> None:
    run_id = project.start("ship", '{"id": "o3"}')
    cancelled = project.run("runs", "cancel", run_id, "--reason", "changed my mind")
    assert cancelled.stdout == f"run {run_id} is cancelled\n"
    watched = project.run("runs", "watch", run_id)
    assert (watched.exit_code, watched.stderr) == (
        5,
        f"agentflow: run {run_id} was cancelled: changed my mind\n",
    )


def test_cancelling_what_has_ended_changes_nothing(project: Project) -> None:
    run_id = project.start("double", "1")
    assert project.run("runs", "cancel", run_id).stdout == f"run {run_id} had ended before: completed\n"


def test_an_event_starts_the_runs_of_its_name(project: Project) -> None:
    sent = project.run("send", "shop/order.paid", "--data", '{"id": "o4"}', "--json")
    answer = json.loads(sent.stdout)
    assert (len(answer["event_ids"]), len(answer["run_ids"])) == (1, 1)
    assert project.run("send", "shop/order.paid", "--data", "[1]").exit_code == 2
    again = json.loads(project.run("send", "nobody/cares", "--id", "e1", "--json").stdout)
    assert again == {"event_ids": again["event_ids"], "run_ids": []}


def test_a_signal_nobody_waits_for_exits_4_unless_it_is_kept(project: Project) -> None:
    missed = project.run("signal", "collected/o5")
    assert (missed.exit_code, "--buffer" in missed.stderr) == (4, True)
    assert project.run("signal", "collected/o5", "--buffer", "1h").stdout == "kept for 1h\n"
    run_id = project.start("ship", '{"id": "o5"}')
    assert json.loads(project.run("runs", "show", run_id, "--json").stdout)["output"] == "collected by None"


def test_only_the_databases_url_is_needed(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id = project.start("double", "7")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    lost = project.run("runs", "list")
    assert (lost.exit_code, "AGENTFLOW_DATABASE_URL" in lost.stderr) == (2, True)
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", f"sqlite:///{project.folder}/shop.db")
    assert run_id in project.run("runs", "list").stdout
    started = project.run("start", "double", "--data", "8")
    assert re.fullmatch(r"run_[-0-9a-f]+\n", started.stdout)
    monkeypatch.chdir(project.folder)
    project.work()
    assert json.loads(project.run("runs", "show", started.stdout.strip(), "--json").stdout)["output"] == 16


@pytest.mark.parametrize("since", ["7d", "2020-01-01", "2020-01-01T00:00:00+02:00", "60"])
def test_since_takes_a_duration_or_a_date(project: Project, since: str) -> None:
    run_id = project.start("double", "1")
    assert run_id in project.run("runs", "list", "--since", since).stdout
    assert project.run("runs", "list", "--since", "2100-01-01").stdout == ""


def test_a_since_that_means_nothing_exits_2(project: Project) -> None:
    refused = project.run("runs", "list", "--since", "yesterday")
    assert (refused.exit_code, "neither a duration" in refused.stderr) == (2, True)


@pytest.mark.parametrize("by", ["agent", "model", "day"])
def test_usage_adds_up_what_models_used(project: Project, by: str) -> None:
    project.start("agents/payer", '{"prompt": "pay"}')
    told = json.loads(project.run("usage", "--by", by, "--json").stdout)
    [line] = told["data"]
    assert line["calls"] == told["total"]["calls"] == 1
    assert line["input_tokens"] > 0
    expected = {"agent": "payer", "model": "function:reply"}
    assert line[by] == expected.get(by, line[by])
    assert "unknown" in project.run("usage", "--by", by).stdout  # this model has no price


def test_usage_shows_how_budgets_stand(project: Project) -> None:
    assert "no budget was used" in project.run("usage", "--budgets").stderr
    project.start("agents/talker", '{"prompt": "talk"}')
    [row] = [line.split("\t") for line in project.run("usage", "--budgets").stdout.splitlines()[1:]]
    [told] = json.loads(project.run("usage", "--budgets", "--json").stdout)["data"]
    assert row[:3] == ["talk", '"talk"', "$2.5, 100000 tokens"]
    assert row[3:] == [f"$0, {told['spent_tokens']} tokens", "$0, 0 tokens", "never"]
    assert (told["cost_usd"], told["spent_usd"], told["ends_at"]) == ("2.5", "0", None)
    assert told["spent_tokens"] > 0
    assert project.run("usage", "--budgets", "--since", "1d").exit_code == 2


def test_usage_is_told_of_each_run(project: Project) -> None:
    run_id = project.start("agents/talker", '{"prompt": "talk"}')
    [line] = json.loads(project.run("usage", "--by", "run", "--json").stdout)["data"]
    assert (line["run"], line["calls"]) == (run_id, 1)


def test_the_scripted_model_costs_nothing_and_does_not_hide_what_is_unknown(project: Project) -> None:
    project.start("agents/talker", '{"prompt": "talk"}')
    alone = project.run("usage").stdout.splitlines()[1].split("\t")
    assert (alone[1], alone[5]) == ("1", "no cost")
    assert json.loads(project.run("usage", "--json").stdout)["total"]["cost"] == "0"
    project.start("agents/payer", '{"prompt": "pay"}')
    costs = {
        line.split("\t")[0]: line.split("\t")[5] for line in project.run("usage").stdout.splitlines()[1:]
    }
    assert sorted(costs.values()) == ["no cost", "unknown", "unknown"]
    assert costs["total"] == "unknown"


def test_a_start_without_the_data_it_needs_says_how_to_give_it(project: Project) -> None:
    refused = project.run("start", "breaks")
    assert refused.exit_code == 1
    assert "the input of 'breaks' is not valid" in refused.stderr
    assert refused.stderr.endswith("give --data JSON\n")
    assert "give --data" not in project.run("start", "breaks", "--data", "[]").stderr


def test_a_run_is_done_again_from_a_step_with_other_data(project: Project) -> None:
    first = project.start("double", "21")
    again = project.run("runs", "rerun", first).stdout.strip()
    other = json.loads(project.run("runs", "rerun", first, "--data", "4", "--json").stdout)
    kept = project.run("runs", "rerun", first, "--from-step", "double", "-d", "5").stdout.strip()
    project.work()
    outputs = [
        json.loads(project.run("runs", "show", run_id, "--json").stdout)["output"]
        for run_id in (again, other["id"], kept)
    ]
    assert (other["rerun_of"], outputs) == (first, [42, 8, 10])
    missing = project.run("runs", "rerun", first, "--from-step", "nowhere")
    assert (missing.exit_code, "has no step 'nowhere'" in missing.stderr) == (4, True)
