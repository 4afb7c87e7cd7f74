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
import math
import random
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any, Protocol, TypeVar

from agent.config.masking import mask_url
from agent.config.model import Config, Target
from agent.device.clock import ClockState, boottime
from agent.device.uplink import Way, Ways
from agent.inquiry import second_look
from agent.inquiry.certificates import Certificates
from agent.inquiry.doubter import Doubter
from agent.inquiry.naming import Naming, way_of
from agent.inquiry.refusals import Refusals
from agent.probers import asking
from agent.probers.resolver import Resolver, asked_from, is_address
from agent.probers.result import Family, Peer, Result, ms
from agent.schedule import Measurement
from agent.verdict.distance import vouches
from agent.verdict.evidence import PROOF_SECONDS, Evidence
from agent.verdict.found import NO_DOUBT, Found, Ruling, Seen
from agent.verdict.rules import judge, rule

log = logging.getLogger(__name__)

T = TypeVar("T")

Settled = Callable[[Measurement, ClockState, Ruling], None]
"""Who takes a measurement with its verdict, and the state of the wall clock when its result was told."""

HOLD_SECONDS = 2.0
PATIENCE_SECONDS = 0.3
MOST_HELD = 2_000  # results; with more the oldest is judged by what is known
FEW_HELD = 50  # that are looked at whenever there is something new; with more, each is
TRY_SECONDS = 0.25  # only so often
MOST_LOOKS = 8  # at targets for a second time, at once
MOST_KINDS = 8  # of cases, by who can vouch for them, that others are asked for at once; and so many sources
MOST_ASKED = 4  # other targets, of a kind
LINKS_SECONDS = 1.0

_UP = Ruling("up")
_ANYWHERE = ("192.0.2.1", "2001:db8::1")  # of documentation (RFC 5737, RFC 3849): what default routes lead to
_HARMLESS = frozenset({"icmp", "dns"})  # types of probers whose measurement is made again; others get a connection


class News(Protocol):
    """Who tells the world."""

    def uplink_lost(self, since: float, why: str) -> None:
        """There is no way out of this device, since then (seconds since boot)."""

    def uplink_back(self, seconds: float) -> None:
        """There is one again, after so many seconds."""


class _Asked:
    """Others that are asked on behalf of some cases, from their source, and how many of them answered."""

    def __init__(self, source: str | None = None) -> None:
        self.source = source
        self.asked = self.answered = self.silent = self.names_asked = self.names_found = 0

    @property
    def nobody(self) -> bool:
        """Some were asked, and all were silent."""
        return self.silent > 1 and self.silent == self.asked


class _Case:
    """One doubtful result."""

    __slots__ = ("asked", "at", "clock", "done", "found", "measurement", "tasks", "way")

    def __init__(self, measurement: Measurement, at: float, clock: ClockState, found: Found) -> None:
        self.measurement, self.at, self.clock, self.found = measurement, at, clock, found
        self.way: Way | None = None
        self.asked: _Asked | None = None
        self.tasks: list[asyncio.Task[None]] = []  # that ask for it
        self.done: Callable[[], None] | None = None  # once it is decided

    @property
    def peer(self) -> Peer | None:
        return self.measurement.result.peer

    @property
    def source(self) -> str | None:
        """The source of what failed: of the measurement, or of the question for the name."""
        return _source(self.measurement.target, self.measurement.result)

    @property
    def resolver_is_blamed(self) -> bool:
        error = self.measurement.result.error
        return error is not None and error.phase == "resolve" and error.attribution in ("resolver", "target")

    @property
    def answered(self) -> bool:
        """Somebody did, and wrongly."""
        error = self.measurement.result.error
        return error is not None and error.attribution == "target" and error.phase != "resolve"

    def is_to_be_asked_for(self, now: float) -> bool:
        """How it is with the resolver at once; with the way out when nobody told by himself."""
        if self.answered:
            return False
        return self.resolver_is_blamed or now >= self.at + PATIENCE_SECONDS


