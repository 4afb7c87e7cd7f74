"""From what a probe found to a verdict: `up`, `down`, or `unknown` when this device could not judge.

A failure that can only mean the target is `down` at once: `judge`. All else is doubtful, and judged by `rule`, again
and again while more becomes known. Where a resolver had named the address, it may be that of somebody else: see
`Named`. Silence, and trouble with the resolver, are `down` only when something proves that this device's own way out
worked *after* the measurement had failed. What proves it: another target as far away, of the same family, that answered
since, or an address that was asked just then (`agent.inquiry` asks). And nothing may speak against it: a link that went
down or up meanwhile, answers that others had to be asked for twice, or the very target answering as soon as it is asked
again.
"""

import ipaddress
import itertools
import math
from collections import deque
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from agent.config.model import Target
from agent.probers.result import LONGEST_MESSAGE, Attribution, Error, Peer, Result

Status = Literal["up", "down", "unknown"]
Reach = Literal["here", "near", "far"]

SLOW_MS = 900.0  # to connect: the first packet was lost (it is sent again after 1 s: RFC 6298), or the way is very slow
LOSS_SECONDS = 10.0  # so long a sign of loss counts
REMEMBERED_SECONDS = 600.0  # so long a target that answered is one that ought to
MOST_SIGHTINGS = 512  # of a kind
PROOF_SECONDS = 1.0  # so long after a failure an answer still says how it was then: the second look at it lasts longer
FEW = 3  # witnesses; of as many or fewer one sign of loss is enough, else two: one target may lose packets of its own

_REFUSED_HERE = "that was this device's own word, which lets nothing out to there"
_NOT_ASKED = "this device had not what it takes to ask once more"
_SOURCE_ASTRAY = "what leaves by a source does not come to an address of loopback"
_INTERCEPTED = "others far from it are answered for by the same certificate, or issuer, which is none of theirs"
_NO_NAME = frozenset({"dns_nxdomain", "dns_no_address"})


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
        self._heard: dict[Reach, float] = {}  # the last answer from there, however slow
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
            _reach(peer.address) != "here" if hearsay else self.heard(target.id, peer, took, at, stall, large=large)
        )
        if proves and (connect is not None or (error is None and result.icmp is not None)):
            self._witnesses.pop(target.id, None)
            self._witnesses[target.id] = target, result, at
        if result.attempts and not stall and _reach(peer.address) != "here":
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
        reach = _reach(peer.address)
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
        for reach in ("far",) if _reach(peer.address) == "far" else ("near", "far"):
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
        far = "far" in self._heard if peer is None else _reach(peer.address) == "far"
        reaches: tuple[Reach, ...] = ("far",) if far else ("near", "far")
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
        """The `resolver` options, but this target's, by which a name was found ever. None for a target that has one of
        its own: nobody else is told its names, or speaks for those who use it.
        """
        if target.resolver is not None:
            return []
        return [resolver for resolver in self._named if resolver != target.resolver]

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


