"""All behaviours."""

from tests.zoo import connections

BEHAVIOURS = [*connections.BEHAVIOURS]
