"""The agent as systemd's service on a device, as an operator sees it."""

import json
import re
import time

import pytest

from agent.device.clock import boottime
from tests.device.machine import OPT, UNIT
from tests.end_to_end.running import wait_for

CLI = f"{OPT}/current/bin/uptime-agent"
WATCHDOG, RESTART = 30, 5  # seconds, of the unit
BUSY = 30  # seconds that a busy machine may add
EXPOSURE = 1.5


def settled_account(device):
    """All that the sites served, against all that arrived after an end in order."""
    device.settled()
    device.switch_off()
    return device.account()


@pytest.mark.core
def test_it_becomes_active(device):
    """Started, it is active once it measures, `systemctl status` says in a line that it is well, and results arrive."""
    device.begin()
    assert device.machine.property("ActiveState") == "active"
    device.shows(r"^healthy; 5 targets, [\d.]+/s, Kafka up, config [0-9a-f]{12}$")
    assert device.switch_off() < 10
    account = device.account()
    assert account.results > 10
    assert (account.repeats, account.dropped, account.lost_at_ends) == (0, 0, 0)
    assert device.machine.property("Result") == "success"
    assert device.machine.property("ExecMainStatus") == "0"


def test_an_echo_from_the_sandbox(device):
    """The agent needs no capability for a ping: the installation lets it open ping sockets."""
    device.configure(targets=f"  - {{id: gateway, url: 'icmp://{device.machine.address}'}}\n")
    device.switch_on()

    def echoes():
        device.arrivals.poll(0.1)
        results = [json.loads(each.value) for each in device.arrivals.by_topic[device.topic]]
        return {(each["status"], each["target"]["type"]) for each in results if each["target"]["id"] == "gateway"}

    wait_for(echoes, "a result")
    assert echoes() == {("up", "icmp")}


