"""kill -9 of the demo at random moments, again and again: `python -m bench.kill_demo --kills 30`.

Real processes on real files. Each demo runs in a folder of its own and is started again after each kill until it ends.
What has to hold: its answer is the answer of a demo that nobody killed, the payment service has exactly one refund,
and the model was asked no more often than once for each answer and once more for each call that a kill cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

PROGRESS = ("▸", "✓", "…", "?", "!")
"""How a line begins that tells of a step; what was done before the start begins with another mark."""
LONGEST_SECONDS = 60.0
MOST_STARTS = 100


class Broken(AssertionError):
    """A demo did not end as it has to."""


@dataclass(frozen=True)
class Sitting:
    """One process of a demo. `first_progress` in seconds from its start, where it came that far."""

    was_killed: bool
    code: int
    lines: list[str]
    first_progress: float | None
    seconds_told: float
    """From its first line to its last."""


@dataclass
class Demo:
    """One demo in its folder, over as many processes as it takes."""

    folder: Path
    pause: float
    sittings: list[Sitting] = field(default_factory=list)
    kills_in_flight: int = 0
    _seen_in_flight: set[tuple[str, str, int]] = field(default_factory=set)

    def sit(
        self,
        *,
        kill_after: float | None = None,
        from_first_line: bool = False,
        kill_when: Callable[[Demo], bool] | None = None,
    ) -> Sitting:
        """Start it, and kill it after so many seconds, or as soon as `kill_when` holds, unless it has ended before.

        The seconds count from the start of the process, or from its first line: much of the rest is Python's imports.
        """
        command = [sys.executable, "-P", "-m", "agentflow", "demo", "--auto", "approve"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTFLOW_")}
        environment |= {"AGENTFLOW_DEMO_PAUSE": str(self.pause), "PYTHONUNBUFFERED": "1"}
        begin = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        timers = [threading.Timer(LONGEST_SECONDS, process.kill)]
        if kill_after is not None:
            timers.append(threading.Timer(kill_after, process.kill))
        for timer in timers[: 1 if from_first_line else 2]:
            timer.start()
        if kill_when is not None:
            threading.Thread(target=self._kill_when, args=(kill_when, process), daemon=True).start()
        lines: list[str] = []
        first_progress: float | None = None
        first_line = last_line = 0.0
        assert process.stdout is not None, "it was asked for"
        with process.stdout:
            for line in process.stdout:
                if not lines and from_first_line and kill_after is not None:
                    timers[1].start()
                last_line = time.monotonic()
                first_line = first_line or last_line
                lines.append(line.rstrip("\n"))
                if first_progress is None and line.startswith(PROGRESS):
                    first_progress = time.monotonic() - begin
        code = process.wait()
        for timer in timers:
            timer.cancel()
        was_killed = code == -signal.SIGKILL
        if was_killed and kill_after is None and kill_when is None:
            raise Broken(f"the demo in {self.folder} hangs:\n" + "\n".join(lines))
        sitting = Sitting(was_killed, code, lines, first_progress, last_line - first_line)
        self.sittings.append(sitting)
        if was_killed:
            self._look_in_flight()
        return sitting

    def _kill_when(self, holds: Callable[[Demo], bool], process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            if holds(self):
                process.kill()
                return
            time.sleep(0.001)

    def _look_in_flight(self) -> None:
        """Whether the kill has cut off a model call: its row in the ledger has no end."""
        new = set(self._open_calls()) - self._seen_in_flight
        self._seen_in_flight |= new
        self.kills_in_flight += bool(new)

    def _open_calls(self) -> Iterator[tuple[str, str, int]]:
        database = self.folder / ".agentflow" / "demo.db"
        if not database.exists():
            return
        with closing(sqlite3.connect(database)) as connection:
            try:
                yield from connection.execute(
                    "SELECT run_id, key, attempt FROM agentflow_model_call WHERE ended_at IS NULL"
                )
            except sqlite3.OperationalError:  # killed before there were tables
                return

    @property
    def is_over(self) -> bool:
        """Whether its last line was told, even if a kill came before the process had ended."""
        return bool(self.sittings) and self._last_words is not None

    @property
    def kills(self) -> int:
        return sum(sitting.was_killed for sitting in self.sittings)

    @property
    def generations(self) -> int:
        """How many answers the scripted model has generated, by its own count."""
        return len(self._lines_of("generations.log"))

    @property
    def refunds(self) -> list[dict[str, object]]:
        """The payment service's ledger."""
        return [json.loads(line) for line in self._lines_of("refunds.jsonl")]

    def summary(self) -> dict[str, str]:
        """The last three lines."""
        found = self._last_words
        if found is None:
            told = "\n".join(self.sittings[-1].lines)
            raise Broken(f"the demo in {self.folder} ended without its last lines:\n{told}")
        return found

    @property
    def _last_words(self) -> dict[str, str] | None:
        found = dict(line.split(": ", 1) for line in self.sittings[-1].lines[-3:] if ": " in line)
        return found if list(found) == ["answer", "model calls", "refunds"] else None

    def _lines_of(self, name: str) -> list[str]:
        path = self.folder / ".agentflow" / name
        return (
            [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            if path.exists()
            else []
        )


def play(folder: Path, *, kills: Sequence[float], pause: float) -> Demo:
    """One demo, killed after these seconds, one for each start, until it ends or there are no kills left."""
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(folder, pause)
    for kill_after in kills:
        demo.sit(kill_after=kill_after)
        if demo.is_over:
            return demo
    demo.sit(kill_after=None)
    return demo


def check(demo: Demo, reference: Demo) -> None:
    """Hold a demo that was killed against one that was not. Raises `Broken`."""
    last = demo.sittings[-1]
    if not last.was_killed and last.code != 0:
        raise Broken(f"the demo in {demo.folder} exits {last.code}:\n" + "\n".join(last.lines))
    told, expected = demo.summary(), reference.summary()
    _hold(
        told["answer"] == expected["answer"],
        f"answer {told['answer']!r} instead of {expected['answer']!r}",
        demo,
    )
    _hold(told["refunds"] == "1", f"refunds: {told['refunds']}", demo)
    _hold(len(demo.refunds) == 1, f"the payment service has {demo.refunds}", demo)
    _hold(
        told["model calls"] == str(demo.generations),
        f"{told['model calls']} calls told of {demo.generations}",
        demo,
    )
    allowed = reference.generations + demo.kills_in_flight
    _hold(
        demo.generations <= allowed,
        f"{demo.generations} answers were generated, {allowed} at most may be",
        demo,
    )
    _hold(demo.generations >= reference.generations, f"only {demo.generations} answers were generated", demo)


def _hold(is_so: bool, what: str, demo: Demo) -> None:
    if not is_so:
        told = "\n".join(f"--- start {n}\n" + "\n".join(s.lines) for n, s in enumerate(demo.sittings, 1))
        raise Broken(f"the demo in {demo.folder}: {what}\n{told}")


def measure(folder: Path, *, kills: int, seed: int, pause: float) -> list[Demo]:
    """The reference, then demos until so many kills have hit one; each is checked."""
    rng = random.Random(seed)
    reference = play(folder / "reference", kills=(), pause=pause)
    whole = play(folder / "again", kills=(), pause=pause).sittings[-1].seconds_told
    demos = [reference]
    hit = 0
    while hit < kills:
        demo = Demo(folder / f"demo-{len(demos)}", pause)
        demo.folder.mkdir(parents=True)
        while not demo.is_over and len(demo.sittings) < MOST_STARTS:
            is_due = hit < kills
            moment = rng.uniform(0.0, whole) if is_due else None
            hit += demo.sit(kill_after=moment, from_first_line=rng.random() < 0.75).was_killed
            if not demo.sittings[-1].was_killed:
                break
        check(demo, reference)
        demos.append(demo)
        print(
            f"{demo.folder.name}: {demo.kills} kills, {demo.kills_in_flight} of them hit a call in flight; "
            f"{demo.generations} answers generated, {len(demo.refunds)} refund",
            flush=True,
        )
    return demos


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.kill_demo", description=__doc__.partition(":")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument(
        "--seed", type=int, default=None, help="which random moments; another each time by default"
    )
    parser.add_argument("--pause", type=float, default=0.3, help="seconds that each model and tool takes")
    arguments = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"{arguments.kills} kills, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="agentflow-kill-demo-") as folder:
        try:
            demos = measure(Path(folder), kills=arguments.kills, seed=seed, pause=arguments.pause)
        except Broken as broken:
            print(f"BROKEN: {broken}", file=sys.stderr)
            return 1
        report(demos[0], demos[1:])
    return 0


def report(reference: Demo, killed: Sequence[Demo]) -> None:
    """What was counted, and how soon a restart went on."""
    restarts = [
        s.first_progress for demo in killed for s in demo.sittings[1:] if s.first_progress is not None
    ]
    print(f"kills: {sum(demo.kills for demo in killed)} in {len(killed)} demos, 0 bad")
    print(f"kills that hit a model call in flight: {sum(demo.kills_in_flight for demo in killed)}")
    generated = sum(demo.generations for demo in killed)
    print(f"answers generated: {generated}, without a kill {reference.generations * len(killed)}")
    print(f"refunds: {sum(len(demo.refunds) for demo in killed)} in {len(killed)} demos")
    if restarts:
        print(
            f"from a restart to the first progress: median {statistics.median(restarts):.2f} s, "
            f"longest {max(restarts):.2f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
