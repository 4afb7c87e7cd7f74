"""Thousands of sites far away, and a device that measures them all: namespaces whose kernel carries each packet.

`crowd.py` itself is the sites: a process in their namespace, on one thread and one epoll. 80 is well, and 53 a resolver
that knows `tN.example`, until its standard input says `silent`.
"""

import contextlib
import select
import socket
import struct
import subprocess
import sys

from tests.truth.world import RESOLVER, Namespace

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def address(number: int) -> str:
    """Of a site: from 11.7.0.1 on, 250 in each /24."""
    return f"11.7.{number // 250}.{number % 250 + 1}"


class Crowd:
    """Device, router and sites, wired, and the faults; `device` is what an `Agent` runs on."""

    def __init__(self) -> None:
        self.device, self._router, self._far = Namespace(), Namespace(), Namespace()
        for one, name, other, called in (
            (self.device, "eth0", self._router, "lan0"),
            (self._router, "wan0", self._far, "net0"),
        ):
            one.ip(f"link add {name} type veth peer name {called} netns {other.pid}")
            one.ip(f"link set {name} up")
            other.ip(f"link set {called} up")
        self.device.ip("address add 10.77.0.2/24 dev eth0")
        self._router.ip("address add 10.77.0.1/24 dev lan0")
        self._router.ip("address add 10.78.0.1/24 dev wan0")
        self._far.ip("address add 10.78.0.2/24 dev net0")
        self.device.ip("route add default via 10.77.0.1")
        self._router.ip("route add 11.7.0.0/16 via 10.78.0.2")
        self._router.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        self._far.ip("route add default via 10.78.0.1")
        self._far.ip("route add local 11.7.0.0/16 dev lo")
        self._far.run("sh", "-c", "echo 4096 >/proc/sys/net/core/somaxconn")
        self._sites = subprocess.Popen(self._far.enter(sys.executable, __file__), stdin=subprocess.PIPE)

    def swallow(self, *networks: str) -> None:
        """The router drops without a word what goes there; to nothing, with no network given."""
        self._router.run("ip", "route", "flush", "type", "blackhole")
        for network in networks:
            self._router.ip(f"route add blackhole {network}")

    def resolver(self, state: str) -> None:
        """`silent` or `well`."""
        assert self._sites.stdin is not None
        self._sites.stdin.write(f"{state}\n".encode())
        self._sites.stdin.flush()

    def close(self) -> None:
        self._sites.kill()
        self._sites.communicate()
        for namespace in (self.device, self._router, self._far):
            namespace.close()


def serve() -> None:
    listening = socket.create_server(("", 80), backlog=4096)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((RESOLVER, 53))
    epoll, open_now = select.epoll(), dict[int, socket.socket]()
    for each in (listening, names):
        each.setblocking(False)
        epoll.register(each, select.EPOLLIN)
    epoll.register(sys.stdin, select.EPOLLIN)
    silent = False
    while True:
        for file, _ in epoll.poll():
            if file == sys.stdin.fileno():
                silent = sys.stdin.readline() == "silent\n"
            elif file == listening.fileno():
                with contextlib.suppress(OSError):
                    for _ in range(64):
                        accepted, _ = listening.accept()
                        accepted.setblocking(False)
                        open_now[accepted.fileno()] = accepted
                        epoll.register(accepted, select.EPOLLIN)
            elif file == names.fileno():
                with contextlib.suppress(OSError):
                    for _ in range(64):
                        question, peer = names.recvfrom(2000)
                        if not silent:
                            names.sendto(named(question), peer)
            else:
                with open_now.pop(file) as asked, contextlib.suppress(OSError):
                    if asked.recv(4096):
                        asked.send(ANSWER)


def named(question: bytes) -> bytes:
    """A `tN.example` has an IPv4 address, and nothing else has any."""
    end = question.index(b"\0", 12) + 1
    number = int(question[14 : 13 + question[12]])
    data = b""
    if question[end : end + 2] == b"\0\1":
        data = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(address(number))
    return question[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(data), 0, 0) + question[12 : end + 4] + data


if __name__ == "__main__":
    serve()
