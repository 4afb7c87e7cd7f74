"""What the spool costs: CPU and flash of a record, the replay of a backlog, and a large one's memory and start."""

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import flash
from benchmarks.farm import Seen
from benchmarks.peers import Agent, Load, Running, free_address
from benchmarks.processes import BenchError, Process, cores, part
from benchmarks.report import say
from benchmarks.testbed import Sites, Testbed, first_check, settle, testbed
from benchmarks.witness import percentile

# What this project wants to be.
GOALS = {"cpu_us": 5.0, "up": 1.0, "away": 64.0, "replay": 50_000.0, "rss_mib": 65.0, "start": 2.0}
WAYS = {"without": "deque", "with": "spool", "volatile": "spool"}
FLASHES = {"up": (None, False), "up, volatile": (None, True), "away": (0.0, False)}  # lost after; volatile directory
VOLATILE = Path("/dev/shm")
REPLAY_BEGINS = 20.0  # seconds from the first check: it begins at random within ten

TEACH = """\
Measures what the queue on disk costs. Records are the agent's own, of checks with and without TLS.

  CPU      | of a record through the spool, over that in a plain deque that is acknowledged a tick later: written,
           | taken, acknowledged, unlinked, in ticks of 250 ms, in turn; median of the rounds. `volatile`: with a
           | directory in memory for what is young (systemd's RuntimeDirectory=)
  flash    | what the kernel writes to an ext4 file system of its own on a loop device, its journal included, for a
           | record (/sys/block/*/stat, after a sync), over what it writes for a spool that opens, closes, and has no
           | records between; the broker up, or away from the beginning. All rates at the same time, each on its own,
           | for --flash-seconds (ext4 commits each 5 s). As root
  replay   | records/s of a backlog: through the spool into nothing; and by the agent itself, on one core, into a broker
           | on another, while it makes --live checks a second. `late`: how much later than at its best a target's
           | request was at the farm, p50 and p99, beside the same agent without backlog
  backlog  | RSS of the agent with --backlog MiB on disk, broker away, and seconds from the start of its process to its
           | first check, in turn with one that has none; the files are out of the page cache before each start

One start of the agent more goes before, and does not count."""


class Plan(NamedTuple):
    """What to run."""

    rates: Sequence[int]
    flash_rates: Sequence[int]
    flash_seconds: float
    backlog_mib: float
    live: int
    rounds: int
    seconds: float


def measure(plan: Plan) -> dict[str, Any]:
    """Entries by what was measured; an empty one was not asked for, or cannot be had here."""
    with (
        tempfile.TemporaryDirectory(prefix="uptime-agent-bench-") as name,
        tempfile.TemporaryDirectory(prefix="uptime-agent-bench-", dir=VOLATILE) as volatile,
    ):
        directory = Path(name)
        found: dict[str, Any] = {"goals": GOALS, "absent": {}, "cpu": [], "flash": [], "replay": {}, "backlog": {}}
        found["cpu"] = [_cpu(plan, rate, directory, Path(volatile)) for rate in plan.rates]
        if plan.flash_rates and (way := flash.absent()) is not None:
            found["absent"]["flash"] = way
        elif plan.flash_rates:
            found["flash"] = _flash(plan, directory, Path(volatile))
        if plan.backlog_mib:
            backlog = directory / "backlog"
            say(f"spool: making a backlog of {plan.backlog_mib:g} MiB")
            made = _spooled(
                {"way": "make", "directory": str(backlog), "bytes": plan.backlog_mib * (1 << 20)}, directory
            )
            with testbed(directory, None) as bed, bed.farm() as sites:
                found["backlog"] = made | _backlog(plan, backlog, sites, bed)
                nothing = _into_nothing(backlog, int(made["records"]), directory)
                found["replay"] = nothing | _replay(plan, backlog, sites, bed)
    return found


def _spooled(plan: dict[str, Any], directory: Path) -> dict[str, float]:
    """What `spooled.py` found."""
    with _spooling(plan, directory, "plan") as process:
        found: dict[str, float] = process.ask()
        return found


def _spooling(plan: dict[str, Any], directory: Path, name: str) -> contextlib.AbstractContextManager[Process]:
    file = directory / f"{name}.json"
    file.write_text(json.dumps(plan))
    return part("spooled", file, on=cores().measured, directory=directory, talks=True)


def _cpu(plan: Plan, rate: int, directory: Path, volatile: Path) -> dict[str, Any]:
    rounds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(plan.rounds):
        for name, way in WAYS.items():
            say(f"spool: CPU at {rate}/s, round {number + 1} of {plan.rounds}, {name}")
            asked = {"way": way, "rate": rate, "seconds": plan.seconds, "directory": str(directory / "cpu")}
            asked |= {"volatile": str(volatile / "cpu")} if name == "volatile" else {}
            found = _spooled(asked, directory)
            rounds[name].append(found["cpu"] / found["records"] * 1e6)
    over = {
        name: statistics.median(a - b for a, b in zip(each, rounds["without"], strict=True))
        for name, each in rounds.items()
    }
    return {
        "rate": rate,
        "bytes_a_record": found["bytes_a_record"],
        "ways": {
            name: {"cpu_us": statistics.median(each), "over_us": over[name], "rounds": [round(one, 2) for one in each]}
            for name, each in rounds.items()
        },
    }


