"""How it is judged, without I/O: by what was seen before, what is known of one failure, and rules."""

from agent.verdict.distance import vouches
from agent.verdict.evidence import LOSS_SECONDS, PROOF_SECONDS, Evidence
from agent.verdict.found import NO_DOUBT, REFUSED_HERE, Doubt, Found, Look, Ruling, Seen, Status
from agent.verdict.rules import judge, rule

__all__ = [
    "LOSS_SECONDS",
    "NO_DOUBT",
    "PROOF_SECONDS",
    "REFUSED_HERE",
    "Doubt",
    "Evidence",
    "Found",
    "Look",
    "Ruling",
    "Seen",
    "Status",
    "judge",
    "rule",
    "vouches",
]
