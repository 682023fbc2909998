"""Who may call: this machine under `auth="dev"`, keys by their scopes, or what a dependency says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI, Header, HTTPException
from fastapi.routing import iter_route_contexts

from agentflow.app import App
from agentflow.auth import ApiKey, ApiKeys, Principal
from agentflow.context import Context
from agentflow.errors import ConfigurationError
from agentflow.http.auth import SCOPES
from agentflow.step import Step
from tests.http.served import TOKENS
from tests.http.served import api as served
from tests.http.servers import Server

EVERY_SCOPE = {"events:write", "runs:read", "runs:write", "signals:write", "approvals:decide", "admin"}


@asynccontextmanager
async def calling(
    sqlite_url: str, *, auth: Any = "dev", peer: str = "127.0.0.1", url: str = "http://localhost:8000"
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an app in this process, which sees it come from `peer`."""
    flow = App("mine", database_url=sqlite_url)

    @flow.function
    async def hello(ctx: Context[Any], step: Step) -> str:
        return "hello"

    api = FastAPI()
    api.include_router(flow.router(prefix="/agentflow", auth=auth, run_worker=False))
    transport = httpx2.ASGITransport(api, client=(peer, 40_000))
    async with (
        api.router.lifespan_context(api),
        httpx2.AsyncClient(transport=transport, base_url=f"{url}/agentflow") as client,
    ):
        yield client


