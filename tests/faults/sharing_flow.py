"""A process of `test_one_file.py`: `python -m tests.faults.sharing_flow URL LOG` starts runs and works on them.

What it was told is done goes into the log, and so does every error and every warning. It ends after SIGUSR1.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from agentflow import App, Context, Settings, Step
from tests.crash.flow import write_line

AT_ONCE = 6
PAD = 6_000


def make_app(url: str, log: str) -> App:
    app = App("sharing", database_url=url, settings=Settings(shutdown_grace_seconds=5))

    def work(n: int, part: int) -> str:
        return f"{os.getpid()}-{n}-{part} {'x' * PAD}"

    @app.function
    async def flow(ctx: Context[int], step: Step) -> str:
        done = []

        async def one(part: int) -> None:
            value = await step.run(f"s{part}", work, ctx.data, part)
            write_line(log, f"step {ctx.run_id} {value.split()[0]}")
            done.append(value.split()[0])

        for part in range(3):
            await one(part)
        await asyncio.gather(*[one(part) for part in range(3, 6)])
        await step.sleep("nap", 0.05)
        signal = await step.wait_for_signal("wait", signal=f"go {ctx.run_id}", timeout="1h")
        assert signal is not None
        await one(6)
        return " ".join(sorted(set(done)))

    return app


async def main(url: str, log: str) -> None:
    logging.getLogger("agentflow").addHandler(_Warnings(log))
    app = make_app(url, log)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stop.set)
    async with app.running():
        write_line(log, f"started {os.getpid()}")

        async def keep_starting() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                try:
                    run = await app.start("flow", n)
                    write_line(log, f"run {run.id}")
                    await app.signal(f"go {run.id}", n, buffer="1h")
                    write_line(log, f"signal {run.id}")
                    await app.runs.list(limit=20)
                    await app.runs.get(run.id)
                    await run.result()
                    write_line(log, f"end {run.id}")
                except Exception as error:
                    write_line(log, f"trouble {os.getpid()} {type(error).__name__}: {error}")

        await asyncio.gather(*[keep_starting() for _ in range(AT_ONCE)])
    write_line(log, f"stopped {os.getpid()}")


class _Warnings(logging.Handler):
    def __init__(self, log: str) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self._log, f"warned {os.getpid()} {record.getMessage()}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
