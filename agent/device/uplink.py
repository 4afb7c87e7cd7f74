"""The device's own way to an address, as the kernel tells it: route, interface, link, gateway. Nothing is sent.

By files and by sockets of the families that are measured with: the service's sandbox allows no netlink.
"""

import array
import errno
import fcntl
import ipaddress
import math
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from agent.device.source import is_address, leave_by

MOST_LINKS = 128  # interfaces whose links are watched: more than the 110 containers that a node of Kubernetes has
TABLES_SECONDS = 0.25  # so old the kernel's tables may be that are looked at
LOOK_SECONDS = 0.05  # between two looks at the links
MOST_CHANGES = 2 * MOST_LINKS  # of links that are remembered
LARGEST_TABLE = 1 << 20  # bytes read of a table of the kernel

_SIOCGIFCONF, _SIOCGIFFLAGS = 0x8912, 0x8913  # netdevice(7)
_IFREQ = struct.calcsize("16sLLHBBB0L")  # a name, and the longest of what may follow it
_MOST_ADDRESSES = 1024  # of this device, by IPv4
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_RTF_GATEWAY, _RTF_REJECT = 0x2, 0x200  # <linux/route.h>
_ATF_COM = 0x2  # <linux/if_arp.h>: the neighbour has answered
_NO_ROUTE = {
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,
    errno.EINVAL,
    errno.ENETDOWN,
    errno.EADDRNOTAVAIL,
    errno.ENODEV,
}


T = TypeVar("T")


class _Route(NamedTuple):
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    interface: str
    gateway: str | None
    metric: int


class Way(msgspec.Struct, frozen=True):
    """The way to one address; None is what could not be told.

    `link`: whether the interface is up and has a carrier. `gateway_answers`: whether the gateway has answered to the
    question for its hardware address (IPv4 only); None also where there is no gateway.
    """

    route: bool | None = None
    interface: str | None = None
    link: bool | None = None
    gateway: str | None = None
    gateway_answers: bool | None = None

    @property
    def barred(self) -> bool:
        """Surely nothing gets out of this device to there."""
        return self.route is False or self.link is False


def has_route(address: str, source: str | None = None) -> bool | None:
    """Asks this device's routing table. None: it cannot be asked now.

    `source`: the address or the interface from which there would have to be one.
    """
    return leaves(address, source)[0]


def leaves(address: str, source: str | None) -> tuple[bool | None, str]:
    """Whether there is a route, and the address of this device that it leaves from; nothing is sent for that."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            if source is not None:
                leave_by(asking, source)
            asking.connect((address, 9))
            return True, asking.getsockname()[0]
    except OSError as error:
        return (False if error.errno in _NO_ROUTE else None), ""


class Ways:
    """The ways out of this device, and which links went up or down. Times are seconds since boot. Raises nothing."""

    def __init__(self) -> None:
        self._read = self._looked = -math.inf
        self._routes: list[_Route] = []
        self._neighbours: dict[tuple[str, str], bool] = {}
        self._own: dict[str, set[str]] = {}
        self._counts: dict[str, bytes] = {}
        self._changes: deque[tuple[str, float]] = deque(maxlen=MOST_CHANGES)

    def to(self, address: str, now: float, source: str | None = None) -> Way:
        """The way there; tens of microseconds. `source`: the address or the interface from which it is looked for.

        Which interface the kernel takes is told by the address that it leaves from: rules of policy routing, and routes
        that are left out while their link is down, are not in the tables. Where the tables have no route by that
        interface, nothing is told of it.
        """
        if now - self._read > TABLES_SECONDS:
            self._routes, self._neighbours, self._own, self._read = _routes(), _neighbours(), _own_addresses(), now
        route, leaves_from = leaves(address, source)
        if source is not None and is_address(source):
            return Way(route)
        if source is not None:
            interfaces = {source}
        elif _is_here(address, leaves_from, self._own):
            return Way(route, "lo", _link("lo"))
        else:
            own, _, scope = leaves_from.partition("%")
            interfaces = {scope} if scope else self._own.get(own, set())
        through = _through(address, [each for each in self._routes if each.interface in interfaces])
        interface, gateway = (source, None) if through is None else (through.interface, through.gateway)
        if interface is None:
            return Way(route)
        answers = None if gateway is None else self._neighbours.get((gateway, interface))
        return Way(route, interface, _link(interface), gateway, answers)

    def look(self, now: float) -> None:
        """Reads the kernel's counters of changes, which see also what was over between two looks."""
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        counts = _carrier_changes(self._counts)
        # What came has changed, too, or had gone in between; but for what was there when it was looked first.
        known = self._counts or counts
        for interface, count in counts.items():
            if known.get(interface) != count:
                self._changes.append((interface, now))
        self._counts = counts

    def changed(self, interface: str | None, since: float) -> bool:
        """Whether the interface's link was seen to go up or down since then."""
        return any(name == interface and at >= since for name, at in self._changes)


