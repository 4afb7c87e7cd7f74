"""All behaviours."""

from tests.zoo import bodies, connections, messages, redirects

BEHAVIOURS = [*connections.BEHAVIOURS, *messages.BEHAVIOURS, *bodies.BEHAVIOURS, *redirects.BEHAVIOURS]
