"""What may mislead the agent on a device: each has blamed a site that was well, or excused one that was not."""

import os
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.probers import certificates
from tests.truth.world import ROOT, Agent, World, missing


@pytest.fixture
def world():
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    certificates.trusted()  # is made once, and not by two threads at once
    made = World()
    yield made
    made.close()


def firewall(namespace, hook, rule):
    chain = f"chain inet own out {{ type filter hook {hook} priority 0; }}"
    namespace.run("nft", f"add table inet own; add {chain}; add rule inet own out {rule}")


def told(records):
    """What was measured: how often which target had which verdict, code and attribution."""
    measured = [each for each in records if "target" in each and each["duration_ms"] is not None]
    return Counter(
        (each["target"]["id"], each["status"], *((each["error"] or {}).get(key) for key in ("code", "attribution")))
        for each in measured
    )


def blamed(records, *ids):
    return {each: count for each, count in told(records).items() if each[1] == "down" and each[0].startswith(ids)}


def test_what_this_device_refuses_itself_is_no_witness_of_the_way_out(world, tmp_path):
    """One target is rejected by the device's own firewall, always; the line dies: nobody else is blamed."""
    firewall(world.device, "output", "tcp dport 82 reject with tcp reset")
    targets = "".join(f"  - {{id: own{n}, url: 'http://11.7.1.{n}:82/', timeout: 500ms}}\n" for n in (1, 2, 3))
    targets += "".join(f"  - {{id: well{n}, url: 'http://11.7.1.{n}/', timeout: 500ms}}\n" for n in (4, 5, 6))
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(4.0)
    world.carrier.loss = 1.0
    time.sleep(6.0)
    records = agent.stop()
    assert not blamed(records, "well")


@pytest.mark.parametrize("how", ["reject", "reject with icmpx admin-prohibited"])
def test_a_gateway_that_rejects(world, tmp_path, how):
    """The router's firewall says by ICMP, in its own name, that it lets nothing pass: no site is blamed for that, also
    where others had refused before, and seem to refuse still."""
    targets = "".join(f"  - {{id: well{n}, url: 'http://11.7.1.{n}/', timeout: 500ms}}\n" for n in range(1, 6))
    targets += "".join(f"  - {{id: closed{n}, url: 'http://11.7.1.{n}:82/', timeout: 500ms}}\n" for n in range(1, 6))
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(3.0)
    firewall(world.router, "forward", f"iifname lan0 {how}")
    time.sleep(5.0)
    records = agent.stop()
    assert not blamed(records, "well")
    assert ("closed1", "down", "connect_refused", "target") in told(records)


def test_one_that_is_rejected_by_somebody_on_the_way(world, tmp_path):
    """While others answer it is down all the same, and nobody says that it was the target who refused."""
    firewall(world.router, "forward", "ip daddr 11.7.1.1 reject")
    targets = "".join(f"  - {{id: well{n}, url: 'http://11.7.1.{n}/', timeout: 500ms}}\n" for n in range(2, 6))
    agent = Agent(world, tmp_path / "device", "  - {id: shut, url: 'http://11.7.1.1/', timeout: 500ms}\n" + targets)
    time.sleep(6.0)
    records = agent.stop()
    assert ("shut", "down", "connect_refused", "path") in told(records)
    assert ("shut", "down", "connect_refused", "target") not in told(records)


@pytest.mark.long
def test_references_of_a_family_that_this_device_has_not(world, tmp_path):
    """Two references cannot even be asked from here; the third one answers: the dead target is dead."""
    world.device.ip("-6 route delete default")
    more = "uplink: {references: ['https://[2a00:7:1::1]/', 'https://[2a00:7:1::2]/', 'http://11.7.1.1/']}"
    dead = "  - {id: dead, url: 'http://11.7.9.9/', timeout: 500ms}\n"
    agent = Agent(world, tmp_path / "device", dead, more=more)
    time.sleep(6.0)
    records = agent.stop()
    assert ("dead", "down", "connect_timeout", "path") in told(records)
    assert not [each for each in records if each.get("event") == "uplink_lost"]


@pytest.mark.long
def test_many_echoes_are_a_witness(world, tmp_path):
    """A device that measures by several echoes each, and nothing else, still sees that one host is dead."""
    targets = "".join(
        f"  - {{id: well{n}, url: 'icmp://11.7.1.{n}', count: 5, interval: 5s, timeout: 4500ms}}\n"
        for n in range(1, 25)
    )
    targets += "  - {id: dead, url: 'icmp://11.7.9.9', count: 5, interval: 5s, timeout: 4500ms}\n"
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(17.0)
    records = agent.stop()
    assert blamed(records, "dead")


@pytest.mark.long
def test_few_echoes_that_are_rare(world, tmp_path):
    """A device that measures a few hosts by echoes, and nothing else: those that answered are asked by one each."""
    hosts = {"dead": "11.7.9.9", **{f"well{n}": f"11.7.1.{n}" for n in range(1, 4)}}
    targets = "".join(
        f"  - {{id: {each}, url: 'icmp://{address}', interval: 10s, timeout: 500ms}}\n"
        for each, address in hosts.items()
    )
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(22.0)
    world.carrier.loss = 1.0
    time.sleep(12.0)
    records = agent.stop()
    assert blamed(records, "dead")
    assert not blamed(records, "well")


