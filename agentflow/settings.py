"""The settings of an app: argument > `Settings` > environment > default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from agentflow.durations import parse_duration
from agentflow.errors import ConfigurationError, InvalidInput

ENVIRONMENT_PREFIX: Final = "AGENTFLOW_"

_KB: Final = 1024
_MB: Final = 1024 * _KB


def _parse_length(value: object) -> timedelta:
    """Text is what people write anywhere else; a bare number is seconds in one place and days in another."""
    if isinstance(value, str | timedelta):
        try:
            return parse_duration(value)
        except InvalidInput as error:
            raise ValueError(str(error)) from error
    raise ValueError(f'{value!r} has no unit: write "30d" or a timedelta')


Length = Annotated[timedelta, BeforeValidator(_parse_length)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Everything that can be set; each field is also `AGENTFLOW_<FIELD>` in the environment.

    Sizes are bytes; lengths of time are text such as "366d", or a timedelta. A value that makes no sense is a
    `ConfigurationError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: str = Field(
        default="sqlite:///agentflow.db", min_length=1, repr=False
    )  # it may hold a password
    durability: Literal["strict", "process"] = "strict"
    strict_replay: bool = False
    max_steps: Count = 1_000
    max_step_bytes: Count = 4 * _MB
    max_run_bytes: Count = 32 * _MB
    max_event_bytes: Count = 512 * _KB
    max_wait: Length = timedelta(days=366)
    lease_seconds: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0
    hang_limit_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    shutdown_grace_seconds: Seconds = 25.0
    concurrency: Count = 100
    retention: Length | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _complain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            # Neither the value nor the URL is shown: it may hold a password.
            told = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigurationError(f"the settings are wrong: {told}") from None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The settings that the environment gives; a variable that is empty counts as not set.

        Raises `ConfigurationError` naming the variable.
        """
        found = os.environ if environ is None else environ
        texts = {
            name: text for name in cls.model_fields if (text := found.get(variable_of(name), "").strip())
        }
        for name, text in texts.items():
            try:
                cls.model_validate({name: text})
            except ConfigurationError as error:
                raise ConfigurationError(f"{variable_of(name)} is wrong: {error}") from None
        return cls.model_validate(texts)


def resolve(
    settings: Settings | None = None, *, environ: Mapping[str, str] | None = None, **arguments: Any
) -> Settings:
    """The settings that hold: the `arguments` that are not None, then what `settings` sets, then the rest."""
    return Settings.model_validate(
        _explicit(Settings.from_environment(environ))
        | (_explicit(settings) if settings is not None else {})
        | {name: value for name, value in arguments.items() if value is not None}
    )


def variable_of(field: str) -> str:
    """The environment variable of a field."""
    return ENVIRONMENT_PREFIX + field.upper()


def _explicit(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.model_fields_set}
