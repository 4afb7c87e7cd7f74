"""The configuration as immutable, typed data: what every other part of the agent is given.

Durations are seconds, sizes are bytes. Files that a target names (CA, client certificate, body) are read when
the configuration is, and stand here with their content: two configurations are equal exactly when they would
measure the same, and nothing is read again while measuring.

The annotations are also the rules: the reader, the JSON Schema and the effective configuration follow them. A `form`
names how a value is written in YAML where that is not plainly its type; `is` and `write` are the words of the error
for text that does not match the pattern. `schemes`: those of the URLs for which an option has a meaning, if not all.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

DAY = 86_400.0
HTTP, ICMP, DNS = ("http", "https"), ("icmp",), ("dns", "dns+tcp")  # the schemes of a prober


class Secret(str):
    """A string that must not be shown: it came from a file, the environment or a credential, or is one by nature.

    It is an ordinary string to whoever sends it; `repr` hides it, and whoever shows text to people or puts it into
    a record masks it with `agent.config.masking`. What records are made of (ids, labels, location) is never one.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


Duration = Annotated[float, Meta(extra={"form": "duration"})]
Size = Annotated[int, Meta(extra={"form": "size"})]
Labels = Annotated[dict[str, str], Meta(description="Free text pairs, at most 64.", extra={"form": "labels"})]
Pem = Annotated[str, Meta(extra={"form": "pem"})]
Url = Annotated[str, Meta(extra={"form": "url"})]
Identifier = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        extra={"public": True, "is": "an id", "write": "1 to 64 letters, digits, dots, underscores or hyphens"},
    ),
]
Topic = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}$",
        extra={
            "public": True,
            "is": "a topic's name",
            "write": "1 to 249 letters, digits, dots, underscores or hyphens",
        },
    ),
]
Country = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z]{2}$",
        extra={"public": True, "is": "a country code", "write": "two capital letters (ISO 3166-1 alpha-2), as in TR"},
    ),
]
PublicText = Annotated[str, Meta(max_length=256, extra={"public": True})]
Ip = Literal["auto", "4", "6"]


class Agent(msgspec.Struct, frozen=True):
    """Who measures."""

    id: Annotated[Identifier, Meta(description="Default: the host name.")]


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the device stands; every record is tagged with it."""

    id: Identifier
    country: Annotated[Country, Meta(description="ISO 3166-1 alpha-2.")] | None = None
    city: PublicText | None = None
    latitude: Annotated[float, Meta(ge=-90, le=90, description="Degrees north.")] | None = None
    longitude: Annotated[float, Meta(ge=-180, le=180, description="Degrees east.")] | None = None
    labels: Labels = {}


class Kafka(msgspec.Struct, frozen=True):
    """Where records go. `properties` are librdkafka's, those the agent owns excluded; values may be `Secret`."""

    bootstrap_servers: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="host:port of some brokers: a list, or text with commas.",
            extra={"form": "servers"},
        ),
    ]
    topic: Annotated[Topic, Meta(description="Where results go.")] = "uptime.results"
    events_topic: Annotated[Topic, Meta(description="Where the agent's own news go.")] = "uptime.events"
    tick: Annotated[
        Duration, Meta(ge=0.01, le=10.0, description="What was measured within it travels as one batch.")
    ] = 0.25
    properties: Annotated[
        dict[str, str],
        Meta(
            description="librdkafka producer properties, save those that the agent owns.", extra={"form": "properties"}
        ),
    ] = {}


class Spool(msgspec.Struct, frozen=True):
    """The queue on disk. A change takes effect with a restart."""

    directory: Annotated[str, Meta(description="Default: spool/ in the state directory.")] | None = None
    durability: Literal["adaptive", "strict"] = "adaptive"
    max_size: Annotated[
        Size, Meta(ge=1 << 20, le=1 << 50, description="The oldest records go first when it is full.")
    ] = 1 << 30
    min_free: Annotated[Size, Meta(ge=0, le=1 << 50, description="Left free on the file system.")] = 200 << 20


class Status(msgspec.Struct, frozen=True):
    """The local status page. Accepted and checked; has no effect yet."""

    listen: Annotated[str, Meta(description="host:port, or off.", extra={"form": "listen"})] = "127.0.0.1:9469"


class Clock(msgspec.Struct, frozen=True):
    """Whether the device's clock is right: `auto` asks the kernel or timesyncd."""

    synchronized: Literal["auto", "yes", "no"] = "auto"


class Uplink(msgspec.Struct, frozen=True):
    """Addresses that tell whether the device's own way out works: a connection to them is made when something is silent
    and no other target answers. Sensible without: other targets and Kafka's brokers tell it, too.
    """

    references: Annotated[
        tuple[str, ...],
        Meta(
            max_length=8,
            description="URLs (http, https, dns+tcp), at most 8; their host and port are connected to.",
            extra={"form": "references"},
        ),
    ] = ()


class TlsOptions(msgspec.Struct, frozen=True):
    """How TLS is spoken. `ca`, `client_certificate` and `client_key` hold PEM text, not paths."""

    verify: bool = True
    ca: Annotated[Pem, Meta(description="File with the CAs to trust instead of the system's.")] | None = None
    server_name: (
        Annotated[str, Meta(description="Name to send and to verify.", extra={"form": "server_name"})] | None
    ) = None
    min_version: Literal["1.0", "1.1", "1.2", "1.3"] = "1.2"
    client_certificate: Annotated[Pem, Meta(description="File with the certificate, chain included.")] | None = None
    client_key: Annotated[Pem, Meta(description="File with the certificate's key, not encrypted.")] | None = None


