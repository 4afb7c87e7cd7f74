"""The newest result of each target and location, from the values on a topic: a live table, lines, or JSON lines.

Anyone may write to a topic: what is no result record is counted and skipped, and nothing of it reaches the terminal.
"""

import re
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.show import PHASES, VERDICTS, NotAResult, ResultView, Terminal, day, milliseconds, parse, printable

ROWS = 1_000  # target × location kept; beyond it the one that was silent for longest leaves
REDRAW = 0.25  # seconds between two drawings at least, however much arrives
WIDE, WIDER = 80, 120  # columns of a terminal from which phases, and from which messages are shown
CODE = 22  # columns for the longest error code that comes often
_BAR, _WIDER_BAR = 12, 24
_LETTERS = {"resolve": "r", "connect": "c", "tls": "t", "send": "s", "wait": "w", "receive": "v"}
# JSON allows these raw within strings; a terminal obeys some, and others reorder or hide what is shown.
_STEERING = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def watch(values: Iterator[bytes | None], *, live: bool, as_json: bool) -> None:
    """Shows the results among `values` until they end; None stands for a second in which none came.

    `live` draws a table of up to 1,000 rows; else each result is a line as it comes, with `as_json` any valid JSON is,
    whatever it says. What was skipped is told: below the table, or on standard error.
    """
    if as_json:
        _json_lines(values)
    elif live and not (out := Terminal()).is_dumb_terminal:
        _live(out, values)
    else:
        _lines(values)


def _json_lines(values: Iterator[bytes | None]) -> None:
    def line(value: bytes) -> str:
        try:
            msgspec.json.decode(value)
        except (ValueError, RecursionError):
            raise NotAResult from None
        if b"\n" in value or b"\r" in value:
            value = msgspec.json.format(value, indent=-1)
        return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", value.decode())

    _print_each(values, line, "JSON")


def _lines(values: Iterator[bytes | None]) -> None:
    def line(value: bytes) -> str:
        result = parse(value)
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

    _print_each(values, line, "result records")


def _print_each(values: Iterator[bytes | None], line: Callable[[bytes], str], what: str) -> None:
    skipped = 0
    try:
        for value in values:
            if value is None:
                continue
            try:
                sys.stdout.write(line(value) + "\n")
                sys.stdout.flush()
            except NotAResult:
                skipped += 1
                if skipped == 1:
                    sys.stderr.write(f"something on the topic is not {what}: skipped, and counted until the end\n")
    finally:
        if skipped:
            sys.stderr.write(f"skipped, not being {what}: {skipped}\n")


def _live(out: Terminal, values: Iterator[bytes | None]) -> None:
    newest, drawn = Newest(), time.monotonic()
    with Live(newest.picture(out), console=out, auto_refresh=False, vertical_overflow="crop") as live:
        for value in values:
            if value is not None:
                newest.take(value)
            if time.monotonic() - drawn >= REDRAW:
                live.update(newest.picture(out), refresh=True)
                drawn = time.monotonic()
        live.update(newest.picture(out), refresh=True)


class Newest:
    """The newest result of each target × location, at most `ROWS` of them, and how many values were none."""

    def __init__(self) -> None:
        self.results: OrderedDict[tuple[str, str], ResultView] = OrderedDict()
        self.skipped = 0

    def take(self, value: bytes) -> None:
        """Takes one value of the topic in, whatever it is."""
        try:
            result = parse(value)
        except NotAResult:
            self.skipped += 1
            return
        key = (result.target.id, result.location.id)
        known = self.results.get(key)
        if known is not None and _older(result, known):
            return
        self.results[key] = result
        self.results.move_to_end(key)
        if len(self.results) > ROWS:
            self.results.popitem(last=False)

    def picture(self, out: Terminal) -> Group | Text:
        """The table as it looks now on `out`; what does not fit is counted below it, and is what went well."""
        if not self.results:
            return Text(f"waiting for the first result{self._also()}")
        room = max(out.height - 5, 1)
        summary = _summary(out, self.results.values())
        shown = sorted(self.results.items(), key=lambda row: (row[1].status == "up", row[0]))[:room]
        rows = [result for _, result in sorted(shown)]
        if len(rows) < len(self.results):
            summary.append(f"; {len(self.results) - len(rows)} of them do not fit here")
        summary.append(self._also())
        below = [Text(), summary] if out.width < WIDE else [Text(), summary, _legend(out)]
        return Group(_table(out, rows), *below)

    def _also(self) -> str:
        return f"; other records, skipped: {self.skipped}" if self.skipped else ""


def _older(result: ResultView, known: ResultView) -> bool:
    """Whether `result` comes late, as what waited for the broker does."""
    if result.agent.run_id == known.agent.run_id:
        return result.agent.seq < known.agent.seq
    if not (result.clock.synchronized and known.clock.synchronized):
        return False
    return result.scheduled_at < known.scheduled_at


def _summary(out: Terminal, rows: Iterable[ResultView]) -> Text:
    counted = Counter(result.status for result in rows)
    order = [*VERDICTS, *sorted(counted.keys() - VERDICTS.keys())]
    told = [
        Text(out.printable(f"{counted[each]} {each}"), VERDICTS.get(each, "bold")) for each in order if counted[each]
    ]
    return Text(", ").join(told)


def _table(out: Terminal, rows: list[ResultView]) -> Table:
    wide, wider = out.width >= WIDE, out.width >= WIDER
    columns = {"target": [(result.target.id, "bold") for result in rows]}
    if wide or len({result.location.id for result in rows}) > 1:
        columns["location"] = [(result.location.id, "") for result in rows]
    columns["verdict"] = [(result.status, VERDICTS.get(result.status, "bold")) for result in rows]
    columns["why"] = [(_why(result, wider), "") for result in rows]
    columns["age"] = [(_age(result), "dim") for result in rows]
    columns["took"] = [(milliseconds(result.duration_ms), "") for result in rows]
    cells = {name: [Text(out.printable(text), style) for text, style in column] for name, column in columns.items()}
    if wide:
        bar = _WIDER_BAR if wider else _BAR
        cells["phases"] = [_bar(out, result, bar) for result in rows]

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


def _age(result: ResultView) -> str:
    """How long ago it was measured; `?` when either clock cannot tell."""
    moment = day(result.started_at or result.scheduled_at)
    if moment is None or not result.clock.synchronized:
        return "?"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < -1:
        return "?"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


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
