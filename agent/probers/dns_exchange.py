"""One question to a DNS server and its answer, over UDP or TCP (RFC 1035, section 4.2), with each phase's end."""

import asyncio
import errno
import socket
import time
from typing import NamedTuple

from agent.device.source import leave_by
from agent.probers import dns, faults
from agent.probers.datagram import Datagrams
from agent.probers.icmp_packet import Unreachable
from agent.probers.result import Attribution, Error, ErrorCode, Phase, Phases, ms
from agent.probers.wire import Wire

MOST_OTHERS = 16  # messages that answer another question, of one connection over TCP


class Ask(NamedTuple):
    """The question; `message` is all of it."""

    name: bytes
    kind: int
    klass: int
    message_id: int
    message: bytes


class Outcome(NamedTuple):
    """How it went: an answer, whatever it says, or an error, or both when an answer is malformed."""

    phases: Phases
    error: Error | None
    answer: dns.Message | None


async def exchange(
    address: str, port: int, ask: Ask, deadline: float, *, tcp: bool, source: str | None = None
) -> Outcome:
    """Asks a numeric address until `deadline`, in seconds of `time.monotonic`. Raises only `asyncio.CancelledError`."""
    asking = _OverTcp(address, ask, source) if tcp else _OverUdp(address, ask, source)
    try:
        asking.begin(port, deadline)
        await asking.done
    finally:
        asking.close()
    return asking.outcome()


class _Exchange:
    """What both ways have in common. The moments are seconds of `time.monotonic`, None until they come."""

    def __init__(self, address: str, ask: Ask, source: str | None) -> None:
        self._address, self._ask, self._source = address, ask, source
        self._begun = self._ended = time.monotonic()
        self._marks: dict[Phase, float] = {}  # when those ended that were not the last
        self._phase: Phase = "send"
        self._error: Error | None = None
        self._answer: dns.Message | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Hangs up."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """See `End`."""
        if isinstance(error, OSError):
            self._fail(*faults.failure_of(error, self._address, self._source))
        elif not self.done.done():
            self.done.set_exception(error)

    def outcome(self) -> Outcome:
        """What came of it, once it has ended; the phases add up to the whole."""
        phases, begins = Phases(), self._begun
        for phase, ends in [*self._marks.items(), (self._phase, self._ended)]:
            setattr(phases, phase, ms(ends - begins))
            begins = ends
        return Outcome(phases, self._error, self._answer)

    def _pass(self, following: Phase, now: float) -> None:
        """A phase ended and another one began."""
        self._marks[self._phase] = now
        self._phase = following

    def _take(self, data: bytes, now: float) -> bool:
        """Whether this is the answer to the question."""
        ask = self._ask
        self._answer = dns.read(data, ask.name, ask.kind, ask.message_id, ask.klass)
        if self._answer is not None:
            self._end(now)
        return self._answer is not None

    def _fail(self, code: ErrorCode, attribution: Attribution, message: str) -> None:
        if not self.done.done():
            self._error = Error(self._phase, code, attribution, message)
            self._end(time.monotonic())

    def _end(self, now: float) -> None:
        if not self.done.done():
            self._ended = now
            self.done.set_result(None)
        self.close()


class _OverUdp(_Exchange):
    """The `End` of a socket of datagrams."""

    _socket: Datagrams | None = None

    def begin(self, port: int, deadline: float) -> None:
        """Sends the question."""
        try:
            made = socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET, socket.SOCK_DGRAM)
            try:
                if self._source is not None:
                    leave_by(made, self._source)
                self._socket = Datagrams(self, made)
                self._socket.connect(self._address, port)
                if not self._socket.send(self._ask.message):
                    raise OSError(errno.ENOBUFS, "no room for a first datagram")
            except OSError:
                made.close()
                raise
        except OSError as error:
            self._fail(*faults.failure_to_send(error))
        else:
            self._pass("wait", time.monotonic())
            self._socket.expire_at(deadline)

    def close(self) -> None:
        """See `_Exchange`."""
        if self._socket is not None:
            self._socket.close()

    def received(self, data: bytes, now: float) -> None:
        """See `End`; what is no answer to the question is passed over."""
        self._take(data, max(now, self._marks["send"]))

    def told(self, error: Unreachable, about: bytes, now: float) -> None:
        """See `End`."""
        assert self._socket is not None
        self._fail("dns_unreachable", *self._socket.who_says(error))

    def expired(self) -> None:
        """See `End`."""
        self._fail("dns_timeout", "path", "no answer to the question within the timeout")


class _OverTcp(_Exchange):
    """The `End` of a wire. An answer is one message of at most 64 KiB, as its length is two bytes long."""

    def __init__(self, address: str, ask: Ask, source: str | None) -> None:
        super().__init__(address, ask, source)
        self._wire = Wire(self)
        self._phase = "connect"
        self._received = b""
        self._others = 0

    def begin(self, port: int, deadline: float) -> None:
        """Begins to connect."""
        try:
            self._wire.connect(self._address, port, deadline, self._source)
        except OSError as error:
            self.failed(error)

    def close(self) -> None:
        """See `_Exchange`."""
        self._wire.close()

    def connected(self, now: float) -> None:
        """See `End`."""
        self._pass("send", now)
        if self._wire.write(len(self._ask.message).to_bytes(2, "big") + self._ask.message):
            self.emptied(time.monotonic())

    def emptied(self, now: float) -> None:
        """See `End`."""
        if self._phase == "send":
            self._pass("wait", now)

    def received(self, data: bytes, now: float) -> None:
        """See `End`; messages that are no answer to the question are passed over."""
        self.emptied(now)
        self._received += data
        while len(self._received) >= 2 and not self.done.done():
            length = int.from_bytes(self._received[:2], "big")
            if len(self._received) < 2 + length:
                break
            message, self._received = self._received[2 : 2 + length], self._received[2 + length :]
            if not self._take(message, now):
                self._others += 1
            if self._others > MOST_OTHERS:
                self._fail(
                    "dns_servfail", "target", f"more than {MOST_OTHERS} messages came that do not answer the question"
                )

    def ended(self, now: float) -> None:
        """See `End`."""
        self._fail("connect_reset", "target", "the server closed the connection before its answer was whole")

    def expired(self) -> None:
        """See `End`."""
        if self._phase == "connect":
            self._fail("connect_timeout", "path", "no answer to the connection attempt")
        else:
            self._fail("dns_timeout", "path", "no whole answer to the question within the timeout")