class BasicAuth(msgspec.Struct, frozen=True):
    """User name and password for HTTP basic authentication (RFC 7617)."""

    username: Annotated[str, Meta(extra={"form": "username"})]
    password: Annotated[str, Meta(extra={"form": "password"})]


Records = Annotated[tuple[str, ...], Meta(extra={"form": "regexps", "schemes": DNS})]


class Expect(msgspec.Struct, frozen=True):
    """What makes a measurement `up`: all that has a meaning for its scheme must hold.

    `status`: inclusive ranges of status codes. The regular expressions are for records as they stand in a zone file.
    """

    status: Annotated[
        tuple[tuple[int, int], ...],
        Meta(
            min_length=1,
            description="Status codes or ranges of them, as 200 or 200-299.",
            extra={"form": "statuses", "schemes": HTTP},
        ),
    ] = ((200, 399),)
    loss: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="The share of echoes lost at most, 0 to 1.",
            extra={"form": "share", "schemes": ICMP},
        ),
    ] = 0.0
    rcodes: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="One of these, as NXDOMAIN.", extra={"form": "rcodes", "schemes": DNS}),
    ] = ("NOERROR",)
    answer: Annotated[Records, Meta(description="Each found in some record of the answer (RE2).")] = ()
    answer_not: Annotated[Records, Meta(description="None found in any record of the answer.")] = ()
    authority: Annotated[Records, Meta(description="Each found in some record of the authority section.")] = ()
    authority_not: Annotated[Records, Meta(description="None found in any record of the authority section.")] = ()
    additional: Annotated[Records, Meta(description="Each found in some additional record.")] = ()
    additional_not: Annotated[Records, Meta(description="None found in any additional record.")] = ()
    flags: Annotated[
        tuple[str, ...],
        Meta(description="All of these set, of AA, TC, RD, RA, AD, CD.", extra={"form": "flags", "schemes": DNS}),
    ] = ()


class Target(msgspec.Struct, frozen=True):
    """One thing to measure, defaults merged in.

    `url` is what is requested, without userinfo and fragment; a `Secret` when it must not be shown. `shown_url` is
    the same without its secrets, for records, logs and people.
    """

    id: Annotated[PublicText, Meta(min_length=1, max_length=512, description="Default: the url without secrets.")]
    url: Annotated[Url, Meta(description="Its scheme chooses the prober: http, https, icmp, dns or dns+tcp.")]
    shown_url: str
    interval: Annotated[Duration, Meta(ge=1.0, le=7 * DAY, description="Time between two measurements.")]
    timeout: Annotated[
        Duration, Meta(ge=0.001, le=7 * DAY, description="Of the whole measurement; at most the interval.")
    ]
    enabled: bool = True
    labels: Labels = {}
    attempts: Annotated[
        int, Meta(ge=1, le=10, description="Tries of one measurement at most, within its timeout, until one is up.")
    ] = 1
    ip: Annotated[Ip, Meta(description="The version of IP to use.")] = "auto"
    connect_to: (
        Annotated[str, Meta(description="This address instead of resolving.", extra={"form": "address"})] | None
    ) = None
    source: (
        Annotated[
            str,
            Meta(
                description="Address of this device, or interface, that it leaves by; default: as the routes have it.",
                extra={"form": "source", "public": True},
            ),
        ]
        | None
    ) = None
    resolver: (
        Annotated[str, Meta(description="DNS server, address[:port]; default: the host's.", extra={"form": "resolver"})]
        | None
    ) = None
    tls: Annotated[TlsOptions, Meta(extra={"schemes": HTTP})] = TlsOptions()
    method: Annotated[str, Meta(description="HTTP method.", extra={"form": "method", "schemes": HTTP})] = "GET"
    headers: Annotated[
        dict[str, str], Meta(description="HTTP header fields to send.", extra={"form": "headers", "schemes": HTTP})
    ] = {}
    body: Annotated[str, Meta(description="Text to send, or {file: PATH}.", extra={"schemes": HTTP})] | None = None
    basic_auth: Annotated[BasicAuth, Meta(extra={"schemes": HTTP})] | None = None
    redirects: Annotated[int, Meta(ge=0, le=100, description="How many are followed.", extra={"schemes": HTTP})] = 10
    body_limit: Annotated[
        Size, Meta(ge=1, le=1 << 30, description="A longer body is a failure.", extra={"schemes": HTTP})
    ] = 10 << 20
    recursion: Annotated[bool, Meta(description="Whether it is asked for.", extra={"schemes": DNS})] = True
    count: Annotated[int, Meta(ge=1, le=100, description="Echoes that are sent.", extra={"schemes": ICMP})] = 1
    size: Annotated[int, Meta(ge=8, le=65_507, description="Bytes of payload of an echo.", extra={"schemes": ICMP})] = (
        56
    )
    expect: Expect = Expect()


class Config(msgspec.Struct, frozen=True):
    """A whole configuration that was found good.

    `digest`: 12 hex digits over the bytes of all its YAML files. `notes`: what a reader should be told once
    (options that have no effect yet, a configuration file that everyone can read, ...).
    """

    agent: Agent
    location: Location
    state_directory: Annotated[str, Meta(extra={"form": "directory"})]
    kafka: Kafka
    spool: Spool = Spool()
    status: Status = Status()
    clock: Clock = Clock()
    uplink: Uplink = Uplink()
    workers: Annotated[
        int | Literal["auto"], Meta(description="Processes; auto or a number.", extra={"form": "workers"})
    ] = 1
    targets: tuple[Target, ...] = ()
    digest: str = ""
    notes: tuple[str, ...] = ()
