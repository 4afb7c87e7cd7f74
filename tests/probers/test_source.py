"""What a target's source is for, on a device with two uplinks: by which way a probe leaves, and what that proves."""

import asyncio
import contextlib
import errno
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from agent.device.uplink import Ways
from agent.record import result_schema
from tests.probers.dns_server import dns_server, reply, zone
from tests.probers.http_server import HOLD, OK, answers, failure, redirect, site
from tests.probers.http_server import measure as measure_redirected
from tests.probers.measuring import measure
from tests.probers.namespaces import within

RESULT = jsonschema.Draft202012Validator(result_schema())
ROOT = Path(__file__).parent.parent.parent
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
HOST, SIX = "10.217.2.1", "fd17:2::1"
SECOND, SECOND_SIX = "10.217.8.1", "fd17:8::1"  # the device's addresses at its second uplink
FIRST_IS_DEAD = "ip route add blackhole 10.217.1.1"  # for the router, to which what came by it is to go back
FIRST_IS_DEAD_SIX = "ip route add blackhole fd17:1::1"
SECOND_IS_DEAD = "ip route add blackhole 10.217.8.1"
SOURCES = [("second", False), ("second", True), (SECOND, False), (SECOND_SIX, True)]


@pytest.fixture
def uplinks(network):
    """The network, with a second uplink of the device, `second`, beside `out`: to the same router, less preferred."""
    network.ping_sockets(allowed=True)
    network.run(network.router, f"ip link add to8 type veth peer name second netns {network.device}")
    for name, where, last in (("to8", network.router, "254"), ("second", network.device, "1")):
        network.run(where, f"ip addr add 10.217.8.{last}/24 dev {name}")
        network.run(where, f"ip addr add fd17:8::{last}/64 dev {name} nodad")
        network.run(where, f"ip link set {name} up")
    network.run(network.device, "ip route add default via 10.217.8.254 metric 200")
    network.run(network.device, "ip route add default via fd17:8::254 metric 2048")
    network.set(network.device, "ipv4/neigh/second/retrans_time_ms", "50")
    yield network
    dead = (FIRST_IS_DEAD, FIRST_IS_DEAD_SIX, SECOND_IS_DEAD)
    for left in ("ip link del to8", *(each.replace("add", "del") for each in dead)):
        with contextlib.suppress(subprocess.CalledProcessError):  # which is not there in most tests
            network.run(network.router, left)


@contextlib.asynccontextmanager
async def peers_of_a_site(uplinks, host, behaviour=answers(OK)):  # noqa: B008
    """A site on the host, and the addresses from which it was visited."""
    peers = []

    async def visited(site, reader, writer):
        peers.append(writer.get_extra_info("peername")[0])
        await behaviour(site, reader, writer)

    async with contextlib.AsyncExitStack() as stack:
        with within(uplinks.host):
            there = await stack.enter_async_context(site(visited, host))
        yield there, peers


@contextlib.asynccontextmanager
async def dns_on_the_host(uplinks, behaviour, host=HOST):
    async with contextlib.AsyncExitStack() as stack:
        with within(uplinks.host):
            server = await stack.enter_async_context(dns_server(behaviour, host))
        yield server


@pytest.mark.parametrize(("source", "six"), SOURCES)
async def test_http(uplinks, source, six):
    """A connection comes from the address, or by the interface; without a source by the preferred one."""
    async with peers_of_a_site(uplinks, SIX if six else HOST) as (there, peers):
        with within(uplinks.device):
            results = [await measure(there.url(), source=each) for each in (source, None)]
    assert [result.error for result in results] == [None, None]
    assert peers == ([SECOND_SIX, "fd17:1::1"] if six else [SECOND, "10.217.1.1"])


@pytest.mark.parametrize("sockets", ["ping", "raw"])
@pytest.mark.parametrize(("source", "six"), SOURCES)
async def test_icmp(uplinks, source, six, sockets):
    """So does an echo, by either kind of socket: what came by the first uplink is not answered here."""
    uplinks.ping_sockets(allowed=sockets == "ping")
    host = f"[{SIX}]" if six else HOST
    uplinks.run(uplinks.router, FIRST_IS_DEAD_SIX if six else FIRST_IS_DEAD)
    with within(uplinks.device):
        well, dead = await measure(f"icmp://{host}", source=source), await measure(f"icmp://{host}", 0.4)
    assert (well.error, well.icmp.received) == (None, 1)
    assert failure(dead) == ("icmp_timeout", "wait", "path")


