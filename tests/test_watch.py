"""What comes from the topic, as a table that lives, as lines, or as JSON."""

import io
import json
import re
import time
from datetime import UTC, datetime, timedelta

import pytest

from agent.show import Terminal
from agent.watch import ROWS, Newest, of_run, watch

CODES = {"silent": "http_timeout_headers", "expired": "tls_cert_expired", "broken": "status_mismatch"}
GARBAGE = [b"\xff", b"", b"[" * 100_000, b'{"event": "heartbeat", "schema": 1}', b'"text"']


def a_record(target="shop", status="up", location="ist-1", seq=1, run="5f0c2a9177d04e1b", ago=3.0, **fields):
    at = (datetime.now(UTC) - timedelta(seconds=ago)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    error = None
    if status != "up":
        message = "the server did what it should not, and this is told at some length"
        error = {"phase": "wait", "code": CODES.get(target, "status_mismatch"), "message": message}
    record = {
        "schema": 1,
        "id": f"ist-1-pi/{run}/0/{seq}",
        "agent": {"id": "ist-1-pi", "run_id": run, "seq": seq},
        "location": {"id": location},
        "target": {"id": target, "url": "https://shop.example/", "interval_ms": 60_000.0},
        "scheduled_at": at,
        "started_at": at,
        "duration_ms": 84.213,
        "status": status,
        "phases_ms": {"resolve": None, "connect": 20.0, "tls": 40.0, "wait": 20.0, "receive": 4.213},
        "error": error,
        "clock": {"synchronized": True},
    }
    return json.dumps({**record, **fields}).encode()


class Screen(Terminal):
    """A terminal of a given size whose screen can be read."""

    def __init__(self, monkeypatch, width=100, height=30, **environment):
        self.written = io.StringIO()
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        settings = {"COLUMNS": width, "LINES": height, "FORCE_COLOR": 1, "TERM": "xterm-256color", **environment}
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))
        super().__init__()
        self.file = self.written

    def lines(self, newest, trouble=None):
        self.print(newest.picture(self, trouble))
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.written.getvalue())
        return [line.rstrip() for line in text.splitlines()]


def readings(*values):
    """As they come from a topic; None is a second without one."""
    return iter([None if value is None else (value, None) for value in values])


def taken(*values):
    newest = Newest()
    for value in values:
        newest.take(value)
    return newest


def row(lines, target):
    (line,) = [line for line in lines if line.startswith(target)]
    return line


def test_the_table(monkeypatch):
    """Target, location, verdict, why, age and duration of each, and a summary."""
    newest = taken(a_record("shop"), a_record("silent", "down", "nyc-1", ago=120), a_record("mail", "unknown"))
    lines = Screen(monkeypatch).lines(newest)
    assert lines[0].split() == ["target", "location", "verdict", "why", "age", "took", "phases"]
    assert row(lines, "shop").split()[:6] == ["shop", "ist-1", "up", "3s", "84.2", "ms"]
    assert row(lines, "silent").split()[:7] == ["silent", "nyc-1", "down", "http_timeout_headers", "2m", "84.2", "ms"]
    assert "1 up, 1 down, 1 unknown" in lines


def test_one_location(monkeypatch):
    """While all are measured from one place, which each row would repeat, its column is left to what differs."""
    lines = Screen(monkeypatch).lines(taken(a_record("shop"), a_record("mail")))
    assert lines[0].split() == ["target", "verdict", "why", "age", "took", "phases"]
    assert row(lines, "shop").split()[:5] == ["shop", "up", "3s", "84.2", "ms"]


def test_a_source(monkeypatch):
    """Where a target has one it stands behind the id: the same site by two ways is told apart."""
    sourced = json.loads(a_record())
    sourced["target"]["source"] = "wwan0"
    lines = Screen(monkeypatch).lines(taken(a_record("mail"), json.dumps(sourced).encode()))
    assert row(lines, "shop").split()[:4] == ["shop", "by", "wwan0", "up"]
    assert row(lines, "mail").split()[:2] == ["mail", "up"]


