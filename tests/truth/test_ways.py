"""What the device knows of its own way out, on real interfaces."""

import json
import os
import subprocess
import sys

import pytest

from tests.truth.world import ROOT, World, missing

ASK = """
import json, os, sys, msgspec
from agent.device.uplink import Ways
ways = Ways()
ways.look(0.0)
for command in sys.argv[2:]:
    assert os.system(command) == 0
ways.look(1.0)
way = ways.to(sys.argv[1], 1.0)
print(json.dumps({**msgspec.structs.asdict(way), "changed": ways.changed("eth0", 0.5), "barred": way.barred}))
"""

CONNECT = """
import asyncio, sys
from agent.probers import asking
for each in sys.argv[1:]:
    address, port = each.split("/")
    print(asyncio.run(asking.connect(address, int(port), 1.5))[1])
"""


@pytest.fixture(scope="module")
def world():
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    made = World()
    yield made
    made.close()


def way(world, address, *commands):
    """The way to an address as seen on the device, after these commands there."""
    asked = world.device.enter(sys.executable, "-c", ASK, address, *commands)
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_is_well(world):
    """Route, interface, link and gateway, and that the gateway answers; for IPv6 too, as far as it can be told."""
    connects = f"{sys.executable} -c 'import socket; socket.create_connection((\"11.7.1.1\", 80), 5)'"
    assert way(world, "11.7.1.1", connects) == {
        "route": True,
        "interface": "eth0",
        "link": True,
        "gateway": "10.77.0.1",
        "gateway_answers": True,
        "changed": False,
        "barred": False,
    }
    assert way(world, "2a00:7:1::1")["gateway"] == "fd77::1"


def test_a_neighbour(world):
    """It is reached without a gateway, so none answers or is silent, whether there is anybody or not."""
    connect = f"{sys.executable} -c 'import socket; socket.create_connection((\"10.77.0.9\", 80), 1)' 2>/dev/null"
    told = way(world, "10.77.0.9", f"{connect} || true")
    assert (told["interface"], told["gateway"], told["gateway_answers"]) == ("eth0", None, None)


@pytest.mark.parametrize("kind", ["blackhole", "prohibit", "unreachable"])
def test_a_route_that_leads_nowhere(world, kind):
    """It is no route."""
    try:
        assert way(world, "11.7.1.1", f"ip route add {kind} 11.7.0.0/16")["barred"]
        assert not way(world, "11.8.1.1")["barred"]
    finally:
        world.device.ip(f"route delete {kind} 11.7.0.0/16")


FLAP = """
ip link set eth0 down; ip link set eth0 up; ip route add default via 10.77.0.1
ip -6 address replace fd77::2/64 dev eth0 nodad; ip -6 route replace default via fd77::1
"""


def test_a_link_that_was_down_for_a_moment(world):
    """It is up again when it is looked at, and the kernel has counted."""
    told = way(world, "11.7.1.1", FLAP)
    assert (told["changed"], told["barred"]) == (True, False)


def test_a_link_behind_those_of_many_containers(world):
    """Of a device that has an interface for each of them, with names that come before its own."""
    pairs = range(55)
    try:
        for number in pairs:
            world.device.ip(f"link add cali{number} type veth peer name cali{number}b")
        assert way(world, "11.7.1.1", FLAP)["changed"]
    finally:
        for number in pairs:
            world.device.ip(f"link delete cali{number}")


def test_the_cable_is_out(world):
    """The interface is up and has no carrier; the routes are there still."""
    world.router.ip("link set lan0 down")
    try:
        told = way(world, "11.7.1.1")
        assert (told["route"], told["link"], told["barred"]) == (True, False, True)
    finally:
        world.router.ip("link set lan0 up")
        world.router.ip("-6 address replace fd77::1/64 dev lan0 nodad")


REFUSED, NO_ANSWER, OWN = "connect_refused", "connect_timeout", "local_network"


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("", ["None", "None", REFUSED, REFUSED, "connect_unreachable", NO_ANSWER]),
        ("reject", [OWN] * 6),
        ("meta l4proto tcp reject with tcp reset", [OWN] * 6),
        ("reject with icmpx admin-prohibited", [OWN] * 6),
        ("tcp dport 80 reject with tcp reset", [OWN, OWN, REFUSED, REFUSED, OWN, OWN]),
        ("tcp dport 82 reject", ["None", "None", OWN, OWN, "connect_unreachable", NO_ANSWER]),
        ("tcp dport 80 drop", [NO_ANSWER, NO_ANSWER, REFUSED, REFUSED, NO_ANSWER, NO_ANSWER]),
    ],
)
def test_what_this_device_refuses_itself(world, rule, told):
    """What its own firewall rejects is told from the refusal of a site or a router; what it drops is not."""
    if rule:
        chain = "chain inet own out { type filter hook output priority 0; }"
        world.device.run("nft", f"add table inet own; add {chain}; add rule inet own out oifname eth0 {rule}")
    to = ["11.7.1.5/80", "2a00:7:1::5/80", "11.7.1.5/82", "2a00:7:1::5/82", "11.7.8.9/80", "11.7.9.9/80"]
    try:
        asked = world.device.enter(sys.executable, "-c", CONNECT, *to)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.stdout.split() == told, done.stderr
    finally:
        if rule:
            world.device.run("nft", "delete table inet own")


def test_what_serves_here_refuses_itself(world):
    """A closed port of this very device is the target's."""
    asked = world.device.enter(sys.executable, "-c", CONNECT, "10.77.0.2/9", "fd77::2/9", "127.0.0.1/9", "::1/9")
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == [REFUSED] * 4, done.stderr