@pytest.mark.parametrize("scheme", ["dns", "dns+tcp"])
@pytest.mark.parametrize(("source", "six"), SOURCES)
async def test_dns(uplinks, source, six, scheme):
    """So does a question, and after a truncated answer the same over TCP."""
    came = []

    def behaviour(question):
        came.append(question.tcp)
        return [reply(question, flags=0x8100 | (0 if question.tcp else 0x0200))]

    host = SIX if six else HOST
    async with dns_on_the_host(uplinks, behaviour, host) as server:
        url = (
            f"{scheme}://[{host}]:{server.port}/www.example" if six else f"{scheme}://{host}:{server.port}/www.example"
        )
        uplinks.run(uplinks.router, FIRST_IS_DEAD_SIX if six else FIRST_IS_DEAD)
        with within(uplinks.device):
            well, dead = await measure(url, source=source), await measure(url, 0.4)
    assert (well.error, came[:2]) == (None, [True] if scheme == "dns+tcp" else [False, True])
    assert dead.error.code in ("dns_timeout", "connect_timeout")


@pytest.mark.parametrize("scheme", ["http", "icmp", "dns", "dns+tcp"])
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("10.217.8.77", "10.217.8.77, its source, is no address of this device"),
        ("wwan7", "wwan7, its source, is no interface of this device"),
        ("fd17:8::1", "fd17:8::1, its source, is of the other version of IP"),
    ],
)
async def test_a_source_that_is_not_here(uplinks, scheme, source, why):
    """Then this device could not measure, and says why."""
    with within(uplinks.device):
        result = await measure(f"{scheme}://{HOST}/{'www.example' if 'dns' in scheme else ''}", source=source)
    assert (result.error.code, result.error.attribution) == ("local_network", "local")
    assert why in result.error.message
    assert result.duration_ms < 300


async def test_a_port_is_taken_for_each_connection_alone(uplinks):
    """Connections from one address to different ones may have the same port. Datagrams may not, which blames nobody."""
    ports = "ipv4/ip_local_port_range"
    async with (
        peers_of_a_site(uplinks, HOST, answers(0.3, OK)) as (one, _),
        peers_of_a_site(uplinks, "10.217.2.2", answers(0.3, OK)) as (other, _),
        dns_on_the_host(uplinks, lambda question: [0.3, reply(question)]) as server,
    ):
        uplinks.set(uplinks.device, ports, "61000 61000")
        question = f"dns://{HOST}:{server.port}/www.example"
        try:
            with within(uplinks.device):
                connections = await asyncio.gather(*(measure(each.url(), source=SECOND) for each in (one, other)))
                questions = await asyncio.gather(*(measure(question, source=SECOND) for _ in range(2)))
        finally:
            uplinks.set(uplinks.device, ports, "32768 60999")
    assert [result.error for result in connections] == [None, None]
    assert [failure(result) for result in questions] == [None, ("local_resource", "send", "local")]


@pytest.mark.parametrize("scheme", ["http", "icmp", "dns", "dns+tcp"])
async def test_an_interface_that_is_down(uplinks, scheme):
    """There is no route by it, whatever others there are."""
    uplinks.run(uplinks.device, "ip link set second down")
    with within(uplinks.device):
        result = await measure(f"{scheme}://{HOST}/{'www.example' if 'dns' in scheme else ''}", source="second")
    assert (result.error.code, result.error.attribution) == ("local_network", "local")
    assert "Network is unreachable" in result.error.message