def test_the_bar_shows_each_phase_by_its_share(monkeypatch):
    """With colours a phase is its colour, without them its letter; its length is its share of the time."""
    phases = {"connect": 25.0, "tls": 50.0, "send": 0.0, "wait": None, "receive": 25.0}
    newest = taken(a_record(phases_ms=phases))
    coloured = Screen(monkeypatch)
    assert row(coloured.lines(newest), "shop").endswith("█" * 12)
    assert re.search(r"\x1b\[36m█{3}\x1b\[0m\x1b\[35m█{6}\x1b\[0m\x1b\[32m█{3}", coloured.written.getvalue())
    plain = Screen(monkeypatch, NO_COLOR=1).lines(newest)
    assert row(plain, "shop").endswith("ccc" + "tttttt" + "vvv")
    assert "c connect" in plain[-1]


@pytest.mark.parametrize("width", [40, 60, 79, 80, 100, 120, 200])
def test_any_width(monkeypatch, width):
    """Nothing is wider than the terminal, a code is whole from 60 columns on, and messages need 120."""
    newest = taken(
        a_record("silent", "down"), a_record("https://a-long-name.example/with/a/path?and=more" * 3, "up", "ist-" * 10)
    )
    lines = Screen(monkeypatch, width=width).lines(newest)
    assert max(map(len, lines)) <= width
    assert ("http_timeout_headers" in row(lines, "silent")) == (width >= 60)
    assert ("http_timeout_headers: the" in row(lines, "silent")) == (width >= 120)
    assert "down" in row(lines, "silent")


def test_no_more_rows_than_fit(monkeypatch):
    """When the terminal is too low, what went well is left out first, and that is said."""
    newest = taken(*(a_record(f"good-{number:02}") for number in range(40)), a_record("zzz", "down"))
    lines = Screen(monkeypatch, height=20).lines(newest)
    assert len(lines) <= 20
    assert row(lines, "zzz")
    assert "40 up, 1 down; 26 of them do not fit here" in lines


def test_bounded_in_memory():
    """A topic with endless targets keeps the latest 1,000 and lets the longest silent go."""
    newest = taken(*(a_record(f"t{number}") for number in range(ROWS + 5)), a_record("t5", seq=2), a_record("new"))
    assert len(newest.rows) == ROWS
    names = {target for target, _ in newest.rows}
    assert {"t5", "new"} <= names
    assert not names & {"t0", "t4", "t6"}


def test_what_comes_late_does_not_overwrite():
    """After an outage the backlog arrives behind live records: the table stays with the newest."""
    newest = taken(a_record(seq=9, ago=1), a_record(status="down", seq=5, ago=0))
    assert [row.result.status for row in newest.rows.values()] == ["up"]
    newest = taken(a_record(ago=1), a_record(status="down", run="00000000000000aa", ago=60))
    assert [row.result.status for row in newest.rows.values()] == ["up"]
    newest = taken(a_record(seq=900, ago=60), a_record(status="down", run="00000000000000aa", ago=1))
    assert [row.result.status for row in newest.rows.values()] == ["down"]


def test_a_clock_that_was_not_set(monkeypatch):
    """Its stamps tell no age, and do not keep later records out."""
    unset = {"clock": {"synchronized": False}}
    newest = taken(a_record(ago=-1e9, **unset), a_record(status="down", run="00000000000000aa", ago=1, **unset))
    lines = Screen(monkeypatch).lines(newest)
    assert row(lines, "shop").split()[:4] == ["shop", "down", "status_mismatch", "?"]
    assert "? not known, as the device's clock is not known to be right" in lines


