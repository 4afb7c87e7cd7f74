"""Holds the results that are doubtful, looks for what proves them, and settles each within `HOLD_SECONDS`.

When all is well it costs nothing: other targets answer within `PATIENCE_SECONDS` by themselves, and that is the proof.
Only when they do not, a few addresses that ought to answer are asked: other targets, the configured references, Kafka's
brokers. The target itself is asked a second time, rarely: when it fell silent, and each `asking.AGAIN_SECONDS` while it
is. Its resolver is asked where it may have led to somebody else (`naming`). What all this takes is not in the
measurement's duration. What comes of a target while a result of it is held waits behind it, so that the records of one
target are in order.
"""

import asyncio
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from agent.config.model import Config, Target
from agent.device.clock import ClockState, boottime
from agent.inquiry.case import Case
from agent.inquiry.certificates import Certificates
from agent.inquiry.doubter import Doubter
from agent.inquiry.naming import Naming
from agent.inquiry.refusals import Refusals
from agent.inquiry.second_look import SecondLooks
from agent.inquiry.way_out import News, WayOut
from agent.inquiry.witnesses import MOST_KINDS, Witnesses
from agent.probers import asking
from agent.probers.resolver import Resolver, asked_from
from agent.schedule import Measurement
from agent.verdict.evidence import PROOF_SECONDS, Evidence
from agent.verdict.found import NO_DOUBT, Found, Ruling
from agent.verdict.rules import judge, rule

log = logging.getLogger(__name__)

Settled = Callable[[Measurement, ClockState, Ruling], None]
"""Who takes a measurement with its verdict, and the state of the wall clock when its result was told."""

HOLD_SECONDS = 2.0
PATIENCE_SECONDS = 0.3
MOST_HELD = 2_000  # results; with more the oldest is judged by what is known
FEW_HELD = 50  # results that are looked at whenever there is something new
TRY_SECONDS = 0.25  # between two looks at each, with more
MOST_LOOKS = 8  # at targets for a second time, at once

_UP = Ruling("up")


