"""Each target is measured on its own grid; none disturbs another; what could not be measured is told."""

import asyncio
import itertools
import time

import msgspec
import pytest

from agent import schedule
from agent.config.model import Secret, Target
from agent.device.clock import boottime
from agent.probers.result import Error, Phases, Result
from agent.schedule import Scheduler, phase_of
from tests.written import written_log

INTERVAL = 0.2


def a_target(target_id="a", interval=INTERVAL, timeout=None, **options):
    url = f"http://{target_id}.example/"
    return Target(target_id, url, url, interval, interval if timeout is None else timeout, **options)


class Instant:
    """A prober that ends at once."""

    type = "http"

    def __init__(self):
        self.deadlines = []

    async def probe(self, deadline):
        self.deadlines.append(deadline)
        return Result(0.1, Phases())


class Sleeping(Instant):
    """A prober that takes `seconds`, whatever the deadline."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    async def probe(self, deadline):
        await asyncio.sleep(self.seconds)
        return Result(self.seconds * 1000, Phases())


class Silent(Instant):
    """A prober whose target never answers: it ends at its deadline."""

    async def probe(self, deadline):
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.0)):
                await asyncio.sleep(3600)
        except TimeoutError:
            return Result(1.0, Phases(), Error("wait", "http_timeout_headers", "path", "nothing came"))


class Broken(Instant):
    """A prober with a bug."""

    async def probe(self, deadline):
        raise ZeroDivisionError("a bug")


class Outcomes:
    """Keeps what the scheduler tells."""

    def __init__(self):
        self.measurements = []
        self.misses = []

    def measured(self, measurement):
        self.measurements.append(measurement)

    def missed(self, missed):
        self.misses.append(missed)

    def scheduled(self, target_id="a"):
        return [m.scheduled for m in self.measurements if m.target.id == target_id]


@pytest.fixture
async def outcomes():
    return Outcomes()


@pytest.fixture
async def scheduler(outcomes):
    scheduler = Scheduler("agent", outcomes)
    yield scheduler
    await scheduler.stop(0.1)


def steps(moments):
    return [round((b - a) / INTERVAL, 6) for a, b in itertools.pairwise(moments)]


def test_phases_are_spread_and_stable():
    """A thousand targets spread evenly over the interval, the same on every start, others on another device."""
    phases = [phase_of("agent", f"t{n}", 10.0) for n in range(1000)]
    assert phases == [phase_of("agent", f"t{n}", 10.0) for n in range(1000)]
    assert all(0 <= phase < 10 for phase in phases)
    tenths = [sum(n <= phase < n + 1 for phase in phases) for n in range(10)]
    assert min(tenths) > 60
    assert phases[0] != phase_of("other", "t0", 10.0)


async def test_measures_on_its_grid(scheduler, outcomes):
    """Every tick is measured, at its due time, and the deadline is the timeout after the start."""
    prober = Instant()
    scheduler.reconcile([a_target(timeout=0.1)], lambda target: prober)
    await asyncio.sleep(5.5 * INTERVAL)
    assert len(outcomes.measurements) in (5, 6)
    assert set(steps(outcomes.scheduled())) == {1.0}
    for measurement, deadline in zip(outcomes.measurements, prober.deadlines, strict=True):
        assert 0 <= measurement.started - measurement.scheduled < 0.15
        assert deadline == pytest.approx(time.monotonic() - boottime() + measurement.started + 0.1, abs=0.05)
    # The grid is anchored on the wall clock: the phase is seen there.
    wall = outcomes.measurements[0].scheduled + time.time() - boottime()
    off = (wall - phase_of("agent", "a", INTERVAL)) % INTERVAL
    assert min(off, INTERVAL - off) < 0.02
    assert outcomes.misses == []


async def test_a_disabled_target_is_not_measured(scheduler, outcomes):
    """`enabled: false` keeps it out."""
    scheduler.reconcile([a_target(enabled=False)], lambda target: Instant())
    await asyncio.sleep(2 * INTERVAL)
    assert len(scheduler) == 0
    assert outcomes.measurements == []


async def test_a_slow_target_delays_nobody(scheduler, outcomes):
    """One probe that never ends: its own ticks are told as missed, another target stays on time."""
    probers = {"slow": Sleeping(3600), "a": Instant()}
    scheduler.reconcile([a_target("slow"), a_target("a")], lambda target: probers[target.id])
    await asyncio.sleep(5.5 * INTERVAL)
    assert len(outcomes.scheduled("a")) in (5, 6)
    assert outcomes.scheduled("slow") == []
    missed = [miss for miss in outcomes.misses if miss.target.id == "slow"]
    assert [miss.ticks for miss in missed] == [1] * len(missed)
    assert len(missed) in (4, 5)
    assert set(steps([miss.scheduled for miss in missed])) == {1.0}
    assert "still running" in missed[0].reason


async def test_a_hung_prober_is_cancelled(scheduler, outcomes, monkeypatch, caplog):
    """A prober that ignores its deadline costs its own ticks, is cancelled, and the target is measured again."""
    monkeypatch.setattr(schedule, "GRACE", 0.0)
    probers = iter([Sleeping(3600), Instant()])
    prober = next(probers)

    class First:
        type = "http"

        async def probe(self, deadline):
            nonlocal prober
            current, prober = prober, Instant()
            return await current.probe(deadline)

    scheduler.reconcile([a_target(timeout=INTERVAL / 2)], lambda target: First())
    await asyncio.sleep(6.5 * INTERVAL)
    assert "did not obey its deadline" in caplog.text
    assert "the prober hung" in [miss.reason for miss in outcomes.misses]
    assert outcomes.measurements


async def test_a_stall_is_not_blamed_on_probes(scheduler, outcomes, caplog):
    """Probes whose deadline passed while the whole loop stood still obey it in its next turns, and are recorded."""
    scheduler.reconcile([a_target(f"t{n}", interval=1.0) for n in range(20)], lambda target: Silent())
    await asyncio.sleep(0.8)
    in_flight = {entry.target.id for entry, _ in scheduler._in_flight.values()}
    assert len(in_flight) > 5
    time.sleep(3)
    await asyncio.sleep(0.2)
    assert "did not obey" not in caplog.text
    assert {measurement.target.id for measurement in outcomes.measurements} >= in_flight
    stalled = [miss for miss in outcomes.misses if miss.target.id in in_flight]
    assert len(stalled) == len(in_flight)
    assert all(miss.ticks in (2, 3) and " s late: the device was busy" in miss.reason for miss in stalled)


async def test_no_burst_after_a_stall(scheduler, outcomes):
    """A stalled loop: the missed ticks are one row, the next one is on the grid."""
    scheduler.reconcile([a_target()], lambda target: Instant())
    await asyncio.sleep(1.5 * INTERVAL)
    begun = boottime()
    time.sleep(5 * INTERVAL)  # the whole loop stands still
    ended = boottime()
    while not outcomes.misses or outcomes.measurements[-1].scheduled < ended:
        await asyncio.sleep(0.01)
    row = max(outcomes.misses, key=lambda miss: miss.ticks)
    assert row.scheduled + (row.ticks - 1) * INTERVAL > ended - 2 * INTERVAL, "all that was missed is in it"
    assert "late" in row.reason
    # Of the ticks of that time no more than the newest was measured, however long it was on a busy machine.
    assert sum(begun < scheduled < ended for scheduled in outcomes.scheduled()) <= 1
    ticks = sorted(
        outcomes.scheduled() + [miss.scheduled + n * INTERVAL for miss in outcomes.misses for n in range(miss.ticks)]
    )
    assert set(steps(ticks)) == {1.0}, "each tick is measured or told, none twice"


async def test_what_is_too_late_is_not_measured(scheduler, outcomes):
    """A tick more than a second late is told, not measured: after a suspend nothing fires at once."""
    targets = [a_target(f"t{n}", interval=60.0) for n in range(20)]
    scheduler.reconcile(targets, lambda target: Instant())
    scheduler._heap = [(due - 100, number, entry) for due, number, entry in scheduler._heap]
    for _, _, entry in scheduler._heap:
        entry.base -= 100.0
    scheduler._arm()
    await asyncio.sleep(0.05)
    assert all(boottime() - m.scheduled < 1.1 for m in outcomes.measurements)
    assert len(outcomes.misses) >= 18


async def test_reconcile_leaves_the_rest_alone(scheduler, outcomes):
    """An unchanged target keeps rhythm, prober and probe in flight; changed, removed and new ones are replaced."""
    made = []

    def prober_of(target):
        made.append(target.id)
        return Sleeping(1.5 * INTERVAL) if target.id == "same" else Instant()

    same, gone, changed = (a_target(name) for name in ("same", "gone", "changed"))
    scheduler.reconcile([same, gone, changed], prober_of)
    await asyncio.sleep(1.2 * INTERVAL)
    probe = next(iter(scheduler._in_flight))
    changed = msgspec.structs.replace(changed, labels={"a": "b"})
    made.clear()
    scheduler.reconcile([same, changed, a_target("new")], prober_of)
    assert made == ["changed", "new"]
    assert probe in scheduler._in_flight
    gone_before = len(outcomes.scheduled("gone"))
    await asyncio.sleep(3.3 * INTERVAL)
    assert len(outcomes.scheduled("gone")) == gone_before
    assert len(outcomes.scheduled("new")) >= 3
    assert set(steps(outcomes.scheduled("changed"))) == {1.0}
    assert outcomes.measurements[-1].target.labels == {"a": "b"} or outcomes.scheduled("same")
    assert not probe.cancelled()


async def test_a_reload_loses_no_tick(scheduler, outcomes):
    """A target that changes while the loop is late: each tick of its grid is measured or told, none twice."""
    scheduler.reconcile([a_target()], lambda target: Instant())
    await asyncio.sleep(1.5 * INTERVAL)
    time.sleep(3 * INTERVAL)  # the whole loop stands still
    scheduler.reconcile([a_target(labels={"a": "b"})], lambda target: Instant())
    await asyncio.sleep(2.5 * INTERVAL)
    ticks = sorted(
        outcomes.scheduled() + [miss.scheduled + n * INTERVAL for miss in outcomes.misses for n in range(miss.ticks)]
    )
    assert set(steps(ticks)) == {1.0}


async def test_a_probe_of_a_removed_target_ends_and_is_recorded(scheduler, outcomes):
    """Removal stops the ticks, not the probe in flight."""
    scheduler.reconcile([a_target()], lambda target: Sleeping(INTERVAL / 2))
    while not scheduler._in_flight:
        await asyncio.sleep(0.01)
    scheduler.reconcile([], lambda target: Instant())
    await asyncio.sleep(INTERVAL)
    assert len(outcomes.measurements) == 1
    assert outcomes.misses == []


async def test_reconcile_is_all_or_nothing(scheduler, outcomes):
    """When a prober cannot be made, all runs on as it was."""
    scheduler.reconcile([a_target()], lambda target: Instant())

    def refuse(target):
        raise ValueError(target.id)

    with pytest.raises(ValueError, match="new"):
        scheduler.reconcile([a_target("new")], refuse)
    await asyncio.sleep(2.5 * INTERVAL)
    assert len(outcomes.scheduled("a")) >= 2


async def test_many_reconciles_leave_no_debris(scheduler):
    """A thousand edits do not grow the heap."""
    for n in range(1000):
        scheduler.reconcile([a_target("a", interval=60.0 + n), a_target("b", interval=60)], lambda target: Instant())
    assert len(scheduler._heap) == 2


async def test_a_timeout_as_long_as_the_interval(scheduler, outcomes):
    """A target that is silent to the end of each interval is measured at every tick all the same."""
    scheduler.reconcile([a_target(timeout=INTERVAL)], lambda target: Silent())
    await asyncio.sleep(6.5 * INTERVAL)
    assert len(outcomes.measurements) in (5, 6)
    assert outcomes.misses == []


@pytest.mark.parametrize("stall", [0.6, 1.3], ids=["within the timeout", "beyond it"])
async def test_a_stall_is_not_the_targets_fault(scheduler, outcomes, stall):
    """A probe that times out while this device stood still is put down to this device; one after that is not."""
    scheduler.reconcile([a_target(interval=1.0, timeout=0.9)], lambda target: Silent())
    while not scheduler._in_flight:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    time.sleep(stall)
    while not outcomes.measurements:
        await asyncio.sleep(0.01)
    first = outcomes.measurements[0].result.error
    assert (first.code, first.attribution) == ("http_timeout_headers", "local")
    assert "this device stood still" in first.message
    # On a busy machine the very next may be this device's as well; the test ends in time when one is not.
    while outcomes.measurements[-1].result.error.attribution == "local":
        await asyncio.sleep(0.01)
    last = outcomes.measurements[-1].result.error
    assert (last.code, last.attribution) == ("http_timeout_headers", "path")


async def test_a_stall_is_in_the_measurement(scheduler, outcomes):
    """How long the loop stood still during a measurement is told with it, also with one that succeeded; not with one
    after that.
    """
    scheduler.reconcile([a_target(interval=1.0)], lambda target: Sleeping(0.6))
    while not scheduler._in_flight:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    begun = boottime()
    time.sleep(0.3)
    while not outcomes.measurements:
        await asyncio.sleep(0.01)
    first = outcomes.measurements[0]
    assert 0.15 < first.stall < boottime() - begun  # a busy machine adds some
    assert first.result.error is None
    while outcomes.measurements[-1].stall:  # on a busy machine the very next may have some of its own
        await asyncio.sleep(0.01)


async def test_no_more_than_so_many_at_once(outcomes):
    """With more work than may be done at once the others wait for their turn, a second at most, and have it in order;
    what could not begin is told; each tick is measured or told, none twice.
    """
    scheduler = Scheduler("agent", outcomes, 2)
    running, most = 0, 0

    class Counting(Instant):
        async def probe(self, deadline):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.4)
            running -= 1
            return Result(400.0, Phases())

    names = [f"t{n}" for n in range(10)]  # ten a second, where five can be done
    scheduler.reconcile([a_target(name, interval=1.0) for name in names], lambda target: Counting())
    await asyncio.sleep(6.0)
    await scheduler.stop(1.0)
    assert most == 2
    assert 24 <= len(outcomes.measurements) <= 33
    assert all(m.started - m.scheduled < 1.1 for m in outcomes.measurements)
    measured = [len(outcomes.scheduled(name)) for name in names]
    assert min(measured) >= 1
    assert max(measured) <= 5
    assert any("this device was busy with other measurements" in miss.reason for miss in outcomes.misses)
    for name in names:
        ticks = outcomes.scheduled(name) + [
            miss.scheduled + n for miss in outcomes.misses if miss.target.id == name for n in range(miss.ticks)
        ]
        assert {round(b - a, 6) for a, b in itertools.pairwise(sorted(ticks))} == {1.0}


async def test_more_than_the_processor_can_do(scheduler, outcomes):
    """What is begun is brought to its end, as much as the processor can do, and the rest is told; no target is the one
    that is always left out.
    """

    class Working(Instant):
        async def probe(self, deadline):
            for _ in range(3):
                end = time.perf_counter() + 0.0001
                while time.perf_counter() < end:
                    pass
                await asyncio.sleep(0)
            in_time = time.monotonic() < deadline
            return Result(1.0, Phases(), None if in_time else Error("wait", "http_timeout_headers", "path", "late"))

    names = [f"t{n}" for n in range(2_000)]  # 0.6 s of work each 0.2 s
    scheduler.reconcile([a_target(name) for name in names], lambda target: Working())
    await asyncio.sleep(3.0)
    await scheduler.stop(1.0)
    in_time = sum(m.result.error is None for m in outcomes.measurements)
    assert in_time > 0.9 * len(outcomes.measurements)
    assert len(outcomes.misses) > len(names)
    assert len({m.target.id for m in outcomes.measurements}) > 0.9 * len(names)


async def test_what_waits_for_its_turn_at_a_stop(outcomes):
    """It is told as not measured."""
    scheduler = Scheduler("agent", outcomes, 1)
    scheduler.reconcile([a_target(f"t{n}", interval=1.0) for n in range(3)], lambda target: Sleeping(3600))
    while sum(entry.waits is not None for entry in scheduler._entries.values()) < 2:
        await asyncio.sleep(0.01)
    outcomes.misses.clear()
    await scheduler.stop(0.05)
    assert [miss.reason for miss in outcomes.misses] == [
        "the agent was stopped before it was measured",
        "the agent was stopped before it was measured",
        "the agent was stopped during the measurement",
    ]


async def test_a_broken_prober_costs_one_record(scheduler, outcomes, caplog):
    """A bug in a prober is a result `internal`, blamed on this device, and the target is measured on."""
    scheduler.reconcile([a_target()], lambda target: Broken())
    await asyncio.sleep(2.5 * INTERVAL)
    assert len(outcomes.measurements) >= 2
    error = outcomes.measurements[0].result.error
    assert (error.code, error.attribution) == ("internal", "local")
    assert "ZeroDivisionError" in error.message
    assert "the prober failed" in caplog.text


async def test_a_broken_prober_shows_no_secret(scheduler, outcomes):
    """Neither its record nor the log has what is configured as a secret, whatever the bug says."""

    class Telling(Instant):
        async def probe(self, deadline):
            raise UnicodeEncodeError("ascii", str(secret), 0, 1, str(secret))

    secret = Secret("tökèn-12")
    with written_log() as written:
        scheduler.reconcile([a_target(headers={"x": secret})], lambda target: Telling())
        await asyncio.sleep(1.5 * INTERVAL)
    assert "***" in outcomes.measurements[0].result.error.message
    assert "a: the prober failed" in written.getvalue()
    assert "tökèn-12" not in outcomes.measurements[0].result.error.message + written.getvalue()


async def test_a_failing_tick_stops_no_other(outcomes, caplog):
    """A bug while one target's tick is begun is said, and costs neither the others theirs nor the target its next."""
    scheduler = Scheduler("agent", outcomes)
    scheduler.reconcile([a_target("a"), a_target("b")], lambda target: Instant())
    begin, failed = scheduler._tick, []

    def tick(entry, now):
        if entry.target.id == "a" and len(failed) < 2:
            failed.append(now)
            raise ZeroDivisionError
        return begin(entry, now)

    scheduler._tick = tick
    await asyncio.sleep(5.5 * INTERVAL)
    await scheduler.stop(0.1)
    assert "a: its tick failed" in caplog.text
    assert len(outcomes.scheduled("b")) in (5, 6)
    assert len(outcomes.scheduled("a")) >= 2


