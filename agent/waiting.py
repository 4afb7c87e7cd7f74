"""What waits in a spool, for a person or line by line."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from agent.show import Terminal, day, many, printable
from agent.spool.record import Gap, Record
from agent.spool.status import Status, Topic

GAPS = 20  # rows that are shown


def write(records: Iterator[Record | str]) -> None:
    """Prints each record as it would reach Kafka, a line each, and on standard error what cannot be shown."""
    out = sys.stdout.buffer
    seen_by_person = sys.stdout.isatty()
    for record in records:
        if isinstance(record, str):
            sys.stderr.write(printable(record, sys.stderr.encoding) + "\n")
        elif seen_by_person:
            sys.stdout.write(printable(record.value.decode(errors="backslashreplace"), sys.stdout.encoding) + "\n")
        else:
            out.write(record.value + b"\n")


def show(status: Status) -> None:
    """Prints what waits as a table, and below it what is wrong."""
    out = Terminal()

    def line(text: str, style: str = "") -> None:
        out.print(out.printable(text), style=style, soft_wrap=True)

    line(f"{status.directory}: {_summary(status)}", "bold")
    if status.topics:
        line("")
        width = max(5, *map(len, status.topics))
        line(f"  {'topic':<{width}}  {'records':>11}  {'oldest':<20}  {'':>9}  newest", "dim")
        for name, topic in sorted(status.topics.items()):
            line(f"  {name:<{width}}  {_row(topic)}")
    troubles = list(_troubles(status))
    if troubles or status.gaps:
        line("")
    for gap in status.gaps[:GAPS]:
        line(f"  not told yet: {_gap(gap)}", "red")
    if len(status.gaps) > GAPS:
        line(f"  and {len(status.gaps) - GAPS} more of these: see --json", "red")
    for trouble in troubles:
        line(f"  {trouble}", "yellow")


def _summary(status: Status) -> str:
    if not status.exists:
        return "there is no spool, so nothing waits"
    records = sum(topic.records for topic in status.topics.values())
    if not status.segments:
        return "nothing waits"
    return f"{many(records, 'record')} in {many(status.segments, 'file')}, {_size(status.bytes)}"


def _row(topic: Topic) -> str:
    return f"{topic.records:>11,}  {_moment(topic.oldest)}  {_ago(topic.oldest):>9}  {_moment(topic.newest)}"


def _troubles(status: Status) -> Iterator[str]:
    if status.rejected_records:
        yield f"{many(status.rejected_records, 'record')} that Kafka refused: see dump --rejected"
    if status.damaged_bytes:
        yield f"{status.damaged_bytes:,} bytes are damaged; the agent tells what they held"
    if status.quarantined_files:
        yield f"{many(status.quarantined_files, 'damaged file')} kept for people, in {status.directory}/quarantine"
    if status.newer_segments:
        yield f"{many(status.newer_segments, 'file')} of a newer agent: left alone until one reads them"
    if status.unreadable_segments:
        yield f"{many(status.unreadable_segments, 'file')} cannot be read: see dump"


def _gap(gap: Gap) -> str:
    return f"{many(gap.count, 'record')} of {gap.topic} from {gap.first_at} to {gap.last_at} lost: {gap.reason}"


def _moment(stamp: str) -> str:
    moment = day(stamp)
    return f"{stamp:<20}" if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _ago(stamp: str) -> str:
    """How old by this machine's clock, when that makes sense."""
    moment = day(stamp)
    age = timedelta(-1) if moment is None else datetime.now(UTC) - moment
    units = ((timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "m"))
    unit, letter = next(((unit, letter) for unit, letter in units if age >= unit), (timedelta(seconds=1), "s"))
    return "" if age < timedelta() else f"{age // unit}{letter} ago"


def _size(count: int) -> str:
    """Bytes in the largest unit that fits, as in `5.3 MiB`."""
    amount, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
