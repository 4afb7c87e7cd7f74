"""A campaign on a device: systemd runs the agent, sites and Kafka are at the other end of its network."""

import contextlib
import json
import re
from pathlib import Path

from agent.device.clock import boottime
from tests.device.forward import Forward
from tests.device.machine import UNIT, Machine
from tests.end_to_end.campaign import Campaign, noisy
from tests.end_to_end.running import LONG, wait_for
from tests.end_to_end.sites import Site
from tests.kafka import Broker

CONFIG = "/etc/uptime-agent/config.yaml"
STATE = "/var/lib/uptime-agent"


class Device(Campaign):
    """A machine with the agent installed, not started. To be closed by `with`.

    `moved`: the ports of the site and of Kafka on the machine's network.
    """

    def __init__(self, machine: Machine, folder: Path, site: Site, kafka: Broker, targets: int = 5) -> None:
        super().__init__(folder, kafka.address, site, targets)
        self.machine = machine
        self._port = int(kafka.address.rpartition(":")[2])
        self._forwards: list[Forward] = []
        self.broker: Forward  # closed, Kafka is away
        self.connect()
        kafka.make_topic(self.topic, partitions=2)
        kafka.make_topic(self.events_topic)
        self.follow()

    def __exit__(self, *raised: object) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(super().__exit__, *raised)
            for forward in self._forwards:
                stack.callback(forward.close)
            if any(raised) and self.machine.is_on:
                print("\n".join(self.log_lines()))  # noqa: T201  (shown with a failure)
            if not self.machine.is_on:
                self.machine.switch_on()
            self.machine.run("sh", "-c", f"systemctl stop {UNIT}; systemctl reset-failed; rm -rf {STATE}/* {CONFIG}")
            self.drop_in("")

    def connect(self) -> None:
        """The cable: the site is at the same port of the machine's other end; so is Kafka, which tells its clients
        that it is at 127.0.0.1, where a way leads to that end."""
        for forward in self._forwards:
            forward.close()
        end = self.machine.address
        self.broker = Forward((end, self._port), ("127.0.0.1", self._port))
        self._forwards = [
            self.broker,
            Forward((end, self.site.port), ("127.0.0.1", self.site.port)),
            Forward(("127.0.0.1", self._port), (end, self._port), self.machine.network),
        ]

    def url(self, target: str) -> str:
        return f"http://{self.machine.address}:{self.site.port}/numbered/{target}"

    def configure(self, more: str = "", targets: str = "", noise: int = 0) -> None:
        """Writes the configuration as an editor does: with these further lines, of the whole and of `targets`, and with
        so many labels for each target as are hard to compress.
        """
        listed = "".join(
            f"  - {{id: {target}, url: '{self.url(target)}', labels: {json.dumps(noisy(noise))}}}\n"
            for target in self.targets
        )
        self.edit(
            f"""
agent: {{id: {self.id}}}
location: {{id: ist-1, country: TR, city: Istanbul}}
kafka: {{bootstrap_servers: ['{self.bootstrap}'], topic: {self.topic}, events_topic: {self.events_topic}}}
defaults: {{interval: 1s}}
{more}
targets:
{listed}{targets}
"""
        )

    def edit(self, text: str) -> None:
        """The configuration is this from now on: root's, and its group may read it."""
        new = self.machine.path(f"{CONFIG}.new")
        new.write_text(text)
        self.machine.run("chown", "root:uptime-agent", f"{CONFIG}.new")
        new.chmod(0o640)
        new.rename(self.machine.path(CONFIG))

    def read(self) -> str:
        """The configuration as it is."""
        return self.machine.path(CONFIG).read_text()

    def drop_in(self, text: str) -> None:
        """What an operator adds to the unit; empty: nothing."""
        folder = self.machine.path(f"/etc/systemd/system/{UNIT}.d")
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(text)
        self.machine.run("systemctl", "daemon-reload")

    def switch_on(self) -> None:
        """`systemctl start`."""
        self.machine.run("systemctl", "start", UNIT)

    def begin(self) -> None:
        """Configured and started, until it measures all targets and delivers."""
        self.configure()
        begun = boottime()
        self.switch_on()
        self.live_again(begun, within=LONG)
        wait_for(lambda: self.site.served.keys() >= set(self.targets), "a measurement of each target")

    def switch_off(self) -> float:
        """`systemctl stop`; how many seconds it took."""
        begun = boottime()
        self.ends.append(begun)
        self.machine.run("systemctl", "stop", UNIT)
        return boottime() - begun

    @property
    def pid(self) -> int:
        """Of the agent, on the device; 0 without one."""
        return int(self.machine.property("MainPID"))

    def signal(self, name: str) -> None:
        """To the agent, as `kill` sends it."""
        self.ends.append(boottime())
        self.machine.run("kill", f"-{name}", str(self.pid))

    def status_line(self) -> str:
        """The line that `systemctl status` shows."""
        said = self.machine.attempt("systemctl", "status", "--no-pager", "--full", UNIT).stdout
        found = re.search(r'^ +Status: "(.*)"$', said, re.MULTILINE)
        return found[1] if found else ""

    def shows(self, pattern: str) -> None:
        """Waits until `systemctl status` has this in its line."""
        wait_for(lambda: re.search(pattern, self.status_line()), lambda: f"{pattern} in {self.status_line()!r}")

    def says(self, pattern: str, times: int = 1) -> None:
        """Waits until its log has this so often."""
        wait_for(lambda: len(re.findall(pattern, self.log)) >= times, lambda: f"{pattern!r} in the log:\n{self.log}")

    def log_lines(self) -> list[str]:
        return [line["MESSAGE"] for line in self.machine.journal() if isinstance(line["MESSAGE"], str)]

    @property
    def log(self) -> str:
        return "\n".join(self.log_lines())

    def _old_segments(self) -> list[str]:
        spool = self.machine.path(f"{STATE}/spool")
        return [str(each) for each in spool.glob("*.seg") if int(each.name.partition("-")[0]) < self.run_number()]

    def run_number(self) -> int:
        """How often the agent was started."""
        found = re.search(r'"run":(\d+)', self.machine.path(f"{STATE}/run.json").read_text())
        assert found
        return int(found[1])
