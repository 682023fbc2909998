"""Any text in any place of a request: an answer below 500, on both databases."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi import FastAPI

from agentflow import App, Approval, Context, Step

TEXTS = [
    "\x00",
    "a\x00b",
    "'; DROP TABLE agentflow_run; --",
    "%",
    "_%\\",
    "../../etc/passwd",
    "\u202e\u0000"[:1],
    "😀" * 200,
    "\n\r\n",
    "x" * 4096,
    "x" * 4097,
    " ",
    "null",
    "-1",
    "1e400",
    "{{7*7}}",
    "<script>alert(1)</script>",
]


def make_app(database_url: str) -> App:
    flow = App("hostile", database_url=database_url)

    @flow.function
    async def echo(ctx: Context[Any], step: Step) -> Any:
        return ctx.data

    @flow.function
    async def asks(ctx: Context[Any], step: Step) -> bool:
        return (await step.approval("ask", title="May I?", policy=Approval(timeout="1h"))).approved

    return flow


@pytest.mark.timeout(120)
async def test_no_text_makes_a_5xx(database_url: str) -> None:
    flow = make_app(database_url)
    await flow.migrate()
    api = FastAPI()
    api.include_router(flow.router(prefix="/agentflow"))
    # Exceptions that our routes do not answer would come out here instead of becoming a 500.
    transport = httpx2.ASGITransport(api)
    async with (
        api.router.lifespan_context(api),
        httpx2.AsyncClient(
            transport=transport, base_url="http://localhost/agentflow", verify=False
        ) as client,
    ):
        run = (await client.post("/functions/asks/runs", headers={"Prefer": "wait=1"})).json()
        [approval] = (await client.get("/approvals", params={"run": run["id"]})).json()["data"]
        for text in TEXTS:
            for method, path, options in requests_with(text, run_id=run["id"], approval=approval):
                answer = await client.request(method, path, **options)
                assert answer.status_code < 500, (method, path, options, answer.text)
                if answer.status_code >= 400:
                    assert answer.headers["content-type"] == "application/problem+json", (
                        method,
                        path,
                        options,
                    )
        after = (await client.get(f"/approvals/{approval['id']}")).json()
        assert after == approval


def requests_with(
    text: str, *, run_id: str, approval: dict[str, Any]
) -> list[tuple[str, str, dict[str, Any]]]:
    """The text in every place of every route where it can stand."""
    encoded = quote(text, safe="")
    paths = [f"/runs/{encoded}", f"/runs/{encoded}/steps", f"/runs/{run_id}/steps/{encoded}"]
    paths += [
        f"/runs/{encoded}/stream",
        f"/events/{encoded}",
        f"/events/{encoded}/runs",
        f"/functions/{encoded}",
    ]
    paths += [f"/approvals/{encoded}"]
    names = {
        "/runs": ("status", "function", "since", "q", "limit", "cursor"),
        "/events": ("name", "limit", "cursor"),
        "/approvals": ("status", "run", "limit", "cursor"),
        f"/runs/{run_id}/steps": ("limit", "cursor"),
    }
    key = {"Idempotency-Key": text.encode()[:200]} if text.isprintable() else {}
    posts: list[tuple[str, Any, dict[str, Any]]] = [
        (f"/runs/{encoded}/cancel", {"reason": text}, {}),
        (f"/functions/{encoded}/runs", {}, {}),
        (f"/agents/{encoded}/runs", {}, {}),
        ("/functions/echo/runs", text, key),
        ("/functions/echo/runs", {text: [text]}, {}),
        ("/events", {"name": text, "data": {"x": text}}, key),
        ("/events", {"name": "x", "id": text}, {}),
        ("/events", {"name": "x", "ts": text}, {}),
        ("/signals", {"signal": text, "data": text}, {}),
        ("/signals", {"signal": f"kept {text}"[:100], "buffer": text}, {}),
        (f"/approvals/{encoded}/decision", {"decision": "approve", "args_digest": text}, {}),
        (
            f"/approvals/{approval['id']}/decision",
            {"decision": "approve", "args_digest": text, "comment": text},
            {},
        ),
        (
            f"/approvals/{approval['id']}/decision",
            {"decision": text, "args_digest": approval["args_digest"]},
            {},
        ),
    ]
    return [
        *(("GET", path, {}) for path in paths),
        *(("GET", path, {"params": {name: text}}) for path, queries in names.items() for name in queries),
        *(("POST", path, {"json": body, "headers": headers}) for path, body, headers in posts),
    ]
