"""When each target is measured: due times, ticks that could not run, and reconciling with a new configuration.

Every target has its own grid of ticks: a stable hash of agent id and target id places it within the interval, so
that a thousand targets do not fire together, nor a thousand devices that were restarted together, and a restart or
reload changes nothing. Due times are counted on the boot clock; the wall clock only anchors the grid, once.
The scheduler is the one owner of a probe's deadline: it sets it, the prober obeys it.
"""

import asyncio
import hashlib
import heapq
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec

from agent.config.masking import Mask
from agent.config.model import Target
from agent.device.clock import boottime
from agent.probers.prober import Prober
from agent.probers.result import LONGEST_MESSAGE, Error, Phases, Result
from agent.timer import Timer

log = logging.getLogger(__name__)

# A tick that is later than this is not measured any more, which also bounds what runs at once after a stall.
LATEST = 1.0
# A prober that a tick finds at work beyond its deadline has this long to return before a later tick cancels it. From
# that tick on, and not from the deadline: after a stall of the loop even an obedient one had no turn to end in.
GRACE = 1.0
# A tick that finds the probe before it at its very deadline waits for it, this long at most, and looks each `LOOK`.
SETTLE, LOOK = 0.1, 0.005
# Probes in flight; ticks beyond wait for their turn, in the order in which they were due. Enough for a thousand a
# second that are all silent for 5 s.
MOST_IN_FLIGHT = 5_000
# Probes that are begun in one turn of the loop: what is under way has its turn before more is begun. Without it a
# device that is asked for more than it can do begins all of it, and all of it times out.
MOST_AT_ONCE = 50
# The loop stood still if it is this late. What the target did not do in that time is not the target's fault.
STALL = 0.25
NOTED_STALL = 0.05  # shorter ones are not noted
MOST_STALLS = 64  # that are remembered
# While a probe is in flight the loop looks this often whether it is late: what it sees of a stall is shorter by as much
# at most.
WATCH = 0.1
OVERLOAD = "this device was busy with other measurements until it was too late for this one"
# What a stall of this device can make of a target that is well: nothing came in time, or the target stopped waiting.
MADE_BY_STALLS = frozenset(
    {
        "dns_timeout",
        "connect_timeout",
        "tls_timeout",
        "http_timeout_send",
        "http_timeout_headers",
        "http_timeout_body",
        "connect_reset",
        "tls_handshake",
        "http_closed",
        "http_truncated",
        "icmp_timeout",
    }
)


class Measurement(NamedTuple):
    """A tick that was measured. `scheduled` and `started`: seconds since boot; `wall`: the wall clock at `started`.

    `stall`: the longest time, in seconds, that the event loop was seen to stand still meanwhile; 0 for none to note.
    """

    target: Target
    prober: Prober
    scheduled: float
    started: float
    wall: float
    result: Result
    stall: float = 0.0


class Missed(NamedTuple):
    """A row of `ticks` ticks that were not measured, the first due at `scheduled` (since boot), `wall` by the clock."""

    target: Target
    prober: Prober
    scheduled: float
    wall: float
    ticks: int
    reason: str


class Outcome(Protocol):
    """Who takes what came of each tick. Neither call may raise or block."""

    def measured(self, measurement: Measurement) -> None:
        """Takes a measurement."""

    def missed(self, missed: Missed) -> None:
        """Takes a row of ticks that were not measured."""


