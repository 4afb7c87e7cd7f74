"""The newest result of each target and location, from the values on a topic: a live table, lines, or JSON lines.

Anyone may write to a topic: what is no result record is counted and skipped, and nothing of it reaches the terminal.
What is not known is not shown as if it were: a row that is overdue, an age that is only that of its arrival, and a
broker that gives no answer are marked as such.
"""

import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.show import (
    PHASES,
    VERDICTS,
    AgentView,
    NotAResult,
    ResultView,
    Terminal,
    day,
    milliseconds,
    named,
    parse,
    printable,
    tally,
)

ROWS = 1_000  # target × location kept; beyond it the one that was silent for longest leaves
REDRAW = 0.25  # seconds between two drawings at least, however much arrives
WIDE, WIDER = 80, 120  # columns of a terminal from which phases, and from which messages are shown
GRACE = 5.0  # seconds beyond two of its intervals after which a row is overdue: the way of a result takes its time
CODE = 22  # columns for the longest error code that comes often
_BAR, _WIDER_BAR = 12, 24
_LETTERS = {"resolve": "r", "connect": "c", "tls": "t", "send": "s", "wait": "w", "receive": "v"}
# JSON allows these raw within strings; a terminal obeys some, and others reorder or hide what is shown.
_STEERING = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


Reading = tuple[bytes, float | None] | str | None


class _OfRun(msgspec.Struct):
    agent: AgentView


def of_run(readings: Iterator[Reading], run_id: str) -> Iterator[Reading]:
    """Of the values only the records of this run of an agent, results or events."""
    for reading in readings:
        if isinstance(reading, tuple):
            try:
                found = msgspec.json.decode(reading[0], type=_OfRun).agent.run_id
            except (ValueError, RecursionError):
                continue
            if found != run_id:
                continue
        yield reading


def watch(readings: Iterator[Reading], *, live: bool, as_json: bool, count: int | None = None) -> None:
    """Shows the results among `readings` until they end, or `count` were shown.

    A reading is a value of the topic and when it came to Kafka, in seconds since the epoch if that is known; or a
    second in which none came: None, or the trouble with the broker as a text.

    `live` draws a table of up to 1,000 rows; else each result is a line as it comes, and the verdicts are counted at
    the end; with `as_json` any valid JSON is a line, whatever it says. Skipped values and troubles are told: below the
    table, or on standard error.
    """
    if as_json:
        _json_lines(readings, count)
    elif live and not (out := Terminal()).is_dumb_terminal:
        _live(out, readings, count)
    else:
        _lines(readings, count)


def _json_lines(readings: Iterator[Reading], count: int | None) -> None:
    def line(value: bytes) -> str:
        try:
            msgspec.json.decode(value)
        except (ValueError, RecursionError):
            raise NotAResult from None
        if b"\n" in value or b"\r" in value:
            value = msgspec.json.format(value, indent=-1)
        return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", value.decode())

    _print_each(readings, line, "JSON", count)


def _lines(readings: Iterator[Reading], count: int | None) -> None:
    newest = Newest()

    def line(value: bytes) -> str:
        result = parse(value)
        newest.add(Row(result, None, 0.0))
        at = day(result.started_at or result.scheduled_at)
        told = [
            result.scheduled_at if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}",
            f"{result.target.id:<20}",
            f"{result.status:<7}",
            f"{result.error.code if result.error else '-':<22}",
            f"{milliseconds(result.duration_ms):>10}",
            result.location.id,
            result.error.message if result.error else "",
        ]
        return printable("  ".join(told).rstrip(), sys.stdout.encoding)

    _print_each(readings, line, "result records", count)
    if newest.rows:
        counted = tally(row.result.status for row in newest.rows.values()).plain
        sys.stdout.write(printable(f"at the end: {counted}", sys.stdout.encoding) + "\n")
        sys.stdout.flush()


def _print_each(readings: Iterator[Reading], line: Callable[[bytes], str], what: str, count: int | None) -> None:
    shown, skipped, trouble = 0, 0, False
    try:
        for reading in readings:
            if isinstance(reading, str):
                if not trouble:
                    sys.stderr.write(f"{printable(reading, sys.stderr.encoding)}\n")
                trouble = True
                continue
            if trouble:
                sys.stderr.write("the broker answers again\n")
                trouble = False
            if reading is None:
                continue
            try:
                sys.stdout.write(line(reading[0]) + "\n")
                sys.stdout.flush()
                shown += 1
                if shown == count:
                    break
            except NotAResult:
                skipped += 1
                if skipped == 1:
                    sys.stderr.write(f"something on the topic is not {what}: skipped, and counted until the end\n")
    finally:
        if skipped:
            sys.stderr.write(f"skipped, not being {what}: {skipped}\n")