def test_an_age_by_its_arrival(monkeypatch):
    """Where the device's stamps tell nothing, the age is that of its arrival in Kafka, and marked as such."""
    unset = {"clock": {"synchronized": False}}
    newest = Newest()
    newest.take(a_record("unset", ago=1e9, **unset), time.time() - 7.5)
    newest.take(a_record("ahead", ago=-3_600), time.time() - 3.5)
    newest.take(a_record("right", ago=20), time.time())
    lines = Screen(monkeypatch).lines(newest)
    assert [row(lines, name).split()[2] for name in ("unset", "ahead", "right")] == ["~7s", "~3s", "20s"]
    assert "~ age counted from its arrival in Kafka: the device's clock may be wrong" in lines
    assert not any(line.startswith(("?", "!")) for line in lines)


def test_what_is_overdue(monkeypatch):
    """A target of which nothing was heard for more than two of its intervals is marked and loses its colour."""
    late = a_record("late", ago=130)
    unset = {"clock": {"synchronized": False}}
    older = {**json.loads(a_record(ago=999)), "target": {"id": "older"}}  # that does not tell its interval
    newest = taken(late, a_record("soon", ago=120), json.dumps(older).encode())
    newest.take(a_record("live", ago=999), time.time())  # by a clock that is not this one's
    newest.take(a_record("unset", ago=1e9, **unset), time.time() - 130)
    screen = Screen(monkeypatch)
    lines = screen.lines(newest)
    assert {line.split()[0] for line in lines if " ! " in line} == {"late", "unset"}
    assert "2m !" in row(lines, "late")
    assert "~2m !" in row(lines, "unset")
    assert "! 2 overdue: nothing for more than two of the target's intervals" in lines
    assert screen.written.getvalue().count("\x1b[1;32mup") == 3


def test_trouble_with_the_broker(monkeypatch, capsys):
    """That the broker gives no answer stands below the table as long as it lasts; with lines it is told once."""
    trouble = "no word from the broker since 12:00:00: Connection refused\x1b[2J"
    assert trouble.replace("\x1b", r"\x1b") in Screen(monkeypatch).lines(taken(a_record()), trouble)
    assert trouble.replace("\x1b", r"\x1b") in Screen(monkeypatch).lines(taken(), trouble)
    for as_json in (False, True):
        watch(iter([(a_record(), None), trouble, trouble, None, None]), live=False, as_json=as_json)
        told = capsys.readouterr().err.splitlines()
        assert told == [trouble.replace("\x1b", r"\x1b"), "the broker answers again"]


def test_foreign_values_are_counted_and_cannot_steer_the_terminal(monkeypatch):
    """Anyone may write to a topic: garbage is skipped and told, escapes are shown and not obeyed."""
    newest = taken(*GARBAGE, a_record("\x1b[2Jx\u202e\n", "\x07", "\x9b5m"), a_record("shop"))
    screen = Screen(monkeypatch, width=200)
    lines = screen.lines(newest)
    assert lines[1].split()[:3] == [r"\x1b[2Jx\u202e\n", r"\x9b5m", r"\x07"]
    assert not set(screen.written.getvalue()) & set("\x07\x9b\u202e")
    assert "\x1b[2J" not in screen.written.getvalue()
    assert any(line.endswith("; other records, skipped: 5") for line in lines)


def test_nothing_yet(monkeypatch):
    """An empty topic is said to be waited for."""
    assert Screen(monkeypatch).lines(taken()) == ["waiting for the first result"]
    assert Screen(monkeypatch).lines(taken(b"?")) == ["waiting for the first result; other records, skipped: 1"]


def test_live_on_a_terminal(monkeypatch, capsys):
    """The table is drawn again and again, its end stays on the screen, and the cursor comes back."""
    Screen(monkeypatch)
    watch(readings(a_record(), None, b"?", a_record("silent", "down")), live=True, as_json=False)
    out = capsys.readouterr().out
    assert "waiting for the first result" in out
    assert out.rindex("silent") > out.rindex("waiting")
    assert out.endswith("\x1b[?25h")


