"""A world of its own: a device, its router, and sites far away, each in a network namespace, and every fault between.

The device's cable leads to the router; between the router and the sites a thread carries each packet, or loses it, or
takes its time. Sites have addresses that Internet ones look like. All of it needs root, and goes with the tests.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import heapq
import ipaddress
import json
import os
import random
import resource
import secrets
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from agent.probers import dns
from tests.probers import certificates

T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent
RESOLVER, OTHER_RESOLVER = "11.7.0.53", "11.7.0.54"
FAR_NETWORKS = ("12.7.1.0/24", "13.7.1.0/24")
ROUTER = "02:00:00:00:00:77"  # its hardware address
LATENCY = 0.02  # seconds that a healthy site takes

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000


def missing() -> str:
    """Why there can be no such world here; empty when there can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    for command, package in (("ip", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux")):
        if shutil.which(command) is None:
            return f"there is no `{command}`: apt-get install {package}"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "" if made.returncode == 0 else f"no network namespace can be made: {made.stderr.decode()}"


class Namespace:
    """A network namespace, kept by a process that sleeps in it and ends with the tests."""

    def __init__(self) -> None:
        keep = "import ctypes, signal; ctypes.CDLL(None).prctl(1, 9); print(flush=True); signal.pause()"
        unshare = ["unshare", "--net", "--mount", sys.executable, "-c", keep]
        self._process = subprocess.Popen(unshare, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.run("mount", "-t", "sysfs", "sysfs", "/sys")
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self._process.pid

    def enter(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "-m", f"--wd={os.getcwd()}", *command]

    def run(self, *command: str) -> None:
        done = subprocess.run(self.enter(*command), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def ip(self, text: str) -> None:
        self.run("ip", *text.split())

    def inside(self, make: Callable[[], T]) -> T:
        """What `make` makes by a thread that is in the namespace: sockets stay there."""
        made: list[T] = []

        def work() -> None:
            with open(f"/proc/{self.pid}/ns/net") as namespace:
                assert _LIBC.setns(namespace.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            made.append(make())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return made[0]

    def tunnel(self, name: str) -> int:
        def make() -> int:
            opened = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(opened, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
            return opened

        made = self.inside(make)
        self.ip(f"link set {name} up")
        return made

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Carrier:
    """The thread that carries packets between router and sites."""

    def __init__(self, one: int, other: int) -> None:
        self.loss, self.delay = 0.0, 0.0
        self.lost_family = 0  # 4 or 6: all of it is lost
        self._ends = {one: other, other: one}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._open = True
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def close(self) -> None:
        self._open = False
        self._thread.join()
        for end in self._ends:
            os.close(end)

    def _carry(self) -> None:
        number = 0
        while self._open:
            wait = max(self._late[0][0] - time.monotonic(), 0.0) if self._late else 0.05
            for end in select.select(list(self._ends), [], [], min(wait, 0.05))[0]:
                with contextlib.suppress(BlockingIOError):
                    for _ in range(100):
                        packet = os.read(end, 65536)
                        if random.random() >= self.loss and packet[0] >> 4 != self.lost_family:
                            number += 1
                            heapq.heappush(self._late, (time.monotonic() + self.delay, number, self._ends[end], packet))
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self._late)
                with contextlib.suppress(OSError):
                    os.write(end, packet)


class Sites:
    """All sites, on a loop in a thread: 80 and 443 are well, 81 takes connections and says nothing; two resolvers.

    A site knows its own name only. How the first resolver is: `resolves` a response code, or None when it is silent;
    `slow` by so many seconds; `lies` tells the address that it gives, by name and kind of record, and None the right
    one. With a `portal` all of 443 has its certificate.
    """

    def __init__(self, namespace: Namespace) -> None:
        self.resolves: int | None = dns.NOERROR
        self.lies: Callable[[str, int], bytes | None] | None = None
        self.slow = 0.0
        self.portal = False
        self.asked = 0
        self.names: Counter[str] = Counter()  # that the first resolver was asked for
        self._loop = asyncio.new_event_loop()
        self._sockets = namespace.inside(self._listen)
        self._udp = [namespace.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        for each, address in zip(self._udp, (RESOLVER, OTHER_RESOLVER), strict=True):
            each.setblocking(False)
            each.bind((address, 53))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for each in (*self._sockets.values(), *self._udp):
            each.close()

    @staticmethod
    def _listen() -> dict[int, socket.socket]:
        return {
            port: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
            for port in (80, 81, 443)
        }

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        for each in self._udp:
            self._loop.add_reader(each, self._asked, each)
        serve: dict[int, Callable[..., Awaitable[None]]] = {80: self._well, 81: self._silent, 443: self._well}
        for port, handle in serve.items():
            context = self._context() if port == 443 else None
            self._loop.run_until_complete(asyncio.start_server(handle, sock=self._sockets[port], ssl=context))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _well(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked += 1
            await asyncio.sleep(LATENCY)
            address = ipaddress.IPv6Address(writer.get_extra_info("sockname")[0])
            packed = (address.ipv4_mapped or address).packed
            host = head.partition("\r\nHost: ")[2].partition("\r\n")[0]
            status = b"500 Ill" if head.startswith("GET /ill") else b"200 OK"
            own = (_address(host, dns.A), _address(host, dns.AAAA))
            # Some are in other networks, and no name leads there.
            if host.endswith(".example") and packed not in own and packed[:1] not in b"\x0c\x0d":
                status = b"404 Not Mine"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()

    @staticmethod
    async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while await reader.read(1000):
                pass

    def _context(self) -> ssl.SSLContext:
        made: dict[str, ssl.SSLContext] = {}

        def choose(session: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            name = "portal.example.net" if self.portal or name is None else name
            if name not in made:
                made[name] = certificates.server(certificates.certificate(name, ca="portal" if self.portal else "test"))
            session.context = made[name]

        context = certificates.server()
        context.sni_callback = choose  # type: ignore[assignment]
        return context

    def _asked(self, resolver: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                question, peer = resolver.recvfrom(2000)
                name, end = _name(question, 12)
                kind = int.from_bytes(question[end : end + 2], "big")
                if resolver is not self._udp[0]:
                    resolver.sendto(_answer(question, end, dns.NOERROR, name, kind, None), peer)
                    continue
                self.names[name] += 1
                if self.resolves is not None:
                    lie = None if self.lies is None else self.lies(name, kind)
                    answer = _answer(question, end, self.resolves, name, kind, lie)
                    self._loop.call_later(self.slow, resolver.sendto, answer, peer)


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name there, and where it ends."""
    labels = []
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), at + 1


def _address(name: str, kind: int) -> bytes | None:
    """`n7.example` is 11.7.1.7 and, if its number is even, 2a00:7:1::7; others are not there."""
    if not (name.startswith("n") and name.endswith(".example")):
        return None
    number = int(name[1 : -len(".example")])
    if kind == dns.A:
        return bytes((11, 7, 1, number))
    return socket.inet_pton(socket.AF_INET6, f"2a00:7:1::{number:x}") if number % 2 == 0 else b""


def _answer(question: bytes, end: int, rcode: int, name: str, kind: int, lie: bytes | None) -> bytes:
    data = _address(name, kind) if lie is None else lie
    rcode = rcode or (dns.NXDOMAIN if data is None else dns.NOERROR)
    if rcode != dns.NOERROR:
        data = None
    answer = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 0, len(data)) + data if data else b""
    head = question[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, bool(data), 0, 0)
    return head + question[12 : end + 4] + answer


class World:
    """The namespaces, wired, and the faults. `device`, `router`, `sites`: the namespaces."""

    def __init__(self) -> None:
        self.device, self.router, far = Namespace(), Namespace(), Namespace()
        name = f"w{secrets.token_hex(3)}"
        subprocess.run(["ip", *f"link add {name}a type veth peer name {name}b".split()], check=True)
        for end, namespace, called in (("a", self.device, "eth0"), ("b", self.router, "lan0")):
            subprocess.run(["ip", "link", "set", name + end, "netns", str(namespace.pid)], check=True)
            namespace.ip(f"link set {name}{end} name {called}")
        self.router.ip(f"link set lan0 address {ROUTER}")
        for namespace, called in ((self.device, "eth0"), (self.router, "lan0")):
            namespace.ip(f"link set {called} up")
        for namespace in (self.device, self.router, far):
            namespace.run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad")
        self.router.run(
            "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
        )
        self.device.ip("address add 10.77.0.2/24 dev eth0")
        self.device.ip("address add fd77::2/64 dev eth0 nodad")
        self.device_routes()
        self.router.ip("address add 10.77.0.1/24 dev lan0")
        self.router.ip("address add fd77::1/64 dev lan0 nodad")
        self.carrier = Carrier(self.router.tunnel("wan0"), far.tunnel("net0"))
        self.router.ip("route add 11.7.0.0/16 dev wan0")
        for network in FAR_NETWORKS:
            self.router.ip(f"route add {network} dev wan0")
        self.router.ip("route add unreachable 11.7.8.0/24")
        self.router.ip("route add 2a00:7::/32 dev wan0")
        for resolver in (RESOLVER, OTHER_RESOLVER):
            far.ip(f"address add {resolver}/32 dev net0")
        for network in ("11.7.1.0/24", *FAR_NETWORKS):
            far.ip(f"route add local {network} dev lo")
        far.ip("route add local 2a00:7:1::/64 dev lo")
        far.ip("route add 10.77.0.0/24 dev net0")
        far.ip("route add fd77::/64 dev net0")
        self.sites = Sites(far)
        self._far = far

    def device_routes(self, kind: str = "") -> None:
        """The device's way out: the router, or nowhere (`blackhole`, `prohibit`, `unreachable`)."""
        self.device.ip(f"route replace {kind} default" if kind else "route replace default via 10.77.0.1")
        self.device.ip(f"-6 route replace {kind} default" if kind else "-6 route replace default via fd77::1")

    def close(self) -> None:
        self.sites.close()
        self.carrier.close()
        for namespace in (self.device, self.router, self._far):
            namespace.close()


class Agent:
    """The daemon on the device, without Kafka: what it records is read from its spool."""

    def __init__(
        self,
        world: Any,  # with a `device`
        folder: Path,
        targets: str,
        broker: str = "10.77.0.1:9",
        more: str = "",
        defaults: str = "interval: 1s",
        synchronized: str = "yes",
        environment: Mapping[str, str] = {},
    ) -> None:
        self._world, self._folder = world, folder
        folder.mkdir()
        resolv = folder / "resolv.conf"
        resolv.write_text(f"nameserver {RESOLVER}\n")
        config = folder / "config.yaml"
        config.write_text(
            f"agent: {{id: truth}}\nlocation: {{id: here}}\nstate_directory: {folder}/state\n"
            f"kafka: {{bootstrap_servers: ['{broker}']}}\nclock: {{synchronized: {synchronized}}}\n{more}\n"
            f"defaults: {{{defaults}}}\ntargets:\n{targets}"
        )
        world.device.run("mount", "--bind", str(resolv), "/etc/resolv.conf")
        command = world.device.enter(sys.executable, "-m", "agent", "run", "--config", str(config))
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(command, stderr=self._log, cwd=ROOT, env={**os.environ, **environment})
        until = time.monotonic() + 60.0
        while ": agent truth, " not in self.log() and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        return self.process.pid  # nsenter becomes it

    def limit_files(self, number: int | None) -> None:
        """Leaves it so many descriptors; None: as before."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (hard if number is None else number, hard))

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @contextlib.contextmanager
    def starved(self) -> Iterator[None]:
        """Its processor is taken by others that matter more."""
        os.sched_setaffinity(self.pid, {min(os.sched_getaffinity(0))})
        burn = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.nice(-19)\nwhile True: pass"
        burning = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(3)]
        try:
            yield
        finally:
            for each in burning:
                each.kill()
                each.wait()

    def stop(self) -> list[dict[str, Any]]:
        """All that it recorded."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log()
        self._log.close()
        dump = [sys.executable, "-m", "agent", "spool", "dump", str(self._folder / "state" / "spool")]
        told = subprocess.run(dump, capture_output=True, cwd=ROOT, check=True).stdout
        return [json.loads(line) for line in told.splitlines()]

    def log(self) -> str:
        return (self._folder / "log").read_text()