class Look(msgspec.Struct, frozen=True, omit_defaults=True):
    """One more question that was asked when the measurement had failed: `connect` to an `address`, `resolve` by a
    `server` (another `name` than the target's, if there is one; `address`: the first that it gave), or `measure` all of
    it again (at another `address`). `ms`: how long it took. `error`: its code; without it there was an answer.
    """

    what: Literal["connect", "resolve", "measure"]
    ms: float
    address: str | None = None
    port: int | None = None
    server: str | None = None
    name: str | None = None
    error: str | None = None


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was looked at before anyone was blamed, or not; what is absent could not be told, or was not needed.

    Of this device's way there: `route`; the `interface`, whether its `link` is up and has a carrier, and whether that
    changed since the measurement began; the `gateway`, and whether it answers to the question for its hardware address.
    Of others, when the measurement had ended: the id of an `other` target that answered, or its address; how many
    addresses were `asked`, and `answered`; for how many other names its resolver was asked (`names_asked`), and found
    an address (`names_found`); how many other names, which had kept their addresses, were asked for (`names_compared`),
    and have one of these still (`names_kept`); `loss`: some had to be asked twice lately.
    `waited_ms` went by between the measurement's end and its verdict.
    """

    waited_ms: float
    route: bool | None = None
    interface: str | None = None
    link: bool | None = None
    link_changed: bool = False
    gateway: str | None = None
    gateway_answers: bool | None = None
    other: str | None = None
    asked: int = 0
    answered: int = 0
    names_asked: int = 0
    names_found: int = 0
    names_compared: int = 0
    names_kept: int = 0
    loss: bool = False


class Ruling(NamedTuple):
    """What is recorded of one measurement besides what was found: the verdict, the error that goes with it, what was
    `seen` for it, and the questions that the target itself was asked once more. Both are None when nobody looked.
    """

    status: Status
    error: Error | None = None
    seen: Seen | None = None
    own: tuple[Look, ...] | None = None


class Named(msgspec.Struct, frozen=True):
    """What a closer look at the addresses brought that a resolver had named.

    `by_wildcard`: the one that it gives for a name that cannot exist, too. `well_at`: an address that a name had when
    its target was up, and where the target is well now; None unless it has another now. `steady`: until lately the name
    kept its addresses. `taken_back`: asked again, the resolver gives one of these, and the failed one no more. `kept`
    of `compared` other names that did so have one of theirs still. `liar`: it was found to lie about others just then.
    """

    by_wildcard: str | None = None
    well_at: str | None = None
    steady: bool = False
    taken_back: bool = False
    compared: int = 0
    kept: int = 0
    liar: bool = False
    looks: tuple[Look, ...] = ()

    @property
    def lies_about_all(self) -> bool:
        """Whether no address can be believed that this resolver gives."""
        return self.well_at is not None and self.compared > 2 * self.kept

    @property
    def doubt(self) -> str:
        """Why the address may be that of somebody else, for people; empty when there is no reason to think so.

        A resolver that answers for names that do not exist may be right about those that do, hence: the same address.
        A name that has a new address may have moved, and some have another one each time, which excuses nobody.
        """
        if self.by_wildcard is not None:
            return f"the resolver answers with {self.by_wildcard} for names that do not exist"
        if self.liar:
            return "the resolver gave wrong addresses for other names just then"
        if self.well_at is None:
            return ""
        if self.steady and self.taken_back:
            return f"it is well at {self.well_at}, which is the address that the resolver gives again"
        if self.lies_about_all or (self.steady and not self.compared):
            return f"it is well at {self.well_at}, the address that it had before"
        return ""


class Found(msgspec.Struct):
    """What an inquiry knows of one failure so far.

    `own`: the second look at the target, whose first question is the one that had failed; None while it is under way.
    `before`, `after`: who else answered while it was measured, and soon after; with `large` only he counts then who
    sent as much as a certificate. `names`: whether the resolver finds most of the other names that it is asked for;
    None while it is not known. `named`: what is to be thought of the address. `refused_here`: whether it was this
    device itself that refused the connection. `intercepted`: whether others far from it are answered for by the same
    certificate, which is none of theirs. These three are None while it is not known. `barred`: why nothing could come
    through, on this device's side. `over`: it has to be judged now.
    """

    own: tuple[Look, ...] | None = ()
    before: str | None = None
    after: str | None = None
    large: bool = False
    names: bool | None = None
    named: Named | None = Named()
    refused_here: bool | None = False
    intercepted: bool | None = False
    barred: str = ""
    over: bool = False


def judge(
    target: Target, result: Result, at: float, evidence: Evidence, found: Found, *, clock_synchronized: bool
) -> Ruling | None:
    """The verdict of a failure and the error to record with it; None when it is doubtful. `found`: without asking."""
    error = result.error
    assert error is not None
    if error.code in ("tls_cert_expired", "tls_cert_not_yet_valid") and not clock_synchronized:
        told = f"this device's clock is not synchronized, so the certificate's dates cannot be judged: {error.message}"
        return Ruling("unknown", Error(error.phase, "clock_unsynchronized", "local", told[:LONGEST_MESSAGE]))
    if error.attribution == "path":
        if result.peer is not None and _reach(result.peer.address) == "here":
            here = Ruling("down", _attributed(error, "target"))
            return here if target.source is None else _local(error, _SOURCE_ASTRAY)
        return None
    if error.attribution == "resolver" or error.code == "local_network":
        return None
    if error.phase == "resolve" and error.code in _NO_NAME and evidence.finds_names(target, at):
        return None  # one that finds other names; a single name's resolver is taken at its word
    if error.attribution == "target" and error.phase != "resolve":
        return _rule_on_answer(error, found)
    return Ruling("down" if error.attribution == "target" else "unknown", error)


def rule(target: Target, result: Result, at: float, evidence: Evidence, found: Found) -> Ruling | None:
    """The verdict of a doubtful failure that ended `at`; None while that is open, which it is not once it is over."""
    error = result.error
    assert error is not None
    if error.attribution == "local":
        return Ruling("unknown", error) if found.over or evidence.heard_since(None, at) else None
    if error.attribution == "target" and error.phase != "resolve":
        return _rule_on_answer(error, found)
    if found.named is None and not found.over:
        return None
    if found.barred:
        return _local(error, found.barred)
    if found.own is None and not found.over:
        return None
    if error.phase == "resolve":
        return _rule_on_resolver(target, error, at, evidence, found)
    if found.named is not None and found.named.doubt:
        return _rule_on_answer(error, found)
    return _rule_on_silence(target, result, at, evidence, found)


def _rule_on_answer(error: Error, found: Found) -> Ruling | None:
    """Somebody answered, and wrongly; or nobody did where the resolver had led."""
    if found.refused_here:
        return _local(error, _REFUSED_HERE)
    if found.intercepted:
        return _local(error, _INTERCEPTED)
    if None in (found.named, found.refused_here, found.intercepted) and not found.over:
        return None
    if found.refused_here is None:
        return Ruling("unknown", _attributed(error, "unknown"))  # nobody could look whether it was this device
    if found.named is None or not found.named.doubt:
        return Ruling("down", error)
    told = f"{error.message}; but {found.named.doubt}"[:LONGEST_MESSAGE]
    return Ruling("unknown", Error(error.phase, error.code, "resolver", told))


def _rule_on_silence(target: Target, result: Result, at: float, evidence: Evidence, found: Found) -> Ruling | None:
    error, own = result.error, found.own or ()
    assert error is not None
    unknown = Ruling("unknown", _attributed(error, "unknown"))
    if own and own[0].error == "local_network":
        return _local(error, _REFUSED_HERE)
    if own and own[0].error == "local_resource":
        return _local(error, _NOT_ASKED)
    answers = bool(own) and own[0].error is None
    if (answers and (not result.heard or own[0].what == "measure")) or evidence.lossy(target.id, at):
        return unknown
    if found.after is not None and (own or found.before is not None):
        return Ruling("down", error)
    if answers and not result.resent and not found.large and own[0].ms < SLOW_MS:
        # Its network takes connections, and took the request: what is silent is the target.
        return Ruling("down", error)
    return unknown if found.over else None


def _rule_on_resolver(target: Target, error: Error, at: float, evidence: Evidence, found: Found) -> Ruling | None:
    unknown = Ruling("unknown", _attributed(error, "resolver"))
    if found.own is None or any(look.error is None for look in found.own):
        return unknown  # the name may be there, or is: it is the resolver that failed
    if found.names is False or evidence.lossy(target.id, at):
        return unknown
    # A resolver near by may answer from its memory while there is no way out.
    if found.names and (error.code in _NO_NAME or evidence.heard_since(None, at)):
        return Ruling("down", error)
    return unknown if found.over else None


def vouches(witness: str, for_address: str) -> bool:
    """Whether an answer from the one address says that there is a way to the other. A neighbour is no witness for the
    world, and one family of addresses is none for the other.
    """
    reach = _reach(witness)
    return (":" in witness) == (":" in for_address) and (
        reach == "far" or (reach == "near" and _reach(for_address) == "near")
    )


def _counted(those: Iterator[object], most: int) -> int:
    return sum(1 for _ in itertools.islice(those, most))


def _local(error: Error, why: str) -> Ruling:
    return Ruling("unknown", Error(error.phase, error.code, "local", f"{error.message}; but {why}"[:LONGEST_MESSAGE]))


def _attributed(error: Error, attribution: Attribution) -> Error:
    return msgspec.structs.replace(error, attribution=attribution)


@lru_cache(maxsize=32_768)  # more than a configuration has targets: to parse an address takes 30 µs
def _reach(address: str) -> Reach:
    """How far away it is: this device, a network that is not the Internet (RFC 6890), or the Internet."""
    parsed = ipaddress.ip_address(address)
    return "here" if parsed.is_loopback else "far" if parsed.is_global else "near"
