"""One result record drawn for a person.

A record is read leniently, as any consumer should: fields and codes of a newer agent are no error. All text of a
record is foreign; what could steer a terminal is shown as an escape.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from rich.console import Console
from rich.text import Text

PHASES = {"resolve": "blue", "connect": "cyan", "tls": "magenta", "send": "white", "wait": "yellow", "receive": "green"}
VERDICTS = {"up": "bold green", "down": "bold red", "unknown": "bold yellow"}
CONNECTED = ("connect", "tls", "receive")  # phases of what a connection is made for, as HTTP's
SOON = 14  # days before its expiry from which a certificate's date is coloured

_NOT_SYNCHRONIZED = (
    "not known to be right on this machine (see timedatectl): "
    "times and dates here may be wrong, and no certificate is called expired"
)

Word = Annotated[str, Meta(max_length=4096)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e12)]
Phases = dict[Word, Milliseconds | None]


class ErrorView(msgspec.Struct, frozen=True):
    """Why a measurement is not `up`."""

    code: Word
    attribution: Word = "unknown"
    message: Word = ""
    phase: Word | None = None


class TargetView(msgspec.Struct, frozen=True):
    """What was measured."""

    id: Word
    url: Word = ""
    type: Word = ""
    interval_ms: Milliseconds | None = None
    source: Word | None = None


class LocationView(msgspec.Struct, frozen=True):
    """From where."""

    id: Word


class AgentView(msgspec.Struct, frozen=True):
    """By whom: within one run, a greater `seq` is younger."""

    run_id: Word = ""
    seq: int = 0


class ClockView(msgspec.Struct, frozen=True):
    """Whether the record's stamps can be trusted."""

    synchronized: bool = True


class PeerView(msgspec.Struct, frozen=True):
    """The address that was talked to, or tried."""

    address: Word
    port: int | None = None


class HopView(msgspec.Struct, frozen=True):
    """One redirect that was followed."""

    url: Word
    status_code: int | None = None
    phases_ms: Phases = {}


class HttpView(msgspec.Struct, frozen=True):
    """The last exchange."""

    status_code: int | None = None
    version: Word | None = None
    body_bytes: int = 0
    hops: tuple[HopView, ...] = ()


class TlsView(msgspec.Struct, frozen=True):
    """The session and the server's certificate."""

    version: Word | None = None
    cipher: Word | None = None
    verified: bool = False
    not_before: Word | None = None
    not_after: Word | None = None
    chain_not_after: Word | None = None
    subject: Word | None = None
    issuer: Word | None = None


class RoundTripsView(msgspec.Struct, frozen=True):
    """Of the echoes that were answered."""

    min: Milliseconds
    avg: Milliseconds
    max: Milliseconds
    stddev: Milliseconds | None = None


class IcmpView(msgspec.Struct, frozen=True):
    """The echoes."""

    sent: int
    received: int
    rtt_ms: RoundTripsView | None = None


class DnsView(msgspec.Struct, frozen=True):
    """A DNS answer."""

    rcode: Word
    flags: tuple[Word, ...] = ()
    answers: tuple[Word, ...] = ()
    answer_count: int | None = None
    transport: Word | None = None


class AttemptView(msgspec.Struct, frozen=True):
    """An earlier try of the same measurement."""

    error: ErrorView
    address: Word | None = None
    attempt: int = 1


class EvidenceView(msgspec.Struct, frozen=True):
    """What was looked at before anyone was blamed, or not."""

    waited_ms: Milliseconds | None = None
    route: bool | None = None
    interface: Word | None = None
    link: bool | None = None
    link_changed: bool = False
    gateway: Word | None = None
    gateway_answers: bool | None = None
    other: Word | None = None
    asked: int = 0
    answered: int = 0
    names_asked: int = 0
    names_found: int = 0
    names_compared: int = 0
    names_kept: int = 0
    loss: bool = False


class LookView(msgspec.Struct, frozen=True):
    """One more question that was asked when the measurement had failed."""

    what: Word
    ms: Milliseconds | None = None
    address: Word | None = None
    port: int | None = None
    server: Word | None = None
    name: Word | None = None
    error: Word | None = None


