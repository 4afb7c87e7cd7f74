"""The ICMP prober on real interfaces: a device, a router and a host that answers as a test tells it to."""

import asyncio
import contextlib
import os
import re
import socket
import struct
import time

import pytest

from agent.probers import datagram, icmp, icmp_packet
from tests.probers.conftest import IPV6
from tests.probers.dns_server import dns_server, zone
from tests.probers.http_server import failure, reached
from tests.probers.measuring import measure
from tests.probers.namespaces import within

ADDRESSES = {False: "10.217.2.1", True: "fd17:2::1"}
TIMEOUT = ("icmp_timeout", "wait", "path")


@pytest.fixture(params=["ping", "raw"])
def kind(request, network) -> str:
    """The kind of socket that the device may have."""
    network.ping_sockets(allowed=request.param == "ping")
    return request.param


@pytest.fixture(params=[False, True], ids=["IPv4", "IPv6"])
def six(request) -> bool:
    return request.param


class Echo:
    """An echo request as it came to the host."""

    def __init__(self, packet: bytes, six: bool, request: bytes) -> None:
        self.six, self.request, found = six, request, icmp_packet.quoted(packet, six=six)
        self.identifier, self.sequence, self.payload = found

    def reply(self, *, identifier=None, sequence=None, payload=None, kind=None) -> bytes:
        sent = icmp_packet.echo(
            six=False,
            identifier=self.identifier if identifier is None else identifier,
            sequence=self.sequence if sequence is None else sequence,
            payload=self.payload if payload is None else payload,
        )
        packet = bytes([(129 if self.six else 0) if kind is None else kind]) + sent[1:2] + b"\0\0" + sent[4:]
        if self.six:
            return packet  # the kernel makes its checksum
        return packet[:2] + icmp_packet._checksum(packet).to_bytes(2, "big") + packet[4:]


@contextlib.asynccontextmanager
async def host(network, six, behaviour):
    """The host in the network answers by `behaviour` instead of its kernel: packets, pauses, or (packet, address)."""
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    loop, tasks, echoes = asyncio.get_running_loop(), set(), []
    with within(network.host):
        sock = socket.socket(family, socket.SOCK_RAW, protocol)
        other = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.setblocking(False)
    sock.bind((ADDRESSES[six], 0))
    other.bind((ADDRESSES[six][:-1] + "2", 0))
    setting = "ipv6/icmp/echo_ignore_all" if six else "ipv4/icmp_echo_ignore_all"
    network.set(network.host, setting, "1")

    async def answer(echo, peer):
        for each in behaviour(echo, echoes):
            if isinstance(each, float):
                await asyncio.sleep(each)
            elif isinstance(each, tuple):
                other.sendto(each[0], (peer, 0))
            else:
                sock.sendto(each, (peer, 0))

    def readable():
        with contextlib.suppress(BlockingIOError):
            while True:
                request, peer = sock.recvfrom(1 << 16)
                packet = request if six else request[(request[0] & 15) * 4 :]
                if packet[0] == (128 if six else 8):
                    echo = Echo(packet, six, with_ip(request, peer[0]) if six else request)
                    echoes.append(echo)
                    tasks.add(loop.create_task(answer(echo, peer[0])))

    loop.add_reader(sock, readable)
    try:
        yield echoes
    finally:
        loop.remove_reader(sock)
        sock.close()
        other.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        network.set(network.host, setting, "0")


def with_ip(packet: bytes, peer: str, here: str = ADDRESSES[True]) -> bytes:
    """An IPv6 packet, of which a socket brings only what is in it."""
    head = struct.pack("!IHBB", 6 << 28, len(packet), socket.IPPROTO_ICMPV6, 64)
    return head + b"".join(socket.inet_pton(socket.AF_INET6, each) for each in (peer, here)) + packet


def url(six: bool, address: str | None = None) -> str:
    address = address or ADDRESSES[six]
    return f"icmp://[{address}]" if six else f"icmp://{address}"


