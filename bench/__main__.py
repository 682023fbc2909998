"""`python3 dev.py bench`: the workloads on SQLite, each beside the raw limit of this disk in the same run."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench import raw, workloads


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="agentflow-bench-") as name:
        asyncio.run(measure(Path(name), quick=quick))


async def measure(folder: Path, *, quick: bool) -> None:
    steps = 300 if quick else 1000
    full = raw.insert_and_commit(folder, rows=steps)
    step = await workloads.sequence(_url(folder, "sequence"), steps=steps)
    print(f"raw: one INSERT + COMMIT, synchronous=FULL      {full * 1e6:9.0f} µs")
    print(
        f"agentflow: one step in a run of {steps:<5}           {step * 1e6:9.0f} µs   {step / full:5.2f} x raw"
    )

    bulk = raw.bulk_insert(folder, rows=50_000)
    runs = 100 if quick else 500
    many = await workloads.throughput(_url(folder, "throughput"), runs=runs, steps=10)
    print(f"raw: bulk insert, 500 rows a transaction        {bulk:9.0f} rows/s")
    print(
        f"agentflow: {runs} runs x 10 steps                  {many:9.0f} steps/s   {many / bulk:5.2f} x raw"
    )

    p50, p99 = await workloads.start_to_result(_url(folder, "start"), rounds=200 if quick else 1000)
    print(f"agentflow: start to result of one step, p50     {p50 * 1e6:9.0f} µs   {p50 / full:5.2f} x raw")
    print(f"                                        p99     {p99 * 1e6:9.0f} µs   {p99 / full:5.2f} x raw")

    few, most = (100, 1000) if quick else (1000, 10_000)
    grown, wake50, wake99 = await workloads.parked(_url(folder, "parked"), few=few, many=most)
    print(f"agentflow: {most} parked runs over {few}: growth   {grown:9.1f} MB")
    print(
        f"agentflow: signal to result of a parked run p50 {wake50 * 1e3:9.2f} ms   p99 {wake99 * 1e3:.2f} ms"
    )


def _url(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}.db"


if __name__ == "__main__":
    main()
