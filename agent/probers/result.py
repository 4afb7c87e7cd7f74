"""What one probe found, as plain data.

A prober returns a `Result` for everything the world can do to it. It names *what* failed (`code`, `phase`) and
whom it suspects (`attribution`); whether that makes the target `down` is decided in `agent.verdict`.
All durations are milliseconds. A phase that was not reached is None, never 0.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

Phase = Literal["resolve", "connect", "tls", "send", "wait", "receive"]
Attribution = Literal["target", "path", "resolver", "local", "unknown"]
Family = Literal["ipv4", "ipv6"]
ErrorCode = Literal[
    "dns_nxdomain",
    "dns_servfail",
    "dns_refused",
    "dns_timeout",
    "dns_no_address",
    "dns_unreachable",
    "connect_refused",
    "connect_timeout",
    "connect_unreachable",
    "connect_reset",
    "tls_handshake",
    "tls_client_cert",
    "tls_timeout",
    "tls_cert_expired",
    "tls_cert_not_yet_valid",
    "tls_hostname_mismatch",
    "tls_untrusted",
    "tls_protocol",
    "http_timeout_send",
    "http_timeout_headers",
    "http_timeout_body",
    "http_protocol",
    "http_encoding",
    "http_truncated",
    "http_closed",
    "body_too_large",
    "redirect_loop",
    "redirect_refused",
    "status_mismatch",
    "not_measured",
    "local_resource",
    "local_network",
    "clock_unsynchronized",
    "internal",
]


class Phases(msgspec.Struct):
    """Milliseconds spent in each phase; the phase that failed holds the time until it failed."""

    resolve: float | None = None
    connect: float | None = None
    tls: float | None = None
    send: float | None = None
    wait: float | None = None
    receive: float | None = None


class Error(msgspec.Struct, frozen=True):
    """Why a measurement is not `up`. `message` is for people, at most 500 characters, free of secrets."""

    phase: Phase | None
    code: ErrorCode
    attribution: Attribution
    message: str


class Peer(msgspec.Struct, frozen=True):
    """The address that was talked to, or tried."""

    address: str
    port: int
    family: Family


class Tls(msgspec.Struct, frozen=True):
    """The TLS session and the server's certificate, also when its verification failed.

    `not_before`, `not_after`: of the leaf; `chain_not_after`: the earliest expiry in the chain that verified
    (None when none did). Stamps are RFC 3339, UTC. `version`, `cipher` are None when the handshake did not end.
    """

    version: str | None
    cipher: str | None
    verified: bool
    not_before: str | None = None
    not_after: str | None = None
    chain_not_after: str | None = None
    subject: str | None = None
    issuer: str | None = None
    sha256: str | None = None


class Hop(msgspec.Struct, frozen=True):
    """One redirect that was followed: the url that answered with it, and its own phases."""

    url: str
    status_code: int
    phases_ms: Phases


class Http(msgspec.Struct, frozen=True):
    """The last exchange. `status_code` and `version` are None when no answer's headers came whole."""

    status_code: int | None
    version: str | None
    body_bytes: int
    redirects: int
    hops: tuple[Hop, ...] | UnsetType = UNSET


class Attempt(msgspec.Struct, frozen=True):
    """An earlier try of the same measurement: the address, how far it came, and why it failed."""

    address: str
    phases_ms: Phases
    error: Error


class Result(msgspec.Struct, frozen=True):
    """One measurement. `duration_ms` is all of it, redirects and earlier attempts included.

    `resolver`: address of the DNS server that answered a question of this measurement, if one did.
    """

    duration_ms: float
    phases_ms: Phases
    error: Error | None = None
    peer: Peer | None = None
    http: Http | None = None
    tls: Tls | None = None
    attempts: tuple[Attempt, ...] = ()
    resolver: str | None = None
