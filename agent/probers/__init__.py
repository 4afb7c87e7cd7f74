"""The probers: one for each scheme of a target's URL."""

from urllib.parse import urlsplit

from agent.config.model import Target
from agent.probers.attempts import Attempts
from agent.probers.dns_prober import DnsProber
from agent.probers.http import HttpProber
from agent.probers.icmp import IcmpProber
from agent.probers.prober import Prober
from agent.probers.resolver import Resolver

PROBERS: dict[str, type[HttpProber | IcmpProber | DnsProber]] = {
    "http": HttpProber,
    "https": HttpProber,
    "icmp": IcmpProber,
    "dns": DnsProber,
    "dns+tcp": DnsProber,
}


def prober_of(target: Target, resolver: Resolver) -> Prober:
    """The prober that measures `target`."""
    prober = PROBERS[urlsplit(target.url).scheme](target, resolver)
    return prober if target.attempts == 1 else Attempts(prober, target.attempts)


def type_of(target: Target) -> str:
    """The `type` of the prober that measures `target`, as records name it."""
    return PROBERS[urlsplit(target.url).scheme].type
