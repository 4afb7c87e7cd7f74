"""A spool, a forwarder and a Kafka sink at work, as in the agent, with records that are told apart by their number."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

import msgspec
import pytest

from agent.config.model import Kafka
from agent.delivery.forwarder import Forwarder
from agent.delivery.kafka import KafkaSink
from agent.device.clock import Clock
from agent.spool.record import Gap, Origin, Record
from tests.delivery.in_memory import a_spool
from tests.kafka import Arrived

RESULTS, EVENTS = "uptime.results", "uptime.events"
AGENT = "test-1"
TICK = 0.05
LONG = 40.0  # seconds that anything may take on a busy machine


class Line:
    """Runs until the end of `running`. Numbers count up from 1 for each topic."""

    def __init__(self, address: str, run: str, results: str, events: str, **properties: str) -> None:
        self.results, self.events = results, events
        self._run = run
        self._numbers: dict[str, int] = {}
        self.sent: dict[str, bytes] = {}  # id: value
        self.told: list[Gap] = []
        self.refused: list[tuple[str, str]] = []
        self.lost = self.back = 0  # how often Kafka was
        self.spool = a_spool(self._tell)
        # A second's wait before the first connection is good for a fleet, not for tests.
        self.kafka = Kafka((address,), properties={"reconnect.backoff.ms": "50"} | properties)
        self.forwarder = Forwarder(self.spool, self.sink(), TICK, self)
        self._task = asyncio.create_task(self.forwarder.run())

    def sink(self) -> KafkaSink:
        """A new one, for the same broker."""
        return KafkaSink(self.kafka, AGENT, Clock("yes"))

    def append(self, count: int = 1, topic: str | None = None, size: int = 200) -> list[str]:
        """Appends records, of results if not said otherwise, with values of about this size; their ids."""
        records = [self._record(topic or self.results, "x" * size) for _ in range(count)]
        for record in records:
            self.spool.append(record)
        return [record.id for record in records]

    def broker_lost(self) -> None:
        """As the daemon is told."""
        self.lost += 1

    def broker_back(self, seconds: float) -> None:
        """As the daemon is told."""
        self.back += 1

    def rejected(self, record: Record, origin: Origin, reason: str) -> None:
        """As the daemon is told."""
        self.refused.append((record.id, reason))

    def _tell(self, gap: Gap) -> Record:
        self.told.append(gap)
        return self._record(self.events, msgspec.json.encode(gap).decode())

    def _record(self, topic: str, text: str) -> Record:
        seq = self._numbers[topic] = self._numbers.get(topic, 0) + 1
        record_id = f"{AGENT}/{self._run}/0/{'e' * (topic == self.events)}{seq}"
        value = msgspec.json.encode({"id": record_id, "text": text})
        self.sent[record_id] = value
        return Record(topic, seq, record_id, "2026-11-23T16:33:11.000000Z", value)

    async def drained(self) -> None:
        """Waits until everything was acknowledged, and all gaps were told."""
        limit = time.monotonic() + LONG
        while len(self.spool) or self.spool._gaps.rows():
            if self._task.done():
                self._task.result()
            assert time.monotonic() < limit, f"{self.spool.waiting()} after {LONG} s"
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Stops it; what waits is dropped."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.forwarder.stop(0.0)


@contextlib.asynccontextmanager
async def running(
    address: str, run: str = "5f0c2a9177d04e1b", results: str = RESULTS, events: str = EVENTS, **properties: str
) -> AsyncIterator[Line]:
    """A line to this broker; `properties` are librdkafka's, with `.` written as `_`."""
    line = Line(address, run, results, events, **{name.replace("_", "."): value for name, value in properties.items()})
    try:
        yield line
    finally:
        await line.end()


async def said(log: pytest.LogCaptureFixture, text: str) -> None:
    """Waits until the log has it."""
    limit = time.monotonic() + LONG
    while text not in log.text:
        assert time.monotonic() < limit, f"{text!r} is not in:\n{log.text}"
        await asyncio.sleep(0.01)


def ids(records: Iterable[Arrived]) -> list[str]:
    """The ids of what arrived."""
    return [record.headers["id"].decode() for record in records]
