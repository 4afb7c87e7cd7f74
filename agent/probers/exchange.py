"""One request and its response on one fresh connection, with the moment at which each phase ended.

Below it is a plain wire; TLS is spoken through `ssl.MemoryBIO` above it, which is cheaper than the loops' own and
sees the end of connecting and the end of the handshake apart. A phase ends when the event was seen that ends it, and
not when its turn came to be worked on.
"""

import asyncio
import ssl
import time
from typing import NamedTuple

from agent.probers import faults
from agent.probers.http1 import Response
from agent.probers.result import Attribution, Error, ErrorCode, Phase, Phases, Tls, ms
from agent.probers.tls import facts, failure_of
from agent.probers.wire import Wire

MOST_HANDSHAKE = 256 << 10  # bytes of TLS beside the answer: the handshake, its chain of certificates, what comes later

_RECORD = 16 << 10  # bytes that one TLS record holds at most
_ALERT = b"\x15"  # the type of a TLS record (RFC 8446, section 5.1)


class TlsUse(NamedTuple):
    """How TLS is spoken on a connection; `server_name` is verified, and sent when it is no address."""

    context: ssl.SSLContext
    server_name: str
    verify: bool


class Outcome(NamedTuple):
    """How an exchange went; `phases` are without `resolve`; `resent`: see `Result`."""

    phases: Phases
    error: Error | None
    tls: Tls | None
    resent: bool


async def exchange(
    address: str,
    port: int,
    tls: TlsUse | None,
    request: bytes,
    response: Response,
    *,
    started: float,
    connect_deadline: float,
    deadline: float,
    source: str | None = None,
) -> Outcome:
    """Connects to a numeric address, sends `request`, reads until `response` is complete, and hangs up.

    `started` and the deadlines: seconds of `time.monotonic`. `source`: see `Target`. Raises nothing but
    `asyncio.CancelledError`.
    """
    connection = _Connection(address, tls, request, response, deadline, source)
    try:
        connection.begin(port, connect_deadline)
        await connection.done
    finally:
        connection.release()
    return connection.outcome(started)


