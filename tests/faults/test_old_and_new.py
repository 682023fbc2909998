"""Old and new code: stored runs go on as they would have, edited code finds what is stored, two versions share."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentflow import App, Context, Settings, Step
from agentflow.testing import harness
from tests.crash.processes import lines, workers
from tests.faults import histories
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL, SECONDS
from tests.faults.versions_flow import STEPS, make_app

EDITS = 1_000 if IS_FULL else 100
RUNS = 300 if IS_FULL else 30


@pytest.mark.fault(19)
@pytest.mark.timeout(SECONDS)
async def test_a_hundred_stored_histories_end_as_they_did(database_url: str, report: Report) -> None:
    stored = json.loads(histories.FILE.read_text())
    assert len(stored["outcomes"]) >= 100
    await histories.write_tables(database_url, stored["tables"])
    async with harness(histories.make_app(), database_url=database_url) as h:
        await histories.go_on(h)
        outcomes = await histories.outcomes_of(h)
    for run_id, told in stored["outcomes"].items():
        assert json.loads(json.dumps(outcomes.pop(run_id))) == told, f"{told['function']} {run_id}"
    assert not outcomes
    kinds = Counter(kind for told in stored["outcomes"].values() for kind, *_ in told["steps"].values())
    report(
        f"{len(stored['outcomes'])} stored histories gone on from by today's code, under strict_replay: the same ends, "
        f"steps and results ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))})"
    )


@pytest.mark.fault(19)
@pytest.mark.timeout(SECONDS)
async def test_edited_code_finds_every_step_that_is_stored_by_its_key(
    database_url: str, report: Report
) -> None:
    """Steps are added, removed, renamed and moved at random, in a row and in branches; repeated ids count on."""
    rng = random.Random(FIRST_SEED)
    app, is_edited = App("t", settings=Settings(durability="process")), False
    old = [_rows(rng) for _ in range(EDITS)]
    new = [[_edited(row, rng) for row in rows] for rows in old]

    @app.function
    async def flow(ctx: Context[int], step: Step) -> Any:
        def work(code: str) -> str:
            return code

        async def row(ids: list[str]) -> list[str]:
            return [await step.run(id, work, "new" if is_edited else "old") for id in ids]

        rows = (new if is_edited else old)[ctx.data]
        got = [await row(rows[0]), *await asyncio.gather(*map(row, rows[1:]))]
        await step.sleep("park", "2h")
        return got

    async with harness(app, database_url=database_url, strict_replay=False) as h:
        runs = [await h.start(flow, n) for n in range(EDITS)]
        await h.idle()
        is_edited = True
        await h.advance("3h")
        found = Counter[str]()
        for n, run in enumerate(runs):
            expected = [_expected(before, after) for before, after in zip(old[n], new[n], strict=True)]
            assert await run.result(10) == expected, (old[n], new[n])
            found.update(value for row in expected for value in row)
    report(
        f"{EDITS:,} histories replayed by code with steps added, removed, renamed and moved at random, in rows and "
        f"branches: {found['old']:,} stored results found by their keys, {found['new']:,} new steps done"
    )


def _rows(rng: random.Random) -> list[list[str]]:
    return [[rng.choice("abcde") for _ in range(rng.randint(0, 6))] for _ in range(rng.randint(1, 4))]


def _edited(row: list[str], rng: random.Random) -> list[str]:
    edited = list(row)
    for _ in range(rng.randint(0, 3)):
        place = rng.randint(0, len(edited))
        match rng.choice(["add", "remove", "rename", "shuffle"]):
            case "add":
                edited.insert(place, rng.choice("abcxyz"))
            case "remove":
                del edited[place : place + 1]
            case "rename":
                edited[place : place + 1] = [rng.choice("xyz")]
            case _:
                rng.shuffle(edited)
    return edited


def _expected(before: list[str], after: list[str]) -> list[str]:
    """The n-th call of an id finds what the n-th call of it has stored."""
    stored, called = Counter(before), Counter[str]()
    told = []
    for id in after:
        called[id] += 1
        told.append("old" if called[id] <= stored[id] else "new")
    return told


@pytest.mark.fault(19)
@pytest.mark.crash
@pytest.mark.timeout(SECONDS)
async def test_two_versions_of_the_code_work_on_one_database(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    log = tmp_path / "log"
    client = make_app(database_url, str(log), "old")
    with workers(database_url, log, module="tests.faults.versions_flow") as processes:
        monkeypatch.setenv("AGENTFLOW_CODE", "old")
        old = processes.start()
        await asyncio.sleep(0)  # it has its environment
        first = await old
        monkeypatch.setenv("AGENTFLOW_CODE", "new")
        await processes.start()
        async with client:
            runs = [await client.start("flow", n) for n in range(RUNS)]
            results = await asyncio.gather(*[run.result(SECONDS) for run in runs])
            runs += [await client.start("flow", n) for n in range(RUNS)]
            # The deploy goes on: the old one is killed in the middle, another new one takes its place.
            # Runs are short and either process may take any of them, so more are started until one is caught.
            while not _under_way(log, {run.id for run in runs[RUNS:]}, f"old {first.pid}"):
                runs.append(await client.start("flow", len(runs)))
                await asyncio.sleep(0.002)
            first.kill()
            await processes.start()
            results += await asyncio.gather(*[run.result(SECONDS) for run in runs[RUNS:]])
    assert len(results) == len(runs)
    given: dict[tuple[str, str], str] = {}
    for words in (line.split("\t") for line in lines(log)):
        if words[0] == "got":
            assert given.setdefault((words[1], words[2]), words[3]) == words[3], "a stored result has changed"
    mixed = 0
    for run, result in zip(runs, results, strict=True):
        assert list(result) in [[id for id in STEPS[code] if id != "/"] for code in STEPS]
        assert result == {id: given[run.id, id] for id in result}
        mixed += len({value.split()[0] for (run_id, _), value in given.items() if run_id == run.id}) == 2
    assert mixed
    report(
        f"{len(runs):,} runs on processes with two versions of a function, one of them killed on the way: all ended, "
        f"{mixed:,} had steps of both, of {len(given):,} results none changed"
    )


def _under_way(log: Path, runs: set[str], by: str) -> bool:
    """Whether that process has begun one of the runs, and has not come to its end."""
    told = [line.split("\t") for line in lines(log)]
    begun = {words[1] for words in told if words[0] == "got" and words[1] in runs and words[3] == by}
    return bool(begun - {words[1] for words in told if words[0] == "got" and words[2] == "last"})
