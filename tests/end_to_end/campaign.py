"""A campaign: the agent as a process, a site that numbers what it serves, a broker in trouble, and the account."""

import json
import random
import signal
import string
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from agent.device.clock import boottime
from tests.end_to_end.conservation import Account, audit, unsettled
from tests.end_to_end.running import LONG, AgentProcess
from tests.end_to_end.sites import Site
from tests.kafka import Arrived, consume

BACK = 10.0  # seconds within which live records arrive after the broker's return: the contract
SETTLED = 60.0  # seconds until all that waited has arrived: a random wait of 10 s, and then the backlog


class Campaign:
    """One device with targets that are measured each second. To be closed by `with`."""

    def __init__(self, folder: Path, address: str, site: Site, targets: int = 10) -> None:
        self.folder, self.address, self.site = folder, address, site
        self.bootstrap = address  # of the agent; `address` is where what arrived is read
        folder.mkdir(parents=True, exist_ok=True)
        unique = uuid.uuid4().hex[:8]
        self.id = f"device-{unique}"
        self.topic, self.events_topic = f"results-{unique}", f"events-{unique}"
        self.targets = [f"{self.id}.{number}" for number in range(targets)]  # the site may serve several campaigns
        self.config = folder / "config.yaml"
        self.state = folder / "state"
        self.environment: dict[str, str] = {}
        self.ends: list[float] = []
        self.running: AgentProcess | None = None
        self._arrivals: Arrivals | None = None

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(self, *raised: object) -> None:
        if self._arrivals is not None:
            self._arrivals.close()
        if self.running is not None:
            self.running.end(signal.SIGKILL if any(raised) else signal.SIGTERM)

    def write(self, kafka: str = "", more: str = "", targets: str = "", noise: int = 0) -> None:
        """The configuration; with these further lines of `kafka`, of the whole, and of `targets`.

        `noise`: how many labels of 250 letters each target has, which no compression makes much smaller.
        """
        listed = "".join(
            f"  - {{id: {target}, url: '{self.url(target)}', labels: {json.dumps(noisy(noise))}}}\n"
            for target in self.targets
        )
        self.config.write_text(
            f"""
agent: {{id: {self.id}}}
location: {{id: here}}
state_directory: {self.state}
kafka:
  bootstrap_servers: [{self.bootstrap}]
  topic: {self.topic}
  events_topic: {self.events_topic}
{kafka}
{more}
defaults: {{interval: 1s}}
targets:
{listed}{targets}
"""
        )

    def url(self, target: str) -> str:
        """Where the site numbers what it serves of a target."""
        return f"http://127.0.0.1:{self.site.port}/numbered/{target}"

    def start(self) -> AgentProcess:
        """Starts the agent and waits until it measures."""
        self.running = AgentProcess(self.config, self.environment)
        self.running.says(r"configuration \w+ applied")
        return self.running

    def kill(self) -> None:
        """kill -9 of the agent."""
        assert self.running is not None
        self.ends.append(boottime())
        assert self.running.end(signal.SIGKILL) == -signal.SIGKILL
        self.running = None

    def stop(self) -> float:
        """A stop in order; how many seconds it took."""
        assert self.running is not None
        begun = boottime()
        self.ends.append(begun)
        status = self.running.end()
        took = boottime() - begun
        assert status == 0, self.running.log
        self.running = None
        return took

    def follow(self) -> None:
        """From now on what arrives is seen; the topics are there."""
        self._arrivals = Arrivals(self.address, [self.topic, self.events_topic])

    @property
    def arrivals(self) -> "Arrivals":
        """What has arrived."""
        assert self._arrivals is not None
        return self._arrivals

    def live_again(self, since: float, within: float = BACK, after: str = "the start") -> float:
        """Waits until a result arrived that was measured after the boot time `since`; seconds from then to now."""
        while self.arrivals.newest <= since:
            took = boottime() - since
            assert took < within, f"{after}: no live record {took:.1f} s after it was over; the log:\n{self.log}"
            self.arrivals.poll(0.1)
        return boottime() - since

    @property
    def log(self) -> str:
        """The agent's."""
        return self.running.log if self.running else ""

    def settled(self) -> None:
        """Waits until nothing that was made before what has arrived is missing, and no backlog is left on disk."""
        limit = boottime() + SETTLED
        while missing := unsettled(self.arrivals.by_topic) or self._old_segments():
            assert boottime() < limit, f"{missing[:10]} after {SETTLED} s; the log:\n{self.log}"
            self.arrivals.poll(0.5)

    def _old_segments(self) -> list[str]:
        """Files of the spool that nothing was added to for a while: with Kafka there, what is live goes at once."""
        try:
            return [
                str(each) for each in (self.state / "spool").glob("*.seg") if time.time() - each.stat().st_mtime > 3
            ]
        except FileNotFoundError:  # one has just gone
            return ["a segment"]

    def account(self, arrived: Mapping[str, Sequence[Arrived]] | None = None) -> Account:
        """Of `arrived`, else of all that is on the topics now."""
        if arrived is None:
            arrived = {topic: consume(self.address, topic) for topic in (self.topic, self.events_topic)}
        served = {target: moments for target, moments in self.site.served.items() if target.startswith(f"{self.id}.")}
        assert served.keys() >= set(self.targets), "a target that was never measured"
        return audit(arrived, served, self.ends)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Those that have arrived until now."""
        values = [json.loads(each.value or b"") for each in consume(self.address, self.events_topic)]
        return [value for value in values if value["event"] == kind]


def noisy(labels: int) -> dict[str, str]:
    """Labels of 250 random letters each."""
    return {f"noise{number}": "".join(random.choices(string.ascii_letters, k=250)) for number in range(labels)}


class Arrivals:
    """Follows topics while the broker comes and goes. To be closed."""

    def __init__(self, address: str, topics: Iterable[str]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": f"test-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "log_level": 2,
                "fetch.wait.max.ms": 100,
                "fetch.error.backoff.ms": 100,
                "reconnect.backoff.ms": 100,
                "reconnect.backoff.max.ms": 250,
                "socket.timeout.ms": 3_000,
                "topic.metadata.refresh.interval.ms": 1_000,
            }
        )
        self.by_topic: dict[str, list[Arrived]] = {topic: [] for topic in topics}
        places = [
            TopicPartition(topic, partition, 0)
            for topic in self.by_topic
            for partition in self._consumer.list_topics(topic, timeout=LONG).topics[topic].partitions
        ]
        self.newest = 0.0  # boot time of the measurement that was the last of those that have arrived
        self.first: dict[str, float] = {}  # boot time of the arrival of each run's first result, in the order of these
        self._consumer.assign(places)

    def poll(self, seconds: float) -> None:
        """Takes what comes within so many seconds."""
        end = boottime() + seconds
        while (left := end - boottime()) > 0:
            for message in self._consumer.consume(500, min(left, 0.1)):
                if message.error() is None:
                    headers = {name: bytes(value) for name, value in message.headers() or ()}
                    self.by_topic[message.topic()].append(Arrived(message.key(), headers, message.value()))
                    value = json.loads(message.value())
                    if "event" not in value:
                        self.newest = max(self.newest, value["clock"]["boottime_s"])
                        self.first.setdefault(value["agent"]["run_id"], boottime())

    def close(self) -> None:
        self._consumer.close()
