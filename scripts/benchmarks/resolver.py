"""What a lookup costs and how true its time is: the agent's resolver beside getaddrinfo in threads and aiodns."""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.nameserver import Noted
from benchmarks.processes import BenchError, Cores, Process, cores, part
from benchmarks.report import say
from benchmarks.resolver_client import PEERS
from benchmarks.witness import percentile

ADDRESS = "127.53.0.1"  # of its own, so that port 53 is free there
SETTLE = 1.0  # seconds after the first question until it counts
FIRST_SECONDS = 10.0
# getaddrinfo can be told neither a port nor another file: it sees ours in a mount namespace of its own.
AS_ETC = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"']
WAY = "run it as root: getaddrinfo asks port 53, of the server that /etc/resolv.conf names, only"

TEACH = """\
Measures the lookup of a name's A and AAAA records, each name once, so that nobody's cache is in it, against a DNS
server on loopback that answers after --delay milliseconds. Each peer runs alone on one core, at an equal rate, in turn.

  µs/lookup | CPU of all threads of the process over the names that the server was asked for
  ratio     | the agent's over the peer's, of one round each; the median of the rounds is told
  error     | what the lookup took by the caller's clock minus what the server saw pass between the first question's
            | arrival (SO_TIMESTAMPNS) and the last answer's departure: p50 and p99 in ms
  questions | that the server got for a name
  failed    | lookups without an address

The cost of calling at that rate, without a lookup, is in all of them alike. getaddrinfo needs root; it has 64 threads,
where asyncio by itself gives it as many as the machine has cores, and four more."""


class Plan(NamedTuple):
    """What to run: each peer in turn, `rounds` times, for `seconds` each, at each rate."""

    rates: Sequence[int]
    delay_ms: float
    rounds: int
    seconds: float


class _Bed(NamedTuple):
    directory: Path
    on: Cores
    server: Process
    port: int

    def counts(self) -> tuple[int, int]:
        names, questions = self.server.ask("count")
        return names, questions


def absent(port: int = 53) -> dict[str, str]:
    """The peers that cannot be measured here, and why."""
    able = os.geteuid() == 0 and port == 53 and shutil.which("unshare")
    return {} if able else {"getaddrinfo": WAY}


def measure(plan: Plan) -> dict[str, Any]:
    """One entry for each rate, with every peer's figures and the agent's ratios over them."""
    on = cores()
    with tempfile.TemporaryDirectory(prefix="uptime-agent-bench-") as name:
        directory = Path(name)
        delay = plan.delay_ms / 1000
        with part("nameserver", ADDRESS, delay, on=on.others, directory=directory, talks=True) as server:
            bed = _Bed(directory, on, server, server.ask())
            (directory / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
            missing = absent(bed.port)
            peers = [peer for peer in PEERS if peer not in missing]
            rates = [_at_rate(plan, rate, peers, bed) for rate in plan.rates]
    return {"delay_ms": plan.delay_ms, "rates": rates, "absent": missing}


def _at_rate(plan: Plan, rate: int, peers: Sequence[str], bed: _Bed) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
    for number in range(plan.rounds):
        for peer in peers:
            say(f"resolver: {rate}/s, {plan.delay_ms:g} ms, round {number + 1} of {plan.rounds}, {peer}")
            rounds[peer].append(_one(peer, f"{peer}{number}-{rate}", rate, plan.seconds, bed))
    found = {
        peer: {figure: round(statistics.median(one[figure] for one in each), 3) for figure in each[0]}
        | {"rounds_cpu_us": [round(one["cpu_us"], 1) for one in each]}
        for peer, each in rounds.items()
    }
    ratios = {
        peer: statistics.median(a["cpu_us"] / b["cpu_us"] for a, b in zip(rounds["agent"], each, strict=True))
        for peer, each in rounds.items()
        if peer != "agent"
    }
    return {"rate": rate, "peers": found, "ratios": ratios}


def _one(peer: str, mark: str, rate: int, seconds: float, bed: _Bed) -> dict[str, float]:
    plan, report, log = (bed.directory / name for name in ("resolver.json", "lookups.json", "noted.json"))
    conf = bed.directory / "resolv.conf"
    asked = {"address": ADDRESS, "port": bed.port, "resolv_conf": str(conf)}
    plan.write_text(json.dumps({"peer": peer, "mark": mark, "rate": rate, "report": str(report), **asked}))
    before = [*AS_ETC, str(conf)] if peer == "getaddrinfo" else []
    bed.server.ask(f"log {log}")  # what was before does not count
    start = bed.counts()
    with part("resolver_client", plan, on=bed.on.measured, directory=bed.directory, before=before) as process:
        _first_question(bed, process, start[0])
        time.sleep(SETTLE)
        used, names = process.usage().total, bed.counts()
        time.sleep(seconds)
        used, end = process.usage().total - used, bed.counts()
        rss = process.rss()
    bed.server.ask(f"log {log}")
    noted = {name: Noted(*each) for name, each in json.loads(log.read_text()).items()}
    took: dict[str, float | None] = json.loads(report.read_text())
    errors = sorted(
        abs(lookup - (noted[name].answered - noted[name].arrived)) * 1000
        for name, lookup in took.items()
        if lookup is not None and name in noted
    )
    if not errors:
        raise BenchError(f"{peer} found no address of {len(took)} names")
    return {
        "cpu_us": used / max(end[0] - names[0], 1) * 1e6,
        "rate": (end[0] - names[0]) / seconds,
        "error_p50": percentile(errors, 0.50),
        "error_p99": percentile(errors, 0.99),
        "questions": (end[1] - names[1]) / max(end[0] - names[0], 1),
        "failed": sum(lookup is None for lookup in took.values()),
        "rss_mib": rss,
    }


def _first_question(bed: _Bed, process: Process, names: int) -> None:
    limit = time.monotonic() + FIRST_SECONDS
    while bed.counts()[0] == names:
        process.check()
        if time.monotonic() > limit:
            raise BenchError(f"{process.popen.args!r} asks nothing:\n{process.tail()}")
        time.sleep(0.05)
