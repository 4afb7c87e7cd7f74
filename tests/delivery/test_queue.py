"""What waits is bounded, keeps its order, and leaves only when it arrived or when a gap names it."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.delivery import queue as module
from agent.delivery.queue import Gap, MemoryQueue, Record

RESULTS, EVENTS = "results", "events"


def a_record(topic, seq, size=10):
    return Record(topic, seq, f"{topic}/{seq}", f"2026-11-23T16:33:11.{seq:06d}Z", b"x" * size)


class Teller:
    """Numbers events, those that tell gaps among them, as the recorder does."""

    def __init__(self):
        self.seq = 0
        self.made = []

    def next(self, value):
        self.seq += 1
        return a_record(EVENTS, self.seq)._replace(value=value)

    def __call__(self, gap):
        record = self.next(msgspec.json.encode(gap))
        self.made.append(record)
        return record

    def gaps(self, arrived):
        """What was told by those of its records that arrived."""
        return [msgspec.json.decode(record.value, type=Gap) for record in arrived if record in self.made]


def numbers(records):
    return [record.seq for record in records]


def all_of(queue):
    """Takes and acknowledges until nothing is left; what arrived, in order."""
    arrived = []
    queue.tell_gaps()
    while len(queue):
        for topic in queue.topics():
            taken = queue.take(topic, 1_000)
            queue.acknowledge(taken)
            arrived += taken
        queue.tell_gaps()
    return arrived


def test_order_and_acknowledgement():
    """Records come out in the order they went in, and are forgotten only when acknowledged."""
    queue = MemoryQueue(Teller())
    for seq in (1, 2, 3):
        queue.append(a_record(RESULTS, seq))
    assert queue.topics() == [RESULTS]
    taken = queue.take(RESULTS, 2)
    assert (numbers(taken), len(queue), queue.taken(RESULTS)) == ([1, 2], 3, 2)
    queue.acknowledge(taken)
    assert (len(queue), queue.taken(RESULTS), numbers(queue.take(RESULTS, 9))) == (1, 0, [3])


def test_given_back_records_go_again_in_their_old_order():
    """What did not arrive goes before what came later, however it was given back."""
    queue = MemoryQueue(Teller())
    for seq in range(1, 9):
        queue.append(a_record(RESULTS, seq))
    taken = queue.take(RESULTS, 6)
    queue.give_back([taken[4], taken[1]])
    queue.give_back([taken[5], taken[0]])
    assert numbers(queue.take(RESULTS, 9)) == [1, 2, 5, 6, 7, 8]
    queue.give_all_back()
    assert numbers(queue.take(RESULTS, 9)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_oldest_go_when_full_and_are_told():
    """Beyond the bound the oldest are dropped over all topics, and one gap names them with their stamps."""
    teller = Teller()
    queue = MemoryQueue(teller, max_records=5)
    queue.append(teller.next(b"an event"))
    for seq in range(1, 9):
        queue.append(a_record(RESULTS, seq))
    assert len(queue) == 5
    arrived = all_of(queue)
    assert [record.seq for record in arrived if record.topic == RESULTS] == [4, 5, 6, 7, 8]
    stamp = "2026-11-23T16:33:11.00000{}Z".format
    assert teller.gaps(arrived) == [
        Gap(EVENTS, 1, 1, 1, "queue_full", stamp(1), stamp(1)),
        Gap(RESULTS, 1, 3, 3, "queue_full", stamp(1), stamp(3)),
    ]


def test_bytes_are_bounded():
    """The bound is on bytes as well as on records."""
    queue = MemoryQueue(Teller(), max_bytes=1_000)
    for seq in range(1, 20):
        queue.append(a_record(RESULTS, seq, 300))
    assert queue.waiting().bytes == 900


def test_what_was_taken_is_not_dropped():
    """A record on its way stays until its fate is known; younger ones go instead."""
    queue = MemoryQueue(Teller(), max_records=3)
    for seq in (1, 2, 3):
        queue.append(a_record(RESULTS, seq))
    taken = queue.take(RESULTS, 3)
    queue.append(a_record(RESULTS, 4))
    assert (len(queue), queue.topics()) == (3, [])
    queue.give_back(taken)
    assert numbers(queue.take(RESULTS, 9)) == [1, 2, 3]


@pytest.mark.parametrize("bound", [{"max_records": 10}, {"max_bytes": 100}])
def test_a_full_queue_does_not_fill_with_gaps(bound):
    """While nothing goes, a gap grows in place and no record is dropped in favour of telling it."""
    teller = Teller()
    queue = MemoryQueue(teller, **bound)
    for seq in range(1, 1_000):
        queue.append(a_record(RESULTS, seq))
        queue.tell_gaps()
    assert teller.made == []
    assert numbers(queue.take(RESULTS, 99)) == list(range(990, 1_000))


def test_a_lost_telling_is_told_again():
    """When the record that tells a gap is dropped itself, both losses are told."""
    teller = Teller()
    queue = MemoryQueue(teller, max_records=3)
    for seq in range(1, 5):
        queue.append(a_record(RESULTS, seq))
    queue.acknowledge(queue.take(RESULTS, 1))
    queue.tell_gaps()
    for seq in range(5, 9):
        queue.append(a_record(RESULTS, seq))
    arrived = all_of(queue)
    assert [(gap.topic, gap.first_seq, gap.last_seq, gap.count) for gap in teller.gaps(arrived)] == [
        (RESULTS, 3, 5, 3),
        (EVENTS, 1, 1, 1),
        (RESULTS, 1, 1, 1),
    ]


def test_a_refused_record_is_told():
    """A record that Kafka will never take is named in a gap with the reason."""
    teller = Teller()
    queue = MemoryQueue(teller)
    queue.append(a_record(RESULTS, 1))
    queue.refuse(queue.take(RESULTS, 1)[0], "record_too_large")
    assert len(queue) == 0
    assert [(gap.first_seq, gap.reason) for gap in teller.gaps(all_of(queue))] == [(1, "record_too_large")]


def test_a_refused_telling_waits(monkeypatch):
    """When Kafka will not even take the record that tells a gap, it is not tried again at once, for ever."""
    teller = Teller()
    queue = MemoryQueue(teller)
    queue.append(a_record(RESULTS, 1))
    queue.refuse(queue.take(RESULTS, 1)[0], "record_invalid")
    for _ in range(9):
        queue.tell_gaps()
        for record in queue.take(EVENTS, 9):
            queue.refuse(record, "record_invalid")
    assert len(teller.made) == 1
    later = module.boottime() + module.TELL_AGAIN
    monkeypatch.setattr(module, "boottime", lambda: later)
    told = teller.gaps(all_of(queue))
    assert [(gap.topic, gap.first_seq, gap.last_seq) for gap in told] == [(EVENTS, 1, 1), (RESULTS, 1, 1)]


def test_many_gaps_are_told_a_few_at_a_time():
    """Each gap is told once, and those that are told at a time do not fill the queue."""
    teller = Teller()
    queue = MemoryQueue(teller)
    for seq in range(1, 71):
        queue.append(a_record(RESULTS, seq))
    taken = queue.take(RESULTS, 70)
    for record in taken[::2]:
        queue.refuse(record, "record_too_large")
    queue.acknowledge(taken[1::2])
    for _ in range(3):
        queue.tell_gaps()
    assert len(queue) == module.MAX_TOLD
    assert [gap.first_seq for gap in teller.gaps(all_of(queue))] == numbers(taken[::2])


@pytest.mark.parametrize("events", [0, 1])
def test_gaps_are_bounded(monkeypatch, events):
    """Gaps beyond the bound are merged with others of their topic: the count stays right, the span covers all."""
    monkeypatch.setattr(module, "MAX_GAPS", 4)
    teller = Teller()
    queue = MemoryQueue(teller)
    for _ in range(events):
        queue.append(teller.next(b"an event"))
        queue.refuse(queue.take(EVENTS, 1)[0], "record_invalid")
    for seq in range(1, 41):
        queue.append(a_record(RESULTS, seq))
    taken = queue.take(RESULTS, 40)
    for record in taken[::2]:
        queue.refuse(record, "record_invalid" if record.seq % 4 == 1 else "record_too_large")
    queue.acknowledge(taken[1::2])
    told = teller.gaps(all_of(queue))
    gaps = [gap for gap in told if gap.topic == RESULTS]
    assert len(told) == 4
    assert sum(gap.count for gap in gaps) == 20
    assert (gaps[0].first_seq, gaps[0].reason, gaps[0].first_at) == (1, "several", taken[0].at)
    assert max((gap.last_seq, gap.last_at) for gap in gaps) == (39, taken[38].at)


def test_waiting_tells_the_oldest(monkeypatch):
    """The age of the oldest counts from its append, whether it is on its way or not."""
    now = 1_000.0
    monkeypatch.setattr(module, "boottime", lambda: now)
    queue = MemoryQueue(Teller())
    assert queue.waiting() == (0, 0, None)
    queue.append(a_record(RESULTS, 1))
    now += 5
    queue.append(a_record(RESULTS, 2))
    assert queue.waiting() == (2, 20, 5.0)
    taken = queue.take(RESULTS, 1)
    assert queue.waiting() == (2, 20, 5.0)
    queue.acknowledge(taken)
    assert queue.waiting() == (1, 10, 0.0)


class Conservation(RuleBasedStateMachine):
    """Against a model that is one plain list: nothing is lost that no gap names, and nothing is named that was not."""

    RECORDS, BYTES = 8, 2_000

    def __init__(self):
        super().__init__()
        self.teller = Teller()
        self.queue = MemoryQueue(self.teller, self.RECORDS, self.BYTES)
        self.results = 0
        self.order = []  # of all appends
        self.waiting = []
        self.taken = []
        self.arrived = []
        self.lost = set()

    def appended(self, record):
        self.order.append(record)
        self.waiting.append(record)
        while self.waiting and self.full(1):
            self.lost.add(self.waiting.pop(0))

    def full(self, over=0):
        kept = self.waiting + self.taken
        size = sum(len(record.value) for record in kept)
        return len(kept) >= self.RECORDS + over or size >= self.BYTES + over

    @rule(topic=st.sampled_from([RESULTS, EVENTS]), size=st.integers(1, 600))
    def append(self, topic, size):
        if topic == EVENTS:
            record = self.teller.next(b"x" * size)
        else:
            self.results += 1
            record = a_record(RESULTS, self.results, size)
        self.queue.append(record)
        self.appended(record)

    @rule()
    def tell_gaps(self):
        before = len(self.teller.made)
        self.queue.tell_gaps()
        for record in self.teller.made[before:]:
            self.appended(record)

    @rule(topic=st.sampled_from([RESULTS, EVENTS]), limit=st.integers(1, 9))
    def take(self, topic, limit):
        expected = [record for record in self.waiting if record.topic == topic][:limit]
        assert self.queue.take(topic, limit) == expected
        self.taken += expected
        self.waiting = [record for record in self.waiting if record not in expected]

    def some_taken(self, data):
        chosen = data.draw(st.lists(st.sampled_from(self.taken), unique=True))
        self.taken = [record for record in self.taken if record not in chosen]
        return chosen

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def acknowledge(self, data):
        chosen = self.some_taken(data)
        self.queue.acknowledge(chosen)
        self.arrived += chosen

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data):
        chosen = self.some_taken(data)
        self.queue.give_back(chosen)
        self.waiting = sorted(self.waiting + chosen, key=self.order.index)

    @rule()
    def give_all_back(self):
        self.queue.give_all_back()
        self.waiting, self.taken = sorted(self.waiting + self.taken, key=self.order.index), []

    @precondition(lambda self: any(record not in self.teller.made for record in self.taken))
    @rule(data=st.data())
    def refuse(self, data):
        record = data.draw(st.sampled_from([record for record in self.taken if record not in self.teller.made]))
        self.queue.refuse(record, "record_invalid")
        self.taken.remove(record)
        self.lost.add(record)

    @invariant()
    def counts_agree(self):
        kept = self.waiting + self.taken
        assert self.queue.waiting()[:2] == (len(kept), sum(len(record.value) for record in kept))
        assert len(self.queue) == len(kept) <= self.RECORDS
        assert set(self.queue.topics()) == {record.topic for record in self.waiting}

    def teardown(self):
        """Whatever happened before: once all is taken, each record arrived once, or one told gap names it."""
        self.give_all_back()
        before = len(self.teller.made)
        self.arrived += all_of(self.queue)
        made = self.teller.made[before:]
        named = [
            (gap.topic, seq) for gap in self.teller.gaps(self.arrived) for seq in range(gap.first_seq, gap.last_seq + 1)
        ]
        assert len(self.arrived) == len(set(self.arrived))
        assert len(named) == len(set(named))
        appended = {(record.topic, record.seq) for record in self.order + made}
        assert {(record.topic, record.seq) for record in self.arrived} | set(named) == appended
        assert {(record.topic, record.seq) for record in self.lost} <= set(named)
        assert len(self.arrived) + len(named) == len(appended)


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
