"""Whether an address that a resolver named is the target's: a closer look, when a target failed at one.

A resolver that lies (a captive portal's, a hijacked or broken one) leads to somebody else, who refuses, answers wrongly
or says nothing. It is asked for a name that cannot exist; and when a name has another address than those at which its
target was up, the target is measured at one of these, and other names are asked for. What is thought of the answers is
in `agent.verdict.Named`. Nothing is asked while all is well, and of a target that keeps failing rarely.
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
from agent.probers import asking, prober_of
from agent.probers.attempts import single
from agent.probers.resolver import Resolved, Resolver, asked_from
from agent.probers.result import Result
from agent.schedule import Measurement
from agent.verdict import Look, Named

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


class _Looked(NamedTuple):
    """A look at what was named for a target: at all of it, or at one name's address that was new."""

    at: float
    named: tuple[tuple[str, str], ...]
    found: Named


class _Doubted(msgspec.Struct):
    """The last looks on behalf of a target, as it was then."""

    target: Target
    looked: _Looked | None = None
    change: _Looked | None = None


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
        self,
        name: str,
        *,
        ip: Ip,
        deadline: float,
        server: str | None = None,
        source: str | None = None,
    ) -> Resolved:
        """See `Resolver`."""
        known = self._remembered.get(((server, asked_from(server, source)), name))
        if known is not None and (address := known.latest(ip)) is not None:
            return Resolved((address,), None)
        return await self._others.resolve(name, ip=ip, deadline=deadline, server=server, source=source)


class Naming:
    """Remembers addresses, and looks at those that fail. Without a resolver nothing is doubted."""

    def __init__(self, resolver: Resolver | None) -> None:
        self._resolver = resolver
        self._known: dict[_Name, _Known] = {}
        self._doubted: dict[str, _Doubted] = {}  # by target id
        self._asked: defaultdict[_Way, _Asked] = defaultdict(_Asked)
        self._looks = asyncio.Semaphore(MOST_LOOKS)

    def __len__(self) -> int:
        return len(self._known)

    def note(self, target: Target, result: Result, at: float) -> None:
        """A target was up."""
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
        """Forgets what was seen by targets other than these (by id), or for other names or by other resolvers."""
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
        """Asks nobody any more."""
        for asked in self._asked.values():
            if asked.no_name is not None:
                asked.no_name.cancel()

    def known(self, measurement: Measurement, now: float) -> Named | None:
        """What is to be thought of it as far as that is known without asking."""
        target, result = measurement.target, measurement.result
        if self._resolver is None or not result.named:
            return Named()
        if self._lied(way_of(target), measurement.started) and self._is_new(target, result):
            return Named(liar=True)
        doubted = self._doubted.get(target.id)
        last = None if doubted is None or doubted.target != target else doubted.looked
        if last is not None and last.named == result.named and now - last.at < asking.AGAIN_SECONDS:
            return msgspec.structs.replace(last.found, looks=())
        return None

    async def look(self, measurement: Measurement) -> Named:
        """Asks."""
        target, result = measurement.target, measurement.result
        no_name = self._ask_for_no_name(target, measurement.started)
        await asyncio.wait([no_name], timeout=SOON_SECONDS)
        found, changed = Named(), self._changed(target, result)
        if changed is not None and not (no_name.done() and _wildcard(result, no_name)):
            found = await self._look_at_change(measurement, *changed)
        look, _ = await asyncio.shield(no_name)
        found = msgspec.structs.replace(found, by_wildcard=_wildcard(result, no_name), looks=(look, *found.looks))
        self._doubts(target).looked = _Looked(boottime(), result.named, found)
        return found

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

    async def _look_at_change(self, measurement: Measurement, name: str, address: str, known: _Known) -> Named:
        target, steady = measurement.target, known.steady
        if (latest := known.latest(target.ip)) is None:
            return Named()
        doubts = self._doubts(target)
        last = doubts.change
        lately = last is not None and name in dict(last.named) and boottime() - last.at < asking.AGAIN_SECONDS
        if last is not None and lately and (last.found.doubt or not steady):
            return msgspec.structs.replace(last.found, looks=())
        async with self._looks:
            own, (again, addresses), (compared, kept) = await asyncio.gather(
                self._measure(measurement, latest),
                self._resolve(name, target.ip, target),
                self._compare(target, {name for name, _ in measurement.result.named}),
            )
        now = boottime()
        found = Named(
            well_at=own.address if own.error is None else None,
            steady=steady and now - known.at < MOVED_SECONDS,
            taken_back=address not in addresses and any(each in known.addresses for each in addresses),
            compared=compared,
            kept=kept,
            looks=(own, again),
        )
        doubts.change = _Looked(now, ((name, address),), found)
        if found.lies_about_all:
            self._asked[way_of(target)].lied = now
        return found

    async def _measure(self, measurement: Measurement, address: str) -> Look:
        """At the address that was known; a request that may not be repeated is not."""
        target, peer = measurement.target, measurement.result.peer
        assert self._resolver is not None
        seconds = min(asking.ASK_SECONDS, target.timeout)
        if measurement.prober.type == "http" and target.method not in _SAFE:
            port = 80 if peer is None or peer.port is None else peer.port
            ms, error = await asking.connect(address, port, seconds, target.source)
            return Look("connect", ms, address=address, port=port, error=error)
        prober = prober_of(target, _Remembering(self._resolver, self._known))
        result = await single(prober).probe(time.monotonic() + seconds)
        error = None if result.error is None else result.error.code
        return Look("measure", result.duration_ms, address=address, error=error)

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
        assert self._resolver is not None
        server, seconds = target.resolver, asking.ASK_SECONDS
        ms, error, addresses = await asking.resolve(self._resolver, name, ip, server, seconds, target.source)
        first, shown = next(iter(addresses), None), name if named else None
        return Look("resolve", ms, address=first, server=server or "host", name=shown, error=error), addresses


def way_of(target: Target) -> _Way:
    """How names are asked for on behalf of a target."""
    return target.resolver, asked_from(target.resolver, target.source)


def _wildcard(result: Result, no_name: _NoName) -> str | None:
    addresses = no_name.result()[1]
    return next((address for _, address in result.named if address in addresses), None)
