"""An agent over HTTP: started by its name, stopped at a gated tool, decided about by a person."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.http.servers import wait_for_status, wait_until

START = "/agents/desk/runs"


def ask(client: httpx2.Client, prompt: Any = "Refund A1, please.") -> dict[str, Any]:
    run_id = client.post(START, json=prompt).json()["id"]

    def pending() -> Any:
        return client.get("/approvals", params={"run": run_id, "status": "pending"}).json()["data"]

    [request] = wait_until(pending)
    found: dict[str, Any] = request
    return found


def decide(client: httpx2.Client, request: dict[str, Any], **body: Any) -> httpx2.Response:
    body.setdefault("args_digest", request["args_digest"])
    return client.post(f"/approvals/{request['id']}/decision", json=body)


def test_agents_are_listed_with_the_schema_of_their_input(client: httpx2.Client) -> None:
    [desk] = client.get("/agents").json()["data"]
    assert (desk["id"], desk["is_agent"]) == ("agents/desk", True)
    assert desk["input_schema"]["required"] == ["prompt"]
    assert client.get("/functions/agents/desk").json() == desk


@pytest.mark.parametrize("prompt", ["Refund A1, please.", {"prompt": "Refund A1, please."}])
def test_the_tool_of_an_agent_waits_for_a_person(client: httpx2.Client, prompt: Any) -> None:
    request = ask(client, prompt)
    assert (request["tool"], request["args"]) == ("refund", {"order_id": "A1", "amount": "12.50"})
    assert decide(client, request, decision="approve").json()["status"] == "approved"
    run = wait_for_status(client, request["run_id"], "completed")
    assert (run["function"], run["output"]) == ("agents/desk", "It is settled: paid 12.50 for A1")


def test_an_edit_runs_the_tool_with_the_arguments_of_the_person(client: httpx2.Client) -> None:
    request = ask(client)
    decided = decide(client, request, decision="edit", edited_args={"order_id": "A1", "amount": "3"})
    assert (decided.status_code, decided.json()["edited_args"]) == (200, {"order_id": "A1", "amount": "3"})
    assert wait_for_status(client, request["run_id"], "completed")["output"].endswith("paid 3 for A1")


def test_edited_arguments_that_do_not_fit_the_tool_pay_nothing(client: httpx2.Client) -> None:
    request = ask(client)
    answer = decide(client, request, decision="edit", edited_args={"order_id": "A1", "amount": "much"})
    assert answer.status_code in (200, 422)
    if answer.status_code == 422:
        assert decide(client, request, decision="deny", message="no").status_code == 200
    assert "paid" not in wait_for_status(client, request["run_id"], "completed", "failed")["output"]


def test_a_decision_is_for_one_call_even_where_another_asks_the_same(client: httpx2.Client) -> None:
    requests = [ask(client) for _ in range(2)]
    assert requests[0]["args_digest"] == requests[1]["args_digest"]
    assert requests[0]["id"] != requests[1]["id"]
    first, second = requests
    assert decide(client, first, decision="deny", message="not today").status_code == 200
    assert decide(client, first, decision="approve").json()["winner"]["kind"] == "deny"
    assert client.get(f"/approvals/{second['id']}").json()["status"] == "pending"
    output = wait_for_status(client, first["run_id"], "completed")["output"]
    assert "not today" in output
    assert "paid" not in output


@pytest.mark.parametrize(
    "body", ["", {}, {"prompt": ""}, {"prompt": 5}, {"prompt": "x", "model": "y"}, 5, []]
)
def test_an_agent_takes_a_prompt_and_nothing_else(client: httpx2.Client, body: Any) -> None:
    answer = client.post(START, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