async def test_a_redirect_to_the_other_version_of_ip(uplinks):
    """An address that cannot be reached from the source is not tried, and nobody is blamed."""
    async with peers_of_a_site(uplinks, HOST, answers(redirect(f"http://[{SIX}]:1/"))) as (there, _):
        with within(uplinks.device):
            result = await measure_redirected(there.url(), source=SECOND)
    assert failure(result) == ("local_network", "connect", "local")
    assert "of the other version of IP" in result.error.message


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_resolver_of_a_target_is_asked_by_its_source(uplinks, tcp):
    """One that was written down is asked the same way as the target, over TCP too; the first way is dead here."""
    known = zone(www__example=[HOST])

    def behaviour(question):
        return [reply(question, flags=0x8300)] if tcp and not question.tcp else known(question)

    uplinks.run(uplinks.router, FIRST_IS_DEAD)
    async with dns_on_the_host(uplinks, behaviour) as server:
        url, resolver = f"dns://www.example:{server.port}/www.example", f"{HOST}:{server.port}"
        with within(uplinks.device):
            well = [await measure(url, 5.0, source=source, resolver=resolver) for source in ("second", SECOND)]
            without = await measure(url, 0.4, resolver=resolver)
            uplinks.run(uplinks.device, "ip link set second down")
            no_link = await measure(url, 0.4, source="second", resolver=resolver)
            not_ours = await measure(url, 0.4, source="10.217.8.77", resolver=resolver)
    assert [result.resolver for result in well] == [HOST, HOST]
    assert failure(without) == ("dns_timeout", "resolve", "resolver")
    assert failure(no_link) == failure(not_ours) == ("local_network", "resolve", "local")
    assert "10.217.8.77, its source, is no address of this device" in not_ours.error.message


async def test_a_resolver_on_this_device_is_asked_as_ever(uplinks):
    """By no interface but its own could it be reached."""
    async with peers_of_a_site(uplinks, HOST) as (there, peers):
        with within(uplinks.device):
            async with dns_server(zone(www__example=[HOST])) as server:
                result = await measure(there.url(name="www.example"), source="second", server=server)
    assert (result.error, peers) == (None, [SECOND])


async def test_the_interface_goes_while_it_is_measured(uplinks):
    """The probe ends in time, and there is no link where it was."""
    async with peers_of_a_site(uplinks, HOST, answers(HOLD)) as (there, peers):
        with within(uplinks.device):
            measuring = asyncio.ensure_future(measure(there.url(), 1.0, source="second"))
            while not peers:
                await asyncio.sleep(0.01)
            uplinks.run(uplinks.device, "ip link del second")
            result = await measuring
            way = Ways().to(HOST, 0.0, "second")
    assert failure(result) == ("http_timeout_headers", "wait", "path")
    assert (way.route, way.interface, way.link, way.barred) == (False, "second", False, True)


def test_the_way_from_a_source(uplinks):
    """Route, interface, link and gateway are those of the source, as far as they can be told."""
    with within(uplinks.device):
        ways = Ways()
        first, second, address = (ways.to("11.1.1.1", 0.0, source) for source in ("out", "second", SECOND))
        six, other = ways.to("2001:db8::1", 0.0, "second"), ways.to("2001:db8::1", 0.0, SECOND)
    assert [(way.route, way.interface, way.gateway) for way in (first, second, six)] == [
        (True, "out", "10.217.1.254"),
        (True, "second", "10.217.8.254"),
        (True, "second", "fd17:8::254"),
    ]
    assert (address.route, address.interface, address.link) == (True, None, None)
    assert other.route is None


async def probed(uplinks, folder, targets):
    """The records of targets, by id, that the command makes on the device, without any capability."""
    config = folder / "config.yaml"
    config.write_text(
        "location: {id: here}\nkafka: {bootstrap_servers: ['10.217.4.9:9']}\ndefaults: {interval: 1s, timeout: 400ms}\n"
        "targets:\n" + "".join(f"- {{id: {name}, {target}}}\n" for name, target in targets.items())
    )
    probe = [sys.executable, "-m", "agent", "probe", "--config", config, "--json", "--all"]
    command = ["ip", "netns", "exec", uplinks.device, *WITHOUT_CAPABILITIES, *probe]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, timeout=30)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    for record in records:
        RESULT.validate(record)
    assert records, done.stderr
    return {record["target"]["id"]: record for record in records}


def statuses(records):
    return {name: record["status"] for name, record in records.items()}


