"""What waits for Kafka: in memory while it is young, on disk always. This is the loop's side; nothing here blocks.

A record is *new* until its block is written, then it *waits*; taken by the forwarder it is *on the way*, until it is
acknowledged or given back. Live records are all that this run made and holds in memory; beyond `max_memory` the oldest
are left to the disk. Backlog is what is on disk only: it is read again a little at a time.

When something stays: what is not acknowledged within two seconds, or at once when the broker is lost, is brought to
the disk proper and synced, once a second. With `strict` all of it is, before it may be taken.

Each turn makes at most one request of the thread that has the disk. While that one is under way, memory is the only
bound, and when a disk does not answer for two seconds, records go to Kafka unwritten rather than not at all.
"""

import asyncio
import itertools
import logging
import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from agent.device.clock import boottime
from agent.spool.disk import Disk
from agent.spool.gaps import Gaps, joined
from agent.spool.held import HeldBlock, Waiting, ranges
from agent.spool.record import Gap, Origin, Record
from agent.spool.segment import MAX_RAW, chunks
from agent.spool.store import Store
from agent.spool.turn import HandOver, Loaded, New, Request, Response

log = logging.getLogger(__name__)

MAX_MEMORY = 4 << 20  # bytes of live records in memory while the disk takes them
LAST_RESORT = 16 << 20  # bytes of live records in memory when it does not: then the oldest are lost
OVERHEAD = 400  # bytes that a record takes beside its value
YOUNG = 2.0  # seconds that a record may wait for its acknowledgement before it is synced
SYNC = 1.0  # seconds between two syncs
RETRY = 0.1  # seconds between two attempts to write when stopping
PATIENCE = 2.0  # seconds that the disk may take
OPENING = 10.0  # seconds that it may take to list the directory, before measuring begins without it
TELL_AGAIN = 10.0  # seconds until gaps are told again after Kafka refused the record of one
QUIET = 5.0  # seconds without trouble until it is over: a turn may have had nothing to do


