"""Several tries of one measurement: when there is another one, how much time each has, and what is told of them."""

import asyncio
import socket
import time
from itertools import pairwise

import pytest

from agent.inquiry.questions import measure_again
from agent.probers import prober_of
from agent.probers.attempts import Attempts
from agent.probers.http import HttpProber
from agent.probers.resolver import Resolver
from agent.probers.result import Error, Phases, Result
from agent.schedule import Measurement
from tests.probers.conftest import IPV6
from tests.probers.dns_server import SERVFAIL, dns_server, reply, zone
from tests.probers.http_server import HOLD, OK, answers, failure, redirect, says, site, target_of
from tests.probers.measuring import measure
from tests.probers.namespaces import within

ILL = b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n"


def in_turn(*behaviours):
    """The first connection meets the first behaviour, and so on; those beyond meet the last."""

    async def behaviour(site, reader, writer):
        await behaviours[min(site.connections, len(behaviours)) - 1](site, reader, writer)

    return behaviour


def told(result):
    """Number, address and code of each earlier try."""
    return [(tried.attempt, tried.address, tried.error.code) for tried in result.attempts]


def spent(phases):
    """Milliseconds."""
    return sum(getattr(phases, name) or 0.0 for name in phases.__struct_fields__)


async def test_one_that_is_up_at_once(host):
    """There is one try, as long as none fails."""
    async with site(answers(OK), host) as there:
        result = await measure(there.url(), attempts=5)
        assert (result.error, result.attempt, result.attempts, there.connections) == (None, 1, (), 1)


async def test_refused_and_then_served(host):
    """Who restarts is found up by the next try, which does not come at once."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.bind((host, 0))
        port = bound.getsockname()[1]
        measuring = asyncio.ensure_future(
            measure(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/", 4.0, attempts=3)
        )
        await asyncio.sleep(0.2)

        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            writer.close()

        async with await asyncio.start_server(serve, sock=bound):
            result = await measuring
    assert (result.error, result.attempt, result.http.status_code) == (None, 2, 200)
    assert told(result) == [(1, host, "connect_refused")]
    assert result.attempts[0].phases_ms.wait is None
    assert 600 < result.earlier_ms < 1500
    assert result.duration_ms == pytest.approx(result.earlier_ms + spent(result.phases_ms), abs=50)


async def test_silent_and_then_served(host):
    """A try that gets no answer ends with its share of the time, and the next one comes at once."""
    async with site(in_turn(answers(HOLD), answers(OK)), host) as there:
        result = await measure(there.url(), 1.0, attempts=2)
    assert (result.error, told(result)) == (None, [(1, host, "http_timeout_headers")])
    assert 490 < spent(result.attempts[0].phases_ms) < 700
    assert spent(result.phases_ms) < 200


async def test_a_wrong_answer_and_then_a_right_one():
    """Whatever makes a try fail is a reason for another one."""
    async with site(in_turn(answers(ILL), answers(OK))) as there:
        result = await measure(there.url(), attempts=2)
    assert (result.error, told(result)) == (None, [(1, "127.0.0.1", "status_mismatch")])


async def test_none_is_up(host):
    """The last try is the result, all before it are told in their order, and there are no more than asked for."""
    async with site(in_turn(answers(ILL), answers(), answers(ILL)), host) as there:
        result = await measure(there.url(), 2.0, attempts=3)
        assert there.connections == 3
    assert (failure(result), result.attempt) == (("status_mismatch", "receive", "target"), 3)
    assert told(result) == [(1, host, "status_mismatch"), (2, host, "http_closed")]


async def test_nobody_is_hammered():
    """Ten tries that fail at once are spread over the better part of the time."""
    begins = []

    async def ill(site, reader, writer):
        begins.append(time.monotonic())
        await answers(ILL)(site, reader, writer)

    async with site(ill) as there:
        result = await measure(there.url(), 2.0, attempts=10)
    gaps = [after - before for before, after in pairwise(begins)]
    assert (result.attempt, len(gaps)) == (10, 9)
    assert min(gaps) > 0.09
    assert begins[-1] - begins[0] > 1.2


async def test_the_time_is_divided(host):
    """Each of three silent tries has a third of the time."""
    async with site(answers(HOLD), host) as there:
        result = await measure(there.url(), 0.9, attempts=3)
    assert [number for number, _, _ in told(result)] == [1, 2]
    for phases in (*(tried.phases_ms for tried in result.attempts), result.phases_ms):
        assert 250 < spent(phases) < 450
    assert 890 < result.duration_ms < 1200


async def test_a_short_try_leaves_its_time_to_the_others():
    """What the first did not use the two after it share."""
    async with site(in_turn(answers(ILL), answers(HOLD))) as there:
        result = await measure(there.url(), 1.2, attempts=3)
    assert spent(result.attempts[0].phases_ms) < 200
    assert 450 < spent(result.attempts[1].phases_ms) < 650
    assert 400 < spent(result.phases_ms) < 650


async def test_each_try_follows_redirects():
    """A try is the whole of it, redirects included; the record's hops are those of the last."""
    moved = answers(redirect("/there"))
    async with site(in_turn(moved, answers(ILL), moved, answers(OK))) as there:
        result = await measure(there.url(), attempts=2)
        assert there.connections == 4
    assert (result.error, result.http.redirects, len(result.http.hops)) == (None, 1, 1)
    assert told(result) == [(1, "127.0.0.1", "status_mismatch")]
    assert result.duration_ms > result.earlier_ms


