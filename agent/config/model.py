"""The configuration as immutable, typed data: what every other part of the agent is given.

Durations are seconds, sizes are bytes. Files that a target names (CA, client certificate, body) are read when
the configuration is, and stand here with their content: two configurations are equal exactly when they would
measure the same, and nothing is read again while measuring.
"""

from typing import Literal

import msgspec


class Secret(str):
    """A string that must not be shown: it came from a file, the environment or a credential, or is one by nature.

    It is an ordinary string to whoever sends it; `repr` hides it, and whoever shows text to people or puts it into
    a record masks it with `agent.config.masking`.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Agent(msgspec.Struct, frozen=True):
    """Who measures."""

    id: str


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the device stands; every record is tagged with it."""

    id: str
    country: str | None = None
    city: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    labels: dict[str, str] = {}


class Kafka(msgspec.Struct, frozen=True):
    """Where records go. `properties` are librdkafka's, those the agent owns excluded; values may be `Secret`."""

    bootstrap_servers: tuple[str, ...]
    topic: str = "uptime.results"
    events_topic: str = "uptime.events"
    tick: float = 0.25
    properties: dict[str, str] = {}


class Spool(msgspec.Struct, frozen=True):
    """The queue on disk. Accepted and checked; has no effect yet."""

    directory: str | None = None
    durability: Literal["adaptive", "strict"] = "adaptive"
    max_size: int = 1 << 30
    min_free: int = 200 << 20


class Status(msgspec.Struct, frozen=True):
    """The local status page. Accepted and checked; has no effect yet."""

    listen: str = "127.0.0.1:9469"


class Clock(msgspec.Struct, frozen=True):
    """Whether the device's clock is right: `auto` asks the kernel or timesyncd."""

    synchronized: Literal["auto", "yes", "no"] = "auto"


class Uplink(msgspec.Struct, frozen=True):
    """Addresses that tell whether the device's own way out works. Accepted and checked; has no effect yet."""

    references: tuple[str, ...] = ()


class TlsOptions(msgspec.Struct, frozen=True):
    """How TLS is spoken. `ca`, `client_certificate` and `client_key` hold PEM text, not paths."""

    verify: bool = True
    ca: str | None = None
    server_name: str | None = None
    min_version: Literal["1.0", "1.1", "1.2", "1.3"] = "1.2"
    client_certificate: str | None = None
    client_key: str | None = None


class BasicAuth(msgspec.Struct, frozen=True):
    """User name and password for HTTP basic authentication (RFC 7617)."""

    username: str
    password: str


class Expect(msgspec.Struct, frozen=True):
    """What makes a measurement `up`. `status`: inclusive ranges of status codes."""

    status: tuple[tuple[int, int], ...] = ((200, 399),)


class Target(msgspec.Struct, frozen=True):
    """One thing to measure, defaults merged in.

    `url` is what is requested; `shown_url` is the same without its secrets, for records, logs and people.
    """

    id: str
    url: str
    shown_url: str
    interval: float
    timeout: float
    enabled: bool = True
    labels: dict[str, str] = {}
    ip: Literal["auto", "4", "6"] = "auto"
    connect_to: str | None = None
    resolver: str | None = None
    tls: TlsOptions = TlsOptions()
    method: str = "GET"
    headers: dict[str, str] = {}
    body: str | None = None
    basic_auth: BasicAuth | None = None
    redirects: int = 10
    body_limit: int = 10 << 20
    expect: Expect = Expect()


class Config(msgspec.Struct, frozen=True):
    """A whole configuration that was found good.

    `digest`: 12 hex digits over the bytes of all its YAML files. `notes`: what a reader should be told once
    (options that have no effect yet, a configuration file that everyone can read, ...).
    """

    agent: Agent
    location: Location
    state_directory: str
    kafka: Kafka
    spool: Spool = Spool()
    status: Status = Status()
    clock: Clock = Clock()
    uplink: Uplink = Uplink()
    workers: int | Literal["auto"] = 1
    targets: tuple[Target, ...] = ()
    digest: str = ""
    notes: tuple[str, ...] = ()
