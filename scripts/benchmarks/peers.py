"""The agent and its peers as measured processes: how each is got, configured and started for the same load."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import telegraf
from benchmarks.processes import BenchError, Cores, Process, part, running
from benchmarks.reports import Report, of_agent, of_file, of_telegraf

INTERVAL = 1.0  # seconds between two checks of a target, the shortest that all of them have


class Load(NamedTuple):
    """What is to be measured, the same for all: `targets` addresses in turn, each once an interval."""

    scheme: str
    addresses: list[str]
    targets: int
    broker: str
    ca: Path | None
    interval: float = INTERVAL
    timeout: float = INTERVAL
    spool: Path | None = None  # of the agent; without, in its state directory

    def urls(self) -> list[str]:
        """One for each target; the farm knows a target by its number."""
        count = len(self.addresses)
        return [f"{self.scheme}://{self.addresses[number % count]}/{number}" for number in range(self.targets)]

    @property
    def rate(self) -> float:
        """Checks a second."""
        return self.targets / self.interval


class Running(NamedTuple):
    """A peer at work. `report`: where it writes each check at its end, if it does."""

    process: Process
    report: Path | None = None


class Peer:
    """One of those that are measured. `way`: how a person gets it when it is absent."""

    name: str
    way: str
    schemes: tuple[str, ...] = ("http", "https")
    records = False  # whether each check becomes a record in Kafka

    def absent(self) -> str | None:
        """The way to get it, when it is not here."""
        return None

    def run(
        self, load: Load, directory: Path, on: Cores, *, report: bool = False
    ) -> contextlib.AbstractContextManager[Running]:
        """Runs it, with its files in `directory`. With `report` it tells of each check, at its end."""
        raise NotImplementedError

    def told(self, running: Running, load: Load, records: list[bytes]) -> Report:
        """What it reported, once it has ended; `records` are those of its run in Kafka."""
        assert running.report is not None
        return of_file(running.report)


class Agent(Peer):
    """`uptime-agent run`, as it is."""

    name, records = "agent", True

    @contextlib.contextmanager
    def run(self, load: Load, directory: Path, on: Cores, *, report: bool = False) -> Iterator[Running]:
        """See `Peer`; what it reports is read from Kafka."""
        config = directory / "config.yaml"
        config.write_text(agent_config(load, directory))
        command = [*self._program(), "run", "--config", config]
        log = directory / "agent.log"
        with running(command, on.measured, log, environment=self._environment()) as process:
            yield Running(process)

    def told(self, running: Running, load: Load, records: list[bytes]) -> Report:
        """See `Peer`."""
        return of_agent(records)

    def _program(self) -> list[str | Path]:
        return [Path(sys.executable).with_name("uptime-agent")]

    def _environment(self) -> dict[str, str]:
        return {}


class OtherAgent(Agent):
    """The agent of another checkout, with this one's libraries: what did a change bring?"""

    def __init__(self, checkout: Path) -> None:
        self.name, self._checkout = checkout.name, checkout

    def _program(self) -> list[str | Path]:
        return [sys.executable, "-P", "-m", "agent"]  # -P: not the checkout it is started in

    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self._checkout)}


def agent_config(load: Load, directory: Path) -> str:
    """The configuration of such a load."""
    tls = f", tls: {{ca: {json.dumps(str(load.ca))}}}" if load.ca else ""
    spool = f"spool: {{directory: {json.dumps(str(load.spool))}, min_free: 0}}\n" if load.spool else ""
    targets = "\n".join(f"  - {{id: t{number}, url: '{url}'}}" for number, url in enumerate(load.urls()))
    return f"""\
agent: {{id: bench}}
location: {{id: here, country: NO, city: Tromsø, latitude: 69.65, longitude: 18.96}}
state_directory: {json.dumps(str(directory / "state"))}
kafka: {{bootstrap_servers: [{load.broker}]}}
status: {{listen: off}}
{spool}defaults: {{interval: {load.interval}, timeout: {load.timeout}{tls}}}
targets:
{targets}
"""


class Aiohttp(Peer):
    """aiohttp's bare request on uvloop, without records and Kafka."""

    name, way = "aiohttp", "pip install aiohttp"

    @contextlib.contextmanager
    def run(self, load: Load, directory: Path, on: Cores, *, report: bool = False) -> Iterator[Running]:
        """See `Peer`."""
        plan, file = directory / "aiohttp.json", directory / "aiohttp-report.json" if report else None
        plan.write_text(
            json.dumps(
                {
                    "urls": load.urls(),
                    "rate": load.rate,
                    "ca": load.ca and str(load.ca),
                    "report": file and str(file),
                }
            )
        )
        with part("aiohttp_client", plan, on=on.measured, directory=directory) as process:
            yield Running(process, file)


