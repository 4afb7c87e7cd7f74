"""Five thousand targets, and trouble of all of them at once: nobody who is well is blamed, nor excused who is dead.

With CROWD_TARGETS=10000 they are as many, measured half as often; -s prints the figures.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agent.device.clock import boottime
from tests.truth.crowd import Crowd, address
from tests.truth.world import Agent, missing

TARGETS = int(os.environ.get("CROWD_TARGETS", "5000"))
NAMED = TARGETS // 5
DEAD = range(TARGETS // 2, TARGETS)  # for a while
INTERVAL, TIMEOUT = 6.0 * TARGETS / 5_000, 2.0
FAULT = INTERVAL  # seconds
JUDGED = 2.5  # seconds that a verdict takes at most, and some more
pytestmark = pytest.mark.timeout(120)


class Seen:
    """What was recorded of it, and when what was done to it (seconds since boot)."""

    def __init__(self, crowd: Crowd, folder: Path) -> None:
        urls = (f"http://t{n}.example/" if n < NAMED else f"http://{address(n)}/" for n in range(TARGETS))
        targets = "".join(f"  - {{id: t{n}, url: '{url}'}}\n" for n, url in enumerate(urls))
        agent = Agent(crowd, folder / "agent", targets, defaults=f"interval: {INTERVAL}, timeout: {TIMEOUT}")
        while "configuration" not in agent.log():
            assert agent.process.poll() is None, agent.log()
            time.sleep(0.1)
        time.sleep(INTERVAL + 1)
        self.half = boottime()
        crowd.swallow(*sorted({f"11.7.{number // 250}.0/24" for number in DEAD}))
        time.sleep(FAULT)
        self.all = boottime()
        crowd.swallow("11.7.0.0/17")
        time.sleep(FAULT)
        crowd.swallow()
        self.back = boottime()
        time.sleep(INTERVAL)
        end = boottime()
        used = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        memory = Path(f"/proc/{agent.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
        self.results = [each for each in agent.stop() if each.get("started_at")]
        cpu = sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
        print(f"\n{cpu:.1f} s of CPU with the start, {int(memory) >> 10} MiB at most")  # noqa: T201 (figures, with -s)
        for name, since, until in (
            ("half", self.half, self.all),
            ("all", self.all, self.back),
            ("back", self.back, end),
        ):
            ended = self.ended(since, until)
            late = sorted(each["lateness_ms"] for each in ended)
            said = Counter((each["status"], (each["error"] or {"attribution": ""})["attribution"]) for each in ended)
            print(f"{name}: lateness p99 {late[len(late) * 99 // 100]:.0f} ms, {dict(said)}")  # noqa: T201

    def ended(self, since: float, until: float) -> list[dict[str, Any]]:
        """What was measured in that time, from its begin to its end."""
        return [
            each
            for each in self.results
            if since <= each["clock"]["boottime_s"] <= until - (each["duration_ms"] or 0) / 1000
        ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    crowd = Crowd()
    try:
        return Seen(crowd, tmp_path_factory.mktemp("crowd"))
    finally:
        crowd.close()


def test_nobody_who_is_well_is_blamed(seen: Seen) -> None:
    """Not while half of all are dead, nor when the way out is gone, nor as it comes back."""
    assert len(seen.results) > 3 * TARGETS
    wrong = [
        each
        for each in seen.results
        if each["status"] == "down"
        and not (int(each["target"]["id"][1:]) in DEAD and each["clock"]["boottime_s"] < seen.all)
    ]
    assert wrong == []


def test_the_dead_are_not_excused(seen: Seen) -> None:
    """For nothing but a device that was seen to stand still itself."""
    dead = [
        each
        for each in seen.ended(seen.half, seen.all - JUDGED)
        if int(each["target"]["id"][1:]) in DEAD and each["error"] and each["error"]["attribution"] != "local"
    ]
    assert len(dead) > 100
    assert sum(each["status"] == "down" for each in dead) > 0.9 * len(dead)


def test_all_is_well_again_at_once(seen: Seen) -> None:
    """What begins when the way out is back is up, but for what this device itself has no time for."""
    after = seen.ended(seen.back + 1.0, seen.back + INTERVAL - 0.5)
    assert len(after) > TARGETS / 4
    assert {each["status"] for each in after if not each.get("stall_ms")} == {"up"}
