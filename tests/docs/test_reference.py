"""The reference says what the code says: settings, errors, steps and their keys."""

from __future__ import annotations

import inspect
import re

from agentflow import Settings, Step, errors
from agentflow.durations import parse_duration
from agentflow.inference import Inference
from agentflow.settings import variable_of
from agentflow.testing import harness
from tests.docs.pages import ROOT, load, table_rows

REFERENCE = ROOT / "docs" / "reference"


def test_settings_md_has_every_setting_with_its_variable_and_its_default() -> None:
    rows = {row[0].strip("`"): row for row in table_rows(REFERENCE / "settings.md") if len(row) == 4}
    assert list(rows) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        _, variable, default, meaning = rows[name]
        assert variable == f"`{variable_of(name)}`"
        told = default.strip("`")
        assert (str(field.default) == told) or (parse_duration(told) == field.default), name
        assert meaning


def test_errors_md_has_every_error_in_the_order_of_the_module() -> None:
    rows = [row[0].strip("`") for row in table_rows(REFERENCE / "errors.md")]
    found = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and issubclass(value, errors.AgentflowError)
        and value is not errors.AgentflowError
    ]
    assert rows == found


def test_step_md_has_every_method_with_all_its_parameters() -> None:
    shown = {}
    for row in table_rows(REFERENCE / "step.md"):
        if found := re.fullmatch(r"`step\.((?:ai\.)?\w+)\((.*)\)`", row[0]):
            shown[found[1]] = re.findall(r"(\w+)(?==|,|$)", re.sub(r'"[^"]*"|\(\)|None|False', "", found[2]))
    methods = {name: value for name, value in vars(Step).items() if inspect.isfunction(value)}
    public = {name: value for name, value in methods.items() if not name.startswith("_")}
    public["ai.infer"] = Inference.infer
    public["ai.wrap"] = Inference.wrap
    assert set(shown) == set(public)
    for name, method in public.items():
        parameters = [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
        assert shown[name] == parameters, name


async def test_values_come_back_as_step_md_says() -> None:
    page = load("reference/step.md")
    async with harness(page.app) as h:
        assert await (await h.start(page.values)).result(5) == ["tuple", "datetime", "list", "tuple"]


async def test_keys_are_those_of_step_keys_md() -> None:
    page = load("reference/step-keys.md")
    async with harness(page.app) as h:
        run = await h.start(page.keys)
        await run.result(5)
        keys = {step.key for step in (await page.app.runs.steps(run.id)).data}
        told = re.search(r"Its keys are (.*)\.", (REFERENCE / "step-keys.md").read_text(encoding="utf-8"))
        assert told is not None
        assert keys == set(re.findall(r"`([^`]+)`", told[1]))
