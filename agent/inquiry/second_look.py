"""The questions of a second look: to a target's addresses, to its resolvers, or all of a measurement once more.

Each asks from the source that is given (see `Target`), for `asking.ASK_SECONDS` at most; whatever the world does to it
is in what it returns.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import urlsplit

import msgspec

from agent.config.model import Ip, Target
from agent.device.clock import boottime
from agent.device.source import fits
from agent.inquiry.case import Case
from agent.probers import asking, prober_of
from agent.probers.attempts import single
from agent.probers.resolver import Resolver, is_address
from agent.probers.result import Family, Result
from agent.schedule import Measurement
from agent.verdict.evidence import BySource
from agent.verdict.found import Look

MOST_ADDRESSES = 3  # of one target

_HARMLESS = frozenset({"icmp", "dns"})  # types of probers whose measurement is made again; others get a connection
_PORTS = {"http": 80, "https": 443, "dns": 53, "dns+tcp": 53}


class SecondLooks:
    """At targets that fell silent, rarely, and by the resolvers that failed."""

    def __init__(self, evidence: BySource, resolver: Resolver, turns: asyncio.Semaphore) -> None:
        self._evidence, self._resolver, self._turns = evidence, resolver, turns
        self._last: dict[str, tuple[Target, float]] = {}  # at each target, as it was

    def forget(self, target_id: str) -> None:
        """There was none."""
        self._last.pop(target_id, None)

    def keep_only(self, targets: Collection[str]) -> None:
        """Forgets the others."""
        self._last = {target_id: last for target_id, last in self._last.items() if target_id in targets}

    def is_due(self, case: Case) -> bool:
        """Whether it takes one: not of what is silent still, as others were heard meanwhile."""
        target, error = case.measurement.target, case.measurement.result.error
        if error is None or error.attribution == "local" or case.answered:
            return False
        if not case.resolver_is_blamed and case.peer is None:
            return False
        last, quick = last_of(target, self._last), self._evidence[case.source].last_quick(target.id)
        silent_still = quick <= last and case.at - last < asking.AGAIN_SECONDS
        return not (silent_still and case.found.before is not None)

    async def make(self, case: Case, other: Target | None) -> None:
        """`other`: a target whose name the resolver found just then."""
        async with self._turns:
            looks = await (self._by_resolvers(case, other) if case.resolver_is_blamed else self._at_target(case))
        case.found.again = tuple(looks)
        if looks and looks[0].error == "local_network":
            self.forget(case.target_id)  # what this device does to itself is looked at each time

    async def _by_resolvers(self, case: Case, other: Target | None) -> list[Look]:
        target, evidence = case.measurement.target, self._evidence[case.source]
        servers = [target.resolver, *evidence.other_resolvers(target)][:2]
        looks = await by_resolvers(case.measurement, self._resolver, servers, case.source)
        if other is not None and all(look.error is not None for look in looks):
            # A resolver that has got ill again meanwhile does not find what it found.
            again = await resolve(host_of(other), other.ip, self._resolver, other.resolver, case.source)
            case.found.names = case.found.names and again.error is None
        return looks

    async def _at_target(self, case: Case) -> list[Look]:
        measurement = case.measurement
        self._last[case.target_id] = measurement.target, case.at
        if measurement.prober.type in _HARMLESS:
            looks = [await by_measuring(measurement)]
        else:
            looks = await at_addresses(measurement, self._resolver, case.source)
        if looks[0].error is None and not measurement.result.heard:
            self._evidence[case.source].lost(case.target_id, boottime())
        return looks


def last_of(target: Target, those: Mapping[str, tuple[Target, float]]) -> float:
    """When it was looked at last, under the options that it has; `those` are by id, with the target as it was."""
    before, at = those.get(target.id, (target, -asking.AGAIN_SECONDS))
    return at if before == target else -asking.AGAIN_SECONDS


async def at_addresses(measurement: Measurement, resolver: Resolver, source: str | None) -> list[Look]:
    """Connects to the one that failed, and to others of the name."""
    peer = measurement.result.peer
    assert peer is not None
    assert peer.port is not None
    same = _connect(peer.address, peer.port, asking.ASK_SECONDS, source)
    first, others = await asyncio.gather(same, _at_siblings(measurement, resolver, peer.address, peer.port))
    return [first, *others]


async def by_resolvers(
    measurement: Measurement, resolver: Resolver, servers: Iterable[str | None], source: str | None
) -> list[Look]:
    """Resolves the name again, by each of these (a target's option)."""
    name = _name(measurement)
    if name is None:
        return []
    ip = measurement.target.ip
    return await asyncio.gather(*(resolve(name, ip, resolver, server, source) for server in servers))


async def resolve(name: str, ip: Ip, resolver: Resolver, server: str | None, source: str | None) -> Look:
    """Resolves a name by a server; None is the host's own."""
    ms, error, _ = await asking.resolve(resolver, name, ip, server, asking.ASK_SECONDS, source)
    return Look("resolve", ms, server=server or "host", error=error)


async def by_measuring(measurement: Measurement) -> Look:
    """Makes one try of the measurement."""
    result = await single(measurement.prober).probe(time.monotonic() + asking.ASK_SECONDS)
    return Look("measure", result.duration_ms, error=None if result.error is None else result.error.code)


async def of_reference(
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


def put_down_to_the_path(measurement: Measurement) -> Measurement:
    """The same failure, which is judged like silence."""
    result = measurement.result
    assert result.error is not None
    error = msgspec.structs.replace(result.error, attribution="path")
    return measurement._replace(result=msgspec.structs.replace(result, error=error))


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


async def by_measuring_other(target: Target, address: str, resolver: Resolver) -> tuple[float, str | None, bool]:
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


async def _at_siblings(measurement: Measurement, resolver: Resolver, first: str, port: int) -> list[Look]:
    """The other addresses of the name."""
    target, name = measurement.target, _name(measurement)
    if target.connect_to is not None or name is None:
        return []
    third = asking.ASK_SECONDS / 3
    _, _, addresses = await asking.resolve(resolver, name, target.ip, target.resolver, third, target.source)
    if first not in addresses:
        return []
    siblings = [address for address in addresses if address != first][: MOST_ADDRESSES - 1]
    return await asyncio.gather(*(_connect(each, port, 2 * third, target.source) for each in siblings))


async def _connect(address: str, port: int, seconds: float, source: str | None) -> Look:
    ms, error = await asking.connect(address, port, seconds, source)
    return Look("connect", ms, address=address, port=port, error=None if error in asking.ANSWERS else error)


def _name(measurement: Measurement) -> str | None:
    """The name that was resolved, if it is known: a redirect may have led to another."""
    http, name = measurement.result.http, host_of(measurement.target)
    return None if not name or is_address(name) or (http is not None and http.redirects) else name