def test_exposure(device):
    """systemd's own analysis of the sandbox that it made."""
    said = device.machine.run("systemd-analyze", "security", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found
    assert float(found[1]) <= EXPOSURE


def test_the_sandbox_forbids_nothing_that_it_does(device):
    """With death for a forbidden system call it still measures, takes in edits, outlives Kafka, and stops in order; it
    may ask the kernel whether the clock is right, and read the device's vital signs.
    """
    ask = "import ctypes, os; assert ctypes.CDLL(None).adjtimex(bytes(400)) >= 0"
    ask += '; assert os.listdir("/sys/devices") and os.listdir("/sys/class/net"); open("/proc/net/dev").read()'
    device.drop_in(f"[Service]\nSystemCallErrorNumber=kill\nExecStartPre={OPT}/current/bin/python3 -c '{ask}'\n")
    device.begin()
    device.edit(device.read().replace("interval: 1s", "interval: 2s"))
    device.says("configuration [0-9a-f]+ applied", 2)
    device.broker.close()
    device.shows("^degraded: Kafka acknowledges nothing for")
    time.sleep(3)  # so that what waits is compressed to disk
    device.broker.open()
    device.live_again(boottime())
    device.machine.run("systemctl", "reload", UNIT)
    device.shows("^healthy; ")
    wait_for(lambda: device.events("heartbeat"), "the vital signs")
    told = json.loads(device.machine.run(CLI, "status", "--json"))
    here = {name for name in ("rss_bytes", "memory_available_bytes", "load") if told["vitals"][name] is not None}
    assert len(here) == 3
    assert told["disk"]["disk_free_bytes"] > 0
    assert not told["disk"]["disk_read_only"]
    account = settled_account(device)
    assert account.dropped == 0
    assert len(account.runs) == 1


def test_everybody_may_ask_for_the_status(device):
    """`uptime-agent status` tells an ordinary user of the device how the agent is and each target's last verdict."""
    device.begin()
    device.shows(r"^healthy; 5 targets, [\d.]+/s")
    said = device.machine.attempt(CLI, "status", user="nobody")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("healthy")
    assert all(target in said.stdout for target in device.targets)
    told = json.loads(device.machine.attempt(CLI, "status", "--json", user="nobody").stdout)
    assert told["verdicts"] == {"up": 5}
    assert device.machine.attempt("cat", "/etc/uptime-agent/config.yaml", user="nobody").returncode != 0
    device.switch_off()
    assert device.machine.attempt(CLI, "status", user="nobody").returncode == 3


@pytest.mark.core
def test_an_edit(device):
    """A target that is written into the file is measured, without a word to systemd; nothing else is disturbed."""
    device.begin()
    before = device.pid
    device.targets.append(f"{device.id}.new")
    device.configure()
    wait_for(lambda: device.site.served.get(f"{device.id}.new"), "a measurement of the new target")
    device.shows("6 targets")
    assert device.pid == before
    assert settled_account(device).dropped == 0


@pytest.mark.core
def test_a_bad_edit(device):
    """Of a file with a mistake `systemctl status` tells the line and what is wrong; measuring goes on as before; the
    journal has it as an error. The mend is taken in.
    """
    device.begin()
    good = device.read()
    device.edit(good.replace("interval: 1s", "interval: soon"))
    device.shows(r'^degraded: an edit was refused: /etc/uptime-agent/config\.yaml:\d+:\d+: defaults\.interval: "soon"')
    device.live_again(boottime())
    errors = [line["MESSAGE"] for line in device.machine.journal() if line["PRIORITY"] == "3"]
    assert any("soon" in error for error in errors)
    device.edit(good)
    device.shows("^healthy; ")
    assert len(device.events("config_rejected")) == 1
    assert settled_account(device).dropped == 0


@pytest.mark.core
def test_killed(device):
    """After kill -9 systemd starts it again, and nothing is lost but what was measured in the last moment."""
    device.begin()
    device.signal("KILL")
    device.live_again(boottime(), within=RESTART + BUSY)
    assert device.machine.property("NRestarts") == "1"
    account = settled_account(device)
    assert account.dropped == 0
    assert len(account.runs) == 2


def test_killed_and_stopped_before_its_restart(device):
    """What a killed agent had not sent, nor written to flash yet, outlives a stop that comes before its restart."""
    device.begin()
    device.broker.close()
    time.sleep(2)  # Kafka is not given up yet, so what was measured since is in the runtime directory alone
    device.signal("KILL")
    wait_for(lambda: device.machine.property("SubState") == "auto-restart", "the death")
    device.machine.run("systemctl", "stop", UNIT)
    device.broker.open()
    device.switch_on()
    device.live_again(boottime(), within=BUSY)
    account = settled_account(device)
    assert account.dropped == 0
    assert len(account.runs) == 2


def test_hung(device):
    """An agent that stands still is killed by the watchdog and started again; nothing is lost that was measured."""
    device.begin()
    device.signal("STOP")
    device.live_again(boottime(), within=WATCHDOG + RESTART + BUSY)
    assert device.machine.property("NRestarts") == "1"
    assert any("watchdog" in line.lower() for line in device.log_lines())
    account = settled_account(device)
    assert account.dropped == 0
    assert len(account.runs) == 2


def test_a_stop_without_kafka(device):
    """With Kafka away for longer than the watchdog's time the agent is left alone; a stop ends in order within 10 s,
    and all of it arrives after the next start.
    """
    device.begin()
    before = device.pid
    device.broker.close()
    device.shows(
        r"^degraded: Kafka acknowledges nothing for .*; 5 targets, .*Kafka lost, \d+ KiB wait for \d+ s, config"
    )
    time.sleep(WATCHDOG + 10)
    assert device.pid == before
    took = device.switch_off()
    assert took < 10
    assert device.machine.property("Result") == "success"
    assert device.machine.property("ExecMainStatus") == "0"
    device.broker.open()
    begun = boottime()
    device.switch_on()
    device.live_again(begun, within=BUSY)
    account = settled_account(device)
    assert (account.dropped, account.repeats, account.lost_at_ends) == (0, 0, 0)
    assert len(account.runs) == 2


def test_the_cable_is_pulled(device):
    """Without its network the device blames no site, from the first moment on: what it cannot judge is unknown, waits,
    and arrives when the cable is back; `systemctl status` and events say that there was no way out.
    """
    device.begin()
    pulled = boottime()
    device.machine.cable(plugged=False)
    device.shows(
        "^degraded: no way out for .*: this device's link is down: host0, Kafka acknowledges nothing for .* 5 unk"
    )
    time.sleep(5)
    back = boottime()
    device.machine.cable(plugged=True)
    device.live_again(back, within=BUSY, after="the cable")
    device.shows("^healthy; 5 targets, [0-9]")
    account = settled_account(device)
    assert (account.dropped, len(account.runs)) == (0, 1)
    results = [json.loads(each.value) for each in device.arrivals.by_topic[device.topic]]
    without = [each for each in results if pulled - 1 < each["clock"]["boottime_s"] < back]
    assert len(without) > 10
    assert {each["status"] for each in without} <= {"up", "unknown"}
    assert len(device.events("uplink_lost")) == len(device.events("uplink_back")) == 1


@pytest.mark.parametrize("away", [False, True], ids=["kafka up", "kafka away"])
def test_power_cut(device, away):
    """After a power cut the device boots and measures by itself, and sends what it had; what the cut takes is the last
    moment, or the last second or so if Kafka was away.
    """
    device.begin()
    if away:
        device.broker.close()
        device.shows("Kafka acknowledges nothing for")
        time.sleep(5)
    at = boottime()
    device.machine.cut_power()
    device.ends += [at - back * 0.9 for back in range(4 if away else 1)]
    device.machine.switch_on()
    device.connect()
    device.live_again(boottime(), within=BUSY, after="the boot")
    account = settled_account(device)
    assert account.dropped == 0
    assert len(account.runs) == 2


def test_reboot(device):
    """A device that is told to reboot stops the agent in order, and starts it by itself: nothing is lost."""
    device.begin()
    device.ends.append(boottime())
    device.machine.reboot()
    device.connect()
    device.live_again(boottime(), within=BUSY, after="the boot")
    account = settled_account(device)
    assert (account.dropped, account.repeats, account.lost_at_ends) == (0, 0, 0)
    assert len(account.runs) == 2
    assert len(device.events("stopping")) == 2


def test_a_mistake_at_the_start(device):
    """With a configuration that is no good, and none before, it says so and tries for ever; the mend is enough."""
    device.configure(more="nonsense: 1")
    device.machine.attempt("systemctl", "start", UNIT)
    device.says("nonsense", 3)
    device.configure()
    device.live_again(boottime(), within=RESTART + BUSY, after="the mend")
    device.shows("^healthy; 5 targets, [0-9]")
    assert settled_account(device).dropped == 0


def test_a_credential(device):
    """A secret that only root may read reaches the agent by LoadCredential=, and shows nowhere."""
    secret = device.machine.path("/etc/uptime-agent/site-token")
    secret.write_text("Bearer abc-not-to-be-seen\n")
    secret.chmod(0o600)
    device.drop_in("[Service]\nLoadCredential=site-token:/etc/uptime-agent/site-token\n")
    url = f"http://{device.machine.address}:{device.site.port}/secret"
    device.configure(targets=f"  - {{url: '{url}', headers: {{Authorization: {{credential: site-token}}}}}}\n")
    device.switch_on()
    wait_for(lambda: "/secret" in device.site.paths(), "a measurement")
    sent = dict(device.site.asked)["/secret"]
    assert sent["Authorization"] == "Bearer abc-not-to-be-seen"
    assert "not-to-be-seen" not in device.log + device.status_line()
    assert "not-to-be-seen" not in device.machine.run(CLI, "status", "--json")
