"""What a behaviour is: a server that does as one of the world's does, and what a measurement of it is to say."""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from agent.probers.result import Attribution, ErrorCode, Phase
from agent.verdict.found import Status
from tests.probers import http_server
from tests.probers.certificates import trusted

INTERVAL = 3.0  # seconds between two measurements of a behaviour
PATIENCE = 2.9  # seconds for what answers: the machine may be busy
SILENCE = 1.5  # seconds after which one that is silent has been so for long enough

Serve = Callable[[str], AbstractAsyncContextManager[dict[str, Any]]]
"""Serves on that address of loopback for a while; yields the options of a target that measures it, `url` at least.

Raises `Missing` where this host has not what it takes.
"""

PLAIN: tuple[Phase, ...] = ("connect", "send", "wait", "receive")
SECURE: tuple[Phase, ...] = ("connect", "tls", "send", "wait", "receive")


class Missing(Exception):
    """What this host lacks, in words."""


class Up(NamedTuple):
    """It is up, and every phase was reached."""


class Fails(NamedTuple):
    """How it fails. `attribution`: whom the prober suspects; over loopback a silent `path` can only be the target.

    `blamed`: who is in the end, where that is another than these.
    """

    code: ErrorCode
    attribution: Attribution
    phase: Phase
    status: Status = "down"
    blamed: Attribution | None = None


class Behaviour(NamedTuple):
    """`phases`: of a whole measurement, in order. One that fails reaches them up to the phase of its error.

    `also`: what else its record says, by the way there: `{"tls.verified": False}`.
    """

    name: str
    serve: Serve
    expected: Up | Fails
    phases: tuple[Phase, ...]
    also: Mapping[str, object] = {}

    @property
    def times_out(self) -> bool:
        return isinstance(self.expected, Fails) and "timeout" in self.expected.code

    @property
    def timeout(self) -> float:
        """Seconds."""
        return SILENCE if self.times_out else PATIENCE

    @property
    def reached(self) -> tuple[Phase, ...]:
        """The phases that hold a time; all others are null."""
        if isinstance(self.expected, Up):
            return self.phases
        return self.phases[: self.phases.index(self.expected.phase) + 1]


def http(
    name: str,
    answer: http_server.Behaviour,
    expected: Up | Fails,
    *,
    phases: tuple[Phase, ...] = PLAIN,
    also: Mapping[str, object] | None = None,
    **options: Any,
) -> Behaviour:
    """A site on a plain port; `options` are the target's."""

    @asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        async with http_server.site(answer, host) as site:
            yield {"url": site.url(), **options}

    return Behaviour(name, serve, expected, phases, also or {})


def https(
    name: str,
    answer: http_server.Behaviour,
    expected: Up | Fails,
    *,
    context: ssl.SSLContext | None = None,
    phases: tuple[Phase, ...] = SECURE,
    also: Mapping[str, object] | None = None,
    tls: Mapping[str, object] | None = None,
    **options: Any,
) -> Behaviour:
    """A site with TLS by `context`; without one the answer speaks it, or does not. `tls`: beside the test's CA."""

    @asynccontextmanager
    async def serve(host: str) -> AsyncIterator[dict[str, Any]]:
        async with http_server.site(answer, host, context or True) as site:
            yield {"url": site.url(), "tls": {"ca": trusted(), **(tls or {})}, **options}

    return Behaviour(name, serve, expected, phases, also or {})