class ResultView(msgspec.Struct, frozen=True):
    """What is shown of a result record."""

    schema: Literal[1]
    target: TargetView
    location: LocationView
    status: Word
    scheduled_at: Word
    started_at: Word | None = None
    duration_ms: Milliseconds | None = None
    phases_ms: Phases = {}
    error: ErrorView | None = None
    peer: PeerView | None = None
    http: HttpView | None = None
    tls: TlsView | None = None
    icmp: IcmpView | None = None
    dns: DnsView | None = None
    attempt: int = 1
    attempts: tuple[AttemptView, ...] = ()
    evidence: EvidenceView | None = None
    second_look: tuple[LookView, ...] = ()
    stall_ms: Milliseconds | None = None
    missed: int | None = None
    agent: AgentView = AgentView()
    clock: ClockView = ClockView()


class NotAResult(ValueError):
    """These bytes are no result record of a schema that is known here."""


_decode = msgspec.json.Decoder(ResultView).decode


def parse(record: bytes) -> ResultView:
    """What can be shown of a record. Raises `NotAResult` for anything else, whatever the bytes are."""
    try:
        return _decode(record)
    except (ValueError, RecursionError) as error:
        raise NotAResult(str(error)) from None


class Terminal(Console):
    """Standard output. A reader who leaves is an ordinary `BrokenPipeError`, not an exit from within a library."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """See rich; called while the error is handled."""
        raise

    @property
    def plain(self) -> bool:
        """No colours: what they say must be said otherwise."""
        return self.no_color or not self.is_terminal

    def printable(self, text: str) -> str:
        """`text` with escapes for what would steer the terminal, reorder the line, or has no code in its encoding."""
        return printable(text, self.encoding)


def printable(text: str, encoding: str = "utf-8") -> str:
    """`text` with escapes for control, format and private characters, and for what `encoding` does not have."""
    if not text.isprintable():
        text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def named(target_id: str, source: str | None) -> str:
    """A target for a row of a table: its id, and by what it is measured if it has a source."""
    return target_id if source is None else f"{target_id} by {source}"


def tally(verdicts: Iterable[str], encoding: str = "utf-8") -> Text:
    """How many there are of each, as in `3 up, 1 down`."""
    counted = Counter(verdicts)
    order = [*VERDICTS, *sorted(counted.keys() - VERDICTS.keys())]
    told = [
        Text(printable(f"{counted[each]} {each}", encoding), VERDICTS.get(each, "bold"))
        for each in order
        if counted[each]
    ]
    return Text(", ").join(told)


def many(count: int, what: str) -> str:
    """As in `1 record` and `1,200 records`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def milliseconds(duration: float | None) -> str:
    """A duration in at most 8 characters, or a dash."""
    if duration is None:
        return "-"
    if 0 < duration < 0.1:
        return f"{duration:.3f} ms"  # to the microsecond, as records have it
    if duration < 9_999.95:
        return f"{duration:.1f} ms"
    return f"{duration / 1000:.1f} s" if duration < 9_999_950 else f"{duration / 1000:.0f} s"


def day(stamp: str) -> datetime | None:
    """An RFC 3339 stamp as a moment in UTC, None when it is none."""
    try:
        moment = datetime.fromisoformat(stamp)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def show(record: bytes) -> None:
    """Prints one result record to standard output. Raises `NotAResult`."""
    result = parse(record)
    out = Terminal()
    head = Text.assemble((out.printable(result.status), VERDICTS.get(result.status, "bold")))
    target = result.target
    if (
        target.url and target.id.partition("?")[0] != target.url.partition("?")[0]
    ):  # without an own id it is the url, its query masked
        head.append(f"  {out.printable(target.id)}", "bold")
    head.append(f"  {out.printable(target.url or target.id)}", "bold")
    if result.duration_ms is not None:
        head.append(f"  {milliseconds(result.duration_ms)}")
    out.print(head, soft_wrap=True)
    if result.error is not None:
        error = result.error
        _fact(out, "why", Text(out.printable(f"{error.code}: {error.message}"), "red"))
        _fact(out, "blame", Text(out.printable(error.attribution)))
    if any(phase is not None for phase in result.phases_ms.values()):
        out.print()
        _waterfall(out, result)
        out.print()
    for label, value in _facts(out, result):
        _fact(out, label, value)


