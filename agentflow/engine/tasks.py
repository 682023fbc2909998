"""The tasks of a run: which branch a task is, and what it is blocked on.

A task factory in front of the loop's own notices every task that a run's code starts. Such a task is a **branch**: it
has a path (the order in which its parent created tasks) and counts step ids of its own, so that two branches that use
the same ids never swap results, whichever is faster.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType
from typing import Any, Protocol, cast

from agentflow.info import current_body


class TaskOwner(Protocol):
    """A run, as the factory needs it."""

    def add_branch(self, branch: Branch) -> None: ...

    def drop_branch(self, branch: Branch) -> None: ...


MOST_SWALLOWED = 100


class Branch:
    """A task of a run. `path` is `""` for the function's own task, then `"0"`, `"1.2"`.

    A branch of a race begins anew: its own path is `""`, and the keys in it and its tasks begin with its `scope`.
    """

    __slots__ = ("children", "counts", "owner", "path", "scope", "swallowed", "task")

    def __init__(self, owner: TaskOwner, path: str = "", *, scope: str = "") -> None:
        self.owner = owner
        self.path = path
        self.scope = scope
        self.children = 0
        self.counts: dict[str, int] = {}
        self.task: Task[Any] | None = None
        self.swallowed = 0
        """How often its code was told to end and called a step all the same."""

    @property
    def is_deaf(self) -> bool:
        """Whether its code will not end, however often it is told: it catches everything and begins anew."""
        return self.swallowed > MOST_SWALLOWED

    def next_child(self) -> Branch:
        ordinal, self.children = self.children, self.children + 1
        path = f"{self.path}.{ordinal}" if self.path else str(ordinal)
        return Branch(self.owner, path, scope=self.scope)

    def within(self, scope: str) -> str:
        """The scope of a Step as it counts here: also that of a Step from outside of the race."""
        return scope if not self.scope or scope.startswith(self.scope) else self.scope + scope

    def next_ordinal(self, name: str) -> int:
        ordinal = self.counts.get(name, 0)
        self.counts[name] = ordinal + 1
        return ordinal

    def bind(self, task: Task[Any]) -> None:
        if self.task is not None:
            return
        self.task = task
        _branches[task] = self
        self.owner.add_branch(self)
        task.add_done_callback(self._ended)

    def _ended(self, task: Task[Any]) -> None:
        _branches.pop(task, None)
        self.owner.drop_branch(self)


_branches: dict[Task[Any], Branch] = {}


class _Starting(threading.local):
    """An eager task runs before its factory has returned it: its branch is found here until then."""

    def __init__(self) -> None:
        self.branches: list[Branch] = []


# Each thread has its own: another loop may run in another one.
_starting = _Starting()


def current_branch() -> Branch | None:
    """The branch of the task that runs now; `None` outside of runs, and inside a body."""
    if current_body.get() is not None:
        return None
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None
    if task is None:
        return None
    branch = _branches.get(task)
    if branch is None and _starting.branches and _starting.branches[-1].task is None:
        branch = _starting.branches[-1]
        branch.bind(task)
    return branch


def start_task(loop: AbstractEventLoop, coroutine: Any, *, branch: Branch, name: str) -> Task[Any]:
    """Run a coroutine as that branch."""
    task: Task[Any] = Task(coroutine, loop=loop, name=name)
    branch.bind(task)
    return task


class _BranchingFactory:
    """The loop's task factory: tasks of runs become branches, all others are left alone."""

    def __init__(self, inner: Callable[..., Any] | None) -> None:
        self.inner = inner

    def __call__(self, loop: AbstractEventLoop, coroutine: Any, **kwargs: Any) -> Any:
        parent = current_branch()
        if parent is None:
            return self._make(loop, coroutine, kwargs)
        branch = parent.next_child()
        _starting.branches.append(branch)
        try:
            task = self._make(loop, coroutine, kwargs)
        finally:
            _starting.branches.pop()
        if isinstance(task, Task) and not task.done():
            branch.bind(task)
        return task

    def _make(self, loop: AbstractEventLoop, coroutine: Any, kwargs: dict[str, Any]) -> Any:
        if self.inner is not None:
            return self.inner(loop, coroutine, **kwargs)
        return Task(coroutine, loop=loop, **kwargs)


def install_task_factory(loop: AbstractEventLoop) -> None:
    """Put the factory in front of the loop's own; a second time changes nothing."""
    factory = loop.get_task_factory()
    if not isinstance(factory, _BranchingFactory):
        loop.set_task_factory(cast(Any, _BranchingFactory(factory)))


# ------------------------------------------------------------------------------------ what a task is blocked on


