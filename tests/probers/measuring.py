"""One probe of any prober, and what holds of every result."""

import time
from typing import Any

from agent.config.model import Expect, Target
from agent.probers import prober_of
from agent.probers.resolver import Resolver
from agent.probers.result import Result
from tests.probers.dns_server import DnsServer

PHASES = ("resolve", "connect", "tls", "send", "wait", "receive")


async def measure(
    url: str,
    timeout: float = 2.0,
    *,
    server: DnsServer | None = None,
    expect: dict[str, Any] | None = None,
    **options: Any,
) -> Result:
    """Probes once; checks that it was in time and that the phases are the whole.

    Names are resolved by a DNS `server` of the test's, if one is given.
    """
    if server is not None:
        options["resolver"] = f"127.0.0.1:{server.port}"
    target = Target("t", url, options.pop("shown_url", url), 30.0, 10.0, expect=Expect(**expect or {}), **options)
    prober = prober_of(target, Resolver())
    begun = time.monotonic()
    result = await prober.probe(begun + timeout)
    took = time.monotonic() - begun
    assert took <= timeout + 0.3, f"returned {took - timeout:.3f} s after its deadline"
    assert result.duration_ms <= took * 1000 + 1
    phases = [getattr(result.phases_ms, phase) for phase in PHASES]
    truncated_before = url.startswith("dns:") and result.phases_ms.connect is not None
    if not result.attempts and not truncated_before:
        assert abs(sum(phase or 0 for phase in phases) - result.duration_ms) < 1
    assert all(phase is None or phase >= 0 for phase in phases)
    return result
