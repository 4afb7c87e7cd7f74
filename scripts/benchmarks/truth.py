"""How true the agent's figures are, side by side with its peers': against a target farm that knows what happened."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.farm import Seen
from benchmarks.peers import INTERVAL, Load, Peer
from benchmarks.report import say
from benchmarks.testbed import Sites, Testbed, settle, testbed
from benchmarks.witness import LONGEST, Window, figures

# What this project wants to be at 1,000 checks a second; milliseconds.
GOALS = {"wait": (0.2, 2.0), "start": (0.1, 3.0)}
COUNTS = {"expected", "measured", "missed", "missed_told", "unseen", "untold", "false_alarms", "unsure"}
MARGIN = 0.2  # seconds between what is counted and its surroundings
CLOCK_STEP = 0.0005  # seconds that the wall clock may go astray in a run, all of whose stamps are the wall clock's

TEACH = """\
Measures how far each peer's figures are from what happened. The witness is the target farm, which answers each request
after --delay milliseconds and writes down, on the clock that all processes of a machine share, when the kernel had the
request (SO_TIMESTAMPNS) and when the answer went out. What the farm itself was late is thereby in nobody's error.

  wait      | what the peer reports from the request sent to the answer's first byte, minus what the farm saw pass
            | between the arrival of the request and the answer; for peers that tell it: agent, blackbox, floor
  whole     | the same for what it reports from its start to the answer's head, connecting included (0.05 to 0.2 ms
            | here): for all peers, and the only figure that is alike for all
  arrival   | how far from the due time the request was at the farm, connecting included. Due is what the agent's record
            | says (scheduled_at); for Telegraf the clock's grid of intervals and the offset that it was given; for
            | aiohttp and floor an even grid; for blackbox, which has no schedule, the moment at which it was asked
  start     | how far from the due time it started by its own account: `arrival` is the witness of that
  missed    | due times without a request at the farm, and in brackets those that the peer itself reports as missed
  unseen    | checks that are reported as up and that the farm never saw; untold: seen, and never reported
  false     | checks reported as down, though the farm answers always
  burst     | the most requests within any 10 ms, and in brackets what the peer's own due times make
  waited    | how much of the time its threads could have run and did not (/proc/PID/task/*/schedstat), waiting for each
            | other or for others: in a round in which that is much, errors are the machine's rather than the peer's

Errors are sizes, without their sign, in milliseconds: p50 and p99. Medians of the rounds; counts are sums of all.
`floor` is a loop of C that makes only the system calls: what no program goes below on this machine, now."""


class Plan(NamedTuple):
    """What to run: each of `peers` in turn, `rounds` times, for `seconds` each, `rate` checks a second."""

    rate: int
    delay_ms: float
    peers: Sequence[Peer]
    rounds: int
    seconds: float
    broker: str | None


def measure(plan: Plan) -> dict[str, Any]:
    """Every peer's figures; errors are medians of the rounds, counts their sums."""
    rounds: dict[str, list[dict[str, float | None]]] = {peer.name: [] for peer in plan.peers}
    with (
        tempfile.TemporaryDirectory(prefix="uptime-agent-bench-") as directory,
        testbed(Path(directory), plan.broker) as bed,
        bed.farm(delay=plan.delay_ms / 1000) as sites,
    ):
        load = Load("http", sites.addresses, max(round(plan.rate * INTERVAL), 1), bed.broker, None)
        for number in range(plan.rounds):
            for peer in plan.peers:
                say(f"truth: {load.rate:g}/s, {plan.delay_ms:g} ms, round {number + 1} of {plan.rounds}, {peer.name}")
                rounds[peer.name].append(_one(peer, load, sites, bed, plan.seconds))
    return {
        "rate": load.rate,
        "delay_ms": plan.delay_ms,
        "peers": {name: _together(each) | {"rounds": each} for name, each in rounds.items()},
        "goals": GOALS,
    }


def _one(peer: Peer, load: Load, sites: Sites, bed: Testbed, seconds: float) -> dict[str, float | None]:
    """Figures of one round."""
    marks, file = bed.topic.marks(), bed.directory / "seen.json"
    intervals = max(round(seconds / load.interval), 1)
    with peer.run(load, bed.directory, bed.on, report=True) as running:
        settle(sites, load.rate, running.process)
        clock = time.time() - time.monotonic()
        sites.log(file)  # what was before does not count
        window = Window(time.time() + MARGIN, intervals * load.interval)
        whole = MARGIN + window.seconds + LONGEST + MARGIN
        waited = running.process.waited()
        time.sleep(whole)
        waited = (running.process.waited() - waited) / whole
    astray = time.time() - time.monotonic() - clock
    if abs(astray) > CLOCK_STEP:
        say(f"truth: the wall clock went astray by {astray * 1000:.1f} ms in this round")
    # It was stopped in order: all that it has to tell is told.
    sites.log(file)
    seen = [Seen(*one) for one in json.loads(file.read_text())]
    records = bed.topic.since(marks) if peer.records else []
    found = figures(peer.told(running, load, records), seen, window, load.targets * intervals)
    return found | {"waited": waited, "clock_astray_ms": astray * 1000}


def _together(rounds: list[dict[str, float | None]]) -> dict[str, float | None]:
    together: dict[str, float | None] = {}
    for figure in rounds[0]:
        values = [value for one in rounds if (value := one[figure]) is not None]
        how = sum if figure in COUNTS else statistics.median
        together[figure] = round(how(values), 4) if values else None
    return together
