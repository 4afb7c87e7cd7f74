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
MAX_BYTES = 16 << 20  # of values; beside each stand about 400 bytes of bookkeeping
MAX_GAPS = 1_000  # rows remembered until they are told; beyond, rows of one topic are merged
MAX_TOLD = 10  # records that tell gaps, at a time: the rest grow in place and do not fill the queue
TELL_AGAIN = 10.0  # seconds until gaps are told again after Kafka refused for good to take one's record


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
        self._taken: dict[str, dict[int, _Place]] = {}  # by topic and seq
        self._appended = self._records = self._bytes = 0
        self._gaps: list[Gap] = []  # to be told
        self._told: dict[tuple[str, int], Gap] = {}  # by topic and seq of the record that tells it, until acknowledged
        self._tell_from = 0.0  # boot time

    def __len__(self) -> int:
        """How many records are not acknowledged, taken or not."""
        return self._records

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

    def tell_gaps(self) -> None:
        """Makes records that tell gaps, where there is room for them: a full queue would lose others for them."""
        if boottime() < self._tell_from:
            return
        for _ in range(min(len(self._gaps), MAX_TOLD - len(self._told))):
            if self._records >= self.max_records or self._bytes >= self._max_bytes:
                break
            gap = self._gaps.pop(0)
            record = self._tell_gap(gap)
            self._told[record.topic, record.seq] = gap
            self.append(record)

    def topics(self) -> list[str]:
        """The topics for which something waits to be taken."""
        return [topic for topic, places in self._waiting.items() if places]

    def take(self, topic: str, limit: int) -> list[Record]:
        """The next records of `topic`, at most `limit`, in order; they stay until acknowledged or given back."""
        places = self._waiting.get(topic, deque())
        taken = [places.popleft() for _ in range(min(limit, len(places)))]
        self._taken.setdefault(topic, {}).update((place.record.seq, place) for place in taken)
        return [place.record for place in taken]

    def taken(self, topic: str) -> int:
        """How many records of `topic` are taken and neither acknowledged nor given back."""
        return len(self._taken.get(topic, ()))

    def acknowledge(self, records: Iterable[Record]) -> None:
        """Forgets taken records, because they arrived."""
        for record in records:
            del self._taken[record.topic][record.seq]
            self._forget(record)
            self._told.pop((record.topic, record.seq), None)

    def refuse(self, record: Record, reason: str) -> None:
        """Gives a taken record up for ever, because Kafka will not have it: a gap names it."""
        if (record.topic, record.seq) in self._told:
            self._tell_from = boottime() + TELL_AGAIN
        self._lose(self._taken[record.topic].pop(record.seq), reason)

    def give_back(self, records: Iterable[Record]) -> None:
        """Taken records that did not arrive wait again, in their old order."""
        back: dict[str, list[_Place]] = {}
        for record in records:
            back.setdefault(record.topic, []).append(self._taken[record.topic].pop(record.seq))
        for topic, places in back.items():
            self._put_back(topic, places)

    def give_all_back(self) -> None:
        """All that was taken waits again, in its old order."""
        for topic, taken in self._taken.items():
            self._put_back(topic, list(taken.values()))
            taken.clear()

    def waiting(self) -> Waiting:
        """What is not acknowledged yet, taken or not. Looks at all that was taken."""
        since = [place.since for taken in self._taken.values() for place in taken.values()]
        since += [places[0].since for places in self._waiting.values() if places]
        return Waiting(self._records, self._bytes, round(boottime() - min(since), 3) if since else None)

    def _put_back(self, topic: str, places: list[_Place]) -> None:
        waiting = self._waiting.setdefault(topic, deque())
        places.sort()
        if not waiting or not places or places[-1] < waiting[0]:
            waiting.extendleft(reversed(places))
        else:
            self._waiting[topic] = deque(sorted([*places, *waiting]))

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
        """Rows that touch and have one reason become one; beyond the bound, so do the oldest two of a topic."""
        for at in range(len(self._gaps) - 1, -1, -1):
            other = self._gaps[at]
            touching = other.last_seq + 1 == gap.first_seq or gap.last_seq + 1 == other.first_seq
            if touching and (other.topic, other.reason) == (gap.topic, gap.reason):
                self._gaps[at] = _merged(other, gap)
                return
        self._gaps.append(gap)
        if len(self._gaps) > MAX_GAPS:
            oldest: dict[str, int] = {}
            for at, other in enumerate(self._gaps):
                if (first := oldest.setdefault(other.topic, at)) != at:
                    self._gaps[first] = _merged(self._gaps[first], self._gaps.pop(at))
                    break


def _first(places: deque[_Place]) -> int:
    return places[0].number


def _merged(one: Gap, other: Gap) -> Gap:
    """One gap over both; where they do not touch, `count` is less than the span."""
    first = min(one, other, key=lambda gap: gap.first_seq)
    last = max(one, other, key=lambda gap: gap.last_seq)
    return Gap(
        topic=one.topic,
        first_seq=first.first_seq,
        last_seq=last.last_seq,
        count=one.count + other.count,
        reason=one.reason if one.reason == other.reason else "several",
        first_at=first.first_at,
        last_at=last.last_at,
    )
