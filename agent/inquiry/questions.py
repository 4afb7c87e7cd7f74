"""The questions that are asked when a target failed: to an address, to a resolver, or all of a measurement once more.

Each asks from the source that is given (see `Target`), for `asking.ASK_SECONDS` at most; whatever the world does to it
is in what it returns.
"""

import time
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

import msgspec

from agent.config.model import Ip, Target
from agent.device.source import fits
from agent.probers import asking, prober_of
from agent.probers.attempts import single
from agent.probers.resolver import Resolver, is_address
from agent.probers.result import Family, Result
from agent.schedule import Measurement
from agent.verdict.found import Look

_PORTS = {"http": 80, "https": 443, "dns": 53, "dns+tcp": 53}


def last_asked(target: Target, those: Mapping[str, tuple[Target, float]]) -> float:
    """When it was looked at last, under the options that it has; `those` are by id, with the target as it was."""
    before, at = those.get(target.id, (target, -asking.AGAIN_SECONDS))
    return at if before == target else -asking.AGAIN_SECONDS


async def connect(address: str, port: int, seconds: float, source: str | None) -> Look:
    """Connects; the error may be one of `asking.ANSWERS`."""
    ms, error = await asking.connect(address, port, seconds, source)
    return Look("connect", ms, address=address, port=port, error=error)


async def resolve(name: str, ip: Ip, resolver: Resolver, server: str | None, source: str | None) -> Look:
    """Resolves a name by a server; None is the host's own."""
    ms, error, _ = await asking.resolve(resolver, name, ip, server, asking.ASK_SECONDS, source)
    return Look("resolve", ms, server=server or "host", error=error)


async def measure_again(measurement: Measurement) -> Look:
    """Makes one try of the measurement."""
    return measured(await single(measurement.prober).probe(time.monotonic() + asking.ASK_SECONDS))


def measured(result: Result, address: str | None = None) -> Look:
    """What came of a measurement, at another address than the target's, if one is given."""
    return Look(
        "measure", result.duration_ms, address=address, error=None if result.error is None else result.error.code
    )


async def addresses_of(
    reference: str, resolver: Resolver, families: Collection[Family], source: str | None
) -> tuple[list[str], int]:
    """Of a URL, or of a broker's `host:port`: an address of each of these families, if it has one, or else its first
    that can be asked from the source; and the port.
    """
    url = urlsplit(reference if "://" in reference else f"kafka://{reference}")
    try:
        name, port = url.hostname or "", url.port or _PORTS.get(url.scheme, 443)
    except ValueError:
        return [], 0
    if not name:
        return [], port
    addresses: tuple[str, ...] = (name,)
    if not is_address(name):
        _, _, addresses = await asking.resolve(resolver, name, "auto", None, asking.ASK_SECONDS / 3)
    able = [each for each in addresses if fits(source, each)]
    first = {"ipv6" if ":" in each else "ipv4": each for each in reversed(able)}
    return [first[family] for family in sorted(families) if family in first] or able[:1], port


async def measure_least(target: Target, address: str, resolver: Resolver, seconds: float) -> Result:
    """One try at a target, at an address that it had, by one small request or echo."""
    there = msgspec.structs.replace(
        target,
        connect_to=address,
        method="HEAD",
        body=None,
        redirects=0,
        count=1,
        expect=msgspec.structs.replace(target.expect, loss=0.0),
    )
    return await single(prober_of(there, resolver)).probe(time.monotonic() + seconds)


async def measure_other(target: Target, address: str, resolver: Resolver) -> tuple[float, str | None, bool]:
    """Measures another target with as little as may be: milliseconds to connect, or of an echo; the error's code when
    there was no answer; and whether a certificate came.
    """
    result = await measure_least(target, address, resolver, asking.ASK_SECONDS)
    connect, error = result.phases_ms.connect, result.error
    if error is None or (connect is not None and error.phase != "connect"):
        return connect or result.duration_ms, None, result.tls is not None
    if error.attribution == "local":
        return result.duration_ms, "local_network", False
    # Whose word a refusal is nobody looked.
    return result.duration_ms, "connect_timeout" if error.code in asking.ANSWERS else error.code, False


def host_of(target: Target) -> str:
    """Of its url."""
    return urlsplit(target.url).hostname or ""
