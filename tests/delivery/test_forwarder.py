"""What waits goes in time and in bounds, and each way in which Kafka can say no costs only what it must.

The sink here answers as it is told to, because no broker gives these answers in an order that can be chosen.
"""

import asyncio
import logging

import pytest

from agent.delivery import forwarder as module
from agent.delivery.forwarder import BATCH, HOLD, LOST_AFTER, QUICK, SPREAD, WINDOW, Forwarder, Report
from agent.spool.record import Origin, Record
from tests.delivery.in_memory import ORIGIN, a_spool
from tests.spool.torn_disk import TornDisk

RESULTS, EVENTS = "results", "events"
EARLIER = Origin(0, "0123456789abcdef", 0)


def a_record(topic, seq, origin=ORIGIN):
    return Record(topic, seq, f"{origin.run_id}/{topic}/{seq}", "2026-11-23T16:33:11.000000Z", b"x" * 100)


def numbers(records):
    return [record.seq for record in records]


def all_arrive(records):
    return [Report(records, "arrived")]


class Answering:
    """A sink that reports of each batch, at the next poll, what `answer` makes of it. Withdrawn is what it keeps."""

    trouble = "refused"

    def __init__(self, answer):
        self.answer = answer
        self.sent = []  # batches
        self.reports = []
        self.closed = False
        self.silent = []  # batches of which nothing is reported

    def send(self, records):
        assert not self.closed
        assert len({record.topic for record in records}) == 1
        self.sent.append(numbers(records))
        reports = self.answer(records)
        self.reports += reports
        if not reports:
            self.silent.append(records)

    def poll(self):
        reports, self.reports = self.reports, []
        return reports

    def withdraw(self):
        self.reports += [Report(records, "unsent") for records in self.silent]
        self.silent = []

    def close(self):
        self.closed = True
        self.reports = []


