"""Measuring once, for a person: the path of `run` up to the record, without schedule and delivery."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop

from agent.config import Config, load, of_url
from agent.config.model import Target
from agent.device.clock import Clock, ClockState, boottime
from agent.device.identity import Run
from agent.inquiry.inquiry import Inquiry
from agent.probers import prober_of
from agent.probers.resolver import Resolver
from agent.record import Recorder
from agent.schedule import Measurement
from agent.verdict.found import Ruling, Status

AT_ONCE = 50  # probes in flight; what comes beyond waits for its turn


def choose(path: Path | None, wanted: str | None) -> Config:
    """The configuration at `path`, its targets narrowed to `wanted`: an exact id, else a URL; None is all enabled ones.

    Without a path the location is `local`. Raises `ConfigError`, and ValueError for what is neither an id nor a URL.
    """
    if path is None:
        return of_url(wanted or "")
    config = load(path)
    chosen = tuple(target for target in config.targets if target.id == wanted or (wanted is None and target.enabled))
    if wanted is not None and not chosen:
        try:
            chosen = of_url(wanted).targets
        except ValueError as error:
            raise ValueError(f"{path} has no target with this id, and {error}") from None
    return msgspec.structs.replace(config, targets=chosen)


def measure(config: Config) -> Iterator[tuple[Status, bytes]]:
    """Measures each target once and yields verdict and record, in the order of the configuration."""
    clock = Clock(config.clock.synchronized)
    recorder = Recorder(config, Run(0, secrets.token_hex(8)), clock)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the daemon does: the same figures
        settled = runner.run(_measure_all(config, clock))
    for target in config.targets:
        measurement, state, ruling = settled[target.id]
        yield ruling.status, recorder.measured(measurement, ruling, state).value


async def _measure_all(config: Config, clock: Clock) -> dict[str, tuple[Measurement, ClockState, Ruling]]:
    """By target id. Each target's answer is evidence for the others."""
    resolver, turn = Resolver(), asyncio.Semaphore(AT_ONCE)
    settled: dict[str, tuple[Measurement, ClockState, Ruling]] = {}

    def keep(measurement: Measurement, clock: ClockState, ruling: Ruling) -> None:
        settled[measurement.target.id] = measurement, clock, ruling

    inquiry = Inquiry(keep, resolver)
    inquiry.configure(config)

    async def once(target: Target) -> None:
        prober = prober_of(target, resolver)
        async with turn:
            started, wall = boottime(), time.time()
            result = await prober.probe(time.monotonic() + target.timeout)
        inquiry.take(Measurement(target, prober, started, started, wall, result), boottime(), clock.state())

    await asyncio.gather(*(once(target) for target in config.targets))
    await inquiry.until_all_are_settled()
    inquiry.end()
    return settled
