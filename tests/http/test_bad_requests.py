"""What is wrong with a request is told with a stable code, and never with a 5xx."""

from __future__ import annotations

import http.client
import json

import httpx2
import pytest

from tests.http.servers import Server

JSON = {"Content-Type": "application/json"}
POSTS = ["/functions/anything/runs", "/functions/double/runs", "/events", "/signals", "/approvals/x/decision"]


def problem(answer: httpx2.Response) -> tuple[int, str]:
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:agentflow:problem:{body['code']}"
    assert body["title"]
    assert body["detail"]
    return body["status"], body["code"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": "\\u0000"}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b" ",
    ],
    ids=lambda body: body[:12].decode("latin-1").replace("\x00", ""),
)
def test_what_is_not_json_is_400(client: httpx2.Client, path: str, body: bytes) -> None:
    assert problem(client.post(path, content=body, headers=JSON)) == (400, "malformed_json")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/functions/double/runs", "two"),
        ("/functions/double/runs", None),
        ("/functions/double/runs", {"value": 1}),
        ("/functions/orders/ship/runs", {"id": "x", "amount": 0}),
        ("/functions/orders/ship/runs", {"id": "x"}),
        ("/functions/orders/ship/runs", []),
        ("/events", {}),
        ("/events", {"name": ""}),
        ("/events", {"name": "x", "data": 5}),
        ("/events", {"name": "x", "ts": "2026-01-01T00:00:00"}),
        ("/events", {"name": "x", "time": "now"}),
        ("/events", []),
        ("/events", [{"name": "x"}, {"no": "name"}]),
        ("/signals", {}),
        ("/signals", {"signal": ""}),
        ("/signals", {"signal": "x", "buffer": "soon"}),
        ("/signals", {"signal": "x", "buffer": -5}),
        ("/signals", {"signal": "x", "dta": 1}),
    ],
)
def test_wrong_data_is_422(client: httpx2.Client, path: str, body: object) -> None:
    answer = client.post(path, content=json.dumps(body), headers=JSON)
    assert problem(answer) == (422, "invalid_input")


def test_422_says_where(client: httpx2.Client) -> None:
    body = {"id": "x", "amount": "many", "lines": [{"article": 1}]}
    answer = client.post("/functions/orders/ship/runs", json=body)
    assert [error["loc"] for error in answer.json()["errors"]] == [
        ["body", "amount"],
        ["body", "lines", 0, "article"],
    ]
    assert "many" not in answer.text


@pytest.mark.parametrize(
    ("body", "where"),
    [({"name": ""}, ["body", "event", "name"]), ([{"name": "x"}, {}], ["body", "events", 1, "name"])],
)
def test_what_is_wrong_with_events_is_told_of_what_was_sent_alone(
    client: httpx2.Client, body: object, where: list[object]
) -> None:
    assert [error["loc"] for error in client.post("/events", json=body).json()["errors"]] == [where]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=ten",
        "cursor=x",
        "cursor=",
        "cursor=%00",
        "status=asleep",
        "since=yesterday",
    ]
    + ["since=2026-01-01T00:00:00", "q=%00", "function=%00", f"q={'x' * 5000}"],
)
def test_a_bad_query_is_422(client: httpx2.Client, query: str) -> None:
    assert problem(client.get(f"/runs?{query}")) == (422, "invalid_input")


def test_a_cursor_of_another_list_is_422(client: httpx2.Client) -> None:
    run_id = client.post("/functions/talks/runs", json=3, headers={"Prefer": "wait=1"}).json()["id"]
    page = client.get(f"/runs/{run_id}/steps?limit=1").json()["page"]
    assert page["has_more"]
    assert client.get(f"/runs/{run_id}/steps?limit=1&cursor={page['cursor']}").status_code == 200
    assert problem(client.get(f"/events?cursor={page['cursor']}x")) == (422, "invalid_input")