class Line:
    """A spool, a forwarder and an answering sink; turned by hand, a turn being what happens at a tick."""

    def __init__(self, answer=all_arrive, disk=None, origin=ORIGIN, fill=lambda: None):
        self.gaps = []
        self.news = []
        self.refused = []  # (seq, reason)
        self.origin = origin
        self.spool = a_spool(self._tell, disk, origin)
        self.sink = Answering(answer)
        self.forwarder = Forwarder(self.spool, self.sink, 0.25, self, fill)

    def _tell(self, gap):
        self.gaps.append(gap)
        return a_record(EVENTS, 1_000 + len(self.gaps))

    def broker_lost(self):
        self.news.append("lost")

    def broker_back(self, seconds):
        self.news.append(f"back after {seconds:.0f} s")

    def rejected(self, record, origin, reason):
        self.refused.append((record.seq, reason))

    def append(self, topic, *seqs):
        for seq in seqs:
            self.spool.append(a_record(topic, seq, self.origin))

    def turn(self, times=1):
        for _ in range(times):
            self.forwarder._begin_tick()
            self.spool.turn()  # the disk is quick: what is new is written when the forwarder looks
            more = self.forwarder._turn()
        return more

    def went(self):
        return [seq for batch in self.sink.sent for seq in batch]

    def drain(self):
        """Turns until nothing waits; how often."""
        for turn in range(1_000):
            if len(self.spool) == 0:
                return turn
            self.turn()
        return pytest.fail(f"{len(self.spool)} records still wait")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved, for the forwarder and its log."""

    class Clock:
        now = 1_000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "boottime", clock)
    return clock


def test_a_tick_is_one_batch():
    """What came since the last tick goes as one batch a topic, in order, and is forgotten when it arrived."""
    line = Line()
    line.append(RESULTS, 1, 2, 3)
    line.append(EVENTS, 1)
    assert not line.turn()
    assert line.sink.sent == [[1, 2, 3], [1]]
    line.turn()
    assert len(line.spool) == 0
    assert len(line.sink.sent) == 2


def test_a_backlog_goes_in_bounded_turns():
    """A turn hands over a bounded number, the next follows soon, and what is on its way is bounded too."""
    line = Line(lambda records: [])
    line.append(RESULTS, *range(1, 2 * WINDOW))
    assert line.turn()
    assert [len(batch) for batch in line.sink.sent] == [BATCH]
    assert not line.turn(20)
    assert line.went() == list(range(1, WINDOW + 1))


def test_what_was_not_taken_goes_again(written):
    """It goes before what came later, and the log says why, once."""
    line = Line(lambda records: [Report(records, "again", "NO_LUCK")])
    line.append(RESULTS, 1, 2)
    line.turn(5)
    line.append(RESULTS, 3)
    line.sink.answer = all_arrive
    line.drain()
    assert line.sink.sent[0] == [1, 2]
    assert line.sink.sent[-1] == [1, 2, 3]
    text = "topic results: NO_LUCK; it is tried again, with 2 records in memory, the rest on disk"
    assert written.messages == [text]


@pytest.mark.parametrize("bad", [[1], [200], [400], [7, 8], [1, 150, 400]])
def test_one_bad_record_does_not_take_its_neighbours(bad, caplog):
    """Kafka refuses the whole batch for it: all others arrive, in order, and it alone is told."""
    came = []

    def answer(records):
        if any(record.topic == RESULTS and record.seq in bad for record in records):
            return [Report(records, "record_refused", "record_too_large")]
        came.extend(numbers(record for record in records if record.topic == RESULTS))
        return all_arrive(records)

    line = Line(answer)
    line.append(RESULTS, *range(1, 401))
    turns = line.drain()
    assert came == [seq for seq in range(1, 401) if seq not in bad]
    assert line.refused == [(seq, "record_too_large") for seq in bad]
    assert turns < 30 * len(bad)
    assert caplog.text.count("Kafka does not take it and never will: record_too_large") == len(bad)


def test_how_a_bad_record_is_found():
    """Half as many after a refusal, twice as many after an arrival; one that is refused alone is not tried again."""

    def answer(records):
        fate = "record_refused" if 7 in numbers(records) else "arrived"
        return [Report(records, fate, "record_invalid")]

    line = Line(answer)
    line.append(RESULTS, *range(1, 8))
    line.append(EVENTS, 7)
    line.drain()
    together, results = [[1, 2, 3, 4, 5, 6, 7], [7]], [[1, 2, 3, 4], [5, 6, 7], [5], [6, 7], [6], [7]]
    assert line.sink.sent[:9] == [*together, *results, [7]]


def test_a_batch_that_is_too_large_as_a_whole_goes_in_parts():
    """When no single record is bad, all arrive, and not one by one."""
    limit = 60

    def answer(records):
        if len(records) > limit:
            return [Report(records, "record_refused", "record_too_large")]
        return all_arrive(records)

    line = Line(answer)
    line.append(RESULTS, *range(1, 401))
    assert line.drain() < 40
    assert line.refused == []


def test_suspects_share_no_batch():
    """While refused records are tried, nothing else is on its way; afterwards all goes on as before."""
    line = Line(lambda records: [Report(records, "record_refused", "record_invalid")])
    line.append(RESULTS, 1, 2)
    line.turn()
    line.sink.answer = lambda records: []
    line.append(RESULTS, 3)
    line.append(EVENTS, 1)
    line.turn(3)
    assert line.sink.sent == [[1, 2], [1]]
    line.sink.reports += all_arrive([a_record(RESULTS, 1)])
    line.sink.answer = all_arrive
    line.drain()
    assert line.sink.sent == [[1, 2], [1], [2], [3], [1]]


def test_suspects_that_are_not_taken_stay_in_front():
    """A trial that fails for another reason is repeated, and what came later still goes later."""
    answers = ["record_refused", "record_refused", "again", "again"]

    def answer(records):
        return [Report(records, answers.pop(0), "why")] if answers else all_arrive(records)

    line = Line(answer)
    line.append(RESULTS, 1, 2, 3, 4)
    line.turn()
    line.append(RESULTS, 5)
    line.drain()
    assert line.sink.sent[:4] == [[1, 2, 3, 4], [1, 2], [1], [1, 2]]
    assert line.sink.sent[4:] == [[1, 2, 3, 4], [5]]
    assert line.refused == []


def test_a_topic_may_be_refused_on_trial(clock):
    """Suspects of a topic that is then refused wait with the rest of it, and the other topic goes on."""
    line = Line(lambda records: [Report(records, "record_refused", "why")])
    line.append(RESULTS, 1, 2)
    line.turn()
    line.sink.answer = lambda records: [Report(records, "topic_refused", "does not exist")]
    line.turn(5)
    line.sink.answer = all_arrive
    line.append(EVENTS, 1)
    line.turn(2)
    assert line.sink.sent == [[1, 2], [1], [2], [1]]
    clock.now += HOLD
    line.drain()
    assert line.sink.sent[4:] == [[1], [2]]


def test_a_refused_topic_does_not_stop_the_other(clock, written):
    """Its records wait and one of them is tried each few seconds; when that arrives, the rest follow."""
    refused = {RESULTS}

    def answer(records):
        if records[0].topic in refused:
            return [Report(records, "topic_refused", "does not exist")]
        return all_arrive(records)

    line = Line(answer)
    line.append(RESULTS, 1, 2, 3)
    line.turn(2)
    line.append(EVENTS, 1, 2)
    line.turn(9)
    assert line.sink.sent == [[1, 2, 3], [1, 2]]
    for _ in range(3):
        clock.now += HOLD
        line.turn(9)
    assert line.sink.sent[2:] == [[1], [1], [1]]
    assert (line.forwarder.broker()[0], line.forwarder.refused_topics()) == ("up", (RESULTS,))
    assert written.messages == [
        "topic results: does not exist; it is tried again, with 3 records in memory, the rest on disk"
    ]
    refused.clear()
    clock.now += HOLD
    line.drain()
    assert line.sink.sent[5:] == [[1], [2, 3]]
    assert line.forwarder.refused_topics() == ()
    assert written.messages[1:] == ["topic results: takes records now"]


def test_silence_is_said_and_its_end(clock, caplog):
    """Kafka is lost when it says nothing for some seconds, and back when something arrived, not before."""
    caplog.set_level(logging.INFO)
    line = Line(lambda records: [])
    clock.now += 100
    line.turn(3)
    line.append(RESULTS, 1)
    line.turn()
    clock.now += LOST_AFTER
    line.turn()
    assert (caplog.messages, line.news) == ([], [])
    clock.now += 0.1
    line.turn(3)
    lost = "Kafka acknowledges nothing; measuring goes on, and what it yields waits on disk"
    assert (caplog.messages, line.news) == ([lost], ["lost"])
    line.forwarder.replace(Answering(lambda records: []), 0.25)
    line.turn(3)
    clock.now += LOST_AFTER + 0.1
    line.turn(3)
    assert (caplog.messages, line.news) == ([lost], ["lost"])
    line.forwarder.replace(Answering(all_arrive), 0.25)
    line.turn(2)
    assert caplog.messages == [lost, "Kafka acknowledges again, after 10 s; what waits goes to it"]
    assert line.news == ["lost", "back after 10 s"]


def test_another_kafka_is_not_known_to_be_up(clock):
    """That the one before an edit acknowledged says nothing of the one after it."""
    line = Line(all_arrive)
    assert line.forwarder.broker() == ("unknown", 0.0, "refused")
    line.append(RESULTS, 1)
    line.turn(2)
    assert line.forwarder.broker() == ("up", None, "")
    line.forwarder.replace(Answering(lambda records: []), 0.25)
    clock.now += 2
    line.append(RESULTS, 2)
    line.turn(2)
    assert line.forwarder.broker() == ("unknown", 2.0, "refused")


@pytest.mark.parametrize("fate", ["again", "unsent"])
def test_what_a_sink_says_of_itself_is_no_sign_of_kafka(clock, fate):
    """A producer that fails again and again without ever reaching a broker does not pass for Kafka."""
    line = Line(lambda records: [Report(records, fate, "the producer is dead")])
    line.append(RESULTS, 1)
    for _ in range(30):
        clock.now += 0.25
        line.turn()
    assert line.news == ["lost"]


def test_while_kafka_is_lost_one_record_looks_for_it(clock):
    """What was surely not sent is taken back, one record stays with the sink, and with its arrival all go, in order."""
    line = Line(lambda records: [])
    line.append(RESULTS, 1, 2)
    line.append(EVENTS, 1)
    line.turn()
    clock.now += LOST_AFTER + 0.1
    line.append(RESULTS, 3)
    line.turn(5)
    assert line.sink.sent == [[1, 2], [1], [1]]
    assert line.spool.broker_lost  # so that the disk keeps all from now on
    line.sink.answer = all_arrive
    line.sink.reports += all_arrive(line.sink.silent.pop())
    line.drain()
    assert line.sink.sent[3:] == [[2, 3], [1]]
    assert not line.spool.broker_lost


def an_earlier_run(count):
    """A disk on which a run left records 1 to `count`."""
    disk = TornDisk()
    line = Line(lambda records: [], disk, EARLIER)
    line.append(RESULTS, *range(1, count + 1))
    line.turn()
    disk.kill()
    return disk


def test_live_records_go_before_the_backlog(clock):
    """What an earlier run left waits until Kafka acknowledges, then at most ten seconds more, and goes behind."""
    line = Line(disk=an_earlier_run(3))
    line.turn(3)
    clock.now += 100
    line.turn(3)
    assert line.sink.sent == []
    line.append(RESULTS, 10)
    line.turn(2)
    clock.now += SPREAD
    line.append(RESULTS, 11)
    line.turn(2)
    assert line.sink.sent == [[10], [11], [1, 2, 3]]
    line.drain()
    line.turn()
    assert line.spool.waiting().bytes == 0


def test_the_backlog_goes_as_fast_as_kafka_takes_it(clock):
    """It begins with a hundred records; each quick answer lets more go at once, and a slow one half as many."""
    line = Line(disk=an_earlier_run(3_000))
    line.append(RESULTS, 10_001)
    line.turn(2)
    clock.now += SPREAD
    line.turn(4)
    sizes = [len(batch) for batch in line.sink.sent[1:]]
    assert sizes[:4] == [100, 200, 300, 400]
    line.sink.answer = lambda records: []
    line.turn()
    clock.now += QUICK + 0.1
    line.sink.reports += all_arrive(line.sink.silent.pop())
    line.turn()
    assert [len(batch) for batch in line.sink.sent[5:]] == [500, 250]
    line.sink.answer = all_arrive
    line.sink.reports += all_arrive(line.sink.silent.pop())
    line.drain()
    assert sorted(line.went()) == [*range(1, 3_001), 10_001]


def test_records_of_two_runs_with_one_number_are_two(clock):
    """When Kafka refuses both, each is tried for itself, and both arrive."""
    line = Line(disk=an_earlier_run(1))
    line.append(RESULTS, 2)
    line.turn(2)
    clock.now += SPREAD
    line.sink.answer = lambda records: [Report(records, "record_refused", "record_too_large")]
    line.append(RESULTS, 1, 3)
    line.turn()
    assert line.sink.sent[1:] == [[1, 3], [1]]
    arrived = []

    def answer(records):
        arrived.extend(record.id for record in records)
        return all_arrive(records)

    line.sink.answer = answer
    line.drain()
    assert sorted(arrived) == sorted(a_record(RESULTS, *of).id for of in ((1,), (3,), (1, EARLIER)))


def test_what_is_refused_is_named_by_a_gap(clock):
    """Whatever becomes of the event that tells what it was, no hole stays without a name."""
    line = Line(lambda records: [Report(records, "record_refused", "record_too_large")])
    line.append(RESULTS, 7)
    line.turn(3)
    line.sink.answer = all_arrive
    line.turn(3)
    assert [(gap.first_seq, gap.last_seq, gap.reason) for gap in line.gaps] == [(7, 7, "record_too_large")]


def test_another_sink_gets_what_the_old_one_did_not_report():
    """After a change of the Kafka configuration nothing is lost, whatever state it was in."""
    line = Line(lambda records: [Report(records, "record_refused", "record_too_large")])
    line.append(RESULTS, 1, 2, 3)
    line.turn()
    line.sink.answer = lambda records: []
    line.turn(2)
    new = Answering(all_arrive)
    line.forwarder.replace(new, 0.25)
    assert line.sink.closed
    line.append(RESULTS, 4)
    new.answer = lambda records: [Report(records, "record_refused", "record_too_large")]
    line.turn()
    new.answer = all_arrive
    line.drain()
    assert new.sent == [[1, 2, 3, 4], [1, 2], [3, 4]]


async def test_a_stop_hands_over_what_waits():
    """A stop goes on until all arrived, at its own pace, and closes the sink."""
    line = Line()
    line.append(RESULTS, *range(1, 3 * BATCH))
    assert await line.forwarder.stop(10.0) == 0
    assert line.went() == list(range(1, 3 * BATCH))
    assert line.sink.closed


async def test_a_stop_tries_a_refused_topic_once_more():
    """What could not go before may go now: the last chance is not waited away."""
    line = Line(lambda records: [Report(records, "topic_refused", "does not exist")])
    line.append(RESULTS, 1, 2)
    line.turn(2)
    line.sink.answer = all_arrive
    assert await line.forwarder.stop(HOLD / 2) == 0


async def test_a_stop_does_not_wait_for_ever():
    """When nothing is acknowledged, a stop ends within its limit and says how many records are left."""
    line = Line(lambda records: [])
    line.append(RESULTS, 1, 2, 3)
    async with asyncio.timeout(10):
        assert await line.forwarder.stop(0.1) == 3
    assert line.sink.closed


async def test_it_runs_by_the_tick():
    """Records appended while it runs go without anybody's doing."""
    line = Line()
    line.forwarder.replace(Answering(all_arrive), 0.01)
    running = asyncio.create_task(line.forwarder.run())
    try:
        for seq in (1, 2):
            line.append(RESULTS, seq)
            async with asyncio.timeout(10):
                while len(line.spool):
                    await asyncio.sleep(0.01)
    finally:
        running.cancel()


def test_what_is_in_the_making_goes_in_the_same_turn():
    """Whoever fills the queue is asked first, in each turn and at a stop: nothing waits a tick for its record."""
    numbers_made = iter(range(1, 10))
    line = Line(fill=lambda: line.append(RESULTS, next(numbers_made)))
    line.turn(3)
    assert line.sink.sent == [[1], [2], [3]]
