"""A block of records as the loop's side holds it: in memory, and perhaps on disk or on its way there; and the sum."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from agent.spool.record import Origin, Record


class Waiting(NamedTuple):
    """What is not acknowledged: `records` in memory, `bytes` on disk; and the `trouble` that the disk is in, if any.

    `given_up`: records that were named in gaps since the start; `last_loss`: boot time and reason of the last.

    `oldest_s`: seconds that the oldest has waited; of what an earlier run left, those since this one began. None when
    nothing waits.
    """

    records: int
    bytes: int
    oldest_s: float | None
    trouble: str
    given_up: int
    last_loss: tuple[float, str] | None


class HeldBlock:
    """Records of one topic that were appended or loaded together, and where they stand."""

    __slots__ = (
        "handed_over",
        "left",
        "live",
        "meanwhile",
        "moving",
        "number",
        "offered",
        "origin",
        "original",
        "place",
        "records",
        "rewritten",
        "seen",
        "segment",
        "since",
    )

    def __init__(self, number: int, origin: Origin, records: list[Record], since: float, segment: int = 0) -> None:
        self.number = number  # the order in which blocks go
        self.origin, self.records = origin, records
        self.left = len(records)  # not acknowledged, nor lost
        self.segment = segment  # that holds it; 0: none
        self.live = segment == 0
        self.place: Literal["memory", "volatile", "proper", "synced"] = "memory" if self.live else "synced"
        self.since = since  # boot time
        self.handed_over = False  # but for what was taken then
        self.offered = False  # its records may be taken
        self.seen = False  # of its records, some may have come to Kafka
        self.rewritten = False  # the disk has not got it as it is now, but as `original`
        self.original: list[Record] = []
        self.moving = False  # a request to write it is under way
        self.meanwhile = 0  # records that were done with while it was

    @property
    def topic(self) -> str:
        """Of all its records."""
        return self.records[0].topic


def ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Numbers as ranges, both ends included."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    return tuple(ranges)
