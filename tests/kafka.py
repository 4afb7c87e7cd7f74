"""A real Apache Kafka in tests, started by ./scripts/kafka, and a consumer to see what arrived."""

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
from confluent_kafka.admin import AdminClient, NewTopic

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


class Broker:
    """One broker with its data, which outlive `kill`. It dies with the tests, however they end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # The thread that starts a process is the one with which it dies; that of an event loop does not last.
        self._starter = ThreadPoolExecutor(1)
        self._script: subprocess.Popen[str] | None = None
        self._java = 0
        self._port = "0"
        self.address = ""

    def start(self) -> None:
        """Starts it, or starts it again on the same port and data. Raises `CannotStart`."""
        self._starter.submit(self._start).result()

    def _start(self) -> None:
        with (self._directory / "script.log").open("a+") as log:
            self._script = subprocess.Popen(
                [str(SCRIPT), "--port", self._port, "--data", str(self._directory)],
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
        found = re.search(r"^node 1: (127\.0\.0\.1:(\d+)), pid (\d+)$", said, re.MULTILINE)
        assert found, said
        self.address, self._port, self._java = found[1], found[2], int(found[3])

    def kill(self) -> None:
        """kill -9, and gone when this returns."""
        os.kill(self._java, signal.SIGKILL)
        self._end()

    def restart(self) -> None:
        """Starts it again after `kill`."""
        self.start()

    def pause(self) -> None:
        """Its connections stay and nothing answers, until `resume`."""
        os.kill(self._java, signal.SIGSTOP)

    def resume(self) -> None:
        """Ends a `pause`."""
        os.kill(self._java, signal.SIGCONT)

    def make_topic(self, topic: str, partitions: int = 1, **properties: str) -> str:
        """Makes a topic, with `.` in the names of its properties written as `_`; returns its name."""
        config = {"message.timestamp.type": "LogAppendTime"}
        config |= {name.replace("_", "."): value for name, value in properties.items()}
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 2})
        admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(30)
        return topic

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
