"""A disk that loses power, under agentflow's own store: after a cut there is what was fsynced, and perhaps some more.

SQLite writes by a VFS; this one passes everything on to the real file and remembers beside it what a disk would still
have. The VFS and the connections have to be of one SQLite library, and Python's own takes none from outside: so
agentflow's connections are apsw's here. All else is agentflow's own: its statements, its pragmas, its order of commits,
checkpoints and acknowledgements. What this cannot show is a fault of one version of SQLite: apsw brings its own.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest
from sqlalchemy.dialects import sqlite as dialect

from agentflow.store.reader import Reader
from agentflow.store.sqlite import backend as sqlite_backend
from agentflow.store.sqlite import reading as sqlite_reading

SECTOR = 512
"""What a disk writes wholly or not at all."""


@dataclass
class Image:
    """One file, as the disk has it: what is safe, and the writes that may still be lost."""

    safe: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, data); without data: cut off there."""

    def sync(self) -> None:
        for offset, data in self.pending:
            apply(self.safe, offset, data)
        self.pending.clear()

    def after_a_cut(self, rng: random.Random, keep: float) -> bytes:
        """What is found when the power is back, if each write had that chance to reach the disk."""
        found = bytearray(self.safe)
        for offset, data in self.pending:
            if rng.random() >= keep:
                continue
            if data is not None and 0 < keep < 1 and rng.random() < 0.3:
                data = data[: rng.randrange(0, len(data) + SECTOR, SECTOR)]
            apply(found, offset, data)
        return bytes(found)


def apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class LossyDisk(apsw.VFS):
    """A VFS for one test; `on_change` is called at every write, cut-off and fsync, before and after it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.name = name
        self.lock = threading.RLock()
        self.images: dict[str, Image] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.syncs = 0
        self.room: int | None = None
        """How much may still be written behind the files' ends; `None`: any amount."""

    def take_over(self, path: Path) -> None:
        """Call what is in a file safe: it was written long ago."""
        self.images[str(path)] = Image(bytearray(path.read_bytes()))

    def cut(self, rng: random.Random) -> dict[str, bytes]:
        """The files as they are found if the power fails now: nothing unsynced kept, or some of it, or all."""
        keep = rng.choice([0, 0, rng.random(), 1])
        with self.lock:
            return {path: image.after_a_cut(rng, keep) for path, image in self.images.items()}

    def xOpen(self, name: Any, flags: list[int]) -> LossyFile:
        return LossyFile(self, name, flags)

    def xDelete(self, name: str, syncdir: bool) -> None:
        with self.lock:
            self.images.setdefault(name, Image()).pending.append((0, None))
            super().xDelete(name, syncdir)


class LossyFile(apsw.VFSFile):
    """An open file of a `LossyDisk`."""

    def __init__(self, disk: LossyDisk, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        with disk.lock:
            self._image = disk.images.setdefault(path, Image())

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.on_change()
        with self._disk.lock:
            self._take_room(offset + len(data))
            super().xWrite(data, offset)
            self._image.pending.append((offset, bytes(data)))
        self._disk.on_change()

    def xTruncate(self, size: int) -> None:
        self._disk.on_change()
        with self._disk.lock:
            super().xTruncate(size)
            self._image.pending.append((size, None))
        self._disk.on_change()

    def xSync(self, flags: int) -> None:
        self._disk.on_change()
        with self._disk.lock:
            super().xSync(flags)
            self._image.sync()
            self._disk.syncs += 1
        self._disk.on_change()

    def _take_room(self, end: int) -> None:
        if self._disk.room is None:
            return
        more = max(0, end - super().xFileSize())
        if more > self._disk.room:
            raise apsw.exception_for(apsw.SQLITE_FULL)
        self._disk.room -= more


@contextmanager
def lossy_disk(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[LossyDisk]:
    """In this block every connection of agentflow goes to this disk."""
    disk = LossyDisk(f"lossy-{path.parent.name}")
    disk.take_over(path)
    module = _Sqlite3(disk)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_backend, "sqlite3", module)
        patch.setattr(sqlite_reading, "sqlite3", module)
        # A second library on one file, in one process, takes away the first one's locks: pages read by apsw, too.
        patch.setattr(Reader, "rows", lambda _, statement: _read(module, path, statement))
        yield disk
    disk.unregister()


class _Sqlite3:
    """The module `sqlite3`, but for `connect`."""

    def __init__(self, disk: LossyDisk) -> None:
        self._disk = disk

    def connect(self, path: Path, *, timeout: float, cached_statements: int, **_: object) -> _Connection:
        connection = apsw.Connection(str(path), vfs=self._disk.name, statementcachesize=cached_statements)
        connection.set_busy_timeout(int(timeout * 1000))
        return _Connection(connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)


class _Connection:
    """As much of `sqlite3.Connection` as agentflow uses."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, text: str, values: Sequence[Any] | dict[str, Any] = ()) -> _Rows:
        with _errors_of_sqlite3():
            return self._rows(self._connection.execute(text, values))

    def executemany(self, text: str, values: Iterable[Sequence[Any] | dict[str, Any]]) -> _Rows:
        with _errors_of_sqlite3():
            return self._rows(self._connection.executemany(text, values))

    def close(self) -> None:
        self._connection.close()

    def _rows(self, cursor: apsw.Cursor) -> _Rows:
        rows = _Rows(cursor.fetchall())
        rows.rowcount = self._connection.changes()
        return rows


@contextmanager
def _errors_of_sqlite3() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        is_constraint = isinstance(error, apsw.ConstraintError)
        raised = (sqlite3.IntegrityError if is_constraint else sqlite3.OperationalError)(str(error))
        raised.sqlite_errorcode = getattr(error, "extendedresult", sqlite3.SQLITE_ERROR)
        raise raised from error


class _Rows(list[tuple[Any, ...]]):
    """As much of a `sqlite3.Cursor`; for a statement that changes no rows `rowcount` says nothing."""

    rowcount = -1

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        return self[0] if self else None


async def _read(module: _Sqlite3, path: Path, statement: Any) -> list[dict[str, Any]]:
    compiled = statement.compile(
        dialect=dialect.dialect(paramstyle="named"), compile_kwargs={"render_postcompile": True}
    )
    connection = module.connect(path, timeout=5, cached_statements=1)
    try:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        names = [column.name for column in statement.selected_columns]
        rows = connection.execute(str(compiled), compiled.params)
        return [dict(zip(names, row, strict=True)) for row in rows]
    finally:
        connection.close()
