"""A server on loopback that says what a test tells it to, whatever HTTP and TLS have to say about it."""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from agent.config.model import BasicAuth, Expect, Target, TlsOptions
from agent.probers.http import HttpProber
from agent.probers.resolver import Resolver
from agent.probers.result import Result
from agent.probers.tls import context_of
from tests.probers.dns_server import DnsServer

RESET = object()  # cuts the connection with an RST
HOLD = object()  # says no more, and waits for the other side to go

CONTEXT = context_of(TlsOptions())  # kept, as the daemon's probers keep it: making one takes 20 ms
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Site:
    """`requests`: head and body of each that came; `sent`: bytes that the kernel took; `port`: where it listens."""

    def __init__(self, behaviour: "Behaviour", host: str, tls: bool) -> None:
        self._behaviour = behaviour
        self.requests: list[bytes] = []
        self.connections = 0
        self.sent = 0
        self.port = 0
        self._host, self._scheme = host, "https" if tls else "http"
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, path: str = "/", name: str | None = None) -> str:
        """A URL of this site, by address unless a `name` is given."""
        host = name or (f"[{self._host}]" if ":" in self._host else self._host)
        return f"{self._scheme}://{host}:{self.port}{path}"

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        try:
            await self._behaviour(self, reader, writer)
        except (OSError, EOFError, RuntimeError, asyncio.CancelledError):
            pass  # the prober has gone, which uvloop calls a RuntimeError, or the test has ended
        finally:
            writer.close()
            self._tasks.discard(asyncio.current_task())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


Behaviour = Callable[[Site, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Part = bytes | float | object | Iterable[Any]


def answers(*parts: Part) -> Behaviour:
    """Reads the request, then says the parts: bytes, pauses in seconds, `RESET`, `HOLD`, or iterables of them."""

    async def behaviour(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.requests.append(await request_of(reader))
        await say(site, reader, writer, parts)

    return behaviour


def says(*parts: Part) -> Behaviour:
    """The same, at once, whatever is asked."""

    async def behaviour(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(site, reader, writer, parts)

    return behaviour


def paths(**answered: bytes | Behaviour) -> Behaviour:
    """An answer for each path (`a` is `/a`, `_` is `/`), 404 for others."""

    async def behaviour(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await request_of(reader)
        site.requests.append(request)
        name = request.split()[1].decode().split("?")[0].removeprefix("/") or "_"
        await say(site, reader, writer, [answered.get(name, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")])

    return behaviour


def redirect(location: str | bytes, status: int = 302) -> bytes:
    where = location if isinstance(location, bytes) else location.encode()
    return b"HTTP/1.1 %d Moved\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, where)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


async def say(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parts: Iterable[Part]) -> None:
    for part in parts:
        if isinstance(part, bytes):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)  # what is written to nobody is neither refused nor waited for until the loop has run
            site.sent += len(part)
        elif isinstance(part, float):
            await asyncio.sleep(part)
        elif part is RESET:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif part is HOLD:
            while await reader.read(1 << 16):
                pass
        else:
            await say(site, reader, writer, part)


@contextlib.asynccontextmanager
async def site(
    behaviour: Behaviour,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | bool = False,
    *,
    bound: socket.socket | None = None,
) -> AsyncIterator[Site]:
    """A site on a free port of `host`, or on a socket that is `bound` there.

    `tls`: True leaves it to the behaviour to speak TLS, or not to.
    """
    visited = Site(behaviour, host, bool(tls))
    context = None if isinstance(tls, bool) else tls
    if bound is None:
        listener = await asyncio.start_server(visited.visit, host, 0, ssl=context)
    else:
        listener = await asyncio.start_server(visited.visit, sock=bound, ssl=context)
    visited.port = listener.sockets[0].getsockname()[1]
    try:
        yield visited
    finally:
        listener.close()
        await visited.close()
        await asyncio.sleep(0.01)  # the transports close in the next turns of the loop


def target_of(url: str, **options: Any) -> Target:
    """A target; `tls`, `basic_auth` and `status` may be given as plain data."""
    if isinstance(options.get("tls"), dict):
        options["tls"] = TlsOptions(**options["tls"])
    if isinstance(options.get("basic_auth"), tuple):
        options["basic_auth"] = BasicAuth(*options["basic_auth"])
    if "status" in options:
        options["expect"] = Expect(tuple(options.pop("status")))
    return Target(options.pop("id", "t"), url, options.pop("shown_url", url), 30.0, 10.0, **options)


async def measure(
    url: str, timeout: float = 5.0, *, files: Resolver | None = None, server: DnsServer | None = None, **options: Any
) -> Result:
    """Probes once, and checks what holds of every result: in time, and phases that are the whole.

    Names are resolved by `files`, or by a DNS `server` of the test's as the target's `resolver`.
    """
    if server is not None:
        options["resolver"] = f"127.0.0.1:{server.port}"
    prober = HttpProber(target_of(url, **options), files or Resolver())
    begun = time.monotonic()
    result = await prober.probe(begun + timeout)
    took = time.monotonic() - begun
    assert took <= timeout + 0.3, f"returned {took - timeout:.3f} s after its deadline"
    assert result.duration_ms <= took * 1000 + 1
    phases = [getattr(result.phases_ms, phase) for phase in ("resolve", "connect", "tls", "send", "wait", "receive")]
    if not result.attempts and (result.http is None or not result.http.redirects):
        assert abs(sum(phase or 0 for phase in phases) - result.duration_ms) < 1
    assert all(phase is None or phase >= 0 for phase in phases)
    return result


def reached(result: Result) -> list[str]:
    """The names of the phases that were reached, in order."""
    names = ("resolve", "connect", "tls", "send", "wait", "receive")
    return [name for name in names if getattr(result.phases_ms, name) is not None]


def failure(result: Result) -> tuple[str, str, str] | None:
    """Code, phase and attribution."""
    error = result.error
    return None if error is None else (error.code, error.phase, error.attribution)