class Blackbox(Peer):
    """prometheus-blackbox-exporter, asked over /probe by a driver whose CPU is not counted."""

    name, way = "blackbox", "sudo apt-get install prometheus-blackbox-exporter"

    def absent(self) -> str | None:
        """See `Peer`."""
        return None if self._program() else self.way

    @staticmethod
    def _program() -> str | None:
        return shutil.which("prometheus-blackbox-exporter") or shutil.which("blackbox_exporter")

    @contextlib.contextmanager
    def run(self, load: Load, directory: Path, on: Cores, *, report: bool = False) -> Iterator[Running]:
        """See `Peer`."""
        config, plan = directory / "blackbox.yml", directory / "blackbox.json"
        http: dict[str, object] = {"preferred_ip_protocol": "ip4"}
        if load.ca:
            http["tls_config"] = {"ca_file": str(load.ca)}
        # JSON is YAML.
        config.write_text(json.dumps({"modules": {"http": {"prober": "http", "timeout": "5s", "http": http}}}))
        exporter, file = free_address(), directory / "blackbox-report.json" if report else None
        plan.write_text(
            json.dumps({"exporter": exporter, "urls": load.urls(), "rate": load.rate, "report": file and str(file)})
        )
        program = self._program()
        assert program is not None
        options = [f"--config.file={config}", f"--web.listen-address={exporter}", "--log.level=error"]
        with running([program, *options], on.measured, directory / "blackbox.log") as process:
            wait_for(exporter, process)
            with part("blackbox_driver", plan, on=on.others, directory=directory):
                yield Running(process, file)

    def told(self, running: Running, load: Load, records: list[bytes]) -> Report:
        """See `Peer`."""
        return super().told(running, load, records)._replace(driven=True)


class Telegraf(Peer):
    """Telegraf's http_response into Kafka, one input for each url with an offset of its own."""

    name, way, records = "telegraf", telegraf.WAY, True

    def absent(self) -> str | None:
        """See `Peer`."""
        return None if telegraf.program() or shutil.which("go") else self.way

    @contextlib.contextmanager
    def run(self, load: Load, directory: Path, on: Cores, *, report: bool = False) -> Iterator[Running]:
        """See `Peer`; what it reports is read from Kafka."""
        config = directory / "telegraf.conf"
        config.write_text(telegraf.config(load.urls(), load.interval, load.timeout, load.ca, load.broker))
        environment = {"HOME": str(directory)}
        command: list[str | Path] = [telegraf.built(), "--config", config, "--quiet"]
        with running(command, on.measured, directory / "telegraf.log", environment=environment) as process:
            yield Running(process)

    def told(self, running: Running, load: Load, records: list[bytes]) -> Report:
        """See `Peer`."""
        return of_telegraf(records, load.targets, load.interval)


class Floor(Peer):
    """The system calls of a check in a loop of C: what the kernel takes, and nobody can go below."""

    name, way, schemes = "floor", "sudo apt-get install gcc libc6-dev", ("http",)

    def absent(self) -> str | None:
        """See `Peer`."""
        return None if shutil.which("cc") else self.way

    @contextlib.contextmanager
    def run(self, load: Load, directory: Path, on: Cores, *, report: bool = False) -> Iterator[Running]:
        """See `Peer`."""
        program = directory / "floor"
        command = ["cc", "-O2", "-o", str(program), str(Path(__file__).with_name("floor.c"))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"cc failed: {done.stderr[-2_000:]}")
        file = directory / "floor-report.json" if report else None
        arguments = [str(load.rate), str(load.targets), file or "-", *load.addresses]
        with running([program, *arguments], on.measured, directory / "floor.log") as process:
            yield Running(process, file)


PEERS: dict[str, Peer] = {peer.name: peer for peer in (Agent(), Aiohttp(), Blackbox(), Telegraf(), Floor())}


def free_address() -> str:
    """An address on which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def wait_for(address: str, process: Process) -> None:
    """Until something listens there. Raises `BenchError` when the process ends before."""
    host, _, port = address.rpartition(":")
    while True:
        process.check()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), 1):
            return