def _live(out: Terminal, readings: Iterator[Reading], count: int | None) -> None:
    newest, drawn, trouble, shown = Newest(), time.monotonic(), None, 0
    with Live(newest.picture(out), console=out, auto_refresh=False, vertical_overflow="crop") as live:
        for reading in readings:
            trouble = reading if isinstance(reading, str) else None
            if isinstance(reading, tuple):
                shown += newest.take(*reading)
                if shown == count:
                    break
            if time.monotonic() - drawn >= REDRAW:
                live.update(newest.picture(out, trouble), refresh=True)
                drawn = time.monotonic()
        live.update(newest.picture(out, trouble), refresh=True)


class Row(NamedTuple):
    """A result; when it came to Kafka, in seconds since the epoch if that is known; when it came here, monotonic."""

    result: ResultView
    arrived: float | None
    taken: float

    def age(self, now: float) -> tuple[float | None, bool]:
        """Seconds since it was measured, and whether they are only those since it came to Kafka.

        None: nothing tells. `now` is in seconds since the epoch.
        """
        moment = day(self.result.started_at or self.result.scheduled_at)
        if moment is not None and self.result.clock.synchronized and (since := now - moment.timestamp()) >= -1:
            return max(since, 0.0), False
        return (None if self.arrived is None else max(now - self.arrived, 0.0)), True

    def overdue(self, now: float) -> bool:
        """Was nothing heard of this target for more than two of its intervals?"""
        if (interval := self.result.target.interval_ms) is None:
            return False
        known = [self.age(now)[0], None if self.arrived is None else now - self.arrived]
        silence = min((each for each in known if each is not None), default=time.monotonic() - self.taken)
        return silence > 2 * interval / 1000 + GRACE


class Newest:
    """The newest result of each target × location, at most `ROWS` of them, and how many values were none."""

    def __init__(self) -> None:
        self.rows: OrderedDict[tuple[str, str], Row] = OrderedDict()
        self.skipped = 0

    def take(self, value: bytes, arrived: float | None = None) -> bool:
        """Takes one value of the topic in, whatever it is. False when it is no result."""
        try:
            self.add(Row(parse(value), arrived, time.monotonic()))
        except NotAResult:
            self.skipped += 1
            return False
        return True

    def add(self, row: Row) -> None:
        """Takes a result in, unless a newer one is known."""
        key = (row.result.target.id, row.result.location.id)
        known = self.rows.get(key)
        if known is not None and _older(row.result, known.result):
            return
        self.rows[key] = row
        self.rows.move_to_end(key)
        if len(self.rows) > ROWS:
            self.rows.popitem(last=False)

    def picture(self, out: Terminal, trouble: str | None = None) -> Group | Text:
        """The table as it looks now on `out`; what does not fit is counted below it, and is what went well."""
        now = time.time()
        rows = [(row, row.overdue(now)) for _, row in sorted(self.rows.items())]
        below = self._below(out, rows, now, trouble)
        room = max(out.height - 2 - len(below), 1)
        if len(rows) > room:
            below = self._below(out, rows, now, trouble, hidden=len(rows) - room)
            by_need = sorted(range(len(rows)), key=lambda at: rows[at][0].result.status == "up" and not rows[at][1])
            rows = [rows[at] for at in sorted(by_need[:room])]
        return Group(*([_table(out, rows, now)] if rows else []), *below)

    def _below(
        self, out: Terminal, rows: list[tuple[Row, bool]], now: float, trouble: str | None, hidden: int = 0
    ) -> list[Text]:
        """The lines below the table: how many of what, what is wrong, and what its marks mean."""
        summary = tally((row.result.status for row, _ in rows), out.encoding)
        if not rows:
            summary = Text("waiting for the first result")
        if hidden:
            summary.append(f"; {hidden} of them do not fit here")
        if self.skipped:
            summary.append(f"; other records, skipped: {self.skipped}")
        told = [summary]
        if trouble is not None:
            told.append(Text(out.printable(trouble), "bold red"))
        if overdue := sum(late for _, late in rows):
            told.append(Text(f"! {overdue} overdue: nothing for more than two of the target's intervals", "yellow"))
        ages = {row.age(now) for row, _ in rows}
        if any(seconds is not None and by_arrival for seconds, by_arrival in ages):
            told.append(Text("~ age counted from its arrival in Kafka: the device's clock may be wrong", "dim"))
        if (None, True) in ages:
            told.append(Text("? not known, as the device's clock is not known to be right", "dim"))
        if rows and out.width >= WIDE:
            told.append(_legend(out))
        lines = [line for text in told for line in text.wrap(out, out.width)]
        return [Text(), *lines] if rows else lines


