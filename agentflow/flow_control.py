"""All of a function's flow control together: what goes with what, and whether its keys can be evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from agentflow.errors import ConfigurationError
from agentflow.expressions import Expression
from agentflow.flow import (
    Batch,
    Concurrency,
    Debounce,
    Idempotency,
    Key,
    RateLimit,
    Singleton,
    Throttle,
    check_key,
    is_path,
)


@dataclass(frozen=True, kw_only=True)
class FlowControl:
    """All that decides of one function's runs when they may begin, and whether at all."""

    concurrency: tuple[Concurrency, ...] = ()
    throttle: Throttle | None = None
    rate_limit: RateLimit | None = None
    debounce: Debounce | None = None
    batch: Batch | None = None
    priority: Key | None = None
    singleton: Singleton | None = None
    idempotency: Idempotency | None = None

    def __post_init__(self) -> None:
        for name, kind in _FLOW_KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind | None):
                raise ConfigurationError(f"{name}={value!r}: give {kind.__name__}(...)")
        if not (self.priority is None or isinstance(self.priority, str) or callable(self.priority)):
            raise ConfigurationError(
                f"priority={self.priority!r}: give a dotted path, an expression or a function of the event"
            )
        check_key(self, "priority")
        for name, key in self._keys():
            if isinstance(key, str) and not is_path(key):
                try:
                    Expression.compile(key)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{name}: {error}") from None
        collects = [name for name in ("debounce", "batch") if getattr(self, name) is not None]
        if len(collects) == 2:
            raise ConfigurationError(
                "debounce= and batch= cannot be had together: each makes one run of several"
            )
        for name in ("rate_limit", "singleton", "idempotency"):
            if self.batch is not None and getattr(self, name) is not None:
                raise ConfigurationError(
                    f"batch= and {name}= cannot be had together: a batch is one run of many events"
                )

    def __bool__(self) -> bool:
        return self is not NO_FLOW_CONTROL and self != NO_FLOW_CONTROL

    def _keys(self) -> list[tuple[str, Key | None]]:
        values: list[tuple[str, Any]] = [("concurrency", rule) for rule in self.concurrency]
        values += [(name, getattr(self, name)) for name in _FLOW_KINDS]
        keys = [(f"{name} key={value.key!r}", value.key) for name, value in values if value is not None]
        return [*keys, (f"priority={self.priority!r}", self.priority)]


_FLOW_KINDS: Final[dict[str, type]] = {
    "throttle": Throttle,
    "rate_limit": RateLimit,
    "debounce": Debounce,
    "batch": Batch,
    "singleton": Singleton,
    "idempotency": Idempotency,
}
NO_FLOW_CONTROL: Final = FlowControl()
