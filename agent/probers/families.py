"""From a host to its addresses, a try of each family, and the whole of it: what the probers but HTTP's share.

The family that this host prefers gets half of the time that is left. When nobody serves there, the other one gets the
rest, and the first is in `attempts`.
"""

import time
from collections.abc import Awaitable, Callable

import msgspec

from agent.config.masking import Mask
from agent.config.model import Target
from agent.probers.resolver import ResolveError, Resolver, is_address
from agent.probers.result import LONGEST_MESSAGE, Attempt, Error, Phases, Result, ms

Try = Callable[[str, float], Awaitable[Result]]
"""Measures at a numeric address until a deadline; its result always has a peer."""


async def measure(target: Target, host: str, resolver: Resolver, deadline: float, attempt: Try, mask: Mask) -> Result:
    """Resolves `host` and tries its addresses. `mask` hides what must not be shown in messages."""
    begun = time.monotonic()
    resolve: float | None = None
    server: str | None = None
    addresses = [target.connect_to or host]
    if not is_address(addresses[0]):
        try:
            found = await resolver.resolve(
                host, ip=target.ip, deadline=deadline, server=target.resolver, source=target.source
            )
        except ResolveError as failed:
            spent = ms(time.monotonic() - begun)
            error = Error("resolve", failed.code, failed.attribution, failed.message)
            return Result(spent, Phases(resolve=spent), _masked(error, mask), resolver=failed.server)
        resolve, server = ms(time.monotonic() - begun), found.server
        first, *others = found.addresses
        addresses = [first, *[each for each in others if (":" in each) != (":" in first)][:1]]
    result, attempts = await _each(addresses, deadline, attempt)
    result.phases_ms.resolve = resolve
    return msgspec.structs.replace(
        result,
        # For a single exchange the phases are all of it, to the digit.
        duration_ms=ms(time.monotonic() - begun) if attempts else round((resolve or 0.0) + result.duration_ms, 3),
        error=_masked(result.error, mask),
        attempts=attempts,
        resolver=server,
        named=() if server is None or result.peer is None else ((host, result.peer.address),),
    )


async def _each(addresses: list[str], deadline: float, attempt: Try) -> tuple[Result, tuple[Attempt, ...]]:
    first, *others = addresses
    if not others:
        return await attempt(first, deadline), ()
    result = await attempt(first, (time.monotonic() + deadline) / 2)
    if result.error is None or _served(result):
        return result, ()
    second = await attempt(others[0], deadline)
    if second.error is not None and second.error.attribution == "local":
        # That this device has no way to the second family says nothing about the target; what came of the first does.
        return result, (Attempt(others[0], second.phases_ms, second.error),)
    return second, (Attempt(first, result.phases_ms, result.error),)


def _served(result: Result) -> bool:
    """Has somebody there done more than to refuse?"""
    if result.dns is not None or (result.icmp is not None and result.icmp.received):
        return True
    return result.phases_ms.connect is not None and result.error is not None and result.error.phase != "connect"


def _masked(error: Error | None, mask: Mask) -> Error | None:
    """Messages may hold a name."""
    return error and msgspec.structs.replace(error, message=mask.text(error.message)[:LONGEST_MESSAGE])
