"""The pages about flow control do what they say: their blocks are run, and their functions started."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections import Counter

import pytest

from agentflow import App, RunStatus, errors, flow
from agentflow.flow_control import FlowControl
from agentflow.testing import Harness, harness
from tests.docs.pages import ROOT, load, table_rows

REFERENCE = ROOT / "docs" / "reference" / "flow-control.md"


async def send(h: Harness, name: str, *data: dict[str, str]) -> list[str]:
    return await h.send([{"name": name, "data": each} for each in data])


async def outcomes(app: App, function: str) -> list[tuple[RunStatus, object, str]]:
    """Status, output and the first word of the reason of a function's runs, in the order in which they were stored."""
    runs = [await app.runs.get(run.id) for run in (await app.runs.list(function=function, limit=100)).data]
    return [(run.status, run.output, (run.reason or "").partition(" ")[0]) for run in reversed(runs)]


async def test_one_file_of_a_customer_is_imported_at_a_time() -> None:
    page = load("how-to/concurrency.md")
    async with harness(page.app) as h:
        await send(h, "shop/file.uploaded", *[{"customer": name} for name in ("ana", "ben") * 6])
        await h.idle()
        ended = await outcomes(page.app, "import-file")
        assert Counter(ended) == {
            (RunStatus.COMPLETED, "ana", ""): 6,
            (RunStatus.COMPLETED, "ben", ""): 6,
        }
    assert set(page.most_at_once) == {1}


async def test_two_functions_share_the_printer() -> None:
    page = load("how-to/concurrency.md")
    async with harness(page.app) as h:
        await send(h, "shop/order.packed", *[{"order": str(n)} for n in range(5)])
        await h.idle()
        for function in ("print-label", "print-invoice"):
            assert await outcomes(page.app, function) == [(RunStatus.COMPLETED, "printer", "")] * 5
    assert set(page.most_at_once) == {1}


async def test_each_warehouse_gets_two_bookings_at_once_and_then_one_every_ten_seconds() -> None:
    page = load("how-to/throttle.md")
    async with harness(page.app) as h:
        await send(h, "shop/order.placed", *[{"warehouse": "north", "order": str(n)} for n in range(9)])
        await send(h, "shop/order.placed", {"warehouse": "south", "order": "x"})
        await h.idle()
        counts = []
        for _ in range(8):
            found = await outcomes(page.app, "book")
            counts.append(sum(status is RunStatus.COMPLETED for status, _, _ in found))
            assert all(why == "throttle:" for status, _, why in found if status is RunStatus.QUEUED)
            await h.advance("10s")
        assert counts == [3, 4, 5, 6, 7, 8, 9, 10]


async def test_the_buyer_gets_one_mail_an_article() -> None:
    page = load("how-to/rate-limit.md")
    async with harness(page.app) as h:
        assert await page.tell("tea") == "order more of tea"
        assert (await page.tell("tea")).startswith("not told: rate_limit: 1 run(s) in ")
        await send(h, "shop/stock.low", {"article": "milk"}, {"article": "milk"})
        await h.advance("4h")
        assert await page.tell("tea") == "order more of tea"
        assert await outcomes(page.app, "tell-buyer") == [
            (RunStatus.COMPLETED, "order more of tea", ""),
            (RunStatus.SKIPPED, None, "rate_limit:"),
            (RunStatus.COMPLETED, "order more of milk", ""),
            (RunStatus.SKIPPED, None, "rate_limit:"),
            (RunStatus.COMPLETED, "order more of tea", ""),
        ]


async def test_a_page_is_indexed_once_after_its_last_change_and_every_five_minutes_at_least() -> None:
    page = load("how-to/debounce.md")
    async with harness(page.app) as h:
        ids = await send(h, "wiki/page.edited", *[{"page": "home", "text": text} for text in ("a", "ab")])
        assert await outcomes(page.app, "index") == [(RunStatus.QUEUED, None, "debounce:")]
        [run] = (await page.app.runs.list()).data
        for event_id in ids:
            assert [found.id for found in (await page.app.events.runs(event_id)).data] == [run.id]
        await h.advance("30s")
        assert await outcomes(page.app, "index") == [(RunStatus.COMPLETED, "indexed ab", "")]
        for n in range(16):
            await send(h, "wiki/page.edited", {"page": "home", "text": str(n)})
            await h.advance("20s")
        assert (await outcomes(page.app, "index"))[1:] == [
            (RunStatus.COMPLETED, "indexed 14", ""),  # the last one before five minutes were over
            (RunStatus.QUEUED, None, "debounce:"),
        ]


async def test_views_are_stored_by_the_hundred_or_every_ten_seconds() -> None:
    page = load("how-to/batch.md")
    async with harness(page.app) as h:
        await send(h, "shop/page.viewed", *[{"country": "fr"}] * 130, {"country": "de"})
        await h.idle()
        first, *others = await outcomes(page.app, "store-views")
        assert first == (RunStatus.COMPLETED, 100, "")
        assert others == [(RunStatus.QUEUED, None, "batch:")] * 2
        await h.advance("10s")
        assert [output for _, output, _ in await outcomes(page.app, "store-views")] == [100, 30, 1]


