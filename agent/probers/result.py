"""What one probe found, as plain data.

A prober returns a `Result` for everything the world can do to it. It names *what* failed (`code`, `phase`) and
whom it suspects (`attribution`); whether that makes the target `down` is decided in `agent.verdict`.
All durations are milliseconds. A phase that was not reached is None, never 0.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

MOST_SHOWN = 20  # records of a DNS answer that are kept
LONGEST_SHOWN = 256  # characters of each
LONGEST_MESSAGE = 500  # characters of what an error says, which may quote the server

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
    "icmp_timeout",
    "icmp_unreachable",
    "dns_answer_mismatch",
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

    @property
    def whole(self) -> float:
        """All of them together."""
        each: tuple[float | None, ...] = msgspec.structs.astuple(self)
        return round(sum(filter(None, each)), 3)


class Error(msgspec.Struct, frozen=True):
    """Why a measurement is not `up`. `message` is for people, at most 500 characters, free of secrets."""

    phase: Phase | None
    code: ErrorCode
    attribution: Attribution
    message: str

    @property
    def is_an_answer(self) -> bool:
        """Somebody did, and wrongly; not the resolver."""
        return self.attribution == "target" and self.phase != "resolve"


class Peer(msgspec.Struct, frozen=True):
    """The address that was talked to, or tried. `port`: None where there are none."""

    address: str
    port: int | None
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


class RoundTrips(msgspec.Struct, frozen=True):
    """Milliseconds from the sending of an echo to its reply; `stddev` of all of them, not of a sample."""

    min: float
    avg: float
    max: float
    stddev: float


class Icmp(msgspec.Struct, frozen=True):
    """The echoes. `received` counts those that were answered, each once; `rtt_ms` is None when none was."""

    sent: int
    received: int
    rtt_ms: RoundTrips | None


class Dns(msgspec.Struct, frozen=True):
    """The last answer, also one that was not expected. `flags`: those that are set.

    `answers`: records of the answer section as in a zone file, the first `MOST_SHOWN` of `answer_count`, each with at
    most `LONGEST_SHOWN` characters.
    """

    rcode: str
    flags: tuple[str, ...]
    answers: Annotated[tuple[Annotated[str, Meta(max_length=LONGEST_SHOWN)], ...], Meta(max_length=MOST_SHOWN)]
    answer_count: int
    transport: Literal["udp", "tcp"]


class Attempt(msgspec.Struct, frozen=True):
    """An earlier try of the same measurement: the address, how far it came, and why it failed.

    `address`: None when no name was resolved. `attempt`: its number; a host's two families of addresses, tried in turn,
    are one attempt.
    """

    address: str | None
    phases_ms: Phases
    error: Error
    attempt: Annotated[int, Meta(ge=1)] = 1

    @property
    def heard(self) -> bool:
        """Did anything come back from the address, be it a refusal?"""
        return _heard(self.phases_ms, self.error)


class Result(msgspec.Struct, frozen=True):
    """One measurement. `duration_ms` is all of it, redirects and earlier attempts included; `earlier_ms`: of it, what
    went by before the last attempt began, which is number `attempt`.

    `resolver`: address of the DNS server that answered a question of this measurement, if one did; `named`: the names
    that it found, and the address of each that was tried last. `resent`: at its time-out something on the connection
    had been sent again or was not acknowledged, so the network may have lost it.
    """

    duration_ms: float
    phases_ms: Phases
    error: Error | None = None
    peer: Peer | None = None
    http: Http | None = None
    tls: Tls | None = None
    icmp: Icmp | None = None
    dns: Dns | None = None
    attempts: tuple[Attempt, ...] = ()
    attempt: int = 1
    earlier_ms: float = 0.0
    resolver: str | None = None
    named: tuple[tuple[str, str], ...] = ()
    resent: bool = False

    @property
    def heard(self) -> bool:
        """Did anything come back from the address, be it a refusal?"""
        error = self.error
        if error is None or self.dns is not None or (self.icmp is not None and self.icmp.received):
            return True
        return _heard(self.phases_ms, error)


def ms(seconds: float) -> float:
    """Seconds as milliseconds with three digits. `round` takes three times as long, and each check has a dozen."""
    return (seconds * 1e6 + 0.5) // 1 / 1000


def _heard(phases: Phases, error: Error) -> bool:
    if error.phase in ("resolve", "connect"):
        return error.code in ("connect_refused", "connect_reset")
    # Without a connection before it, silence is all there was.
    return phases.connect is not None or error.attribution == "target"
