"""The prober for `icmp`: echoes to one address, of which only the replies to these very ones count, each once.

The echoes are spread over the first half of the time: they are sent at even distance, and at most a second apart. So
each has at least half of the time for its reply, and a quarter when this device was held up; what it could not send by
then is not sent. Random bytes in the payload tell them from the echoes of others and of earlier probes.
"""

import asyncio
import errno
import math
import secrets
import socket
import struct
import time
from urllib.parse import urlsplit

from agent.config.masking import MASK, Mask
from agent.config.model import Secret, Target
from agent.device.source import leave_by
from agent.probers import faults, icmp_packet
from agent.probers.datagram import Datagrams
from agent.probers.families import measure
from agent.probers.icmp_packet import Unreachable
from agent.probers.resolver import Resolver
from agent.probers.result import Attribution, Error, ErrorCode, Icmp, Peer, Phases, Result, RoundTrips, ms

LONGEST_GAP = 1.0  # seconds between two echoes at most

_TOKEN = 8  # random bytes that the payload begins with
_FILLER = bytes(range(256)) * 256
_NOT_ALLOWED = (
    "this device may not send ICMP: neither a ping socket, for which net.ipv4.ping_group_range must hold the agent's "
    "group (sysctl net.ipv4.ping_group_range='0 2147483647'), nor a raw one, which takes CAP_NET_RAW"
)
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1  # <linux/icmp.h>, icmpv6.h: bits of the types that are left out
_REPLIES_ONLY = struct.pack("=I", 0xFFFFFFFF ^ 1 << 0)
_REPLIES_ONLY_6 = struct.pack("=8I", *[0xFFFFFFFF ^ (1 << 129 % 32 if word == 129 // 32 else 0) for word in range(8)])


class IcmpProber:
    """Measures one host by ICMP echoes."""

    type = "icmp"

    def __init__(self, target: Target, resolver: Resolver) -> None:
        self._target, self._resolver = target, resolver
        self._host = urlsplit(target.url).hostname or ""
        self._mask = Mask((target, Secret(self._host)) if target.shown_url == MASK else target)

    async def probe(self, deadline: float) -> Result:
        """Measures until `deadline` (seconds of `time.monotonic`); see `Prober`."""
        return await measure(self._target, self._host, self._resolver, deadline, self._try, self._mask)

    async def _try(self, address: str, deadline: float) -> Result:
        echoes = _Echoes(address, self._target.count, self._target.size, deadline)
        try:
            echoes.begin(self._target.source)
            await echoes.done
        finally:
            echoes.close()
        return echoes.result(self._target.expect.loss)


class _Echoes:
    """The `End` of a socket. Moments are seconds of `time.monotonic`; echoes are numbered from 1."""

    def __init__(self, address: str, count: int, size: int, deadline: float) -> None:
        self._address, self._six = address, ":" in address
        self._count, self._deadline = count, deadline
        self._payload = secrets.token_bytes(_TOKEN) + _FILLER[: size - _TOKEN]
        self._identifier = secrets.randbits(16)
        self._begun = self._ended = time.monotonic()
        left = max(deadline - self._begun, 0.0)
        self._gap, self._latest = min(left / 2 / count, LONGEST_GAP), deadline - left / 4
        self._first_sent: float | None = None
        self._sent: dict[int, float] = {}
        self._trips: dict[int, float] = {}
        self._unreachable: dict[int, tuple[Attribution, str]] = {}
        self._next = 1
        self._raw = False
        self._socket: Datagrams | None = None
        self._fault: tuple[ErrorCode, Attribution, str] | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, source: str | None) -> None:
        """Sends the first echo, from `source`; `done` is when all of it is over."""
        try:
            made, self._raw = _open(six=self._six)
        except PermissionError:
            self._end(time.monotonic(), ("local_resource", "local", _NOT_ALLOWED))
            return
        except OSError as error:
            self._end(time.monotonic(), faults.failure_to_send(error))
            return
        try:
            if source is not None:
                leave_by(made, source)
            self._socket = Datagrams(self, made)
            self._socket.connect(self._address, 0, stamped=True)
            if not self._raw:
                self._identifier = made.getsockname()[1]  # which the kernel puts into the echoes
        except OSError as error:
            made.close()
            self._end(time.monotonic(), faults.failure_to_send(error))
        else:
            self._send()

    def close(self) -> None:
        """Nothing is sent or taken any more."""
        if self._socket is not None:
            self._socket.close()

    def received(self, data: bytes, now: float) -> None:
        reply = icmp_packet.reply(data, six=self._six, with_ip=self._raw and not self._six)
        # Some send back the beginning of a long payload only.
        if reply is None or len(reply.payload) < _TOKEN or not self._payload.startswith(reply.payload):
            return
        if not self._is_ours(reply) or reply.sequence in self._trips:
            return
        read = time.monotonic()
        sent = self._sent[reply.sequence]
        # The wall clock, by which the kernel stamps, may have been set meanwhile.
        came = now if sent <= now <= read else read
        self._trips[reply.sequence] = came - sent
        self._ended = max(self._ended, came)
        self._look()

    def told(self, error: Unreachable, about: bytes, now: float) -> None:
        # Of the payload it may bring nothing.
        echo = icmp_packet.quoted(about, six=self._six)
        if echo is not None and self._is_ours(echo) and echo.sequence not in self._trips and self._socket is not None:
            self._unreachable[echo.sequence] = self._socket.who_says(error)
            self._ended = max(self._ended, now)
            self._look()

    def failed(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def expired(self) -> None:
        if time.monotonic() < self._deadline:
            self._send()
        else:
            self._end(time.monotonic())

    def result(self, most_loss: float) -> Result:
        """What came of it, once it has ended."""
        phases = Phases(send=ms((self._first_sent or self._ended) - self._begun))
        if self._first_sent is not None:
            phases.wait = ms(self._ended - self._first_sent)
        trips = [trip * 1000 for trip in self._trips.values()]
        peer = Peer(self._address, None, "ipv6" if self._six else "ipv4")
        icmp = Icmp(len(self._sent), len(trips), _round_trips(trips)) if self._sent else None
        return Result(phases.whole, phases, self._error(most_loss), peer, icmp=icmp)

    def _error(self, most_loss: float) -> Error | None:
        if self._fault is not None:
            return Error("send" if self._first_sent is None else "wait", *self._fault)
        sent, lost = len(self._sent), len(self._sent) - len(self._trips)
        if not sent:
            return Error("send", *faults.failure_to_send(OSError(errno.ENOBUFS, "")))
        if lost <= most_loss * sent:
            return None
        told = "no reply" if sent == 1 else f"{lost} of {sent} echoes without a reply"
        if self._trips and most_loss:
            told += f", a loss of {lost / sent:.3g} where {most_loss:.3g} is expected at most"
        if self._unreachable and not self._trips:
            attribution, says = next(iter(self._unreachable.values()))
            return Error("wait", "icmp_unreachable", attribution, f"{told}: {says}")
        return Error("wait", "icmp_timeout", "path", f"{told} within the timeout")

    def _send(self) -> None:
        """Sends what is due, and sets the time for what comes next: the next echo or the deadline."""
        assert self._socket is not None
        now = time.monotonic()
        if self._next > 1 and now > self._latest:
            self._next = self._count + 1
        while self._next <= self._count and self._due(self._next) <= now and not self.done.done():
            self._send_one(self._socket, self._next)
            self._next += 1
        self._look()
        if not self.done.done():
            self._socket.expire_at(self._deadline if self._next > self._count else self._due(self._next))

    def _send_one(self, to: Datagrams, number: int) -> None:
        packet = icmp_packet.echo(six=self._six, identifier=self._identifier, sequence=number, payload=self._payload)
        self._sent[number] = sent = time.monotonic()
        try:
            if not to.send(packet):
                del self._sent[number]
                return
        except OSError as error:
            del self._sent[number]
            self._end(time.monotonic(), faults.failure_to_send(error))
            return
        if self._first_sent is None:
            self._first_sent = self._ended = sent

    def _due(self, number: int) -> float:
        return self._begun + (number - 1) * self._gap

    def _is_ours(self, echo: icmp_packet.Reply) -> bool:
        """Is it one of these echoes?"""
        return echo.identifier == self._identifier and echo.sequence in self._sent

    def _look(self) -> None:
        all_sent, settled = self._next > self._count and self._sent, self._trips.keys() | self._unreachable.keys()
        if all_sent and self._sent.keys() <= settled:
            self._end(self._ended)

    def _end(self, now: float, fault: tuple[ErrorCode, Attribution, str] | None = None) -> None:
        if not self.done.done():
            self._ended, self._fault = max(self._ended, now), fault
            self.done.set_result(None)
        self.close()


def _round_trips(trips: list[float]) -> RoundTrips | None:
    """Of milliseconds."""
    if not trips:
        return None
    average = sum(trips) / len(trips)
    deviation = math.sqrt(sum((trip - average) ** 2 for trip in trips) / len(trips))
    return RoundTrips(*(round(figure, 3) for figure in (min(trips), average, max(trips), deviation)))


def _open(*, six: bool) -> tuple[socket.socket, bool]:
    """A ping socket, or a raw one where only that is allowed; whether it is raw. Raises OSError."""
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    try:
        return socket.socket(family, socket.SOCK_DGRAM, protocol), False
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.EPROTONOSUPPORT:
            raise
    raw = socket.socket(family, socket.SOCK_RAW, protocol)
    if six:
        raw.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _REPLIES_ONLY_6)
    else:
        raw.setsockopt(_SOL_RAW, _ICMP_FILTER, _REPLIES_ONLY)
    return raw, True
