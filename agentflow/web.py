"""`safe_fetch`: an HTTP GET of a URL that a stranger chose, such as a model that has read a web page.

What it keeps from happening is that our own network is read through it (SSRF). A name is resolved once, every address
it has must be one of the open internet, and the connection goes to an address that was looked at: who changes the
name's address in between (DNS rebinding) changes nothing. Each redirect is looked at in the same way.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from agentflow.durations import Duration, parse_duration
from agentflow.errors import ConfigurationError, ToolFailed
from agentflow.roundtrip import storable_text

if TYPE_CHECKING:
    from httpcore2 import AsyncNetworkBackend, Response

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and a port to the host's addresses."""

TEXTS = (
    "text/*",
    "application/json",
    "application/*+json",
    "application/xml",
    "application/*+xml",
    "application/javascript",
)
MOST_URL_CHARACTERS = 8192
_REDIRECTS = (301, 302, 303, 307, 308)
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]+)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True)
class Fetched:
    """What a URL gave."""

    url: str
    """Where it came from at last, after redirects."""
    status: int
    content_type: str
    """Without parameters, in small letters; `""` where the server did not say."""
    body: bytes = field(repr=False)
    charset: str = "utf-8"

    @property
    def text(self) -> str:
        """The body as text; what is none in its character set, or cannot be stored (NUL), is U+FFFD."""
        try:
            text = self.body.decode(self.charset, "replace")
        except LookupError:
            text = self.body.decode("utf-8", "replace")
        return storable_text(text)


async def safe_fetch(
    url: str,
    *,
    timeout: Duration = "20s",
    max_bytes: int = 1_000_000,
    max_redirects: int = 5,
    content_types: Sequence[str] = TEXTS,
    headers: Mapping[str, str] | None = None,
    allow: Iterable[str] = (),
    resolve: Resolve | None = None,
) -> Fetched:
    """GET a URL, http or https, that is not to be trusted; any status is an answer.

    `timeout` is for all of it, redirects and body too. `allow` names networks of yours that may be read all the same
    ("10.1.2.0/24"). `headers` are sent to the URL's own origin only. Proxies of the environment are not used: they
    would resolve the name again. Raises `ToolFailed`, which a model is told, for what is refused (the address, the
    size, the content type); `TimeoutError` and `ConnectionError`, which a step retries.

        @tool
        async def read_page(url: str) -> str:
            "Read a page of the web."
            return (await safe_fetch(url)).text
    """
    seconds = parse_duration(timeout).total_seconds()
    networks = _networks(allow)
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            guard = _Guard(resolve or _resolve, networks)
            fetching = _Fetching(guard, max_bytes=max_bytes, content_types=tuple(content_types))
            return await fetching.follow(url, dict(headers or {}), max_redirects)
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"{_shown(url)} did not answer in full within {seconds:g} s (timeout=)") from None


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the open internet: nobody's private network, and no way around into one."""
    if isinstance(address, IPv4Address):
        return (
            address.is_global
            and not (address.is_multicast or address.is_reserved)
            and not any(address in network for network in _SPECIAL_V4)
        )
    if address.scope_id or address not in _GLOBAL_UNICAST or not address.is_global:
        return False  # among them what stands for an IPv4 address: mapped, translated
    return address.sixtofour is None or is_public(address.sixtofour)


_GLOBAL_UNICAST = IPv6Network("2000::/3")
_SPECIAL_V4 = (
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv4Network("168.63.129.16/32"),  # a cloud's own services, at a public address
)


