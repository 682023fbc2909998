"""What every test may ask for: databases, the event loop, and the promise that nothing is left running.

`database_url` runs a test on both databases; `sqlite_url` and `postgres_url` on one. Each is an empty
database of the test's own. PostgreSQL is the server of `AGENTFLOW_TEST_DATABASE_URL` (its user may create
databases), else one started for this run.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from inspect import isasyncgen, iscoroutine, iscoroutinefunction
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.faults.reporting import choose, report
from tests.forked import end_the_starter
from tests.later_sqlite import refuses_what_later_ones_refuse
from tests.migrated import migrated_database, migrated_file
from tests.postgres_server import PostgresServer, fast_disk

# fixtures, for any test
__all__ = ["migrated_database", "migrated_file", "refuses_what_later_ones_refuse", "report"]

# The only reasons for which CI may leave out a test, as the beginning of the reason.
ALLOWED_SKIPS = ("the recordings are not beside this checkout",)


# A commit waits for its disk. What a disk loses is the matter of tests/faults, with a disk of its own for that.
if where := fast_disk():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", where)
# Else each connection makes ready for TLS before it hears from our server that there is none.
if "AGENTFLOW_TEST_DATABASE_URL" not in os.environ:
    os.environ.setdefault("PGSSLMODE", "disable")

NOBODY = Path(__file__).parent / "nobody.pem"
"""A certificate of an authority that has no key any more, and was valid for a day in 2000."""


def pytest_configure(config: pytest.Config) -> None:
    # An SDK's client reads all the certificates of the machine when it is made, for 50 ms, and here it speaks plain
    # HTTP to this machine. Who records a cassette may speak to the real APIs.
    if config.getoption("--record-mode", None) in (None, "none"):
        os.environ["SSL_CERT_FILE"] = str(NOBODY)


# --- databases ------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file of the test's own, not yet there."""
    return f"sqlite:///{tmp_path / 'agentflow.db'}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The run's own server, to look at; a test that stops one makes a `PostgresServer` of its own."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_admin_url(request: pytest.FixtureRequest) -> str:
    """Where databases for tests are created: never used by a test itself."""
    if given := os.environ.get("AGENTFLOW_TEST_DATABASE_URL"):
        return given
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url()


@pytest.fixture
def postgres_url(postgres_admin_url: str) -> Iterator[str]:
    """An empty PostgreSQL database of the test's own."""
    yield from _make_database(postgres_admin_url)


@pytest.fixture
def second_postgres_url(postgres_admin_url: str) -> Iterator[str]:
    """Another empty PostgreSQL database, for a test that compares two."""
    yield from _make_database(postgres_admin_url)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of the test's own; the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def _make_database(admin_url: str) -> Iterator[str]:
    name = f"agentflow_test_{secrets.token_hex(6)}"
    asyncio.run(_execute(admin_url, f'CREATE DATABASE "{name}" TEMPLATE template0'))
    yield urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}"))
    asyncio.run(_execute(admin_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


async def _execute(url: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


# --- the event loop, and what may be left behind --------------------------------------------------


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    inner = obj.hypothesis.inner_test if hasattr(obj, "hypothesis") else obj
    if collector.istestfunction(obj, name) and iscoroutinefunction(inner):
        pytest.mark.usefixtures("no_task_left_behind")(obj)


@pytest.fixture
async def no_task_left_behind(anyio_backend: str) -> AsyncIterator[None]:
    """Fails an async test after which a task still runs: its owner forgot to stop it."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if not _is_of_the_test_runner(task)}
    if left:
        # What was cancelled or has just finished gets its turn to end; a real leak is still there afterwards.
        await asyncio.wait(left, timeout=0.5)
    names = [repr(task) for task in left if not task.done()]
    assert not names, "this test left asyncio tasks running:\n" + "\n".join(names)


def _is_of_the_test_runner(task: asyncio.Task[object]) -> bool:
    return task is asyncio.current_task() or getattr(task.get_coro(), "__qualname__", "").startswith(
        "TestRunner."
    )


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fails a test after which a thread still runs that would keep the process from ending."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 2
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    names = [thread.name for thread in left if thread.is_alive()]
    assert not names, f"this test left threads running: {', '.join(names)}"


# --- a test that hangs ----------------------------------------------------------------------------
#
# pytest-timeout ends a synchronous test. Raised into an event loop, its exception would leave anyio's runner
# waiting for ever, so an async test is cancelled from inside. What hangs all the same (a fixture's
# end, a body that swallows its cancellation) ends the whole run, and says where every task and thread stands.


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    return True if isinstance(item, pytest.Function) and iscoroutinefunction(item.obj) else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    test, seconds = pyfuncitem.obj, _seconds_allowed(pyfuncitem)
    if not iscoroutinefunction(test) or not seconds or pyfuncitem.config.getoption("usepdb"):
        return (yield)

    async def cancelled_in_time(**arguments: object) -> None:
        async with asyncio.timeout(seconds):
            await test(**arguments)

    pyfuncitem.obj = cancelled_in_time
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    seconds = _seconds_allowed(item)
    if not seconds or item.config.getoption("usepdb"):
        return (yield)
    timer = threading.Timer(seconds + 5, _end_hung_run, [item])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


def _seconds_allowed(item: pytest.Item) -> float:
    if marker := item.get_closest_marker("timeout"):
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    given = item.config.getoption("--timeout")
    return float(item.config.getini("timeout") or 0) if given is None else float(given)


def _end_hung_run(item: pytest.Item) -> None:
    if capture := item.config.pluginmanager.getplugin("capturemanager"):
        capture.suspend_global_capture(in_=True)
    print(f"\n\n{item.nodeid} hangs and cannot be ended: the run ends here.\n", file=sys.stderr)
    for task in [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task) and not thing.done()]:
        print(f"{task.get_name()} waits in", file=sys.stderr)
        for frame in _frames_of(task.get_coro()):
            print(f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}", file=sys.stderr)
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)


def _frames_of(awaited: object) -> Iterator[FrameType]:
    """The whole chain of awaits: `Task.get_stack` ends at the first one."""
    while awaited is not None:
        for kind in ("cr", "ag", "gi"):
            if frame := getattr(awaited, f"{kind}_frame", None):
                yield frame
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:  # what an `asend` or a `__await__` stands for is known to the garbage collector alone
            inner = [thing for thing in gc.get_referents(awaited) if isasyncgen(thing) or iscoroutine(thing)]
            awaited = inner[0] if inner else None


# --- in CI a skipped test is a failed one ---------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="a skipped test fails, but for the few allowed reasons"
    )
    parser.addoption(
        "--fault", action="append", type=int, default=[], metavar="N", help="only the tests of this fault"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    # Many tests wait for a process, or for a while: one more than there are cores keeps these at work.
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    # The tests themselves stay to the end: the collector need not look through all of them again and again.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    end_the_starter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    choose(config, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--no-skips") and report.skipped and not hasattr(report, "wasxfail"):
        _fail_forbidden_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("--no-skips") and report.skipped:
        _fail_forbidden_skip(report)
    return report


def _fail_forbidden_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, and with --no-skips this reason is not allowed: {reason}"
