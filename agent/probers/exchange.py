"""One request and its response on one fresh connection, with the moment at which each phase ended.

The transport is plain TCP; TLS is spoken through `ssl.MemoryBIO` above it, which is cheaper than the loops' own and
sees the end of connecting and the end of the handshake apart. The time of a phase is taken first thing in the
callback that ends it.
"""

import asyncio
import errno
import logging
import socket
import ssl
import time
from typing import NamedTuple, cast

from agent.probers.http1 import Response
from agent.probers.result import Attribution, Error, ErrorCode, Phase, Phases, Tls
from agent.probers.tls import facts, failure_of

log = logging.getLogger(__name__)

_READ = 64 << 10
_MOST_HANDSHAKE = 256 << 10  # bytes of a server's handshake, chain of certificates included

_LOCAL_RESOURCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_LOCAL_NETWORK = {errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.EACCES, errno.EPERM, errno.ENETUNREACH}


class TlsUse(NamedTuple):
    """How TLS is spoken on a connection; `server_name` is verified, and sent when it is no address."""

    context: ssl.SSLContext
    server_name: str
    verify: bool


class Outcome(NamedTuple):
    """How an exchange went; `phases` are without `resolve`, `seconds` is all of it."""

    phases: Phases
    seconds: float
    error: Error | None
    tls: Tls | None


async def exchange(
    address: str,
    port: int,
    request: bytes,
    response: Response,
    tls: TlsUse | None,
    started: float,
    connect_deadline: float,
    deadline: float,
) -> Outcome:
    """Connects to a numeric address, sends `request`, reads until `response` is complete, and hangs up.

    `started` and the deadlines: seconds of `time.monotonic`. Raises nothing but `asyncio.CancelledError`.
    """
    loop = asyncio.get_running_loop()
    connection = _Connection(loop, request, response, tls)
    try:
        async with asyncio.timeout(max(connect_deadline - time.monotonic(), 0.0)) as timeout:
            await loop.create_connection(lambda: connection, address, port)
            if connect_deadline < deadline:
                timeout.reschedule(loop.time() + max(deadline - time.monotonic(), 0.0))
            await connection.ended
    except TimeoutError:
        connection.time_out()
    except OSError as error:
        connection.fail(*_connect_failure(error, address))
    finally:
        connection.release()
    return connection.outcome(started)


def _connect_failure(error: OSError, address: str) -> tuple[ErrorCode, Attribution, str]:
    number, why = error.errno or 0, (error.strerror or str(error))[:200]
    if number == errno.ECONNREFUSED:
        return "connect_refused", "target", "the connection was refused"
    if number in _LOCAL_RESOURCE:
        return "local_resource", "local", f"this device could not open a connection: {why}"
    if number == errno.ENETUNREACH and has_route(address):
        return "connect_unreachable", "path", f"unreachable: {why}"
    if number in _LOCAL_NETWORK:
        return "local_network", "local", f"this device could not connect: {why}"
    if number == errno.ETIMEDOUT:
        return "connect_timeout", "path", "no answer to the connection attempt"
    if number in (errno.EHOSTUNREACH, errno.EHOSTDOWN):
        return "connect_unreachable", "path", f"unreachable: {why}"
    if number == errno.ECONNRESET:
        return "connect_reset", "target", "the connection was reset"
    return "connect_unreachable", "path", f"cannot connect: {why}"