class Spool:
    """The queue of one worker. `tell_gap` makes the record that tells a gap, and thereby numbers it."""

    def __init__(
        self,
        store: Store,
        tell_gap: Callable[[Gap], Record],
        *,
        strict: bool = False,
        max_memory: int = MAX_MEMORY,
        last_resort: int = LAST_RESORT,
    ) -> None:
        self._store, self._strict = store, strict
        self._max_memory, self._last_resort = max_memory, last_resort
        self._read_ahead = min(store.block, max_memory // 8)  # bytes of backlog of a topic
        self._gaps = Gaps(store.origin, tell_gap)
        self._disk: Disk | None = None
        self._underway: asyncio.Future[Response] | None = None
        self._asked = 0.0  # boot time of the request under way, or of the last
        self._number = 0
        self._new: dict[str, list[Record]] = {}  # by topic
        self._blocks: dict[int, HeldBlock] = {}  # live, by number
        self._where: dict[str, HeldBlock] = {}  # by id of each record in memory
        self._waiting: dict[str, deque[Record]] = {}  # live, by topic, in order
        self._behind: dict[str, deque[Record]] = {}  # backlog, by topic, in order
        self._behind_bytes: dict[str, int] = {}  # of backlog in memory, taken or not
        self._behind_since: float | None = None  # boot time at which this run first knew of the backlog
        self._taken: dict[str, dict[str, Record]] = {}  # by topic and id
        self._acknowledged: dict[int, int] = {}  # by segment, for the next request
        self._refused: list[Loaded] = []
        self._moving: list[HeldBlock] = []  # that the request under way is to write
        self._rewriting = False  # blocks were rewritten, and the disk has not answered to that
        self._leaving: dict[int, list[Record]] = {}  # by segment, that the request under way is to hand over
        self._asked_for: frozenset[str] | None = None  # topics held in the request under way, if it loads
        self._fruitless: frozenset[str] | None = None  # topics held when nothing was loaded
        self._memory = 0  # bytes of live records
        self._synced = 0.0  # boot time of the last request to sync
        self._gaps_seen = self._gaps_kept = 0
        self._tell_from = 0.0
        self._on_disk = Response()  # the last one's figures
        self._trouble = ""  # that the disk is in, until it is over
        self._trouble_at = 0.0  # boot time when it last was in one
        self.broker_lost = False  # to be set by who knows: then everything is synced once a second
        self.ready = asyncio.Event()  # set when there may be something new to take

    async def open(self) -> None:
        """Takes the directory. Raises `SpoolInUse`; a disk in trouble is a line in the log.

        A disk that does not answer is not waited for: whether another agent uses the directory comes out with a turn.
        """
        self._disk = Disk()
        self._asked = boottime()
        self._underway = self._disk.call(self._store.open)
        self._underway.add_done_callback(self._answered)
        done, _ = await asyncio.wait([self._underway], timeout=OPENING)
        for opened in done:
            opened.result()

    async def close(self, limit: float) -> int:
        """Brings everything to the disk, for at most `limit` seconds; how many records it did not take.

        No more turns after this. What was taken and not acknowledged comes again with the next start.
        """
        assert self._disk is not None
        end = boottime() + limit
        self.give_all_back()
        while True:
            if self._underway is None:
                self._ask(self._request(closing=True))
            if self._underway is None or boottime() >= end:
                break
            done, _ = await asyncio.wait([self._underway], timeout=max(end - boottime(), 0.0))
            if not done:
                log.error("spool: the disk does not answer; what it has not taken is lost")
                break
            if self._underway is not None and (error := self._underway.exception()) is not None:
                log.error("spool: it failed: %r; what the disk has not taken is lost", error)
                break
            if self._trouble_of(self._on_disk) and boottime() < end:
                await asyncio.sleep(min(RETRY, max(end - boottime(), 0.0)))
        closed = self._disk.call(self._store.close)
        self._disk.end()
        await asyncio.wait([closed], timeout=max(end - boottime(), 0.5))
        return sum(block.left for block in self._unsafe()) + sum(map(len, self._new.values()))

    # What the recorder and the forwarder do

    def __len__(self) -> int:
        """How many records in memory are not acknowledged."""
        return len(self._where) + sum(map(len, self._new.values()))

    def live(self) -> int:
        """How many of them are live."""
        return sum(block.left for block in self._blocks.values()) + sum(map(len, self._new.values()))

    @property
    def more(self) -> bool:
        """Whether there is backlog that is not in memory."""
        return self._on_disk.more

    def append(self, record: Record) -> None:
        """Takes a record in; it may be taken once it is written."""
        if len(record.value) > MAX_RAW // 2:
            self._lose([self._gap(record, "too_large")])
            return
        self._new.setdefault(record.topic, []).append(record)
        self._memory += len(record.value) + OVERHEAD

    def topics(self) -> list[str]:
        """The topics of which live records or backlog wait."""
        return [topic for topic in {**self._waiting, **self._behind} if self._waits(topic)]

    def _waits(self, topic: str) -> bool:
        return bool(self._waiting.get(topic) or self._behind.get(topic))

    def take(self, topic: str, limit: int) -> list[Record]:
        """The next live records of `topic`, at most `limit`, in order; they stay until acknowledged or given back."""
        return self._take(self._waiting.get(topic), limit)

    def take_backlog(self, topic: str, limit: int) -> list[Record]:
        """The next records of `topic` from the disk, of this run or an earlier one, as `take` does."""
        return self._take(self._behind.get(topic), limit)

    def _take(self, waiting: deque[Record] | None, limit: int) -> list[Record]:
        if not waiting or limit <= 0:
            return []
        records = [waiting.popleft() for _ in range(min(limit, len(waiting)))]
        taken = self._taken.setdefault(records[0].topic, {})
        for record in records:
            taken[record.id] = record
        return records

    def taken(self, topic: str) -> int:
        """How many records of `topic` are taken and neither acknowledged nor given back."""
        return len(self._taken.get(topic, ()))

    def origin(self, record: Record) -> Origin:
        """Who numbered a record that was taken: this run or an earlier one."""
        return self._where[record.id].origin

    def acknowledge(self, records: Iterable[Record]) -> None:
        """Forgets taken records, because they arrived."""
        for record in records:
            del self._taken[record.topic][record.id]
            self._forget(record)
            self._gaps.acknowledged(record.id)

    def refuse(self, record: Record, reason: str) -> None:
        """Gives a taken record up, because Kafka will not have it: a gap names it, and it is set aside for people.

        One that told a gap is not set aside: the gap is told again, a little later.
        """
        del self._taken[record.topic][record.id]
        block = self._where[record.id]
        if self._gaps.lost(record.id):
            self._tell_from = boottime() + TELL_AGAIN
        else:
            self._refused.append(Loaded(0, block.origin, record.topic, [record]))
        self._gaps.add([self._gap(record, reason, block.origin)])
        self._forget(record)

    def give_back(self, records: Iterable[Record], *, unsent: bool = False) -> None:
        """Taken records that did not arrive wait again, in their old order; `unsent`: surely nobody has seen them."""
        back: dict[tuple[str, bool], list[Record]] = {}
        for record in records:
            taken = self._taken[record.topic].pop(record.id)
            block = self._where[record.id]
            block.seen = block.seen or not unsent
            back.setdefault((record.topic, block.live), []).append(taken)
        for (topic, live), rows in back.items():
            self._put_back(topic, self._waiting if live else self._behind, rows)

    def _put_back(self, topic: str, queues: dict[str, deque[Record]], records: list[Record]) -> None:
        waiting = queues.setdefault(topic, deque())
        records.sort(key=self._order)
        if not waiting or self._order(records[-1]) < self._order(waiting[0]):
            waiting.extendleft(reversed(records))
        else:
            queues[topic] = deque(sorted([*records, *waiting], key=self._order))

    def give_all_back(self) -> None:
        """All that was taken waits again, in its old order."""
        for taken in self._taken.values():
            self.give_back(list(taken.values()))

    def rewrite(self, new: Callable[[Record], Record]) -> bool:
        """Replaces live records that nobody has seen by what `new` makes of them: the same, with another value.

        They may be taken again when the disk has them. False when the disk is at work: then it is to be tried again.
        """
        if self._underway is not None:
            return False
        for topic, records in self._new.items():
            self._new[topic] = [self._replaced(record, new) for record in records]
        out = {record_id for taken in self._taken.values() for record_id in taken}
        by_segment: dict[int, list[HeldBlock]] = {}
        for block in self._blocks.values():
            by_segment.setdefault(block.segment or -block.number, []).append(block)
        for blocks in by_segment.values():
            if not any(block.handed_over for block in blocks):
                self._rewrite(blocks, new, out)
        for topic, waiting in self._waiting.items():
            self._waiting[topic] = deque(record for record in waiting if self._where[record.id].offered)
        return True

    def _rewrite(self, blocks: list[HeldBlock], new: Callable[[Record], Record], out: set[str]) -> None:
        """All of one segment, also what stays as it is: its file goes, and never comes back with the old values."""
        replaced: dict[HeldBlock, list[Record]] = {}
        for block in blocks:
            left = self._left_of(block)
            if not block.seen and out.isdisjoint(record.id for record in left):
                records = [self._replaced(record, new) for record in left]
                if any(map(operator.is_not, records, left)):
                    replaced[block] = records
        self._rewriting = self._rewriting or bool(replaced)
        for block in blocks if replaced else ():
            block.place, block.rewritten = "memory", True
            block.original = self._left_of(block)
            if block in replaced:
                block.records, block.offered = replaced[block], False

    def _undo_rewriting(self, block: HeldBlock) -> None:
        for record in block.original:
            self._memory += len(record.value)
        for record in block.records:
            self._memory -= len(record.value)
        block.records, block.original = block.original, []

    def _replaced(self, record: Record, new: Callable[[Record], Record]) -> Record:
        replaced = new(record)
        self._memory += len(replaced.value) - len(record.value)
        return replaced

    def waiting(self) -> Waiting:
        """What is not acknowledged yet, taken or not."""
        since = [block.since for block in itertools.islice(self._blocks.values(), 1)]
        if self._behind_since is not None:
            since.append(self._behind_since)
        oldest = round(boottime() - min(since), 3) if since else None
        gaps = self._gaps
        return Waiting(len(self), self._on_disk.bytes, oldest, self._trouble, gaps.given_up, gaps.last)

    def tell_gaps(self) -> None:
        """Appends records that tell gaps, some at a time."""
        if boottime() >= self._tell_from and self._memory < self._last_resort:
            for record in self._gaps.tell():
                self.append(record)

    def _order(self, record: Record) -> tuple[int, int]:
        return self._where[record.id].number, record.seq

    def _forget(self, record: Record) -> None:
        """A record is done with, one way or the other: it arrived, or it is lost and told."""
        block = self._where.pop(record.id)
        block.left -= 1
        if block.moving:
            block.meanwhile += 1
        else:
            self._done(block, 1)
        if block.live:
            self._memory -= len(record.value) + OVERHEAD
        else:
            self._behind_bytes[record.topic] -= len(record.value)
        if block.left == 0:
            self._blocks.pop(block.number, None)

    def _done(self, block: HeldBlock, count: int) -> None:
        if block.segment and count:
            self._acknowledged[block.segment] = self._acknowledged.get(block.segment, 0) + count

    # The turn

    def turn(self) -> None:
        """To be called each tick, and whenever something was acknowledged: asks the disk for what there is to do.

        Raises what a fault of the spool's own code raised on the thread of the disk.
        """
        if self._underway is not None and self._underway.done() and self._underway.exception() is not None:
            underway, self._underway = self._underway, None
            for block in self._moving:  # which it may or may not have written
                block.moving = False
            self._moving = []
            underway.result()
        if self._underway is None:
            self._ask(self._request())
        elif boottime() - self._asked > PATIENCE and not self._strict:
            self._go_unwritten()
        if self._memory > self._last_resort:
            self._lose_oldest()

    def _ask(self, request: Request | None) -> None:
        if request is None:
            return
        assert self._disk is not None
        self._asked = boottime()
        self._underway = self._disk.call(lambda: self._store.turn(request))
        self._underway.add_done_callback(self._answered)

    def _request(self, closing: bool = False) -> Request | None:
        """What there is to ask of the disk now; None when nothing."""
        # What is rewritten comes first on disk as well.
        fresh = [] if self._rewriting else [b for topic in list(self._new) for b in self._make_blocks(topic)]
        due = self._due(closing)
        settle = [self._move(block) for block in due if block.place in ("memory", "volatile")]
        new = [self._move(block) for block in fresh if not block.moving]
        held = frozenset(topic for topic, size in self._behind_bytes.items() if size >= self._read_ahead)
        request = Request(
            acknowledged=self._acknowledged,
            new=new,
            strict=self._strict and bool(new),
            refused=self._refused,
            settle=settle,
            sync=bool(due),
            hand_over=self._leave(),
            load=self._read_ahead if self._on_disk.more and held != self._fruitless and not closing else 0,
            held=held,
        )
        if self._gaps.changes != self._gaps_kept:
            request.gaps, request.gaps_seen = self._gaps.rows(), self._gaps_seen
            self._gaps_kept = self._gaps.changes
        self._acknowledged, self._refused = {}, []
        self._asked_for = held if request.load else None
        again = self._on_disk.again and boottime() - self._asked >= SYNC
        return request if request or again else None

    def _make_blocks(self, topic: str) -> list[HeldBlock]:
        blocks = []
        for records in chunks(self._new.pop(topic), self._store.block):
            self._number += 1
            block = self._blocks[self._number] = HeldBlock(self._number, self._store.origin, list(records), boottime())
            self._where.update(dict.fromkeys([record.id for record in records], block))
            blocks.append(block)
        return blocks

    def _move(self, block: HeldBlock) -> New:
        """Asks for the records of a block that are still wanted to be written."""
        block.moving = True
        self._moving.append(block)
        return New(block.number, block.topic, self._left_of(block), block.segment)

    def _due(self, closing: bool) -> list[HeldBlock]:
        """Live blocks that are to survive a power cut from now on."""
        pressed = self._memory > self._max_memory
        now = boottime()
        if now - self._synced < SYNC and not closing and not pressed and not self._rewriting:
            return []
        self._synced = now
        unsafe = [block for block in self._unsafe() if not block.moving]
        latest = now if self.broker_lost or closing or pressed else now - YOUNG
        old = {block.segment for block in unsafe if block.since <= latest}
        # Whole segments leave the volatile directory: what a crash leaves there is not in the directory proper too.
        lost = [b for b in unsafe if b.place == "memory" and (b.offered or b.rewritten)]
        return [b for b in unsafe if b.since <= latest or b in lost or b.segment in old - {0}]

    def _unsafe(self) -> list[HeldBlock]:
        return [block for block in self._blocks.values() if block.place != "synced"]

    def _leave(self) -> list[HandOver]:
        """The oldest live segments leave memory, when there is no room for them or they must be free to be dropped.

        What is taken of them stays: it may arrive at any moment.
        """
        excess = self._memory - self._max_memory // 2 if self._memory > self._max_memory else 0
        excess = max(excess, int(self._on_disk.full))
        by_segment: dict[int, list[HeldBlock]] = {}
        for block in self._blocks.values() if excess else ():
            if not block.handed_over:
                by_segment.setdefault(block.segment, []).append(block)
        leaving: list[HandOver] = []
        for segment, blocks in by_segment.items():
            if excess <= 0:
                break
            if all(block.place == "synced" and not block.moving for block in blocks):
                taken = self._taken.get(blocks[0].topic, {})
                records = [record for block in blocks for record in self._left_of(block) if record.id not in taken]
                if not records:
                    continue
                self._leaving[segment] = records
                kept = sum(block.left for block in blocks) - len(records)
                leaving.append(HandOver(segment, ranges([record.seq for record in records]), kept))
                excess -= sum(len(record.value) + OVERHEAD for record in records)
        for topic in {records[0].topic for records in self._leaving.values()}:
            self._waiting[topic] = deque(
                record for record in self._waiting[topic] if self._where[record.id].segment not in self._leaving
            )
        return leaving

    def _left_of(self, block: HeldBlock) -> list[Record]:
        """Its records that are neither acknowledged nor lost nor gone from memory."""
        return [record for record in block.records if self._where.get(record.id) is block]

    # The answer

    def _answered(self, answer: asyncio.Future[Response]) -> None:
        if answer.exception() is None:  # else `turn` raises it
            self._underway = None
            self._receive(answer.result())

    def _receive(self, response: Response) -> None:
        self._on_disk = response
        if not response.more and not any(self._behind_bytes.values()):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = min((block.since for block in self._blocks.values()), default=boottime())
        moved, self._moving = self._moving, []
        self._rewriting = False  # all of it was in the request
        for block in moved:
            self._settle(block, response)
        for block in self._blocks.values() if response.synced or response.unsafe else ():
            if block.segment in response.unsafe:
                block.place = "memory"
            elif block.place == "proper" and response.synced:
                block.place = "synced"
        self._let_go(response)
        self._lose(response.lost)
        self._gaps_seen += len(response.lost)
        for loaded in response.loaded:
            self._take_in(loaded)
        self._fruitless = (
            None
            if response.loaded or response.handed_over or response.cut_short or self._asked_for is None
            else self._asked_for
        )
        self._say(response)

    def _settle(self, block: HeldBlock, response: Response) -> None:
        segment = response.placed.get(block.number)
        if segment is not None:
            block.segment = segment
            block.place = "volatile" if block.number in response.volatile else "proper"
        elif block.rewritten:  # the disk has it as it was, and it goes as the disk has it
            self._undo_rewriting(block)
        block.moving = block.rewritten = False
        self._done(block, block.meanwhile)
        block.meanwhile = 0
        self._offer(block)

    def _offer(self, block: HeldBlock) -> None:
        """From now on its records may be taken."""
        if not block.offered:
            block.offered = True
            self._waiting.setdefault(block.topic, deque()).extend(self._left_of(block))
            self.ready.set()

    def _let_go(self, response: Response) -> None:
        """Records that left memory, or did not."""
        leaving, self._leaving = self._leaving, {}
        for segment, records in leaving.items():
            if segment not in response.handed_over:
                self._put_back(records[0].topic, self._waiting, records)
                continue
            for record in records:
                block = self._where.pop(record.id)
                block.left -= 1
                self._memory -= len(record.value) + OVERHEAD
                if block.left == 0:
                    del self._blocks[block.number]
        for block in self._blocks.values() if response.handed_over else ():
            block.handed_over = block.handed_over or block.segment in response.handed_over

    def _take_in(self, loaded: Loaded) -> None:
        """A block of backlog. What is in memory already, because a crash left it in two segments, is dropped there."""
        records = [record for record in loaded.records if record.id not in self._where]
        if len(records) < len(loaded.records):
            twice = len(loaded.records) - len(records)
            self._acknowledged[loaded.segment] = self._acknowledged.get(loaded.segment, 0) + twice
        if not records:
            return
        self._number += 1
        block = HeldBlock(self._number, loaded.origin, records, boottime(), loaded.segment)
        self._where.update(dict.fromkeys([record.id for record in records], block))
        self._behind.setdefault(loaded.topic, deque()).extend(records)
        size = sum(len(record.value) for record in records)
        self._behind_bytes[loaded.topic] = self._behind_bytes.get(loaded.topic, 0) + size
        self.ready.set()

    def _say(self, response: Response) -> None:
        """Logs trouble while it goes on, and its end."""
        if trouble := self._trouble_of(response):
            waiting = f"{len(self)} record{'s' * (len(self) != 1)}"
            self._say_trouble(trouble, f"{waiting} in memory (room for {self._last_resort} bytes)")
        elif self._trouble and boottime() - self._trouble_at >= QUIET:
            self._trouble = ""
            log.info("spool: the disk takes records again", extra={"over": "disk"})

    def _trouble_of(self, response: Response) -> str:
        full = "there is no room for it (on the disk, or by spool.max_size and spool.min_free)"
        return response.trouble or (full if response.full else "")

    def _say_trouble(self, trouble: str, what_of_it: str) -> None:
        self._trouble, self._trouble_at = trouble, boottime()
        log.error("spool: %s; %s", self._trouble, what_of_it, extra={"trouble": "disk"})

    def _lose(self, gaps: Sequence[Gap]) -> None:
        """Names records that will never come: each to Kafka; by topic and reason in the log."""
        sums: dict[tuple[str, str], list[Gap]] = {}
        for gap in self._gaps.add(gaps):
            sums.setdefault((gap.topic, gap.reason), []).append(gap)
        for (topic, reason), rows in sums.items():
            count = sum(gap.count for gap in rows)
            log.error(
                "spool: %d record%s of %s from %s to %s will never come: %s (%d in all since the start)",
                count,
                "s" * (count != 1),
                topic,
                min(gap.first_at for gap in rows),
                max(gap.last_at for gap in rows),
                reason,
                self._gaps.given_up,
            )

    # When the disk does not do its part

    def _go_unwritten(self) -> None:
        """The disk does not answer: what may still go to Kafka goes, with nothing between it and a crash."""
        self._say_trouble(
            "the disk does not answer", f"records go unwritten, the first {boottime() - self._asked:.0f} s ago"
        )
        for topic in list(self._new):
            self._make_blocks(topic)
        for block in self._blocks.values():
            if not block.rewritten:  # its older value may be what the disk has
                self._offer(block)

    def _lose_oldest(self) -> None:
        """Memory is full and the disk does not take what is in it."""
        lost: list[Gap] = []
        while self._memory > self._last_resort:
            waiting = [queue for queue in self._waiting.values() if queue]
            if waiting:
                record = min(waiting, key=lambda queue: self._order(queue[0])).popleft()
                self._forget(record)
            else:
                fresh = next((records for records in self._new.values() if records), None)
                if fresh is None:
                    break  # all of it is on its way, and bounded by how much may be
                record = fresh.pop(0)
                self._memory -= len(record.value) + OVERHEAD
            self._gaps.lost(record.id)
            lost.append(self._gap(record, "queue_full"))
        self._lose(joined(lost))

    def _gap(self, record: Record, reason: str, origin: Origin | None = None) -> Gap:
        _, run_id, worker = origin or self._store.origin
        return Gap(record.topic, run_id, worker, record.seq, record.seq, 1, reason, record.at, record.at)