class Inquiry:
    """Judges results; `settled` takes each with its verdict, at once or later. Without a resolver nobody is asked."""

    def __init__(self, settled: Settled, resolver: Resolver | None = None, news: News | None = None) -> None:
        self._settled = settled
        asks, resolver = resolver is not None, resolver or Resolver()
        self._evidence: defaultdict[str | None, Evidence] = defaultdict(Evidence)
        turns = asyncio.Semaphore(MOST_LOOKS)
        self._doubters: tuple[Doubter, ...] = ()  # as the doubts of `Found`; of who refused is the first
        if asks:
            self._doubters = Refusals(self._evidence), Certificates(resolver, turns), Naming(resolver)
        self._second_looks = SecondLooks(self._evidence, resolver, turns)
        self._witnesses = Witnesses(self._evidence, resolver, self.settle, self._look_again)
        self._way_out = WayOut(self._evidence, news)
        self._held: dict[Case, None] = {}  # undecided
        self._queues: dict[str, deque[Case | Callable[[], None]]] = {}  # by target, where one is undecided
        self._attending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tried = 0.0

    def configure(self, config: Config) -> None:
        """From now on these references and brokers are asked, and other targets are forgotten."""
        self._witnesses.configure(config)
        targets = {target.id: target for target in config.targets if target.enabled}
        sources = {None, *(target.source for target in targets.values())}
        for source in [source for source in self._evidence if source not in sources]:
            del self._evidence[source]
        resolvers = {target.resolver for target in targets.values()}
        for evidence in self._evidence.values():
            evidence.keep_only(targets, resolvers)
        for doubter in self._doubters:
            doubter.keep_only(targets)
        self._second_looks.keep_only(targets)

    def uplink(self) -> tuple[float | None, str]:
        """Since when there is no way out (seconds since boot), and why that is thought; None when there is one."""
        return self._way_out.lost()

    def __len__(self) -> int:
        return len(self._held)

    def take(self, measurement: Measurement, at: float, clock: ClockState) -> None:
        """Takes a result that was told `at` (seconds since boot)."""
        # What came too late is no proof, though it came in the same batch.
        while self._held and (first := next(iter(self._held))).at + HOLD_SECONDS < at:
            self._close(first, at)
        if measurement.stall and at - measurement.started < asking.ASK_SECONDS:
            self._witnesses.stood_still = at
        target, result = measurement.target, measurement.result
        error = result.error
        doubts = [] if error is None else [doubter.known(measurement, at) for doubter in self._doubters]
        if not (doubts and doubts[0].is_open):  # else it is a witness once it was looked who refused
            evidence = names = self._evidence[target.source]
            if target.source is not None:
                names = self._evidence[asked_from(target.resolver, target.source)]
            hearsay = error is not None and error.code == "connect_refused" and bool(doubts)
            evidence.note(target, result, at, measurement.stall, names, hearsay=hearsay)
        if error is None:
            for doubter in self._doubters:
                doubter.note(target, result, at)
            self._second_looks.forget(target.id)
            self.in_order(target.id, self._settled, measurement, clock, _UP)
            return
        case = Case(measurement, at, clock, Found(doubts=doubts))
        evidence = self._evidence[case.source]
        ruling = judge(target, result, at, evidence, case.found, clock_synchronized=clock.synchronized)
        if ruling is None:
            self._hold(case)
        else:
            self.in_order(target.id, self._settled, measurement, clock, ruling)

    def _hold(self, case: Case) -> None:
        measurement, found, evidence = case.measurement, case.found, self._evidence[case.source]
        if case.peer is not None:
            began = measurement.started + measurement.result.earlier_ms / 1000
            found.large = evidence.asks_for_large(case.target_id, measurement.result, case.at)
            found.before = evidence.other(case.target_id, case.peer, began, case.at)
        self._held[case] = None
        self._queues.setdefault(case.target_id, deque()).append(case)
        if self._doubters:
            self._ask(case)
        if len(self._held) > MOST_HELD:
            self._close(next(iter(self._held)), case.at)

    def in_order(self, target_id: str, work: Callable[..., None], *args: Any) -> None:
        """Does it behind what is held of this target."""
        if (queue := self._queues.get(target_id)) is None:
            work(*args)
        else:
            queue.append(partial(work, *args))

    def settle(self, now: float) -> None:
        """Settles what is clear by now; to be called again and again."""
        self._way_out.watch(now)
        if len(self._held) <= FEW_HELD or now - self._tried >= TRY_SECONDS:
            self._tried = now
            for case in list(self._held):
                self._try(case, now)
        self._way_out.settle(now)

    def end(self) -> None:
        """Settles all that is held by what is known, and asks nobody any more."""
        for task in (*self._tasks, *([self._attending] if self._attending else [])):
            task.cancel()
        for case in list(self._held):
            self._close(case, boottime())
        for doubter in self._doubters:
            doubter.end()

    async def until_all_are_settled(self) -> None:
        """Takes `HOLD_SECONDS` at most, if no more results come."""
        while self._attending is not None:
            await asyncio.wait([self._attending])

    def _try(self, case: Case, now: float) -> None:
        if case not in self._held:
            return
        try:
            self._decide(case, now)
        except Exception:  # a bug; it costs one record
            target = case.measurement.target
            log.exception("%s: its result could not be judged", target.id, extra={"secrets_of": target})
            self._held.pop(case, None)
            case.done = lambda: None
        if case.done is not None:
            self._go_on(case.target_id)

    def _go_on(self, target_id: str) -> None:
        """Does what need not wait any more."""
        queue = self._queues.get(target_id)
        while queue:
            first = queue[0]
            done = first.done if isinstance(first, Case) else first
            if done is None:
                return
            queue.popleft()
            try:
                done()
            except Exception:  # a bug; it costs one record
                log.exception("%s: its result could not be recorded", target_id)
        self._queues.pop(target_id, None)

    def _decide(self, case: Case, now: float) -> None:
        found, measurement, evidence = case.found, case.measurement, self._evidence[case.source]
        if now >= case.at + HOLD_SECONDS:
            found.over = True
        for number, (doubter, doubt) in enumerate(zip(self._doubters, found.doubts, strict=True)):
            if doubt.is_open:
                found.doubts[number] = doubter.learned(measurement, now)
        if found.after is None and case.peer is not None:
            until, large = case.at + (HOLD_SECONDS if found.large else PROOF_SECONDS), found.large
            found.after = evidence.other(case.target_id, case.peer, case.at, until, large=large)
        if case.way is None and (found.over or now >= case.at + PATIENCE_SECONDS):
            self._way_out.find(case, now)
        if case.asked is not None and case.asked.nobody:
            found.over = True
        ruling = rule(measurement.target, measurement.result, case.at, evidence, found)
        if ruling is None:
            return
        if case.way is None:
            self._way_out.find(case, now)
            ruling = rule(measurement.target, measurement.result, case.at, evidence, found) or ruling
        del self._held[case]
        for task in case.tasks:
            task.cancel()
        if ruling.status == "unknown":
            self._way_out.miss(case)
        looks = *(found.again or ()), *(look for doubt in found.doubts for look in doubt.looks)
        loss = evidence.lossy(case.target_id, now)
        seen = case.seen(now, link_changed=self._way_out.has_changed(case), loss=loss)
        ruling = ruling._replace(seen=seen, looks=looks or None)
        case.done = partial(self._settled, measurement, case.clock, ruling)

    def _close(self, case: Case, now: float) -> None:
        case.found.over = True
        self._try(case, now)

    def _ask(self, case: Case) -> None:
        """Its target, and for the doubts; others when these have not told by themselves."""
        for number, doubter in enumerate(self._doubters):
            if case.found.doubts[number].is_open:
                case.tasks.append(self._begin(self._ask_doubter(doubter, number, case)))
        if self._second_looks.is_due(case):
            case.found.again = None  # that it was silent once is not enough: what was lost on the way looks the same
            if not case.resolver_is_blamed:
                self._look_again(case)
        if self._attending is None:
            self._attending = asyncio.get_running_loop().create_task(self._attend())

    async def _ask_doubter(self, doubter: Doubter, number: int, case: Case) -> None:
        doubt = await doubter.ask(case.measurement, case.at)
        if doubt.whose == "path":
            case.put_down_to_the_path()
            case.found.again, doubt = doubt.looks, NO_DOUBT
        elif doubt.whose is None and (told := doubter.learned(case.measurement, boottime())).whose and not told.is_open:
            # What was asked for others outweighs that its own question found nothing wrong.
            doubt = msgspec.structs.replace(doubt, whose=told.whose, why=told.why)
        case.found.doubts[number] = doubt
        self._try(case, boottime())

    def _look_again(self, case: Case, other: Target | None = None) -> None:
        if case in self._held:
            case.tasks.append(self._begin(self._look_twice(case, other)))

    async def _look_twice(self, case: Case, other: Target | None) -> None:
        await self._second_looks.take(case, other)
        self._try(case, boottime())

    async def _attend(self) -> None:
        """While something is held."""
        try:
            while self._held:
                waiting = [case for case in self._held if _waits_for_others(case, boottime())]
                for source in itertools.islice(dict.fromkeys(case.source for case in waiting), MOST_KINDS):
                    self._begin(self._witnesses.ask([each for each in waiting if each.source == source], self._held))
                await asyncio.sleep(PATIENCE_SECONDS)
                self.settle(boottime())
        except Exception:
            log.exception("what is doubtful is judged later, and by what is known")
        finally:
            self._attending = None

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("asking once more failed", exc_info=error)


def _waits_for_others(case: Case, now: float) -> bool:
    """How it is with the resolver is asked at once; with the way out when nobody told by himself."""
    if case.asked is not None or case.answered:
        return False
    return case.resolver_is_blamed or now >= case.at + PATIENCE_SECONDS