async def test_who_pays_is_answered_first() -> None:
    page = load("how-to/priority.md")
    async with harness(page.app) as h:
        await h.crash()
        for plan in ("clean-up", "free", "paid"):
            await send(h, "shop/question.asked", {"plan": plan, "question": f"of {plan}"})
        await h.restart()
        await h.idle()
    assert page.done == ["of paid", "of free", "of clean-up"]


async def test_an_account_is_synchronised_once_at_a_time() -> None:
    page = load("how-to/singleton.md")
    async with harness(page.app) as h:
        await send(h, "crm/account.changed", *[{"account": name} for name in ("x", "x", "y")])
        await h.advance("1m")
        await send(h, "crm/account.changed", {"account": "x"})
        await h.advance("1m")
        assert await outcomes(page.app, "synchronise") == [
            (RunStatus.COMPLETED, "copied x", ""),
            (RunStatus.SKIPPED, None, "singleton:"),
            (RunStatus.COMPLETED, "copied y", ""),
            (RunStatus.COMPLETED, "copied x", ""),
        ]


async def test_only_the_latest_question_of_a_customer_is_answered() -> None:
    page = load("how-to/singleton.md")
    async with harness(page.app) as h:
        for question in ("one", "two"):
            await send(h, "crm/question.asked", {"customer": "ana", "question": question})
            await h.advance("30s")
        await h.advance("1m")
        assert await outcomes(page.app, "answer") == [
            (RunStatus.CANCELLED, None, "singleton:"),
            (RunStatus.COMPLETED, "answered two", ""),
        ]


async def test_an_order_is_shipped_once_in_a_day() -> None:
    page = load("how-to/idempotency.md")
    async with harness(page.app) as h:
        await send(h, "shop/order.paid", {"order": "7"})
        await send(h, "bank/transfer.seen", {"order": "7"}, {"order": "8"})
        again = await h.start(page.ship, {"order": "7"})
        with pytest.raises(errors.RunSkipped, match="idempotency"):
            await again.result(5)
        await h.advance("24h")
        await send(h, "shop/order.paid", {"order": "7"})
        await h.idle()
        assert await outcomes(page.app, "ship") == [
            (RunStatus.COMPLETED, "shipped 7", ""),
            (RunStatus.SKIPPED, None, "idempotency:"),
            (RunStatus.COMPLETED, "shipped 8", ""),
            (RunStatus.SKIPPED, None, "idempotency:"),
            (RunStatus.COMPLETED, "shipped 7", ""),
        ]


# --------------------------------------------------------------------------------------------- the reference


def test_flow_control_md_has_every_setting_and_value_with_its_fields() -> None:
    rows = {row[0].strip("`"): row[1] for row in table_rows(REFERENCE) if row[-1].startswith("[")}
    assert list(rows) == [field.name for field in dataclasses.fields(FlowControl)]
    taken = inspect.signature(App.function).parameters
    for name, told in rows.items():
        assert name in taken
        check_fields(told, name)


def test_flow_control_md_has_the_settings_for_model_calls_with_their_fields() -> None:
    rows = {row[0].strip("[`").partition("`")[0]: row[1] for row in table_rows(REFERENCE) if row[0][0] == "["}
    assert list(rows) == ["model_limits", "budgets"]
    for name, told in rows.items():
        assert name in inspect.signature(App).parameters
        assert check_fields(told, name)


def check_fields(told: str, name: str) -> bool:
    """Compare `Value(field, other=default)` with what it takes; False where the cell names no value."""
    found = re.search(r"`(\w+)\((.*?)\)`", told)
    if found is None:
        return False
    fields = inspect.signature(getattr(flow, found[1])).parameters.values()
    shown = [
        field.name if field.default is field.empty else f"{field.name}={field.default!r}".replace("'", '"')
        for field in fields
    ]
    assert found[2].replace(", *,", ",") == ", ".join(shown), name
    return True


def test_what_flow_control_md_says_cannot_be_combined_cannot() -> None:
    values = {
        "concurrency": 1,
        "throttle": flow.Throttle(1, "1m"),
        "rate_limit": flow.RateLimit(1, "1m"),
        "debounce": flow.Debounce("1m"),
        "batch": flow.Batch(2, "1m"),
        "priority": "data.x",
        "singleton": flow.Singleton(),
        "idempotency": flow.Idempotency("data.x"),
    }
    assert list(values) == [field.name for field in dataclasses.fields(FlowControl)]

    async def function(ctx: object, step: object) -> None: ...

    refused = set()
    for one in values:
        for other in values:
            try:
                App("t").function("f", **{one: values[one], other: values[other]})(function)
            except errors.ConfigurationError:
                refused.add(frozenset((one, other)))
    section = (
        REFERENCE.read_text(encoding="utf-8").partition("## What cannot be combined")[2].partition("##")[0]
    )
    first, *others = re.findall(r"`(\w+)`", section)
    assert refused == {frozenset((first, other)) for other in others}
    assert refused
