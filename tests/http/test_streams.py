"""Server-sent events: live, resumed after a cut, ended by `done`, and let go when the client goes."""

from __future__ import annotations

import json
import re
from itertools import takewhile

import httpx2
import pytest

from agentflow.http import sse
from agentflow.http.stopping import Stopping
from agentflow.runs import StreamItem
from tests.http.servers import Sent, Server, read_events, wait_for_status, wait_until


def start(client: httpx2.Client, words: int) -> str:
    run_id: str = client.post("/functions/talks/runs", json=words).json()["id"]
    return run_id


def finish(client: httpx2.Client, run_id: str) -> None:
    wait_until(lambda: client.post("/signals", json={"signal": f"enough:{run_id}"}).status_code == 202)
    wait_for_status(client, run_id, "completed")


def whole_stream(client: httpx2.Client, run_id: str, **options: object) -> list[Sent]:
    with client.stream("GET", f"/runs/{run_id}/stream", **options) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(read_events(response))


def test_a_stream_tells_each_step_by_its_number_and_ends_with_done(client: httpx2.Client) -> None:
    run_id = start(client, 3)
    finish(client, run_id)
    events = whole_stream(client, run_id)
    steps = [event for event in events if event.event == "step.completed"]
    assert [event.data["step_key"] for event in steps] == ["say 0", "say 1", "say 2", "enough"]
    assert [int(event.id) for event in steps] == sorted({int(event.id) for event in steps})
    assert all(event.data["seq"] == int(event.id) for event in events)
    assert events[-1].event == "done"
    assert (events[-1].data["data"]["status"], events[-1].data["data"]["output"]) == ("completed", 3)


def test_a_stream_is_live_and_goes_on_after_a_cut(client: httpx2.Client) -> None:
    run_id = start(client, 5)
    with client.stream("GET", f"/runs/{run_id}/stream") as response:
        before = list(takewhile(lambda event: event.data["step_key"] != "say 3", read_events(response)))
    last = before[-1]
    with client.stream("GET", f"/runs/{run_id}/stream", headers={"Last-Event-ID": last.id}) as response:
        events = read_events(response)
        after = list(takewhile(lambda event: event.event != "run.waiting", events))
        finish(client, run_id)
        after += list(events)
    told = [event.data["step_key"] for event in [*before, *after] if event.event == "step.completed"]
    assert told == ["say 0", "say 1", "say 2", "say 3", "say 4", "enough"]
    assert after[-1].event == "done"


def test_after_in_the_query_begins_there_too(client: httpx2.Client) -> None:
    run_id = start(client, 3)
    finish(client, run_id)
    every = whole_stream(client, run_id)
    assert whole_stream(client, run_id, params={"after": every[1].id}) == every[2:]
    assert (
        whole_stream(client, run_id, params={"after": every[1].id}, headers={"Last-Event-ID": every[2].id})
        == every[3:]
    )


def test_a_number_that_a_live_run_has_not_given_yet_begins_at_its_beginning(client: httpx2.Client) -> None:
    run_id = start(client, 2)
    wait_for_status(client, run_id, "waiting")
    with client.stream("GET", f"/runs/{run_id}/stream", headers={"Last-Event-ID": "5000"}) as response:
        events = read_events(response)
        assert [next(events).id for _ in range(3)] == ["1", "2", "2"]  # two steps, and what it waits for
    finish(client, run_id)


def test_204_only_for_who_has_had_done(client: httpx2.Client) -> None:
    run_id = start(client, 1)
    finish(client, run_id)
    *others, done = whole_stream(client, run_id)
    path = f"/runs/{run_id}/stream"
    answer = client.get(path, headers={"Last-Event-ID": done.id})
    assert (answer.status_code, answer.content) == (204, b"")
    for event in others:
        assert whole_stream(client, run_id, headers={"Last-Event-ID": event.id})[-1] == done
    assert whole_stream(client, run_id, params={"after": done.id}) == [done]
    assert whole_stream(client, run_id, headers={"Last-Event-ID": "999999"}) == [*others, done]


@pytest.mark.parametrize("name", ["x", "-1", "1.5", "٣", "9" * 40])
def test_a_last_event_id_that_no_stream_gave_is_422(client: httpx2.Client, name: str) -> None:
    run_id = client.post("/functions/double/runs", json=1).json()["id"]
    answer = client.get(f"/runs/{run_id}/stream", headers={"Last-Event-ID": name.encode()})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


def test_the_stream_of_no_run_is_404(client: httpx2.Client) -> None:
    answer = client.get("/runs/run_nothing/stream")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_accept_event_stream_starts_and_streams(client: httpx2.Client) -> None:
    headers = {"Accept": "text/event-stream"}
    with client.stream("POST", "/functions/double/runs", json=5, headers=headers) as response:
        assert response.status_code == 200
        events = list(read_events(response))
    run_id = response.headers["location"].rpartition("/")[2]
    assert client.get(f"/runs/{run_id}").json()["output"] == 10
    assert [event.event for event in events if event.event.startswith("step")] == ["step.completed"]
    assert events[-1].event == "done"


def test_a_stream_ends_when_its_client_goes(client: httpx2.Client, server: Server) -> None:
    def streams() -> int:
        found = re.search(r"^agentflow_http_streams (\d+)$", client.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    wait_until(lambda: streams() == 0)
    run_id = start(client, 1)
    with server.client() as other, other.stream("GET", f"/runs/{run_id}/stream") as response:
        events = read_events(response)  # kept: a generator that is dropped closes its response
        next(events)
        assert streams() == 1
    wait_until(lambda: streams() == 0)


async def test_an_idle_stream_sends_comments_and_lets_go_of_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.01)
    closed = False

    async def items():  # type: ignore[no-untyped-def]
        nonlocal closed
        try:
            yield StreamItem(
                seq=1, kind="a\ntopic", data={"text": "six\nlines\u2028as\u2029some\x85have\x0cit"}
            )
            await never.wait()
        finally:
            closed = True

    import asyncio

    never = asyncio.Event()
    gone = asyncio.Event()
    sent: list[bytes] = []

    async def send(message) -> None:  # type: ignore[no-untyped-def]
        sent.append(message.get("body", b""))
        if sent.count(b": ping\n\n") == 2:
            gone.set()

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    streams = sse.OpenStreams()
    await sse.RunStream(items(), streams, Stopping())(
        {"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send
    )
    assert closed
    assert streams.count == 0
    [event, *comments] = [body for body in sent if body]
    assert event.splitlines()[0] == b"event: a topic"
    data, _ = event.decode().removeprefix("event: a topic\ndata: ").split("\nid: ")
    assert data.splitlines() == [data]
    assert json.loads(data)["data"]["text"] == "six\nlines\u2028as\u2029some\x85have\x0cit"
    assert set(comments) == {b": ping\n\n"}
