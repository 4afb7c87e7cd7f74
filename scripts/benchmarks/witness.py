"""What the farm saw against what a peer says: how far its latencies and its schedule are from what happened.

The farm is on the same machine, and so has the same clock; what the farm itself was late is in its stamps, and so in
nobody's error.
"""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.farm import Seen
from benchmarks.reports import Check, Report

LONGEST = 1.0  # seconds from a check's start in which its request must be seen: the timeout
UNSURE = 0.0005  # a farm that was interrupted for longer while it handed over the answer is no witness of that one
BIN = 0.010  # seconds over which bursts are counted


class Window(NamedTuple):
    """Due times that count, a whole number of intervals. Seconds since 1970."""

    begins: float
    seconds: float

    def holds(self, stamp: float) -> bool:
        """Is it within?"""
        return self.begins <= stamp < self.begins + self.seconds


class Pairs(NamedTuple):
    """Each check with what the farm saw of it; and what only one of both knows."""

    both: list[tuple[Check, Seen]]
    unseen: list[Check]
    untold: list[Seen]


def pair(checks: Iterable[Check], seen: Iterable[Seen], slack: float) -> Pairs:
    """Joins them by target and time: a request is of the last check that began before it."""
    starts: dict[int, list[Check]] = defaultdict(list)
    for check in sorted(checks, key=lambda check: check.started):
        starts[check.target].append(check)
    pairs = Pairs([], [], [])
    found: set[Check] = set()
    for one in sorted(seen, key=lambda one: one.arrived):
        begun = starts[one.target]
        number = bisect_right(begun, one.arrived + slack, key=lambda check: check.started) - 1
        if number < 0 or begun[number] in found or one.arrived > begun[number].started + LONGEST:
            pairs.untold.append(one)
        else:
            found.add(begun[number])
            pairs.both.append((begun[number], one))
    pairs.unseen.extend(check for begun in starts.values() for check in begun if check not in found)
    return pairs


def figures(report: Report, seen: Sequence[Seen], window: Window, expected: int) -> dict[str, float | None]:
    """All figures of one run; `expected` checks were due within the window. Errors in ms; see `bench truth --help`."""
    pairs = pair(report.checks, seen, report.slack)
    both = [(check, one) for check, one in pairs.both if window.holds(check.scheduled)]
    sure = [(check, one) for check, one in both if one.sent - one.answered < UNSURE and check.up]
    wait = [check.wait_ms - _true_ms(one) for check, one in sure if check.wait_ms is not None]
    whole = [check.whole_ms - _true_ms(one) for check, one in sure]
    due = [(one.arrived - (check.started if report.driven else check.scheduled)) * 1000 for check, one in both]
    checks = [check for check in report.checks if window.holds(check.scheduled)]
    return {
        **_spread("wait", wait),
        **_spread("whole", whole),
        **_spread("arrival", due),
        **_spread("start", [check.late_ms for check, _ in both if check.late_ms is not None]),
        "expected": expected,
        "measured": len(both),
        "missed": expected - len({(check.target, check.scheduled) for check, _ in both}),
        "missed_told": sum(map(window.holds, report.missed)),
        "unseen": sum(check.up and window.holds(check.scheduled) for check in pairs.unseen),
        "untold": sum(window.holds(one.arrived) for one in pairs.untold),
        "false_alarms": sum(not check.up for check in checks),
        "unsure": sum(one.sent - one.answered >= UNSURE for _, one in both),
        "burst": _most([one.arrived for one in seen if window.holds(one.arrived)]),
        "burst_planned": _most([check.scheduled for check in checks]),
    }


def _true_ms(one: Seen) -> float:
    """What the answer took, from the request at the farm's kernel to the answer in it."""
    return (one.answered - one.arrived) * 1000


def _spread(name: str, errors: list[float]) -> dict[str, float | None]:
    """p50 and p99 of how large the errors are, and which way they lean."""
    if not errors:
        return {f"{name}_p50": None, f"{name}_p99": None, f"{name}_median": None}
    sizes = sorted(map(abs, errors))
    return {
        f"{name}_p50": percentile(sizes, 0.50),
        f"{name}_p99": percentile(sizes, 0.99),
        f"{name}_median": statistics.median(errors),
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by `share` of all."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _most(stamps: list[float]) -> int:
    """The most of them within any `BIN` seconds."""
    ordered = sorted(stamps)
    return max((bisect_left(ordered, stamp + BIN) - number for number, stamp in enumerate(ordered)), default=0)
