"""Every way in which a server can behave, each measured by all of the agent that measures, all at once.

A process serves the behaviours, another one the controls: sites that are well. For each event loop and each family of
addresses a third one measures them all beside each other for some rounds, and what it recorded is judged here.
"""

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec
import pytest

from agent.probers.result import ErrorCode
from agent.record import ResultRecord
from tests.probers.conftest import IPV6
from tests.zoo.behaviour import INTERVAL, Fails
from tests.zoo.behaviours import BEHAVIOURS
from tests.zoo.bodies import LIMIT
from tests.zoo.controls import CONTROLS
from tests.zoo.measure import LOOPS, MOST, Observed, Report
from tests.zoo.oracle import wrong
from tests.zoo.serve import HOSTS, Served

pytestmark = pytest.mark.timeout(300)  # the first test waits for all runs

ROOT = Path(__file__).parent.parent.parent
CONTROL_INTERVAL = 1.0


class Server:
    """A process that serves until it is closed, or this one is gone."""

    def __init__(self, what: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zoo.serve", what], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.served = msgspec.json.decode(self._line(), type=Served)

    def took(self) -> list[float]:
        """Seconds that each answer of the controls took since the last time."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=list[float])

    def close(self) -> None:
        try:
            self._process.communicate(timeout=10)
        finally:
            self._process.kill()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it ended, and why is on standard error"
        return line


class Ran(NamedTuple):
    """What a run saw. `took`: seconds that the controls took, as they say themselves."""

    report: Report
    took: list[float]
    missing: dict[str, str]

    def of(self, name: str) -> list[Observed]:
        return [each for each in self.report.observed if each.record.target.id == name]

    @property
    def controls(self) -> list[ResultRecord]:
        return [each.record for control in CONTROLS for each in self.of(control.name) if not each.spoiled]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, str], Ran]]:
    hostile, well = Server("behaviours"), Server("controls")
    with contextlib.closing(hostile), contextlib.closing(well):
        yield {(loop, family): _run(loop, family, hostile, well) for loop, family in product(LOOPS, HOSTS)}


def _run(loop: str, family: str, hostile: Server, well: Server) -> Ran:
    behaviours, controls = hostile.served.targets[family], well.served.targets[family]
    targets = [
        {"id": each.name, "interval": INTERVAL, "timeout": each.timeout, **behaviours[each.name]}
        for each in BEHAVIOURS
        if each.name in behaviours
    ]
    targets += [
        {"id": each.name, "interval": CONTROL_INTERVAL, "timeout": CONTROL_INTERVAL, **controls[each.name]}
        for each in CONTROLS
    ]
    well.took()
    command = [sys.executable, "-m", "tests.zoo.measure", loop]
    given = msgspec.json.encode(targets)
    done = subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, check=True, timeout=2 * MOST)
    return Ran(msgspec.json.decode(done.stdout, type=Report), well.took(), hostile.served.missing)


@pytest.fixture(
    params=[
        pytest.param((loop, family), id=f"{loop}-{family}", marks=IPV6 if family == "ipv6" else ())
        for loop, family in product(LOOPS, ("ipv4", "ipv6"))
    ]
)
def ran(request: pytest.FixtureRequest, runs: dict[tuple[str, str], Ran]) -> Ran:
    return runs[request.param]


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda each: each.name)
def test_behaviour(behaviour, ran):
    """Each has its own verdict, whom to blame, the phases that were reached and no others; in time, each time."""
    if behaviour.name in ran.missing:
        pytest.skip(ran.missing[behaviour.name])
    observed = [each for each in ran.of(behaviour.name) if not each.spoiled]
    assert observed, "it was not measured, or this machine stood still each time"
    assert [(number, what) for number, each in enumerate(observed) for what in wrong(behaviour, each)] == []


def test_none_is_missed(ran):
    """A server that is silent holds nobody up, not even itself: each has its turn each time, if the machine lets it."""
    spoiled = {each.record.target.id for each in ran.report.observed if each.spoiled}
    held_up = [name for name, why in ran.report.missed.items() if "the device was busy" not in why]
    assert len([name for name in held_up if name not in spoiled]) <= 2, ran.report.missed


def test_controls(ran):
    """Who is well beside them is up, each time, on time, and in the time that it took by its own account.

    The bounds are those of a machine that others keep busy; who would hold all up is found by `test_no_long_turn`.
    """
    assert [record.error for record in ran.controls if record.status != "up"] == []
    lateness = statistics.median(record.lateness_ms or 0.0 for record in ran.controls)
    duration = statistics.median(record.duration_ms or 0.0 for record in ran.controls)
    took = statistics.median(ran.took) * 1000
    assert lateness < 100
    assert took <= duration < took + 150


def test_no_long_turn(ran):
    """No server makes the loop work for long without a pause, whatever it sends."""
    assert ran.report.longest_turn < 0.1


def test_bounded_memory(ran):
    """All of them together take less than the largest body that one of them sends: nothing is kept of what comes."""
    assert ran.report.memory < LIMIT


def test_nothing_stays(ran):
    """Neither open files nor tasks are left of them all."""
    (files_before, files_after), (tasks_before, tasks_after) = ran.report.files, ran.report.tasks
    assert (files_after, tasks_after) == (files_before, tasks_before)


# What no behaviour causes, and why.
NOT_CAUSED = {
    "connect_unreachable": "a router says so: tests/probers/test_http.py",
    "icmp_unreachable": "of a network of its own: tests/zoo/test_icmp.py",
    "icmp_timeout": "of a network of its own: tests/zoo/test_icmp.py",
    "http_encoding": "bodies are not decoded yet",
    "not_measured": "the device's own: tests/test_schedule.py",
    "local_resource": "the device's own: tests/probers/test_exchange.py",
    "local_network": "the device's own: tests/probers/test_http.py",
    "clock_unsynchronized": "the device's own: tests/verdict/test_verdict.py",
    "internal": "a bug of the agent's own: tests/test_schedule.py",
}


def test_every_code_has_its_behaviour():
    """Whatever a server can be blamed for is what some behaviour is blamed for."""
    caused = {each.expected.code for each in BEHAVIOURS if isinstance(each.expected, Fails)}
    assert set(get_args(ErrorCode)) - caused == set(NOT_CAUSED)


def test_there_are_many():
    """Each has a name of its own, and there are hundreds."""
    assert len({each.name for each in BEHAVIOURS}) == len(BEHAVIOURS) >= 200
