"""`safe_fetch` reads the open internet and nothing else: real servers on this machine, and a resolver that lies."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentflow import Agent, App, tool
from agentflow.errors import ConfigurationError, ToolFailed
from agentflow.testing import ScriptedModel, harness
from agentflow.web import is_public, safe_fetch
from tests.agents.support import call, results_in

HERE = ["127.0.0.1/32"]

Answer = Callable[[str], bytes | Awaitable[bytes]]


class Web:
    """A server on loopback, with what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.port = 0
        self.asked: list[str] = []
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.asked.append(request)
            answer = self._answer(request.split()[1])
            writer.write(answer if isinstance(answer, bytes) else await answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.closed.set()

    @property
    def paths(self) -> list[str]:
        return [request.split()[1] for request in self.asked]


@asynccontextmanager
async def serving(
    answer: Answer, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Web]:
    web = Web(answer)
    server = await asyncio.start_server(web.serve, host, port, ssl=tls)
    async with server:
        web.port = server.sockets[0].getsockname()[1]
        yield web


def http(
    body: bytes = b"hello", content_type: str = "text/plain", *more: str, status: str = "200 OK"
) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


def moved(to: str) -> bytes:
    return http(b"", "text/plain", f"Location: {to}", status="302 Found")


def names(**hosts: str | Sequence[str]) -> Any:
    """A resolver that knows these names (`_` for the dot); it counts how often it is asked."""

    async def resolve(host: str, port: int) -> list[str]:
        resolve.asked.append(host)  # type: ignore[attr-defined]
        found = hosts.get(host.replace(".", "_"))
        if found is None:
            raise OSError("no such host")
        return [found] if isinstance(found, str) else list(found)

    resolve.asked = []  # type: ignore[attr-defined]
    return resolve


# ----------------------------------------------------------------------------------------------- what is refused

VECTORS = [
    "http://127.0.0.1/",
    "http://localhost/",
    "http://localhost./",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://①②⑦.⓪.⓪.①/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://168.63.129.16/metadata",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://240.0.0.1/",
    "http://198.18.0.1/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:53aa:64c::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[::127.0.0.1]/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "http://user:secret@example.com/",
    "http://example.com\\@127.0.0.1/",
    "http://exam\nple.com/",
    " http://example.com/",
    "http:///path",
    "http://example.com:0/",
    "http://example.com:99999/",
    "//example.com/",
    "http://" + "a" * 9000,
    "http://" + "a" * 70 + ".com/",
]


@pytest.mark.parametrize("url", VECTORS, ids=lambda url: url[:60])
async def test_it_is_refused(url: str) -> None:
    with pytest.raises(ToolFailed) as refused:
        await safe_fetch(url)
    # Not every resolver knows a name with a dot at its end.
    assert str(refused.value).startswith(("Refused: ", "The host 'localhost.' is not known"))


@pytest.mark.parametrize("answer", ["10.0.0.7", ["93.184.216.34", "10.0.0.7"], ["2606:2800:220:1::1", "::1"]])
async def test_a_name_with_one_private_address_is_refused(answer: Any) -> None:
    resolve = names(public_test=answer)
    with pytest.raises(ToolFailed, match=r"'public\.test' is not a host of the public internet"):
        await safe_fetch("http://public.test/", resolve=resolve)


async def test_a_redirect_into_a_private_network_is_refused_before_it_is_asked() -> None:
    async with (
        serving(lambda path: moved(f"http://127.0.0.2:{inside.port}/secret")) as web,
        serving(lambda path: http(b"secret"), host="127.0.0.2") as hidden,
    ):
        inside = hidden
        with pytest.raises(ToolFailed, match="is not a host of the public internet"):
            await safe_fetch(f"http://127.0.0.1:{web.port}/", allow=HERE)
        assert (web.paths, hidden.asked) == (["/"], [])


@pytest.mark.parametrize("to", ["file:///etc/passwd", "gopher://x/", "http://user@127.0.0.1/"])
async def test_a_redirect_to_what_is_no_plain_url_is_refused(to: str) -> None:
    async with serving(lambda path: moved(to)) as web:
        with pytest.raises(ToolFailed, match="Refused"):
            await safe_fetch(f"http://127.0.0.1:{web.port}/", allow=HERE)


async def test_a_name_that_changes_its_address_is_still_fetched_from_the_one_that_was_looked_at() -> None:
    """DNS rebinding: the resolver says 127.0.0.1 (allowed here) once, and another address ever after."""
    answers = iter(["127.0.0.1"])

    async def resolve(host: str, port: int) -> list[str]:
        return [next(answers, "127.0.0.2")]

    async with (
        serving(lambda path: http(b"outside")) as web,
        serving(lambda path: http(b"secret"), host="127.0.0.2", port=web.port) as hidden,
    ):
        url = f"http://rebind.test:{web.port}/"
        assert (await safe_fetch(url, allow=HERE, resolve=resolve)).text == "outside"
        assert f"Host: rebind.test:{web.port}" in web.asked[0]
        with pytest.raises(ToolFailed, match="not a host of the public internet"):
            await safe_fetch(url, allow=HERE, resolve=resolve)
        assert hidden.asked == []


async def test_each_hop_is_resolved_once() -> None:
    async with serving(
        lambda path: moved(f"http://two.test:{web.port}/end") if path == "/" else http()
    ) as web:
        resolve = names(one_test="127.0.0.1", two_test="127.0.0.1")
        fetched = await safe_fetch(f"http://one.test:{web.port}/", allow=HERE, resolve=resolve)
        assert (fetched.url, fetched.text) == (f"http://two.test:{web.port}/end", "hello")
        assert resolve.asked == ["one.test", "two.test"]


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with serving(lambda path: http()) as web:
        resolve = names(both_test=["127.0.0.9", "127.0.0.1"])
        url = f"http://both.test:{web.port}/"
        assert (await safe_fetch(url, allow=["127.0.0.0/8"], resolve=resolve)).text == "hello"


async def test_too_many_redirects_are_refused() -> None:
    async with serving(lambda path: moved(path + "x")) as web:
        with pytest.raises(ToolFailed, match="more than 3 redirects"):
            await safe_fetch(f"http://127.0.0.1:{web.port}/", allow=HERE, max_redirects=3)
        assert web.paths == ["/", "/x", "/xx", "/xxx"]


async def test_headers_do_not_follow_to_another_origin() -> None:
    async with serving(lambda path: http()) as other:
        async with serving(
            lambda path: moved("/two") if path == "/" else moved(f"http://127.0.0.1:{other.port}/")
        ) as web:
            await safe_fetch(
                f"http://127.0.0.1:{web.port}/", allow=HERE, headers={"Authorization": "Bearer canary"}
            )
        assert ["canary" in request for request in web.asked] == [True, True]
        assert ["canary" in request for request in other.asked] == [False]


# ------------------------------------------------------------------------------------------------------ limits


async def test_what_says_that_it_is_too_large_is_not_read() -> None:
    async with serving(lambda path: http(b"x" * 101)) as web:
        with pytest.raises(ToolFailed, match="larger than 100 bytes"):
            await safe_fetch(f"http://127.0.0.1:{web.port}/", allow=HERE, max_bytes=100)
        assert len((await safe_fetch(f"http://127.0.0.1:{web.port}/", allow=HERE, max_bytes=101)).body) == 101


async def test_what_does_not_say_how_large_it_is_is_cut_off() -> None:
    endless = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"400\r\n" + b"x" * 0x400 + b"\r\n") * 5000
    )
    async with serving(lambda path: endless) as web:
        with pytest.raises(ToolFailed, match="larger than 10000 bytes"):
            await safe_fetch(f"http://127.0.0.1:{web.port}/", allow=HERE, max_bytes=10_000)
        await asyncio.wait_for(web.closed.wait(), 5)