@pytest.mark.long
def test_a_refusal_among_many_who_are_silent(world, tmp_path):
    """What the device's firewall rejects is this device's, also when so many others have to be looked at just then."""
    firewall(world.device, "output", "tcp dport 82 reject with tcp reset")
    targets = "".join(f"  - {{id: own{n}, url: 'http://11.7.1.{n}:82/', timeout: 500ms}}\n" for n in range(1, 11))
    targets += "".join(f"  - {{id: dead{n}, url: 'http://11.7.9.{n}/', timeout: 500ms}}\n" for n in range(1, 101))
    targets += "".join(f"  - {{id: well{n}, url: 'http://11.7.1.{n}/', timeout: 500ms}}\n" for n in range(1, 4))
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(6.0)
    records = agent.stop()
    assert not blamed(records, "own")


@pytest.mark.long
def test_a_device_without_ipv4(world, tmp_path):
    """Its resolver fails, and nothing else: it has a way out."""
    world.device.ip("route delete default")
    world.device.ip("route add 11.7.0.53 via 10.77.0.1")
    targets = "  - {id: named, url: 'http://n2.example/', interval: 3s, timeout: 1s}\n"
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(11.0)
    world.sites.resolves = 2
    time.sleep(8.0)
    records = agent.stop()
    assert not [each for each in records if each.get("event") == "uplink_lost"]


STALLED = """
import asyncio, sys, time, uvloop
from agent.probers import asking

async def look():
    asyncio.get_running_loop().call_soon(time.sleep, 2.0)
    return await asking.connect("11.7.1.1", 80, 1.5)

for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
    with asyncio.Runner(loop_factory=factory) as runner:
        print(runner.run(look())[1])
"""


def test_a_stall_during_a_second_look(world):
    """A connection that was there long before its deadline is not silence because the loop stood still over it."""
    world.carrier.delay = 0.1
    asked = world.device.enter(sys.executable, "-c", STALLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == ["None", "None"], done.stderr


@pytest.mark.long
def test_silence_and_descriptors_that_come_back(world, tmp_path):
    """While no descriptor is left nobody is blamed, nor of what was silent just before."""
    targets = "".join(f"  - {{id: well{n}, url: 'http://11.7.1.{n}/', timeout: 500ms}}\n" for n in range(1, 9))
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(3.0)
    for _ in range(6):
        world.carrier.loss = 1.0
        time.sleep(0.7)
        agent.limit_files(agent.files())
        world.carrier.loss = 0.0
        time.sleep(1.0)
        agent.limit_files(None)
        time.sleep(1.5)
    records = agent.stop()
    assert not blamed(records, "well")


@pytest.mark.long
def test_a_reference_of_both_families(world, tmp_path):
    """A reference by a name that has addresses of both families vouches for both."""
    more = "uplink: {references: ['http://n2.example/']}"
    dead = "  - {id: dead, url: 'http://11.7.9.9/', timeout: 500ms}\n"
    agent = Agent(world, tmp_path / "device", dead, more=more)
    time.sleep(5.0)
    records = agent.stop()
    assert blamed(records, "dead")


def test_a_line_that_loses_what_is_large(world, tmp_path, monkeypatch):
    """The line takes small packets only and says nothing (a black hole of path MTU): no site is blamed for that."""
    targets = "".join(
        f"  - {{id: well{n}, url: 'https://n{n}.example/', ip: 4, timeout: 800ms, tls: {{ca: '{tmp_path}/ca.pem'}}}}\n"
        for n in (36, 37, 38)
    )
    targets += "".join(f"  - {{id: plain{n}, url: 'http://11.7.1.{n}/', timeout: 500ms}}\n" for n in range(1, 3))
    (tmp_path / "ca.pem").write_text(certificates.trusted())
    read, lost = os.read, [False]

    def carry(end, size):
        packet = read(end, size)
        if lost[0] and size == 65536 and len(packet) > 700:
            raise BlockingIOError
        return packet

    monkeypatch.setattr("tests.truth.world.os.read", carry)
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(4.0)
    lost[0] = True
    time.sleep(6.0)
    records = agent.stop()
    assert not blamed(records, "well")
    assert ("well36", "unknown", "tls_timeout", "unknown") in told(records)


def test_a_site_that_does_not_shake_hands(world, tmp_path):
    """It takes connections only, while another one of TLS is well, which is measured rarely: it is asked, and it is
    the site's."""
    (tmp_path / "ca.pem").write_text(certificates.trusted())
    tls = f"tls: {{ca: '{tmp_path}/ca.pem'}}"
    targets = f"  - {{id: well, url: 'https://n36.example/', ip: 4, interval: 5s, {tls}}}\n"
    targets += "  - {id: hung, url: 'https://11.7.1.7:81/', timeout: 500ms}\n"
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(11.0)
    records = agent.stop()
    assert ("hung", "down", "tls_timeout", "path") in told(records)
    last = next(each for each in reversed(records) if each.get("status") == "down")
    assert last["evidence"]["other"] == "11.7.1.36"
