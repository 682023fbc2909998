"""Generated functions: a tree of steps, the function that follows it, and what it must give whatever crashes."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import BaseModel

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import StepError
from agentflow.flow import Concurrency
from agentflow.step import Step
from tests.simulation.bodies import work
from tests.simulation.traffic import add_functions, add_schedule

Node = list[Any]

GATE_LIMIT = 1
LONG = "300d"
AGAIN = "z"
"""The step from which a run may be run again: the last one."""
PERHAPS = "t"
"""Begins the names of signals that are sent once, in time or too late."""


class Plan(BaseModel):
    """What a generated run does. `prefix` keeps the signals of two runs apart."""

    prefix: str
    root: Any


def generate(rng: random.Random) -> tuple[Node, list[tuple[str, int]]]:
    """A tree of steps, and the signals it waits for: name and how often, in that order."""
    numbers = itertools.count()
    signals: list[tuple[str, int]] = []

    def leaf() -> Node:
        match rng.choices(
            ["step", "sync", "sleep", "signal", "perhaps", "event", "choosy", "back", "mail", "ask"],
            [8, 2, 3, 4, 2, 2, 1, 1, 2, 2],
        )[0]:
            case "sleep":
                return ["sleep", rng.choice([0, 0.01, 0.4, 3, 7])]
            case "signal":
                times = rng.choices([1, 2], [3, 1])[0]
                name = f"s{next(numbers)}"
                signals.append((name, times))
                return ["signal", name, times]
            case "perhaps":
                name = f"{PERHAPS}{next(numbers)}"
                signals.append((name, 1))
                return ["perhaps", name, rng.choice([0.5, 2, 5])]
            case "event" | "choosy" | "back" | "mail" | "ask" as kind:
                return [kind, f"m{next(numbers)}"]
            case kind:
                # Two retries: three failures are one too many.
                return [kind, rng.choice("abc"), rng.choices([0, 1, 2, 3], [12, 2, 1, 1])[0]]

    def tree(depth: int) -> Node:
        if depth == 0 or rng.random() < 0.2:
            return leaf()
        kind = rng.choices(["seq", "gather", "group", "invoke", "gated", "race"], [5, 5, 2, 2, 4, 2])[0]
        if kind in ("invoke", "gated"):
            return [kind, tree(depth - 1)]
        if kind == "race":
            # Contenders that wait for nobody outside: who loses leaves no signal behind.
            return ["race", [["step", name, 0] for name in "xy"[: rng.randint(1, 2)]] + [["sleep", 3600]]]
        return [kind, [tree(depth - 1) for _ in range(rng.randint(2, 3))]]

    parts = [tree(2)]
    if rng.random() < 0.3:
        parts.append(["stumble", rng.randint(1, 2)])
    parts.append(tree(1))
    # From here on it may be run again.
    parts.append(["step", AGAIN, 0])
    return ["seq", parts], signals


def make_app(*, has_schedule: bool) -> App:
    """The function that follows plans, one that does so one by one, and those that get events."""
    app = App("sim")

    def contender(ctx: Context[Plan], node: Node) -> Callable[[Step], Coroutine[Any, Any, Any]]:
        async def branch(step: Step) -> Any:
            return await follow(ctx, step, node)

        return branch

    async def follow(ctx: Context[Plan], step: Step, node: Node) -> Any:
        match node:
            case ["step" | "sync" as kind, name, failures]:
                try:
                    return await work(ctx, step, name, failures, is_sync=kind == "sync")
                except StepError as error:
                    return f"{error.name}: {error.message}"
            case ["sleep", seconds]:
                return await step.sleep("nap", seconds)
            case ["signal", name, times]:
                got = []
                for _ in range(times):
                    signal = await step.wait_for_signal("wait", signal=ctx.data.prefix + name, timeout=LONG)
                    got.append(signal and signal.data)
                return got
            case ["perhaps", name, seconds]:
                signal = await step.wait_for_signal("hope", signal=ctx.data.prefix + name, timeout=seconds)
                return signal and signal.data
            case ["event", name]:
                event, _ = await asyncio.gather(
                    step.wait_for_event("hear", event=ctx.data.prefix + name, timeout=LONG),
                    step.send_event("tell", {"name": ctx.data.prefix + name, "data": {"n": name}}),
                )
                return event and event.data
            case ["choosy", name]:
                event, _ = await asyncio.gather(
                    step.wait_for_event(
                        "pick", event=ctx.data.prefix + name, if_="async.data.n == 2", timeout=LONG
                    ),
                    step.send_event(
                        "offer", [{"name": ctx.data.prefix + name, "data": {"n": n}} for n in (1, 2, 3)]
                    ),
                )
                return event and event.data
            case ["back", name]:
                await step.send_event("before", {"name": ctx.data.prefix + name, "data": {"n": name}})
                event = await step.wait_for_event(
                    "look", event=ctx.data.prefix + name, timeout=LONG, lookback="1h"
                )
                return event and event.data
            case ["ask", name]:
                decision = await step.approval("ask", title=ctx.data.prefix + name)
                return [decision.approved, decision.by]
            case ["mail", name]:
                _, signal = await asyncio.gather(
                    step.send_signal("post", ctx.data.prefix + name, name, buffer="1h"),
                    step.wait_for_signal("box", signal=ctx.data.prefix + name, timeout=LONG),
                )
                return signal and signal.data
            case ["seq", nodes]:
                return [await follow(ctx, step, inner) for inner in nodes]
            case ["gather", nodes]:
                return await asyncio.gather(*[follow(ctx, step, inner) for inner in nodes])
            case ["group", nodes]:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(follow(ctx, step, inner)) for inner in nodes]
                return [task.result() for task in tasks]
            case ["invoke" | "gated" as kind, inner]:
                function = "follows" if kind == "invoke" else "one-by-one"
                return await step.invoke("child", function, data=Plan(prefix=ctx.data.prefix, root=inner))
            case ["race", nodes]:
                contenders = {f"c{n}": contender(ctx, inner) for n, inner in enumerate(nodes)}
                return list(await step.race("first", **contenders))
            case ["stumble", failures]:
                if ctx.attempt < failures:
                    raise RuntimeError("stumbled")
                return "went on"
        raise AssertionError(node)

    @app.function
    async def follows(ctx: Context[Plan], step: Step) -> Any:
        return await follow(ctx, step, ctx.data.root)

    @app.function(id="one-by-one", concurrency=Concurrency(GATE_LIMIT, key="data.prefix"))
    async def one_by_one(ctx: Context[Plan], step: Step) -> Any:
        return await follow(ctx, step, ctx.data.root)

    add_functions(app)
    if has_schedule:
        add_schedule(app)
    return app


def fits(node: Node, value: Any) -> bool:
    """Whether the value is what the crash-free run of this plan gives."""
    match node:
        case ["step" | "sync", name, failures]:
            if failures > 2:
                return bool(value == f"ValueError: {name}")
            return isinstance(value, dict) and value.get("value") == name
        case ["sleep", _]:
            return value is None
        case ["signal", name, times]:
            return bool(value == [f"{name}.{n}" for n in range(times)])
        case ["perhaps", name, _]:
            return value is None or bool(value == f"{name}.0")
        case ["event" | "back", name]:
            return bool(value == {"n": name})
        case ["choosy", _]:
            return bool(value == {"n": 2})
        case ["ask", _]:
            return value in ([True, "ana"], [False, "bo"])
        case ["mail", name]:
            return bool(value == name)
        case ["seq" | "gather" | "group", nodes]:
            return isinstance(value, list) and len(value) == len(nodes) and all(map(fits, nodes, value))
        case ["invoke" | "gated", inner]:
            return fits(inner, value)
        case ["race", nodes]:
            if not (isinstance(value, list) and len(value) == 2):
                return False
            number = int(value[0][1:])
            # An hour of sleep wins only if all else was lost; that is the loser here.
            return number < len(nodes) - 1 and fits(nodes[number], value[1])
        case ["stumble", _]:
            return bool(value == "went on")
    raise AssertionError(node)
