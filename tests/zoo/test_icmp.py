"""Every way in which a host or the way to it can meet an echo, all measured at once from a device in a network.

The host is a process in a namespace of its own, as in `tests.probers.namespaces`; all of the agent that measures is one
in the device's, for each event loop and each family of addresses. That needs root.
"""

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import msgspec
import pytest

from tests.probers.namespaces import Network, built
from tests.zoo.icmp import BEYOND, HOSTS, SITES, address_of, behaviours
from tests.zoo.measure import LOOPS, Report
from tests.zoo.oracle import wrong

pytestmark = pytest.mark.timeout(300)  # the first test waits for all runs

ROOT = Path(__file__).parent.parent.parent
INTERVAL = 4.0  # seconds: the second look at one that is silent is over before it is measured again
WELL = ("answers", "answers as well", "takes its time")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    for network in built():
        network.ping_sockets(allowed=True)
        for six in (False, True):
            for name in HOSTS:
                length = "64 dev out nodad" if six else "24 dev out"
                network.run(network.host, f"ip addr add {address_of(name, six=six)}/{length}")
            setting, limit = ("ipv6", "ipv6/icmp/ratelimit") if six else ("ipv4", "ipv4/icmp_ratelimit")
            network.set(network.host, limit, "0")
            network.set(network.host, "ipv4/icmp_ratemask", "0")
            network.set(network.host, "ipv6/icmp/echo_ignore_all" if six else "ipv4/icmp_echo_ignore_all", "1")
            network.set(network.host, "ipv6/conf/all/forwarding" if six else "ipv4/ip_forward", "1")
            network.set(network.host, f"{setting}/conf/all/accept_redirects", "0")
        network.run(network.router, "ip route add 10.217.7.0/24 via 10.217.2.1")
        network.run(network.router, "ip route add fd17:7::/64 via fd17:2::1")
        yield network


@pytest.fixture(scope="module")
def reports(network: Network) -> Iterator[dict[tuple[str, bool], Report]]:
    command = ["ip", "netns", "exec", network.host, sys.executable, "-m", "tests.zoo.icmp"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hosts:
        try:
            sites = msgspec.json.decode(hosts.stdout.readline())
            yield {(loop, six): _run(network, loop, six, sites) for loop, six in product(LOOPS, (False, True))}
        finally:
            hosts.communicate(timeout=10)


def _run(network: Network, loop: str, six: bool, sites: dict[str, list[str]]) -> Report:
    targets = [
        {"id": f"a site {number}", "interval": 1.0, "timeout": 1.0, "url": url}
        for number, url in enumerate(sites["ipv6" if six else "ipv4"])
    ]
    targets += [
        {"id": each.name, "interval": INTERVAL, "timeout": each.timeout, **options}
        for each, options in behaviours(six=six)
    ]
    command = ["ip", "netns", "exec", network.device, sys.executable, "-m", "tests.zoo.measure", loop]
    done = subprocess.run(
        command, cwd=ROOT, input=msgspec.json.encode(targets), stdout=subprocess.PIPE, check=True, timeout=120
    )
    return msgspec.json.decode(done.stdout, type=Report)


@pytest.fixture(params=list(product(LOOPS, (False, True))), ids=lambda each: f"{each[0]}-ipv{6 if each[1] else 4}")
def report(request, reports) -> Report:
    return reports[request.param]


BEHAVIOURS = {each.name: each for each, _ in behaviours(six=False)}


@pytest.mark.parametrize("name", [*HOSTS, *BEYOND])
def test_behaviour(name, report):
    """Each has its own verdict, whom to blame, the phases that were reached and no others; in time, each time."""
    observed = [each for each in report.observed if each.record.target.id == name and not each.spoiled]
    assert observed
    assert [list(wrong(BEHAVIOURS[name], each)) for each in observed] == [[]] * len(observed)


def test_who_is_well(report):
    """Beside all of them sites are up, and each echo to who is well is answered, once, in the time that it takes."""
    sites = [each for each in report.observed if each.record.target.type == "http" and not each.spoiled]
    assert len({each.record.target.id for each in sites}) == SITES
    assert [each.record.error for each in sites if each.record.status != "up"] == []
    observed = [each for each in report.observed if each.record.target.id in WELL and not each.spoiled]
    assert {each.record.target.id for each in observed} == set(WELL)
    for each in observed:
        assert (each.record.icmp.sent, each.record.icmp.received) == (1, 1)
        slow = each.record.target.id == "takes its time"
        assert (190 if slow else 0) <= each.record.icmp.rtt_ms.max < (400 if slow else 150)


def test_each_answer_counts_once(report):
    """Neither duplicates nor floods of them are more than what was sent."""
    for record in (each.record for each in report.observed if each.record.icmp is not msgspec.UNSET):
        assert 0 <= record.icmp.received <= record.icmp.sent
        if record.status == "up" and "loses" not in record.target.id:
            assert record.icmp.received == record.icmp.sent


def test_none_is_missed(report):
    """Silence holds nobody up, not even itself."""
    spoiled = {each.record.target.id for each in report.observed if each.spoiled}
    assert {name: why for name, why in report.missed.items() if name not in spoiled and "busy" not in why} == {}


def test_nothing_stays(report):
    """Neither open files nor tasks are left, nor the memory of what came."""
    (files_before, files_after), (tasks_before, tasks_after) = report.files, report.tasks
    assert (files_after, tasks_after) == (files_before, tasks_before)
    assert report.memory < 16 << 20
