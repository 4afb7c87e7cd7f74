"""Whether a certificate that was refused is that of somebody between, who answers for every address.

A captive portal, or a gateway that reads along, shows the same certificate or issuer for all sites. So when a target
has another certificate than it had when it was up, a few others are measured that are far from it. All on one server
have a wrong certificate together; sites in different networks, which had good ones of their own, hardly ever do.
"""

import asyncio
import ipaddress
import itertools
import math
import random
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agent.config.model import Target
from agent.device.clock import boottime
from agent.inquiry import questions
from agent.inquiry.doubter import Doubter
from agent.probers import asking
from agent.probers.resolver import Resolver
from agent.probers.result import Peer, Result
from agent.schedule import Measurement
from agent.verdict.found import NO_DOUBT, Doubt

INTERCEPTED_SECONDS = 10.0  # so long it counts for others that somebody between was seen
MOST_ASKED = 3  # others

_REFUSED = frozenset({"tls_untrusted", "tls_hostname_mismatch", "tls_cert_expired", "tls_cert_not_yet_valid"})
_OPEN = Doubt(is_open=True)  # where nobody could ask, it is the target's
_BETWEEN = Doubt(
    "local", "others far from it are answered for by the same certificate, or issuer, which is none of theirs"
)
_NEVER = (-math.inf, None)
_NETWORK = {"ipv4": 16, "ipv6": 32}  # bits that addresses of the same operator have in common


class _Good(NamedTuple):
    """The certificate of a target that was up, and where. `redirected`: by another name than the target's, perhaps.

    `asked`: when others were asked in vain, and at which certificate of the target's.
    """

    target: Target
    sha256: str | None
    issuer: str | None
    peer: Peer
    redirected: bool
    asked: tuple[float, str | None]


class Certificates(Doubter):
    """Remembers those of the targets that were up. `turns`: of those who measure others."""

    def __init__(self, resolver: Resolver, turns: asyncio.Semaphore) -> None:
        self._resolver, self._turns = resolver, turns
        self._good: dict[str, _Good] = {}
        self._between: dict[str, float] = {}  # digests and issuers that were seen for unrelated targets, and when

    def note(self, target: Target, result: Result, at: float) -> None:
        """See `Doubter`."""
        tls, peer = result.tls, result.peer
        if tls is None or not tls.verified or peer is None:
            return
        redirected = result.http is not None and result.http.redirects > 0
        known = self._good_of(target)
        asked = _NEVER if known is None else known.asked
        self._good[target.id] = _Good(target, tls.sha256, tls.issuer, peer, redirected, asked)

    def keep_only(self, targets: Mapping[str, Target]) -> None:
        """Forgets also those that are measured elsewhere or otherwise now."""
        for target_id, good in list(self._good.items()):
            now = targets.get(target_id)
            if now is None or _where(now) != _where(good.target):
                del self._good[target_id]
            else:
                self._good[target_id] = good._replace(target=now)

    def known(self, measurement: Measurement, now: float) -> Doubt:
        """See `Doubter`."""
        target, result = measurement.target, measurement.result
        foreign, good = self._foreign(target, result), self._good_of(target)
        if not foreign or good is None:
            return NO_DOUBT
        if any(self._between.get(each, 0.0) >= measurement.started - INTERCEPTED_SECONDS for each in foreign):
            return _BETWEEN
        at, sha256 = good.asked
        seen = result.tls is not None and result.tls.sha256 == sha256
        return NO_DOUBT if seen and now - at < asking.AGAIN_SECONDS else _OPEN

    async def ask(self, measurement: Measurement, at: float) -> Doubt:
        """Measures others, at the addresses where they were up."""
        target, result = measurement.target, measurement.result
        async with self._turns:
            foreign, before = self._foreign(target, result), self._good_of(target)
            if before is None:  # the target left the configuration meanwhile
                return NO_DOUBT
            known = list(self._good.values())
            random.shuffle(known)  # and not all are compared: of ten thousand that takes longer than a stall may
            far = (good for good in known if not good.redirected and _is_far(good.peer, result.peer, before.peer))
            others = list(itertools.islice(far, MOST_ASKED))
            results = await asyncio.gather(*(self._measure(each) for each in others))
        pairs = list(zip(others, results, strict=True))
        looks = tuple(questions.measured(found, good.peer.address) for good, found in pairs)
        shared = set[str]().union(*(self._foreign(good.target, found) for good, found in pairs))
        now = boottime()
        if both := foreign & shared:
            self._between = dict.fromkeys(both, now)
            return msgspec.structs.replace(_BETWEEN, looks=looks)
        if (good_now := self._good_of(target)) is not None:
            self._good[target.id] = good_now._replace(asked=(now, None if result.tls is None else result.tls.sha256))
        return Doubt(looks=looks)

    async def _measure(self, good: _Good) -> Result:
        seconds = min(asking.ASK_SECONDS, good.target.timeout)
        return await questions.measure_least(good.target, good.peer.address, self._resolver, seconds)

    def _good_of(self, target: Target) -> _Good | None:
        good = self._good.get(target.id)
        same = good is not None and (good.target is target or _where(good.target) == _where(target))
        return good if same else None

    def _foreign(self, target: Target, result: Result) -> set[str]:
        """What is said of a refused certificate, as far as it is not as it was."""
        good, tls, error = self._good_of(target), result.tls, result.error
        if good is None or tls is None or error is None or error.code not in _REFUSED:
            return set()
        return {each for each in (tls.sha256, tls.issuer) if each and each not in (good.sha256, good.issuer)}


def _where(target: Target) -> tuple[object, ...]:
    """The options of a target that say whose certificate is seen, and what is thought of it."""
    return target.url, target.connect_to, target.ip, target.source, target.resolver, target.tls


def _is_far(other: Peer, *peers: Peer | None) -> bool:
    """Whether it is in another network than these, of the same family."""
    bits = _NETWORK[other.family]
    network = ipaddress.ip_network(f"{other.address}/{bits}", strict=False)
    return all(
        each is not None and each.family == other.family and ipaddress.ip_address(each.address) not in network
        for each in peers
    )