def test_a_body_over_1_mb_is_413_whether_its_length_is_told_or_not(client: httpx2.Client) -> None:
    fits = b'"' + b"x" * (1024 * 1024 - 2) + b'"'
    over = fits[:-1] + b'x"'
    path = "/functions/anything/runs"
    assert client.post(path, content=fits, headers=JSON).status_code == 202
    assert problem(client.post(path, content=over, headers=JSON)) == (413, "too_large")

    def chunks(body: bytes):  # type: ignore[no-untyped-def]
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    assert client.post(path, content=chunks(fits), headers=JSON).status_code == 202
    assert problem(client.post(path, content=chunks(over), headers=JSON)) == (413, "too_large")


def test_a_body_that_lies_about_its_length_is_refused(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/agentflow/events")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (413, "too_large")
    connection.close()


def test_the_data_of_an_event_over_its_limit_is_413(client: httpx2.Client) -> None:
    answer = client.post("/events", json={"name": "big", "data": {"text": "x" * 600_000}})
    assert problem(answer) == (413, "too_large")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip"])
def test_compressed_bodies_are_415(client: httpx2.Client, encoding: str) -> None:
    answer = client.post("/events", content=b"{}", headers={**JSON, "Content-Encoding": encoding})
    assert problem(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_bodies_of_another_type_are_415(client: httpx2.Client, content_type: str) -> None:
    answer = client.post(
        "/functions/anything/runs", content=b'{"a": 1}', headers={"Content-Type": content_type}
    )
    assert problem(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"]
)
def test_json_by_any_of_its_names_is_taken(client: httpx2.Client, content_type: str) -> None:
    answer = client.post(
        "/functions/anything/runs", content=b'{"a": 1}', headers={"Content-Type": content_type}
    )
    assert answer.status_code == 202


def test_names_of_the_framework_are_refused(client: httpx2.Client) -> None:
    answer = client.post("/events", json=[{"name": "fine"}, {"name": "agentflow/run.ended"}])
    assert problem(answer) == (403, "not_permitted")


UNKNOWN = "01a20420-1d2c-74db-8424-3a88f71ac44c"


def test_every_unknown_id_has_the_same_404(client: httpx2.Client) -> None:
    run_id = client.post("/functions/double/runs", json=1, headers={"Prefer": "wait=20"}).json()["id"]
    decision = {"decision": "approve", "args_digest": "0" * 64}
    answers = [
        *(client.get(f"/runs/{name}") for name in (f"run_{UNKNOWN}", "x", "%27%3B--", "ä", "x" * 3000)),
        client.get(f"/runs/run_{UNKNOWN}/steps"),
        client.get(f"/runs/run_{UNKNOWN}/steps/double"),
        client.get(f"/runs/run_{UNKNOWN}/stream"),
        client.get(f"/runs/{run_id}/steps/nothing"),
        client.get(f"/runs/{run_id}/steps/a/b/c"),
        client.get(f"/approvals/apr_{UNKNOWN}"),
        client.get(f"/approvals/{run_id}"),
        client.get(f"/events/evt_{UNKNOWN}"),
        client.get(f"/events/{run_id}/runs"),
        client.get("/functions/nothing"),
        client.get("/no/such/route"),
        client.post(f"/runs/run_{UNKNOWN}/cancel"),
        client.post("/functions/nothing/runs", json={}),
        client.post("/agents/nothing/runs", json={}),
        client.post(f"/approvals/apr_{UNKNOWN}/decision", json=decision),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert problem(answers[0]) == (404, "not_found")


def test_a_wrong_method_is_405_and_says_which(client: httpx2.Client) -> None:
    answer = client.delete("/runs")
    assert problem(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_the_host_keeps_its_own_errors(server: Server) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", verify=False) as host:
        assert host.get("/own/5").json() == 5
        assert host.get("/nothing").json() == {"detail": "Not Found"}
        wrong = host.get("/own/five")
        assert (wrong.status_code, list(wrong.json())) == (422, ["detail"])
        assert wrong.headers["content-type"] == "application/json"
