"""The how-to pages do what they say: their blocks are run, and their functions started."""

from __future__ import annotations

import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from agentflow import App, Approve, ModelRequest, Respond, RunStatus, ToolCall
from agentflow.errors import NoWaiter, RunCancelled, RunFailed
from agentflow.models.clients import close_clients
from agentflow.testing import HttpError, Job, ScriptedModel, fake_provider, harness
from tests.docs.pages import ROOT, load


async def test_a_small_refund_needs_nobody_and_a_large_one_the_page_s_manager() -> None:
    page = load("how-to/wait-for-a-person.md")
    model = ScriptedModel(
        [
            [
                ToolCall(name="refund", args={"order_id": "A", "amount": "20"}),
                ToolCall(name="refund", args={"order_id": "B", "amount": "200"}),
            ],
            lambda request: " and ".join(result.text for result in request.messages[-1].tool_results),
        ]
    )
    async with harness(page.app, model=model) as h:
        run = await h.start(page.support, "Refund both.")
        await h.idle()
        [waiting] = (await page.app.runs.get(run.id)).waiting
        assert waiting.kind == "approval"
        await page.decide_first(Decimal("150"))
        assert await run.result(5) == "paid 20 for A and paid 150 for B"


@pytest.mark.parametrize(
    ("decides", "told"), [(True, "deployed v2, said ana"), (False, "not deployed: timeout")]
)
async def test_a_function_asks_a_person_itself(decides: bool, told: str) -> None:
    page = load("how-to/wait-for-a-person.md")
    async with harness(page.app) as h:
        run = await h.start(page.deploy, "v2")
        await h.idle()
        [request] = (await page.app.approvals.list(status="pending")).data
        if decides:
            await page.decide_first()
        await h.advance("4h")
        assert await run.result(5) == told
        expected = "ana approval.approve" if decides else "agentflow approval.expired"
        assert await page.who_decided(request.id) == [expected]


async def test_a_signal_publishes_or_three_days_pass() -> None:
    page = load("how-to/wait-for-a-person.md")
    async with harness(page.app) as h:
        first, second = await h.start(page.publish, "42"), await h.start(page.publish, "43")
        await h.idle()
        await page.review("42", approved=True)
        await h.advance("3d")
        assert await first.result(5) == "published"
        assert await second.result(5) == "nobody answered in three days"
        with pytest.raises(NoWaiter):
            await page.review("42", approved=True)


async def test_a_step_is_tried_as_often_as_its_function_says() -> None:
    page = load("how-to/retries-and-errors.md")
    async with harness(page.app) as h:
        run = await h.start(page.pay, 12)
        await h.advance("1m")
        assert await run.result(5) == "charged 12"
        assert page.attempts == [0, 1, 2]


async def test_a_tenacity_policy_decides_what_is_retried() -> None:
    page = load("how-to/retries-and-errors.md")
    async with harness(page.app) as h:
        run = await h.start(page.find, "x")
        await h.advance("1d")
        with pytest.raises(RunFailed, match="ValueError: 'x' is no name"):
            await run.result(5)
        [step] = (await page.app.runs.steps(run.id)).data
        assert step.attempts == 1


@pytest.mark.parametrize(
    ("status", "told"),
    [(200, "content"), (404, "fetch: NonRetriable: there is no such page")],
)
async def test_a_failed_step_may_be_caught(status: int, told: str) -> None:
    page = load("how-to/retries-and-errors.md")
    async with harness(page.app) as h:
        assert await (await h.start(page.read_or_skip, status)).result(5) == told


async def test_parallel_steps_and_branches_have_the_keys_of_the_page() -> None:
    page = load("how-to/parallel-steps.md")
    async with harness(page.app) as h:
        digest = await h.start(page.digest, ["a", "b", "c"])
        assert await digest.result(5) == "A B C"
        assert await keys_of(page.app, digest.id) == {"summarise", "summarise:1", "summarise:2"}
        localised = await h.start(page.localise, "Hello")
        assert await localised.result(5) == ["Hello in French, proofread", "Hello in German, proofread"]
        assert await keys_of(page.app, localised.id) == {
            "translate@0",
            "proofread@0",
            "translate@1",
            "proofread@1",
        }


async def keys_of(app: object, run_id: str) -> set[str]:
    return {step.key for step in (await app.runs.steps(run_id)).data}  # type: ignore[attr-defined]


