"""`python -m tests.zoo.icmp`: hosts that answer echoes in every way, each with an address of its own, as a process.

It runs in the host's namespace of a `Network`, as root. When all of them listen it prints a line of JSON, the URLs of
some sites that are well, by family; it ends with its standard input. Others are what the network itself does: `BEYOND`.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import uvloop

from agent.probers.result import Phase
from tests.probers.http_server import OK, answers, site
from tests.probers.test_icmp import Echo, error, with_ip
from tests.zoo.behaviour import SILENCE, Behaviour, Fails, Up

Part = bytes | float | tuple[bytes, str]
Answers = Callable[[Echo, list[Echo]], Iterable[Part]]
"""What is done when an echo came, which is the last of those given: packets, pauses, and packets from elsewhere."""

PHASES: tuple[Phase, ...] = ("send", "wait")
OTHER = {"ipv4": "10.217.2.2", "ipv6": "fd17:2::2"}  # an address of the same machine, where the sites are
SITES = 6
FIRST = 16  # of the addresses: 10.217.2.16 and fd17:2::10
TIMEOUT = Fails("icmp_timeout", "path", "wait", blamed="path")
ITSELF = Fails("icmp_unreachable", "target", "wait")
ON_THE_WAY = Fails("icmp_unreachable", "path", "wait", blamed="path")


class Host(NamedTuple):
    """`options`: of the target that measures it."""

    answer: Answers
    expected: Up | Fails
    options: Mapping[str, Any] = {}


def says(four: tuple[int, int], six: tuple[int, int]) -> Answers:
    """An ICMP error, by type and code, about what came."""
    return lambda echo, echoes: (error(*six) if echo.six else error(*four, quotes=28))(echo, echoes)


def then_answers(four: tuple[int, int], six: tuple[int, int]) -> Answers:
    return lambda echo, echoes: [*says(four, six)(echo, echoes), 0.05, echo.reply()]


def every(number: int) -> Answers:
    """Answers each echo of which the number is a multiple of this one."""
    return lambda echo, echoes: [echo.reply()] if echo.sequence % number == 0 else []


def the_one_before(echo: Echo, echoes: list[Echo]) -> Iterable[bytes]:
    """The answer to another measurement, which came too late for that."""
    return [echoes[-2].reply()] if len(echoes) > 1 else []


def nonsense(echo: Echo, echoes: list[Echo]) -> Iterable[bytes]:
    return [echo.reply(payload=os.urandom(40)) for _ in range(20)] + [echo.reply()[:7] + os.urandom(30)]


def others(echo: Echo, echoes: list[Echo]) -> Iterable[bytes]:
    return [*[echo.reply(identifier=echo.identifier ^ 1)] * 1_000, echo.reply()]


HOSTS = {
    "answers": Host(lambda e, _: [e.reply()], Up()),
    "answers as well": Host(lambda e, _: [e.reply()], Up()),
    "answers four": Host(lambda e, _: [e.reply()], Up(), {"count": 4}),
    "answers large ones": Host(lambda e, _: [e.reply()], Up(), {"size": 9_000}),
    "takes its time": Host(lambda e, _: [0.2, e.reply()], Up()),
    "answers thrice": Host(lambda e, _: [e.reply(), e.reply(), 0.05, e.reply()], Up(), {"count": 3}),
    "floods with answers": Host(lambda e, _: [e.reply()] * 2_000, Up()),
    "floods with others' answers": Host(others, Up()),
    "sends back the beginning only": Host(lambda e, _: [e.reply(payload=e.payload[:20])], Up()),
    "is right after wrong": Host(lambda e, es: [*nonsense(e, es), e.reply(sequence=e.sequence + 9), e.reply()], Up()),
    "loses as much as is allowed": Host(every(2), Up(), {"count": 4, "expect": {"loss": 0.5}, "timeout": 1.0}),
    "loses more than is allowed": Host(every(4), TIMEOUT, {"count": 4, "expect": {"loss": 0.5}}),
    "loses all, which is allowed": Host(lambda e, _: [], Up(), {"expect": {"loss": 1.0}, "timeout": 1.0}),
    "is silent": Host(lambda e, _: [], TIMEOUT),
    "is silent for three": Host(lambda e, _: [], TIMEOUT, {"count": 3}),
    "answers too late": Host(lambda e, _: [SILENCE + 1.0, e.reply()], TIMEOUT),
    "answers the one before": Host(the_one_before, TIMEOUT),
    "answers another identifier": Host(lambda e, _: [e.reply(identifier=e.identifier ^ 1)], TIMEOUT),
    "answers a number that was not sent": Host(lambda e, _: [e.reply(sequence=e.sequence + 9)], TIMEOUT),
    "answers what nobody said": Host(lambda e, _: [e.reply(payload=os.urandom(len(e.payload)))], TIMEOUT),
    "changes the end": Host(lambda e, _: [e.reply(payload=e.payload[:-1] + b"x")], TIMEOUT),
    "adds something": Host(lambda e, _: [e.reply(payload=e.payload + b"x")], TIMEOUT),
    "brings nothing back": Host(lambda e, _: [e.reply(payload=b"")], TIMEOUT),
    "answers half a header": Host(lambda e, _: [e.reply()[:6]], TIMEOUT),
    "answers by another type": Host(lambda e, _: [e.reply(kind=14), e.reply(kind=9)], TIMEOUT),
    "talks nonsense": Host(nonsense, TIMEOUT),
    "answers from another address": Host(lambda e, _: [(e.reply(), "other")], TIMEOUT),
    "says that the network is unreachable": Host(says((3, 0), (1, 0)), ITSELF),
    "says that the host is unreachable": Host(says((3, 1), (1, 3)), ITSELF),
    "says that the port is unreachable": Host(says((3, 3), (1, 4)), ITSELF, {"count": 2}),
    "says that it is prohibited": Host(says((3, 13), (1, 1)), ITSELF),
    "says what nobody knows": Host(says((3, 7), (1, 6)), ITSELF),
    "says that time was exceeded": Host(says((11, 0), (3, 0)), ITSELF),
    "says that it is too big, and answers": Host(then_answers((4, 0), (2, 0)), Up()),
    "redirects, and answers": Host(then_answers((5, 1), (137, 0)), Up()),
    "has a problem with it, and answers": Host(then_answers((12, 0), (4, 0)), Up()),
}  # fmt: skip

# What the network does: its address of IPv4 and of IPv6, and how that fails.
BEYOND = {
    "a router knows no way": ("10.217.3.1", "fd17:3::1", ON_THE_WAY),
    "a router lets nobody through": ("10.217.5.1", "fd17:5::1", ON_THE_WAY),
    "routers send it round in a circle": ("10.217.7.1", "fd17:7::1", ON_THE_WAY),
    "nobody has the address": ("10.217.1.77", "fd17:1::77", ON_THE_WAY),
    "a black hole": ("10.217.4.1", "fd17:4::1", TIMEOUT),
    "this device has no way": ("10.217.6.1", "fd17:6::1", Fails("local_network", "local", "send", "unknown")),
}


def address_of(name: str, *, six: bool) -> str:
    """A host's own address."""
    number = FIRST + list(HOSTS).index(name)
    return f"fd17:2::{number:x}" if six else f"10.217.2.{number}"