def _waterfall(out: Terminal, result: ResultView) -> None:
    """The phases one below the other, each bar beginning where the one before ended."""
    phases = {name: result.phases_ms.get(name) for name in PHASES}
    if result.target.type in ("icmp", "dns"):
        phases = {name: spent for name, spent in phases.items() if spent is not None or name not in CONNECTED}
    total = sum(spent or 0.0 for spent in phases.values())
    width = max(min(out.width, 100) - 36, 8)
    full, thin = ("#", "|") if out.options.ascii_only else ("█", "▏")
    failed = result.error.phase if result.error is not None else None
    begins = 0.0
    for name, spent in phases.items():
        line = Text(f"  {name:<8}{milliseconds(spent):>11}  ", "" if spent is not None else "dim")
        if spent is not None:
            scale = width / total if total else 0.0
            at, length = round(begins * scale), round(spent * scale)
            line.append(" " * min(at, width - 1) + (full * length or thin), "red" if name == failed else PHASES[name])
            begins += spent
        if name == failed:
            line.append("  failed", "red")
        out.print(line, soft_wrap=True)


def _facts(out: Terminal, result: ResultView) -> Iterable[tuple[str, Text]]:
    if result.http is not None:
        for number, hop in enumerate(result.http.hops, 1):
            took = milliseconds(sum(spent or 0.0 for spent in hop.phases_ms.values()))
            yield f"redirect {number}", Text(out.printable(f"{hop.status_code} from {hop.url}, {took}"))
    yield from _attempt_facts(out, result)
    if result.peer is not None:
        yield "address", Text(out.printable(_at(result.peer.address, result.peer.port)))
    if result.target.source is not None:
        yield "source", Text(out.printable(result.target.source))
    if result.http is not None and result.http.status_code is not None:
        http = result.http
        version = "" if http.version is None else f"HTTP/{http.version}, "
        yield "answer", Text(out.printable(f"{http.status_code}, {version}{http.body_bytes:,} bytes"))
    if result.icmp is not None:
        yield "echoes", Text(f"{result.icmp.received} of {result.icmp.sent} answered")
        if (trips := result.icmp.rtt_ms) is not None:
            spread = "" if trips.stddev is None else f", standard deviation {milliseconds(trips.stddev)}"
            told = f"{milliseconds(trips.min)} to {milliseconds(trips.max)}, {milliseconds(trips.avg)} on average"
            yield "round trip", Text(told + spread)
    if result.dns is not None:
        yield from _dns_facts(out, result.dns)
    if result.tls is not None:
        yield from _tls_facts(out, result.tls)
    if result.evidence is not None:
        yield from _evidence_facts(out, result.evidence)
    for look in result.second_look:
        yield "second look", Text(out.printable(_look(look)))
    if result.stall_ms is not None:
        yield "stall", Text(f"this device stood still for {milliseconds(result.stall_ms)} meanwhile", "yellow")
    if result.missed is not None:
        yield "missed", Text(f"{many(result.missed, 'measurement')}, from {out.printable(result.scheduled_at)} on")
    if not result.clock.synchronized:
        yield "clock", Text(_NOT_SYNCHRONIZED, "yellow")
    yield "location", Text(out.printable(result.location.id))


def _attempt_facts(out: Terminal, result: ResultView) -> Iterable[tuple[str, Text]]:
    number, address = 0, None
    for tried in result.attempts:
        other = "other family: " if tried.attempt == number and _of_another_family(tried.address, address) else ""
        told = ": ".join(filter(None, (tried.address, tried.error.code, tried.error.message)))
        yield "tried" if result.attempt == 1 else f"attempt {tried.attempt}", Text(out.printable(other + told))
        number, address = tried.attempt, tried.address
    if result.attempt > 1:
        peer = None if result.peer is None else result.peer.address
        other = ", other family" if result.attempt == number and _of_another_family(peer, address) else ""
        told = f"the last one{other}: the phases above and all below are its own"
        yield f"attempt {result.attempt}", Text(told)