class Inquiry:
    """Judges results; `settled` takes each with its verdict, at once or later. Without a resolver nobody is asked."""

    def __init__(self, settled: Settled, resolver: Resolver | None = None, news: News | None = None) -> None:
        self._settled, self._resolver, self._news = settled, resolver, news
        # By source, None where a target has none: what goes one way vouches for nothing that goes another.
        self._evidence: defaultdict[str | None, Evidence] = defaultdict(Evidence)
        self._turns = asyncio.Semaphore(MOST_LOOKS)
        self._doubters: tuple[Doubter, ...] = ()  # as the doubts of `Found`
        if resolver is not None:
            self._doubters = Refusals(self._evidence), Certificates(resolver, self._turns), Naming(resolver)
        self._ways = Ways()
        self._held: dict[_Case, None] = {}  # undecided
        self._queues: dict[str, deque[_Case | Callable[[], None]]] = {}  # by target, where one is undecided
        self._second_looks: dict[str, tuple[Target, float]] = {}  # the last at each target, as it was
        self._references: tuple[str, ...] = ()
        self._brokers: tuple[str, ...] = ()
        self._attending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._links_seen = self._tried = self._stood_still = 0.0
        self._lost: tuple[float, float, Peer | None, str] | None = None  # since, noticed at, on the way to whom, why

    def configure(self, config: Config) -> None:
        """From now on these references and brokers are asked, and other targets are forgotten."""
        self._references, self._brokers = config.uplink.references, config.kafka.bootstrap_servers
        targets = {target.id: target for target in config.targets if target.enabled}
        sources = {None, *(target.source for target in targets.values())}
        for source in [source for source in self._evidence if source not in sources]:
            del self._evidence[source]
        resolvers = {target.resolver for target in targets.values()}
        for evidence in self._evidence.values():
            evidence.keep_only(targets, resolvers)
        for doubter in self._doubters:
            doubter.keep_only(targets)
        self._second_looks = {each: last for each, last in self._second_looks.items() if each in targets}

    def uplink(self) -> tuple[float | None, str]:
        """Since when there is no way out (seconds since boot), and why that is thought; None when there is one."""
        return (None, "") if self._lost is None else (self._lost[0], self._lost[3])

    def __len__(self) -> int:
        return len(self._held)

    def take(self, measurement: Measurement, at: float, clock: ClockState) -> None:
        """Takes a result that was told `at` (seconds since boot)."""
        # What came too late is no proof, though it came in the same batch.
        while self._held and (first := next(iter(self._held))).at + HOLD_SECONDS < at:
            self._close(first, at)
        if measurement.stall and at - measurement.started < asking.ASK_SECONDS:
            self._stood_still = at
        target, result = measurement.target, measurement.result
        if result.error is None:
            self._note(measurement, at)
            for doubter in self._doubters:
                doubter.note(target, result, at)
            self._second_looks.pop(target.id, None)  # what fails after that is looked at again
            self.in_order(target.id, partial(self._settled, measurement, clock, _UP))
            return
        found = Found(doubts=[doubter.known(measurement, at) for doubter in self._doubters])
        refusal = found.doubts[0] if found.doubts else NO_DOUBT
        if not refusal.is_open:  # else it is a witness once it was looked who refused
            self._note(measurement, at, hearsay=bool(found.doubts) and result.error.code == "connect_refused")
        evidence = self._evidence[_source(target, result)]
        ruling = judge(target, result, at, evidence, found, clock_synchronized=clock.synchronized)
        if ruling is None:
            self._hold(_Case(measurement, at, clock, found))
        else:
            self.in_order(target.id, partial(self._settled, measurement, clock, ruling))

    def _note(self, measurement: Measurement, at: float, *, hearsay: bool = False) -> None:
        target = measurement.target
        names = self._evidence[asked_from(target.resolver, target.source)]
        evidence = self._evidence[target.source]
        evidence.note(target, measurement.result, at, measurement.stall, names, hearsay=hearsay)

    def _hold(self, case: _Case) -> None:
        measurement, found, evidence = case.measurement, case.found, self._evidence[case.source]
        if case.peer is not None:
            began = measurement.started + measurement.result.earlier_ms / 1000
            found.large = evidence.asks_for_large(measurement.target.id, measurement.result, case.at)
            found.before = evidence.other(measurement.target.id, case.peer, began, case.at)
        self._held[case] = None
        self._queues.setdefault(measurement.target.id, deque()).append(case)
        if self._resolver is not None:
            for number, doubter in enumerate(self._doubters):
                if found.doubts[number].is_open:
                    case.tasks.append(self._begin(self._ask_doubter(doubter, number, case)))
            self._look_again(case)
            if self._attending is None:
                self._attending = asyncio.get_running_loop().create_task(self._attend())
        if len(self._held) > MOST_HELD:
            self._close(next(iter(self._held)), case.at)

    def in_order(self, target_id: str, work: Callable[[], None]) -> None:
        """Does it behind what is held of this target."""
        if (queue := self._queues.get(target_id)) is None:
            work()
        else:
            queue.append(work)

    def settle(self, now: float) -> None:
        """Settles what is clear by now; to be called again and again."""
        if now - self._links_seen >= LINKS_SECONDS:
            self._links_seen = now
            self._ways.look(now)
        if len(self._held) <= FEW_HELD or now - self._tried >= TRY_SECONDS:
            self._tried = now
            for case in list(self._held):
                self._try(case, now)
        if self._lost is not None and self._evidence[None].heard_since(self._lost[2], self._lost[1]):
            since, self._lost = self._lost[0], None
            log.info("there is a way out again, after %.0f s", now - since, extra={"over": "uplink"})
            if self._news is not None:
                self._news.uplink_back(now - since)

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

    def _try(self, case: _Case, now: float) -> None:
        try:
            self._decide(case, now)
        except Exception:  # a bug; it costs one record
            target = case.measurement.target
            log.exception("%s: its result could not be judged", target.id, extra={"secrets_of": target})
            self._held.pop(case, None)
            case.done = lambda: None
        if case.done is not None:
            self._go_on(case.measurement.target.id)

    def _go_on(self, target_id: str) -> None:
        """Does what need not wait any more."""
        queue = self._queues.get(target_id)
        while queue:
            first = queue[0]
            done = first.done if isinstance(first, _Case) else first
            if done is None:
                return
            queue.popleft()
            try:
                done()
            except Exception:  # a bug; it costs one record
                log.exception("%s: its result could not be recorded", target_id)
        self._queues.pop(target_id, None)

    def _decide(self, case: _Case, now: float) -> None:
        found, measurement, evidence = case.found, case.measurement, self._evidence[case.source]
        if now >= case.at + HOLD_SECONDS:
            found.over = True
        for number, (doubter, doubt) in enumerate(zip(self._doubters, found.doubts, strict=True)):
            if doubt.is_open:
                found.doubts[number] = doubter.learned(measurement, now)
        if found.after is None and case.peer is not None:
            until, large = case.at + (HOLD_SECONDS if found.large else PROOF_SECONDS), found.large
            found.after = evidence.other(measurement.target.id, case.peer, case.at, until, large=large)
        if case.way is None and (found.over or now >= case.at + PATIENCE_SECONDS):
            self._look_at_way(case, now)
        if case.asked is not None and case.asked.nobody:
            found.over = True
        ruling = rule(measurement.target, measurement.result, case.at, evidence, found)
        if ruling is None:
            return
        if case.way is None:
            self._look_at_way(case, now)
            ruling = rule(measurement.target, measurement.result, case.at, evidence, found) or ruling
        del self._held[case]
        for task in case.tasks:
            task.cancel()
        if ruling.status == "unknown":
            self._judge_uplink(case, now)
        looks = *(found.again or ()), *(look for doubt in found.doubts for look in doubt.looks)
        ruling = ruling._replace(seen=self._seen(case, now), looks=looks or None)
        case.done = partial(self._settled, measurement, case.clock, ruling)

    def _close(self, case: _Case, now: float) -> None:
        case.found.over = True
        self._try(case, now)

    def _look_at_way(self, case: _Case, now: float) -> None:
        """Whatever proves a way out, a link that was down meanwhile may have cost this measurement its answer."""
        self._ways.look(now)
        to = _ANYWHERE if case.peer is None else (case.peer.address,)
        ways = [self._ways.to(each, now, case.source) for each in to]
        case.way = way = next((each for each in ways if not each.barred), ways[0])
        if way.link is False:
            case.found.barred = f"this device's link is down: {way.interface}"
        elif way.route is False and case.peer is not None:
            case.found.barred = "this device has no route to it"
        elif self._ways.changed(way.interface, case.measurement.started):
            case.found.barred = f"this device's link went down or up meanwhile: {way.interface}"

    def _judge_uplink(self, case: _Case, now: float) -> None:
        """What goes by a source of its own says nothing about the device's way out."""
        if self._lost is not None or case.source is not None or self._evidence[None].heard_since(case.peer, case.at):
            return
        asked = case.asked
        if case.way is not None and case.way.barred:
            why = case.found.barred or "there is no route"
        elif asked is not None and asked.nobody:
            why = f"none of the {asked.asked} addresses that were asked answered"
        else:
            return
        self._lost = (case.measurement.started, case.at, case.peer, why)
        log.warning("there is no way out of this device: %s", why, extra={"trouble": "uplink"})
        if self._news is not None:
            self._news.uplink_lost(case.measurement.started, why)

    def _seen(self, case: _Case, now: float) -> Seen:
        way, asked, doubts = case.way or Way(), case.asked or _Asked(), case.found.doubts
        return Seen(
            route=way.route,
            interface=way.interface,
            link=way.link,
            link_changed=self._ways.changed(way.interface, case.measurement.started),
            gateway=way.gateway,
            gateway_answers=way.gateway_answers,
            other=case.found.after,
            asked=asked.asked,
            answered=asked.answered,
            names_asked=asked.names_asked,
            names_found=asked.names_found,
            names_compared=sum(each.compared for each in doubts),
            names_kept=sum(each.kept for each in doubts),
            loss=self._evidence[case.source].lossy(case.measurement.target.id, now),
            waited_ms=ms(now - case.at),
        )

    async def _attend(self) -> None:
        """While something is held."""
        try:
            while self._held:
                waiting = [case for case in self._held if case.asked is None and case.is_to_be_asked_for(boottime())]
                for source in itertools.islice(dict.fromkeys(case.source for case in waiting), MOST_KINDS):
                    self._begin(self._ask_others([case for case in waiting if case.source == source]))
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

    async def _ask_doubter(self, doubter: Doubter, number: int, case: _Case) -> None:
        doubt = await doubter.ask(case.measurement, case.at)
        if doubt.whose == "path":
            case.measurement = second_look.put_down_to_the_path(case.measurement)
            case.found.again, doubt = doubt.looks, NO_DOUBT
        case.found.doubts[number] = doubt
        if case in self._held:
            self._try(case, boottime())

    # The target itself

    def _look_again(self, case: _Case) -> None:
        target, error = case.measurement.target, case.measurement.result.error
        if error is None or error.attribution == "local" or case.answered:
            return
        if not case.resolver_is_blamed and case.peer is None:
            return
        last, quick = second_look.last_of(target, self._second_looks), self._evidence[case.source].last_quick
        silent_still = quick(target.id) <= last and case.at - last < asking.AGAIN_SECONDS
        if silent_still and case.found.before is not None:
            return
        case.found.again = None  # that it was silent once is not enough: what was lost on the way looks the same
        if not case.resolver_is_blamed:
            case.tasks.append(self._begin(self._second_look(case)))

    async def _second_look(self, case: _Case, other: Target | None = None) -> None:
        measurement, target, resolver = case.measurement, case.measurement.target, self._resolver
        assert resolver is not None
        async with self._turns:
            if case.resolver_is_blamed:
                servers = [target.resolver, *self._evidence[case.source].other_resolvers(target)][:2]
                looks = await second_look.by_resolvers(measurement, resolver, servers, case.source)
                if other is not None and all(look.error is not None for look in looks):
                    # A resolver that has got ill again meanwhile does not find what it found.
                    name, server = second_look.host_of(other), other.resolver
                    again = await second_look.resolve(name, other.ip, resolver, server, case.source)
                    case.found.names = case.found.names and again.error is None
            else:
                self._second_looks[target.id] = target, case.at
                if measurement.prober.type in _HARMLESS:
                    looks = [await second_look.by_measuring(measurement)]
                else:
                    looks = await second_look.at_addresses(measurement, resolver, case.source)
        case.found.again = tuple(looks)
        if looks and looks[0].error == "local_network":
            self._second_looks.pop(target.id, None)  # what this device does to itself is looked at each time
        now = boottime()
        if not case.resolver_is_blamed and looks and looks[0].error is None and not measurement.result.heard:
            self._evidence[case.source].lost(target.id, now)
        if case in self._held:
            self._try(case, now)

    # Others

    async def _ask_others(self, cases: list[_Case]) -> None:
        """A few of those that can vouch for each kind of case, of which all have one source."""
        asked = _Asked(cases[0].source)
        now, silent = boottime(), {case.measurement.target.id for case in self._held if not case.answered}
        evidence = self._evidence[asked.source]
        known = list(evidence.witnesses(silent, now))
        random.shuffle(known)

        def everywhere() -> Iterator[tuple[Target, Result]]:
            yield from known
            for other in list(self._evidence.values()):
                if other is not evidence:
                    yield from other.witnesses(silent, now)

        witnesses: dict[str, tuple[Peer, Target | None]] = {}  # with the target where it is to be measured
        kinds = dict(itertools.islice({_kind(case): case for case in cases}.items(), MOST_KINDS))
        cases = [case for case in cases if _kind(case) in kinds]  # the others have their turn when these are asked for
        for kind in kinds.values():
            if kind.resolver_is_blamed:
                alike = [case for case in cases if _kind(case) == _kind(kind)]
                self._begin(self._ask_for_names(alike, asked, _chosen(_named(everywhere(), kind.measurement.target))))
            address = None if kind.peer is None else kind.peer.address
            able = ((target, result.peer) for target, result in known if result.peer is not None)
            able = ((target, peer) for target, peer in able if address is None or vouches(peer.address, address))
            if kind.found.large:
                large = (each for each in able if each[0].url.startswith("https:") and each[1].address != address)
                witnesses.update({target.id: (peer, target) for target, peer in _chosen(large)})
            else:
                by = ((target.id, peer, None if peer.port else target) for target, peer in _chosen(able))
                witnesses = {key: (peer, of) for key, peer, of in by} | witnesses
        for case in cases:
            case.asked = asked
        families = {case.peer.family for case in cases if case.peer is not None}
        references = [*self._references, *self._brokers[: 0 if len(witnesses) > 1 else 2]]
        await asyncio.gather(
            *(self._ask(asked, key, peer.address, peer.port or 0, of) for key, (peer, of) in witnesses.items()),
            *(self._ask_reference(asked, each, families) for each in references),
        )

    async def _ask(self, asked: _Asked, key: str, address: str, port: int, measured: Target | None = None) -> None:
        asked.asked += 1
        begun, large = boottime(), False
        if measured is None:
            ms, error = await asking.connect(address, port, asking.ASK_SECONDS, asked.source)
        else:
            assert self._resolver is not None
            ms, error, large = await second_look.by_measuring_other(measured, address, self._resolver)
        if error in ("local_network", "local_resource"):
            asked.asked -= 1  # this device could not; who can be asked tells
            return
        if error not in asking.ANSWERS:
            asked.silent += 1
            if asked.nobody:
                self.settle(boottime())
            return
        asked.answered += 1
        now = boottime()
        stall = math.inf if self._stood_still >= begun else 0.0
        peer = Peer(address, port, "ipv6" if ":" in address else "ipv4")
        self._evidence[asked.source].heard(key, peer, ms, now, stall, large=large)
        self.settle(now)

    async def _ask_for_names(self, cases: list[_Case], asked: _Asked, targets: list[Target]) -> None:
        """Does their resolver find other names? If there are any."""
        asked.names_asked += len(targets)
        assert self._resolver is not None
        looks = await asyncio.gather(
            *(
                second_look.resolve(second_look.host_of(each), each.ip, self._resolver, each.resolver, asked.source)
                for each in targets
            )
        )
        found = [each for each, look in zip(targets, looks, strict=True) if look.error is None]
        asked.names_found += len(found)
        for case in cases:
            if looks:
                case.found.names = len(found) * 2 > len(looks)
            # Only now: a resolver that has got well meanwhile finds this name, too.
            if case in self._held:
                case.tasks.append(self._begin(self._second_look(case, next(iter(found), None))))

    async def _ask_reference(self, asked: _Asked, reference: str, families: Collection[Family]) -> None:
        assert self._resolver is not None
        addresses, port = await second_look.of_reference(reference, self._resolver, families, asked.source)
        key = f"reference {mask_url(reference, all_values=True)}"
        await asyncio.gather(*(self._ask(asked, key, address, port) for address in addresses))


def _named(known: Iterable[tuple[Target, Result]], of: Target) -> Iterator[Target]:
    """Targets whose names the same resolver found, asked the same way."""
    way = way_of(of)
    found = (each for each, result in known if result.resolver is not None and way_of(each) == way)
    return (each for each in found if not is_address(second_look.host_of(each)))


def _chosen(those: Iterable[T]) -> list[T]:
    """The first few: with thousands to choose from no more are looked at than it takes."""
    return list(itertools.islice(those, MOST_ASKED))


def _source(target: Target, result: Result) -> str | None:
    """By which way it went what failed: that of the target, or of the question for its name."""
    if result.error is not None and result.error.phase == "resolve":
        return asked_from(target.resolver, target.source)
    return target.source


def _kind(case: _Case) -> tuple[object, ...]:
    """Those of one kind have the same witnesses."""
    target, peer = case.measurement.target, case.peer
    if case.resolver_is_blamed or peer is None:
        return target.resolver, None
    return case.found.large, peer.family, vouches(peer.address, "9.9.9.9" if peer.family == "ipv4" else "2620:fe::9")