def phase_of(agent_id: str, target_id: str, interval: float) -> float:
    """Where in its interval a target is due, in seconds: `0 <= phase < interval`, the same on every start."""
    digest = hashlib.blake2b(f"{agent_id}\0{target_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * interval


class _Entry:
    """One running target. Its next tick is number `tick` of the grid `base + tick * interval` (seconds since boot)."""

    __slots__ = ("base", "current", "deadline", "overdue", "probe", "prober", "target", "tick", "waits")

    def __init__(self, target: Target, prober: Prober, base: float, after: float) -> None:
        self.target = target
        self.prober = prober
        self.base = base
        self.tick = math.floor((after - base) / target.interval) + 1
        self.current = True  # False: left the configuration; its place in the heap is void
        self.probe: asyncio.Task[None] | None = None
        self.deadline = 0.0
        self.overdue: float | None = None  # when a tick first found the probe beyond its deadline
        self.waits: float | None = None  # the tick, by its due time, that waits for its turn

    def due(self) -> float:
        return self.base + self.tick * self.target.interval


class Scheduler:
    """Runs the probers of all targets on time, on the loop it was made on."""

    def __init__(self, agent_id: str, outcome: Outcome, most: int = MOST_IN_FLIGHT) -> None:
        self._agent_id = agent_id
        self._outcome = outcome
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._wall_at_boot = time.time() - boottime()
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[float, int, _Entry]] = []  # due, a number that settles ties, entry
        self._pushed = 0
        self._timer = Timer(time.CLOCK_BOOTTIME, self._turn)
        self._in_flight: dict[asyncio.Task[None], tuple[_Entry, float]] = {}  # entry, scheduled
        self._waiting: deque[tuple[_Entry, float]] = deque()  # entry, scheduled
        self._begun = 0  # in this turn
        self._armed_for = math.inf  # when the next turn is to be
        self._stalls: deque[tuple[float, float]] = deque(maxlen=MOST_STALLS)  # when it was seen, how long

    def __len__(self) -> int:
        return len(self._entries)

    def late(self) -> float:
        """Seconds by which what is due has not been looked at: it makes no progress if they are many."""
        return max(boottime() - self._armed_for, 0.0)

    def reconcile(self, targets: Iterable[Target], prober_of: Callable[[Target], Prober]) -> None:
        """Makes the running targets equal to `targets`; those that did not change keep rhythm and probe in flight.

        `prober_of` is asked for new and changed targets only, and before anything is touched: when it raises, all
        runs on as it was. A probe in flight of a changed or removed target ends under its old options.
        """
        wanted = {target.id: target for target in targets if target.enabled}
        fresh = {
            target_id: prober_of(target)
            for target_id, target in wanted.items()
            if target_id not in self._entries or self._entries[target_id].target != target
        }
        # What is due by now is measured or told as it was configured; the new begins after that, and no tick is lost.
        now = self._turn()
        for target_id, entry in list(self._entries.items()):
            if target_id not in wanted or target_id in fresh:
                entry.current = False
                del self._entries[target_id]
        for target_id, prober in fresh.items():
            target = wanted[target_id]
            phase = phase_of(self._agent_id, target_id, target.interval)
            entry = _Entry(target, prober, phase - self._wall_at_boot % target.interval, now)
            self._entries[target_id] = entry
            self._push(entry)
        # Without this, edits that move targets about would leave their void places behind until each is due.
        self._heap = [place for place in self._heap if place[2].current]
        heapq.heapify(self._heap)
        self._arm()

    async def stop(self, grace: float) -> None:
        """Starts nothing more, gives what is in flight `grace` seconds, and records the rest as missed."""
        for entry in self._entries.values():
            entry.current = False
        self._entries.clear()
        self._heap.clear()
        while self._waiting:
            self._next_waiting(boottime(), "the agent was stopped before it was measured")
        if self._in_flight:
            self._arm()  # to the end it is watched whether the loop stands still
            _, left = await asyncio.wait(set(self._in_flight), timeout=grace)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=grace)
        self._armed_for = math.inf
        self._timer.close()

    def _push(self, entry: _Entry) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (entry.due(), self._pushed, entry))

    def _may_begin(self) -> bool:
        return len(self._in_flight) < self._most and self._begun < MOST_AT_ONCE

    def _arm(self) -> None:
        now = boottime()
        due = self._heap[0][0] if self._heap else math.inf
        if self._waiting and len(self._in_flight) < self._most:
            due = now
        self._armed_for = max(min(due, now + WATCH if self._in_flight else math.inf), now)
        self._timer.set(self._armed_for)

    def _turn(self) -> float:
        """Runs what is due, and sets the timer for what comes next; returns the time up to which that is."""
        now = boottime()
        if now - self._armed_for > NOTED_STALL:
            self._stalls.append((now, now - self._armed_for))
        self._begun = 0
        while self._waiting and self._may_begin():
            self._next_waiting(now)
        while self._heap and self._heap[0][0] <= now:
            entry = self._heap[0][2]
            if entry.current:
                try:
                    look = self._tick(entry, now)
                except Exception:  # a bug; it costs this target's tick, and not the measuring of all others
                    log.exception("%s: its tick failed", entry.target.id, extra={"secrets_of": entry.target})
                    look = now + entry.target.interval
                self._pushed += 1
                heapq.heapreplace(self._heap, (look, self._pushed, entry))
            else:
                heapq.heappop(self._heap)
        self._arm()
        return now

    def _tick(self, entry: _Entry, now: float) -> float:
        """Measures the newest tick that is due, unless it is too late for it; tells the ticks that were missed.

        Returns when to look at this target next.
        """
        if entry.waits is not None:
            self._missed(entry, entry.waits, 1, OVERLOAD)
            entry.waits = None
        first, interval = entry.due(), entry.target.interval
        newest = math.floor((now - first) / interval)  # ticks after the first that are due as well
        if (
            entry.probe is not None
            and not newest
            and now <= entry.deadline + SETTLE
            and first + SETTLE > entry.deadline
        ):
            return max(now, entry.deadline) + LOOK
        scheduled = first + newest * interval
        entry.tick += newest + 1
        missed, reason = newest, f"the agent was {now - first:.1f} s late: the device was busy or suspended"
        if entry.probe is not None:
            missed = newest + 1
            if not newest and now - first <= LATEST:
                reason = "the measurement before was still running"
            self._judge_overdue(entry, entry.probe, now)
        elif now - scheduled > LATEST:
            missed = newest + 1
        elif not self._waiting and self._may_begin():
            self._begin(entry, scheduled, now)
        else:
            entry.waits = scheduled
            self._waiting.append((entry, scheduled))
            while self._waiting[0][0].waits != self._waiting[0][1]:
                self._waiting.popleft()
        if missed:
            self._missed(entry, first, missed, reason)
        return entry.due()

    def _begin(self, entry: _Entry, scheduled: float, now: float) -> None:
        self._begun += 1
        entry.deadline, entry.overdue = now + entry.target.timeout, None
        entry.probe = self._loop.create_task(self._probe(entry, scheduled))
        self._in_flight[entry.probe] = (entry, scheduled)
        entry.probe.add_done_callback(self._ended)

    def _next_waiting(self, now: float, missed: str = "") -> None:
        """Begins what has waited longest, or tells that it was missed."""
        entry, scheduled = self._waiting.popleft()
        if entry.waits != scheduled:
            return  # its next tick has taken its place
        entry.waits = None
        if not entry.current:
            missed = missed or "the target was changed or removed before it was measured"
        elif now - scheduled > LATEST:
            missed = missed or OVERLOAD
        if missed:
            self._missed(entry, scheduled, 1, missed)
        else:
            self._begin(entry, scheduled, now)

    def _judge_overdue(self, entry: _Entry, probe: asyncio.Task[None], now: float) -> None:
        """Cancels a probe that had time and turns enough to obey its deadline."""
        if entry.overdue is None:
            if now > entry.deadline:
                entry.overdue = now
        elif now > entry.overdue + GRACE:
            log.error("%s: a probe did not obey its deadline and was cancelled", entry.target.id)
            probe.cancel()

    async def _probe(self, entry: _Entry, scheduled: float) -> None:
        started, wall, monotonic = boottime(), time.time(), time.monotonic()
        try:
            result = await entry.prober.probe(monotonic + entry.target.timeout)
        except Exception as error:  # A prober never raises. If one does, it costs one record and not a target.
            log.exception("%s: the prober failed", entry.target.id, extra={"secrets_of": entry.target})
            duration = (time.monotonic() - monotonic) * 1000
            message = Mask(entry.target).text(f"the prober failed: {error!r}")[:LONGEST_MESSAGE]
            result = Result(duration, Phases(), Error(None, "internal", "local", message))
        stall = self._longest_stall(started)
        if stall or result.error is not None:
            result = self._without_blame_for_stalls(result, stall, started + entry.target.timeout)
        self._outcome.measured(Measurement(entry.target, entry.prober, scheduled, started, wall, result, stall))

    def _longest_stall(self, since: float) -> float:
        """Seconds; one that goes on was not noted yet."""
        now = self.late()
        longest = now if now > NOTED_STALL else 0.0
        for at, seconds in reversed(self._stalls):
            if at <= since:
                break
            longest = max(longest, seconds)
        return longest

    def _without_blame_for_stalls(self, result: Result, stall: float, deadline: float) -> Result:
        """A time-out while this device stood still (busy, stopped or suspended) is this device's."""
        error = result.error
        if error is None or error.code not in MADE_BY_STALLS:
            return result
        if boottime() - deadline <= STALL and stall <= STALL:
            return result
        message = f"{error.message}; but this device stood still meanwhile"[:LONGEST_MESSAGE]
        return msgspec.structs.replace(result, error=Error(error.phase, error.code, "local", message))

    def _ended(self, task: asyncio.Task[None]) -> None:
        full = len(self._in_flight) >= self._most
        entry, scheduled = self._in_flight.pop(task)
        entry.probe = None
        while full and self._waiting and len(self._in_flight) < self._most:
            self._next_waiting(boottime())
        if task.cancelled():
            reason = "the agent was stopped during the measurement" if not entry.current else "the prober hung"
            self._missed(entry, scheduled, 1, reason)
        elif (error := task.exception()) is not None:
            extra = {"secrets_of": entry.target}
            log.error("%s: its result could not be recorded", entry.target.id, exc_info=error, extra=extra)

    def _missed(self, entry: _Entry, scheduled: float, count: int, reason: str) -> None:
        wall = time.time() - (boottime() - scheduled)
        self._outcome.missed(Missed(entry.target, entry.prober, scheduled, wall, count, reason))