def _flash(plan: Plan, directory: Path, volatile: Path) -> list[dict[str, Any]]:
    flash.alone()
    cells = [("up", 0), *((name, rate) for rate in plan.flash_rates for name in FLASHES)]
    say(f"spool: flash, {len(cells)} file systems at the same time; takes {plan.flash_seconds + 5:g} s")
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(flash.flash(directory, f"flash{number}")) for number in range(len(cells))]
        before = [disk.written() for disk in disks]
        running = []
        for number, (name, rate) in enumerate(cells):
            lost_after, with_volatile = FLASHES[name]
            asked = {"way": "spool", "rate": rate, "seconds": plan.flash_seconds - 2.0, "lost_after": lost_after}
            asked |= {"directory": str(disks[number].directory / "spool")}
            asked |= {"volatile": str(volatile / f"flash{number}")} if with_volatile else {}
            running.append(stack.enter_context(_spooling(asked, directory, f"flash{number}")))
        records = [process.ask()["all"] for process in running]
        written = [disk.written() - each for disk, each in zip(disks, before, strict=True)]
        for process in running:
            process.end()
    found = []
    for (name, rate), size, count in list(zip(cells, written, records, strict=True))[1:]:
        over = size - written[0]
        found.append({"broker": name, "rate": rate, "bytes": over / count, "bytes_a_second": over / count * rate})
    return found


def _into_nothing(backlog: Path, records: int, directory: Path) -> dict[str, float]:
    say("spool: replay into nothing")
    count = min(records // 4, 1_000_000)  # which leaves some for the agent
    found = _spooled({"way": "replay", "directory": str(backlog), "records": count}, directory)
    return {"nothing": found["records"] / found["seconds"], "nothing_cpu_us": found["cpu"] / found["records"] * 1e6}


@contextlib.contextmanager
def _agent(plan: Plan, spool: Path, broker: str, sites: Sites, bed: Testbed) -> Iterator[Running]:
    _forget_pages(spool)
    load = Load("http", sites.addresses, plan.live, broker, None, spool=spool)
    with Agent().run(load, bed.directory, bed.on) as running:
        yield running


def _forget_pages(spool: Path) -> None:
    """As after a boot: nothing of it is in memory."""
    for file in spool.iterdir() if spool.exists() else ():
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _backlog(plan: Plan, backlog: Path, sites: Sites, bed: Testbed) -> dict[str, Any]:
    empty, away = bed.directory / "empty", free_address()
    rounds: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for number in range(plan.rounds + 1):
        for name, spool in (("with", backlog), ("without", empty)):
            say(f"spool: {name} backlog, {f'round {number} of {plan.rounds}' if number else 'once before'}")
            log = bed.directory / "seen.json"
            sites.log(log)
            with _agent(plan, spool, away, sites, bed) as running:
                first_check(sites, running.process)
                time.sleep(plan.seconds if number else 0)
                rss, peak = running.process.rss(), running.process.peak()
            sites.log(log)
            first = min(Seen(*one).accepted for one in json.loads(log.read_text()))
            if number:
                rounds[name].append({"start": first - running.process.started, "rss_mib": rss, "peak_mib": peak})
    return {
        name: {figure: statistics.median(one[figure] for one in each) for figure in each[0]} | {"rounds": each}
        for name, each in rounds.items()
    }


def _replay(plan: Plan, backlog: Path, sites: Sites, bed: Testbed) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for number in range(plan.rounds):
        for name, spool in (("with", backlog), ("without", bed.directory / "empty")):
            say(f"spool: replay, round {number + 1} of {plan.rounds}, {name} backlog")
            with _agent(plan, spool, bed.broker, sites, bed) as running:
                settle(sites, plan.live, running.process)
                if name == "with":
                    _wait_for_replay(plan, running.process, bed)
                rounds[name].append(_window(plan, running.process, sites, bed))
    return {
        name: {figure: statistics.median(one[figure] for one in each) for figure in each[0]} | {"rounds": each}
        for name, each in rounds.items()
    }


def _wait_for_replay(plan: Plan, process: Process, bed: Testbed) -> None:
    limit = time.monotonic() + REPLAY_BEGINS
    before = bed.topic.records()
    while bed.topic.records() - before < 20 * plan.live:
        process.check()
        if time.monotonic() > limit:
            raise BenchError(f"the agent does not send its backlog:\n{process.tail()}")
        before = bed.topic.records()
        time.sleep(0.5)
    time.sleep(1)  # it grows


def _window(plan: Plan, process: Process, sites: Sites, bed: Testbed) -> dict[str, float]:
    log = bed.directory / "seen.json"
    sites.log(log)
    begun, records, used = time.monotonic(), bed.topic.records(), process.usage().total
    time.sleep(plan.seconds)
    used, took = process.usage().total - used, time.monotonic() - begun
    records = bed.topic.records() - records
    sites.log(log)
    late = _lateness([Seen(*one) for one in json.loads(log.read_text())])
    return {
        "records": records / took,
        "cpu": used / took,
        "late_p50": percentile(late, 0.50),
        "late_p99": percentile(late, 0.99),
        "rss_mib": process.rss(),
        "peak_mib": process.peak(),
    }


def _lateness(seen: Sequence[Seen]) -> list[float]:
    """How much later than at its best within its interval each target's request came, in ms, sorted."""
    offsets: dict[int, list[float]] = defaultdict(list)
    for one in seen:
        offsets[one.target].append(one.arrived)
    late = []
    for arrivals in offsets.values():
        # Around the first, so that no target's moment lies at the interval's end.
        apart = [(arrived - arrivals[0] + 0.5) % 1.0 for arrived in arrivals]
        late += [(each - min(apart)) * 1000 for each in apart]
    return sorted(late)