def _carrier_changes(before: dict[str, bytes]) -> dict[str, bytes]:
    """By interface; what cannot be read now is as it was `before`."""
    counts: dict[str, bytes] = {}
    try:
        interfaces = sorted(Path("/sys/class/net").iterdir())[: MOST_LINKS + 1]
    except OSError:  # none there, or no file descriptor left
        return before
    for each in interfaces:
        if each.name == "lo":
            continue
        try:
            counts[each.name] = _read(f"{each}/carrier_changes")
        except (FileNotFoundError, NotADirectoryError):  # it went meanwhile, or is the file of the bonding driver
            continue
        except OSError:
            if each.name in before:
                counts[each.name] = before[each.name]
    return counts


def _read(path: str) -> bytes:
    """A small file of the kernel's, in a third of the time that an object for it takes. Raises OSError."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(opened, 64)
    finally:
        os.close(opened)


def _through(address: str, routes: list[_Route]) -> _Route | None:
    """The most specific route."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    fitting = [route for route in routes if wanted in route.network]
    return min(fitting, key=lambda route: (-route.network.prefixlen, route.metric), default=None)


def _routes() -> list[_Route]:
    found = [*_rows("/proc/net/route", _four), *_rows("/proc/net/ipv6_route", _six)]
    return [route for route in found if route is not None and route.interface != "lo"]


def _four(row: str) -> _Route | None:
    """Of /proc/net/route, with numbers in the host's order of bytes; None for a route that rejects."""

    def address(field: str) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Address(struct.pack("=I", int(field, 16)))

    interface, to, gateway, flags, _, _, metric, mask, *_ = row.split()
    if int(flags, 16) & _RTF_REJECT:
        return None
    network = ipaddress.IPv4Network((int(address(to)), int(mask, 16).bit_count()))
    return _Route(network, interface, str(address(gateway)) if int(flags, 16) & _RTF_GATEWAY else None, int(metric))


def _six(row: str) -> _Route | None:
    """Of /proc/net/ipv6_route; None for a route that rejects."""
    to, length, _, _, gateway, metric, _, _, flags, interface = row.split()
    if int(flags, 16) & _RTF_REJECT:
        return None
    network = ipaddress.IPv6Network((int(to, 16), int(length, 16)))
    by = str(ipaddress.IPv6Address(int(gateway, 16))) if int(flags, 16) & _RTF_GATEWAY else None
    return _Route(network, interface, by, int(metric, 16))


def _is_here(address: str, leaves_from: str, own: dict[str, set[str]]) -> bool:
    """Whether it is an address of this device."""
    return address in own or address == leaves_from or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _own_addresses() -> dict[str, set[str]]:
    """The interfaces that have each address of this device."""
    found: dict[str, set[str]] = {}
    for address, interface in (*_own_four(), *_rows("/proc/net/if_inet6", _own_six)):
        found.setdefault(address, set()).add(interface)
    return found


def _own_four() -> Iterator[tuple[str, str]]:
    room = array.array("B", bytes(_MOST_ADDRESSES * _IFREQ))
    where, _ = room.buffer_info()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            told = fcntl.ioctl(asking, _SIOCGIFCONF, struct.pack("iP", len(room), where))
    except OSError:
        return
    for at in range(0, struct.unpack_from("i", told)[0], _IFREQ):
        label, packed = struct.unpack_from("16s4x4s", room, at)  # before the address its family and a port
        # An interface's further addresses may have labels of their own: eth0:1.
        yield socket.inet_ntoa(packed), label.partition(b"\0")[0].decode(errors="replace").partition(":")[0]


def _own_six(row: str) -> tuple[str, str]:
    """Of /proc/net/if_inet6."""
    address, _, _, _, _, interface = row.split()
    return str(ipaddress.IPv6Address(int(address, 16))), interface


def _neighbours() -> dict[tuple[str, str], bool]:
    return dict(_rows("/proc/net/arp", _neighbour))


def _neighbour(row: str) -> tuple[tuple[str, str], bool]:
    """Of /proc/net/arp: an address at an interface, and whether it has answered."""
    ip, _, flags, _, _, interface = row.split()
    return (ip, interface), bool(int(flags, 16) & _ATF_COM)


def _rows(path: str, row_of: Callable[[str], T]) -> Iterator[T]:
    try:
        with Path(path).open(errors="replace") as table:
            rows = table.read(LARGEST_TABLE).split("\n")
    except OSError:
        return
    for row in rows:
        try:
            yield row_of(row)
        except (ValueError, struct.error):
            # The headings, the last row where the table is longer than is read, and any with what is a space here but
            # not for the kernel in its interface's name.
            continue


def _link(interface: str) -> bool | None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            told = fcntl.ioctl(asking, _SIOCGIFFLAGS, struct.pack("16sH14x", interface.encode(), 0))
    except OSError as error:
        return False if error.errno == errno.ENODEV else None  # it is gone
    flags = struct.unpack("16xH14x", told)[0]
    return bool(flags & _IFF_UP) and bool(flags & _IFF_RUNNING)
