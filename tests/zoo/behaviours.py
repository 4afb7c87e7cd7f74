"""All behaviours."""

from tests.zoo import bodies, certified, connections, dns, families, handshakes, messages, redirects, resolvers

BEHAVIOURS = [
    *connections.BEHAVIOURS,
    *messages.BEHAVIOURS,
    *bodies.BEHAVIOURS,
    *redirects.BEHAVIOURS,
    *families.BEHAVIOURS,
    *certified.BEHAVIOURS,
    *handshakes.BEHAVIOURS,
    *dns.BEHAVIOURS,
    *resolvers.BEHAVIOURS,
]
