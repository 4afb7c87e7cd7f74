"""What came of each tick, on its way to the spool: taken at once; judged, recorded and appended in batches.

When one probe ends others are under way, and whatever is done then is added to what they are found to take. So a
result is only kept at that moment, with all that its judgement depends on. The work is done for many at once, which
is also cheaper: whenever the delivery asks, or when `BATCH` are kept.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Any, NamedTuple

from agent.device.clock import Clock, ClockState, boottime
from agent.inquiry.inquiry import Inquiry
from agent.inquiry.way_out import News
from agent.probers.resolver import Resolver
from agent.record import Recorder
from agent.schedule import Measurement, Missed
from agent.spool.spool import Spool
from agent.verdict.found import Ruling

log = logging.getLogger(__name__)

BATCH = 32  # kept at most: half a millisecond of the loop
SOON_SECONDS = 0.2  # and so long when a failure is among them


class Verdict(NamedTuple):
    """The last of a target: `error` is its code, `wall` the wall clock when it was measured, or was to be."""

    status: str
    error: str | None
    wall: float
    duration_ms: float | None


class _Kept(NamedTuple):
    """`at`: seconds since boot, and `clock`: the state of the wall clock, when it was told."""

    told: Measurement | Missed
    at: float
    clock: ClockState


class Results:
    """Takes what came of each tick, and counts for the heartbeat."""

    def __init__(
        self, recorder: Recorder, clock: Clock, spool: Spool, resolver: Resolver | None = None, news: News | None = None
    ) -> None:
        self._recorder, self._clock, self._spool = recorder, clock, spool
        self.inquiry = Inquiry(self._settled, resolver, news)
        self._kept: list[_Kept] = []
        self.verdicts: dict[str, Verdict] = {}  # the last, by target id
        self._soon: asyncio.TimerHandle | None = None
        self._since = boottime()
        self._checks = self._missed = 0
        self._lateness_ms: float | None = None

    def measured(self, measurement: Measurement) -> None:
        """Takes a measurement."""
        self._keep(measurement)
        if measurement.result.error is not None and self._soon is None and self._kept:
            # However long the delivery's tick: what is looked at for its sake is to be seen as it was then.
            self._soon = asyncio.get_running_loop().call_later(SOON_SECONDS, self.settle)

    def missed(self, missed: Missed) -> None:
        """Takes ticks that were not measured."""
        self._keep(missed)

    def settle(self, *, end: bool = False) -> None:
        """Appends the records of all that was told so far, in the order in which it was; those that are doubtful later.

        `end`: these too, by what is known.
        """
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        kept, self._kept = self._kept, []
        for told, at, clock in kept:
            try:
                if isinstance(told, Measurement):
                    self.inquiry.take(told, at, clock)
                else:
                    self.inquiry.in_order(told.target.id, self._not_measured, told, clock)
            except Exception:  # a bug; it costs one record, and neither the others nor the delivery that asked
                extra = {"secrets_of": told.target}
                log.exception("%s: its result could not be recorded", told.target.id, extra=extra)
        if end:
            self.inquiry.end()
        else:
            self.inquiry.settle(boottime())

    def forget_others(self, target_ids: Collection[str]) -> None:
        """Keeps verdicts of these targets only."""
        self.verdicts = {each: verdict for each, verdict in self.verdicts.items() if each in target_ids}

    def since_last(self) -> dict[str, Any]:
        """The heartbeat's figures over the time since the last call, which this resets."""
        self.settle()
        now = boottime()
        figures = {
            "checks_per_second": round(self._checks / max(now - self._since, 0.001), 3),
            "missed": self._missed,
            "lateness_max_ms": None if self._lateness_ms is None else round(self._lateness_ms, 3),
        }
        self._since, self._checks, self._missed, self._lateness_ms = now, 0, 0, None
        return figures

    def _keep(self, told: Measurement | Missed) -> None:
        self._kept.append(_Kept(told, boottime(), self._clock.state()))
        if len(self._kept) >= BATCH:
            self.settle()

    def _not_measured(self, missed: Missed, clock: ClockState) -> None:
        self._spool.append(self._recorder.missed(missed, clock))
        self._missed += missed.ticks
        self.verdicts[missed.target.id] = Verdict("unknown", "not_measured", missed.wall, None)

    def _settled(self, measurement: Measurement, clock: ClockState, ruling: Ruling) -> None:
        self._spool.append(self._recorder.measured(measurement, ruling, clock))
        code = None if ruling.error is None else ruling.error.code
        duration = measurement.result.duration_ms
        self.verdicts[measurement.target.id] = Verdict(ruling.status, code, measurement.wall, duration)
        self._checks += 1
        lateness = (measurement.started - measurement.scheduled) * 1000
        self._lateness_ms = max(lateness, self._lateness_ms or 0.0)
