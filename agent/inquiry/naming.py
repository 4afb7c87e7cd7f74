"""Whether an address that a resolver named is the target's: a closer look, when a target failed at one.

A resolver that lies (a captive portal's, a hijacked or broken one) leads to somebody else, who refuses, answers wrongly
or says nothing. It is asked for a name that cannot exist; and when a name has another address than those at which its
target was up, the target is measured at one of these, and other names are asked for. Nothing is asked while all is
well, and of a target that keeps failing rarely.
"""

import asyncio
import math
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from agent.config.model import Ip, Target
from agent.device.clock import boottime
from agent.inquiry import questions
from agent.inquiry.doubter import Doubter
from agent.probers import asking, prober_of
from agent.probers.attempts import single
from agent.probers.resolver import Resolved, Resolver, asked_from
from agent.probers.result import Result
from agent.schedule import Measurement
from agent.verdict.found import NO_DOUBT, Doubt, Look

STEADY = 5  # times in a row that a target was up at an address which its name had before, where there were several
MOVED_SECONDS = 3600.0  # so long a single name is not believed to have moved from an address at which it is well
LIE_SECONDS = 10.0  # so long a lie about other names counts
MOST_NAMES = 20_000  # that are remembered
MOST_ADDRESSES = 8  # of each
MOST_COMPARED = 3  # other names
MOST_LOOKS = 8  # at once
SOON_SECONDS = 0.3  # so long the name that cannot exist has before anything else is asked

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that may be repeated (RFC 9110, section 9.2.1)

_Way = tuple[str | None, str | None]  # how a name is asked for: the option `resolver`, and from where that is asked
_Name = tuple[_Way, str]
_NoName = asyncio.Task[tuple[Look, tuple[str, ...]]]
_OPEN = Doubt(is_open=True)  # where nobody could ask, the resolver is believed


class _Known(msgspec.Struct):
    """Where targets of a name were up: its addresses, the latest first, and when that was (seconds since boot).

    `kept`: how often in a row `target`, which was the first at the newest of them, was up at one of them since.
    """

    addresses: tuple[str, ...]
    at: float
    target: Target
    kept: int = 0

    @property
    def steady(self) -> bool:
        return self.kept >= (1 if len(self.addresses) == 1 else STEADY)

    def latest(self, ip: Ip) -> str | None:
        """Of that version of IP (a target's option): where another version is well says nothing about this one."""
        return next((each for each in self.addresses if ip == "auto" or (":" in each) == (ip == "6")), None)


class _Thought(NamedTuple):
    """What was thought of what was `named` for a target: of all of it, or of one name's address that was new."""

    at: float
    named: tuple[tuple[str, str], ...]
    doubt: Doubt


class _Doubted(msgspec.Struct):
    """The last thoughts on behalf of a target, as it was then."""

    target: Target
    of_all: _Thought | None = None
    of_change: _Thought | None = None


class _Asked(msgspec.Struct):
    """A resolver: when it was found to lie about all names; the last question for one that cannot exist, and when."""

    lied: float = -math.inf
    at: float = -math.inf
    no_name: _NoName | None = None

    @property
    def is_under_way(self) -> bool:
        return self.no_name is not None and not self.no_name.done()


class _Remembering(Resolver):
    """Names the latest address that was known of a name, of the wanted version of IP, if any was."""

    def __init__(self, resolver: Resolver, known: dict[_Name, _Known]) -> None:
        self._others, self._remembered = resolver, known

    async def resolve(
        self, name: str, *, ip: Ip, server: str | None = None, source: str | None = None, **rest: float
    ) -> Resolved:
        """See `Resolver`."""
        known = self._remembered.get(((server, asked_from(server, source)), name))
        if known is not None and (address := known.latest(ip)) is not None:
            return Resolved((address,), None)
        return await self._others.resolve(name, ip=ip, server=server, source=source, **rest)


