"""What passes between the loop, which knows the records in memory, and the store, which knows the files.

One request, one response, and no second request before it: so nothing waits in a queue of its own, and what the loop
may hold in memory is the only bound there is to keep.
"""

from collections.abc import Sequence

import msgspec

from agent.spool.record import Gap, Origin, Record


class New(msgspec.Struct):
    """Records of one topic that are to be kept as one block; `key` is the caller's name for them."""

    key: int
    topic: str
    records: Sequence[Record]
    segment: int = 0  # that holds them already, and is not good enough


class Loaded(msgspec.Struct):
    """Records of one topic that are on disk, to be acknowledged as records of `segment`."""

    segment: int
    origin: Origin
    topic: str
    records: list[Record]


class HandOver(msgspec.Struct):
    """A live segment becomes backlog: of it, the ranges of seq that leave memory. `kept` of its records stay there."""

    segment: int
    wanted: tuple[tuple[int, int], ...]
    kept: int = 0


class Request(msgspec.Struct):
    """What the caller wants of one turn, done in this order."""

    acknowledged: dict[int, int] = {}  # segment: how many of its records
    new: Sequence[New] = ()
    strict: bool = False  # synced before the turn ends
    refused: Sequence[Loaded] = ()  # to be set aside
    gaps: tuple[Gap, ...] | None = None  # all that are open, if they changed
    gaps_seen: int = 0  # how many of the store's own are among them or were told
    settle: Sequence[New] = ()  # to be written again, to the directory proper
    sync: bool = False
    hand_over: Sequence[HandOver] = ()
    load: int = 0  # bytes of backlog
    held: frozenset[str] = frozenset()  # topics of which no backlog is wanted now

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        wanted = (self.acknowledged, self.new, self.refused, self.settle, self.sync, self.hand_over, self.load)
        return self.gaps is not None or any(wanted)


class Response(msgspec.Struct):
    """What came of it."""

    placed: dict[int, int] = {}  # key of new or settled records: the segment that holds them now
    volatile: set[int] = set()  # keys of those that are not in the directory proper
    lost: list[Gap] = []
    synced: bool = False  # everything that was there at the end of the turn, save `unsafe`
    unsafe: set[int] = set()  # segments that may not survive: their records are to be settled elsewhere
    handed_over: set[int] = set()
    loaded: list[Loaded] = []
    full: bool = False  # there is no room, and nothing that may be dropped
    trouble: str = ""
    bytes: int = 0  # on disk, all of it
    cut_short: bool = False  # not all of the backlog was looked through for something to load
    more: bool = False  # there is backlog to be loaded
    again: bool = False  # something could not be done yet: a turn is wanted soon, be it empty