class _Guard:
    """Says which addresses a host may be reached at."""

    def __init__(self, resolve: Resolve, allowed: Sequence[IPv4Network | IPv6Network]) -> None:
        self._resolve = resolve
        self._allowed = allowed

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of the host, resolved once. Raises `ToolFailed` when one of them may not be reached."""
        try:
            found = [ip_address(address) for address in await self._resolve(host, port)]
        except (OSError, UnicodeError) as error:
            raise ToolFailed(f"The host {host!r} is not known: {error}") from error
        if not found:
            raise ToolFailed(f"The host {host!r} is not known.")
        for address in found:
            if not self._may_reach(address):
                # Not which address it is: that would be a look into our network.
                raise ToolFailed(f"Refused: {host!r} is not a host of the public internet.")
        return [str(address) for address in found]

    def _may_reach(self, address: IPv4Address | IPv6Address) -> bool:
        if is_public(address):
            return True
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address.version == network.version and address in network for network in self._allowed)


class _Fetching:
    def __init__(self, guard: _Guard, *, max_bytes: int, content_types: tuple[str, ...]) -> None:
        self._guard = guard
        self._max_bytes = max_bytes
        self._content_types = content_types

    async def follow(self, url: str, headers: dict[str, str], max_redirects: int) -> Fetched:
        for _ in range(max_redirects + 1):
            parts = _checked(url)
            answer = await self._get(parts, headers)
            if isinstance(answer, Fetched):
                return answer
            target = _checked(urljoin(url, answer))
            if _origin(target) != _origin(parts):
                headers = {}
            url = urlunsplit(target)
        raise ToolFailed(f"Refused: more than {max_redirects} redirects.")

    async def _get(self, parts: SplitResult, headers: Mapping[str, str]) -> Fetched | str:
        """What is there, or where it has moved."""
        import httpcore2

        host, port = _origin(parts)[1:]
        addresses = await self._guard.addresses(host, port)
        context = (
            await asyncio.to_thread(ssl.create_default_context)
            if parts.scheme == "https"
            else _no_certificates()
        )
        sent = _headers(headers)
        target = parts._replace(fragment="").geturl()
        try:
            async with (
                httpcore2.AsyncConnectionPool(
                    ssl_context=context, network_backend=_pinned(addresses), max_connections=1
                ) as pool,
                pool.stream("GET", target, headers=sent) as response,
            ):
                return await self._read(parts, response)
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            reason = str(error) or type(error).__name__
            raise ConnectionError(f"{_shown(target)} could not be fetched: {reason}") from error
        except httpcore2.UnsupportedProtocol as error:
            raise ToolFailed(f"Refused: {error}") from error

    async def _read(self, parts: SplitResult, response: Response) -> Fetched | str:
        given = {
            name.decode("ascii", "replace").lower(): value.decode("latin-1")
            for name, value in response.headers
        }
        if response.status in _REDIRECTS and "location" in given:
            return given["location"]
        content_type, _, parameters = given.get("content-type", "").partition(";")
        content_type = content_type.strip().lower()
        if content_type and not any(
            fnmatch.fnmatchcase(content_type, pattern) for pattern in self._content_types
        ):
            raise ToolFailed(
                f"Refused: the content is {content_type}, not one of {', '.join(self._content_types)}."
            )
        if given.get("content-encoding", "identity").lower() != "identity":
            # It was not asked for; a few packed bytes may be gigabytes.
            raise ToolFailed("Refused: the content is packed, although it was asked for as it is.")
        length = given.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        async with aclosing(response.aiter_stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > self._max_bytes:
                    raise self._too_large()
        charset = _CHARSET.search(parameters)
        return Fetched(
            url=urlunsplit(parts),
            status=response.status,
            content_type=content_type,
            body=bytes(body),
            charset=charset[1] if charset else "utf-8",
        )

    def _too_large(self) -> ToolFailed:
        return ToolFailed(f"Refused: the content is larger than {self._max_bytes} bytes.")


def _pinned(addresses: Sequence[str]) -> AsyncNetworkBackend:
    """Connects to these addresses, whatever the name in the URL is by now; TLS still asks for that name."""
    import httpcore2

    class Pinned(httpcore2.AnyIOBackend):
        async def connect_tcp(self, host: str, port: int, *given: Any, **options: Any) -> Any:
            failure: Exception | None = None
            for address in addresses:
                try:
                    return await super().connect_tcp(address, port, *given, **options)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                    failure = error
            assert failure is not None
            raise failure

    return Pinned()


def _checked(url: str) -> SplitResult:
    """The URL's parts. Raises `ToolFailed` for what is no plain URL of the web."""
    if len(url) > MOST_URL_CHARACTERS:
        raise ToolFailed(f"Refused: the URL has more than {MOST_URL_CHARACTERS} characters.")
    if _CONTROL.search(url):
        raise ToolFailed("Refused: the URL has characters in it that no URL has.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ToolFailed(f"Refused: that is no URL: {error}.") from error
    if parts.scheme not in ("http", "https"):
        raise ToolFailed(f"Refused: {parts.scheme or 'no scheme'} is neither http nor https.")
    if not parts.hostname or port == 0:
        raise ToolFailed("Refused: the URL names no host.")
    if "@" in parts.netloc:
        raise ToolFailed("Refused: the URL has a user or a password in it.")
    host = parts.hostname
    try:
        ascii_host = host if ":" in host else host.encode("idna").decode()
    except UnicodeError as error:
        raise ToolFailed(f"Refused: {host[:100]!r} is no host name: {error}.") from error
    shown = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    path = re.sub(r"[^!-~]", _percent, parts.path or "/")
    query = re.sub(r"[^!-~]", _percent, parts.query)
    return SplitResult(parts.scheme, shown if port is None else f"{shown}:{port}", path, query, "")


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "replace"))


def _headers(given: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    ours = {"User-Agent": "agentflow", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    for name in given:
        if name.lower() in ("host", "accept-encoding", "connection", "content-length", "transfer-encoding"):
            raise ConfigurationError(f"safe_fetch: the header {name!r} is its own")
    names = {name.lower() for name in given}
    every = {name: value for name, value in ours.items() if name.lower() not in names} | dict(given)
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in every.items()]


def _networks(allow: Iterable[str]) -> list[IPv4Network | IPv6Network]:
    if isinstance(allow, str):
        raise ConfigurationError(f"safe_fetch: allow={allow!r}: give a list of networks")
    try:
        return [ip_network(network) for network in allow]
    except ValueError as error:
        raise ConfigurationError(f"safe_fetch: allow=: {error}") from error


def _no_certificates() -> ssl.SSLContext:
    # For plain http: reading all the certificates of the machine takes longer than the request.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _shown(url: str) -> str:
    """A URL for a message: its query may hold a key."""
    return url.partition("?")[0][:200]


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
