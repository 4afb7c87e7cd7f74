"""What was told when it happened is recorded later as if at once: in order, none lost, judged by its own time."""

import json

import pytest

from agent import results
from agent.config.model import Agent, Config, Kafka, Location, Target
from agent.device.clock import Clock, ClockState
from agent.device.identity import Run
from agent.inquiry import inquiry
from agent.probers.result import Error, Peer, Phases, Result
from agent.record import Recorder
from agent.results import BATCH, Results
from agent.schedule import Measurement, Missed
from tests.delivery.in_memory import a_spool

AWAY = Peer("9.9.9.9", 80, "ipv4")
SILENT = Result(3000.0, Phases(connect=3000.0), Error("connect", "connect_timeout", "path", "no answer"), peer=AWAY)
ANSWERED = Result(1.0, Phases(), peer=AWAY)
ANSWERED_NEAR = Result(1.0, Phases(), peer=Peer("192.168.1.1", 80, "ipv4"))
TOPIC = "uptime.results"


class AProber:
    type = "http"


class Bench:
    """Results with a spool behind them, and a boot clock and a state of the wall clock that the test sets."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(results, "boottime", lambda: self.now)
        monkeypatch.setattr(inquiry, "boottime", lambda: self.now)
        self.clock = Clock("yes")
        monkeypatch.setattr(self.clock, "state", lambda: ClockState(self.synchronized, None))
        self.synchronized = True
        config = Config(Agent("a"), Location("l"), "/nowhere", Kafka(("broker:9092",)), digest="d")
        self.recorder = Recorder(config, Run(1, "0" * 16), self.clock)
        self.spool = a_spool(self.recorder.gap)
        self.results = Results(self.recorder, self.clock, self.spool)

    def measured(self, target_id, result=ANSWERED):
        target = Target(target_id, f"http://{target_id}/", f"http://{target_id}/", 10.0, 3.0)
        self.results.measured(Measurement(target, AProber(), self.now - 0.052, self.now - 0.05, 1764000000.0, result))

    def missed(self, target_id, ticks=1):
        target = Target(target_id, f"http://{target_id}/", f"http://{target_id}/", 10.0, 3.0)
        self.results.missed(Missed(target, AProber(), self.now, 1764000000.0, ticks, "busy"))

    def records(self):
        self.spool.turn()
        return [json.loads(record.value) for record in self.spool.take(TOPIC, 10_000)]


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


async def test_nothing_is_done_at_the_end_of_a_probe(bench):
    """What was measured waits, and is recorded in the order in which it ended, misses among it."""
    for target_id in ("a", "b"):
        bench.measured(target_id)
    bench.missed("c")
    bench.measured("d")
    assert len(bench.spool) == 0
    bench.results.settle()
    records = bench.records()
    assert [record["target"]["id"] for record in records] == ["a", "b", "c", "d"]
    assert [record["agent"]["seq"] for record in records] == [1, 2, 3, 4]
    bench.results.settle()
    assert bench.records() == []


async def test_what_waits_is_bounded(bench):
    """A full batch is recorded at once, whatever the delivery does."""
    for number in range(3 * BATCH + 1):
        bench.measured(f"t{number}")
    assert len(bench.spool) == 3 * BATCH


async def test_what_answers_afterwards_proves_the_way_out(bench):
    """A silence is judged by what answered after it, and not before, whenever the batch is looked at."""
    bench.measured("answers")
    bench.now += 0.1
    bench.measured("silent", SILENT)
    bench.now += 3600.0
    bench.results.settle()
    bench.now += 3.0
    bench.measured("answers")
    bench.measured("silent", SILENT)
    bench.now += 0.1
    bench.measured("answers")
    bench.results.settle()
    assert [(each["target"]["id"], each["status"]) for each in bench.records()] == [
        ("answers", "up"),
        ("silent", "unknown"),
        ("answers", "up"),
        ("answers", "up"),
        ("silent", "down"),
    ]


async def test_what_answers_too_late_proves_nothing(bench):
    """More than 2 s after a silence an answer says nothing about that moment, though both are in one batch."""
    bench.measured("silent", SILENT)
    bench.now += 2.1
    bench.measured("answers")
    bench.results.settle()
    assert [each["status"] for each in bench.records()] == ["unknown", "up"]


async def test_a_doubtful_one_is_held_for_two_seconds(bench):
    """What cannot be judged yet holds nobody else up; after 2 s it is recorded with what was looked at, and the wait is
    not in its duration.
    """
    bench.measured("silent", SILENT)
    bench.measured("answers", ANSWERED_NEAR)
    bench.results.settle()
    assert [each["target"]["id"] for each in bench.records()] == ["answers"]
    assert bench.results.since_last()["checks_per_second"] > 0
    bench.now += 1.9
    bench.results.settle()
    assert bench.records() == []
    bench.now += 0.2
    bench.results.settle()
    (record,) = bench.records()
    assert (record["status"], record["error"]["attribution"], record["duration_ms"]) == ("unknown", "unknown", 3000.0)
    assert record["evidence"]["waited_ms"] == pytest.approx(2100)
    assert record["evidence"]["route"] in (True, False)


async def test_records_of_one_target_are_in_order(bench):
    """What comes of a target while a result of it is held is recorded behind it."""
    bench.measured("a", SILENT)
    bench.measured("a", ANSWERED_NEAR)
    bench.missed("a")
    bench.measured("a", SILENT)
    bench.measured("b", ANSWERED_NEAR)
    bench.now += 2.0
    bench.results.settle()
    assert [(each["target"]["id"], each["status"], each["duration_ms"]) for each in bench.records()] == [
        ("b", "up", 1.0),
        ("a", "unknown", 3000.0),
        ("a", "up", 1.0),
        ("a", "unknown", None),
        ("a", "unknown", 3000.0),
    ]
    assert bench.results.verdicts["a"].duration_ms == 3000.0


async def test_nothing_is_held_beyond_a_stop(bench):
    """At the end what is held is recorded by what is known."""
    bench.measured("a", SILENT)
    bench.measured("a", ANSWERED_NEAR)
    bench.results.settle(end=True)
    assert [each["status"] for each in bench.records()] == ["unknown", "up"]


async def test_what_is_held_is_bounded(bench, monkeypatch):
    """With more than that the oldest is recorded by what is known."""
    monkeypatch.setattr(inquiry, "MOST_HELD", 3)
    for number in range(5):
        bench.measured(f"t{number}", SILENT)
    bench.results.settle()
    assert [each["target"]["id"] for each in bench.records()] == ["t0", "t1"]


async def test_the_clock_of_the_measurement(bench):
    """A clock that was set between measurement and batch does not make an earlier stamp trustworthy."""
    bench.synchronized = False
    bench.measured("a")
    bench.missed("b")
    bench.synchronized = True
    bench.measured("c")
    bench.results.settle()
    assert [record["clock"]["synchronized"] for record in bench.records()] == [False, False, True]


async def test_one_that_cannot_be_recorded(bench, caplog):
    """A result that cannot be encoded costs itself alone, is said, and leaves no hole in the numbers."""
    bench.measured("a")
    bench.measured("b", Result(1.0, Phases(), Error(None, "internal", "local", "\ud800")))
    bench.measured("c")
    bench.results.settle()
    assert [(record["target"]["id"], record["agent"]["seq"]) for record in bench.records()] == [("a", 1), ("c", 2)]
    assert "b: its result could not be recorded" in caplog.text


async def test_figures(bench):
    """The heartbeat counts what still waits, and begins anew after each."""
    bench.measured("a")
    bench.measured("b")
    bench.missed("c", ticks=5)
    bench.now += 2.0
    assert bench.results.since_last() == {"checks_per_second": pytest.approx(1.0), "missed": 5, "lateness_max_ms": 2.0}
    bench.now += 2.0
    assert bench.results.since_last() == {"checks_per_second": 0.0, "missed": 0, "lateness_max_ms": None}


async def test_thousands_that_are_doubtful_do_not_slow_down_the_rest(bench, monkeypatch):
    """With as many failures undecided as are held, each is looked at some times a second, not with each batch."""
    looked = 0

    def counted(*args):
        nonlocal looked
        looked += 1
        return rule(*args)

    rule = inquiry.rule
    for number in range(inquiry.MOST_HELD):
        bench.measured(f"silent{number}", SILENT)
    bench.results.settle()
    assert len(bench.results.inquiry) == inquiry.MOST_HELD
    monkeypatch.setattr(inquiry, "rule", counted)
    for number in range(1_000):
        bench.now += 0.001
        bench.measured(f"well{number}", ANSWERED_NEAR)
    assert inquiry.MOST_HELD <= looked <= 5 * inquiry.MOST_HELD
    bench.now += inquiry.HOLD_SECONDS
    bench.results.settle()
    assert len(bench.results.inquiry) == 0
    assert sum(record["status"] == "unknown" for record in bench.records()) == inquiry.MOST_HELD
