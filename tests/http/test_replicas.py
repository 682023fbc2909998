"""A stream read through two replicas of which one is killed in the middle: the reader goes on at the other, by number,
and has had every delta once, in order; what it has put together is what the run's memo says.

Two real server processes, each with a worker, on one database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest

from tests.http.servers import Sent, Server, read_events, wait_for_status
from tests.http.speaking import REPORT
from tests.migrated import postgres_url, sqlite_url

__all__ = ["postgres_url", "sqlite_url"]

ALL = 100_000
"""Pieces: more than there are."""

FIRST, SECOND = "speaker#0/turn0/model", "speaker#0/turn1/model"


class Gate:
    """How many pieces of an answer the model may say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def open(self, pieces: int) -> None:
        with self.path.open("ab") as file:
            file.truncate(max(pieces, file.tell()))


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts replicas on one database; all of them are gone after the test."""
    started: list[Server] = []

    def start(**environment: str) -> Server:
        server = Server(
            "tests.http.speaking:api",
            {"AGENTFLOW_DATABASE_URL": database_url, "GATE": str(tmp_path / "gate"), **environment},
        )
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()


def numbered(events: list[Sent]) -> list[Sent]:
    """What has a number of its own: `run.<status>` and `done` tell where the run is, and repeat one."""
    return [event for event in events if not event.event.startswith("run.") and event.event != "done"]


def assembled(events: list[Sent], key: str, kind: str) -> str:
    """What a reader has put together that does as the stream says."""
    text = ""
    for event in events:
        if event.data["step_key"] != key:
            continue
        if event.event == "attempt.reset":
            text = ""
        elif event.event == kind:
            text += event.data["data"]
    return text


@pytest.mark.crash
@pytest.mark.parametrize("killed", ["the one that works", "the one that is read from"])
def test_a_reader_goes_on_at_the_other_replica_and_has_every_delta_once(
    start: Callable[..., Server], tmp_path: Path, killed: str
) -> None:
    gate = Gate(tmp_path / "gate")
    is_worker_killed = killed == "the one that works"
    # Who works is certain: there is one worker when the run begins.
    first = start(LEASE_SECONDS="2") if is_worker_killed else start(READS_ALONE="yes")
    second = None if is_worker_killed else start()
    with first.client() as client:
        run_id = client.post("/agents/speaker/runs", json="Weigh the anvil and report.").json()["id"]
        with client.stream("GET", f"/runs/{run_id}/stream") as response:
            events, before = read_events(response), []
            gate.open(20)
            while len(assembled(before, SECOND, "text.delta")) < 20 * 8:
                before.append(next(events))
            second = second or start()
            first.kill()
            with pytest.raises(httpx2.TransportError):
                before.extend(events)
    assert before[-1].event != "done"
    gate.open(ALL)
    headers = {"Last-Event-ID": before[-1].id}
    with second.client() as client:
        with client.stream("GET", f"/runs/{run_id}/stream", headers=headers) as response:
            after = list(read_events(response))
        run = wait_for_status(client, run_id, "completed")
        memo = client.get(f"/runs/{run_id}/steps/{quote(SECOND, safe='')}").json()["output"]
        with client.stream("GET", f"/runs/{run_id}/stream") as response:
            whole = list(read_events(response))

    together = numbered(before + after)
    assert [int(event.id) for event in together] == sorted({int(event.id) for event in together})
    assert together == numbered(whole)
    assert after[-1].event == "done"
    # What was told is what is stored.
    assert json.loads(assembled(together, SECOND, "text.delta")) == REPORT.model_dump() == run["output"]
    assert assembled(together, SECOND, "text.delta") == memo["raw"]["text"]
    assert json.loads(assembled(together, FIRST, "tool_args.delta")) == {"thing": "an anvil"}
    for key in (FIRST, SECOND):
        assert assembled(together, key, "reasoning.delta") == "First I weigh it, then I write."
    # An answer that broke off is void, and only that one.
    void = [event.data["step_key"] for event in together if event.event == "attempt.reset"]
    assert void == ([SECOND] if is_worker_killed else [])
    told = "".join(event.data["data"] for event in together if event.event == "text.delta")
    assert (len(told) > len(memo["raw"]["text"])) == bool(void)