class Naming(Doubter):
    """Remembers addresses, and asks for those that fail."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._known: dict[_Name, _Known] = {}
        self._doubted: dict[str, _Doubted] = {}  # by target id
        self._asked: defaultdict[_Way, _Asked] = defaultdict(_Asked)
        self._turns = asyncio.Semaphore(MOST_LOOKS)

    def __len__(self) -> int:
        return len(self._known)

    def note(self, target: Target, result: Result, at: float) -> None:
        """See `Doubter`."""
        if not result.named:
            return
        way = way_of(target)
        for name, address in result.named:
            key = way, name
            known = self._known.get(key)
            if known is None:
                if len(self._known) >= MOST_NAMES:
                    del self._known[next(iter(self._known))]
                self._known[key] = _Known((address,), at, target)
                continue
            known.at = at
            if address != known.addresses[0]:
                if address not in known.addresses:
                    if self._lied(way, at):
                        continue
                    known.target, known.kept = target, -1
                others = [each for each in known.addresses if each != address]
                known.addresses = (address, *others[: MOST_ADDRESSES - 1])
            known.kept += known.target.id == target.id

    def keep_only(self, targets: Mapping[str, Target]) -> None:
        """Forgets also the resolvers that nobody has, unless they are being asked."""
        for key, known in list(self._known.items()):
            now = targets.get(known.target.id)
            if now is None or (now.url, way_of(now)) != (known.target.url, way_of(known.target)):
                del self._known[key]
            else:
                known.target = now
        for target_id in [each for each, last in self._doubted.items() if targets.get(each) != last.target]:
            del self._doubted[target_id]
        ways = {way_of(target) for target in targets.values()}
        for way in [way for way, asked in self._asked.items() if way not in ways and not asked.is_under_way]:
            del self._asked[way]

    def end(self) -> None:
        """See `Doubter`."""
        for asked in self._asked.values():
            if asked.no_name is not None:
                asked.no_name.cancel()

    def known(self, measurement: Measurement, now: float) -> Doubt:
        """See `Doubter`."""
        target, result = measurement.target, measurement.result
        if not result.named:
            return NO_DOUBT
        if self._lied(way_of(target), measurement.started) and self._is_new(target, result):
            return Doubt("resolver", "the resolver gave wrong addresses for other names just then")
        doubted = self._doubted.get(target.id)
        last = None if doubted is None or doubted.target != target else doubted.of_all
        if last is not None and last.named == result.named and now - last.at < asking.AGAIN_SECONDS:
            return msgspec.structs.replace(last.doubt, looks=())
        return _OPEN

    async def ask(self, measurement: Measurement, at: float) -> Doubt:
        """See `Doubter`.

        A resolver that answers for names that do not exist may be right about those that do, hence: the same address.
        """
        target, result = measurement.target, measurement.result
        no_name = self._ask_for_no_name(target, measurement.started)
        await asyncio.wait([no_name], timeout=SOON_SECONDS)
        doubt, changed = NO_DOUBT, self._changed(target, result)
        if changed is not None and not (no_name.done() and _wildcard(result, no_name)):
            doubt = await self._ask_about_change(measurement, *changed)
        look, _ = await asyncio.shield(no_name)
        doubt = msgspec.structs.replace(doubt, looks=(look, *doubt.looks))
        if (address := _wildcard(result, no_name)) is not None:
            why = f"the resolver answers with {address} for names that do not exist"
            doubt = msgspec.structs.replace(doubt, whose="resolver", why=why)
        self._doubts(target).of_all = _Thought(boottime(), result.named, doubt)
        return doubt

    def _doubts(self, target: Target) -> _Doubted:
        last = self._doubted.get(target.id)
        if last is None or last.target != target:
            last = self._doubted[target.id] = _Doubted(target)
        return last

    def _lied(self, way: _Way, at: float) -> bool:
        asked = self._asked.get(way)
        return asked is not None and asked.lied >= at - LIE_SECONDS

    def _is_new(self, target: Target, result: Result) -> bool:
        """Was no target ever up at one of these addresses, as far as is remembered?"""
        known = [(self._known.get((way_of(target), name)), address) for name, address in result.named]
        return any(each is None or address not in each.addresses for each, address in known)

    def _changed(self, target: Target, result: Result) -> tuple[str, str, _Known] | None:
        """The first name that had other addresses, and the one that it has now."""
        for name, address in result.named:
            known = self._known.get((way_of(target), name))
            if known is not None and address not in known.addresses:
                return name, address, known
        return None

    def _ask_for_no_name(self, target: Target, since: float) -> _NoName:
        """For a name that cannot exist (RFC 6761, section 6.4); one question for all that failed before it."""
        asked = self._asked[way_of(target)]
        if asked.no_name is None or asked.at < since:
            work = self._resolve(f"{secrets.token_hex(8)}.invalid", "auto", target, named=True)
            asked.at, asked.no_name = boottime(), asyncio.get_running_loop().create_task(work)
        return asked.no_name

    async def _ask_about_change(self, measurement: Measurement, name: str, address: str, known: _Known) -> Doubt:
        """A name that has a new address may have moved, and some have another one each time, which excuses nobody.

        It is steady that kept its addresses until lately. It is taken back when the resolver, asked again, gives one
        of these, and the failed one no more.
        """
        target, steady = measurement.target, known.steady
        if (latest := known.latest(target.ip)) is None:
            return NO_DOUBT
        doubts = self._doubts(target)
        last = doubts.of_change
        lately = last is not None and name in dict(last.named) and boottime() - last.at < asking.AGAIN_SECONDS
        if last is not None and lately and (last.doubt.whose or not steady):
            return msgspec.structs.replace(last.doubt, looks=())
        async with self._turns:
            there, (again, addresses), (compared, kept) = await asyncio.gather(
                self._measure(measurement, latest),
                self._resolve(name, target.ip, target),
                self._compare(target, {name for name, _ in measurement.result.named}),
            )
        now = boottime()
        steady = steady and now - known.at < MOVED_SECONDS
        taken_back = address not in addresses and any(each in known.addresses for each in addresses)
        lies_about_all, why = compared > 2 * kept, ""
        if there.error is None:
            if lies_about_all:
                self._asked[way_of(target)].lied = now
            if steady and taken_back:
                why = f"it is well at {latest}, which is the address that the resolver gives again"
            elif lies_about_all or (steady and not compared):
                why = f"it is well at {latest}, the address that it had before"
        doubt = Doubt("resolver" if why else None, why, looks=(there, again), compared=compared, kept=kept)
        doubts.of_change = _Thought(now, ((name, address),), doubt)
        return doubt

    async def _measure(self, measurement: Measurement, address: str) -> Look:
        """At the address that was known; a request that may not be repeated is not."""
        target, peer = measurement.target, measurement.result.peer
        seconds = min(asking.ASK_SECONDS, target.timeout)
        if measurement.prober.type == "http" and target.method not in _SAFE:
            port = 80 if peer is None or peer.port is None else peer.port
            return await questions.connect(address, port, seconds, target.source)
        prober = prober_of(target, _Remembering(self._resolver, self._known))
        return questions.measured(await single(prober).probe(time.monotonic() + seconds), address)

    async def _compare(self, target: Target, but: Collection[str]) -> tuple[int, int]:
        """For how many other names that kept their addresses there was an answer, and how many have one of these."""
        asked = way_of(target)
        others = [
            (name, known)
            for (way, name), known in self._known.items()
            if way == asked and known.steady and name not in but
        ]
        others = random.sample(others, min(len(others), MOST_COMPARED))
        answers = await asyncio.gather(*(self._resolve(name, "auto", target) for name, _ in others))
        pairs = [(set(each), known) for (_, each), (_, known) in zip(answers, others, strict=True) if each]
        return len(pairs), sum(not each.isdisjoint(known.addresses) for each, known in pairs)

    async def _resolve(self, name: str, ip: Ip, target: Target, *, named: bool = False) -> tuple[Look, tuple[str, ...]]:
        """As it is asked for on behalf of the target."""
        server, seconds = target.resolver, asking.ASK_SECONDS
        ms, error, addresses = await asking.resolve(self._resolver, name, ip, server, seconds, target.source)
        first, shown = next(iter(addresses), None), name if named else None
        return Look("resolve", ms, address=first, server=server or "host", name=shown, error=error), addresses


def way_of(target: Target) -> _Way:
    """How names are asked for on behalf of a target."""
    return target.resolver, target.source and asked_from(target.resolver, target.source)


def _wildcard(result: Result, no_name: _NoName) -> str | None:
    addresses = no_name.result()[1]
    return next((address for _, address in result.named if address in addresses), None)