async def test_a_name_that_is_found_the_second_time():
    """A try that found no address has none."""
    known = zone(www__example=["127.0.0.1"])
    async with (
        dns_server(lambda q: [reply(q, rcode=SERVFAIL)] if q.number == 1 else known(q)) as names,
        site(answers(OK)) as there,
    ):
        result = await measure(there.url(name="www.example"), 3.0, server=names, attempts=2)
    assert (result.error, told(result)) == (None, [(1, None, "dns_servfail")])
    assert result.attempts[0].phases_ms.connect is None
    assert result.resolver == "127.0.0.1"


@IPV6
async def test_the_families_of_each_try():
    """The addresses that one try had in turn have its number, which tells them from other tries."""
    async with site(says()) as there:
        pass
    result = await measure(f"http://localhost:{there.port}/", 1.0, attempts=2)
    assert [tried[:2] for tried in told(result)] == [(1, "127.0.0.1"), (1, "::1"), (2, "127.0.0.1")]
    assert (result.attempt, result.peer.address) == (2, "::1")


@pytest.mark.parametrize("scheme", ["dns", "dns+tcp"])
async def test_a_dns_server(scheme):
    """So is a question to a DNS server."""
    known = zone(www__example=["192.0.2.1"])
    async with dns_server(lambda q: [reply(q, rcode=SERVFAIL)] if q.number == 1 else known(q)) as server:
        result = await measure(f"{scheme}://127.0.0.1:{server.port}/www.example", attempts=2)
    assert (result.error, told(result)) == (None, [(1, "127.0.0.1", "dns_servfail")])


async def test_an_echo(network):
    """So is an echo, of which the first is lost."""
    network.ping_sockets(allowed=True)
    setting = "ipv4/icmp_echo_ignore_all"
    network.set(network.host, setting, "1")
    try:
        with within(network.device):
            measuring = asyncio.ensure_future(measure("icmp://10.217.2.1", 1.0, attempts=2))
            await asyncio.sleep(0.1)
        network.set(network.host, setting, "0")
        with within(network.device):
            result = await measuring
    finally:
        network.set(network.host, setting, "0")
    assert (result.error, result.icmp.received) == (None, 1)
    assert told(result) == [(1, "10.217.2.1", "icmp_timeout")]


class Failing:
    """A prober that fails at once; `probed`: how often."""

    type = "http"

    def __init__(self):
        self.probed = 0

    async def probe(self, deadline):
        self.probed += 1
        return Result(0.0, Phases(), Error("connect", "local_network", "local", "no way"))


async def test_no_try_without_time():
    """When this device stood still until the deadline, what is told is the try that had its time."""
    prober = Failing()
    asyncio.get_running_loop().call_soon(time.sleep, 0.4)
    result = await Attempts(prober, 3).probe(time.monotonic() + 0.3)
    assert (prober.probed, result.attempt, result.attempts, result.earlier_ms) == (1, 1, (), 0.0)


async def test_what_is_this_devices_own_is_tried_again():
    """A link or a file descriptor may be there a moment later."""
    prober = Failing()
    result = await Attempts(prober, 3).probe(time.monotonic() + 0.3)
    assert (prober.probed, result.attempt) == (3, 3)
    assert told(result) == [(1, None, "local_network"), (2, None, "local_network")]


async def test_a_second_look_is_one_try():
    """What is asked once more before anyone is blamed is asked once."""
    async with dns_server(lambda q: [reply(q, rcode=SERVFAIL)]) as server:
        target = target_of(f"dns://127.0.0.1:{server.port}/www.example", attempts=3)
        prober = prober_of(target, Resolver())
        result = await prober.probe(time.monotonic() + 1.0)
        assert len(server.questions) == 3
        await measure_again(Measurement(target, prober, 0.0, 0.0, 0.0, result))
        assert len(server.questions) == 4


def test_a_single_try_costs_nothing():
    """Without the option there is nothing around the prober."""
    assert type(prober_of(target_of("http://a.example/"), Resolver())) is HttpProber
