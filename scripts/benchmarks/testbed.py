"""What all are measured against: the target farm, the broker, a test CA; and what the farm and the topic can tell."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trustme
from confluent_kafka import Consumer, TopicPartition

from benchmarks.farm import ADDRESSES
from benchmarks.processes import BenchError, Cores, Process, cores, part

TOPIC = "uptime.results"
SETTLE_WINDOW = 0.5  # seconds over which its rate is looked at
SETTLE_SECONDS = 8.0  # after its first check a peer has this long to come to the rate that was asked for
FIRST_CHECK_SECONDS = 60.0  # ten thousand targets take some to read
BROKER_SECONDS = 10.0
AT_RATE = 0.9  # of the rate that was asked for, and a peer is at it


class Counts(NamedTuple):
    """What a farm has seen since its start."""

    connections: int
    requests: int
    answers: int
    open: int


class Sites:
    """The running target farm."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.addresses: list[str] = process.ask()

    def count(self) -> Counts:
        """What it has seen."""
        return Counts(*self._process.ask("count"))

    def log(self, file: Path) -> None:
        """From now on the farm keeps what it sees; what it kept until now is in `file`."""
        self._process.ask(f"log {file}")


class Topic:
    """Counts what was acknowledged: the sum of the high watermarks of the results' topic."""

    def __init__(self, broker: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": broker, "group.id": "bench", "log_level": 0})

    def marks(self) -> dict[int, tuple[int, int]]:
        """Of each partition: the first offset that is still there, and the one that comes next."""
        partitions = self._consumer.list_topics(TOPIC, timeout=BROKER_SECONDS).topics[TOPIC].partitions
        return {
            partition: self._consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=BROKER_SECONDS)
            for partition in partitions
        }

    def records(self) -> int:
        """How many it has taken so far."""
        return sum(mark[1] for mark in self.marks().values())

    def since(self, before: dict[int, tuple[int, int]]) -> list[bytes]:
        """The records that came after `before` was asked for. Raises `BenchError` when the broker dropped some, or is
        silent.
        """
        now = self.marks()
        first = {partition: before[partition][1] if partition in before else 0 for partition in now}
        if any(kept > first[partition] for partition, (kept, _) in now.items()):
            raise BenchError(
                "the embedded broker keeps 5 MB a partition, and has dropped records of this run: "
                "ask for fewer --seconds or a lower --rate, or name a --broker (./scripts/kafka starts one)"
            )
        left = sum(end - first[partition] for partition, (_, end) in now.items())
        self._consumer.assign([TopicPartition(TOPIC, partition, offset) for partition, offset in first.items()])
        records: list[bytes] = []
        while left > 0:
            messages = self._consumer.consume(min(left, 10_000), timeout=BROKER_SECONDS)
            if not messages:
                raise BenchError(f"the broker does not hand out {left} of the records that it took")
            for message in messages:
                if (error := message.error()) is not None:
                    raise BenchError(f"the records cannot be read back: {error.str()}")
                records.append(message.value() or b"")
            left -= len(messages)
        self._consumer.unassign()
        return records


class Testbed(NamedTuple):
    """Everything but the peers. `certificate`: key and certificate of the farms, of the CA in `ca`."""

    directory: Path
    on: Cores
    broker: str
    topic: Topic
    ca: Path
    certificate: Path

    @contextlib.contextmanager
    def farm(self, scheme: str = "http", delay: float = 0.0) -> Iterator[Sites]:
        """Runs a farm that answers after `delay` seconds, negative for never."""
        certificate = [self.certificate] if scheme == "https" else []
        with part("farm", delay, *certificate, on=self.on.others, directory=self.directory, talks=True) as process:
            yield Sites(process)


@contextlib.contextmanager
def testbed(directory: Path, broker: str | None) -> Iterator[Testbed]:
    """With the broker at this address, or the embedded one in a process of its own."""
    on = cores()
    ca, certificate = directory / "ca.pem", directory / "farm.pem"
    signer = trustme.CA()
    signer.cert_pem.write_to_path(str(ca))
    signer.issue_cert(*(address for address in ADDRESSES)).private_key_and_cert_chain_pem.write_to_path(
        str(certificate)
    )
    with contextlib.ExitStack() as stack:
        if broker is None:
            broker = str(stack.enter_context(part("broker", on=on.others, directory=directory, talks=True)).ask())
        yield Testbed(directory, on, broker, Topic(broker), ca, certificate)


def first_check(sites: Sites, process: Process) -> None:
    """Until the farm has seen one more request. Raises `BenchError` when the process ends or none comes."""
    begun, requests = time.monotonic(), sites.count().requests
    while sites.count().requests == requests:
        process.check()
        if time.monotonic() - begun > FIRST_CHECK_SECONDS:
            raise BenchError(f"{process.popen.args!r} checks nothing:\n{process.tail()}")
        time.sleep(0.05)


def settle(sites: Sites, rate: float, process: Process) -> None:
    """Until the farm sees the rate that was asked for, or for `SETTLE_SECONDS` after the first check.

    Raises `BenchError` when the process ends or no check comes.
    """
    first_check(sites, process)
    limit = time.monotonic() + SETTLE_SECONDS
    while True:
        process.check()
        since, answers = time.monotonic(), sites.count().answers
        time.sleep(SETTLE_WINDOW)
        now = time.monotonic()
        if (sites.count().answers - answers) / (now - since) >= AT_RATE * rate or now > limit:
            return
