"""`python3 dev.py bench`: agentflow beside the raw limit of this machine's disk and, with --peers, beside its peers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import check, crowd
from bench.contest import OURS, RAW, Contest
from bench.databases import postgresql
from bench.peers.installing import peers
from bench.plan import POSTGRESQL, PROCESS, SIZES, STRICT, workloads_on
from bench.table import table

DATABASES = (STRICT, PROCESS, POSTGRESQL)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    with contextlib.ExitStack() as stack:
        within = check.memory() if arguments.check or arguments.keep else arguments.folder
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentflow-bench-", dir=within)))
        if arguments.agents:
            sizes = SIZES[arguments.size]
            held_by = crowd.hold(
                folder, agents=sizes["agents"], turns=sizes["turns"], rounds=arguments.rounds, show=print
            )
            asyncio.run(held_by)
            return 0
        folder.chmod(0o711)  # PostgreSQL may run as another user, and its data is in there
        server = stack.enter_context(postgresql(folder)) if POSTGRESQL in arguments.databases else None
        is_check = arguments.check or arguments.keep
        contest = Contest(
            folder=folder,
            server=server,
            sizes=SIZES["quick" if is_check else arguments.size],
            tell=tell,
            clock="processor" if is_check else "wall",
        )
        if arguments.keep:
            check.keep(asyncio.run(check.measure(contest, arguments.databases)))
            return 0
        if arguments.check:
            return held(asyncio.run(check.check(contest, arguments.databases, check.read_kept())))
        asyncio.run(show(contest, arguments))
        return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", dest="size", action="store_const", const="quick", default="full", help="smaller sizes"
    )
    parser.add_argument("--size", choices=SIZES, default="full", help=argparse.SUPPRESS)
    parser.add_argument(
        "--peers",
        action="store_true",
        help="with DBOS, LangGraph and pydantic-ai, installed into .venv-peers",
    )
    parser.add_argument(
        "--agents", action="store_true", help="1,000 agents at once, beside OpenAI's bare SDK"
    )
    parser.add_argument(
        "--check", action="store_true", help="fail when a ratio got worse by more than a third"
    )
    parser.add_argument(
        "--keep", action="store_true", help="write what --check holds against: bench/figures.json"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured; medians are shown")
    parser.add_argument(
        "--database", dest="databases", action="append", choices=DATABASES, help="only this one"
    )
    parser.add_argument("--folder", help="where the databases are made: the disk that is measured")
    arguments = parser.parse_args(argv)
    arguments.databases = arguments.databases or list(DATABASES)
    return arguments


async def show(contest: Contest, arguments: argparse.Namespace) -> None:
    contestants = [RAW, OURS, *(peers(tell) if arguments.peers else [])]
    print(
        f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; each figure the median of {arguments.rounds} process(es), less is better "
        "but for steps/s\n"
    )
    for database in arguments.databases:
        results = await contest.hold(database, workloads_on(database), contestants, rounds=arguments.rounds)
        print("\n".join(table(results, database, contestants, contest.sizes)), end="\n\n", flush=True)


def held(slower: list[str]) -> int:
    for line in slower:
        tell(f"SLOWER: {line}")
    print("slower than it was" if slower else "no ratio to the raw limit got worse by more than a third")
    return 1 if slower else 0


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
