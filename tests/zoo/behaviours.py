"""All behaviours."""

from tests.zoo import bodies, certified, connections, families, handshakes, messages, redirects

BEHAVIOURS = [
    *connections.BEHAVIOURS,
    *messages.BEHAVIOURS,
    *bodies.BEHAVIOURS,
    *redirects.BEHAVIOURS,
    *families.BEHAVIOURS,
    *certified.BEHAVIOURS,
    *handshakes.BEHAVIOURS,
]
