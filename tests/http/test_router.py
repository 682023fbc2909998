"""The router in a host: lifespans joined, routes beside each other, and an OpenAPI document that tells the truth."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import ConfigurationError, DatabaseUnavailable
from agentflow.http.problems import PROBLEMS
from agentflow.http.schemas import self_contained
from agentflow.step import Step
from tests.http.served import api as served

ROOT = Path(__file__).parents[2]


def make_app(sqlite_url: str, name: str = "mine") -> App:
    flow = App(name, database_url=sqlite_url)

    @flow.function
    async def hello(ctx: Context[str], step: Step) -> str:
        return f"hello {ctx.data}"

    return flow


def client_of(api: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(api), base_url="http://localhost")


async def greet(client: httpx2.AsyncClient, prefix: str) -> Any:
    headers = {"Prefer": "wait=20"}
    answer = await client.post(f"{prefix}/functions/hello/runs", json="you", headers=headers)
    assert answer.headers["location"] == f"{prefix}/runs/{answer.json()['id']}"
    return answer.json()["output"]


async def test_one_line_opens_the_app_with_a_worker_inside_the_hosts_lifespan(sqlite_url: str) -> None:
    flow = make_app(sqlite_url)
    order: list[str] = []

    @asynccontextmanager
    async def of_the_host(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        order.append("host up")
        with pytest.raises(ConfigurationError, match="not open"):
            flow.client  # noqa: B018
        yield {"from": "host"}
        with pytest.raises(ConfigurationError, match="not open"):
            flow.client  # noqa: B018
        order.append("host down")

    api = FastAPI(lifespan=of_the_host)
    api.include_router(flow.router(prefix="/agentflow"))
    async with api.router.lifespan_context(api) as state, client_of(api) as client:
        assert state == {"from": "host"}
        assert (await client.get("/agentflow/readyz")).json()["worker"] == "running"
        assert await greet(client, "/agentflow") == "hello you"
    assert order == ["host up", "host down"]


async def test_a_router_without_a_worker_leaves_runs_to_others(sqlite_url: str) -> None:
    api = FastAPI()
    api.include_router(make_app(sqlite_url).router(prefix="/agentflow", run_worker=False))
    async with api.router.lifespan_context(api), client_of(api) as client:
        assert (await client.get("/agentflow/readyz")).json()["worker"] == "none"
        run = (await client.post("/agentflow/functions/hello/runs", json="you")).json()
        assert run["status"] == "queued"


async def test_a_prefix_of_the_host_and_a_router_in_a_router(sqlite_url: str) -> None:
    outer = APIRouter(prefix="/outer")
    outer.include_router(make_app(sqlite_url).router(prefix="/flow"))
    api = FastAPI()
    api.include_router(outer, prefix="/v1")
    async with api.router.lifespan_context(api), client_of(api) as client:
        assert await greet(client, "/v1/outer/flow") == "hello you"


async def test_without_a_prefix_unknown_paths_are_the_hosts(sqlite_url: str) -> None:
    api = FastAPI()
    api.include_router(make_app(sqlite_url).router())
    async with api.router.lifespan_context(api), client_of(api) as client:
        assert await greet(client, "") == "hello you"
        assert (await client.get("/nothing")).json() == {"detail": "Not Found"}


async def test_routes_of_the_host_under_our_prefix_are_found_wherever_they_stand(sqlite_url: str) -> None:
    api = FastAPI()
    api.include_router(make_app(sqlite_url).router(prefix="/agentflow"))

    @api.get("/agentflow/extra")
    async def extra() -> str:
        return "mine"

    async with api.router.lifespan_context(api), client_of(api) as client:
        assert (await client.get("/agentflow/extra")).json() == "mine"
        assert (await client.get("/agentflow/other")).json()["code"] == "not_found"


async def test_before_the_app_is_open_the_answer_is_503(sqlite_url: str) -> None:
    api = FastAPI()
    api.include_router(make_app(sqlite_url).router(prefix="/agentflow"))
    async with client_of(api) as client:
        for path in ("/runs", "/readyz", "/metrics"):
            answer = await client.get(f"/agentflow{path}")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert (await client.get("/agentflow/healthz")).json() == {"status": "ok"}


async def test_while_the_database_does_not_answer_the_answer_is_503_and_tells_no_address(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_away(*_: object) -> None:
        raise DatabaseUnavailable("cannot connect to 10.1.2.3")

    flow, api = make_app(sqlite_url), FastAPI()
    api.include_router(flow.router(prefix="/agentflow", run_worker=False))
    async with api.router.lifespan_context(api), client_of(api) as client:
        monkeypatch.setattr(flow.client.store.queries, "get_run", is_away)
        answer = await client.get("/agentflow/runs/run_1")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "10.1.2.3" not in answer.text


async def test_two_apps_in_one_host_and_database_do_not_see_each_others_runs(sqlite_url: str) -> None:
    api = FastAPI()
    for name in ("one", "two"):
        api.include_router(make_app(sqlite_url, name).router(prefix=f"/{name}"))
    async with api.router.lifespan_context(api), client_of(api) as client:
        headers = {"Prefer": "wait=20"}
        run = (await client.post("/one/functions/hello/runs", json="you", headers=headers)).json()
        unknown = await client.get("/two/runs/run_unknown")
        for path in ("", "/steps", "/steps/x", "/stream"):
            assert (await client.get(f"/two/runs/{run['id']}{path}")).content == unknown.content
        assert (await client.post(f"/two/runs/{run['id']}/cancel")).content == unknown.content
        assert (await client.get("/two/runs")).json()["data"] == []
        assert (await client.get(f"/one/runs/{run['id']}")).json() == run


async def test_a_proxy_that_takes_the_root_path_away_is_reckoned_with(sqlite_url: str) -> None:
    api = FastAPI()
    api.include_router(make_app(sqlite_url).router(prefix="/agentflow"))
    behind = httpx2.ASGITransport(api, root_path="/public")
    async with (
        api.router.lifespan_context(api),
        httpx2.AsyncClient(transport=behind, base_url="http://localhost") as client,
    ):
        answer = await client.post("/agentflow/functions/hello/runs", json="you")
        assert answer.headers["location"] == f"/public/agentflow/runs/{answer.json()['id']}"


# -------------------------------------------------------------------------------------------- OpenAPI


def test_the_document_shows_a_functions_own_schema() -> None:
    document = served.openapi()
    start = document["paths"]["/agentflow/functions/orders/ship/runs"]["post"]
    body = start["requestBody"]
    assert body["required"]
    schema = body["content"]["application/json"]["schema"]
    assert schema["required"] == ["id", "amount"]
    assert schema["properties"]["lines"]["items"]["properties"]["article"]["type"] == "string"
    assert "$ref" not in str(schema)
    assert sorted(start["responses"]["200"]["content"]) == ["application/json", "text/event-stream"]
    generic = document["paths"]["/agentflow/functions/{function_id}/runs"]["post"]
    assert generic["requestBody"].get("required", False) is False


def test_the_document_shows_each_problem_and_no_other_error_form() -> None:
    document = served.openapi()
    for path, operations in document["paths"].items():
        if path.startswith("/agentflow"):
            for operation in operations.values():
                assert "422" not in operation["responses"]
                content = operation["responses"]["default"]["content"]
                [schema] = [media["schema"] for media in content.values()]
                assert list(content) == ["application/problem+json"]
                assert schema["properties"]["code"]["enum"] == sorted(PROBLEMS)


def test_every_operation_has_a_name_of_its_own() -> None:
    document = served.openapi()
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_a_schema_that_contains_itself_is_left_open_there() -> None:
    tree = {
        "$defs": {"Tree": {"type": "object", "properties": {"kids": {"items": {"$ref": "#/$defs/Tree"}}}}},
        "$ref": "#/$defs/Tree",
    }
    assert self_contained(tree) == {"type": "object", "properties": {"kids": {"items": {}}}}


def test_the_reference_lists_every_code_with_its_status() -> None:
    page = (ROOT / "docs/reference/problem-codes.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", page, re.MULTILINE))
    assert {code: int(status) for code, status in listed.items()} == {
        code: kind.status for code, kind in PROBLEMS.items()
    }
