"""JSON Schema as OpenAI's strict mode wants it, where a schema can be said that way at all. Pure."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

# What strict mode does not know; a schema that needs one of these is sent without it being strict.
_UNKNOWN = frozenset(
    {
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
    }
)


def strict_schema(schema: Schema) -> Schema | None:
    """The schema with its objects closed, or None when strict mode would change what it means.

    Strict mode demands that every property is required: one with a default is not, and a free-form dict has
    none.
    """
    try:
        return _strict(schema)
    except _NotStrict:
        return None


class _NotStrict(Exception):
    pass


def _strict(schema: Schema) -> Schema:
    if not _UNKNOWN.isdisjoint(schema) or schema == {}:
        raise _NotStrict
    result = {key: _strict_member(key, value) for key, value in schema.items() if key != "default"}
    # Pydantic's pattern for decimals looks ahead, which they refuse; validation here still holds it.
    if "(?" in str(schema.get("pattern", "")):
        del result["pattern"]
    if schema.get("type") == "object":
        properties = schema.get("properties")
        if properties is None or schema.get("additionalProperties") not in (None, False):
            raise _NotStrict
        if set(schema.get("required", ())) != set(properties):
            raise _NotStrict
        result |= {"properties": result["properties"], "additionalProperties": False}
    return result


def _strict_member(key: str, value: Any) -> Any:
    if key in ("properties", "$defs"):
        return {name: _strict(member) for name, member in value.items()}
    if key == "items" and isinstance(value, dict):
        return _strict(value)
    if key in ("anyOf", "prefixItems"):
        return [_strict(member) for member in value]
    return value
