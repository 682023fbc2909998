"""Start, wait, look, signal, cancel: over HTTP, against a real server."""

from __future__ import annotations

import time
from datetime import datetime

import httpx2
import pytest

from tests.http.servers import wait_for_status


def test_a_start_answers_202_with_the_run_and_where_it_is(client: httpx2.Client) -> None:
    answer = client.post("/functions/double/runs", json=21)
    assert answer.status_code == 202
    run = answer.json()
    assert answer.headers["location"] == f"/agentflow/runs/{run['id']}"
    assert (run["app"], run["function"], run["input"]) == ("served", "double", 21)
    assert wait_for_status(client, run["id"], "completed")["output"] == 42


def test_prefer_wait_answers_200_with_the_output(client: httpx2.Client) -> None:
    answer = client.post("/functions/double/runs", json=4, headers={"Prefer": "respond-async, wait=20"})
    assert (answer.status_code, answer.json()["output"]) == (200, 8)
    assert answer.headers["preference-applied"] == "wait=20"


def test_prefer_wait_answers_202_while_the_run_goes_on(client: httpx2.Client) -> None:
    order = {"id": "waits", "amount": "1.50"}
    began = time.monotonic()
    answer = client.post("/functions/orders/ship/runs", json=order, headers={"Prefer": "wait=1"})
    assert time.monotonic() - began >= 1
    assert (answer.status_code, answer.json()["status"]) == (202, "waiting")


def test_prefer_wait_answers_200_with_the_error_of_a_failed_run(client: httpx2.Client) -> None:
    answer = client.post("/functions/fails/runs", headers={"Prefer": "wait=20"})
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    error = answer.json()["error"]
    assert (error["name"], error["message"], error["step_id"]) == ("ValueError", "it broke", "break")


@pytest.mark.parametrize("value", [None, 0, "", [], {"deep": [1, 2.5, "ä😀"]}])
def test_a_function_without_a_type_takes_any_json(client: httpx2.Client, value: object) -> None:
    answer = client.post("/functions/anything/runs", json=value, headers={"Prefer": "wait=20"})
    assert answer.json()["input"] == value
    assert answer.json()["output"] == value


def test_a_signal_wakes_the_run_that_waits_once(client: httpx2.Client) -> None:
    order = {"id": "signalled", "amount": 2}
    run_id = client.post("/functions/orders/ship/runs", json=order).json()["id"]
    run = wait_for_status(client, run_id, "waiting")
    [waiting] = run["waiting"]
    assert (waiting["kind"], waiting["name"]) == ("signal", "collected:signalled")
    signal = {"signal": "collected:signalled", "data": "Ada"}
    answer = client.post("/signals", json=signal)
    assert (answer.status_code, answer.json()) == (202, {"run_id": run_id})
    assert wait_for_status(client, run_id, "completed")["output"] == "collected by Ada"
    again = client.post("/signals", json=signal)
    assert (again.status_code, again.json()["code"]) == (404, "no_waiter")


def test_a_buffered_signal_is_kept_for_the_wait_that_comes_later(client: httpx2.Client) -> None:
    signal = {"signal": "collected:early", "data": "Bob", "buffer": "1h"}
    kept = client.post("/signals", json=signal)
    assert (kept.status_code, kept.json()) == (202, {"run_id": None})
    second = client.post("/signals", json=signal)
    assert (second.status_code, second.json()["code"]) == (409, "signal_conflict")
    order = {"id": "early", "amount": 1}
    run = client.post("/functions/orders/ship/runs", json=order, headers={"Prefer": "wait=20"}).json()
    assert run["output"] == "collected by Bob"


def test_steps_tell_what_they_wait_for_since_when_until_when(client: httpx2.Client) -> None:
    run_id = client.post("/functions/orders/ship/runs", json={"id": "steps", "amount": 1}).json()["id"]
    wait_for_status(client, run_id, "waiting")
    page = client.get(f"/runs/{run_id}/steps").json()
    packed, collected = page["data"]
    assert (packed["key"], packed["status"], packed["output"], packed["attempts"]) == (
        "pack",
        "completed",
        "packed steps",
        1,
    )
    assert (collected["key"], collected["status"], collected["output"]) == ("collected", "waiting", None)
    since, until = (datetime.fromisoformat(collected["waiting"][name]) for name in ("since", "until"))
    assert (until - since).total_seconds() == pytest.approx(3600, abs=1)
    assert page["page"] == {"cursor": None, "has_more": False, "limit": 100}
    assert client.get(f"/runs/{run_id}/steps/collected").json() == collected


