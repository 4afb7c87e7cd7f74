"""What was seen: who answered, how quickly, which resolver found names, and who had to be asked twice."""

import itertools
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping

from agent.config.model import Target
from agent.probers.result import Peer, Result
from agent.verdict import distance

SLOW_MS = 900.0  # to connect: the first packet was lost (it is sent again after 1 s: RFC 6298), or the way is very slow
LOSS_SECONDS = 10.0  # so long a sign of loss counts
REMEMBERED_SECONDS = 600.0  # so long a target that answered is one that ought to
MOST_SIGHTINGS = 512  # of a kind
PROOF_SECONDS = 1.0  # so long after a failure an answer still says how it was then: the second look at it lasts longer
FEW = 3  # witnesses; of as many or fewer one sign of loss is enough, else two: one target may lose packets of its own


class _Sightings:
    """The last ones of one kind: whose, and when."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: deque[tuple[str, float]] = deque(maxlen=MOST_SIGHTINGS)

    def saw(self, key: str, at: float) -> None:
        self._last.append((key, at))

    def other_than(self, key: str, since: float, until: float) -> str | None:
        for each, at in reversed(self._last):
            if at < since:
                return None
            if at <= until and each != key:
                return each
        return None


class Evidence:
    """What this device saw that tells its own troubles from a target's, on one way out: that of a `source`, or of all
    targets without. Times are seconds since boot.
    """

    def __init__(self) -> None:
        self._quick = {(reach, family): _Sightings() for reach in ("near", "far") for family in ("ipv4", "ipv6")}
        # By address, of whom a certificate came: packets as large as there are, where a line may lose just those.
        self._large = {kind: _Sightings() for kind in self._quick}
        self._heard: dict[distance.Reach, float] = {}  # the last answer from there, however slow
        self._named: dict[str | None, _Sightings] = {}  # by the `resolver` option; None is the host's own
        # Both in the order of their times, so that the last seconds of many targets are found without all the others.
        self._witnesses: dict[str, tuple[Target, Result, float]] = {}  # the last quick answer of each, and when
        self._signs: dict[str, float] = {}  # of loss: by target, the last one

    def note(
        self,
        target: Target,
        result: Result,
        at: float,
        stall: float = 0.0,
        names: "Evidence | None" = None,
        *,
        hearsay: bool = False,
    ) -> None:
        """Takes a result in: whose address answered, how quickly, and which resolver named it.

        `stall`: the longest time, in seconds, that this device was seen to stand still meanwhile. `names`: the evidence
        of the way by which the resolver was asked, if it is another. `hearsay`: nobody looked whose answer it was, so
        it proves nothing; but who refused lately ought to do so when he is asked.
        """
        peer, error = result.peer, result.error
        # What was silent in the end may have said something, but when?
        if peer is None or (error is not None and error.attribution != "target"):
            return
        if error is None and result.icmp is not None and not result.icmp.received:
            return  # it is well without a reply, as far as `loss` goes
        if result.resolver is not None:
            (self if names is None else names).resolved(target.id, target.resolver, at)
        connect = result.phases_ms.connect
        took = result.phases_ms.wait if connect is None else connect
        if result.icmp is not None and result.icmp.rtt_ms is not None:
            took = result.icmp.rtt_ms.max  # the wait is that for all of them, which are sent one after the other
        large = result.tls is not None
        proves = (
            distance.of(peer.address) != "here"
            if hearsay
            else self.heard(target.id, peer, took, at, stall, large=large)
        )
        if proves and (connect is not None or (error is None and result.icmp is not None)):
            self._witnesses.pop(target.id, None)
            self._witnesses[target.id] = target, result, at
        if result.attempts and not stall and distance.of(peer.address) != "here":
            silent = any(each.address == peer.address and not each.heard for each in result.attempts)
            if silent:
                self.lost(target.id, at)

    def heard(
        self, key: str, peer: Peer, took_ms: float | None, at: float, stall: float = 0.0, *, large: bool = False
    ) -> bool:
        """An address answered, after so long (to connect, if it was by TCP); `key`: the target's id, or whose it is.
        `large`: by a certificate, too.

        Whether it is an answer that proves something.
        """
        reach = distance.of(peer.address)
        if reach == "here":
            return False
        self._heard[reach] = at
        if large:
            self._large[reach, peer.family].saw(peer.address, at)
        if took_ms is None or took_ms < SLOW_MS:
            self._quick[reach, peer.family].saw(key, at)
            return True
        if took_ms - stall * 1000 < SLOW_MS:
            return False  # it may have been this device that was slow
        known = self._witnesses.get(key)  # an echo that is late was not sent again
        if known is not None and known[1].icmp is None and at - known[2] < REMEMBERED_SECONDS:
            self.lost(key, at)
        return False

    def resolved(self, key: str, resolver: str | None, at: float) -> None:
        """The resolver (a target's option) named an address."""
        recent = self._named.get(resolver)
        if recent is None:
            recent = self._named[resolver] = _Sightings()
        recent.saw(key, at)

    def lost(self, key: str, at: float) -> None:
        """A sign of loss: it answered, and not at first."""
        self._signs.pop(key, None)
        self._signs[key] = at

    def last_quick(self, target_id: str) -> float:
        """When this target answered quickly last; 0 when that was never seen."""
        known = self._witnesses.get(target_id)
        return 0.0 if known is None else known[2]

    def other(
        self, target_id: str, peer: Peer, since: float, until: float = math.inf, *, large: bool = False
    ) -> str | None:
        """Who else, as far away as this or farther, answered quickly between: see `vouches`. `large`: the address of
        another one that sent a certificate.
        """
        kinds, key = (self._large, peer.address) if large else (self._quick, target_id)
        for reach in ("far",) if distance.of(peer.address) == "far" else ("near", "far"):
            if (found := kinds[reach, peer.family].other_than(key, since, until)) is not None:
                return found
        return None

    def asks_for_large(self, target_id: str, result: Result, at: float) -> bool:
        """Whether what is silent may be so for the size of its answer, and others' certificates can tell. It took a
        connection, and no more came of it than small packets.
        """
        if result.error is None or result.peer is None or result.phases_ms.connect is None or result.tls is not None:
            return False
        silent = result.error.attribution == "path" and result.error.phase in ("tls", "wait", "receive")
        return silent and self.other(target_id, result.peer, at - REMEMBERED_SECONDS, at, large=True) is not None

    def finds_names(self, target: Target, now: float) -> bool:
        """Whether this target's resolver found an address for another one lately."""
        found = self._named.get(target.resolver)
        return found is not None and found.other_than(target.id, now - REMEMBERED_SECONDS, now) is not None

    def heard_since(self, peer: Peer | None, since: float) -> bool:
        """Whether anything as far away as this answered since, of any family, slowly or quickly. Without an address: as
        far away as anything ever did."""
        far = "far" in self._heard if peer is None else distance.of(peer.address) == "far"
        reaches: tuple[distance.Reach, ...] = ("far",) if far else ("near", "far")
        return any(self._heard.get(reach, -1.0) >= since for reach in reaches)

    def lossy(self, target_id: str, now: float) -> bool:
        """Whether others had to be asked twice lately: what is silent may have been lost on the way."""
        since = now - LOSS_SECONDS
        recent = itertools.takewhile(lambda sign: sign[1] >= since, reversed(self._signs.items()))
        signs = _counted((key for key, _ in recent if key != target_id), 2)
        if signs == 1:
            seen = itertools.takewhile(lambda known: known[2] >= since, reversed(self._witnesses.values()))
            return _counted((known for known in seen if known[0].id != target_id), FEW + 1) <= FEW
        return signs > 1

    def other_resolvers(self, target: Target) -> list[str | None]:
        """The `resolver` options, but this target's, by which a name was found ever. There are none for a target that
        has one of its own: nobody else is told its names, or speaks for those who use it.
        """
        if target.resolver is not None:
            return []
        return [resolver for resolver in self._named if resolver is not None]

    def witnesses(self, but: Collection[str], now: float) -> Iterator[tuple[Target, Result]]:
        """The targets that ought to answer when they are asked, as they did lately."""
        return (
            (target, result)
            for key, (target, result, at) in self._witnesses.items()
            if key not in but and now - at < max(REMEMBERED_SECONDS, 2 * target.interval)
        )

    def keep_only(self, target_ids: Collection[str], resolvers: Collection[str | None]) -> None:
        """Forgets the other targets, and the resolvers that no target has."""
        self._named = {each: recent for each, recent in self._named.items() if each in resolvers}
        for known in (self._witnesses, self._signs):
            for key in [key for key in known if key not in target_ids]:
                del known[key]


def _counted(those: Iterator[object], most: int) -> int:
    return sum(1 for _ in itertools.islice(those, most))


BySource = Mapping[str | None, Evidence]
"""None is that of all targets without: what goes one way vouches for nothing that goes another."""
