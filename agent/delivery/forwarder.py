"""Hands what waits to a sink, and takes it off the spool when the sink says that it arrived.

Each tick what was measured is written to disk, and goes as one batch when it is: live records first, and behind them
the backlog, as fast as Kafka takes it. Measuring never waits for this, and nothing here blocks: a sink that does not
get on only makes the spool grow.
"""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from agent.device.clock import boottime
from agent.spool.record import Origin, Record
from agent.spool.spool import Spool

log = logging.getLogger(__name__)

WINDOW = 2_000  # live records of a topic that are handed over and not acknowledged
BATCH = 500  # records of a topic that are handed over in one turn: some milliseconds of the loop
SOON = 0.01  # seconds until the next turn when there is more to do; else a tick
LOST_AFTER = 5.0  # no word from Kafka for this long while something is on its way: it is lost
HOLD = 3.0  # a topic that is refused is tried again after this long, with one record
SPREAD = 10.0  # the backlog begins at random within these seconds after Kafka is back: a fleet does not return as one
PACE = 100, 5_000  # records of the backlog that are on their way: at first and at least; at most
QUICK = 1.0  # seconds: an acknowledgement that takes longer slows the backlog down

Fate = Literal["arrived", "unsent", "again", "topic_refused", "record_refused"]


class Report(NamedTuple):
    """What became of records of one topic that a sink took together. `reason` is for people and for gaps.

    `unsent`: they were withdrawn, and Kafka surely has not got them; `again`: it may have.
    """

    records: Sequence[Record]
    fate: Fate
    reason: str = ""


class Sink(Protocol):
    """Where records go. No call blocks.

    `trouble`: what is in the way, as far as it has heard since a record arrived; no secret is in it.
    """

    trouble: str

    def send(self, records: Sequence[Record]) -> None:
        """Takes records of one topic; what becomes of each is reported by `poll`, once."""

    def poll(self) -> list[Report]:
        """What became of records since the last call."""

    def withdraw(self) -> None:
        """Takes back what was surely not sent yet: it is reported as `unsent`."""

    def close(self) -> None:
        """Forgets what is on its way without reporting it, and ends in the background."""


class News(Protocol):
    """Who tells the world of what becomes of the records."""

    def broker_lost(self) -> None:
        """Kafka acknowledges nothing any more."""

    def broker_back(self, seconds: float) -> None:
        """Kafka acknowledges again, after so many seconds."""

    def rejected(self, record: Record, origin: Origin, reason: str) -> None:
        """Kafka will never take this record; it is set aside, and a gap will name it."""


