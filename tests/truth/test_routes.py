"""The way that the kernel takes is not always the first one of its tables: nothing is excused by another."""

import os
import time

import pytest

from tests.truth.test_misled import blamed
from tests.truth.test_ways import way
from tests.truth.world import Agent, World, missing


@pytest.fixture
def world():
    """With a second interface, `e0`, whose cable is out, and a default route by it that is left out for that."""
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    made = World()
    for command in (
        "link add e0 type veth peer name e1",
        "link set e0 up",
        "address add 10.99.0.2/24 dev e0",
        "route delete default",
        "route add default via 10.77.0.1 dev eth0 metric 600",
    ):
        made.device.ip(command)
    yield made
    made.close()


def leave_out_what_is_down(world):
    world.device.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/ignore_routes_with_linkdown")
    world.device.ip("route add default via 10.99.0.1 dev e0 metric 100")


def test_a_route_that_the_kernel_leaves_out(world, tmp_path):
    """A better default route whose cable is out: the dead are down still, and there is a way out."""
    leave_out_what_is_down(world)
    told = way(world, "11.7.1.1")
    assert (told["interface"], told["gateway"], told["barred"]) == ("eth0", "10.77.0.1", False)
    targets = "".join(f"  - {{id: well{n}, url: 'http://11.7.1.{n}/', timeout: 500ms}}\n" for n in range(1, 4))
    targets += "  - {id: dead, url: 'http://11.7.9.9/', timeout: 500ms}\n"
    agent = Agent(world, tmp_path / "device", targets)
    time.sleep(6.0)
    records = agent.stop()
    assert blamed(records, "dead")
    assert not [each for each in records if each.get("event") == "uplink_lost"]


def test_a_rule_of_policy_routing(world):
    """What a rule sends elsewhere goes there; where the tables that can be read have no such route, nothing is told."""
    world.device.ip("route add default via 10.99.0.1 dev e0 metric 100")
    assert way(world, "11.7.1.1")["barred"]
    world.device.ip("route add default via 10.77.0.1 table 100")
    world.device.ip("rule add to 11.7.0.0/16 table 100")
    told = way(world, "11.7.1.1")
    assert (told["interface"], told["gateway"], told["barred"]) == ("eth0", "10.77.0.1", False)
    world.device.ip("route delete default via 10.77.0.1")
    told = way(world, "11.7.1.1")
    assert (told["route"], told["interface"], told["link"], told["barred"]) == (True, None, None, False)


def test_an_address_that_two_interfaces_have(world):
    """It is the best route by one of these."""
    world.device.ip("address add 10.77.0.2/32 dev e0")
    told = way(world, "11.7.1.1")
    assert (told["interface"], told["link"], told["gateway"]) == ("eth0", True, "10.77.0.1")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "10.77.0.2", "10.77.0.3", "fd77::2"])
def test_an_address_of_this_device(world, address):
    """It is reached by no cable and no gateway."""
    world.device.ip("address add 10.77.0.3/24 dev eth0 label eth0:1")
    told = way(world, address)
    assert (told["route"], told["interface"], told["link"]) == (True, "lo", True)
    assert (told["gateway"], told["gateway_answers"]) == (None, None)