# ------------------------------------------------------------------------------------------------ dev


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:80"])
def test_dev_answers_to_this_machine_by_its_names(client: httpx2.Client, host: str) -> None:
    assert client.get("/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "evil.test:8000",
        "localhost:8000@evil.test",
        "[::2]",
    ]
    + ["127.0.0.2", "0.0.0.0", "localhost,evil.test", ""],
)
def test_dev_refuses_another_host(client: httpx2.Client, host: str) -> None:
    answer = client.get("/runs", headers={"Host": host})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "ApiKeys" in answer.json()["detail"]
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "header",
    ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Any", "X-Real-IP"],
)
def test_dev_refuses_what_a_proxy_forwarded(client: httpx2.Client, header: str) -> None:
    answer = client.get("/runs", headers={header: "127.0.0.1"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("peer", ["192.168.0.7", "10.0.0.1", "::ffff:10.0.0.1", "testclient", "2001:db8::1"])
async def test_dev_refuses_another_machine_that_says_localhost(sqlite_url: str, peer: str) -> None:
    async with calling(sqlite_url, peer=peer) as client:
        answer = await client.get("/runs")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_dev_knows_this_machine_by_all_its_addresses(sqlite_url: str, peer: str) -> None:
    async with calling(sqlite_url, peer=peer) as client:
        assert (await client.get("/runs")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.test"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}]
    + [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)
def test_dev_refuses_a_page_of_another_origin(client: httpx2.Client, headers: dict[str, str]) -> None:
    answer = client.post("/runs/run_x/cancel", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")


def test_dev_lets_its_own_pages_in(client: httpx2.Client, server: Server) -> None:
    headers = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert client.get("/runs", headers=headers).status_code == 200


def test_who_calls_is_asked_before_what_they_sent(client: httpx2.Client) -> None:
    headers = {"Host": "evil.test", "Content-Type": "application/json"}
    bodies = [b"{", b"x" * 2_000_000, b'{"name": 5}']
    assert {client.post("/events", content=body, headers=headers).status_code for body in bodies} == {401}


# ----------------------------------------------------------------------------------------------- keys


def test_without_a_key_everything_but_healthz_is_401(server_with_keys: Server) -> None:
    routes = [
        route for route in iter_route_contexts(served.routes) if (route.path or "").startswith("/agentflow/")
    ]
    assert len(routes) > 20
    with server_with_keys.client() as client:
        for headers in (
            {},
            {"Authorization": "Bearer nonsense"},
            {"Authorization": f"Basic {TOKENS['root']}"},
        ):
            for route in routes:
                path = (route.path_format or "").removeprefix("/agentflow").format_map(_Anything())
                for method in route.methods or ():
                    answer = client.request(method, path, headers=headers)
                    expected = 200 if path == "/healthz" else 401
                    assert answer.status_code == expected, (method, path)


class _Anything(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "x"


@pytest.mark.parametrize(
    ("key", "method", "path", "body", "status"),
    [
        ("reader", "GET", "/runs", None, 200),
        ("reader", "GET", "/approvals", None, 200),
        ("reader", "GET", "/metrics", None, 200),
        ("reader", "POST", "/events", {"name": "x"}, 403),
        ("reader", "POST", "/functions/anything/runs", {}, 403),
        ("reader", "POST", "/runs/x/cancel", {}, 403),
        ("reader", "POST", "/signals", {"signal": "x"}, 403),
        ("reader", "POST", "/approvals/x/decision", {"decision": "approve"}, 403),
        ("writer", "POST", "/events", {"name": "x"}, 202),
        ("writer", "POST", "/signals", {"signal": "x"}, 404),
        ("writer", "GET", "/runs", None, 403),
        ("writer", "GET", "/readyz", None, 200),
        ("writer", "GET", "/events", None, 403),
        ("starter", "POST", "/functions/anything/runs", {}, 202),
        ("boss", "POST", "/approvals/x/decision", {"decision": "deny"}, 404),
        ("root", "POST", "/events", {"name": "x"}, 202),
        ("root", "GET", "/runs", None, 200),
    ],
)
def test_a_key_may_do_what_its_scopes_say(
    server_with_keys: Server, key: str, method: str, path: str, body: Any, status: int
) -> None:
    with server_with_keys.client(headers={"Authorization": f"Bearer {TOKENS[key]}"}) as client:
        answer = client.request(method, path, json=body, headers={"Host": "anything.test"})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "missing_scope"


def test_keys_keep_no_token() -> None:
    token = "a-token-that-nobody-may-see"
    keys = ApiKeys({"crm": ApiKey(token, scopes=["runs:read"])})
    assert token not in repr(keys) + repr(vars(keys)) + repr([vars(key) for key in keys._keys.values()])


async def test_keys_from_the_environment(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hash = ApiKey("token-of-the-second-key", scopes=["admin"]).sha256
    keys = {
        "first": {"token": "token-of-the-first-key", "scopes": ["runs:read"], "roles": ["x"]},
        "second": {"sha256": by_hash.upper(), "scopes": ["events:write"]},
    }
    monkeypatch.setenv("AGENTFLOW_API_KEYS", json.dumps(keys))
    async with calling(sqlite_url, auth=ApiKeys.from_environment(), peer="10.0.0.1") as client:
        first = {"Authorization": "Bearer token-of-the-first-key"}
        second = {"Authorization": "Bearer token-of-the-second-key"}
        assert (await client.get("/runs", headers=first)).status_code == 200
        assert (await client.get("/runs", headers=second)).status_code == 403
        assert (await client.post("/events", headers=second, json={"name": "x"})).status_code == 202
        assert (await client.get("/runs", headers={"Authorization": f"Bearer {by_hash}"})).status_code == 401


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", '"key"', '{"a": 1}', '{"a": {}}', '{"a": {"token": "short", "scopes": ["admin"]}}', "{}"]
    + [
        '{"a": {"token": "secret-secret-secret", "scopes": []}}',
        '{"a": {"sha256": "abc", "scopes": ["admin"]}}',
    ]
    + ['{"a": {"token": "secret-secret-secret", "scopes": ["all"]}}'],
)
def test_wrong_keys_in_the_environment_are_refused_without_showing_them(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("AGENTFLOW_API_KEYS", text)
    with pytest.raises(ConfigurationError) as caught:
        ApiKeys.from_environment()
    assert "secret-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_two_keys_with_one_token_are_refused() -> None:
    key = ApiKey("the-very-same-token-again", scopes=["admin"])
    with pytest.raises(ConfigurationError, match="its own token"):
        ApiKeys({"a": key, "b": key})


def test_the_scopes_are_those_of_the_design() -> None:
    assert set(SCOPES) == EVERY_SCOPE


# ----------------------------------------------------------------------------------------- dependency


async def test_any_dependency_that_returns_a_principal_will_do(sqlite_url: str) -> None:
    def by_header(x_user: Annotated[str | None, Header()] = None) -> Principal:
        if x_user is None:
            raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Custom"})
        return Principal(id=x_user, scopes=("runs:read",))

    async with calling(sqlite_url, auth=by_header, peer="10.0.0.1", url="https://example.test") as client:
        assert (await client.get("/runs", headers={"X-User": "ana"})).status_code == 200
        assert (
            await client.post("/events", headers={"X-User": "ana"}, json={"name": "x"})
        ).status_code == 403
        nobody = await client.get("/runs")
        assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
        assert nobody.headers["www-authenticate"] == "Custom"


async def test_a_dependency_that_returns_something_else_lets_nobody_in(sqlite_url: str) -> None:
    async with calling(sqlite_url, auth=lambda: {"id": "root", "scopes": ["admin"]}) as client:
        answer = await client.get("/runs")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert "Principal" not in answer.text


@pytest.mark.parametrize("auth", [None, "", "none", False, True, ApiKeys, Principal(id="x")])
def test_what_is_no_authentication_is_refused_at_once(sqlite_url: str, auth: Any) -> None:
    with pytest.raises(ConfigurationError, match="auth="):
        App("mine", database_url=sqlite_url).router(auth=auth)
