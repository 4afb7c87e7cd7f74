"""Hands what waits to a sink, once a tick, and takes it off the queue when the sink says that it arrived.

Measuring never waits for this, and nothing here blocks: a sink that does not get on only makes the queue grow.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from agent.delivery.queue import MemoryQueue, Record
from agent.delivery.sparing import SparingLog
from agent.device.clock import boottime

log = logging.getLogger(__name__)

WINDOW = 2_000  # records of a topic that are handed over and not acknowledged
BATCH = 500  # records of a topic that are handed over in one turn: some milliseconds of the loop
SOON = 0.02  # seconds until the next turn when there is more to do; else a tick
LOST_AFTER = 5.0  # no word from Kafka for this long while something is on its way: it is lost
HOLD = 5.0  # a topic that is refused is tried again after this long, with one record

Fate = Literal["arrived", "again", "topic_refused", "record_refused"]


class Report(NamedTuple):
    """What became of records of one topic that a sink took. `reason` is for people and for gaps."""

    records: Sequence[Record]
    fate: Fate
    reason: str = ""


class Sink(Protocol):
    """Where records go. No call blocks."""

    def send(self, records: Sequence[Record]) -> None:
        """Takes records of one topic; what becomes of each is reported by `poll`, once."""

    def poll(self) -> list[Report]:
        """What became of records since the last call."""

    def close(self) -> None:
        """Forgets what is on its way without reporting it, and ends in the background."""


class Forwarder:
    """Moves records from `queue` to `sink` every `tick` seconds, first of all those that `fill` adds to the queue."""

    def __init__(self, queue: MemoryQueue, sink: Sink, tick: float, fill: Callable[[], None] = lambda: None) -> None:
        self._queue, self._sink, self._tick, self._fill = queue, sink, tick, fill
        self._on_the_way = 0  # records that were sent and not reported
        self._held: dict[str, float] = {}  # topic: boot time until which it is left alone
        self._suspects = _Suspects()
        self._last_word = boottime()
        self._lost = False
        self._trouble = SparingLog(log)

    async def run(self) -> None:
        """For ever."""
        while True:
            more = self._turn()
            await asyncio.sleep(SOON if more else self._tick)

    async def stop(self, limit: float) -> int:
        """Hands over what waits for at most `limit` seconds; returns how many records did not arrive."""
        end = boottime() + limit
        self._held = dict.fromkeys(self._held, 0.0)
        while True:
            self._turn()
            if len(self._queue) == 0 or boottime() >= end:
                break
            await asyncio.sleep(SOON)
        self._sink.close()
        return len(self._queue)

    def replace(self, sink: Sink, tick: float) -> None:
        """Goes on with another sink. What the old one has not reported goes again: it may arrive twice, as the same."""
        self._sink.close()
        self._queue.give_all_back()
        self._on_the_way = 0
        self._held.clear()
        self._suspects = _Suspects()
        self._sink, self._tick = sink, tick

    def _turn(self) -> bool:
        """Whether there is more to do than to wait for the next tick."""
        self._fill()
        self._settle(self._sink.poll())
        if self._suspects:
            if self._on_the_way == 0:
                self._send(self._suspects.next())
            more = True
        else:
            self._queue.tell_gaps()
            more = BATCH in [self._send_next(topic) for topic in self._queue.topics()]
        self._watch()
        return more

    def _send_next(self, topic: str) -> int:
        """Sends what may go of a topic; returns how many."""
        room = min(WINDOW - self._queue.taken(topic), BATCH)
        if topic in self._held:
            # One record is enough to see whether it is still refused.
            room = 1 - self._queue.taken(topic) if self._held[topic] <= boottime() else 0
        records = self._queue.take(topic, room) if room > 0 else []
        if records:
            self._send(records)
        return len(records)

    def _send(self, records: Sequence[Record]) -> None:
        if self._on_the_way == 0:
            self._last_word = boottime()
        self._on_the_way += len(records)
        self._sink.send(records)

    def _settle(self, reports: Sequence[Report]) -> None:
        again: list[Record] = []
        for records, fate, reason in reports:
            topic = records[0].topic
            self._on_the_way -= len(records)
            self._last_word = boottime()
            if fate == "record_refused":
                self._refuse(records, reason)
                continue
            if fate == "arrived":
                self._suspects.settled(records)
                self._queue.acknowledge(records)
                self._arrived(topic)
                continue
            if fate == "topic_refused":
                self._held[topic] = boottime() + HOLD
            if fate == "topic_refused" or not self._suspects.on_trial:
                self._suspects.settled(records)
                again += records
            self._trouble.say(
                (topic, fate),
                logging.ERROR,
                "topic %s: %s; it is tried again, %d records wait in all (room for %d)",
                topic,
                reason,
                len(self._queue),
                self._queue.max_records,
            )
        self._queue.give_back(again)

    def _arrived(self, topic: str) -> None:
        if self._lost:
            self._lost = False
            log.info("Kafka acknowledges again; %d records wait", len(self._queue))
        if self._held.pop(topic, None) is not None:
            self._trouble.over((topic, "topic_refused"))
            log.info("topic %s: takes records now", topic)

    def _refuse(self, records: Sequence[Record], reason: str) -> None:
        for record in self._suspects.refused(records):
            self._queue.refuse(record, reason)
            self._trouble.say(
                (record.topic, "record_refused"),
                logging.ERROR,
                "record %s of %d bytes: Kafka does not take it and never will: %s; it is told as a gap",
                record.id,
                len(record.value),
                reason,
            )

    def _watch(self) -> None:
        """Judged by what is reported: a peer that stopped with its connection open gives no other sign."""
        if self._on_the_way and not self._lost and boottime() - self._last_word > LOST_AFTER:
            self._lost = True
            log.warning(
                "Kafka acknowledges nothing; measuring goes on, %d records wait in memory (room for %d)",
                len(self._queue),
                self._queue.max_records,
            )


class _Suspects:
    """Records that Kafka refused together. One may be bad, or all too much at once: they are tried by halves.

    Only with nothing else on the way, so that they share no batch with others; the queue counts them as taken.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[str, int], Record] = {}
        self._size = 0  # of the trial that is on its way or was the last; 0 before the first
        self._failed = False  # the last trial

    def __bool__(self) -> bool:
        return bool(self._records)

    @property
    def on_trial(self) -> bool:
        """Whether what is on its way is a trial."""
        return self._size > 0

    def next(self) -> list[Record]:
        """The next trial: the first records of a topic, half as many as were refused or twice as many as went."""
        if self._size == 0:
            self._size = (len(self._records) + 1) // 2
        else:
            self._size = max(self._size // 2, 1) if self._failed else self._size * 2
        self._failed = False
        first = next(iter(self._records.values()))
        trial = (record for record in self._records.values() if record.topic == first.topic)
        chosen = list(itertools.islice(trial, self._size))
        self._size = len(chosen)
        return chosen

    def refused(self, records: Sequence[Record]) -> list[Record]:
        """Takes in what was refused; returns those that were refused alone, and are none of ours any more."""
        if self._size == 1:
            self._failed = True
            self.settled(records)
            return list(records)
        self._failed = True
        self._records.update(((record.topic, record.seq), record) for record in records)
        return []

    def settled(self, records: Sequence[Record]) -> None:
        """These are none of ours any more."""
        if self._records:
            for record in records:
                self._records.pop((record.topic, record.seq), None)
            if not self._records:
                self._size = 0
