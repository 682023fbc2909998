"""A process of `test_old_and_new.py`: `python -m tests.faults.versions_flow URL LOG` runs the code of
`AGENTFLOW_CODE`.

Between "old" and "new" a step was added, one removed, one renamed, and two have changed places. What a step call gives
is logged each time, so that a result that changes is seen.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from agentflow import App, Context, Settings, Step
from tests.crash.flow import write_line

STEPS = {
    "old": ["first", "second", "/", "third", "removed", "/", "old name", "last"],
    "new": ["second", "added", "first", "/", "third", "/", "new name", "last"],
}
"""The ids in their order; a slash is a sleep, after which the other process may go on."""


def make_app(url: str, log: str, code: str) -> App:
    app = App("versions", database_url=url, settings=Settings(lease_seconds=2.0))

    def work(run: str, id: str) -> str:
        return f"{code} {os.getpid()}"

    @app.function
    async def flow(ctx: Context[int], step: Step) -> Any:
        got = {}
        for id in STEPS[code]:
            if id == "/":
                await step.sleep("nap", 0.02)
                continue
            got[id] = await step.run(id, work, ctx.run_id, id)
            write_line(log, f"got\t{ctx.run_id}\t{id}\t{got[id]}")
        return got

    return app


async def main(url: str, log: str) -> None:
    app = make_app(url, log, os.environ["AGENTFLOW_CODE"])
    async with app.running():
        write_line(log, f"started {os.getpid()}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
