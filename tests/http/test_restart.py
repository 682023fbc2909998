"""A server that is killed, or stopped, and begun again: its runs go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.forked import ROOT
from tests.http.servers import Server, read_events, wait_for_status, wait_until

LONG = {"Prefer": "wait=30"}


@pytest.mark.crash
def test_the_review_gate_survives_kill_9_and_publishes_once(tmp_path: Path) -> None:
    published = tmp_path / "published"
    environment = {
        "AGENTFLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'review.db'}",
        "REVIEW_GATE_PUBLISHED": str(published),
    }
    server = Server("examples.api:api", environment)
    server.start()
    with server.client() as client:
        article = {"id": "42", "topic": "durable steps"}
        run_id = client.post("/functions/review-article/runs", json=article).json()["id"]
        wait_for_status(client, run_id, "waiting")
        [draft, *_] = client.get(f"/runs/{run_id}/steps").json()["data"]
    server.kill()
    assert not published.exists()

    server.start()
    try:
        with server.client() as client:
            run = client.get(f"/runs/{run_id}").json()
            assert [waiting["name"] for waiting in run["waiting"]] == ["review:42"]
            signal = {"signal": "review:42", "data": {"approved": True, "comment": "well said"}}
            assert client.post("/signals", json=signal).json() == {"run_id": run_id}
            output = wait_for_status(client, run_id, "completed")["output"]
            assert output == {
                "status": "published",
                "draft": "Durable steps: what you need to know.",
                "comment": "well said",
            }
            assert client.get(f"/runs/{run_id}/steps/draft").json() == draft
            assert client.post("/signals", json=signal).status_code == 404
    finally:
        server.stop()
    assert [file.read_text() for file in published.iterdir()] == ["Durable steps: what you need to know."]


def test_the_review_gate_plays_both_sides_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/agents/review_gate.py")],
        cwd=tmp_path,
        env={**os.environ, "AGENTFLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'review.db'}"},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "published: Durable steps: what you need to know."
    assert (tmp_path / "published/42.txt").read_text() == "Durable steps: what you need to know."


def test_a_draft_that_is_refused_is_dropped(tmp_path: Path) -> None:
    published = tmp_path / "published"
    environment = {
        "AGENTFLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'review.db'}",
        "REVIEW_GATE_PUBLISHED": str(published),
    }
    server = Server("examples.api:api", environment)
    server.start()
    try:
        with server.client() as client:
            event = {"name": "article.requested", "data": {"id": "7", "topic": "x"}}
            [run_id] = client.post("/events", json=event).json()["run_ids"]
            wait_for_status(client, run_id, "waiting")
            client.post("/signals", json={"signal": "review:7", "data": {"approved": False, "comment": "no"}})
            output = wait_for_status(client, run_id, "completed")["output"]
            assert (output["status"], output["comment"]) == ("dropped", "no")
    finally:
        server.stop()
    assert not published.exists()


@pytest.mark.crash
def test_a_run_that_is_killed_in_the_middle_goes_on_and_repeats_at_most_one_step(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    server = Server("tests.http.served:api", {"AGENTFLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'x.db'}"})
    server.start()
    with server.client() as client:
        run_id = client.post("/functions/writes/runs", json=str(lines)).json()["id"]
        with client.stream("GET", f"/runs/{run_id}/stream") as response:
            seen = []
            for event in read_events(response):
                seen.append(event)
                if event.data["step_key"] == "line 4":
                    break
            server.kill()

    server.start()
    try:
        with server.client() as client:
            headers = {"Last-Event-ID": seen[-1].id}
            with client.stream("GET", f"/runs/{run_id}/stream", headers=headers) as response:
                seen += list(read_events(response))
    finally:
        server.stop()
    told = [event.data["step_key"] for event in seen if event.event == "step.completed"]
    assert told == [f"line {number}" for number in range(10)]
    written = [int(line) for line in lines.read_text().split()]
    assert sorted(set(written)) == list(range(10))
    assert len(written) <= 11


def test_a_server_that_is_told_to_stop_lets_those_who_wait_go_at_once(tmp_path: Path) -> None:
    server = Server("tests.http.served:api", {"AGENTFLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'x.db'}"})
    server.start()
    with server.client() as client, ThreadPoolExecutor(2) as threads:
        order = {"id": "deploy", "amount": 1}
        run_id = client.post("/functions/orders/ship/runs", json=order).json()["id"]
        wait_for_status(client, run_id, "waiting")
        begun = threading.Event()

        def follow() -> list[str]:
            with server.client() as reader, reader.stream("GET", f"/runs/{run_id}/stream") as response:
                kinds = []
                for event in read_events(response):
                    kinds.append(event.event)
                    if event.event == "run.waiting":
                        begun.set()
                return kinds

        def wait_for_result() -> httpx2.Response:
            with server.client() as waiter:
                return waiter.post(
                    "/functions/orders/ship/runs",
                    json={"id": "other", "amount": 1},
                    headers={"Prefer": "wait=100"},
                )

        follower, waiter = threads.submit(follow), threads.submit(wait_for_result)
        assert begun.wait(20)
        wait_until(lambda: len(client.get("/runs", params={"status": "waiting"}).json()["data"]) == 2)
        server.stop()
        assert "done" not in follower.result(5)
        assert (waiter.result(5).status_code, waiter.result().json()["status"]) == (202, "waiting")
    assert b"timeout graceful shutdown exceeded" not in server.output
    assert b"Traceback" not in server.output


def test_a_server_that_is_told_to_stop_ends_in_good_order_and_hands_its_runs_over(tmp_path: Path) -> None:
    server = Server("tests.http.served:api", {"AGENTFLOW_DATABASE_URL": f"sqlite:///{tmp_path / 'x.db'}"})
    server.start()
    with server.client() as client:
        order = {"id": "deploy", "amount": 1}
        run_id = client.post("/functions/orders/ship/runs", json=order).json()["id"]
        wait_for_status(client, run_id, "waiting")
    server.stop()
    assert b"Application shutdown complete" in server.output
    assert b"Traceback" not in server.output

    server.start()
    try:
        with server.client() as client:
            wait_until(
                lambda: (
                    client.post("/signals", json={"signal": "collected:deploy", "data": 1}).status_code == 202
                )
            )
            assert wait_for_status(client, run_id, "completed")["output"] == "collected by 1"
    finally:
        server.stop()
