"""What the demo keeps in `./.agentflow/`, and which demo it is that goes on."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FOLDER = Path(".agentflow")


@dataclass(frozen=True)
class DemoState:
    """One demo, from its first start to its last line. The counts say where its part of the files begins."""

    key: str
    """The idempotency key its run is started with: started twice, it is one run."""
    generations_before: int
    refunds_before: int
    run_id: str | None = None
    is_over: bool = False


@dataclass(frozen=True)
class DemoFiles:
    """The demo's folder."""

    folder: Path

    @staticmethod
    def here() -> DemoFiles:
        """In the current folder, where the demo's agent looks for it too."""
        return DemoFiles(FOLDER)

    @property
    def database(self) -> Path:
        return self.folder / "demo.db"

    @property
    def refunds(self) -> Path:
        """The payment service's ledger: a line for each refund."""
        return self.folder / "refunds.jsonl"

    @property
    def generations(self) -> Path:
        """A line for each answer that the scripted model has generated, on the disk before the answer is given."""
        return self.folder.absolute() / "generations.log"

    @property
    def _state(self) -> Path:
        return self.folder / "demo.json"

    def prepare(self) -> None:
        """Make the folder; it keeps itself out of version control."""
        self.folder.mkdir(exist_ok=True)
        ignore = self.folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")

    def begin(self) -> DemoState:
        """The demo that is not over, else a new one."""
        with self._alone():
            state = self._read()
            if state is None or state.is_over:
                state = DemoState(uuid.uuid4().hex, self.count_generations(), self.count_refunds())
                self._write(state)
            return state

    def remember_run(self, state: DemoState, run_id: str) -> DemoState:
        """The key is forgotten after a day; the run's id is not."""
        state = replace(state, run_id=run_id)
        with self._alone():
            self._write(state)
        return state

    def end(self, state: DemoState) -> None:
        """Its last line is told: the next start begins anew."""
        with self._alone():
            current = self._read()
            if current is not None and current.key == state.key:
                self._write(replace(state, is_over=True))

    def count_generations(self) -> int:
        return _count_lines(self.generations)

    def count_refunds(self) -> int:
        return _count_lines(self.refunds)

    def _read(self) -> DemoState | None:
        try:
            return DemoState(**json.loads(self._state.read_text()))
        except FileNotFoundError:
            return None
        except (
            ValueError,
            TypeError,
        ):  # not ours, or of another version: the run it names is not worth an error
            return None

    def _write(self, state: DemoState) -> None:
        fresh = self._state.with_suffix(".new")
        with open(fresh, "w") as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._state)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two demos in one folder agree which one it is."""
        with open(self.folder / "demo.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _count_lines(path: Path) -> int:
    """Whole lines: a torn one was killed before it counted."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
