"""What the unit's sandbox lets the agent measure with, and see of its device."""

import json

import pytest

from tests.device.machine import host
from tests.end_to_end.running import wait_for

FAR = "198.51.100.1"  # of this host, for one test; RFC 5737
GONE = "198.51.100.254"  # of nobody
# What a Raspberry Pi has of these, whose supply is too weak.
SENSORS = {
    "thermal/thermal_zone0/temp": "61250\n",
    "thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "thermal/cooling_device0/cur_state": "0\n",
    "hwmon/hwmon0/name": "rpi_volt\n",
    "hwmon/hwmon0/in0_lcrit_alarm": "1\n",
}


@pytest.fixture
def two_ways(device):
    """The device has a modem by which it reaches nobody, and which its kernel prefers for the way to `FAR`."""
    machine = device.machine
    host("ip", "address", "add", f"{FAR}/32", "dev", machine.link)
    machine.run("ip", "link", "add", "wwan0", "type", "veth", "peer", "name", "tower")
    for end in ("wwan0", "tower"):
        machine.run("ip", "link", "set", "dev", end, "up")
    machine.run("ip", "route", "add", FAR, "via", GONE, "dev", "wwan0", "onlink", "metric", "1")
    machine.run("ip", "route", "add", FAR, "via", machine.address, "dev", "host0", "metric", "2")
    yield device
    machine.run("ip", "link", "delete", "wwan0")
    machine.run("ip", "route", "delete", FAR)
    host("ip", "address", "delete", f"{FAR}/32", "dev", machine.link)


def test_a_source(two_ways):
    """Echoes and connections leave by the interface, or from the address, that a target has for its `source`; evidence
    tells of that way. An interface that the device has not is no fault of the target's.
    """
    device = two_ways
    near, port = device.machine.address, device.site.port
    wanted = {
        "near by interface": (f"icmp://{near}", "host0", "up"),
        "near from address": (f"icmp://{near}", device.machine.own, "up"),
        "site by interface": (f"http://{near}:{port}/", "host0", "up"),
        "site from address": (f"http://{near}:{port}/", device.machine.own, "up"),
        "far by interface": (f"icmp://{FAR}", "host0", "up"),
        "far by the modem": (f"icmp://{FAR}", "wwan0", "unknown"),
        "refused": (f"http://{FAR}:9/", "host0", "down"),
        "no interface": (f"icmp://{near}", "wwan9", "unknown"),
        "no address": (f"http://{near}:{port}/", "192.0.2.1", "unknown"),
    }
    device.configure(
        targets="".join(
            f"  - {{id: {name.replace(' ', '-')}, url: '{url}', source: {source}}}\n"
            for name, (url, source, _) in wanted.items()
        )
    )
    device.switch_on()
    last = {}

    def as_wanted():
        device.arrivals.poll(0.1)
        for each in device.arrivals.by_topic[device.topic]:
            result = json.loads(each.value)
            last[result["target"]["id"].replace("-", " ")] = result
        return all(name in last and last[name]["status"] == status for name, (_, _, status) in wanted.items())

    wait_for(as_wanted, lambda: f"these verdicts: { ({name: each['status'] for name, each in last.items()}) }")
    assert {name: last[name]["target"]["source"] for name in wanted} == {name: each[1] for name, each in wanted.items()}
    way = last["far by the modem"]["evidence"]
    seen = (way["route"], way["interface"], way["link"], way["gateway"], way["gateway_answers"])
    assert seen == (True, "wwan0", True, GONE, False)
    for name, why in (("no interface", "wwan9, its source, is no interface"), ("no address", "192.0.2.1, its source")):
        assert last[name]["error"]["code"] == "local_network"
        assert why in last[name]["error"]["message"]


def test_a_heartbeat(device):
    """A heartbeat has what the device's kernel tells of memory, load, disk and sensors, and a supply that is too weak
    shows in `systemctl status`.
    """
    machine = device.machine
    over = machine.path("/srv/class")
    for name, content in SENSORS.items():
        (over / name).parent.mkdir(parents=True, exist_ok=True)
        (over / name).write_text(content)
    # Else there would be no interfaces.
    machine.run("cp", "-a", "/sys/class/net", "/srv/class/")
    device.drop_in("[Service]\nBindReadOnlyPaths=/srv/class:/sys/class\n")
    device.begin()
    wait_for(lambda: device.events("heartbeat"), "a heartbeat")
    beat = device.events("heartbeat")[0]
    assert 10 << 20 < beat["rss_bytes"] < beat["memory_available_bytes"] < beat["memory_total_bytes"]
    assert len(beat["load"]) == 3
    assert 0 < beat["disk_free_bytes"] < beat["disk_total_bytes"]
    assert beat["disk_read_only"] is False
    assert (beat["temperature_c"], beat["throttled"], beat["undervoltage"]) == (61.25, False, True)
    assert beat["clock"]["boottime_s"] > 0
    assert (beat["targets"], beat["missed"]) == (5, 0)
    device.shows(r"^healthy; 5 targets, [\d.]+/s, Kafka up, config [0-9a-f]{12}; undervoltage: the power supply")
    device.settled()
    device.switch_off()
    assert device.account().dropped == 0