async def of(network, target, timeout=0.3, **options):
    """Measures from the device."""
    with within(network.device):
        return await measure(target, timeout, **options)


async def test_a_host_that_answers(network, kind, six):
    """An echo is sent and answered: `send` and `wait`, the round trip, an address without a port."""
    result = await of(network, url(six))
    assert result.error is None
    assert reached(result) == ["send", "wait"]
    assert (result.icmp.sent, result.icmp.received) == (1, 1)
    trips = result.icmp.rtt_ms
    assert 0 < trips.min == trips.avg == trips.max < 100
    assert trips.stddev == 0
    assert (result.peer.address, result.peer.port) == (ADDRESSES[six], None)
    assert result.peer.family == ("ipv6" if six else "ipv4")


@pytest.mark.parametrize("address", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
async def test_loopback(address):
    """This very machine answers, where it may be asked."""
    result = await measure(
        f"icmp://[{address}]" if ":" in address else f"icmp://{address}", count=2, size=8, timeout=1.0
    )
    if result.error is not None and os.geteuid():
        assert result.error.code == "local_resource"
        pytest.skip("this user may not send ICMP")
    assert (result.icmp.sent, result.icmp.received) == (2, 2)


async def test_echoes_are_spread(network, kind, six):
    """They go at even distance within the first half of the time, each answered on its own; the last answer ends it."""
    begun = time.monotonic()
    result = await of(network, url(six), timeout=1.0, count=4)
    assert 0.37 < time.monotonic() - begun < 0.6
    assert (result.icmp.sent, result.icmp.received) == (4, 4)
    assert result.phases_ms.wait > 370


@pytest.mark.parametrize("size", [8, 9, 1400, 20_000])
async def test_sizes(network, kind, six, size):
    """Payloads of any size go and come back, in fragments too."""
    async with host(network, six, lambda echo, _: [echo.reply()]) as echoes:
        result = await of(network, url(six), size=size)
    assert result.error is None
    assert [len(echo.payload) for echo in echoes] == [size]


def earlier(echo, echoes):
    """What answers the one before it, too late."""
    return [echoes[-2].reply()] if len(echoes) > 1 else []


# What the host does, the error or None, and how many count as answered of three.
BEHAVIOURS = {
    "answers": (lambda e, _: [e.reply()], None, 3),
    "slowly": (lambda e, _: [0.08, e.reply()], None, 3),
    "silent": (lambda e, _: [], TIMEOUT, 0),
    "duplicates": (lambda e, _: [e.reply(), e.reply(), 0.01, e.reply()], None, 3),
    "duplicates of one": (lambda e, _: [e.reply()] * 3 if e.sequence == 1 else [], TIMEOUT, 1),
    "some": (lambda e, _: [e.reply()] if e.sequence == 2 else [], TIMEOUT, 1),
    "another's identifier": (lambda e, _: [e.reply(identifier=e.identifier ^ 1)], TIMEOUT, 0),
    "another's payload": (lambda e, _: [e.reply(payload=os.urandom(len(e.payload)))], TIMEOUT, 0),
    "its end changed": (lambda e, _: [e.reply(payload=e.payload[:-1] + b"x")], TIMEOUT, 0),
    "longer": (lambda e, _: [e.reply(payload=e.payload + b"x" * 500)], TIMEOUT, 0),
    "cut short": (lambda e, _: [e.reply(payload=e.payload[:20])], None, 3),
    "nothing of it": (lambda e, _: [e.reply(payload=b"")], TIMEOUT, 0),
    "a number not sent": (lambda e, _: [e.reply(sequence=e.sequence + 1000)], TIMEOUT, 0),
    "before it was asked": (lambda e, _: [e.reply(sequence=3)] if e.sequence == 1 else [], TIMEOUT, 0),
    "from another address": (lambda e, _: [(e.reply(), "other")], TIMEOUT, 0),
    "another type": (lambda e, _: [e.reply(kind=14), e.reply(kind=9)], TIMEOUT, 0),
    "the one before": (earlier, TIMEOUT, 2),
    "noise": (lambda e, _: [e.reply()[:7] + os.urandom(30)], TIMEOUT, 0),
}


@pytest.mark.parametrize("case", BEHAVIOURS)
async def test_behaviours(network, kind, six, case):
    """Only the replies to these very echoes count, each once."""
    behaviour, expected, received = BEHAVIOURS[case]
    # What is to be answered has the time that a busy machine may need.
    timeout = 1.5 if received else 0.3
    async with host(network, six, behaviour) as echoes:
        result = await of(network, url(six), timeout, count=3)
        await asyncio.sleep(0)
    assert result.icmp.sent == len(echoes) == 3
    assert (failure(result), result.icmp.received) == (expected, received)
    assert (result.icmp.rtt_ms is None) == (received == 0)


async def test_a_late_reply_of_an_earlier_probe(network, kind, six):
    """What answers the probe before does not count for this one."""
    async with host(network, six, earlier) as echoes:
        for _ in range(2):
            assert failure(await of(network, url(six), timeout=0.2)) == TIMEOUT
    assert len({echo.payload for echo in echoes}) == 2


@pytest.mark.parametrize(("loss", "up"), [(0.0, False), (0.6, False), (0.67, True), (1.0, True)])
async def test_loss(network, six, loss, up):
    """So much may be lost, and no more."""
    network.ping_sockets(allowed=True)
    async with host(network, six, BEHAVIOURS["some"][0]):
        result = await of(network, url(six), count=3, expect={"loss": loss})
    assert (result.error is None) == up
    if not up:
        assert result.error.message.startswith("2 of 3 echoes without a reply")


async def test_it_ends_when_all_are_answered(network, kind, six):
    """Nobody waits for what has come."""
    begun = time.monotonic()
    await of(network, url(six), timeout=5.0)
    assert time.monotonic() - begun < 1


async def test_a_router_says_that_it_is_unreachable(network, kind, six):
    """That is known at once, and put down to the way; the message says who said it and why."""
    if not six:
        await asyncio.sleep(1.1)  # a router of Linux says so once a second to one host
    begun = time.monotonic()
    result = await of(network, url(six, "fd17:3::1" if six else "10.217.3.1"), timeout=3.0)
    assert time.monotonic() - begun < 1
    assert failure(result) == ("icmp_unreachable", "wait", "path")
    assert reached(result) == ["send", "wait"]
    told = "fd17:1::254 says: no route" if six else "10.217.1.254 says: host unreachable"
    assert result.error.message == f"no reply: {told}"


def error(kind: int, code: int, *, quotes: int = 1000):
    """An ICMP error about what came."""

    def behaviour(echo, _):
        packet = struct.pack("!BBHI", kind, code, 0, 0) + echo.request[:quotes]
        if not echo.six:
            packet = packet[:2] + icmp_packet._checksum(packet).to_bytes(2, "big") + packet[4:]
        return [packet]

    return behaviour


# Type, code, and why, of IPv4 and of IPv6.
ERRORS = [
    (3, 0, 1, 0, "network unreachable|no route"),
    (3, 13, 1, 1, "communication prohibited"),
    (3, 3, 1, 4, "port unreachable"),
    (3, 7, 1, 6, "unreachable, code [67]"),
    (11, 0, 3, 0, "time exceeded"),
]


@pytest.mark.parametrize(("kind_4", "code_4", "kind_6", "code_6", "why"), ERRORS)
async def test_the_host_itself_says_that_it_is_unreachable(network, kind, six, kind_4, code_4, kind_6, code_6, why):
    """Then it is the target's; whatever is wrong with the address, somebody is there."""
    behaviour = error(kind_6, code_6) if six else error(kind_4, code_4, quotes=28)
    async with host(network, six, behaviour):
        result = await of(network, url(six), timeout=2.0, count=2)
    assert failure(result) == ("icmp_unreachable", "wait", "target")
    assert re.fullmatch(f"2 of 2 echoes without a reply: {ADDRESSES[six]} says: ({why})", result.error.message)
    assert result.duration_ms < 1500


@pytest.mark.parametrize(("kind_4", "kind_6"), [(4, 2), (5, 4), (12, 137)])
async def test_other_news_are_no_verdict(network, kind, six, kind_4, kind_6):
    """Too big, redirect, parameter problem: the echo is waited for all the same."""
    behaviour = error(kind_6, 0) if six else error(kind_4, 0)
    async with host(network, six, lambda e, es: [*behaviour(e, es), 0.05, e.reply()]):
        assert (await of(network, url(six))).error is None


async def test_unreachable_for_one_of_them(network, kind, six):
    """What was answered counts; that it was said of another one does not make the host unreachable."""
    behaviour = error(1, 3) if six else error(3, 1)
    async with host(network, six, lambda e, es: behaviour(e, es) if e.sequence == 1 else [e.reply()]):
        result = await of(network, url(six), count=3)
    assert (failure(result), result.icmp.received) == (TIMEOUT, 2)


async def test_a_reply_after_all(network, kind, six):
    """An error first and then the reply: it was answered."""
    behaviour = error(1, 3) if six else error(3, 1)
    async with host(network, six, lambda e, es: [*behaviour(e, es), e.reply()]):
        result = await of(network, url(six), count=2, timeout=1.0)
    assert result.icmp.received >= 1


async def test_a_black_hole(network, kind, six):
    """Silence is a time-out."""
    result = await of(network, url(six, "fd17:4::1" if six else "10.217.4.1"), timeout=0.3)
    assert failure(result) == TIMEOUT
    assert result.error.message == "no reply within the timeout"
    assert result.phases_ms.wait > 250


async def test_a_neighbour_that_is_not_there(network, kind, six):
    """This device's own kernel says so in the end, which is told."""
    result = await of(network, url(six, "fd17:1::77" if six else "10.217.1.77"), timeout=2.0)
    assert failure(result) == ("icmp_unreachable", "wait", "path")
    here, why = ("fd17:1::1", "address unreachable") if six else ("10.217.1.1", "host unreachable")
    assert result.error.message == f"no reply: {here} (this device) says: {why}"


async def test_an_address_in_another_form(network):
    """However an address is written, its own word and its replies are its own."""
    network.ping_sockets(allowed=True)
    async with host(network, True, error(1, 4)):
        result = await of(network, "icmp://[fd17:2:0:0:0::1]", timeout=1.0)
    assert failure(result) == ("icmp_unreachable", "wait", "target")
    assert (await of(network, "icmp://[fd17:2:0:0:0::1]")).error is None


async def test_no_route(network, kind, six):
    """That this device has no way there is its own affair, known at once."""
    result = await of(network, url(six, "fd17:6::1" if six else "10.217.6.1"))
    assert failure(result) == ("local_network", "send", "local")
    assert result.icmp is None
    assert reached(result) == ["send"]


async def test_interface_down(network, kind, six):
    """So it is when the interface goes down between two echoes."""
    with within(network.device):
        measuring = asyncio.ensure_future(measure(url(six), 1.0, count=3))
        await asyncio.sleep(0.1)
    try:
        network.run(network.device, "ip link set out down")
        result = await measuring
    finally:
        network.run(network.device, "ip link set out up")
        network.run(network.device, "ip addr replace fd17:1::1/64 dev out nodad")
        network.run(network.device, "ip route replace default via 10.217.1.254")
        network.run(network.device, "ip route replace default via fd17:1::254")
    assert failure(result) == ("local_network", "wait", "local")


async def test_neither_kind_of_socket(network, six):
    """Without the right to send ICMP nobody else is blamed, and the message says how to get it."""
    network.ping_sockets(allowed=False)
    os.seteuid(65534)
    try:
        with within_as_root(network.device):
            result = await measure(url(six))
    finally:
        os.seteuid(0)
    assert failure(result) == ("local_resource", "send", "local")
    assert "net.ipv4.ping_group_range='0 2147483647'" in result.error.message
    assert "CAP_NET_RAW" in result.error.message


async def test_a_ping_socket_needs_no_capability(network, six):
    """An ordinary user measures, where the group is allowed to."""
    network.ping_sockets(allowed=True)
    with within_as_root(network.device):
        os.seteuid(65534)
        try:
            assert (await measure(url(six))).error is None
        finally:
            os.seteuid(0)


@contextlib.contextmanager
def within_as_root(namespace):
    user = os.geteuid()
    os.seteuid(0)
    with within(namespace):
        os.seteuid(user)
        try:
            yield
        finally:
            os.seteuid(0)


async def test_no_descriptor_left(network, six, monkeypatch):
    """A device without a free file descriptor could not measure, and says so."""
    import errno

    def none_left(*_):
        raise OSError(errno.EMFILE, "x")

    monkeypatch.setattr(icmp, "_open", lambda six: none_left())
    assert failure(await of(network, url(six))) == ("local_resource", "send", "local")


async def test_names(network):
    """A name is resolved, which has its own phase; `ip` chooses the family."""
    network.ping_sockets(allowed=True)
    with within(network.device):
        async with dns_server(zone(host__example=["10.217.2.1", "fd17:2::1"])) as server:
            for ip in ("4", "6"):
                result = await measure("icmp://host.example", server=server, ip=ip)
                assert result.error is None
                assert reached(result) == ["resolve", "send", "wait"]
                assert result.peer.address == ADDRESSES[ip == "6"]
                assert result.resolver == "127.0.0.1"
            result = await measure("icmp://other.example", server=server)
    assert failure(result) == ("dns_nxdomain", "resolve", "target")
    assert (result.icmp, result.peer, reached(result)) == (None, None, ["resolve"])


async def test_connect_to(network):
    """An address may be given instead of resolving."""
    network.ping_sockets(allowed=True)
    result = await of(network, "icmp://host.example", connect_to="10.217.2.1")
    assert (failure(result), result.peer.address) == (None, "10.217.2.1")


async def test_ipv6_black_holes_while_ipv4_works(network):
    """The preferred family has half of the time, then the other one; the first try is in `attempts`."""
    network.ping_sockets(allowed=True)
    with within(network.device):
        async with dns_server(zone(host__example=["10.217.2.1", "fd17:4::1"])) as server:
            result = await measure("icmp://host.example", 0.6, server=server)
    assert (failure(result), result.peer.address) == (None, "10.217.2.1")
    (tried,) = result.attempts
    assert (tried.address, tried.error.code) == ("fd17:4::1", "icmp_timeout")
    assert result.duration_ms > 290


async def test_both_families_are_silent(network):
    """Then the error is the last one's."""
    network.ping_sockets(allowed=True)
    with within(network.device):
        async with dns_server(zone(host__example=["10.217.4.1", "fd17:4::1"])) as server:
            result = await measure("icmp://host.example", 0.4, server=server)
    assert failure(result) == TIMEOUT
    assert [tried.address for tried in result.attempts] == ["fd17:4::1"]


async def test_a_busy_loop_does_not_lengthen_round_trips(network, kind, six):
    """The kernel's stamp counts, not when the loop came to read."""
    with within(network.device), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stamped:
        # When the first socket asks for stamps, the kernel begins with them only a moment later (net_enable_timestamp).
        stamped.setsockopt(socket.SOL_SOCKET, datagram._TIMESTAMPNS, 1)
        await asyncio.sleep(0.1)
        measuring = asyncio.ensure_future(measure(url(six), count=3, timeout=0.6))
        for _ in range(20):
            await asyncio.sleep(0.001)
            time.sleep(0.02)
        result = await measuring
    assert result.error is None
    assert result.icmp.rtt_ms.max < 10


async def test_many_at_once(network, kind):
    """A hundred measurements of one host take only what is theirs."""
    with within(network.device):
        results = await asyncio.gather(*(measure(url(False), count=2, timeout=1.0) for _ in range(100)))
    assert all((result.error, result.icmp.received) == (None, 2) for result in results)