async def test_a_failing_branch_leaves_the_others_alone() -> None:
    page = load("how-to/parallel-steps.md")
    async with harness(page.app) as h:
        run = await h.start(page.ask_all, ["mail", "fax", "phone"])
        assert await run.result(5) == ["mail answered", "phone answered"]


async def test_the_first_answer_decides_after_a_restart_too() -> None:
    page = load("how-to/parallel-steps.md")
    async with harness(page.app) as h:
        run = await h.start(page.first_answer, None)
        await h.idle()
        assert await run.status() is RunStatus.WAITING
        await h.crash()
        await h.restart()
        await h.signal("legal", None)
        await h.idle()
        assert await run.result(5) == "legal"


async def test_the_first_branch_to_succeed_wins_and_all_may_fail() -> None:
    page = load("how-to/race.md")
    async with harness(page.app) as h:
        run = await h.start(page.find_order, "A-1")
        assert await run.result(5) == "shop: A-1, says the shop"
        keys = await keys_of(page.app, run.id)
        assert keys - {"find@archive/look up"} == {"find", "find@shop/look up"}
        failing = await h.start(page.find_or_say_why, "A-1")
        assert await failing.result(5) == "find@archive/look up: the archive is closed"


@pytest.mark.parametrize(
    ("pays_after", "told"), [("2h", "paid 12.5"), ("2d", "paid 12.5"), ("4d", "not paid")]
)
async def test_a_payment_races_against_time(
    pays_after: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = load("how-to/race.md")
    async with harness(page.app) as h:
        run = await h.start(page.remind, "A-1")
        await h.advance(pays_after)
        if told != "not paid":
            await h.signal("paid:A-1", 12.5)
            await h.advance("1m")
        assert await run.result(5) == told
        with pytest.raises(NoWaiter):
            await h.signal("paid:A-1", 12.5)
    assert capsys.readouterr().out == ("" if pays_after == "2h" else "please pay A-1\n")


@pytest.mark.parametrize(("is_paid", "told"), [(True, "thank you"), (False, "reminded u1")])
async def test_an_event_starts_a_run_and_another_one_wakes_it(is_paid: bool, told: str) -> None:
    page = load("how-to/events.md")
    async with harness(page.app) as h:
        [event] = await page.place("7")
        assert await page.place("7") == [event]
        await h.idle()
        if is_paid:
            await h.send({"name": "shop/order.paid", "data": {"order_id": "7", "user_id": "u1"}})
        await h.advance("3d")
        [run] = (await page.app.runs.list(function="follow-up")).data
        assert await page.app.runs.handle(run.id).result(5) == told
        sent = [event.name for event in (await page.app.events.list()).data]
        assert ("shop/parcel.sent" in sent) is is_paid


async def test_an_event_of_tomorrow_starts_its_run_tomorrow() -> None:
    page = load("how-to/events.md")
    async with harness(page.app, clock="virtual") as h:
        await page.place_tomorrow("8")
        await h.advance("23h")
        [run] = (await page.app.runs.list()).data
        assert run.status is RunStatus.QUEUED
        await h.advance("2h")
        assert await page.app.runs.handle(run.id).status() is RunStatus.WAITING


async def test_a_condition_starts_wakes_and_cancels() -> None:
    page = load("how-to/conditions.md")
    async with harness(page.app) as h:
        orders = [("1", 99, "FR"), ("2", 100, "FR"), ("3", 500, "ES"), ("4", 500, "IT")]
        for order, total, country in orders:
            data = {"order": order, "total": total, "country": country}
            await h.send({"name": "shop/order.placed", "data": data})
        await h.idle()
        third, second = (await page.app.runs.list()).data
        await h.send({"name": "shop/order.paid", "data": {"order": "2", "amount": 99}})
        await h.send({"name": "shop/order.changed", "data": {"order": "2", "total": 200}})
        await h.send({"name": "shop/order.changed", "data": {"order": "3", "total": 50}})
        await h.send({"name": "shop/order.paid", "data": {"order": "2", "amount": 100}})
        assert await page.app.runs.handle(second.id).result(5) == "paid"
        assert (await page.app.runs.get(third.id)).status is RunStatus.CANCELLED


async def test_sub_runs_are_runs_of_their_own() -> None:
    page = load("how-to/sub-runs.md")
    async with harness(page.app) as h:
        parent = await h.start(page.report, ["one", "two"])
        assert await parent.result(5) == ["ONE", "TWO"]
        assert await (await h.start(page.by_name, "three")).result(5) == "THREE"
        failing = await h.start(page.careful, "")
        await h.advance("30m")
        assert await failing.result(5) == "failed: an empty chapter"
        child = await (await h.start(page.fire_and_forget, "four")).result(5)
        assert await page.app.runs.handle(child).result(5) == "FOUR"


async def test_the_team_is_told_of_a_failed_run_once() -> None:
    page = load("how-to/on-failure.md")
    async with harness(page.app) as h:
        assert await (await h.start(page.pay, 5)).result(5) == "charged 5"
        run = await h.start(page.pay, 500)
        await h.advance("1h")
        assert await run.status() is RunStatus.FAILED
        assert page.page == ["charge: ValueError: the card was refused"]


async def test_a_run_is_cancelled_by_hand_or_after_three_days() -> None:
    page = load("how-to/cancel-runs.md")
    async with harness(page.app) as h:
        first, second = (
            await h.start(page.collect, {"order": "1"}),
            await h.start(page.collect, {"order": "2"}),
        )
        await h.idle()
        assert (await page.withdraw(first.id)).status is RunStatus.CANCELLED
        await h.advance("3d")
        with pytest.raises(RunCancelled, match="it had not ended within 3d"):
            await second.result(5)


async def test_an_event_cancels_the_reminders_of_its_order() -> None:
    page = load("how-to/cancel-runs.md")
    async with harness(page.app) as h:
        first, second = [await h.start(page.remind, {"order": order}) for order in "12"]
        await h.idle()
        await h.send({"name": "shop/order.cancelled", "data": {"order": "1"}})
        assert await first.status() is RunStatus.CANCELLED
        await h.advance("1h")
        await h.send({"name": "shop/closed"})
        await h.advance("2d")
        assert await second.result(5) == "reminded of 2"


async def test_a_paused_function_loses_no_order() -> None:
    page = load("how-to/pause.md")
    async with harness(page.app) as h:
        await page.while_the_bank_is_down()
        await h.send({"name": "shop/order.placed", "data": {"order": "1"}})
        await h.idle()
        [run] = (await page.app.runs.list()).data
        assert run.status is RunStatus.QUEUED
        await page.when_it_is_back()
        await h.idle()
        assert await page.app.runs.handle(run.id).result(5) == "charged 1"


async def test_a_failed_run_is_done_again_from_a_step_or_with_other_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = load("how-to/rerun.md")
    async with harness(page.app) as h:
        run = await h.start(page.fulfil, "c")
        with pytest.raises(RunFailed, match="KeyError"):
            await run.result(5)
        other = await page.with_another_order(run.id)
        assert await other.result(5) == "packed B"
        same = await page.go_on_at_the_packing(run.id)
        with pytest.raises(RunFailed, match="KeyError"):
            await same.result(5)
        assert capsys.readouterr().out == "looking for c\nlooking for b\n"


def test_the_retention_of_the_page_is_a_setting() -> None:
    page = load("how-to/retention.md")
    assert page.app.settings.retention == timedelta(days=30)


async def test_the_gateway_of_models_and_providers_answers_and_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_provider(["A durable answer.", {"topic": "refund", "urgent": True}]) as provider:
        monkeypatch.setenv("LLAMA_URL", f"{provider.base_url}/v1")
        page = load("how-to/models-and-providers.md")
        async with harness(page.app) as h:
            assert await (await h.start(page.helper, "Hello?")).result(20) == "A durable answer."
            label = await (await h.start(page.classify, "Where is my money?")).result(20)
            assert label == page.Label(topic="refund", urgent=True)
            assert await (await h.start(page.careful, "The weather?")).result(5) == "It is sunny."
        assert provider.generations == 2


async def test_images_and_files_are_shown_to_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dent.jpg").write_bytes(b"\xff\xd8\xff")
    painted = ToolCall(name="chart", args={"month": "May"})
    async with fake_provider(["A dent.", "Still a dent.", painted, "Many in May."]) as provider:
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        page = load("how-to/images-and-files.md")
        async with harness(page.app) as h:
            run = await h.start(page.assess, {"photo": str(tmp_path / "dent.jpg")})
            assert await run.result(20) == "A dent."
            run_id = await page.start(b"\xff\xd8\xff")
            assert await page.app.runs.handle(run_id).result(20) == "Still a dent."
            assert await (await h.start(page.analyst, "When?")).result(20) == "Many in May."
        first, second, _, last = [request.body for request in provider.requests]
    kinds = [[block["type"] for block in body["messages"][0]["content"]] for body in (first, second)]
    assert kinds == [["text", "image", "document"], ["text", "image"]]
    assert [item["type"] for item in last["input"][-1]["output"]] == ["input_text", "input_image"]


async def test_the_settings_of_the_cache_and_the_version_are_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_provider(["Sunny."]) as provider:
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        page = load("how-to/models-and-providers.md")
        assert (page.second.version, page.second.instructions) == ("2", "Answer in two sentences.")
        app = App("cached")
        app.add(page.patient)
        async with harness(app) as h:
            assert await (await h.start(page.patient, "The weather?")).result(20) == "Sunny."
        [block] = provider.requests[0].body["messages"][0]["content"]
        assert block["cache_control"] == {"type": "ephemeral"}


async def test_a_lost_call_is_found_again_or_put_before_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_provider([Job("Found.", queued=2), HttpError(500), "Summed up."]) as provider:
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        page = load("explanation/never-pay-twice.md")
        async with harness(page.app) as h:
            run = await h.start(page.clerk, "Where is it?")
            await h.idle()
            assert await run.result(20) == "Found."
            assert provider.requests[0].body["background"] is True
            run = await h.start(page.summarise, "A long text.")
            await h.idle()
            [request] = (await page.app.approvals.list(status="pending")).data
            await page.app.approvals.decide(request.id, Approve(), by="ana")
            await h.idle()
            assert await run.result(20) == "Summed up."


async def test_a_wrapped_call_is_asked_once_and_gives_the_type_it_was_parsed_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_provider([{"city": "Nice", "country": "France"}]) as provider:
        for name, value in provider.environment().items():
            monkeypatch.setenv(name, value)
        page = load("how-to/wrap-sdk-calls.md")
        async with harness(page.app) as h:
            run = await h.start(page.locate, "Where is the Promenade des Anglais?")
            await h.advance("1h")
            assert await run.result(20) == page.Place(city="Nice", country="France")
        assert provider.generations == 1
        await page.client.close()


async def test_the_app_of_the_deployment_page_works_on_postgresql(
    postgres_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_DATABASE_URL", postgres_url)
    page = load("how-to/deploy-with-postgresql.md")
    await page.app.migrate()
    await page.main()
    assert capsys.readouterr().out == "A-1\n"


async def test_a_week_has_five_reports() -> None:
    page = load("how-to/schedules.md")
    assert await page.count_a_week() == 5


async def test_missed_nights_are_caught_up_with_as_the_page_says() -> None:
    page = load("how-to/schedules.md")
    async with harness(page.app) as h:
        await h.crash()
        await h.advance("4d")
        await h.restart()
        await h.idle()
        counts = {
            name: len((await page.app.runs.list(function=name)).data)
            for name in ("report", "clean-up", "invoice")
        }
        assert counts == {"report": 0, "clean-up": 1, "invoice": 4}


async def test_who_follows_a_run_reads_what_it_published() -> None:
    page = load("how-to/publish-progress.md")
    async with harness(page.app) as h:
        run = await h.start(page.import_rows, ["a", "b"])
        await h.idle()
        assert await page.follow(run.id) == [
            {"topic": "progress", "data": {"done": 1, "of": 2}},
            {"topic": "progress", "data": {"done": 2, "of": 2}},
        ]


async def test_ten_calls_a_minute_are_one_every_six_seconds() -> None:
    page = load("how-to/model-limits.md")
    assert await page.ask_twice() == (
        "step 'ask' waits for its turn at scripted: 10 requests in 0:01:00 are the limit: yes, again"
    )


async def test_a_budget_of_two_dollars_a_day_gives_the_third_answer_tomorrow() -> None:
    page = load("how-to/budgets.md")
    assert await page.ask_thrice() == ["completed", "completed", "sleeping", "answer 2"]


async def test_what_may_come_later_is_a_batch_or_a_longer_window(monkeypatch: pytest.MonkeyPatch) -> None:
    page = load("how-to/model-batches.md")

    def reply(request: ModelRequest) -> Job:
        return Job(f"read: {request.prompt}", queued=3)

    async with fake_provider(reply) as server, harness(page.app) as h:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        labelled, read = await h.start(page.label, "a letter"), await h.start(page.reader, "a book")
        await h.advance("1h")
        assert (await labelled.result(5), await read.result(5)) == ("read: a letter", "read: a book")
        asked = {request.path: request.body for request in server.requests if request.method == "POST"}
        await close_clients()
    assert asked.keys() == {"/v1/messages/batches", "/v1/responses"}
    assert asked["/v1/responses"]["background_options"] == {"completion_window": "8h"}


async def test_an_agent_uses_the_tools_of_an_mcp_server() -> None:
    page = load("how-to/mcp.md")
    # The page's own program would have to be downloaded.
    page.files.command, page.files.args = sys.executable, ("-m", "tests.agents.mcp_server")
    page.files.cwd, page.files.env = ROOT, {"PYTHONPATH": str(ROOT)}
    model = ScriptedModel(
        [
            [
                ToolCall(name="echo", args={"text": "hello"}),
                ToolCall(index=1, name="find_order", args={"id": "7"}),
            ],
            lambda request: " ".join(result.text for result in request.messages[-1].tool_results),
        ]
    )
    async with harness(page.app, model=model) as h:
        run = await h.start(page.archivist, "Go.")
        await h.idle()
        [waiting] = (await page.app.runs.get(run.id)).waiting
        assert (waiting.kind, waiting.name) == ("approval", "find_order")
        await h.advance("1d")
        assert (await run.result(5)).startswith("hello Nobody decided in time")
        steps = [step.key for step in (await page.app.runs.steps(run.id)).data]
    assert steps[0] == "archivist#0/mcp/files"
    assert "archivist#0/turn0/0:echo" in steps
    assert page.tickets.prefix == "tickets_"


async def test_the_page_s_reader_is_kept_out_of_our_network() -> None:
    page = load("how-to/fetch-the-web.md")
    model = ScriptedModel(
        [
            ToolCall(name="read_page", args={"url": "http://169.254.169.254/latest/meta-data/"}),
            lambda request: request.messages[-1].tool_results[0].text,
        ]
    )
    async with harness(page.app, model=model) as h:
        run = await h.start(page.reader, "Go.")
        await h.idle()
        assert await run.result(5) == "Refused: '169.254.169.254' is not a host of the public internet."


async def test_an_agent_has_functions_as_tools() -> None:
    page = load("how-to/sub-runs.md")
    model = ScriptedModel(
        [
            ToolCall(name="report", args={"data": ["one", "two"]}),
            lambda request: request.messages[-1].tool_results[0].text,
        ]
    )
    async with harness(page.app, model=model) as h:
        run = await h.start(page.editor, "Go.")
        await h.idle()
        assert await run.result(5) == '["ONE","TWO"]'


async def test_a_run_is_followed_while_it_works_and_after_a_cut() -> None:
    page = load("how-to/stream.md")
    async with harness(page.app, model=ScriptedModel(["It is said.", "It is said."])) as h:
        for function in (page.speaker, page.say):
            run = await h.start(function, "Say it.")
            assert await page.follow(run.id) == "It is said."
            assert await run.result(5) == "It is said."
            items = [item async for item in run.stream()]
            first = items[0]
            assert first.kind == "text.delta"
            assert await page.follow(run.id, first.seq) == "It is said.".removeprefix(first.data)


async def test_a_customer_s_messages_are_answered_on_one_thread_which_can_be_forgotten() -> None:
    page = load("how-to/threads.md")
    model = ScriptedModel(["hello", "as I said"])
    async with harness(page.app, model=model) as h:
        for text in ("hi", "what?"):
            await h.send({"name": "message.received", "data": {"customer": "42", "text": text}})
            await h.idle()
        told = ["user: hi", "assistant: hello", "user: what?", "assistant: as I said"]
        assert await page.history("customer-42") == told
        assert await page.forget("customer-42") == 4


@pytest.mark.parametrize(("amount", "asks"), [(50, False), (500, True), (2000, False)])
async def test_an_effect_that_may_happen_once_asks_only_where_nobody_knows(amount: int, asks: bool) -> None:
    page = load("how-to/effects-that-happen-once.md")
    call = ToolCall(name="pay", args={"iban": "DE1", "amount": amount})
    model = ScriptedModel([call, lambda request: request.messages[-1].tool_results[0].text])
    async with harness(page.app, model=model) as h:
        run = await h.start(page.clerk, "Pay.")
        await h.idle()
        waiting = (await page.app.approvals.list(status="pending")).data
        assert [request.title for request in waiting] == ["Nobody knows whether pay has happened"] * asks
        if asks:
            await page.app.approvals.decide(waiting[0].id, Respond("receipt 18"), by="treasurer")
        await h.advance("1m")
        if amount < 1000:
            assert await run.result(5) == ("receipt 18" if asks else "receipt 17")
        else:
            assert await run.status() is RunStatus.SLEEPING  # until the bank is less busy
