"""A real uvicorn process on a port of its own, and a client for it."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from subprocess import PIPE, STDOUT
from typing import Any

import httpx2

from tests.forked import Forked

LISTENING = re.compile(rb"Uvicorn running on http://127\.0\.0\.1:(\d+)")


@dataclass
class Server:
    """`uvicorn <target>`, with its output kept for the message of a failing test."""

    target: str
    environment: dict[str, str]
    prefix: str = "/agentflow"
    port: int = 0
    output: bytearray = field(default_factory=bytearray)

    def start(self) -> None:
        # Another port each time: what a killed process leaves behind is nothing to wait for.
        self.process = Forked(
            ["-m", "uvicorn", self.target, "--port", "0", "--timeout-graceful-shutdown", "5"],
            env={**os.environ, **self.environment},
            stdout=PIPE,
            stderr=STDOUT,
        )
        self.output.clear()
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._listening.wait(30), f"the server did not start:\n{self.output.decode()}"
        assert self.port, f"the server ended:\n{self.output.decode()}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.port = 0
        for line in self.process.stdout:
            self.output += line
            if not self.port and (found := LISTENING.search(line)):
                self.port = int(found[1])
                self._listening.set()
        self.process.stdout.close()
        self._listening.set()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)

    def stop(self) -> int:
        """As a deploy does; the exit code."""
        self.process.terminate()
        code = self.process.wait(30)
        self._reader.join(5)
        return code

    def client(self, **options: Any) -> httpx2.Client:
        # Without `verify` each client would read all certificates there are, for a plain connection.
        url = f"http://127.0.0.1:{self.port}{self.prefix}"
        return httpx2.Client(base_url=url, timeout=30, verify=False, **options)


def wait_until(check: Any, *, seconds: float = 20) -> Any:
    """The first true answer of `check`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{check} was not true within {seconds} s")


def wait_for_status(client: httpx2.Client, run_id: str, *statuses: str) -> dict[str, Any]:
    """The run, once it has one of the statuses."""

    def look() -> dict[str, Any] | None:
        run: dict[str, Any] = client.get(f"/runs/{run_id}").json()
        return run if run["status"] in statuses else None

    found: dict[str, Any] = wait_until(look)
    return found


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    id: str
    event: str
    data: Any


def read_events(response: httpx2.Response) -> Iterator[Sent]:
    """The events of a stream as they come; comments are left out."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line == "" and fields:
            yield Sent(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
