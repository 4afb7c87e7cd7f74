"""Asking once more: small questions that cost their target a handshake, for what a failure cannot tell by itself."""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import time

from agent.config.model import Ip
from agent.device.source import leave_by
from agent.probers.faults import failure_of
from agent.probers.icmp_packet import RECVERR, Unreachable, unreachable
from agent.probers.resolver import ResolveError, Resolver
from agent.probers.result import ms

ASK_SECONDS = 1.5  # for whoever is asked: the second packet of a connection goes after 1 s
ANSWERS = (None, "connect_refused", "connect_reset")  # to a connection: whatever they say, somebody is there
AGAIN_SECONDS = 60.0  # between two looks at a target that keeps failing

_HOPS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}
_QUOTED = 512  # bytes that are read of an error, and of what it is about


async def connect(address: str, port: int, seconds: float, source: str | None = None) -> tuple[float, str | None]:
    """Connects to a numeric address and hangs up at once: milliseconds, and the error's code, `ANSWERS` among them.

    `source`: see `Target`. A refusal that is this device's own, that of its firewall, is `local_network`; that of
    another one on the way, be it "port unreachable" (nftables' `reject`), is `connect_unreachable`.
    """
    begun = time.monotonic()
    code: str | None = None
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
            if source is not None:
                leave_by(asking, source)
            asking.setsockopt(*RECVERR[family], 1)
            number = _at_once(asking, address, port)
            at_once = number != errno.EINPROGRESS
            if not at_once:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await _connected(asking)
                number = _outcome(asking)
            if number:
                told = _told(asking)
                if at_once and _is_from_here(asking, told, address, port, number, source):
                    return ms(time.monotonic() - begun), "local_network"
                if number == errno.ECONNREFUSED and told is not None and _is_another(asking, told.by, address):
                    number = errno.EHOSTUNREACH
                raise OSError(number, os.strerror(number))
    except TimeoutError:
        code = "connect_timeout"
    except OSError as error:
        code, _, _ = failure_of(error, address, source)
    return ms(time.monotonic() - begun), code


def _at_once(asking: socket.socket, address: str, port: int) -> int:
    """Begins to connect: errno, be it EINPROGRESS. What never left this device has come back by then."""
    number = asking.connect_ex((address, port))
    return (number == errno.EINPROGRESS and asking.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) or number


def _told(asking: socket.socket) -> Unreachable | None:
    """Who said by ICMP that it does not arrive, if somebody did."""
    try:
        _, ancillary, _, _ = asking.recvmsg(_QUOTED, _QUOTED, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    return unreachable(ancillary)


def _is_another(asking: socket.socket, by: str, address: str) -> bool:
    """Neither who was asked nor this device."""
    return ipaddress.ip_address(by) not in {
        ipaddress.ip_address(each.partition("%")[0]) for each in (address, asking.getsockname()[0])
    }


def _is_from_here(
    asking: socket.socket, told: Unreachable | None, address: str, port: int, number: int, source: str | None
) -> bool:
    """Whether an error that came at once is this device's own word: its firewall sends ICMP by its own address, or
    resets. A reset from the Internet may have come in time; but no two more, which one hop is not enough for. One from
    near by, where the other side may be on the same machine, is taken for the target's.
    """
    here = asking.getsockname()[0]
    if here == address or ipaddress.ip_address(address).is_loopback:
        return False
    if told is None:
        far = number == errno.ECONNREFUSED and ipaddress.ip_address(address).is_global
        return far and all(_resets_at_once(address, port, source) for _ in range(2))
    return told.by == here and not told.of_a_neighbour


def _resets_at_once(address: str, port: int, source: str | None) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
        if source is not None:
            leave_by(asking, source)
        asking.setsockopt(*_HOPS[family], 1)
        return _at_once(asking, address, port) == errno.ECONNREFUSED


async def _connected(asking: socket.socket) -> None:
    """Until it is, or failed."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_writer(asking, _end, ended)
    try:
        await ended
    finally:
        loop.remove_writer(asking)


def _outcome(asking: socket.socket) -> int:
    """errno. It is looked at, and not who was faster, as the loop may have stood still over what came in time."""
    if number := asking.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return number
    try:
        asking.getpeername()
    except OSError:
        return errno.ETIMEDOUT
    return 0


def _end(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


async def resolve(
    resolver: Resolver, name: str, ip: Ip, server: str | None, seconds: float, source: str | None = None
) -> tuple[float, str | None, tuple[str, ...]]:
    """Resolves: milliseconds, and the error's code, or the addresses."""
    begun = time.monotonic()
    try:
        deadline = begun + seconds
        found = await resolver.resolve(name, ip=ip, deadline=deadline, server=server, source=source)
    except ResolveError as error:
        return ms(time.monotonic() - begun), error.code, ()
    return ms(time.monotonic() - begun), None if found.addresses else "dns_no_address", found.addresses