def _of_another_family(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and (":" in one) != (":" in other)


def _evidence_facts(out: Terminal, seen: EvidenceView) -> Iterable[tuple[str, Text]]:
    for told in ("; ".join(_others(seen)), ", ".join(_way(seen))):
        if told:
            yield "evidence", Text(out.printable(told))
    if seen.waited_ms:
        yield "judged", Text(f"{milliseconds(seen.waited_ms)} after the measurement's end")


def _others(seen: EvidenceView) -> Iterable[str]:
    asked = f"{seen.asked} asked, {seen.answered or 'none'} answered"
    if seen.other is not None:
        yield f"{seen.other} answered"
    if seen.asked:
        yield asked if seen.answered or seen.other is not None else f"nobody else answered: {asked}"
    if seen.names_asked:
        yield f"the resolver found {seen.names_found or 'none'} of {seen.names_asked} other names"
    if seen.names_compared:
        yield f"{seen.names_kept or 'none'} of {seen.names_compared} other names kept their addresses"
    if seen.loss:
        yield "others had to be asked twice lately"


def _way(seen: EvidenceView) -> Iterable[str]:
    if seen.route is not None:
        yield f"route {'yes' if seen.route else 'no'}"
    if seen.link is not None:
        yield f"link {'up' if seen.link else 'down'} ({seen.interface})"
    elif seen.interface is not None:
        yield f"interface {seen.interface}"
    if seen.link_changed:
        yield "the link went up or down meanwhile"
    near = "the address itself" if seen.gateway is None else f"gateway {seen.gateway}"
    if seen.gateway_answers is not None:
        yield f"{near} {'answers' if seen.gateway_answers else 'does not answer'} to ARP"
    elif seen.gateway is not None:
        yield near


def _look(look: LookView) -> str:
    came = look.error or "answered"
    if look.what == "connect":
        asked = f"connect {_at(look.address or '?', look.port)}"
    elif look.what == "resolve":
        asked = f"resolve {look.name or 'the name'} by {'this host' if look.server == 'host' else look.server}"
        came = look.error or " ".join(filter(None, ("found", look.address)))
    else:
        asked = look.what if look.address is None else f"{look.what} at {look.address}"
    return f"{asked}: {came} after {milliseconds(look.ms)}"


def _at(address: str, port: int | None) -> str:
    host = f"[{address}]" if ":" in address else address
    return host if port is None else f"{host}:{port}"


def _dns_facts(out: Terminal, dns: DnsView) -> Iterable[tuple[str, Text]]:
    over = "" if dns.transport is None else f", over {dns.transport.upper()}"
    told = ", ".join(filter(None, (dns.rcode, " ".join(dns.flags))))
    yield "answer", Text(out.printable(told + over))
    for record in dns.answers:
        yield "record", Text(out.printable(record))
    if dns.answer_count is not None and dns.answer_count > len(dns.answers):
        yield "", Text(f"and {dns.answer_count - len(dns.answers)} more")


def _tls_facts(out: Terminal, tls: TlsView) -> Iterable[tuple[str, Text]]:
    if tls.version is not None:
        yield "TLS", Text(out.printable(", ".join(filter(None, (tls.version, tls.cipher)))))
    if tls.subject is not None:
        verified = ("verified", "green") if tls.verified else ("not verified", "red")
        yield "certificate", Text.assemble(out.printable(tls.subject), ", ", verified)
    if tls.issuer is not None:
        yield "issued by", Text(out.printable(tls.issuer))
    if tls.not_after is not None:
        dates = f"{(tls.not_before or '?')[:10]} to {tls.not_after[:10]}, "
        yield "valid", Text.assemble(out.printable(dates), _days_left(tls.not_after))
        if tls.chain_not_after is not None and tls.chain_not_after != tls.not_after:
            ends = out.printable(f"its chain ends on {tls.chain_not_after[:10]}, ")
            yield "", Text.assemble(ends, _days_left(tls.chain_not_after))


def _days_left(stamp: str) -> Text:
    moment = day(stamp)
    if moment is None:
        return Text("no date")
    days = (moment - datetime.now(UTC)).total_seconds() / 86_400
    if days < 0:
        return Text(f"expired {many(round(-days), 'day')} ago" if days <= -1 else "expired today", "red")
    return Text(
        f"{many(round(days), 'day')} left" if days >= 1 else "less than a day left",
        "yellow" if days < SOON else "green",
    )


def _fact(out: Terminal, label: str, value: Text) -> None:
    """A labelled value; on a terminal it is wrapped under itself, elsewhere it stays one line for whoever greps."""
    lines = value.wrap(out, max(out.width - 14, 20), overflow="fold") if out.is_terminal else [value]
    for line in lines:
        out.print(Text(f"  {label:<12}", "dim").append_text(line), soft_wrap=True)
        label = ""
