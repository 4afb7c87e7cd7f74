"""How it is judged, without I/O: by what was seen before, what is known of one failure, and rules."""

from agent.verdict.distance import vouches
from agent.verdict.evidence import LOSS_SECONDS, PROOF_SECONDS, Evidence
from agent.verdict.found import Found, Look, Named, Ruling, Seen, Status
from agent.verdict.rules import judge, rule

__all__ = [
    "LOSS_SECONDS",
    "PROOF_SECONDS",
    "Evidence",
    "Found",
    "Look",
    "Named",
    "Ruling",
    "Seen",
    "Status",
    "judge",
    "rule",
    "vouches",
]