def has_route(address: str) -> bool:
    """Asks this device's routing table: connecting a datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((address, 9))
    except OSError:
        return False
    return True


class _Connection(asyncio.Protocol):
    """The marks are seconds of `time.monotonic`, None until their moment."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: bytes, response: Response, tls: TlsUse | None) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self._request, self._response, self._tls = request, response, tls
        self._transport: asyncio.Transport | None = None
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO
        self._session: ssl.SSLObject | None = None
        self._handshake_bytes = 0
        self._connected: float | None = None
        self._secured: float | None = None
        self._sent: float | None = None
        self._first_byte: float | None = None
        self._end: float | None = None
        self._error: Error | None = None
        self._facts: Tls | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connected = time.monotonic()
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        # So that `resume_writing` tells the moment at which the kernel has all of the request.
        self._transport.set_write_buffer_limits(0)
        if self._tls is None:
            self._send(self._request)
        else:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._session = self._tls.context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=self._tls.server_name
            )
            self._shake_hands()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._end is not None:
            return
        if self._session is None:
            self._received(data, now)
            return
        self._incoming.write(data)
        if self._secured is None:
            self._handshake_bytes += len(data)
            self._shake_hands(now)
        if self._secured is not None and self._end is None:
            self._read_session(now)

    def eof_received(self) -> None:
        self._ended_by_peer(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended_by_peer(exc)

    def resume_writing(self) -> None:
        if self._sent is None and self._request == b"":
            self._sent = time.monotonic()

    def time_out(self) -> None:
        """The deadline came first."""
        if self._end is not None:
            return
        code: ErrorCode
        if self._connected is None:
            code, message = "connect_timeout", "no answer to the connection attempt"
        elif self._tls is not None and self._secured is None:
            code, message = "tls_timeout", "the TLS handshake did not end"
        elif self._sent is None:
            code, message = "http_timeout_send", "the server did not take the request"
        elif self._response.status_code is None:
            code, message = "http_timeout_headers", "the headers of an answer did not come"
        else:
            code = "http_timeout_body"
            message = f"the body did not end; {self._response.body_bytes} bytes of it came"
        self.fail(code, "path", f"{message} within the timeout")

    def fail(self, code: ErrorCode, attribution: Attribution, message: str, now: float | None = None) -> None:
        """Ends the exchange with an error in the phase it is in."""
        if self._end is None:
            self._error = Error(self._phase(), code, attribution, message[:500])
            self._finish(time.monotonic() if now is None else now)

    def release(self) -> None:
        """Hangs up, and breaks the circles that would keep all this in memory until a collection."""
        if self._transport is not None:
            self._transport.abort()
        self._transport = self._session = None
        self._response.release()

    def outcome(self, started: float) -> Outcome:
        """What came of it; the phases add up to the whole."""
        end = self._end if self._end is not None else time.monotonic()
        phases = Phases()
        begins = started
        marks: list[tuple[Phase, float | None]] = [
            ("connect", self._connected),
            ("send", self._sent),
            ("wait", self._first_byte),
            ("receive", None),
        ]
        if self._tls is not None:
            marks.insert(1, ("tls", self._secured))
        for phase, mark in marks:
            ends = end if mark is None else mark
            setattr(phases, phase, round((ends - begins) * 1000, 3))
            begins = ends
            if mark is None:
                break
        return Outcome(phases, end - started, self._error, self._facts)

    def _phase(self) -> Phase:
        if self._connected is None:
            return "connect"
        if self._tls is not None and self._secured is None:
            return "tls"
        if self._sent is None:
            return "send"
        return "wait" if self._first_byte is None else "receive"

    def _shake_hands(self, now: float | None = None) -> None:
        assert self._session is not None
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            self._flush_session()
            if self._handshake_bytes > _MOST_HANDSHAKE:
                self.fail("tls_protocol", "target", f"a handshake of more than {_MOST_HANDSHAKE >> 10} KiB")
            return
        except ssl.SSLError as error:
            self._flush_session()  # the alert that tells the server why
            self._take_facts(failed=True)
            self.fail(*failure_of(error), now)
            return
        except ValueError as error:  # a server name that OpenSSL cannot match
            self.fail("tls_hostname_mismatch", "target", f"the name cannot be verified: {error}", now)
            return
        self._secured = time.monotonic() if now is None else now
        self._take_facts(failed=False)
        self._session.write(self._request)
        self._flush_session(request=True)

    def _read_session(self, now: float) -> None:
        assert self._session is not None
        try:
            while self._end is None:
                data = self._session.read(_READ)
                if not data:
                    self._ended_by_peer(None)
                    return
                self._received(data, now)
        except ssl.SSLWantReadError:
            self._flush_session()
        except ssl.SSLError as error:
            if isinstance(error, ssl.SSLZeroReturnError):
                self._ended_by_peer(None)
            else:
                self.fail(*failure_of(error), now)

    def _take_facts(self, *, failed: bool) -> None:
        assert self._session is not None
        assert self._tls is not None
        self._facts = facts(self._session, verify=self._tls.verify, failed=failed)

    def _flush_session(self, *, request: bool = False) -> None:
        if data := self._outgoing.read():
            if request:
                self._send(data)
            elif self._transport is not None:
                self._transport.write(data)

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        self._request = b""  # on its way
        self._transport.write(data)
        if self._transport.get_write_buffer_size() == 0:
            self._sent = time.monotonic()

    def _received(self, data: bytes, now: float) -> None:
        if self._sent is None:
            self._sent = now  # an answer before the request was all sent is taken
        if self._first_byte is None:
            self._first_byte = now
        self._response.feed(data)
        self._look(now)

    def _look(self, now: float) -> None:
        if self._response.complete:
            self._finish(now)
        elif (failure := self._response.failure) is not None:
            self.fail(failure.code, "target", failure.message, now)

    def _ended_by_peer(self, error: Exception | None) -> None:
        """The end of the stream (RFC 9112, section 9.8): an answer without a length ends with it, with or without TLS's
        own notice of closing, which too many servers leave out.
        """
        now = time.monotonic()
        if self._end is not None:
            return
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            if error.errno == errno.ETIMEDOUT:
                self.time_out()
            else:
                self.fail("connect_unreachable", "path", f"the connection broke: {error.strerror or error}", now)
        elif error is not None:
            self.fail("connect_reset", "target", "the connection was reset", now)
        elif self._tls is not None and self._secured is None:
            self.fail("tls_handshake", "target", "the server closed the connection within the TLS handshake", now)
        else:
            self._response.feed_eof()
            self._look(now)

    def _finish(self, now: float) -> None:
        self._end = now
        if not self.ended.done():
            self.ended.set_result(None)
