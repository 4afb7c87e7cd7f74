"""ICMP echoes as bytes (RFC 792, RFC 4443), and what Linux tells of errors (ip(7), IP_RECVERR), without I/O."""

import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

HEADER = 8  # bytes before the payload
RECVERR = {socket.AF_INET: (socket.SOL_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}  # <linux/in.h>, in6.h

_ECHO = struct.Struct("!BBHHH")
_REQUEST, _REPLY = {False: 8, True: 128}, {False: 0, True: 129}  # types, by whether it is IPv6
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_FROM_ICMP = {2: False, 3: True}  # origins of errors
_TOO_BIG = 4  # the code of "fragmentation needed", by which the kernel learns the size that the path takes
# Destination unreachable by its codes, and time exceeded, which is what a loop of routers makes of it.
_UNREACHABLE, _EXCEEDED = {False: 3, True: 1}, {False: 11, True: 3}
_WHY = {
    False: {
        0: "network unreachable",
        1: "host unreachable",
        2: "protocol unreachable",
        3: "port unreachable",
        9: "network prohibited",
        10: "host prohibited",
        13: "communication prohibited",
    },
    True: {0: "no route", 1: "communication prohibited", 3: "address unreachable", 4: "port unreachable"},
}


class Reply(NamedTuple):
    """An echo that came back."""

    identifier: int
    sequence: int
    payload: bytes


class Unreachable(NamedTuple):
    """`by` says that something sent does not arrive, and why."""

    by: str
    why: str

    @property
    def of_a_neighbour(self) -> bool:
        """Whether it is what a host says of one in its own network that does not answer. A firewall may say so, too."""
        return self.why in (_WHY[False][1], _WHY[True][3])


def echo(*, six: bool, identifier: int, sequence: int, payload: bytes) -> bytes:
    """An echo request. Its checksum is that of ICMP; of ICMPv6 the kernel makes it, which knows the source address."""
    packet = _ECHO.pack(_REQUEST[six], 0, 0, identifier, sequence) + payload
    return packet if six else packet[:2] + _checksum(packet).to_bytes(2, "big") + packet[4:]


def reply(packet: bytes, *, six: bool, with_ip: bool) -> Reply | None:
    """The echo reply in a packet that came; None for anything else. `with_ip`: its IPv4 header stands before it."""
    return _parsed(packet[(packet[0] & 0x0F) * 4 :] if with_ip and packet else packet, _REPLY[six])


def quoted(packet: bytes, *, six: bool) -> Reply | None:
    """The echo request that an error is about; of its payload there is as much as was sent back, or nothing."""
    return _parsed(packet, _REQUEST[six])


def unreachable(ancillary: Iterable[tuple[int, int, bytes]]) -> Unreachable | None:
    """What came with a message of a socket's error queue; None for what does not say that a packet was lost."""
    for level, kind, data in ancillary:
        if (level, kind) not in RECVERR.values() or len(data) < _EXTENDED_ERROR.size:
            continue
        _, origin, icmp_type, code, *_ = _EXTENDED_ERROR.unpack_from(data)
        if (six := _FROM_ICMP.get(origin)) is None:
            continue
        if icmp_type == _EXCEEDED[six]:
            why = "time exceeded"
        elif icmp_type == _UNREACHABLE[six] and (six or code != _TOO_BIG):
            why = _WHY[six].get(code, f"unreachable, code {code}")
        else:
            continue
        # Its source follows, a sockaddr_in or sockaddr_in6.
        address = data[_EXTENDED_ERROR.size :][8:24] if six else data[_EXTENDED_ERROR.size :][4:8]
        if len(address) == (16 if six else 4):
            return Unreachable(socket.inet_ntop(socket.AF_INET6 if six else socket.AF_INET, address), why)
    return None


def _parsed(packet: bytes, wanted: int) -> Reply | None:
    if len(packet) < HEADER:
        return None
    icmp_type, code, _, identifier, sequence = _ECHO.unpack_from(packet)
    return Reply(identifier, sequence, packet[HEADER:]) if (icmp_type, code) == (wanted, 0) else None


def _checksum(data: bytes) -> int:
    """The Internet's checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