async def test_a_server_that_answers_in_drips_runs_into_the_timeout() -> None:
    go_on = asyncio.Event()

    async def drip(path: str) -> bytes:
        await go_on.wait()
        return http()

    async with serving(drip) as web:
        with pytest.raises(TimeoutError, match=r"did not answer in full within 0\.2 s"):
            await safe_fetch(f"http://127.0.0.1:{web.port}/?key=canary", allow=HERE, timeout=0.2)
        go_on.set()
        await asyncio.wait_for(web.closed.wait(), 5)


async def test_packed_content_is_refused() -> None:
    async with serving(lambda path: http(b"\x1f\x8b", "text/plain", "Content-Encoding: gzip")) as web:
        with pytest.raises(ToolFailed, match="is packed"):
            await safe_fetch(f"http://127.0.0.1:{web.port}/", allow=HERE)
        assert "Accept-Encoding: identity" in web.asked[0]


async def test_only_the_wanted_content_types_are_read() -> None:
    async with serving(lambda path: http(b"%PDF", "application/pdf; version=1")) as web:
        url = f"http://127.0.0.1:{web.port}/"
        with pytest.raises(ToolFailed, match="the content is application/pdf, not one of text/"):
            await safe_fetch(url, allow=HERE)
        fetched = await safe_fetch(url, allow=HERE, content_types=["application/*"])
        assert (fetched.body, fetched.content_type) == (b"%PDF", "application/pdf")


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/html; charset=ISO-8859-1", b"caf\xe9", "café"),
        ("text/html", "café".encode(), "café"),
        ("text/html; charset=none-such", "café".encode(), "café"),
        ("text/plain", b"none \x00, half \xed\xa0\x80", "none \ufffd, half \ufffd\ufffd\ufffd"),
        ("application/problem+json", b"{}", "{}"),
    ],
)
async def test_text_is_read_in_its_character_set(content_type: str, body: bytes, text: str) -> None:
    async with serving(lambda path: http(body, content_type, status="404 Not Found")) as web:
        fetched = await safe_fetch(f"http://127.0.0.1:{web.port}/ä?q=ü#top", allow=HERE)
        assert (fetched.status, fetched.text) == (404, text)
        assert web.paths == ["/%C3%A4?q=%C3%BC"]


