"""What waits for Kafka, in memory and bounded. It knows bytes and sequence numbers, not results.

A record leaves only when it was acknowledged, or when the bound dropped it: then it is named in a gap, and the gap
is told as a record of its own, again and again until *that* was acknowledged.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from agent.device.clock import boottime

MAX_RECORDS = 50_000
MAX_BYTES = 16 << 20
MAX_GAPS = 1_000  # rows remembered until they are told; beyond, rows of one topic are merged


class Record(NamedTuple):
    """One result or event on its way. `seq` and `id` as in the contract; `at`: its RFC 3339 stamp."""

    topic: str
    seq: int
    id: str
    at: str
    value: bytes


class Gap(msgspec.Struct, frozen=True):
    """Records that will never come: `count` of them from `first_seq` to `last_seq`, and the stamps of these two."""

    topic: str
    first_seq: int
    last_seq: int
    count: int
    reason: str
    first_at: str
    last_at: str


class Waiting(NamedTuple):
    """What is not acknowledged yet. `oldest_s`: seconds since the oldest was appended, None when nothing waits."""

    records: int
    bytes: int
    oldest_s: float | None


class _Place(NamedTuple):
    number: int  # of its append: the order in which records go
    since: float  # boot time of its append
    record: Record


class MemoryQueue:
    """Append, take, acknowledge. `tell_gap` makes the record that tells a gap (and thereby numbers it)."""

    def __init__(
        self, tell_gap: Callable[[Gap], Record], max_records: int = MAX_RECORDS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._tell_gap = tell_gap
        self.max_records, self._max_bytes = max_records, max_bytes
        self._waiting: dict[str, deque[_Place]] = {}  # by topic, in order
        self._taken: dict[tuple[str, int], _Place] = {}  # by topic and seq
        self._appended = self._records = self._bytes = 0
        self._gaps: list[Gap] = []  # to be told
        self._told: dict[tuple[str, int], Gap] = {}  # by topic and seq of the record that tells it, until acknowledged

    def append(self, record: Record) -> None:
        """Takes a record in. Beyond the bound, the oldest that were not taken go."""
        self._appended += 1
        self._records += 1
        self._bytes += len(record.value)
        self._waiting.setdefault(record.topic, deque()).append(_Place(self._appended, boottime(), record))
        while self._records > self.max_records or self._bytes > self._max_bytes:
            fronts = [places for places in self._waiting.values() if places]
            if not fronts:
                break  # all of it was taken: the number that may be taken bounds it
            self._lose(min(fronts, key=_first).popleft(), "queue_full")

    def topics(self) -> list[str]:
        """The topics for which something waits to be taken, untold gaps included."""
        self._tell_gaps()
        return [topic for topic, places in self._waiting.items() if places]

    def take(self, topic: str, limit: int) -> list[Record]:
        """The next records of `topic`, at most `limit`, in order; they stay until acknowledged or given back."""
        places = self._waiting.get(topic, deque())
        taken = [places.popleft() for _ in range(min(limit, len(places)))]
        for place in taken:
            self._taken[place.record.topic, place.record.seq] = place
        return [place.record for place in taken]

    def acknowledge(self, record: Record) -> None:
        """Forgets a record that arrived, whether it was given back meanwhile or not. A second time changes nothing."""
        place = self._taken.pop((record.topic, record.seq), None)
        if place is not None:
            self._forget(record)
            self._told.pop((record.topic, record.seq), None)

    def give_back(self, records: Iterable[Record]) -> None:
        """Records that did not arrive: they wait again, in their old order."""
        back: dict[str, list[_Place]] = {}
        for record in records:
            place = self._taken.pop((record.topic, record.seq), None)
            if place is not None:
                back.setdefault(record.topic, []).append(place)
        for topic, places in back.items():
            self._waiting[topic] = deque(sorted([*places, *self._waiting[topic]]))

    def refuse(self, record: Record, reason: str) -> None:
        """Gives a taken record up for ever, because Kafka will not have it: a gap names it."""
        place = self._taken.pop((record.topic, record.seq), None)
        if place is not None:
            self._lose(place, reason)

    def taken(self, topic: str) -> int:
        """How many records of `topic` are taken and not acknowledged."""
        return sum(1 for taken_topic, _ in self._taken if taken_topic == topic)

    def waiting(self) -> Waiting:
        """What is not acknowledged yet, taken or not."""
        since = [place.since for place in self._taken.values()]
        since += [places[0].since for places in self._waiting.values() if places]
        return Waiting(self._records, self._bytes, round(boottime() - min(since), 3) if since else None)

    def _forget(self, record: Record) -> None:
        self._records -= 1
        self._bytes -= len(record.value)

    def _lose(self, place: _Place, reason: str) -> None:
        record = place.record
        self._forget(record)
        self._add_gap(Gap(record.topic, record.seq, record.seq, 1, reason, record.at, record.at))
        told = self._told.pop((record.topic, record.seq), None)
        if told is not None:
            self._add_gap(told)  # its telling was lost; it is told again

    def _add_gap(self, gap: Gap) -> None:
        for at in range(len(self._gaps) - 1, -1, -1):
            last = self._gaps[at]
            if (last.topic, last.reason) == (gap.topic, gap.reason):
                if last.last_seq + 1 == gap.first_seq:
                    self._gaps[at] = _merged(last, gap)
                    return
                break
        self._gaps.append(gap)
        if len(self._gaps) > MAX_GAPS:
            oldest = self._gaps.pop(0)
            same = next(at for at, other in enumerate(self._gaps) if other.topic == oldest.topic)
            self._gaps[same] = _merged(oldest, self._gaps[same])

    def _tell_gaps(self) -> None:
        """Only when something is about to go: until then a row grows in place and does not fill the queue."""
        gaps, self._gaps = self._gaps, []
        for gap in gaps:
            record = self._tell_gap(gap)
            self._told[record.topic, record.seq] = gap
            self.append(record)


def _first(places: deque[_Place]) -> int:
    return places[0].number


def _merged(one: Gap, other: Gap) -> Gap:
    """One gap over both; where they do not touch, `count` is less than the span."""
    first, last = (one, other) if one.first_seq <= other.first_seq else (other, one)
    return msgspec.structs.replace(
        first, last_seq=max(one.last_seq, other.last_seq), count=one.count + other.count, last_at=last.last_at
    )
