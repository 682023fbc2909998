"""Decisions over HTTP: who decides, about what, once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.http.served import TOKENS
from tests.http.servers import Server, wait_for_status, wait_until


def ask(client: httpx2.Client, **bill: Any) -> dict[str, Any]:
    """Start `pay`, and give the approval it waits for."""
    run_id = client.post("/functions/pay/runs", json=bill).json()["id"]

    def pending() -> Any:
        return client.get("/approvals", params={"status": "pending", "run": run_id}).json()["data"]

    [request] = wait_until(pending)
    found: dict[str, Any] = request
    return found


def decide(client: httpx2.Client, request: dict[str, Any], decision: str, **more: Any) -> httpx2.Response:
    body = {"decision": decision, "args_digest": request["args_digest"], **more}
    return client.post(f"/approvals/{request['id']}/decision", json=body)


@pytest.fixture
def keyed(server_with_keys: Server) -> Iterator[dict[str, httpx2.Client]]:
    """A client for each key."""
    clients = {
        name: server_with_keys.client(headers={"Authorization": f"Bearer {token}"})
        for name, token in TOKENS.items()
    }
    yield clients
    for client in clients.values():
        client.close()


def test_an_approval_is_decided_by_who_is_authenticated(client: httpx2.Client) -> None:
    request = ask(client, amount=5)
    assert client.get(f"/approvals/{request['id']}").json() == request
    assert (request["status"], request["title"], request["details"]) == (
        "pending",
        "Pay the bill",
        {"amount": 5},
    )
    answer = decide(client, request, "approve", comment="fine", user="boss", by="boss")
    assert answer.status_code == 200
    [given] = answer.json()["decisions"]
    assert (answer.json()["status"], given["by"], given["comment"]) == ("approved", "dev", "fine")
    output = wait_for_status(client, request["run_id"], "completed")["output"]
    assert (output["approved"], output["by"], output["comment"]) == (True, "dev", "fine")


def test_a_denial_is_told_to_the_run(client: httpx2.Client) -> None:
    request = ask(client, amount=6)
    assert decide(client, request, "deny", message="too much").json()["status"] == "denied"
    output = wait_for_status(client, request["run_id"], "completed")["output"]
    assert (output["approved"], output["reason"]) == (False, "denied")


def test_a_response_stands_for_the_result(client: httpx2.Client) -> None:
    request = ask(client, amount=7)
    assert decide(client, request, "respond", value={"paid": "by card"}).json()["status"] == "responded"
    assert wait_for_status(client, request["run_id"], "completed")["output"]["value"] == {"paid": "by card"}


def test_who_has_agreed_and_then_denies_is_told_that_this_changes_nothing(client: httpx2.Client) -> None:
    request = ask(client, amount=8, min_approvals=2)
    assert decide(client, request, "approve").json()["status"] == "pending"
    assert decide(client, request, "approve").status_code == 200
    answer = decide(client, request, "deny")
    assert (answer.status_code, answer.json()["code"], answer.json()["winner"]) == (
        409,
        "already_decided",
        None,
    )
    assert "'dev' has agreed to approval" in answer.json()["detail"]
    assert [given["kind"] for given in answer.json()["approval"]["decisions"]] == ["approve"]


@pytest.mark.timeout(120)
def test_of_fifty_at_once_one_wins_and_the_others_see_who(server: Server, client: httpx2.Client) -> None:
    request = ask(client, amount=50)

    def try_it(number: int) -> httpx2.Response:
        with server.client() as own:
            return decide(own, request, "deny" if number % 2 else "approve", comment=f"number {number}")

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(try_it, range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 49
    [won] = [answer.json() for answer in answers if answer.status_code == 200]
    [winner] = won["decisions"]
    for answer in answers:
        if answer.status_code == 409:
            problem = answer.json()
            assert (problem["code"], problem["winner"], problem["approval"]) == (
                "already_decided",
                winner,
                won,
            )


def test_a_decision_about_something_else_is_412_and_changes_nothing(client: httpx2.Client) -> None:
    request = ask(client, amount=8)
    for digest in ("", "0" * 64, request["args_digest"].upper() + "0"):
        answer = decide(client, request | {"args_digest": digest}, "approve")
        assert (answer.status_code, answer.json()["code"]) == (412, "digest_mismatch")
    assert client.get(f"/approvals/{request['id']}").json() == request


def test_a_decision_without_a_digest_is_428_and_changes_nothing(client: httpx2.Client) -> None:
    request = ask(client, amount=9)
    for body in ({"decision": "approve"}, {"decision": "approve", "args_digest": None}):
        answer = client.post(f"/approvals/{request['id']}/decision", json=body)
        assert (answer.status_code, answer.json()["code"]) == (428, "digest_required")
    assert client.get(f"/approvals/{request['id']}").json() == request


def test_an_approval_of_a_cancelled_run_is_410(client: httpx2.Client) -> None:
    request = ask(client, amount=10)
    client.post(f"/runs/{request['run_id']}/cancel")
    wait_for_status(client, request["run_id"], "cancelled")
    answer = decide(client, request, "approve")
    assert (answer.status_code, answer.json()["code"]) == (410, "approval_expired")


def test_an_approval_whose_time_is_over_is_410_and_denied(client: httpx2.Client) -> None:
    request = ask(client, amount=11, timeout=0.3)
    output = wait_for_status(client, request["run_id"], "completed")["output"]
    assert (output["approved"], output["reason"]) == (False, "timeout")
    answer = decide(client, request, "approve")
    assert (answer.status_code, answer.json()["code"]) == (410, "approval_expired")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"decision": "maybe"},
        {"decision": "edit"},
        {"decision": "respond"},
        {"decision": "approve", "edited_args": {"amount": 1}},
        {"decision": "approve", "value": 1},
        {"decision": "deny", "message": 7},
    ],
)
def test_a_decision_that_does_not_fit_is_422_and_changes_nothing(
    client: httpx2.Client, body: dict[str, Any]
) -> None:
    request = ask(client, amount=12)
    answer = client.post(
        f"/approvals/{request['id']}/decision", json={"args_digest": request["args_digest"], **body}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert client.get(f"/approvals/{request['id']}").json() == request


def test_a_decision_on_a_made_up_approval_is_404(client: httpx2.Client) -> None:
    made_up = {"id": "apr_01a20420-1d2c-74db-8424-3a88f71ac44c", "args_digest": "0" * 64}
    assert decide(client, made_up, "approve").status_code == 404


def test_only_an_approver_decides(keyed: dict[str, httpx2.Client]) -> None:
    request = ask(keyed["root"], amount=13, approvers=["manager", "carl"])
    clerk = decide(keyed["clerk"], request, "approve", user="boss", roles=["manager"])
    assert (clerk.status_code, clerk.json()["code"]) == (403, "not_permitted")
    starter = decide(keyed["starter"], request, "approve")
    assert (starter.status_code, starter.json()["code"]) == (403, "missing_scope")
    assert keyed["root"].get(f"/approvals/{request['id']}").json()["status"] == "pending"
    boss = decide(keyed["boss"], request, "approve")
    assert (boss.status_code, boss.json()["decisions"][0]["by"]) == (200, "boss")


def test_who_started_the_run_may_not_decide_where_the_policy_says_so(
    keyed: dict[str, httpx2.Client],
) -> None:
    request = ask(keyed["root"], amount=13, bar_starter=True)
    own = decide(keyed["root"], request, "approve")
    assert (own.status_code, own.json()["code"]) == (403, "not_permitted")
    assert decide(keyed["boss"], request, "approve").status_code == 200
    event = {"name": "bill.came", "data": {"amount": 13, "bar_starter": True}}
    [run_id] = keyed["root"].post("/events", json=event).json()["run_ids"]
    again = keyed["root"].post(f"/runs/{run_id}/rerun").json()["id"]
    for started in (run_id, again):
        pending = {"status": "pending", "run": started}
        [asked] = wait_until(lambda pending=pending: _pending(keyed["root"], pending))
        assert decide(keyed["root"], asked, "approve").status_code == 403
        assert decide(keyed["clerk"], asked, "deny").status_code == 200


def _pending(client: httpx2.Client, which: dict[str, str]) -> Any:
    return client.get("/approvals", params=which).json()["data"]