@pytest.mark.command
@pytest.mark.parametrize("fault", ["ip link set to8 down", "ip addr flush dev to8", SECOND_IS_DEAD])
async def test_of_two_uplinks_one_is_dead(uplinks, tmp_path, fault):
    """What goes by the living one is up, and vouches for nothing that goes by the dead one: that is unknown."""
    async with (
        peers_of_a_site(uplinks, HOST) as (there, _),
        dns_on_the_host(uplinks, lambda question: [reply(question)]) as server,
    ):
        uplinks.run(uplinks.router, fault)
        urls = {
            "http": there.url(),
            "icmp": f"icmp://{HOST}",
            "dns": f"dns://{HOST}:{server.port}/www.example",
            "tcp": f"dns+tcp://{HOST}:{server.port}/www.example",
        }
        sources = {"": "", "-first": ", source: out", "-second": ", source: second", "-address": f", source: {SECOND}"}
        if fault != SECOND_IS_DEAD:
            del sources["-address"]  # by the routes of this device it leaves by the living one
        targets = {n + s: f"url: '{url}'{source}" for n, url in urls.items() for s, source in sources.items()}
        records = await probed(uplinks, tmp_path, targets)
    dead = {name for name in records if name.endswith(("-second", "-address"))}
    assert statuses(records) == {name: "unknown" if name in dead else "up" for name in targets}
    assert records["http-second"]["target"]["source"] == "second"
    assert records["http-second"]["evidence"]["interface"] == "second"
    assert "source" not in records["http"]["target"]


@pytest.mark.command
@pytest.mark.parametrize(
    ("silent", "witness", "status"),
    [
        ("second", "second", "down"),
        ("second", None, "unknown"),
        ("second", "out", "unknown"),
        (None, "second", "unknown"),
        (None, None, "down"),
        (SECOND, SECOND, "down"),
        (SECOND, "second", "unknown"),
    ],
)
async def test_who_vouches_for_what_has_a_source(uplinks, tmp_path, silent, witness, status):
    """Silence is blamed on the target when another one answers that goes by the very same source."""
    async with peers_of_a_site(uplinks, HOST) as (there, peers):
        options = {name: f", source: {source}" if source else "" for name, source in (("s", silent), ("w", witness))}
        targets = {"silent": f"url: 'http://10.217.4.1/'{options['s']}", "w": f"url: '{there.url()}'{options['w']}"}
        records = await probed(uplinks, tmp_path, targets)
    assert statuses(records) == {"silent": status, "w": "up"}
    assert set(peers) == {SECOND if witness in ("second", SECOND) else "10.217.1.1"}, (
        "the witness is asked by its source"
    )


@pytest.mark.command
async def test_a_second_look_goes_by_the_source(uplinks, tmp_path):
    """What is asked once more before anyone is blamed goes the same way."""
    async with peers_of_a_site(uplinks, HOST, answers(HOLD)) as (there, peers):
        records = await probed(uplinks, tmp_path, {"mute": f"url: '{there.url()}', source: second"})
    assert (records["mute"]["status"], records["mute"]["second_look"][0]["address"]) == ("down", HOST)
    assert peers == [SECOND, SECOND]


@pytest.mark.command
@pytest.mark.parametrize("here", [False, True])
async def test_names_of_targets_with_a_source(uplinks, tmp_path, here):
    """A name that is not there is the target's own trouble when the others are found the same way: by the source, or as
    the host asks a resolver on this device.
    """
    known = zone(one__example=[HOST], two__example=[HOST])

    def behaviour(question):
        return [0.2 if question.name == "gone.example" else 0.0, *known(question)]

    async with peers_of_a_site(uplinks, HOST) as (there, _), contextlib.AsyncExitStack() as stack:
        with within(uplinks.device if here else uplinks.host):
            server = await stack.enter_async_context(dns_server(behaviour, "127.0.0.1" if here else HOST))
        by = f"source: second, resolver: '{'127.0.0.1' if here else HOST}:{server.port}'"
        records = await probed(
            uplinks,
            tmp_path,
            {name: f"url: '{there.url(name=f'{name}.example')}', {by}" for name in ("one", "two", "gone")},
        )
    assert statuses(records) == {"one": "up", "two": "up", "gone": "down"}
    assert records["gone"]["error"]["code"] == "dns_nxdomain"
    assert records["gone"]["evidence"]["names_found"] == 2


TWICE = """
import socket
from agent.device.source import leave_by
with socket.socket() as made:
    leave_by(made, "lo")
    try:
        leave_by(made, "lo")
    except OSError as error:
        print(error.errno, error.strerror)
"""


def test_a_kernel_that_lets_only_root_choose_an_interface(uplinks):
    """It is said what to write instead. To choose it once more is forbidden by every kernel."""
    done = subprocess.run(
        [*WITHOUT_CAPABILITIES, sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = "the interface lo, its source, may be chosen by root only before Linux 5.7; name an address instead"
    assert done.stdout == f"{errno.EPERM} {told}\n"