class TaskState(Enum):
    READY = "ready"
    """It runs in this turn of the loop or the next."""
    WAITS = "waits"
    """It is blocked on the engine, or on tasks of the run that are."""
    BUSY = "busy"
    """It is blocked on something else: a socket, a thread, `asyncio.sleep`."""


CALM_TURNS = 2
"""Turns of the loop without a ready task. One is too few: under gather a task is ready only a turn after its child."""

_ASYNCIO = os.path.dirname(asyncio.__file__)
_LOCAL_LOCKS = frozenset(os.path.join(_ASYNCIO, name) for name in ("locks.py", "queues.py", "taskgroups.py"))
_STEPS_OF_GENERATORS = frozenset({"async_generator_asend", "async_generator_athrow"})
_TASKS = os.path.join(_ASYNCIO, "tasks.py")


def state_of(task: Task[Any], engine: Collection[Future[Any]]) -> TaskState:
    """What the task is doing. `engine` holds the futures that the engine resolves."""
    blocker = blocker_of(task)
    if blocker is None or blocker.done():
        return TaskState.READY
    if blocker in engine or (isinstance(blocker, Task) and blocker in _branches):
        return TaskState.WAITS
    children = getattr(blocker, "_children", None)
    if children is not None:  # gather
        return _state_of_group(children, engine)
    code, frame = _innermost(task)
    if code is None or frame is None:
        return TaskState.BUSY
    if code.co_filename in _LOCAL_LOCKS:
        return TaskState.WAITS
    if code.co_filename == _TASKS and code.co_name == "_wait":  # asyncio.wait
        local = frame.f_locals
        if local.get("timeout") is None:
            return _state_of_group(local.get("fs", ()), engine)
    return TaskState.BUSY


def blocker_of(task: Task[Any]) -> Future[Any] | None:
    """The future that the task is suspended on."""
    return cast("Future[Any] | None", getattr(task, "_fut_waiter", None))


def has_local_timer(loop: AbstractEventLoop, tasks: Collection[Task[Any]]) -> bool:
    """Whether an `asyncio.timeout` of one of these tasks is running, or one is to be cancelled later."""
    timers = getattr(loop, "_scheduled", None)
    if timers is None:  # uvloop keeps its timers to itself
        return any(_is_within_timeout(task) for task in tasks)
    for handle in timers:
        if handle.cancelled():
            continue
        owner = getattr(getattr(handle, "_callback", None), "__self__", None)
        if isinstance(owner, asyncio.Timeout):
            owner = getattr(owner, "_task", None)
        if isinstance(owner, Task) and owner in tasks:
            return True
    return False


def place_of(task: Task[Any]) -> str:
    """Where the task stands, as `file:line`."""
    frames = task.get_stack(limit=1)
    return f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "an unknown line"


def _state_of_group(futures: Collection[Future[Any]], engine: Collection[Future[Any]]) -> TaskState:
    pending = [future for future in futures if not future.done()]
    if not pending:
        return TaskState.READY
    known = all(future in engine or (isinstance(future, Task) and future in _branches) for future in pending)
    return TaskState.WAITS if known else TaskState.BUSY


def _is_within_timeout(task: Task[Any]) -> bool:
    """Whether the code that the task stands in is inside an `async with asyncio.timeout(...)` that is running."""
    for awaiting in _chain_of(task):
        for held in gc.get_referents(awaiting):  # its variables, and the ends of its `with` blocks
            timer = getattr(held, "__self__", None)
            if isinstance(timer, asyncio.Timeout) and timer.when() is not None and not timer.expired():
                return True
    return False


def _innermost(task: Task[Any]) -> tuple[CodeType | None, FrameType | None]:
    """The code at the bottom of the chain of awaits."""
    chain = list(_chain_of(task))
    last = chain[-1] if chain else None
    if isinstance(last, CoroutineType):
        return last.cr_code, last.cr_frame
    return (None, None) if last is None else (last.ag_code, last.ag_frame)


def _chain_of(task: Task[Any]) -> Iterator[CoroutineType[Any, Any, Any] | AsyncGeneratorType[Any, Any]]:
    """What the task is in the middle of, each awaiting the next: coroutines and async generators alike."""
    current: Any = task.get_coro()
    while isinstance(current, CoroutineType | AsyncGeneratorType):
        yield current
        following = current.cr_await if isinstance(current, CoroutineType) else current.ag_await
        if type(following).__name__ in _STEPS_OF_GENERATORS:
            # What `async for` awaits does not name its generator, and yet holds on to it.
            following = next(
                (it for it in gc.get_referents(following) if isinstance(it, AsyncGeneratorType)), None
            )
        current = following