async def test_stop_lets_probes_end(scheduler, outcomes):
    """What is in flight at a stop gets its grace and is recorded."""
    scheduler.reconcile([a_target()], lambda target: Sleeping(0.1))
    while not scheduler._in_flight:
        await asyncio.sleep(0.01)
    await scheduler.stop(1.0)
    assert len(outcomes.measurements) == 1
    assert outcomes.misses == []


@pytest.mark.parametrize("stall", [0.0, 0.5], ids=["without a stall", "with one"])
async def test_a_stop_is_no_stall(scheduler, outcomes, stall):
    """What times out in the grace of a stop is the target's fault, unless this device really stood still meanwhile."""
    scheduler.reconcile([a_target(interval=1.0, timeout=0.9)], lambda target: Silent())
    while not scheduler._in_flight:
        await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_later(0.2, time.sleep, stall)
    await scheduler.stop(2.0)
    (measurement,) = outcomes.measurements
    assert measurement.result.error.attribution == ("local" if stall else "path")
    assert (measurement.stall > 0) == (stall > 0)


async def test_stop_tells_what_it_cut_off(scheduler, outcomes):
    """What does not end in time is told as not measured, and nothing starts any more."""
    scheduler.reconcile([a_target()], lambda target: Sleeping(3600))
    while not scheduler._in_flight:
        await asyncio.sleep(0.01)
    await scheduler.stop(0.05)
    assert [(miss.ticks, miss.reason) for miss in outcomes.misses] == [
        (1, "the agent was stopped during the measurement")
    ]
    await asyncio.sleep(2 * INTERVAL)
    assert outcomes.measurements == []
