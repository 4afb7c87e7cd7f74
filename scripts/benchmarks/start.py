"""How long the agent takes from the start of its process to its first measurement."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.farm import Seen
from benchmarks.peers import Load, Peer
from benchmarks.report import say
from benchmarks.testbed import Sites, Testbed, first_check, testbed

GOAL = 0.6  # seconds, with a hundred targets

TEACH = """\
Measures the seconds from the start of a process to its first measurement. The clock starts before fork(2), so Python's
own start is in it; it stops when the farm takes the first connection, so nobody's word is needed for it.

Each target is due at a place of its own within its interval, so with --targets targets every second the first is due
some milliseconds after the agent is ready: with few, waiting for it is much of the figure. One start more
goes before and does not count, because it may have to compile Python's modules."""


class Plan(NamedTuple):
    """What to run: each of `peers` in turn, `rounds` times."""

    targets: int
    peers: Sequence[Peer]
    rounds: int
    broker: str | None


def measure(plan: Plan) -> dict[str, Any]:
    """Seconds, by peer: the median and each."""
    rounds: dict[str, list[float]] = {peer.name: [] for peer in plan.peers}
    with (
        tempfile.TemporaryDirectory(prefix="uptime-agent-bench-") as directory,
        testbed(Path(directory), plan.broker) as bed,
        bed.farm() as sites,
    ):
        load = Load("http", sites.addresses, plan.targets, bed.broker, None)
        for number in range(plan.rounds + 1):
            for peer in plan.peers:
                told = f"round {number} of {plan.rounds}" if number else "once before"
                say(f"start: {plan.targets} targets, {told}, {peer.name}")
                took = _one(peer, load, sites, bed)
                if number:
                    rounds[peer.name].append(took)
    peers = {
        name: {"seconds": statistics.median(each), "rounds": [round(one, 4) for one in each]}
        for name, each in rounds.items()
    }
    return {"targets": plan.targets, "peers": peers, "goal": GOAL}


def _one(peer: Peer, load: Load, sites: Sites, bed: Testbed) -> float:
    file = bed.directory / "seen.json"
    sites.log(file)  # what was before does not count
    with peer.run(load, bed.directory, bed.on) as running:
        first_check(sites, running.process)
    sites.log(file)
    return min(Seen(*one).accepted for one in json.loads(file.read_text())) - running.process.started