class Forwarder:
    """Moves records from `spool` to `sink` every `tick` seconds, first of all those that `fill` adds to the spool."""

    def __init__(
        self, spool: Spool, sink: Sink, tick: float, news: News, fill: Callable[[], None] = lambda: None
    ) -> None:
        self._spool, self._sink, self._tick, self._news, self._fill = spool, sink, tick, news, fill
        self._on_the_way = 0  # records that were sent and not reported
        self._pace = _Pace()
        self._held: dict[str, float] = {}  # topic: boot time until which it is left alone
        self._suspects = _Suspects()
        self._silent_since: float | None = None  # boot time since which something is on its way without a word
        self._lost_since: float | None = None
        self._unknown_since: float | None = boottime()  # until this sink has an acknowledgement
        self.last_turn = boottime()  # progress, for whoever watches

    def broker(self) -> tuple[Literal["up", "lost", "unknown"], float | None, str]:
        """Whether Kafka acknowledges, as far as is known; if not, for how many seconds, and why, if that is known."""
        if self._lost_since is not None:
            return "lost", round(boottime() - self._lost_since, 3), self._sink.trouble
        if self._unknown_since is not None:
            return "unknown", round(boottime() - self._unknown_since, 3), self._sink.trouble
        return "up", None, ""

    def refused_topics(self) -> tuple[str, ...]:
        """Those that Kafka does not take records for, as none was acknowledged since it said so."""
        return tuple(sorted(self._held))

    async def run(self) -> None:
        """For ever."""
        due = boottime()
        while True:
            if boottime() >= due:
                due = boottime() + self._tick
                self._begin_tick()
            wait = SOON if self._turn() else max(due - boottime(), 0.0)
            await self._something_to_take(wait)

    async def stop(self, limit: float) -> int:
        """Hands over what is in memory, for at most `limit` seconds and while Kafka acknowledges.

        Returns how many live records did not arrive; the spool has them, and the backlog.
        """
        end = boottime() + limit
        self._held = dict.fromkeys(self._held, 0.0)
        self._pace.pause()
        while True:
            self._turn()
            if self._spool.live() == 0 or self._lost_since is not None or boottime() >= end:
                break
            await self._something_to_take(SOON)
        self._sink.close()
        return self._spool.live()

    def replace(self, sink: Sink, tick: float) -> None:
        """Goes on with another sink. What the old one has not reported goes again: it may arrive twice, as the same."""
        self._sink.close()
        self._spool.give_all_back()
        self._on_the_way = 0
        self._pace.forget()
        self._silent_since = None
        self._held.clear()
        self._suspects = _Suspects()
        self._sink, self._tick = sink, tick
        self._unknown_since = boottime()

    async def _something_to_take(self, limit: float) -> None:
        """Waits until the disk has records, for at most `limit` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._spool.ready.wait()

    def _begin_tick(self) -> None:
        self._fill()
        self._spool.tell_gaps()

    def _turn(self) -> bool:
        """Whether there is more to do than to wait for the next tick."""
        self.last_turn = boottime()
        self._spool.ready.clear()
        self._settle(self._sink.poll())
        self._watch()
        self._spool.broker_lost = self._lost_since is not None
        self._spool.turn()
        if self._suspects:
            if self._on_the_way == 0:
                self._send(self._suspects.next())
            return self._lost_since is None
        if self._lost_since is not None:
            self._send_canary()
            return False
        sent = [self._send_next(topic) for topic in self._spool.topics()]
        return BATCH in sent or self._pace.busy or (self._pace.room() > 0 and self._spool.more)

    def _send_next(self, topic: str) -> int:
        """Sends what may go of a topic; returns how many."""
        room = min(WINDOW - self._spool.taken(topic) + self._pace.on_the_way(topic), BATCH)
        if topic in self._held:
            # One record is enough to see whether it is still refused.
            room = 1 - self._spool.taken(topic) if self._held[topic] <= boottime() else 0
        live = self._spool.take(topic, room)
        self._send(live)
        backlog = self._spool.take_backlog(topic, min(room - len(live), self._pace.room()))
        if backlog:
            self._pace.sent(backlog)
            self._send(backlog)
        return len(live) + len(backlog)

    def _send_canary(self) -> None:
        """While Kafka is lost one record at a time is with it: when that arrives, it is back."""
        for topic in self._spool.topics():
            if self._on_the_way == 0 and self._held.get(topic, 0.0) <= boottime():
                self._send(self._spool.take(topic, 1) or self._spool.take_backlog(topic, 1))

    def _send(self, records: Sequence[Record]) -> None:
        if records:
            if self._silent_since is None:
                self._silent_since = boottime()
            self._on_the_way += len(records)
            self._sink.send(records)

    def _settle(self, reports: Sequence[Report]) -> None:
        again: list[Record] = []
        unsent: list[Record] = []
        for records, fate, reason in reports:
            topic = records[0].topic
            self._on_the_way -= len(records)
            self._pace.reported(records, arrived=fate == "arrived")
            if fate not in ("again", "unsent"):  # which librdkafka may say without a broker
                self._silent_since = boottime() if self._on_the_way else None
            if fate == "arrived":
                self._suspects.settled(records)
                self._spool.acknowledge(records)
                self._arrived(topic)
                continue
            if fate == "record_refused":
                self._refuse(records, reason)
                continue
            if fate == "topic_refused":
                self._held[topic] = boottime() + HOLD
            if fate == "topic_refused" or not self._suspects.on_trial:
                self._suspects.settled(records)
                (unsent if fate == "unsent" else again).extend(records)
            if fate != "unsent":
                log.log(
                    logging.ERROR if fate == "topic_refused" else logging.WARNING,  # which nobody mends but a person
                    "topic %s: %s; it is tried again, with %d record%s in memory, the rest on disk",
                    topic,
                    reason,
                    len(self._spool),
                    "s" * (len(self._spool) != 1),
                    extra={"trouble": (topic, fate)},
                )
        self._spool.give_back(again)
        self._spool.give_back(unsent, unsent=True)

    def _arrived(self, topic: str) -> None:
        self._unknown_since = None
        if self._lost_since is not None:
            seconds, self._lost_since = boottime() - self._lost_since, None
            self._pace.pause()
            text = "Kafka acknowledges again, after %.0f s; what waits goes to it"
            log.info(text, seconds, extra={"over": "silence"})
            self._news.broker_back(seconds)
        self._pace.begin()
        if self._held.pop(topic, None) is not None:
            log.info("topic %s: takes records now", topic, extra={"over": (topic, "topic_refused")})

    def _refuse(self, records: Sequence[Record], reason: str) -> None:
        for record in self._suspects.refused(records):
            self._news.rejected(record, self._spool.origin(record), reason)
            self._spool.refuse(record, reason)
            log.error(
                "record %s of %d bytes: Kafka does not take it and never will: %s; it is set aside",
                record.id,
                len(record.value),
                reason,
            )

    def _watch(self) -> None:
        """Judged by what is reported: a peer that stopped with its connection open gives no other sign."""
        silent = self._silent_since
        if self._lost_since is None and silent is not None and boottime() - silent > LOST_AFTER:
            self._lost_since = silent
            self._pace.pause()
            self._sink.withdraw()
            text = "Kafka acknowledges nothing; measuring goes on, and what it yields waits on disk"
            log.warning(text, extra={"trouble": "silence"})
            self._news.broker_lost()


class _Pace:
    """How much of the backlog is on its way: more while Kafka takes it quickly, half as much when it does not."""

    def __init__(self) -> None:
        self._window = PACE[0]
        self._begins: float | None = None  # boot time
        self._sent: dict[str, float] = {}  # by id: boot time
        self._by_topic: dict[str, int] = {}

    @property
    def busy(self) -> bool:
        """Whether some of it is on its way."""
        return bool(self._sent)

    def on_the_way(self, topic: str) -> int:
        """How many records of `topic` are."""
        return self._by_topic.get(topic, 0)

    def room(self) -> int:
        """How many more may be sent now."""
        if self._begins is None or self._begins > boottime():
            return 0
        return max(self._window - len(self._sent), 0)

    def begin(self) -> None:
        """Kafka acknowledges. Unless that was known, the backlog begins at random a little later."""
        if self._begins is None:
            self._begins = boottime() + random.uniform(0, SPREAD)

    def pause(self) -> None:
        """No more until it is told to begin."""
        self._begins, self._window = None, PACE[0]

    def forget(self) -> None:
        """Nothing is on its way any more."""
        self._sent.clear()
        self._by_topic.clear()

    def sent(self, records: Sequence[Record]) -> None:
        """Records of the backlog, of one topic, are on their way."""
        self._sent.update(dict.fromkeys([record.id for record in records], boottime()))
        self._by_topic[records[0].topic] = self.on_the_way(records[0].topic) + len(records)

    def reported(self, records: Sequence[Record], arrived: bool) -> None:
        """Records that were sent together are no longer on their way; they may be live ones, which do not count."""
        if records[0].id not in self._sent:
            return
        since = self._sent[records[0].id]
        for record in records:
            del self._sent[record.id]
        self._by_topic[records[0].topic] -= len(records)
        if arrived and boottime() - since <= QUICK:
            self._window = min(self._window + PACE[0], PACE[1])
        else:
            self._window = max(self._window // 2, PACE[0])


class _Suspects:
    """Records that Kafka refused together. One may be bad, or all too much at once: they are tried by halves.

    Only with nothing else on the way, so that they share no batch with others; the spool counts them as taken.
    """

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}  # by id
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
        self._failed = True
        if self._size == 1:
            self.settled(records)
            return list(records)
        self._records.update((record.id, record) for record in records)
        return []

    def settled(self, records: Sequence[Record]) -> None:
        """These are none of ours any more."""
        if self._records:
            for record in records:
                self._records.pop(record.id, None)
            if not self._records:
                self._size = 0