def behaviours(*, six: bool) -> list[tuple[Behaviour, dict[str, Any]]]:
    """All of them, each with the options of a target that measures it."""
    found = []
    for name, host in HOSTS.items():
        found.append((name, host.expected, address_of(name, six=six), host.options))
    for name, (four, other, expected) in BEYOND.items():
        found.append((name, expected, other if six else four, {}))
    return [
        (
            Behaviour(name, _served_elsewhere, expected, PHASES),
            {"url": f"icmp://[{address}]" if six else f"icmp://{address}", **options},
        )
        for name, expected, address, options in found
    ]


def _served_elsewhere(host: str) -> Any:
    raise NotImplementedError


@contextlib.asynccontextmanager
async def listening(name: str, *, six: bool) -> AsyncIterator[None]:
    """A host that answers at its address, instead of its kernel."""
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    address, echoes, tasks, loop = address_of(name, six=six), [], set(), asyncio.get_running_loop()
    with (
        socket.socket(family, socket.SOCK_RAW, protocol) as sock,
        socket.socket(family, socket.SOCK_RAW, protocol) as other,
    ):
        sock.setblocking(False)
        sock.bind((address, 0))
        other.bind((OTHER["ipv6" if six else "ipv4"], 0))

        async def answer(echo: Echo, peer: str) -> None:
            for number, each in enumerate(HOSTS[name].answer(echo, echoes)):
                if isinstance(each, float):
                    await asyncio.sleep(each)
                    continue
                with contextlib.suppress(OSError):
                    if isinstance(each, tuple):
                        other.sendto(each[0], (peer, 0))
                    else:
                        sock.sendto(each, (peer, 0))
                if number % 50 == 49:
                    await asyncio.sleep(0)

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    request, peer = sock.recvfrom(1 << 16)
                    packet = request if six else request[(request[0] & 15) * 4 :]
                    if packet[0] == (128 if six else 8):
                        echo = Echo(packet, six, with_ip(request, peer[0], address) if six else request)
                        echoes[:] = [*echoes[-1:], echo]
                        task = loop.create_task(answer(echo, peer[0]))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)

        loop.add_reader(sock, readable)
        try:
            yield
        finally:
            loop.remove_reader(sock)
            for task in list(tasks):
                task.cancel()


async def main() -> None:
    async with contextlib.AsyncExitStack() as stack:
        sites: dict[str, list[str]] = {}
        for family, address in OTHER.items():
            for name in HOSTS:
                await stack.enter_async_context(listening(name, six=family == "ipv6"))
            there = [await stack.enter_async_context(site(answers(OK), address)) for _ in range(SITES)]
            sites[family] = [each.url() for each in there]
        sys.stdout.buffer.write(msgspec.json.encode(sites) + b"\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
