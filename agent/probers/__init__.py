"""The probers: one for each scheme of a target's URL."""

from urllib.parse import urlsplit

from agent.config.model import Target
from agent.probers.http import HttpProber
from agent.probers.prober import Prober
from agent.probers.resolver import Resolver

PROBERS = {"http": HttpProber, "https": HttpProber}


def prober_of(target: Target, resolver: Resolver) -> Prober:
    """The prober that measures `target`."""
    return PROBERS[urlsplit(target.url).scheme](target, resolver)


def type_of(target: Target) -> str:
    """The `type` of the prober that measures `target`, as records name it."""
    return PROBERS[urlsplit(target.url).scheme].type
