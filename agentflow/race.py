"""The branches of a race, as the user gives them and as the run takes them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agentflow.codec import codec_for_return
from agentflow.errors import ConfigurationError
from agentflow.ids import validate_id
from agentflow.keys import race_scope
from agentflow.step import Step, is_async
from agentflow.step_runner import Contender, Contenders, StepRunner

RaceBranch = Callable[[Step], Awaitable[Any]]


def contenders(runner: StepRunner, key: str, branches: Mapping[str, RaceBranch]) -> Contenders:
    """Each branch with a Step of its own. Raises `ConfigurationError` for what cannot race."""
    if not branches:
        raise ConfigurationError(
            f"race {key!r} of run {runner.run_id} has no branches: give each as name=async_function"
        )
    return {name: _contender(runner, key, name, branch) for name, branch in branches.items()}


def _contender(runner: StepRunner, key: str, name: str, branch: RaceBranch) -> Contender:
    _check(branch, f"branch {name!r} of race {key!r} of run {runner.run_id}")
    scope = race_scope(key, validate_id(name, "name of a race's branch"))
    return Contender(scope, lambda: branch(Step(runner, scope)), codec_for_return(branch))


def _check(branch: RaceBranch, where: str) -> None:
    if not _is_async_function(branch):
        raise ConfigurationError(
            f"{where} is no async function but {branch!r}: write `async def branch(step)`, and give it, uncalled"
        )
    try:
        inspect.signature(branch).bind(None)
    except TypeError as error:
        raise ConfigurationError(
            f"{where} cannot be called with a Step alone ({error}): write `async def branch(step)`, and give further "
            "arguments by functools.partial"
        ) from error


def _is_async_function(branch: object) -> bool:
    return callable(branch) and is_async(branch)
