"""Asking once more: small questions that cost their target a handshake, for what a failure cannot tell by itself."""

import asyncio
import socket
import time

from agent.probers.faults import failure_of
from agent.probers.resolver import ResolveError, Resolver

ASK_SECONDS = 1.5  # for whoever is asked: the second packet of a connection goes after 1 s
AGAIN_SECONDS = 60.0  # between two looks at a target that keeps failing


async def connect(address: str, port: int, seconds: float) -> tuple[float, str | None]:
    """Connects to a numeric address and hangs up at once: milliseconds, and the error's code when nothing came back.

    A refusal is an answer. Only a network that says so itself, and this device, give an error.
    """
    begun = time.monotonic()
    code: str | None = None
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(asking, (address, port))
    except TimeoutError:
        code = "connect_timeout"
    except OSError as error:
        found, attribution, _ = failure_of(error, address)
        code = None if attribution == "target" else found
    return _ms(begun), code


async def resolve(
    resolver: Resolver, name: str, ip: str, server: str | None, seconds: float
) -> tuple[float, str | None, tuple[str, ...]]:
    """Resolves: milliseconds, and the error's code, or the addresses."""
    begun = time.monotonic()
    try:
        found = await resolver.resolve(name, ip=ip, deadline=begun + seconds, server=server)  # type: ignore[arg-type]
    except ResolveError as error:
        return _ms(begun), error.code, ()
    return _ms(begun), None if found.addresses else "dns_no_address", found.addresses


def _ms(begun: float) -> float:
    return round((time.monotonic() - begun) * 1000, 3)
