"""How far away an address is: who answers there says how it is with the way to others as far away."""

import ipaddress
from functools import lru_cache
from typing import Literal

Reach = Literal["here", "near", "far"]


@lru_cache(maxsize=32_768)  # more than a configuration has targets: to parse an address takes 30 µs
def of(address: str) -> Reach:
    """How far away it is: this device, a network that is not the Internet (RFC 6890), or the Internet."""
    parsed = ipaddress.ip_address(address)
    return "here" if parsed.is_loopback else "far" if parsed.is_global else "near"


def vouches(witness: str, for_address: str) -> bool:
    """Whether an answer from the one address says that there is a way to the other. A neighbour is no witness for the
    world, and one family of addresses is none for the other.
    """
    reach = of(witness)
    return (":" in witness) == (":" in for_address) and (
        reach == "far" or (reach == "near" and of(for_address) == "near")
    )
