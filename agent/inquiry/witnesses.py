"""Others that are asked when a target is silent or its resolver fails: those that ought to answer.

Other targets that answered lately, as far away as what is silent and by the same way; the configured references;
Kafka's brokers, where there are no two such targets. Of a resolver: the names of other targets that it found.
"""

import asyncio
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from agent.config.masking import mask_url
from agent.config.model import Config, Target
from agent.device.clock import boottime
from agent.inquiry import questions
from agent.inquiry.case import Asked, Case
from agent.inquiry.naming import way_of
from agent.probers import asking
from agent.probers.resolver import Resolver, is_address
from agent.probers.result import Family, Peer, Result
from agent.verdict.distance import vouches
from agent.verdict.evidence import BySource

T = TypeVar("T")

MOST_KINDS = 8  # of cases, by who can vouch for them, that others are asked for at once; and so many sources
MOST_ASKED = 4  # other targets, of a kind


class Witnesses:
    """Asks them. `settle` is called when there is news; `look_again` with each case whose resolver was asked for other
    names, and one of their targets whose name it found, if any.
    """

    def __init__(
        self,
        evidence: BySource,
        resolver: Resolver,
        settle: Callable[[float], None],
        look_again: Callable[[Case, Target | None], None],
    ) -> None:
        self._evidence, self._resolver, self._settle, self._look_again = evidence, resolver, settle, look_again
        self._references: tuple[str, ...] = ()
        self._brokers: tuple[str, ...] = ()
        self.stood_still = 0.0  # when this device was seen last to do so: then nobody was slow

    def configure(self, config: Config) -> None:
        """From now on these references and brokers are asked."""
        self._references, self._brokers = config.uplink.references, config.kafka.bootstrap_servers

    async def ask(self, cases: list[Case], held: Collection[Case]) -> None:
        """A few of those that can vouch for each kind of case, of which all have one source; no target that is silent
        itself, as those are that are `held`.
        """
        kinds: dict[tuple[object, ...], list[Case]] = {}
        for case in cases:
            kinds.setdefault(_kind(case), []).append(case)
        some = list(itertools.islice(kinds.values(), MOST_KINDS))  # the others have their turn when these are asked for
        asked, now = Asked(cases[0].source), boottime()
        silent = {case.target_id for case in held if not case.answered}
        known = list(self._evidence[asked.source].witnesses(silent, now))
        random.shuffle(known)

        def everywhere() -> Iterator[tuple[Target, Result]]:
            yield from known
            for source in [each for each in self._evidence if each != asked.source]:
                yield from self._evidence[source].witnesses(silent, now)

        witnesses: dict[str, tuple[Peer, Target | None]] = {}  # with the target where it is to be measured
        names = []
        for alike in some:
            case = alike[-1]
            if case.resolver_is_blamed:
                others = _chosen(_named(everywhere(), case.measurement.target))
                names.append(self._ask_for_names(alike, asked, others))
            address = None if case.peer is None else case.peer.address
            able = ((target, result.peer) for target, result in known if result.peer is not None)
            able = ((target, peer) for target, peer in able if address is None or vouches(peer.address, address))
            if case.found.large:
                large = (each for each in able if each[0].url.startswith("https:") and each[1].address != address)
                witnesses.update({target.id: (peer, target) for target, peer in _chosen(large)})
            else:
                by = {target.id: (peer, None if peer.port else target) for target, peer in _chosen(able)}
                witnesses = by | witnesses
        of_some = [case for alike in some for case in alike]
        for case in of_some:
            case.asked = asked
        families = {case.peer.family for case in of_some if case.peer is not None}
        references = [*self._references, *self._brokers[: 0 if len(witnesses) > 1 else 2]]
        asked.asked, asked.to_come = len(witnesses), len(references)
        await asyncio.gather(
            *names,
            *(self._ask(asked, key, peer.address, peer.port or 0, of) for key, (peer, of) in witnesses.items()),
            *(self._ask_reference(asked, each, families) for each in references),
        )

    async def _ask(self, asked: Asked, key: str, address: str, port: int, measured: Target | None = None) -> None:
        begun, large = boottime(), False
        if measured is None:
            ms, error = await asking.connect(address, port, asking.ASK_SECONDS, asked.source)
        else:
            ms, error, large = await questions.measure_other(measured, address, self._resolver)
        now = boottime()
        if error in ("local_network", "local_resource"):
            asked.asked -= 1  # this device could not; who can be asked tells
        elif error in asking.ANSWERS:
            asked.answered += 1
            stall = math.inf if self.stood_still >= begun else 0.0
            peer = Peer(address, port, "ipv6" if ":" in address else "ipv4")
            self._evidence[asked.source].heard(key, peer, ms, now, stall, large=large)
            self._settle(now)
        else:
            asked.silent += 1
            if asked.nobody:
                self._settle(now)

    async def _ask_reference(self, asked: Asked, reference: str, families: Collection[Family]) -> None:
        addresses, port = await questions.addresses_of(reference, self._resolver, families, asked.source)
        asked.to_come -= 1
        asked.asked += len(addresses)
        key = f"reference {mask_url(reference, all_values=True)}"
        await asyncio.gather(*(self._ask(asked, key, address, port) for address in addresses))

    async def _ask_for_names(self, cases: list[Case], asked: Asked, targets: list[Target]) -> None:
        """Does their resolver find other names? If there are any."""
        asked.names_asked += len(targets)
        looks = await asyncio.gather(
            *(
                questions.resolve(questions.host_of(each), each.ip, self._resolver, each.resolver, asked.source)
                for each in targets
            )
        )
        found = [each for each, look in zip(targets, looks, strict=True) if look.error is None]
        asked.names_found += len(found)
        for case in cases:
            if looks:
                case.found.names = len(found) * 2 > len(looks)
            # Only now: a resolver that has got well meanwhile finds this name, too.
            self._look_again(case, next(iter(found), None))


def _named(known: Iterable[tuple[Target, Result]], of: Target) -> Iterator[Target]:
    """Targets whose names the same resolver found, asked the same way."""
    way = way_of(of)
    found = (each for each, result in known if result.resolver is not None and way_of(each) == way)
    return (each for each in found if not is_address(questions.host_of(each)))


def _chosen(those: Iterable[T]) -> list[T]:
    """The first few: with thousands to choose from no more are looked at than it takes."""
    return list(itertools.islice(those, MOST_ASKED))


def _kind(case: Case) -> tuple[object, ...]:
    """Those of one kind have the same witnesses."""
    target, peer = case.measurement.target, case.peer
    if case.resolver_is_blamed or peer is None:
        return case.resolver_is_blamed, target.resolver
    return case.found.large, peer.family, vouches(peer.address, "9.9.9.9" if peer.family == "ipv4" else "2620:fe::9")
