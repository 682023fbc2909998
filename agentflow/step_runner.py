"""What a step tells its run (`Body`, `Wait`), and what a run offers its steps (`StepRunner`, `Attempt`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from agentflow.codec import Codec
from agentflow.context import Context
from agentflow.events import Event
from agentflow.functions import Function, FunctionRef, Target
from agentflow.retry import Retry
from agentflow.runs import StepKind
from agentflow.store.operation_types import TurnEnd
from agentflow.store.outcome_types import TurnBegun
from agentflow.store.stored_types import Json, Micros, ModelCall, NewApproval, NewRun, Reservation

if TYPE_CHECKING:
    from agentflow.flow import Budget, Key
    from agentflow.settings import Settings

R = TypeVar("R")


class Attempt(Protocol):
    """One try of a body, as its run offers it."""

    key: str
    number: int
    """0 for the first."""
    open_call: ModelCall | None
    """A row of the ledger without an end: a crash left it so, or its job goes on. There may be others."""
    timeout: timedelta | None
    """How long a call of the body may take."""

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on here: it has not left memory, nor was it cancelled or lost."""
        ...

    async def in_thread(self, fn: Callable[[], R]) -> R:
        """Call a sync function in a thread."""
        ...

    async def write_model_call(self, call: ModelCall, reservations: Sequence[Reservation] = ()) -> None:
        """Commit a row of the ledger now, before the request leaves; a new one with what is reserved for it. Raises
        `BudgetExceeded`."""
        ...

    def end_model_call(self, call: ModelCall) -> None:
        """Let this row be written in the transaction that stores the attempt's outcome."""
        ...

    async def list_own_model_calls(self) -> list[ModelCall]:
        """The ledger's rows of this step."""
        ...

    async def list_model_calls(self, run_id: str) -> list[ModelCall]:
        """The ledger's rows of another run and of those it invoked."""
        ...

    @property
    def budgets(self) -> Sequence[Budget]:
        """The budgets of the app."""
        ...

    async def budget_value(self, key: Key) -> str:
        """The value of a budget's key, by what started the run; else by what started the one that invoked it."""
        ...

    async def begin_model_call(self, provider: str, *, number: int, tokens: Callable[[], int]) -> None:
        """Take a turn at the provider for the step's request of that number, which may use so many tokens; raises
        `NotYet`. See `model_turn`."""
        ...

    def settle_model_call(self, provider: str, *, number: int, used: int | None) -> None:
        """The request is over and used so many tokens; `None`: as many as were taken for it."""
        ...

    def slow_model_calls(self, provider: str, seconds: float) -> None:
        """Let no worker begin a limited call of the provider for so long."""
        ...

    async def begin_turn(self, thread: str, key: str) -> TurnBegun:
        """Take the thread for the turn with this key; raises `NotYet` while another one has it, `ConfigurationError`
        where that one waits for this."""
        ...

    def end_turn(self, turn: TurnEnd) -> None:
        """Let this be left on the thread in the transaction that stores the attempt's outcome."""
        ...

    async def mark_effect(self) -> bool:
        """Commit that the step's effect is about to happen; `False` when an attempt before this one did so."""
        ...

    async def unmark_effect(self) -> None:
        """The effect has not happened."""
        ...

    async def approved_digest(self, key: str) -> str | None:
        """The digest of what was approved at the step with this key, as the server keeps it."""
        ...

    def stream(self, kind: str, data: Any) -> None:
        """Append to the run's live stream."""
        ...

    async def send_events(self, events: Sequence[Event]) -> list[str]: ...

    async def send_signal(self, name: str, data: Any, buffer: timedelta | None) -> str | None: ...


class NotYet(BaseException):
    """Takes a body down that may not go on before an instant; it is called again then, as the same attempt."""

    def __init__(self, until: Micros, reason: str, *, is_woken: bool = False) -> None:
        super().__init__(reason)
        self.until = until
        self.reason = reason
        self.is_woken = is_woken
        """Whether mail for the run may mean that it may go on earlier."""


@dataclass(slots=True)
class Body:
    """Something to execute in this process, with attempts."""

    kind: StepKind
    name: str | None
    call: Callable[[Attempt], Awaitable[Any]]
    codec: Codec[Any]
    retry: Retry | None = None
    timeout: timedelta | None = None
    raises_own_errors: bool = False
    """A provider's error is raised as itself, not as `StepError`."""


@dataclass(slots=True, kw_only=True)
class WaitPlan:
    """What to register, fixed when the wait is first made."""

    deadline: Micros
    topic: str | None = None
    correlation: str | None = None
    condition: str | None = None
    name: str | None = None
    timeout_output: Json | None = "null"
    timeout_error: Exception | None = None
    child: NewRun | None = None
    approval: NewApproval | None = None
    replace: bool = False
    lookback_from: Micros | None = None


@dataclass(slots=True)
class Wait:
    """Something to wait for. `plan` is called once, when the wait is registered; its error becomes the outcome."""

    kind: StepKind
    plan: Callable[[str], WaitPlan | Awaitable[WaitPlan]]
    """Takes the step's key."""
    decode: Callable[[Json], Any]
    """What the stored output means."""
    on_timeout: Callable[[], Awaitable[None]] | None = None
    """Called (again on every replay) before `InvokeTimeout` is raised."""
    is_from_outside: bool = False
    """What resolves it is somebody else's data: if that does not validate, the step raises `InvalidInput`."""
    resolves_at_once: bool = False
    """The step ends when the wait is registered: a detached invoke."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A branch of a race."""

    scope: str
    """What the keys of its steps begin with."""
    call: Callable[[], Awaitable[Any]]
    codec: Codec[Any]
    """Of what it returns."""


Contenders = Mapping[str, Contender]
"""The branches of a race by their names, in the order in which they start."""


class RawId(str):
    """A step id that the framework composed: it is used as it is."""


class TakenKey(str):
    """A step's key that was taken before: the step has it in whichever task it is made."""


class StepRunner(Protocol):
    """The run, as `Step` needs it."""

    run_id: str
    app: str
    root_id: str
    depth: int
    settings: Settings
    trigger_event: dict[str, Any]
    """The event that started the run; `{"data": input}` where none did."""
    context: Context[Any]
    """What the run's function was called with."""

    def now(self) -> Micros: ...

    def take_key(self, scope: str, step_id: str) -> str: ...

    def take_ordinal(self, scope: str, name: str) -> int: ...

    def mismatch(self, message: str) -> BaseException:
        """Note that the code does not fit the history; gives what to raise."""
        ...

    def perform(self, key: str, body: Body) -> Coroutine[Any, Any, Any]: ...

    def wait(self, key: str, wait: Wait) -> Coroutine[Any, Any, Any]: ...

    def race(self, key: str, contenders: Contenders) -> Coroutine[Any, Any, tuple[str, Any]]: ...

    async def resolve_target(self, target: Target) -> Function[Any, Any] | FunctionRef: ...

    async def cancel_child(self, run_id: str) -> None: ...
