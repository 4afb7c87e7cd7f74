"""The Ansible role on a device that it reaches by ssh, as an operator sees it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.device.clock import boottime
from tests.device.ansible import ControlNode
from tests.device.conftest import booted
from tests.device.device import Device
from tests.device.machine import CHECKOUT, OPT, PYTHON, UNIT
from tests.end_to_end.running import LONG, wait_for

PLAYBOOK = CHECKOUT / "ansible/playbook.yml"
REMOVE, ROLLBACK = PLAYBOOK.with_name("remove.yml"), PLAYBOOK.with_name("rollback.yml")
SECRET = "tr0ub4dor-not-to-be-seen"


class Operator(ControlNode):
    """Has one device in the inventory, whose agent is to measure the targets of a campaign."""

    def __init__(self, folder: Path, machine) -> None:
        super().__init__(folder, "uptime_agents", {"pi1": machine})
        self.machine = machine

    def runs(self, device, *options, playbook=PLAYBOOK, status=0, **more):
        """The recap of the playbook, and all that it printed."""
        variables = {
            "uptime_agent_id": device.id,
            "uptime_agent_location": {"id": "ist-1", "country": "TR", "city": "Istanbul"},
            "uptime_agent_kafka": {
                "bootstrap_servers": [device.bootstrap],
                "topic": device.topic,
                "events_topic": device.events_topic,
            },
            "uptime_agent_settings": {"defaults": {"interval": "1s"}},
            "uptime_agent_targets": [{"id": target, "url": device.url(target)} for target in device.targets],
            "uptime_agent_reader": {"bootstrap_servers": [device.address]},
        }
        played = self.play(playbook, variables | more, *options)
        print(played.output)  # noqa: T201  (shown with a failure)
        assert played.status == status, played.output
        return played.recap["pi1"], played.output

    def listing(self):
        """What the device keeps where an agent could be: kinds, rights, owners; of files also size and time."""
        here = ["/etc", "/opt", "/usr/local", "/usr/lib/sysusers.d", "/var/lib"]
        every, file = ["-printf", r"%p %y %m %u:%g %l\n"], ["-type", "f", "-printf", r"    %s %T@\n"]
        return self.machine.run("find", *here, *every, *file)


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """Of a device for all tests that need one on which there is, or was, an agent."""
    folder = tmp_path_factory.mktemp("managed")
    with booted(folder) as machine:
        yield Operator(tmp_path_factory.mktemp("operator") / "o", machine)


@pytest.fixture
def managed(operator, kafka, plain, tmp_path):
    with Device(operator.machine, tmp_path, plain, kafka) as device:
        yield device


def settled(device):
    device.settled()
    device.switch_off()
    return device.account()


@pytest.mark.core
@pytest.mark.parametrize("suite", sorted(PYTHON))
def test_from_nothing_to_nothing(suite, kafka, plain, tmp_path):
    """On a device without an agent check mode changes nothing; then the playbook makes one that delivers, again it
    changes nothing, and removal leaves nothing behind but what it names, or nothing at all.
    """
    (tmp_path / "device").mkdir()
    with booted(tmp_path / "device", suite) as machine, Device(machine, tmp_path, plain, kafka) as device:
        operator = Operator(tmp_path / "o", machine)
        before = operator.listing()
        recap, _ = operator.runs(device, "--check", "--diff")
        assert recap.changed
        assert operator.listing() == before
        operator.runs(device)
        device.live_again(boottime(), within=LONG)
        assert machine.property("ActiveState") == "active"
        installed = operator.listing()
        recap, said = operator.runs(device)
        assert recap.changed == 0, said
        assert operator.listing() == installed
        account = settled(device)
        assert (account.dropped, account.lost_at_ends, len(account.runs)) == (0, 0, 1)
        operator.runs(device, playbook=REMOVE)
        assert machine.property("LoadState") == "not-found"
        assert not machine.path(OPT).exists()
        assert machine.path("/etc/uptime-agent/config.yaml").exists()
        assert machine.path("/var/lib/uptime-agent").exists()
        operator.runs(device, playbook=REMOVE, uptime_agent_purge=True)
        left = [line for line in operator.listing().splitlines() if "uptime" in line]
        assert left == []


def test_changes(operator, managed):
    """A change is in force without a restart, and check mode says that it would be; of a mistake nothing is touched."""
    operator.runs(managed)
    managed.live_again(boottime(), within=LONG)
    before, pid = operator.listing(), managed.pid
    managed.targets.append(f"{managed.id}.new")
    recap, _ = operator.runs(managed, "--check", "--diff")
    assert recap.changed
    mistake = {"uptime_agent_settings": {"defaults": {"interval": "soon"}}}
    for options in (["--check"], []):
        recap, said = operator.runs(managed, *options, status=2, **mistake)
        assert recap.failed == 1
        assert "defaults.interval" in said
    assert operator.listing() == before
    operator.runs(managed)
    wait_for(lambda: managed.site.served.get(managed.targets[-1]), "a measurement of the new target")
    assert managed.pid == pid
    account = settled(managed)
    assert (account.dropped, account.lost_at_ends, len(account.runs)) == (0, 0, 1)


def test_a_device_that_does_not_deliver(operator, managed):
    """The play fails with what the agent says of itself and its warnings; after the mend all arrives."""
    operator.runs(managed)
    managed.live_again(boottime(), within=LONG)
    wrong = {"bootstrap_servers": ["127.0.0.1:9"], "topic": managed.topic, "events_topic": managed.events_topic}
    more = {"uptime_agent_kafka": wrong, "uptime_agent_reader": {}, "uptime_agent_seconds_to_prove": 30}
    _, said = operator.runs(managed, status=2, **more)
    assert "The agent does not deliver; it measures on" in said
    assert "Kafka acknowledges nothing for" in said
    assert "127.0.0.1:9" in said.partition("Its journal since this play began:")[2]
    operator.runs(managed)
    account = settled(managed)
    assert (account.dropped, account.lost_at_ends, len(account.runs)) == (0, 0, 1)


def vault(folder: Path, **secrets: str) -> list[str]:
    """The options by which Ansible has these variables from a vault."""
    password = folder / "password"
    password.write_text("correct horse\n")
    file = folder / "vault.yml"
    tool = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt_string", "--vault-password-file"]
    file.write_text("")
    for name, value in secrets.items():
        made = subprocess.run(
            [*tool, str(password), "--stdin-name", name], input=value, capture_output=True, text=True, check=True
        )
        file.write_text(file.read_text() + made.stdout + "\n")
    return [f"--extra-vars=@{file}", f"--vault-password-file={password}"]


def test_secrets(operator, managed, tmp_path):
    """Secrets from a vault reach the agent and show nowhere; a changed one is used at once. One of a wrong type is
    refused without being shown.
    """
    url = f"http://{managed.machine.address}:{managed.site.port}/secret"
    more = {
        "uptime_agent_secrets": {"token": "{{ vault_token }}"},
        "uptime_agent_targets_of_the_shop": [{"url": url, "headers": {"Authorization": {"credential": "token"}}}],
    }

    def sent():
        return {headers["Authorization"] for path, headers in managed.site.asked if path == "/secret"}

    def played(secret, *options, **different):
        told = ["-vvv", "--diff", *vault(tmp_path, vault_token=secret), *options]
        return operator.runs(managed, *told, **more | different)

    said = []
    for secret in (SECRET, f"{SECRET}-2"):
        said.append(played(secret))
        wait_for(lambda secret=secret: secret in sent(), "a measurement with the secret")
    said.append(played(f"{SECRET}-2"))
    assert said[-1][0].changed == 0
    said.append(played(f"{SECRET}-3", "--check"))
    number = 8_675_309_867
    said.append(played("x", status=2, uptime_agent_secrets={"token": number}))
    said = "".join(output for _, output in said)
    assert SECRET not in said
    assert str(number) not in said
    assert SECRET not in managed.log + managed.machine.run("systemctl", "show", UNIT)
    kept = managed.machine.run("find", "/etc/uptime-agent/credentials", "-type", "f", "-printf", "%f %m %u\n")
    assert kept == "token 600 root\n"
    account = settled(managed)
    assert (account.dropped, account.lost_at_ends, len(account.runs)) == (0, 0, 2)


def test_upgrade_and_back(operator, managed, tmp_path):
    """Another release takes the place of the one that runs, and going back brings that one; no record is lost."""
    other = tmp_path / "checkout"
    kept = ("agent", "ansible", "scripts", "systemd", "LICENSE", "README.md", "pyproject.toml")
    other.mkdir()
    for name in kept:
        here = CHECKOUT / name
        (shutil.copytree if here.is_dir() else shutil.copy)(here, other / name)
    version = other / "agent/__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "9.'))
    operator.runs(managed)
    managed.live_again(boottime(), within=LONG)
    operator.runs(managed, playbook=other / "ansible/playbook.yml")
    managed.live_again(boottime(), within=LONG)
    operator.runs(managed, playbook=ROLLBACK)
    managed.live_again(boottime(), within=LONG)
    account = settled(managed)
    assert (account.dropped, account.lost_at_ends, len(account.runs)) == (0, 0, 3)
    versions = {}
    for arrived in managed.arrivals.by_topic[managed.topic]:
        made_by = json.loads(arrived.value)["agent"]
        versions[made_by["run"]] = made_by["version"]
    first, second, third = (versions[run] for run in sorted(versions))
    assert second == f"9.{first}"
    assert third == first


@pytest.mark.timeout(3600)
def test_arm(kafka, plain, tmp_path):
    """On a device with an (emulated) ARM processor the playbook installs what was built for it, and results arrive."""
    (tmp_path / "device").mkdir()
    with (
        booted(tmp_path / "device", architecture="aarch64") as machine,
        Device(machine, tmp_path, plain, kafka) as device,
    ):
        assert machine.run("uname", "-m") == "aarch64\n"
        # A process has a thread of the emulator's as well, and so no user namespace of its own (unshare(2)).
        device.drop_in("[Service]\nPrivateUsers=no\n")
        Operator(tmp_path / "o", machine).runs(device, uptime_agent_seconds_to_prove=600)
        device.live_again(boottime(), within=LONG)
        wait_for(lambda: plain.served.keys() >= set(device.targets), "a measurement of each target")
        account = settled(device)
        assert (account.dropped, account.lost_at_ends, len(account.runs)) == (0, 0, 1)
