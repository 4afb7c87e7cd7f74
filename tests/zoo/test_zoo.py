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
from typing import NamedTuple

import msgspec
import pytest

from agent.record import ResultRecord
from tests.probers.conftest import IPV6
from tests.zoo.behaviour import INTERVAL
from tests.zoo.behaviours import BEHAVIOURS
from tests.zoo.controls import CONTROLS
from tests.zoo.measure import LOOPS, Observed, Report
from tests.zoo.oracle import excused, wrong
from tests.zoo.serve import HOSTS, Served

ROOT = Path(__file__).parent.parent.parent
SECONDS = 9.0  # of each run
ROUNDS = int(SECONDS / INTERVAL)
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
        return self._process.stdout.readline()


class Ran(NamedTuple):
    """What a run saw. `took`: seconds that the controls took, as they say themselves."""

    report: Report
    took: list[float]
    missing: dict[str, str]

    def of(self, name: str) -> list[Observed]:
        return [each for each in self.report.observed if each.record.target.id == name]

    @property
    def controls(self) -> list[ResultRecord]:
        return [each.record for control in CONTROLS for each in self.of(control.name)]


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
    command = [sys.executable, "-m", "tests.zoo.measure", loop, str(SECONDS)]
    given = msgspec.json.encode(targets)
    done = subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, check=True, timeout=60)
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
    observed = [each for each in ran.of(behaviour.name) if not excused(each.record)]
    assert observed, "it was not measured, or the machine stood still each time"
    assert [list(wrong(behaviour, each)) for each in observed] == [[]] * len(observed)


def test_none_is_missed(ran):
    """A server that is silent holds nobody up, not even itself: each has its turn each time."""
    assert ran.report.missed == {}
    names = {each.name for each in BEHAVIOURS} - set(ran.missing)
    assert {name: len(ran.of(name)) for name in names if len(ran.of(name)) < ROUNDS} == {}


def test_controls(ran):
    """Who is well beside them is up, each time, on time, and in the time that it took by its own account."""
    assert len(ran.controls) >= len(CONTROLS) * int(SECONDS / CONTROL_INTERVAL)
    assert [record.error for record in ran.controls if record.status != "up"] == []
    assert statistics.median(record.lateness_ms for record in ran.controls) < 20
    duration = statistics.median(record.duration_ms for record in ran.controls)
    assert statistics.median(ran.took) * 1000 <= duration < statistics.median(ran.took) * 1000 + 20


def test_nothing_stays(ran):
    """Neither open files nor tasks are left of them all."""
    (files_before, files_after), (tasks_before, tasks_after) = ran.report.files, ran.report.tasks
    assert (files_after, tasks_after) == (files_before, tasks_before)