class _Connection:
    """The `End` of a wire. The marks are seconds of `time.monotonic`, None until their moment."""

    __slots__ = (
        "_address",
        "_beside",
        "_connected",
        "_deadline",
        "_end",
        "_error",
        "_facts",
        "_first_byte",
        "_incoming",
        "_outgoing",
        "_request",
        "_resent",
        "_response",
        "_secured",
        "_sent",
        "_session",
        "_source",
        "_tls",
        "_wire",
        "done",
    )

    def __init__(
        self,
        address: str,
        tls: TlsUse | None,
        request: bytes,
        response: Response,
        deadline: float,
        source: str | None,
    ) -> None:
        self._address, self._tls, self._request, self._response = address, tls, request, response
        self._deadline = deadline
        self._source = source
        self._wire = Wire(self)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO
        self._beside = 0
        self._connected: float | None = None
        self._secured: float | None = None
        self._sent: float | None = None
        self._first_byte: float | None = None
        self._end: float | None = None
        self._error: Error | None = None
        self._facts: Tls | None = None
        self._resent = False

    def begin(self, port: int, connect_deadline: float) -> None:
        """Begins to connect; `done` is when all of it is over."""
        if time.monotonic() >= connect_deadline:
            # What answers at once would be heard before the deadline is looked at, and after it redirect on and on.
            self.fail("connect_timeout", "path", "no time was left to connect")
            return
        try:
            self._wire.connect(self._address, port, connect_deadline, self._source)
        except OSError as error:
            self.failed(error)

    def connected(self, now: float) -> None:
        self._connected = now
        self._wire.expire_at(self._deadline)
        if self._tls is None:
            self._send(self._request)
            return
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context, name, _ = self._tls
        try:
            self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        except ValueError:
            self.fail("tls_hostname_mismatch", "target", "the host's name is none that a certificate can have")
        else:
            self._shake_hands()

    def received(self, data: bytes, now: float) -> None:
        if self._end is not None:
            return
        if self._session is None:
            self._take(data, now)
            return
        self._incoming.write(data)
        self._beside += len(data)
        if self._secured is None:
            self._shake_hands()
            now = time.monotonic()
        if self._secured is not None and self._end is None:
            self._read_session(now)

    def ended(self, now: float) -> None:
        self._peer_ended(now)

    def emptied(self, now: float) -> None:
        if self._sent is None and self._request == b"":
            self._sent = now

    def failed(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            self.expired()
        elif isinstance(error, OSError):
            self.fail(*faults.failure_of(error, self._address, self._source))
        elif not self.done.done():
            self.done.set_exception(error)

    def expired(self) -> None:
        self._resent = self._connected is not None and self._wire.resent()
        if self._connected is None:
            self.fail("connect_timeout", "path", "no answer to the connection attempt")
        elif self._tls is not None and self._secured is None:
            self.fail("tls_timeout", "path", "the TLS handshake did not end within the timeout")
        elif self._sent is None:
            self.fail("http_timeout_send", "path", "the server did not take the request within the timeout")
        elif self._response.status_code is None:
            self.fail("http_timeout_headers", "path", "the headers of an answer did not come within the timeout")
        else:
            told = f"the body did not end within the timeout; {self._response.body_bytes} bytes of it came"
            self.fail("http_timeout_body", "path", told)

    def fail(self, code: ErrorCode, attribution: Attribution, message: str) -> None:
        """Ends the exchange with an error in the phase it is in; one that has ended stays as it is."""
        if self._end is None:
            now = time.monotonic()
            self._error = Error(self._phase(), code, attribution, message)
            self._finish(now)

    def release(self) -> None:
        """Hangs up, and breaks the circles that would keep all this in memory until a collection."""
        if self._end is None:
            self._finish(time.monotonic())
        if self._session is not None and self._tls is not None:
            # Only now: it takes longer than sending the request does.
            self._facts = facts(self._session, verify=self._tls.verify, failed=self._secured is None)
        self._session = None
        self._response.release()

    def outcome(self, started: float) -> Outcome:
        """What came of it, once it has ended; the phases add up to the whole."""
        assert self._end is not None
        phases = Phases()
        begins = started
        marks: list[tuple[Phase, float | None]] = [("connect", self._connected)]
        if self._tls is not None:
            marks.append(("tls", self._secured))
        marks += [("send", self._sent), ("wait", self._first_byte), ("receive", None)]
        for phase, mark in marks:
            # What was there before its phase began, like an answer before the request was sent, took none of it.
            ends = max(self._end if mark is None else mark, begins)
            setattr(phases, phase, ms(ends - begins))
            begins = ends
            if mark is None:
                break
        return Outcome(phases, self._error, self._facts, self._resent)

    def _phase(self) -> Phase:
        if self._connected is None:
            return "connect"
        if self._tls is not None and self._secured is None:
            return "tls"
        if self._sent is None:
            return "send"
        return "wait" if self._first_byte is None else "receive"

    def _shake_hands(self) -> None:
        assert self._session is not None
        assert self._tls is not None
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            self._write(self._outgoing.read())
            self._bound_handshake()
        except ssl.SSLError as error:
            self._write(self._outgoing.read())  # the alert that tells the server why
            certificate = facts(self._session, verify=self._tls.verify, failed=True)
            self.fail(*failure_of(error, certificate_came=certificate is not None))
        else:
            self._secured = time.monotonic()
            self._session.write(self._request)
            self._send(self._outgoing.read())

    def _read_session(self, now: float) -> None:
        assert self._session is not None
        try:
            while self._end is None:
                if not (data := self._session.read(_RECORD)):
                    raise ssl.SSLZeroReturnError
                self._beside = max(0, self._beside - 2 * len(data))  # so it pays for the records around it, too
                self._take(data, now)
        except ssl.SSLWantReadError:
            reply = self._outgoing.read()
            self._write(reply)
            if reply.startswith(_ALERT):
                # OpenSSL tells the server that it will not, and us nothing.
                self.fail("tls_protocol", "target", "the server wanted to renegotiate TLS")
            self._bound_handshake()
        except ssl.SSLZeroReturnError:
            self._peer_ended(now)
        except ssl.SSLError as error:
            self.fail(*failure_of(error, certificate_came=True))

    def _bound_handshake(self) -> None:
        if self._beside > MOST_HANDSHAKE:
            self.fail("tls_protocol", "target", f"a TLS handshake of more than {MOST_HANDSHAKE >> 10} KiB")

    def _write(self, data: bytes) -> None:
        if data:
            self._wire.write(data)

    def _send(self, request: bytes) -> None:
        """Writes the request, which may be in TLS records."""
        self._request = b""  # on its way
        if self._wire.write(request):
            self._sent = time.monotonic()

    def _take(self, data: bytes, now: float) -> None:
        if self._sent is None:
            self._sent = now  # an answer before the request was all sent is taken
        if self._first_byte is None:
            self._first_byte = now
        self._response.feed(data)
        self._look(now)

    def _peer_ended(self, now: float) -> None:
        """The end of the stream (RFC 9112, section 9.8): an answer without a length ends with it, with or without TLS's
        own notice of closing, which too many servers leave out.
        """
        if self._end is not None:
            return
        if self._tls is not None and self._secured is None:
            self.fail("tls_handshake", "target", "the server closed the connection within the TLS handshake")
        else:
            self._response.feed_eof()
            self._look(now)

    def _look(self, now: float) -> None:
        if self._response.complete:
            self._finish(now)
        elif (failure := self._response.failure) is not None:
            self._error = Error(self._phase(), failure.code, "target", failure.message)
            self._finish(now)

    def _finish(self, now: float) -> None:
        self._end = now
        self._wire.close()
        if not self.done.done():
            self.done.set_result(None)
