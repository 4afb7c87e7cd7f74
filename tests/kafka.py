"""A real Apache Kafka in tests, started by ./scripts/kafka, and a consumer to see what arrived."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

SCRIPT = Path(__file__).parent.parent / "scripts" / "kafka"
NEEDS = "kafka: needs "  # how the script's word begins when Java or Maven is missing
LIBC = ctypes.CDLL(None)


class CannotStart(Exception):
    """This machine lacks what Apache Kafka needs; the text says what to install."""


class Arrived(NamedTuple):
    """A record as a consumer sees it."""

    key: bytes | None
    headers: dict[str, bytes]
    value: bytes | None


class Node(NamedTuple):
    """One of a cluster's."""

    address: str
    port: str
    java: int  # process id


class Broker:
    """A cluster, of one node if not said otherwise, with its data, which outlive `kill`. It dies with the tests,
    however they end. `options` are those of ./scripts/kafka; `secure` is its address with TLS and SCRAM, if any.
    """

    def __init__(self, directory: Path, nodes: int = 1, *options: str) -> None:
        self._directory = directory
        self._options = ["--nodes", str(nodes), *options]
        # The thread that starts a process is the one with which it dies; that of an event loop does not last.
        self._starter = ThreadPoolExecutor(1)
        self._script: subprocess.Popen[str] | None = None
        self._nodes: list[Node] = []
        self.address = self.secure = ""

    def start(self) -> None:
        """Starts it, or starts it again on the same port and data. Raises `CannotStart`."""
        self._starter.submit(self._start).result()

    def _start(self) -> None:
        port = self._nodes[0].port if self._nodes else "0"
        with (self._directory / "script.log").open("a+") as log:
            self._script = subprocess.Popen(
                [str(SCRIPT), "--port", port, "--data", str(self._directory), *self._options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1"},  # half the work until it is up
                preexec_fn=_end_with_parent,
            )
            assert self._script.stdout is not None
            said = ""
            for line in self._script.stdout:
                said += line
                if line.startswith("bootstrap servers: "):
                    break
            else:
                self._end()
                log.seek(0)
                problem = log.read()
                if NEEDS in problem:
                    raise CannotStart(problem.strip())
                raise RuntimeError(problem)
        found = re.findall(r"^node \d: (127\.0\.0\.1:(\d+)), pid (\d+)$", said, re.MULTILINE)
        assert found, said
        self._nodes = [Node(address, port, int(java)) for address, port, java in found]
        self.address = ",".join(node.address for node in self._nodes)
        self.secure = "".join(re.findall(r"^with TLS and SCRAM-SHA-512: (\S+)$", said, re.MULTILINE))

    def kill(self) -> None:
        """kill -9 of all nodes, and gone when this returns."""
        for number in range(1, len(self._nodes) + 1):
            self.kill_node(number)
        self._end()

    def kill_node(self, number: int) -> None:
        """kill -9 of one, which does not come back."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._nodes[number - 1].java, signal.SIGKILL)

    def restart(self) -> None:
        """Starts it again after `kill`."""
        self.start()

    def pause(self, number: int = 1) -> None:
        """A node's connections stay and nothing answers, until `resume`."""
        os.kill(self._nodes[number - 1].java, signal.SIGSTOP)

    def resume(self, number: int = 1) -> None:
        """Ends a `pause`."""
        os.kill(self._nodes[number - 1].java, signal.SIGCONT)

    def make_topic(self, topic: str, partitions: int = 1, **properties: str) -> str:
        """Makes a topic with a copy on each node, with `.` in the names of its properties written as `_`; its name."""
        config = {"message.timestamp.type": "LogAppendTime"}
        config |= {name.replace("_", "."): value for name, value in properties.items()}
        new = NewTopic(topic, partitions, len(self._nodes), config=config)
        admin = self._admin()  # which must live until the answer has come
        admin.create_topics([new])[topic].result(30)
        return topic

    def delete_topic(self, topic: str) -> None:
        """Deletes it, with what is on it."""
        admin = self._admin()
        admin.delete_topics([topic])[topic].result(30)

    def change_topic(self, topic: str, name: str, value: str) -> None:
        """Gives a topic's property, named as Kafka names it, another value."""
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
        admin = self._admin()
        admin.incremental_alter_configs([resource])[resource].result(30)

    def leader(self, topic: str, partition: int = 0) -> int:
        """The number of the node that leads it; -1: none does."""
        number: int = self._admin().list_topics(topic, timeout=30).topics[topic].partitions[partition].leader
        return number

    def in_sync(self, topic: str, partition: int = 0) -> list[int]:
        """The numbers of the nodes whose copy is whole."""
        numbers: list[int] = self._admin().list_topics(topic, timeout=30).topics[topic].partitions[partition].isrs
        return numbers

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.address, "log_level": 2})

    def consume(self, topic: str, count: int | None = None, timeout: float = 30.0) -> list[Arrived]:
        """As `consume` of this module, from this broker."""
        return consume(self.address, topic, count, timeout)

    def close(self) -> None:
        """Stops it."""
        assert self._script is not None
        self._script.terminate()
        self._end()
        self._starter.shutdown()

    def _end(self) -> None:
        assert self._script is not None
        assert self._script.stdout is not None
        self._script.stdout.close()
        self._script.wait(30)


def consume(address: str, topic: str, count: int | None = None, timeout: float = 30.0) -> list[Arrived]:
    """All records of `topic`, partition by partition in order: as soon as there are `count` of them, or those that are
    there now. Raises `AssertionError` when they are not `count` after `timeout` seconds.
    """
    limit = time.monotonic() + timeout
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": f"test-{uuid.uuid4()}", "enable.auto.commit": False, "log_level": 2}
    )
    try:
        partitions = sorted(consumer.list_topics(topic, timeout=timeout).topics[topic].partitions)
        arrived: dict[int, list[Arrived]] = {partition: [] for partition in partitions}
        ends = {}
        for partition in partitions:
            low, high = _bounds(consumer, TopicPartition(topic, partition), limit)
            if high > low:
                ends[partition] = high
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        while (ends if count is None else sum(map(len, arrived.values())) < count) and time.monotonic() < limit:
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                headers = {name: bytes(value) for name, value in message.headers() or ()}
                arrived[message.partition()].append(Arrived(message.key(), headers, message.value()))
                if message.offset() + 1 >= ends.get(message.partition(), 1 << 63):
                    del ends[message.partition()]
    finally:
        consumer.close()
    records = [record for partition in partitions for record in arrived[partition]]
    assert not ends or count is not None, f"{topic}: {len(records)} records and not all after {timeout} s"
    assert count is None or len(records) >= count, f"{topic}: {len(records)} of {count} records after {timeout} s"
    return records


def _bounds(consumer: Consumer, partition: TopicPartition, limit: float) -> tuple[int, int]:
    """Its first and next offset; a partition that is new, or whose broker came back, has no leader for a moment."""
    while True:
        try:
            low, high = consumer.get_watermark_offsets(partition, timeout=limit - time.monotonic())
            return low, high
        except KafkaException:
            if time.monotonic() >= limit:
                raise
            time.sleep(0.1)


def _end_with_parent() -> None:
    """PR_SET_PDEATHSIG, prctl(2): SIGTERM when the thread that made this process ends."""
    LIBC.prctl(1, signal.SIGTERM)
