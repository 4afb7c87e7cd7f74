"""The target itself is asked once more: one that fell silent, and by the resolver that failed."""

import asyncio
from collections.abc import Collection

import msgspec

from agent.config.model import Target
from agent.device.clock import boottime
from agent.inquiry import questions
from agent.inquiry.case import Case
from agent.probers import asking
from agent.probers.resolver import Resolver, is_address
from agent.verdict.evidence import BySource
from agent.verdict.found import Look

MOST_ADDRESSES = 3  # of one target

_HARMLESS = frozenset({"icmp", "dns"})  # types of probers whose measurement is made again; others get a connection


class SecondLooks:
    """Takes them, rarely at what is silent still. `turns`: of those who measure others, too."""

    def __init__(self, evidence: BySource, resolver: Resolver, turns: asyncio.Semaphore) -> None:
        self._evidence, self._resolver, self._turns = evidence, resolver, turns
        self._last: dict[str, tuple[Target, float]] = {}  # at each target, as it was

    def forget(self, target_id: str) -> None:
        """The last one: what fails now is looked at again."""
        self._last.pop(target_id, None)

    def keep_only(self, targets: Collection[str]) -> None:
        """Forgets those at others."""
        self._last = {target_id: last for target_id, last in self._last.items() if target_id in targets}

    def is_due(self, case: Case) -> bool:
        """Whether it takes one: not where it is silent still, as others were heard meanwhile."""
        target, error = case.measurement.target, case.measurement.result.error
        if error is None or error.attribution == "local" or case.answered:
            return False
        if not case.resolver_is_blamed and case.peer is None:
            return False
        last, quick = questions.last_asked(target, self._last), self._evidence[case.source].last_quick(target.id)
        silent_still = quick <= last and case.at - last < asking.AGAIN_SECONDS
        return not (silent_still and case.found.before is not None)

    async def take(self, case: Case, other: Target | None) -> None:
        """`other`: a target whose name the resolver found just then."""
        async with self._turns:
            looks = await (self._by_resolvers(case, other) if case.resolver_is_blamed else self._at_target(case))
        case.found.again = tuple(looks)
        if looks and looks[0].error == "local_network":
            self.forget(case.target_id)  # what this device does to itself is looked at each time

    async def _by_resolvers(self, case: Case, other: Target | None) -> list[Look]:
        target, name, looks = case.measurement.target, _name(case), list[Look]()
        if name is not None:
            servers = [target.resolver, *self._evidence[case.source].other_resolvers(target)][:2]
            looks = await asyncio.gather(*(self._resolve(name, target, each, case) for each in servers))
        if other is not None and all(look.error is not None for look in looks):
            # A resolver that has got ill again meanwhile does not find what it found.
            again = await self._resolve(questions.host_of(other), other, other.resolver, case)
            case.found.names = case.found.names and again.error is None
        return looks

    async def _resolve(self, name: str, target: Target, server: str | None, case: Case) -> Look:
        return await questions.resolve(name, target.ip, self._resolver, server, case.source)

    async def _at_target(self, case: Case) -> list[Look]:
        measurement, peer = case.measurement, case.peer
        assert peer is not None
        self._last[case.target_id] = measurement.target, case.at
        if measurement.prober.type in _HARMLESS:
            looks = [await questions.measure_again(measurement)]
        else:
            assert peer.port is not None
            same = _connect(peer.address, peer.port, asking.ASK_SECONDS, case)
            first, others = await asyncio.gather(same, self._at_siblings(peer.address, peer.port, case))
            looks = [first, *others]
        if looks[0].error is None and not measurement.result.heard:
            self._evidence[case.source].lost(case.target_id, boottime())
        return looks

    async def _at_siblings(self, address: str, port: int, case: Case) -> list[Look]:
        """The other addresses of the name."""
        target, name, third = case.measurement.target, _name(case), asking.ASK_SECONDS / 3
        if target.connect_to is not None or name is None:
            return []
        _, _, all_of_it = await asking.resolve(self._resolver, name, target.ip, target.resolver, third, target.source)
        if address not in all_of_it:
            return []
        siblings = [each for each in all_of_it if each != address][: MOST_ADDRESSES - 1]
        return await asyncio.gather(*(_connect(each, port, 2 * third, case) for each in siblings))


async def _connect(address: str, port: int, seconds: float, case: Case) -> Look:
    look = await questions.connect(address, port, seconds, case.source)
    return msgspec.structs.replace(look, error=None if look.error in asking.ANSWERS else look.error)


def _name(case: Case) -> str | None:
    """The name that was resolved, if it is known: a redirect may have led to another."""
    name, http = questions.host_of(case.measurement.target), case.measurement.result.http
    return None if not name or is_address(name) or (http is not None and http.redirects) else name
