"""Network namespaces: a device, a router, and a host beyond it, with IPv4 and IPv6. That needs root and iproute2."""

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
_NUMBERS = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """`device` 10.217.1.1 and fd17:1::1; `router` 10.217.1.254, 10.217.2.254; `host` 10.217.2.1 and .2, fd17:2::1."""

    def __init__(self) -> None:
        mine = f"uptime-{os.getpid()}-{next(_NUMBERS)}"
        self.device, self.router, self.host = (f"{mine}-{each}" for each in ("device", "router", "host"))

    def run(self, namespace: str, command: str) -> None:
        subprocess.run(["ip", "netns", "exec", namespace, *command.split()], check=True, capture_output=True, text=True)

    def build(self) -> None:
        for namespace in (self.device, self.router, self.host):
            subprocess.run(["ip", "netns", "add", namespace], check=True, capture_output=True)
            self.run(namespace, "ip link set lo up")
            for each in ("default", "all"):  # no waiting for whether an address is someone else's
                self.set(namespace, f"ipv6/conf/{each}/accept_dad", "0")
        for number, namespace in enumerate((self.device, self.host), 1):
            self.run(self.router, f"ip link add to{number} type veth peer name out netns {namespace}")
            for name, where, last in ((f"to{number}", self.router, "254"), ("out", namespace, "1")):
                self.run(where, f"ip addr add 10.217.{number}.{last}/24 dev {name}")
                self.run(where, f"ip addr add fd17:{number}::{last}/64 dev {name} nodad")
                self.run(where, f"ip link set {name} up")
            self.run(namespace, f"ip route add default via 10.217.{number}.254")
            self.run(namespace, f"ip route add default via fd17:{number}::254")
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.set(self.router, setting, "1")
        # A router tells of each packet, and a neighbour is given up quickly.
        self.set(self.router, "ipv4/icmp_ratemask", "0")
        for family, ratelimit in (("ipv4", "icmp_ratelimit"), ("ipv6", "icmp/ratelimit")):
            self.set(self.router, f"{family}/{ratelimit}", "0")
            self.set(self.device, f"{family}/neigh/out/retrans_time_ms", "50")
        for kind, number in (("unreachable", 3), ("blackhole", 4), ("prohibit", 5)):
            self.run(self.router, f"ip route add {kind} 10.217.{number}.0/24")
            self.run(self.router, f"ip route add {kind} fd17:{number}::/64")
        # The device's own ways that lead nowhere, and the host's second address.
        self.run(self.device, "ip route add unreachable 10.217.6.0/24")
        self.run(self.device, "ip route add unreachable fd17:6::/64")
        self.run(self.host, "ip addr add 10.217.2.2/24 dev out")
        self.run(self.host, "ip addr add fd17:2::2/64 dev out nodad")

    def set(self, namespace: str, setting: str, value: str) -> None:
        """Changes a setting of a namespace's kernel, below net/."""
        with within(namespace):
            Path("/proc/sys/net", setting).write_text(value)

    def ping_sockets(self, allowed: bool) -> None:
        """Whether the device may use them."""
        self.set(self.device, "ipv4/ping_group_range", "0 2147483647" if allowed else "1 0")

    def close(self) -> None:
        for namespace in (self.device, self.router, self.host):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@contextlib.contextmanager
def within(namespace: str) -> Iterator[None]:
    """What this thread opens meanwhile belongs to the namespace for good. Two of these do not overlap."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if _libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        now = os.stat("/proc/thread-self/ns/net").st_ino
        back = _libc.setns(before, CLONE_NEWNET)
        assert (now, back) == (os.fstat(there).st_ino, 0), "another has changed it, or it cannot be left"
        os.close(there)
        os.close(before)


def built() -> Iterator[Network]:
    """A network for a while; the test is skipped where there can be none, and fails with CI=true."""
    why = "needs root, for network namespaces" if os.geteuid() else "" if shutil.which("ip") else "needs iproute2"
    network = Network()
    if not why:
        try:
            network.build()
        except subprocess.CalledProcessError as error:
            network.close()
            why = f"no network namespaces: {error.stderr}"
    if why:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    yield network
    network.close()
