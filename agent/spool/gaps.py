"""Which records will never come, until Kafka has acknowledged the records that tell so.

A gap is told again until the record that tells it was acknowledged: it outlives its own drop, and a restart, because
the store keeps the rows on disk for as long as they stand here.
"""

from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from agent.device.clock import boottime
from agent.spool.record import Gap, Origin, Record

MAX_GAPS = 1_000  # rows; beyond, rows of one topic and run are joined over what lies between
MAX_TOLD = 10  # records that tell gaps, at a time: the rest grow in place and do not fill the spool


def joined(gaps: Iterable[Gap]) -> list[Gap]:
    """Rows that touch and have one reason become one."""
    rows: list[Gap] = []
    for gap in gaps:
        _add(rows, gap)
    return rows


class Gaps:
    """Rows to be told, and rows whose telling is on its way. `origin`: of the records that tell."""

    def __init__(self, origin: Origin, tell: Callable[[Gap], Record]) -> None:
        self._origin, self._tell = origin, tell
        self._rows: list[Gap] = []
        self._told: dict[str, tuple[Record, Gap]] = {}  # by id of the record that tells it
        self.changes = 0  # counts changes of `rows`
        self.given_up = 0  # records that were named since the start
        self.last: tuple[float, str] | None = None  # boot time and reason of the last of them

    def rows(self) -> tuple[Gap, ...]:
        """All that is not acknowledged."""
        return (*(gap for _, gap in self._told.values()), *self._rows)

    def add(self, gaps: Sequence[Gap]) -> list[Gap]:
        """Takes rows in, and returns those that are new; beyond the bound, the oldest two of one topic and run become
        one.

        When a record that tells a gap is among those that will never come, its gap is to be told again.
        """
        new = []
        for gap in gaps:
            self.changes += 1
            if _add(self._rows, gap):
                new.append(gap)
                self.given_up += gap.count
                self.last = boottime(), gap.reason
            if len(self._rows) > MAX_GAPS:
                _join_oldest(self._rows)
            if (gap.run_id, gap.worker) == self._origin[1:]:
                for record, _ in list(self._told.values()):
                    if record.topic == gap.topic and gap.first_seq <= record.seq <= gap.last_seq:
                        self.lost(record.id)
        return new

    def tell(self) -> list[Record]:
        """New records that tell gaps, some at a time."""
        records = []
        while self._rows and len(self._told) < MAX_TOLD:
            gap = self._rows.pop(0)
            record = self._tell(gap)
            self._told[record.id] = record, gap
            records.append(record)
        return records

    def acknowledged(self, record_id: str) -> None:
        """A record arrived; when it told a gap, that is done."""
        if self._told.pop(record_id, None) is not None:
            self.changes += 1

    def lost(self, record_id: str) -> bool:
        """A record will never come; when it told a gap, that is to be told again. Whether it did."""
        told = self._told.pop(record_id, None)
        if told is not None:
            self.changes += 1
            _add(self._rows, told[1])
        return told is not None


def _add(rows: list[Gap], gap: Gap) -> bool:
    """Whether it was new."""
    for at in range(len(rows) - 1, -1, -1):
        other = rows[at]
        if other.reason != gap.reason or _whose(other) != _whose(gap):
            continue
        if other.first_seq <= gap.first_seq and gap.last_seq <= other.last_seq:
            return False  # damage is found again by each run until its file is done with
        if other.last_seq + 1 == gap.first_seq or gap.last_seq + 1 == other.first_seq:
            rows[at] = _over(other, gap)
            return True
    rows.append(gap)
    return True


def _join_oldest(rows: list[Gap]) -> None:
    oldest: dict[tuple[str, str, int], int] = {}
    for at, row in enumerate(rows):
        if (first := oldest.setdefault(_whose(row), at)) != at:
            rows[first] = _over(rows[first], rows.pop(at))
            return
    del rows[0]  # a thousand runs, each with one row: nothing can be joined


def _whose(gap: Gap) -> tuple[str, str, int]:
    return gap.topic, gap.run_id, gap.worker


def _over(one: Gap, other: Gap) -> Gap:
    """One gap over both; where they do not touch, `count` is less than the span."""
    first = min(one, other, key=lambda gap: gap.first_seq)
    last = max(one, other, key=lambda gap: gap.last_seq)
    return replace(
        first,
        last_seq=last.last_seq,
        last_at=last.last_at,
        count=one.count + other.count,
        reason=one.reason if one.reason == other.reason else "several",
    )
