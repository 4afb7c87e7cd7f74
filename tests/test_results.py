"""What was told when it happened is recorded later as if at once: in order, none lost, judged by its own time."""

import json

import pytest

from agent import results
from agent.config.model import Agent, Config, Kafka, Location, Target
from agent.device.clock import Clock, ClockState
from agent.device.identity import Run
from agent.probers.result import Error, Peer, Phases, Result
from agent.record import Recorder
from agent.results import BATCH, Results
from agent.schedule import Measurement, Missed
from tests.delivery.in_memory import a_spool

SILENT = Result(3000.0, Phases(connect=3000.0), Error("connect", "connect_timeout", "path", "no answer"))
ANSWERED = Result(1.0, Phases(), peer=Peer("9.9.9.9", 80, "ipv4"))
TOPIC = "uptime.results"


class AProber:
    type = "http"


class Bench:
    """Results with a spool behind them, and a boot clock and a state of the wall clock that the test sets."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(results, "boottime", lambda: self.now)
        self.clock = Clock("yes")
        monkeypatch.setattr(self.clock, "state", lambda: ClockState(self.synchronized, None))
        self.synchronized = True
        config = Config(Agent("a"), Location("l"), "/nowhere", Kafka(("broker:9092",)), digest="d")
        self.recorder = Recorder(config, Run(1, "0" * 16), self.clock)
        self.spool = a_spool(self.recorder.gap)
        self.results = Results(self.recorder, self.clock, self.spool)

    def measured(self, target_id, result=ANSWERED):
        target = Target(target_id, f"http://{target_id}/", f"http://{target_id}/", 10.0, 3.0)
        self.results.measured(Measurement(target, AProber(), self.now, self.now + 0.002, 1764000000.0, result))

    def missed(self, target_id, ticks=1):
        target = Target(target_id, f"http://{target_id}/", f"http://{target_id}/", 10.0, 3.0)
        self.results.missed(Missed(target, AProber(), self.now, 1764000000.0, ticks, "busy"))

    def records(self):
        self.spool.turn()
        return [json.loads(record.value) for record in self.spool.take(TOPIC, 10_000)]


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def test_nothing_is_done_at_the_end_of_a_probe(bench):
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


def test_what_waits_is_bounded(bench):
    """A full batch is recorded at once, whatever the delivery does."""
    for number in range(3 * BATCH + 1):
        bench.measured(f"t{number}")
    assert len(bench.spool) == 3 * BATCH


@pytest.mark.parametrize(("later", "status"), [(20.0, "down"), (40.0, "unknown")])
def test_judged_by_the_time_of_the_measurement(bench, later, status):
    """Whether another target answered lately is asked for the moment of the measurement, not of the batch."""
    bench.measured("answers")
    bench.now += later
    bench.measured("silent", SILENT)
    bench.now += 3600.0
    bench.results.settle()
    assert bench.records()[1]["status"] == status


def test_what_came_later_is_no_evidence(bench):
    """An answer that came after a silence, though in the same batch, does not prove the way out at that time."""
    bench.measured("silent", SILENT)
    bench.measured("answers")
    bench.results.settle()
    assert bench.records()[0]["status"] == "unknown"


def test_the_clock_of_the_measurement(bench):
    """A clock that was set between measurement and batch does not make an earlier stamp trustworthy."""
    bench.synchronized = False
    bench.measured("a")
    bench.missed("b")
    bench.synchronized = True
    bench.measured("c")
    bench.results.settle()
    assert [record["clock"]["synchronized"] for record in bench.records()] == [False, False, True]


def test_one_that_cannot_be_recorded(bench, caplog):
    """A result that cannot be encoded costs itself alone, is said, and leaves no hole in the numbers."""
    bench.measured("a")
    bench.measured("b", Result(1.0, Phases(), Error(None, "internal", "local", "\ud800")))
    bench.measured("c")
    bench.results.settle()
    assert [(record["target"]["id"], record["agent"]["seq"]) for record in bench.records()] == [("a", 1), ("c", 2)]
    assert "b: its result could not be recorded" in caplog.text


def test_figures(bench):
    """The heartbeat counts what still waits, and begins anew after each."""
    bench.measured("a")
    bench.measured("b")
    bench.missed("c", ticks=5)
    bench.now += 2.0
    assert bench.results.since_last() == {"checks_per_second": pytest.approx(1.0), "missed": 5, "lateness_max_ms": 2.0}
    bench.now += 2.0
    assert bench.results.since_last() == {"checks_per_second": 0.0, "missed": 0, "lateness_max_ms": None}
