"""From what a probe found to a verdict: `up`, `down`, or `unknown` when this device could not judge.

A failure that can only mean the target is `down` at once: `judge`. All else is doubtful, and judged by `rule`, again
and again while more becomes known. Where a resolver had named the address, it may be that of somebody else: see
`Named`. Silence, and trouble with the resolver, are `down` only when something proves that this device's own way out
worked *after* the measurement had failed. What proves it: another target as far away, of the same family, that answered
since, or an address that was asked just then (`agent.inquiry` asks). And nothing may speak against it: a link that went
down or up meanwhile, answers that others had to be asked for twice, or the very target answering as soon as it is asked
again.
"""

import msgspec

from agent.config.model import Target
from agent.probers.result import LONGEST_MESSAGE, Attribution, Error, Result
from agent.verdict import distance
from agent.verdict.evidence import SLOW_MS, Evidence
from agent.verdict.found import Found, Ruling

_REFUSED_HERE = "that was this device's own word, which lets nothing out to there"
_NOT_ASKED = "this device had not what it takes to ask once more"
_SOURCE_ASTRAY = "what leaves by a source does not come to an address of loopback"
_INTERCEPTED = "others far from it are answered for by the same certificate, or issuer, which is none of theirs"
_NO_NAME = frozenset({"dns_nxdomain", "dns_no_address"})


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
        if result.peer is not None and distance.of(result.peer.address) == "here":
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


def _local(error: Error, why: str) -> Ruling:
    return Ruling("unknown", Error(error.phase, error.code, "local", f"{error.message}; but {why}"[:LONGEST_MESSAGE]))


def _attributed(error: Error, attribution: Attribution) -> Error:
    return msgspec.structs.replace(error, attribution=attribution)
