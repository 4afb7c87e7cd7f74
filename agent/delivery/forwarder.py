"""Hands what waits to a sink, once a tick, and takes it off the queue when the sink says that it arrived.

Measuring never waits for this, and nothing here blocks: a sink that does not get on only makes the queue grow.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from agent.delivery.queue import MemoryQueue, Record
from agent.device.clock import boottime

log = logging.getLogger(__name__)

WINDOW = 5_000  # records of a topic that are handed over and not acknowledged
LOST_AFTER = 5.0  # nothing acknowledged for this long while something is outstanding: the broker is lost
HOLD = 5.0  # a topic that is refused is tried again after this long
SINGLY_TICK = 0.02  # seconds between looks while records are tried one by one
FLUSH_TICK = 0.02  # the same while stopping

Fate = Literal["arrived", "again", "topic_refused", "record_refused"]


class Report(NamedTuple):
    """What became of a record that a sink took. `reason` is for people and for gaps; empty when it arrived."""

    record: Record
    fate: Fate
    reason: str = ""


class Sink(Protocol):
    """Where records go. No call blocks."""

    def send(self, records: Sequence[Record]) -> None:
        """Takes records; what becomes of each is reported by `poll`, once."""

    def poll(self) -> list[Report]:
        """What became of records since the last call."""

    def close(self) -> None:
        """Forgets what is outstanding without reporting it, and ends in the background."""


class Forwarder:
    """Moves records from `queue` to `sink` every `tick` seconds."""

    def __init__(self, queue: MemoryQueue, sink: Sink, tick: float) -> None:
        self._queue, self._sink, self._tick = queue, sink, tick
        self._outstanding: dict[tuple[str, int], Record] = {}
        self._held: dict[str, float] = {}  # topic: boot time until which it is left alone
        # Kafka refuses a whole batch for one bad record. These were in such a batch, and go one by one.
        self._suspects: list[Record] = []
        self._alone: Record | None = None
        self._last_arrival = boottime()
        self._lost = False

    async def run(self) -> None:
        """For ever."""
        while True:
            self._turn()
            await asyncio.sleep(SINGLY_TICK if self._suspects or self._alone else self._tick)

    async def stop(self, limit: float) -> int:
        """Hands over what waits for at most `limit` seconds; returns how many records did not arrive."""
        end = boottime() + limit
        self._held.clear()
        while True:
            self._turn()
            left = self._queue.waiting().records
            if left == 0 or boottime() >= end:
                break
            await asyncio.sleep(FLUSH_TICK)
        self._sink.close()
        return left

    def replace(self, sink: Sink, tick: float) -> None:
        """Goes on with another sink. What the old one has not reported goes again: it may arrive twice, as the same."""
        self._sink.close()
        self._queue.give_back([*self._outstanding.values(), *self._suspects])
        self._outstanding.clear()
        self._suspects.clear()
        self._held.clear()
        self._alone = None
        self._sink, self._tick = sink, tick

    def _turn(self) -> None:
        self._settle(self._sink.poll())
        if self._suspects or self._alone is not None:
            self._send_one_alone()
        else:
            now = boottime()
            for topic in self._queue.topics():
                if self._held.get(topic, 0.0) <= now:
                    self._send(self._queue.take(topic, WINDOW - self._queue.taken(topic)))
        self._watch_broker()

    def _send(self, records: Sequence[Record]) -> None:
        if records:
            if not self._outstanding:
                self._last_arrival = boottime()
            for record in records:
                self._outstanding[record.topic, record.seq] = record
            self._sink.send(records)

    def _send_one_alone(self) -> None:
        """With nothing else on the way, so that it shares no batch."""
        if not self._outstanding:
            self._alone = self._suspects.pop(0)
            self._send([self._alone])

    def _settle(self, reports: Sequence[Report]) -> None:
        again = []
        for record, fate, reason in reports:
            if self._outstanding.pop((record.topic, record.seq), None) is None:
                continue
            alone = record is self._alone
            if alone:
                self._alone = None
            if fate == "arrived":
                self._queue.acknowledge(record)
                self._last_arrival = boottime()
            elif fate == "record_refused" and alone:
                log.error("%s: Kafka does not take it and never will: %s; it is told as a gap", record.id, reason)
                self._queue.refuse(record, reason)
            elif fate == "record_refused":
                self._suspects.append(record)
            else:
                again.append(record)
                if fate == "topic_refused":
                    self._hold(record.topic, reason)
        self._queue.give_back(again)

    def _hold(self, topic: str, reason: str) -> None:
        now = boottime()
        if self._held.get(topic, 0.0) <= now:
            log.error(
                "topic %s: %s; its records wait (%d in all), next try in %.0f s",
                topic,
                reason,
                self._queue.waiting().records,
                HOLD,
            )
            self._held[topic] = now + HOLD

    def _watch_broker(self) -> None:
        """Judged by acknowledgements alone: a peer that stopped with its connection open gives no other sign."""
        silent = bool(self._outstanding) and boottime() - self._last_arrival > LOST_AFTER
        if silent and not self._lost:
            self._lost = True
            waiting = self._queue.waiting()
            log.warning(
                "Kafka acknowledges nothing; measuring goes on, %d records wait in memory (room for %d)",
                waiting.records,
                self._queue.max_records,
            )
        elif self._lost and boottime() - self._last_arrival < LOST_AFTER:
            self._lost = False
            log.info("Kafka acknowledges again; %d records wait", self._queue.waiting().records)