def _older(result: ResultView, known: ResultView) -> bool:
    """Whether `result` comes late, as what waited for the broker does."""
    if result.agent.run_id == known.agent.run_id:
        return result.agent.seq < known.agent.seq
    if not (result.clock.synchronized and known.clock.synchronized):
        return False
    return result.scheduled_at < known.scheduled_at


def _table(out: Terminal, rows: list[tuple[Row, bool]], now: float) -> Table:
    wide, wider = out.width >= WIDE, out.width >= WIDER
    results = [row.result for row, _ in rows]
    columns = {"target": [(named(result.target.id, result.target.source), "bold") for result in results]}
    if len({result.location.id for result in results}) > 1:
        columns["location"] = [(result.location.id, "") for result in results]
    # What is overdue may not hold any more, so it has no colour.
    verdicts = [(row.result.status, late) for row, late in rows]
    columns["verdict"] = [(status, "dim" if late else VERDICTS.get(status, "bold")) for status, late in verdicts]
    columns["why"] = [(_why(result, wider), "") for result in results]
    columns["age"] = [(_age(row, now) + " !" * late, "yellow" if late else "dim") for row, late in rows]
    columns["took"] = [(milliseconds(result.duration_ms), "") for result in results]
    cells = {name: [Text(out.printable(text), style) for text, style in column] for name, column in columns.items()}
    if wide:
        bar = _WIDER_BAR if wider else _BAR
        cells["phases"] = [_bar(out, result, bar) for result in results]

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name, width in _widths(cells, out.width).items():
        table.add_column(
            name,
            width=width,
            no_wrap=True,
            overflow="crop" if out.options.ascii_only else "ellipsis",
            justify="right" if name in ("age", "took") else "left",
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def _widths(cells: dict[str, list[Text]], width: int) -> dict[str, int]:
    """Each column's width: what can be cut shares what the rest leaves, half of it the reason, a code at least."""
    widths = {name: max(len(name), *(cell.cell_len for cell in column)) for name, column in cells.items()}
    left = width - len(cells) + 1 - sum(widths[name] for name in widths if name not in ("target", "location", "why"))
    why = min(widths["why"], max(CODE, left // 2))
    if "location" in widths:
        widths["location"] = max(min(widths["location"], (left - why) // 3), 3)
        left -= widths["location"]
    widths["target"] = max(min(widths["target"], left - why), left // 4, 6)
    widths["why"] = max(min(widths["why"], left - widths["target"]), 3)
    return widths


def _why(result: ResultView, wider: bool) -> str:
    if result.error is None:
        return ""
    return f"{result.error.code}: {result.error.message}" if wider else result.error.code


def _age(row: Row, now: float) -> str:
    """How long ago it was measured; with `~` how long ago it came to Kafka; `?` when nothing tells."""
    seconds, by_arrival = row.age(now)
    if seconds is None:
        return "?"
    unit = next((each for each in ((86_400, "d"), (3_600, "h"), (60, "m")) if seconds >= each[0]), (1, "s"))
    return f"{'~' if by_arrival else ''}{seconds // unit[0]:.0f}{unit[1]}"


def _bar(out: Terminal, result: ResultView, width: int) -> Text:
    """The phases' shares of the last exchange, in their colours, or by letters where there are none."""
    phases = [(name, result.phases_ms.get(name) or 0.0) for name in PHASES]
    total = sum(spent for _, spent in phases)
    bar, ends = Text(), 0.0
    for name, spent in phases if total > 0 else ():
        ends += spent
        cells = round(ends / total * width) - bar.cell_len
        bar.append((_LETTERS[name] if _lettered(out) else "█") * cells, PHASES[name])
    return bar


def _legend(out: Terminal) -> Text:
    lettered = _lettered(out)
    return Text("  ").join(Text(f"{_LETTERS[name] if lettered else '█'} {name}", PHASES[name]) for name in PHASES)


def _lettered(out: Terminal) -> bool:
    return out.plain or out.options.ascii_only
