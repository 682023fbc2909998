"""`python3 dev.py bench --agents`: many agents at once in one process, beside OpenAI's bare SDK in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path

from bench.contest import ROOT, figures_of
from bench.crowd_work import MODEL_MILLISECONDS
from bench.plan import STRICT
from bench.talk import Figures, Work

ROWS = {
    "bare": "the same calls with OpenAI's SDK and asyncio.gather",
    "durable": "agentflow, over the same SDK",
    "function": "agentflow, the model a function",
}


async def hold(
    folder: Path, *, agents: int, turns: int, rounds: int, show: Callable[[str], None]
) -> dict[str, Figures]:
    """The best round of each, who take turns, as what else the machine does only ever adds."""
    show(
        f"{agents:,} agents of {turns} turns each at once, in one process; the model takes {MODEL_MILLISECONDS} ms. "
        f"SQLite, the best of {rounds}\n"
    )
    best: dict[str, Figures] = {}
    async with _model_server(turns) as url:
        for number in range(rounds):
            for name in ROWS:
                own = folder / f"{name}-{number}"
                own.mkdir()
                sizes = {"agents": agents, "turns": turns}
                work = Work(workload=name, database=STRICT, url=url, folder=str(own), sizes=sizes)
                figures = await figures_of(
                    [sys.executable, "-m", "bench.crowd_work", json.dumps(asdict(work))]
                )
                best[name] = min(best.get(name, figures), figures, key=lambda found: found["seconds"])
    show(f"{'':<52}{'s':>8}{'x bare':>8}{'MB':>8}")
    for name, title in ROWS.items():
        took = best[name]["seconds"]
        share = "" if name == "function" else f"{took / best['bare']['seconds']:.2f}"
        show(f"{title:<52}{took:>8.2f}{share:>8}{best[name]['memory']:>8.0f}")
    return best


@contextlib.asynccontextmanager
async def _model_server(turns: int) -> AsyncIterator[str]:
    server = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "bench.model_server", str(MODEL_MILLISECONDS / 1000), str(turns)],
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(await server.stdout.readline())}/v1"
    finally:
        server.kill()
        await server.wait()