def test_a_line_for_each_result(capsys):
    """Not on a terminal every record is one line: time, target, verdict, code, duration, location, message.

    When it ends by itself, the newest verdicts are counted.
    """
    values = [a_record(), None, *GARBAGE, a_record("a b\n\x1b", "down"), a_record(started_at=None, duration_ms=None)]
    watch(readings(*values), live=False, as_json=False)
    out, err = capsys.readouterr()
    good, bad, unmeasured, summary = out.splitlines()
    at, *rest = good.split()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", at)
    assert summary == "at the end: 1 up, 1 down"
    assert rest == ["shop", "up", "-", "84.2", "ms", "ist-1"]
    assert bad.split()[1:6] == ["a", r"b\n\x1b", "down", "status_mismatch", "84.2"]
    assert bad.endswith("told at some length")
    assert unmeasured.split()[1:] == ["shop", "up", "-", "-", "ist-1"]
    assert err.splitlines()[-1] == "skipped, not being result records: 5"


def test_lines_on_a_dumb_terminal(monkeypatch, capsys):
    """Where a table cannot be drawn again in its place, lines come instead."""
    Screen(monkeypatch, TERM="dumb")
    watch(readings(a_record()), live=True, as_json=False)
    assert capsys.readouterr().out.split()[1:3] == ["shop", "up"]


def test_json_lines(capsys):
    """With JSON each record is one line, as it came; what is no JSON is skipped and told on standard error."""
    pretty = json.dumps(json.loads(a_record("x")), indent=2).encode()
    record, event = a_record(), b'{"event":"heartbeat","n":12345678901234567890123}'
    watch(readings(record, None, b"\xff", pretty, event, b"[" * 100_000), live=True, as_json=True)
    out, err = capsys.readouterr()
    same, compact, other = out.splitlines()
    assert same.encode() == record
    assert json.loads(compact) == json.loads(pretty)
    assert other.encode() == event
    assert err.splitlines()[-1] == "skipped, not being JSON: 2"


def test_json_cannot_steer_the_terminal(capsys):
    """JSON may hold raw characters that a terminal obeys: they come as JSON's own escapes and mean the same."""
    hostile = {"a": "\x7f\x9b31m\u202e\u2028größer"}
    watch(readings(json.dumps(hostile, ensure_ascii=False).encode()), live=False, as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out) == hostile
    assert all(each.isprintable() for each in out.rstrip("\n"))
    assert "größer" in out


@pytest.mark.parametrize("live", [False, True], ids=["lines", "table"])
@pytest.mark.parametrize("as_json", [False, True], ids=["", "JSON"])
def test_it_ends_by_itself(monkeypatch, capsys, live, as_json):
    """After as many records as were asked for it ends, and reads no further; what was skipped is not one of them."""
    Screen(monkeypatch)
    coming = readings(b"\xff", a_record("first"), None, a_record("second"), a_record("third"))
    watch(coming, live=live, as_json=as_json, count=2)
    out = capsys.readouterr().out
    assert "second" in out
    assert "third" not in out
    assert b"third" in next(coming)[0]


def test_one_run_of_an_agent():
    """Of a run only its records are left, results and events alike; troubles and silence stay."""
    run, other = "5f0c2a9177d04e1b", "00000000000000aa"
    event = json.dumps({"event": "heartbeat", "agent": {"run_id": run}}).encode()
    quoting = json.dumps({"agent": {"run_id": other}, "record": f'"run_id":"{run}"'}).encode()
    kept = [(a_record(run=run), 1.0), None, "no word from the broker", (event, None)]
    left_out = [(value, None) for value in (a_record(run=other), quoting, *GARBAGE, b'{"agent": {}}', b'{"agent": 1}')]
    assert list(of_run(iter(kept[:2] + left_out + kept[2:]), run)) == kept
