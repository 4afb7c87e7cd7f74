"""From what a probe found to a verdict: `up`, `down`, or `unknown` when this device could not judge.

A failure that can only mean the target is `down` at once: `judge`. All else is doubtful, and judged by `rule`, again
and again while more becomes known. Where somebody else may have answered no target is blamed: see `Doubt`. Silence, and
trouble with the resolver, are `down` only when something proves that this device's own way out worked *after* the
measurement had failed. What proves it: another target as far away, of the same family, that answered since, or an
address that was asked just then (`agent.inquiry` asks). And nothing may speak against it: a link that went down or up
meanwhile, answers that others had to be asked for twice, or the very target answering as soon as it is asked again.
"""

import msgspec

from agent.config.model import Target
from agent.probers.result import LONGEST_MESSAGE, Attribution, Error, Result
from agent.verdict import distance
from agent.verdict.evidence import SLOW_MS, Evidence
from agent.verdict.found import REFUSED_HERE, Found, Ruling

_NOT_ASKED = "this device had not what it takes to ask once more"
_SOURCE_ASTRAY = "what leaves by a source does not come to an address of loopback"
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
        if result.peer is None or distance.of(result.peer.address) != "here":
            return None
        if target.source is not None:
            return _unknown(error, "local", _SOURCE_ASTRAY)
        return Ruling("down", msgspec.structs.replace(error, attribution="target"))
    if error.attribution == "resolver" or error.code == "local_network":
        return None
    if error.phase == "resolve" and error.code in _NO_NAME and evidence.finds_names(target, at):
        return None  # one that finds other names; a single name's resolver is taken at its word
    if error.is_an_answer:
        return _rule_on_answer(error, found)
    return Ruling("down" if error.attribution == "target" else "unknown", error)


def rule(target: Target, result: Result, at: float, evidence: Evidence, found: Found) -> Ruling | None:
    """The verdict of a doubtful failure that ended `at`; None while that is open, which it is not once it is over."""
    error, doubt = result.error, found.doubt
    assert error is not None
    if error.attribution == "local":
        return Ruling("unknown", error) if found.over or evidence.heard_since(None, at) else None
    if error.is_an_answer:
        return _rule_on_answer(error, found)
    if doubt is None:
        return None
    if found.barred:
        return _unknown(error, "local", found.barred)
    if found.again is None and not found.over:
        return None
    if error.phase == "resolve":
        return _rule_on_resolver(target, error, at, evidence, found)
    if doubt.whose is not None:
        return _unknown(error, doubt.whose, doubt.why)  # nobody answered where the resolver had led
    return _rule_on_silence(target, result, at, evidence, found)


def _rule_on_answer(error: Error, found: Found) -> Ruling | None:
    """Somebody answered, and wrongly."""
    if (doubt := found.doubt) is None:
        return None
    return Ruling("down", error) if doubt.whose is None else _unknown(error, doubt.whose, doubt.why)


def _rule_on_silence(target: Target, result: Result, at: float, evidence: Evidence, found: Found) -> Ruling | None:
    error, again = result.error, found.again or ()
    assert error is not None
    if again and again[0].error == "local_network":
        return _unknown(error, "local", REFUSED_HERE)
    if again and again[0].error == "local_resource":
        return _unknown(error, "local", _NOT_ASKED)
    answers = bool(again) and again[0].error is None
    if (answers and (not result.heard or again[0].what == "measure")) or evidence.lossy(target.id, at):
        return _unknown(error, "unknown")
    if found.after is not None and (again or found.before is not None):
        return Ruling("down", error)
    if answers and not result.resent and not found.large and again[0].ms < SLOW_MS:
        # Its network takes connections, and took the request: what is silent is the target.
        return Ruling("down", error)
    return _unknown(error, "unknown") if found.over else None


def _rule_on_resolver(target: Target, error: Error, at: float, evidence: Evidence, found: Found) -> Ruling | None:
    if found.again is None or any(look.error is None for look in found.again):
        return _unknown(error, "resolver")  # the name may be there, or is: it is the resolver that failed
    if found.names is False or evidence.lossy(target.id, at):
        return _unknown(error, "resolver")
    # A resolver near by may answer from its memory while there is no way out.
    if found.names and (error.code in _NO_NAME or evidence.heard_since(None, at)):
        return Ruling("down", error)
    return _unknown(error, "resolver") if found.over else None


def _unknown(error: Error, whose: Attribution, why: str = "") -> Ruling:
    told = f"{error.message}; but {why}"[:LONGEST_MESSAGE] if why else error.message
    return Ruling("unknown", Error(error.phase, error.code, whose, told))
