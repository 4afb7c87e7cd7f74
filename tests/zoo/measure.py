"""`python -m tests.zoo.measure asyncio|uvloop`: measures targets as the agent does, some rounds of each.

Their options are read from standard input, as JSON; what was seen is printed as JSON, too: `Report`. Schedule, probers,
verdicts and records are the agent's own. The process is this one's alone, so that it can be told what measuring takes.
"""

import asyncio
import gc
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from agent.config.model import Agent, Config, Expect, Kafka, Location, Target, TlsOptions
from agent.device.clock import Clock, ClockState, boottime
from agent.device.identity import Run
from agent.inquiry.inquiry import Inquiry
from agent.probers import poll, prober_of
from agent.probers.resolver import Resolver
from agent.probers.result import Attribution
from agent.record import Recorder, ResultRecord
from agent.schedule import STALL, Measurement, Missed, Scheduler
from agent.verdict.found import Ruling
from tests.zoo.behaviour import INTERVAL, PATIENCE

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TICK = 0.01  # seconds between two looks at the processor time that the loop took
ROUNDS = 2  # times `INTERVAL` that each target is measured for, not counting what this machine spoiled; once at least
MOST = 40.0  # seconds until it is given up


class Observed(msgspec.Struct):
    """A record, and whom the prober suspected."""

    record: ResultRecord
    suspected: Attribution | None

    @property
    def spoiled(self) -> bool:
        """Whether this machine stood still meanwhile, so that the agent had to say so, and could blame nobody."""
        if self.record.stall_ms is msgspec.UNSET:
            return False
        told = self.record.error is not None and "this device stood still" in self.record.error.message
        return told or self.record.stall_ms > STALL * 1000


class Report(msgspec.Struct):
    """What a run saw.

    `missed`: the reason of each tick that was not measured, by target. `memory`: bytes that the resident set grew
    by at its largest. `files`, `tasks`: before and after. `longest_turn`: seconds of processor time.
    """

    observed: list[Observed]
    missed: dict[str, str]
    memory: int
    files: tuple[int, int]
    tasks: tuple[int, int]
    longest_turn: float


class Observer:
    """The `Outcome` of a schedule: each result judged and recorded."""

    def __init__(self, resolver: Resolver, targets: list[Target]) -> None:
        self._written = tempfile.TemporaryFile()  # noqa: SIM115  (not in memory, whose growth is told)
        self.missing: dict[str, str] = {}
        self._left = {target.id: max(int(ROUNDS * INTERVAL / target.interval), 1) for target in targets}  # measurements
        config = Config(Agent("zoo"), Location("here"), "/nowhere", Kafka(()))
        self._clock = Clock("yes")
        self._recorder = Recorder(config, Run(1, secrets.token_hex(8)), self._clock)
        self.inquiry = Inquiry(self._settled, resolver)
        self.inquiry.configure(config)

    def measured(self, measurement: Measurement) -> None:
        self.inquiry.take(measurement, boottime(), self._clock.state())

    def missed(self, missed: Missed) -> None:
        self.missing[missed.target.id] = missed.reason

    def _settled(self, measurement: Measurement, clock: ClockState, ruling: Ruling) -> None:
        record = self._recorder.measured(measurement, ruling, clock).value
        suspected = None if measurement.result.error is None else measurement.result.error.attribution
        observed = Observed(msgspec.json.decode(record, type=ResultRecord), suspected)
        self._written.write(msgspec.json.encode(observed) + b"\n")
        if not observed.spoiled:
            self._left[measurement.target.id] -= 1

    def observed(self) -> list[Observed]:
        self._written.seek(0)
        return [msgspec.json.decode(line, type=Observed) for line in self._written]

    @property
    def is_done(self) -> bool:
        return max(self._left.values()) <= 0


def target_of(options: dict[str, Any]) -> Target:
    for name, kind in (("tls", TlsOptions), ("expect", Expect)):
        if name in options:
            options[name] = msgspec.convert(options[name], kind)
    return Target(**{"shown_url": options["url"], **options})


async def measure(targets: list[Target]) -> Report:
    resolver = Resolver()
    observer = Observer(resolver, targets)
    probers = {target.id: prober_of(target, resolver) for target in targets}
    poll.running()  # made once, shared by all measurements, and stays
    (await asyncio.start_server(print, "127.0.0.1", 0)).close()  # so does a descriptor that uvloop has for all streams
    await asyncio.sleep(0.1)
    files, tasks, resident = _files(), len(asyncio.all_tasks()), _resident()
    scheduler = Scheduler("zoo", observer)
    scheduler.reconcile(targets, lambda target: probers[target.id])
    longest_turn = await _until_done(observer)
    await scheduler.stop(grace=PATIENCE)
    await observer.inquiry.until_all_are_settled()
    observer.inquiry.end()
    await asyncio.sleep(0.1)  # whoever was still asked hears that
    grown = _largest() - resident
    return Report(
        observer.observed(), observer.missing, grown, (files, _files()), (tasks, len(asyncio.all_tasks())), longest_turn
    )


async def _until_done(observer: Observer) -> float:
    """The longest time that this thread worked without a pause; on a busy machine the clock would not tell it."""
    end, longest, before = time.monotonic() + MOST, 0.0, time.thread_time()
    while not observer.is_done and time.monotonic() < end:
        await asyncio.sleep(TICK)
        now = time.thread_time()
        longest, before = max(longest, now - before), now
    return longest


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident() -> int:
    """The resident set in bytes; its largest is counted from here on (proc(5), clear_refs)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _largest()


def _largest() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    those = [target_of(options) for options in msgspec.json.decode(sys.stdin.buffer.read())]
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
        sys.stdout.buffer.write(msgspec.json.encode(runner.run(measure(those))))
