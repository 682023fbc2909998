"""Servers for the tests of the HTTP API: one process of each kind, with a database of its own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.http.servers import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app of `tests.http.served`, open to this machine."""
    yield from _serve("tests.http.served:api", tmp_path_factory)


@pytest.fixture(scope="session")
def server_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same app, open to its keys."""
    yield from _serve("tests.http.served:with_keys", tmp_path_factory)


@pytest.fixture
def client(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


def _serve(target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database = tmp_path_factory.mktemp("served") / "agentflow.db"
    server = Server(target, {"AGENTFLOW_DATABASE_URL": f"sqlite:///{database}"})
    server.start()
    yield server
    if server.process.poll() is None:
        server.stop()
