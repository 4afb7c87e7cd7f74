"""What a fresh check costs: CPU time and memory of the agent, side by side with its peers at equal rates."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import INTERVAL, Load, Peer
from benchmarks.report import say
from benchmarks.testbed import AT_RATE, Sites, Testbed, settle, testbed

# What this project wants to be, over each peer.
GOALS = {
    "http": {"aiohttp": 0.5, "telegraf": 0.35, "blackbox": 0.2},
    "https": {"aiohttp": 0.8, "telegraf": 0.9},
}


TEACH = """\
Measures the CPU time of a process for each fresh check: connection, request, answer, and, for those that make one, the
record as far as the broker's acknowledgement. Each peer runs alone on one core, at paced and equal rates, in turn; the
target farm, the broker and all else are on the other cores and not counted. The farm counts the checks.

  µs/check  | CPU of all threads of the process (clock_getcpuclockid(3)) over the checks that the farm answered
  user,     | its parts, to 10 ms of the whole: only the sum is exact
  system    |
  in Kafka  | records over checks: those that make none do less work
  ratio     | the agent's over the peer's, of one round each; the median of the rounds is told, and the goal

`floor` is a loop of C that makes only the system calls: what no program goes below. Figures of different runs do not
compare: a check is dearer at low rates, and on a machine that does other things as well."""


class Plan(NamedTuple):
    """What to run: each of `peers` in turn, `rounds` times, for `seconds` each, at each rate of each scheme."""

    rates: dict[str, Sequence[int]]
    peers: Sequence[Peer]
    rounds: int
    seconds: float
    broker: str | None


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One entry for each scheme and rate, with every peer's figures and the agent's ratios over them."""
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="uptime-agent-bench-") as directory,
        testbed(Path(directory), plan.broker) as bed,
    ):
        for scheme, rates in plan.rates.items():
            with bed.farm(scheme) as sites:
                for rate in rates:
                    targets = max(round(rate * INTERVAL), 1)
                    load = Load(scheme, sites.addresses, targets, bed.broker, bed.ca if scheme == "https" else None)
                    found.append(_at_rate(plan, load, sites, bed))
    return found


def _at_rate(plan: Plan, load: Load, sites: Sites, bed: Testbed) -> dict[str, Any]:
    """In turn, so that what else this machine does falls on all; a ratio is of one round, and the median is told."""
    rounds: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in plan.peers if load.scheme in peer.schemes}
    for number in range(plan.rounds):
        for peer in plan.peers:
            if peer.name in rounds:
                say(f"cost: {load.scheme} at {load.rate:g}/s, round {number + 1} of {plan.rounds}, {peer.name}")
                rounds[peer.name].append(_one(peer, load, sites, bed, plan.seconds))
    ours = rounds.get("agent", [])
    ratios = {
        name: statistics.median(mine["cpu_us"] / other["cpu_us"] for mine, other in zip(ours, theirs, strict=True))
        for name, theirs in rounds.items()
        if name != "agent" and ours
    }
    peers = {
        name: {figure: round(statistics.median(one[figure] for one in each), 2) for figure in each[0]}
        | {"rounds_cpu_us": [round(one["cpu_us"], 1) for one in each]}
        for name, each in rounds.items()
    }
    return {"scheme": load.scheme, "rate": load.rate, "peers": peers, "ratios": ratios, "goals": GOALS[load.scheme]}


def _one(peer: Peer, load: Load, sites: Sites, bed: Testbed, seconds: float) -> dict[str, float]:
    """Figures of one round. The farm counts the checks; `records` are all of the run, over all that it answered."""
    records, answers = bed.topic.records(), sites.count().answers
    with peer.run(load, bed.directory, bed.on) as running:
        process = running.process
        settle(sites, load.rate, process)
        begun, first, before = time.monotonic(), process.usage(), sites.count().answers
        time.sleep(seconds)
        last, took = process.usage(), time.monotonic() - begun
        checks = max(sites.count().answers - before, 1)
        rss = process.rss()
    # It was stopped in order: what it checked is in Kafka now.
    answers, records = sites.count().answers - answers, bed.topic.records() - records
    return {
        "cpu_us": (last.total - first.total) / checks * 1e6,
        "user_us": (last.user - first.user) / checks * 1e6,
        "system_us": (last.system - first.system) / checks * 1e6,
        "rss_mib": rss,
        "rate": checks / took,
        "saturated": float(checks / took < AT_RATE * load.rate),
        "records": records / max(answers, 1) if peer.records else 0.0,
    }
