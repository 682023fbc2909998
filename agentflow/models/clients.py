"""SDKs and their clients: imported without holding up the event loop, and one client for each loop and
account, so that connections are reused and never carried to another loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

Client = TypeVar("Client")

_imported: set[str] = set()


@dataclass
class _OfLoop:
    clients: dict[Hashable, object] = field(default_factory=dict)
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    holders: int = 0


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _OfLoop] = WeakKeyDictionary()


def shared_client(
    key: Hashable, make: Callable[[], Client], *, close: Callable[[Client], Awaitable[None]]
) -> Client:
    """The running loop's client for `key` (provider, base URL, account), made on first use."""
    of_loop = _of_running_loop()
    if key not in of_loop.clients:
        client = make()
        of_loop.clients[key] = client
        of_loop.closers.append(lambda: close(client))
    return cast(Client, of_loop.clients[key])


async def imported(*modules: str) -> None:
    """Have these modules imported, in a thread the first time.

    An SDK takes seconds to import. A worker whose event loop stood still for so long would lose its leases.
    """
    missing = [module for module in modules if module not in _imported]
    if missing:
        await asyncio.to_thread(lambda: [import_module(module) for module in missing])
        _imported.update(missing)


@asynccontextmanager
async def held_clients() -> AsyncIterator[None]:
    """Keep the running loop's clients open; the last one to leave closes them."""
    of_loop = _of_running_loop()
    of_loop.holders += 1
    try:
        yield
    finally:
        of_loop.holders -= 1
        if of_loop.holders == 0:
            await close_clients()


async def close_clients() -> None:
    """Close the running loop's clients now; the next call makes new ones."""
    of_loop = _of_running_loop()
    closers = [*of_loop.closers]
    of_loop.clients.clear()
    of_loop.closers.clear()
    for close in closers:
        await close()


def _of_running_loop() -> _OfLoop:
    return _loops.setdefault(asyncio.get_running_loop(), _OfLoop())