async def test_nobody_there_is_a_connection_error_that_a_step_retries() -> None:
    async with serving(lambda path: http()) as web:
        port = web.port
    with pytest.raises(ConnectionError, match="could not be fetched"):
        await safe_fetch(f"http://127.0.0.1:{port}/?key=canary", allow=HERE)


async def test_a_name_that_nobody_has_is_told() -> None:
    with pytest.raises(ToolFailed, match=r"'none\.test' is not known"):
        await safe_fetch("http://none.test/", resolve=names())


# --------------------------------------------------------------------------------------------------------- TLS


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's TLS, with a certificate for that name; the certificate is in the folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_tls_asks_for_the_name_and_not_for_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(lambda path: http(), tls=certificate(tmp_path, "right.test")) as web:
        resolve = names(right_test="127.0.0.1", wrong_test="127.0.0.1")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        right = await safe_fetch(f"https://right.test:{web.port}/", allow=HERE, resolve=resolve)
        assert right.text == "hello"
        with pytest.raises(ConnectionError, match="certificate"):
            await safe_fetch(f"https://wrong.test:{web.port}/", allow=HERE, resolve=resolve)
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ConnectionError, match="certificate"):
            await safe_fetch(f"https://right.test:{web.port}/", allow=HERE, resolve=resolve)


# ------------------------------------------------------------------------------------------------- in an agent


async def test_a_model_is_told_what_is_refused_and_the_run_goes_on() -> None:
    async with serving(lambda path: http(b"from the web")) as web:

        @tool
        async def read_page(url: str) -> str:
            """Read a page of the web."""
            return (await safe_fetch(url, allow=HERE)).text

        app = App("reader")
        agent = Agent("reader", model="test:none", tools=[read_page])
        app.add(agent)
        last: list[Any] = []
        model = ScriptedModel(
            [
                [
                    call("read_page", url=f"http://127.0.0.1:{web.port}/"),
                    call("read_page", url="http://169.254.169.254/"),
                ],
                lambda request: last.append(request) or "done",
            ]
        )
        async with harness(app, model=model) as h:
            run = await h.start(agent, "Go.")
            await h.idle()
            assert await run.result() == "done"
        page, refused = results_in(last[0])
        assert page == "from the web"
        assert refused == "Refused: '169.254.169.254' is not a host of the public internet."


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"allow": "10.0.0.0/8"}, "give a list"),
        ({"allow": ["10.0.0.1/8"]}, "has host bits set"),
        ({"headers": {"Host": "inside"}}, "the header 'Host' is its own"),
    ],
)
async def test_what_cannot_be_meant_is_a_configuration_error(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        await safe_fetch(
            "http://public.test/", resolve=names(public_test="127.0.0.1"), **{"allow": HERE} | given
        )


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946"])
def test_the_open_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
