"""From what a probe found to a verdict: `up`, `down`, or `unknown` when this device could not judge.

A failure that can only mean the target is `down` at once. Silence is `down` only when this device's own way out was
seen to work: the target itself took the connection before it fell silent, or *another* target answered within the last
`PROOF_SECONDS`. A resolver's failure is `down` only when that resolver answered for another target in that time.
"""

import ipaddress
from functools import lru_cache
from typing import Literal

import msgspec

from agent.config.model import Target
from agent.probers.result import Error, Result

Status = Literal["up", "down", "unknown"]
Reach = Literal["here", "near", "far"]

PROOF_SECONDS = 30.0


class _Recent:
    """Remembers the latest sighting, and the latest of another key: enough to ask "another one than me, lately?"."""

    __slots__ = ("_latest", "_other")

    def __init__(self) -> None:
        self._latest: tuple[str, float] | None = None
        self._other: tuple[str, float] | None = None

    def saw(self, key: str, now: float) -> None:
        if self._latest is not None and self._latest[0] != key:
            self._other = self._latest
        self._latest = (key, now)

    def saw_other_than(self, key: str, since: float) -> bool:
        return any(
            sighting is not None and sighting[0] != key and sighting[1] >= since
            for sighting in (self._latest, self._other)
        )


class Evidence:
    """What this device saw lately that tells its own troubles from a target's. Times are seconds since boot."""

    def __init__(self) -> None:
        self._answers: dict[Reach, _Recent] = {"near": _Recent(), "far": _Recent()}
        # By the target's `resolver` option; None is the host's own.
        self._resolvers: dict[str | None, _Recent] = {}

    def note(self, target: Target, result: Result, now: float) -> None:
        """Takes a result in: whose address answered, and which resolver."""
        if result.peer is not None and result.heard and (reach := _reach(result.peer.address)) != "here":
            self._answers[reach].saw(target.id, now)
        if result.resolver is not None:
            self._resolvers.setdefault(target.resolver, _Recent()).saw(target.id, now)

    def uplink_proven(self, target: Target, result: Result, now: float) -> bool:
        """Did anything as far away as this answer another target lately? A neighbour is no witness for the world."""
        reaches: tuple[Reach, ...] = ("far",)
        if result.peer is not None and _reach(result.peer.address) == "near":
            reaches = ("near", "far")
        return any(self._answers[reach].saw_other_than(target.id, now - PROOF_SECONDS) for reach in reaches)

    def resolver_proven(self, target: Target, now: float) -> bool:
        """Did this target's resolver answer for another target lately?"""
        recent = self._resolvers.get(target.resolver)
        return recent is not None and recent.saw_other_than(target.id, now - PROOF_SECONDS)


def judge(
    target: Target, result: Result, evidence: Evidence, now: float, *, clock_synchronized: bool
) -> tuple[Status, Error | None]:
    """The verdict and the error to record with it, re-attributed when the blame cannot be proven."""
    error = result.error
    if error is None:
        return "up", None
    if error.code in ("tls_cert_expired", "tls_cert_not_yet_valid") and not clock_synchronized:
        told = f"this device's clock is not synchronized, so the certificate's dates cannot be judged: {error.message}"
        return "unknown", Error(error.phase, "clock_unsynchronized", "local", told[:500])
    if error.attribution == "path":
        if result.peer is not None and _reach(result.peer.address) == "here":
            return "down", msgspec.structs.replace(error, attribution="target")
        if result.heard or evidence.uplink_proven(target, result, now):
            return "down", error
        return "unknown", msgspec.structs.replace(error, attribution="unknown")
    if error.attribution == "resolver":
        return ("down" if evidence.resolver_proven(target, now) else "unknown"), error
    return ("down" if error.attribution == "target" else "unknown"), error


@lru_cache(maxsize=4_096)
def _reach(address: str) -> Reach:
    """How far away it is: this device, a network that is not the Internet (RFC 6890), or the Internet."""
    parsed = ipaddress.ip_address(address)
    return "here" if parsed.is_loopback else "far" if parsed.is_global else "near"