def test_cancel_ends_a_run_and_its_reason_is_told(client: httpx2.Client) -> None:
    run_id = client.post("/functions/slow/runs").json()["id"]
    wait_for_status(client, run_id, "running")
    answer = client.post(f"/runs/{run_id}/cancel", json={"reason": "no longer needed"})
    assert (answer.status_code, answer.json()["id"]) == (202, run_id)
    run = wait_for_status(client, run_id, "cancelled")
    assert run["reason"] == "no longer needed"
    again = client.post(f"/runs/{run_id}/cancel")
    assert (again.status_code, again.json()["reason"]) == (202, "no longer needed")


def test_lists_have_no_payloads_and_go_on_by_cursor(client: httpx2.Client) -> None:
    started = [client.post("/functions/double/runs", json=n).json()["id"] for n in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        query = {"function": "double", "limit": 2} | ({"cursor": cursor} if cursor else {})
        body = client.get("/runs", params=query).json()
        assert set(body) == {"data", "page"}
        assert body["page"]["limit"] == 2
        assert all(not {"input", "output", "error"} & set(run) for run in body["data"])
        seen += [run["id"] for run in body["data"]]
        cursor = body["page"]["cursor"]
        assert body["page"]["has_more"] is (cursor is not None)
        if cursor is None:
            break
    assert seen[:5] == started[::-1]
    assert len(set(seen)) == len(seen)


def test_runs_are_filtered_by_status_function_time_and_id(client: httpx2.Client) -> None:
    run = client.post("/functions/fails/runs", headers={"Prefer": "wait=20"}).json()

    def ids(**query: object) -> list[str]:
        return [item["id"] for item in client.get("/runs", params=query).json()["data"]]

    assert run["id"] in ids(status="failed")
    assert run["id"] in ids(status=["failed", "completed"], function="fails", since=run["created_at"])
    assert run["id"] not in ids(status="completed", function="fails")
    assert ids(q=run["id"]) == [run["id"]]
    assert ids(since="2999-01-01T00:00:00Z") == []


def test_an_idempotency_key_starts_one_run_and_refuses_other_data(client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "order-77"}
    first, second = (client.post("/functions/double/runs", json=7, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    other = client.post("/functions/double/runs", json=8, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    elsewhere = client.post("/functions/anything/runs", json=8, headers=headers)
    assert elsewhere.status_code == 202


def test_an_event_starts_its_functions(client: httpx2.Client) -> None:
    event = {"name": "order.placed", "data": {"id": "by-event", "amount": "3.10"}}
    answer = client.post("/events", json=event)
    assert answer.status_code == 202
    [event_id], [run_id] = answer.json()["event_ids"], answer.json()["run_ids"]
    assert client.get(f"/events/{event_id}").json()["data"] == event["data"]
    assert [run["id"] for run in client.get(f"/events/{event_id}/runs").json()["data"]] == [run_id]
    assert wait_for_status(client, run_id, "waiting")["function"] == "orders/ship"
    assert event_id in [
        item["id"] for item in client.get("/events", params={"name": "order.placed"}).json()["data"]
    ]


def test_many_events_go_together_and_an_id_deduplicates(client: httpx2.Client) -> None:
    events = [{"name": "nothing.happens", "data": {"n": n}, "id": f"many-{n}"} for n in range(100)]
    first = client.post("/events", json=events)
    assert (first.status_code, len(first.json()["event_ids"])) == (202, 100)
    assert client.post("/events", json=events).json() == first.json()
    over = client.post("/events", json=[*events, events[0]])
    assert (over.status_code, over.json()["code"]) == (422, "invalid_input")


def test_an_idempotency_key_sends_one_event_once(client: httpx2.Client) -> None:
    event = {"name": "order.placed", "data": {"id": "keyed", "amount": 1}}
    headers = {"Idempotency-Key": "event-5"}
    first, second = (client.post("/events", json=event, headers=headers) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert len(first.json()["run_ids"]) == 1
    other = client.post("/events", json={"name": "order.placed", "data": {"id": "other"}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    several = client.post("/events", json=[event, event], headers=headers)
    assert (several.status_code, several.json()["code"]) == (422, "idempotency_unsupported")


def test_functions_are_listed_with_their_schemas(client: httpx2.Client) -> None:
    listed = {function["id"]: function for function in client.get("/functions").json()["data"]}
    assert {"double", "orders/ship", "pay"} <= set(listed)
    ship = client.get("/functions/orders/ship").json()
    assert ship == listed["orders/ship"]
    assert ship["input_schema"]["required"] == ["id", "amount"]
    assert ship["output_schema"] == {"type": "string"}
    assert [trigger["name"] for trigger in ship["triggers"]] == ["order.placed"]
    assert listed["double"]["description"] == "Twice the number."
    assert [agent["id"] for agent in client.get("/agents").json()["data"]] == ["agents/desk"]


def test_a_rerun_answers_201_with_the_new_run_and_where_it_is(client: httpx2.Client) -> None:
    first = client.post("/functions/double/runs", json=21, headers={"Prefer": "wait=20"}).json()
    answer = client.post(f"/runs/{first['id']}/rerun")
    assert answer.status_code == 201
    again = answer.json()
    assert (again["rerun_of"], again["input"]) == (first["id"], 21)
    assert answer.headers["location"] == f"/agentflow/runs/{again['id']}"
    assert wait_for_status(client, again["id"], "completed")["output"] == 42
    other = client.post(f"/runs/{first['id']}/rerun", json={"data": 4}).json()
    assert wait_for_status(client, other["id"], "completed")["output"] == 8
    kept = client.post(f"/runs/{first['id']}/rerun", json={"from_step": "double", "data": 5}).json()
    assert wait_for_status(client, kept["id"], "completed")["output"] == 10


def test_a_rerun_of_nothing_or_with_bad_data_is_refused(client: httpx2.Client) -> None:
    first = client.post("/functions/double/runs", json=21, headers={"Prefer": "wait=20"}).json()
    path = f"/runs/{first['id']}/rerun"
    asked = [
        (path, {"from_step": "nowhere"}, 404, "not_found"),
        ("/runs/run_nowhere/rerun", {}, 404, "not_found"),
        (path, {"data": "x"}, 422, "invalid_input"),
        (path, {"step": "double"}, 422, "invalid_input"),
    ]
    for where, body, status, code in asked:
        answer = client.post(where, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_runs_of_a_paused_function_stay_queued_until_it_is_resumed(client: httpx2.Client) -> None:
    assert client.get("/functions/anything").json()["paused_at"] is None
    paused = client.post("/functions/anything/pause")
    try:
        assert paused.status_code == 200
        since = datetime.fromisoformat(paused.json()["paused_at"])
        assert since.tzinfo is not None
        started = client.post("/functions/anything/runs", json=1, headers={"Prefer": "wait=1"})
        assert (started.status_code, started.json()["status"]) == (202, "queued")
    finally:
        resumed = client.post("/functions/anything/resume")
    assert (resumed.status_code, resumed.json()["paused_at"]) == (200, None)
    assert wait_for_status(client, started.json()["id"], "completed")["output"] == 1
    missing = client.post("/functions/nowhere/pause")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


def test_the_same_key_reruns_once_and_for_something_else_it_is_refused(client: httpx2.Client) -> None:
    first = client.post("/functions/double/runs", json=21, headers={"Prefer": "wait=20"}).json()
    key = {"Idempotency-Key": f"again-{first['id']}"}
    path = f"/runs/{first['id']}/rerun"
    once, twice = [client.post(path, json={"data": 4}, headers=key).json()["id"] for _ in range(2)]
    assert once == twice
    other = client.post(path, json={"data": 5}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
