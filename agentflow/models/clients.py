"""SDK clients, one for each event loop and account: connections are reused, and never carried to another
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar
from weakref import WeakKeyDictionary

Client = TypeVar("Client")

_clients: WeakKeyDictionary[
    asyncio.AbstractEventLoop, dict[Hashable, tuple[object, Callable[[], Awaitable[None]]]]
] = WeakKeyDictionary()


def shared_client(
    key: Hashable, make: Callable[[], Client], *, close: Callable[[Client], Awaitable[None]]
) -> Client:
    """The running loop's client for `key` (provider, base URL, account), made on first use."""
    of_loop = _clients.setdefault(asyncio.get_running_loop(), {})
    if key not in of_loop:
        client = make()
        of_loop[key] = (client, lambda: close(client))
    return of_loop[key][0]  # type: ignore[return-value]


async def close_clients() -> None:
    """Close the running loop's clients; the next call makes new ones."""
    for _, close in _clients.pop(asyncio.get_running_loop(), {}).values():
        await close()
