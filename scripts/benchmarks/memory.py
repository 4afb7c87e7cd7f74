"""What the agent holds in memory: by the number of targets, for a connection in flight, and import by import."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import Agent, Load, Peer, agent_config
from benchmarks.processes import Process, part
from benchmarks.report import say
from benchmarks.testbed import Sites, Testbed, first_check, testbed

# What this project wants to be: RSS in MiB at so many targets.
GOALS = {100: 50.0, 10_000: 95.0}
SAMPLES = 5

TEACH = """\
Measures resident memory (RSS, which includes what is shared with other processes), in MiB.

  targets     | the agent with so many HTTP targets, each once in --interval seconds, after a whole interval since its
              | first check: the median of the last seconds. `peak` is the most since its start (VmHWM). With --peers,
              | those as well
  in flight   | --in-flight targets whose farm takes each request and never answers, so that nearly all of them are
              | waited for at any time, minus the same number of targets that answer at once; divided by the connections
              | that were open. HTTPS ones have shaken hands
  imports     | what each package that `run` imports adds, in a process that does run: its own, without what it imports
              | itself, in the order of the first import. The rest came while it ran: configuration, contexts, Kafka"""


class Plan(NamedTuple):
    """What to run."""

    targets: Sequence[int]
    interval: float
    in_flight: int
    in_flight_interval: float
    peers: Sequence[Peer]
    seconds: float  # over which the samples are spread
    broker: str | None


def measure(plan: Plan) -> dict[str, Any]:
    """Entries by number of targets, by scheme, and by package."""
    with (
        tempfile.TemporaryDirectory(prefix="uptime-agent-bench-") as directory,
        testbed(Path(directory), plan.broker) as bed,
    ):
        return {
            "interval": plan.interval,
            "targets": _by_targets(plan, bed) if plan.targets else [],
            "in_flight": _in_flight(plan, bed) if plan.in_flight else [],
            "imports": _imports(bed, plan.seconds),
            "goals": GOALS,
        }


def _by_targets(plan: Plan, bed: Testbed) -> list[dict[str, Any]]:
    found = []
    with bed.farm() as sites:
        for targets in plan.targets:
            timeout = min(plan.interval, 10.0)
            load = Load("http", sites.addresses, targets, bed.broker, None, plan.interval, timeout)
            for peer in plan.peers:
                whole = plan.interval + plan.seconds
                say(f"memory: {targets} targets every {plan.interval:g} s, {peer.name}; takes {whole:g} s")
                with peer.run(load, bed.directory, bed.on) as running:
                    first_check(sites, running.process)
                    before = sites.count().answers
                    time.sleep(plan.interval)
                    rss, _ = _median(running.process, sites, plan.seconds)
                    seen = sites.count().answers - before
                    found.append(
                        {
                            "targets": targets,
                            "peer": peer.name,
                            "rss_mib": rss,
                            "peak_mib": running.process.peak(),
                            "rate": seen / whole,
                        }
                    )
    return found


def _in_flight(plan: Plan, bed: Testbed) -> list[dict[str, Any]]:
    found = []
    for scheme in ("http", "https"):
        rss, flying = {}, 0.0
        for delay in (0.0, -1.0):
            with bed.farm(scheme, delay) as sites:
                ca = bed.ca if scheme == "https" else None
                interval = plan.in_flight_interval
                load = Load(scheme, sites.addresses, plan.in_flight, bed.broker, ca, interval, interval)
                say(f"memory: {plan.in_flight} {scheme} targets that {'never answer' if delay else 'answer at once'}")
                with Agent().run(load, bed.directory, bed.on) as running:
                    first_check(sites, running.process)
                    time.sleep(interval * 1.2)
                    rss[delay], flying = _median(running.process, sites, plan.seconds)
        found.append(
            {
                "scheme": scheme,
                "targets": plan.in_flight,
                "open": flying,
                "answered_mib": rss[0.0],
                "silent_mib": rss[-1.0],
                "kib_a_connection": (rss[-1.0] - rss[0.0]) * 1024 / max(flying, 1.0),
            }
        )
    return found


def _median(process: Process, sites: Sites, seconds: float) -> tuple[float, float]:
    """Of the samples: RSS in MiB, and open connections at the farm."""
    rss, flying = [], []
    for _ in range(SAMPLES):
        time.sleep(seconds / SAMPLES)
        process.check()
        rss.append(process.rss())
        flying.append(sites.count().open)
    return statistics.median(rss), statistics.median(flying)


def _imports(bed: Testbed, seconds: float) -> dict[str, Any]:
    say("memory: import by import")
    config, file = bed.directory / "config.yaml", bed.directory / "imports.json"
    with bed.farm() as sites:
        config.write_text(agent_config(Load("http", sites.addresses, 100, bed.broker, None), bed.directory))
        with part("imports", file, "run", "--config", config, on=bed.on.measured, directory=bed.directory) as process:
            first_check(sites, process)
            time.sleep(seconds)
            process.check()
    found: dict[str, Any] = json.loads(file.read_text())
    return found
