"""Settings: what is legal, and which of several places wins."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from agentflow.errors import ConfigurationError
from agentflow.settings import Settings, resolve, variable_of


def test_the_fields_are_those_of_the_api() -> None:
    assert list(Settings.model_fields) == [
        "database_url",
        "durability",
        "strict_replay",
        "max_steps",
        "max_step_bytes",
        "max_run_bytes",
        "max_event_bytes",
        "max_wait",
        "lease_seconds",
        "hang_limit_seconds",
        "shutdown_grace_seconds",
        "concurrency",
        "retention",
    ]


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings()
    assert (settings.durability, settings.strict_replay, settings.max_steps) == ("strict", False, 1000)
    assert (settings.max_step_bytes, settings.max_run_bytes) == (4 * 2**20, 32 * 2**20)
    assert (settings.max_event_bytes, settings.max_wait) == (512 * 2**10, timedelta(days=366))
    assert (settings.lease_seconds, settings.shutdown_grace_seconds, settings.concurrency) == (10, 25, 100)
    assert settings.retention is None
    assert settings.database_url == "sqlite:///agentflow.db"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_steps = 1  # type: ignore[misc]


def test_the_password_in_the_url_is_not_shown() -> None:
    assert "secret" not in repr(Settings(database_url="postgresql://ana:secret@db/x"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_seconds", 0.99),
        ("lease_seconds", float("nan")),
        ("lease_seconds", float("inf")),
        ("max_steps", 0),
        ("max_steps", "many"),
        ("durability", "maybe"),
        ("concurrency", -1),
        ("shutdown_grace_seconds", -1),
        ("hang_limit_seconds", 0),
        ("max_wait", "1y"),
        ("max_wait", 366),
        ("retention", 30),
        ("retention", "-1d"),
        ("database_url", ""),
        ("database", "x"),
    ],
)
def test_a_wrong_value_is_a_configuration_error_naming_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{field}: "):
        Settings(**{field: value})


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("database_url", "postgresql://db/x", "postgresql://db/x"),
        ("durability", "process", "process"),
        ("strict_replay", "true", True),
        ("strict_replay", "0", False),
        ("max_steps", "5", 5),
        ("max_step_bytes", "100", 100),
        ("max_run_bytes", "100", 100),
        ("max_event_bytes", "100", 100),
        ("max_wait", "30d", timedelta(days=30)),
        ("lease_seconds", "1.5", 1.5),
        ("hang_limit_seconds", "5", 5.0),
        ("shutdown_grace_seconds", "0", 0.0),
        ("concurrency", "7", 7),
        ("retention", "P90D", timedelta(days=90)),
    ],
)
def test_every_field_is_also_an_environment_variable(field: str, text: str, value: Any) -> None:
    assert getattr(Settings.from_environment({variable_of(field): text, "OTHER": "x"}), field) == value


@pytest.mark.parametrize(
    ("field", "text"), [("max_steps", "many"), ("lease_seconds", "0.5"), ("retention", "30")]
)
def test_a_wrong_variable_is_named(field: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"AGENTFLOW_{field.upper()} is wrong"):
        Settings.from_environment({variable_of(field): text})


def test_an_empty_variable_is_not_set() -> None:
    assert Settings.from_environment({"AGENTFLOW_MAX_STEPS": " "}) == Settings()


def test_the_processes_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFLOW_MAX_STEPS", "77")
    assert Settings.from_environment().max_steps == resolve().max_steps == 77


def test_argument_before_settings_before_environment_before_default() -> None:
    environ = {"AGENTFLOW_MAX_STEPS": "1", "AGENTFLOW_CONCURRENCY": "2", "AGENTFLOW_LEASE_SECONDS": "3"}
    settings = Settings(concurrency=20, lease_seconds=30)
    resolved = resolve(settings, environ=environ, lease_seconds=300)
    assert (resolved.max_steps, resolved.concurrency, resolved.lease_seconds) == (1, 20, 300)
    assert resolved.max_run_bytes == 32 * 2**20


def test_a_default_of_the_settings_does_not_hide_the_environment_but_the_same_value_set_does() -> None:
    environ = {"AGENTFLOW_MAX_STEPS": "5"}
    assert resolve(Settings(), environ=environ).max_steps == 5
    assert resolve(Settings(max_steps=1000), environ=environ).max_steps == 1000


def test_an_argument_that_is_none_is_not_given() -> None:
    assert resolve(Settings(max_steps=5), environ={}, max_steps=None).max_steps == 5


def test_an_unknown_argument_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="max_stepz: "):
        resolve(None, environ={}, max_stepz=3)
