"""What a function takes, told as JSON Schema; and a model's arguments made into what the function takes."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from agentflow.agents.docstrings import Told, read_docstring
from agentflow.errors import ConfigurationError, InvalidInput


class ArgumentsInvalid(InvalidInput):
    """A model's arguments do not fit the tool; the text is for the model."""


@dataclass(frozen=True)
class Arguments:
    """A model's arguments, validated."""

    values: dict[str, Any]
    """As the function takes them."""
    json: dict[str, Any]
    """All of them as plain JSON: what was given as it was given, and the defaults of the rest."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a tool's function. `special` maps the name of a parameter to what it is given."""

    told: Told
    schema: dict[str, Any]
    special: dict[str, str]
    _model: type[BaseModel]
    _names: dict[str, str]

    def validate(self, given: Mapping[str, Any]) -> Arguments:
        """Raises `ArgumentsInvalid`."""
        try:
            checked = self._model.model_validate(dict(given))
        except ValidationError as error:
            reasons = "; ".join(_reason(detail["loc"], detail["msg"]) for detail in error.errors())
            raise ArgumentsInvalid(f"The arguments do not validate: {reasons}") from error
        full = checked.model_dump(mode="json", by_alias=True, warnings=False, fallback=repr)
        return Arguments(
            values={name: getattr(checked, field) for field, name in self._names.items()},
            json={name: given.get(name, full[name]) for name in self._names.values()},
        )

    def plain(self, arguments: Arguments) -> dict[str, Any]:
        """The values with models and dataclasses as dicts, numbers and dates as Python has them."""
        checked = self._model.model_validate(arguments.json)
        return checked.model_dump(mode="python", by_alias=True, warnings=False)


def read_signature(
    function: Callable[..., Any], *, name: str, special: Callable[[Any], str | None]
) -> Signature:
    """The signature of a tool's function. `special(annotation)` names what is no argument of the model's.

    Raises `ConfigurationError` for what cannot be told to a model.
    """
    told = read_docstring(inspect.getdoc(_without_partials(function)))
    hints = type_hints(function, name)
    specials: dict[str, str] = {}
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints.get(parameter.name, Any)
        if kind := special(annotation):
            specials[parameter.name] = kind
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"tool {name!r}: a model cannot give {parameter}: use parameters that have a name"
            )
        # Any name may be a parameter's; not every name may be a field's.
        field = f"argument_{len(fields)}"
        if isinstance(parameter.default, FieldInfo):  # `= Field(gt=0)`, as pydantic and FastAPI take it
            annotation = Annotated[annotation, parameter.default]
        fields[field] = (annotation, _field(parameter, annotation, told.parameters.get(parameter.name)))
        names[field] = parameter.name
    try:
        model: type[BaseModel] = create_model(
            name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
        )
        schema = model.model_json_schema(by_alias=True, schema_generator=_Schema)
    except (PydanticUserError, TypeError) as error:
        raise ConfigurationError(f"tool {name!r}: a parameter has no JSON Schema: {error}") from error
    schema.pop("title", None)
    schema.pop("description", None)
    return Signature(told, schema, specials, model, names)


def type_hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The annotations, resolved; also those that name something local to where the function was written."""
    plain = inspect.unwrap(_without_partials(function))
    if isinstance(plain, MethodType):
        plain = plain.__func__
    if not isinstance(plain, FunctionType):
        plain = type(plain).__call__
    if not isinstance(plain, FunctionType):
        raise ConfigurationError(
            f"tool {name!r} is not written in Python, so nobody knows what it takes: call it in a function of yours"
        )
    closure = dict(zip(plain.__code__.co_freevars, map(_content, plain.__closure__ or ()), strict=True))
    local = _locals_of_caller() | closure
    try:
        return typing.get_type_hints(plain, plain.__globals__, local, include_extras=True)
    except NameError as error:
        raise ConfigurationError(
            f"the annotations of tool {name!r} cannot be resolved: {error}. "
            "Import the type at the module's top level, outside `if TYPE_CHECKING`"
        ) from error


class _Schema(GenerateJsonSchema):
    """Without the titles that only repeat the names, and silent about defaults that JSON does not have."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _field(parameter: inspect.Parameter, annotation: Any, description: str | None) -> FieldInfo:
    given: dict[str, Any] = {"alias": parameter.name}
    if description and not _is_described(annotation):
        given["description"] = description
    if isinstance(parameter.default, FieldInfo):  # then that one tells the default, if it has one
        return Field(**given)  # type: ignore[no-any-return]
    default = ... if parameter.default is parameter.empty else parameter.default
    return Field(default, **given)  # type: ignore[no-any-return]


def _is_described(annotation: Any) -> bool:
    metadata = getattr(annotation, "__metadata__", ())
    return any(isinstance(item, FieldInfo) and item.description for item in metadata)


def _without_partials(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _locals_of_caller() -> dict[str, Any]:
    """The names around the place where the tool is made: a type that is local to a function is found there."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("agentflow."):
        frame = frame.f_back
    return dict(frame.f_locals)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not set yet
        return None


def _reason(where: tuple[int | str, ...], what: str) -> str:
    return f"{'.'.join(map(str, where))}: {what}" if where else what
