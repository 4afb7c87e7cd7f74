"""One result, drawn for a person on whatever terminal there is."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from agent.config.model import Agent, Config, Kafka, Location, Target
from agent.device.clock import Clock
from agent.device.identity import Run
from agent.probers.result import Attempt, Dns, Error, Hop, Http, Icmp, Peer, Phases, Result, RoundTrips, Tls
from agent.record import Recorder
from agent.schedule import Measurement, Missed
from agent.show import PHASES as PHASE_NAMES
from agent.show import NotAResult, parse, printable, show
from agent.verdict.found import Look, Ruling, Seen

TARGET = Target("shop", "https://shop.example/", "https://shop.example/", 10.0, 3.0)
PHASES = Phases(3.1, 20.4, 41.0, 0.05, 19.2, 0.4)


class AProber:
    type = "http"


def a_recorder():
    config = Config(Agent("ist-1-pi"), Location("ist-1"), "/nowhere", Kafka(("broker:9092",)), digest="9f2c1e7ab0d4")
    return Recorder(config, Run(17, "5f0c2a9177d04e1b"), Clock("yes"))


def a_record(status="up", error=None, phases=PHASES, synchronized="yes", seen=None, own=None, **found):
    result = Result(84.213, phases, error, **{"peer": Peer("203.0.113.7", 443, "ipv4"), **found})
    measurement = Measurement(TARGET, AProber(), 1000.0, 1000.0, 1764000000.0, result)
    return a_recorder().measured(measurement, Ruling(status, error, seen, own), Clock(synchronized).state()).value


def changed(record, **target):
    """The same with other tags of its target."""
    record = json.loads(record)
    record["target"] |= target
    return json.dumps(record).encode()


def a_tls(ends, **fields):
    stamp = (datetime.now(UTC) + ends).isoformat().replace("+00:00", "Z")
    certificate = {"not_before": "2025-01-01T00:00:00.000000Z", "not_after": stamp, "chain_not_after": stamp}
    names = {"subject": "CN=shop.example", "issuer": "CN=R11,O=Let's Encrypt"}
    return Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", **{"verified": True, **certificate, **names, **fields})


def shown(capsys, record):
    show(record)
    return capsys.readouterr().out


def in_a_process(record, **environment):
    """What `show` writes in a process whose standard output is a pipe."""
    program = "import sys; from agent.show import show; show(sys.stdin.buffer.read())"
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-c", program], input=record, capture_output=True, env={**inherited, **environment}, check=True
    )
    return done.stdout.decode()


def test_all_of_a_good_result(capsys):
    """Verdict, url, time, each phase, redirects, earlier tries, address, answer, certificate with its days left."""
    refused = Error("connect", "connect_refused", "target", "the connection was refused")
    out = shown(
        capsys,
        a_record(
            http=Http(200, "1.1", 5120, 1, (Hop("http://shop.example/", 301, Phases(connect=4.0, wait=2.1)),)),
            tls=a_tls(timedelta(days=57, hours=1)),
            attempts=(Attempt("2001:db8::1", Phases(connect=1.0), refused),),
        ),
    )
    assert out.splitlines()[0] == "up  shop  https://shop.example/  84.2 ms"
    for said in (
        "resolve      3.1 ms",
        "tls         41.0 ms",
        "redirect 1  301 from http://shop.example/, 6.1 ms",
        "tried       2001:db8::1: connect_refused: the connection was refused",
        "address     203.0.113.7:443",
        "answer      200, HTTP/1.1, 5,120 bytes",
        "TLS         TLSv1.3, TLS_AES_256_GCM_SHA384",
        "certificate CN=shop.example, verified",
        "issued by   CN=R11,O=Let's Encrypt",
        "57 days left",
        "location    ist-1",
    ):
        assert said in out, said


def test_a_source(capsys):
    """The way that a target has of its own."""
    assert "source      wwan0\n" in shown(capsys, changed(a_record(), source="wwan0"))


@pytest.mark.parametrize(
    ("target_id", "url", "head"),
    [
        ("https://a.example/", "https://a.example/", "up  https://a.example/  "),
        ("https://a.example/?q=***", "https://a.example/?q=1", "up  https://a.example/?q=1  "),
        ("shop", "", "up  shop  "),
        ("shop", "https://a.example/", "up  shop  https://a.example/  "),
    ],
)
def test_whose_result_it_is(target_id, url, head, capsys):
    """The id and the url; the url alone where there is no id of its own."""
    assert shown(capsys, changed(a_record(), id=target_id, url=url)).startswith(head + "84.2 ms")


SILENT = Error("connect", "connect_timeout", "path", "no answer")


@pytest.mark.parametrize(
    ("seen", "lines"),
    [
        (
            Seen(2000.0, True, "eth0", True, False, "192.0.2.254", True, asked=5),
            [
                "evidence    nobody else answered: 5 asked, none answered",
                "evidence    route yes, link up (eth0), gateway 192.0.2.254 answers to ARP",
                "judged      2000.0 ms after the measurement's end",
            ],
        ),
        (
            Seen(310.0, True, "eth0", None, other="b", asked=4, answered=2, names_asked=3, names_found=1, loss=True),
            [
                "evidence    b answered; 4 asked, 2 answered; the resolver found 1 of 3 other names; "
                "others had to be asked twice lately",
                "evidence    route yes, interface eth0",
                "judged      310.0 ms after the measurement's end",
            ],
        ),
        (
            Seen(0.0, False, "eth0", False, True, None, False),
            [
                "evidence    route no, link down (eth0), the link went up or down meanwhile, "
                "the address itself does not answer to ARP"
            ],
        ),
        (Seen(0.0, names_compared=3), ["evidence    none of 3 other names kept their addresses"]),
        (Seen(0.0, asked=2, answered=2), ["evidence    2 asked, 2 answered"]),
        (Seen(0.0), []),
    ],
)
def test_evidence(seen, lines, capsys):
    """What the verdict rests on, in words: who else answered, and this device's own way out."""
    out = shown(capsys, a_record("unknown", SILENT, seen=seen)).splitlines()
    assert [line.strip() for line in out if line.strip().startswith(("evidence", "judged"))] == lines


@pytest.mark.parametrize(
    ("look", "line"),
    [
        (
            Look("connect", 1500.0, "192.0.2.1", 80, error="connect_timeout"),
            "connect 192.0.2.1:80: connect_timeout after 1500.0 ms",
        ),
        (Look("connect", 3.1, "2001:db8::1", 443), "connect [2001:db8::1]:443: answered after 3.1 ms"),
        (Look("resolve", 9.0, server="host"), "resolve the name by this host: found after 9.0 ms"),
        (
            Look("resolve", 9.0, "192.0.2.7", server="192.0.2.53:53", name="x.invalid"),
            "resolve x.invalid by 192.0.2.53:53: found 192.0.2.7 after 9.0 ms",
        ),
        (
            Look("resolve", 9.0, server="192.0.2.53:53", error="dns_timeout"),
            "resolve the name by 192.0.2.53:53: dns_timeout after 9.0 ms",
        ),
        (Look("measure", 20.0), "measure: answered after 20.0 ms"),
        (Look("measure", 20.0, "192.0.2.9"), "measure at 192.0.2.9: answered after 20.0 ms"),
    ],
)
def test_a_second_look(look, line, capsys):
    """What was asked once more, of whom, and what came of it."""
    out = shown(capsys, a_record("down", SILENT, seen=Seen(10.0), own=(look,)))
    assert f"  second look {line}\n" in out


def test_a_stall(capsys):
    """That this device stood still itself, and for how long."""
    record = json.loads(a_record("unknown", SILENT)) | {"stall_ms": 312.5}
    assert "stall       this device stood still for 312.5 ms meanwhile\n" in shown(capsys, json.dumps(record).encode())
    assert "stall" not in shown(capsys, a_record())


def test_tries(capsys):
    """What came of each try stands under its number, in order, and which one the rest is about."""
    refused = Error("connect", "connect_refused", "target", "the connection was refused")
    unnamed = Error("resolve", "dns_servfail", "resolver", "resolver 192.0.2.53 answered SERVFAIL")
    tries = (Attempt(None, Phases(resolve=1.0), unnamed), Attempt("203.0.113.7", Phases(connect=1.0), refused, 2))
    out = shown(capsys, a_record(attempts=tries, attempt=3))
    first = out.index("attempt 1   dns_servfail: resolver 192.0.2.53 answered SERVFAIL\n")
    second = out.index("attempt 2   203.0.113.7: connect_refused: the connection was refused\n")
    assert first < second < out.index("attempt 3   the last one: the phases above and all below are its own\n")


def test_tries_of_both_families(capsys):
    """Two with one number were one of each family of addresses."""
    refused = Error("connect", "connect_refused", "target", "refused")
    tries = [Attempt(address, Phases(connect=1.0), refused) for address in ("2001:db8::1", "203.0.113.7")]
    tries.append(Attempt("2001:db8::1", Phases(connect=1.0), refused, 2))
    out = shown(capsys, a_record(attempts=tuple(tries), attempt=2))
    assert "attempt 1   2001:db8::1: connect_refused: refused\n" in out
    assert "attempt 1   other family: 203.0.113.7: connect_refused: refused\n" in out
    assert "attempt 2   2001:db8::1: connect_refused: refused\n" in out
    assert "attempt 2   the last one, other family: the phases above and all below are its own\n" in out


@pytest.mark.parametrize(
    ("kind", "phases", "drawn"),
    [
        ("icmp", Phases(send=0.1, wait=9.0), ["resolve", "send", "wait"]),
        ("dns", Phases(send=0.1, wait=9.0), ["resolve", "send", "wait"]),
        ("dns", Phases(connect=1.0, send=0.1, wait=9.0), ["resolve", "connect", "send", "wait"]),
        ("http", Phases(connect=1.0), ["resolve", "connect", "tls", "send", "wait", "receive"]),
    ],
)
def test_phases_are_those_of_the_protocol(kind, phases, drawn, capsys):
    """Where there is no connection, none of its phases is drawn."""
    out = shown(capsys, changed(a_record(phases=phases), type=kind))
    assert [
        line.split()[0] for line in out.splitlines() if line.split()[:1] and line.split()[0] in PHASE_NAMES
    ] == drawn


def test_echoes(capsys):
    """How many were answered, how long they took and how much that differs, and an address without a port."""
    peer = Peer("203.0.113.7", None, "ipv4")
    out = shown(
        capsys, a_record(phases=Phases(send=0.1, wait=9.0), peer=peer, icmp=Icmp(5, 4, RoundTrips(1, 2, 4, 0.5)))
    )
    assert "address     203.0.113.7\n" in out
    assert "echoes      4 of 5 answered\n" in out
    assert "round trip  1.0 ms to 4.0 ms, 2.0 ms on average, standard deviation 0.5 ms\n" in out
    near = Icmp(2, 2, RoundTrips(0.042, 0.0805, 0.119, 0.0))
    told = "round trip  0.042 ms to 0.1 ms, 0.081 ms on average, standard deviation 0.0 ms\n"
    assert told in shown(capsys, a_record(peer=peer, icmp=near))
    assert "round trip" not in shown(capsys, a_record(peer=peer, icmp=Icmp(5, 0, None)))


def test_a_dns_answer(capsys):
    """Rcode, flags, way, and the records, of which some are left out; foreign text does not steer the terminal."""
    dns = Dns("NOERROR", ("AA", "RD"), ("a.example. 60 IN A 192.0.2.1", "\x1b[2J"), 9, "tcp")
    out = shown(capsys, a_record(phases=Phases(send=0.1, wait=9.0), dns=dns))
    assert "answer      NOERROR, AA RD, over TCP\n" in out
    assert "record      a.example. 60 IN A 192.0.2.1\n" in out
    assert "\x1b" not in out
    assert "and 7 more\n" in out


def test_bars_are_proportional_and_follow_each_other(capsys):
    """A phase of twice the time has twice the bar, and it begins where the one before ended."""
    out = shown(capsys, a_record(phases=Phases(connect=10.0, tls=20.0, wait=10.0)))
    bars = {line.split()[0]: line for line in out.splitlines() if "█" in line}
    assert bars.keys() == {"connect", "tls", "wait"}
    lengths = {name: line.count("█") for name, line in bars.items()}
    assert lengths["tls"] == pytest.approx(2 * lengths["connect"], abs=1)
    assert lengths["wait"] == pytest.approx(lengths["connect"], abs=1)
    assert bars["tls"].index("█") == bars["connect"].rindex("█") + 1
    assert bars["wait"].index("█") == bars["tls"].rindex("█") + 1


def test_a_failure_says_why_and_where(capsys):
    """The code, the message, who is blamed, and the phase that failed; what was not reached has no time."""
    error = Error("tls", "tls_cert_expired", "target", "the certificate was refused: certificate has expired")
    out = shown(
        capsys,
        a_record("down", error, Phases(connect=1.2, tls=3.3), tls=a_tls(timedelta(days=-12, hours=-1), verified=False)),
    )
    assert out.startswith("down  ")
    assert "tls_cert_expired: the certificate was refused: certificate has expired" in out
    assert "blame       target" in out
    (failed,) = [line for line in out.splitlines() if line.endswith("failed")]
    assert failed.split()[0] == "tls"
    (wait,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["wait"]]
    assert wait == ["wait", "-"]
    assert "CN=shop.example, not verified" in out
    assert "expired 12 days ago" in out


def test_what_was_not_measured(capsys):
    """A row of missed ticks has no phases and no address, and says how many."""
    missed = Missed(TARGET, AProber(), 1000.0, 1764000000.0, 7, "this device was asleep")
    out = shown(capsys, a_recorder().missed(missed, Clock("yes").state()).value)
    assert out.splitlines()[0] == "unknown  shop  https://shop.example/"
    assert "not_measured: this device was asleep" in out
    assert "missed      7 measurements, from 2025-11-24T16:00:00.000000Z on" in out
    assert "connect" not in out


def test_one_is_told_as_one(capsys):
    """One measurement, one day: no plural."""
    missed = Missed(TARGET, AProber(), 1000.0, 1764000000.0, 1, "this device was asleep")
    assert "missed      1 measurement, from" in shown(capsys, a_recorder().missed(missed, Clock("yes").state()).value)
    assert "1 day left" in shown(capsys, a_record(tls=a_tls(timedelta(days=1, hours=1))))
    assert "expired 1 day ago" in shown(capsys, a_record(tls=a_tls(timedelta(days=-1, hours=-1))))


def test_a_clock_that_cannot_be_trusted_is_said(capsys):
    """When this machine's clock may be wrong, that is said, with what it means."""
    out = shown(capsys, a_record(synchronized="no"))
    assert "clock       not known to be right on this machine" in out
    assert "no certificate is called expired" in out
    assert "clock  " not in shown(capsys, a_record())


def test_a_narrow_and_a_wide_terminal(monkeypatch, capsys):
    """On a terminal nothing is wider than it, and what is wrapped stays under its own column."""
    error = Error("wait", "status_mismatch", "target", "words " * 60)
    for width in ("60", "200"):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        out = plain(shown(capsys, a_record("down", error, tls=a_tls(timedelta(days=3)))))
        assert max(map(len, out.splitlines())) <= int(width)
        wrapped = [line for line in out.splitlines() if line.lstrip().startswith("words")]
        assert wrapped
        assert {line.index("words") for line in wrapped} == {14}


def plain(text):
    """`text` without the escape sequences that style it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_colours_are_for_terminals():
    """A pipe gets none; a terminal with NO_COLOR gets none either."""
    record = a_record()
    assert "\x1b" not in in_a_process(record, PYTHONUTF8="1")
    assert "\x1b[1;32mup" in in_a_process(record, PYTHONUTF8="1", FORCE_COLOR="1", TERM="xterm-256color")
    assert "32m" not in in_a_process(record, PYTHONUTF8="1", FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")


def test_an_output_that_knows_only_ascii():
    """Bars become hashes, and foreign letters escapes, rather than an error."""
    error = Error("wait", "status_mismatch", "target", "größer")
    out = in_a_process(a_record("down", error), PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert out.isascii()
    assert "####" in out
    assert r"gr\xf6\xdfer" in out


def test_a_reader_who_leaves_is_no_crash():
    """`uptime-agent probe … | head -1`: a broken pipe reaches the caller as what it is."""
    program = (
        "import sys; from agent.show import show; record = sys.stdin.buffer.read(); sys.stdout.close()\n"
        "import os; r, w = os.pipe(); os.close(r); sys.stdout = os.fdopen(w, 'w')\n"
        "try: show(record)\nexcept BrokenPipeError: os._exit(7)\nos._exit(8)"
    )
    assert subprocess.run([sys.executable, "-c", program], input=a_record(), check=False).returncode == 7


def test_foreign_text_cannot_steer_the_terminal(capsys):
    """Escape sequences, line breaks, text that reorders the line: all are shown, none is obeyed."""
    hostile = "\x1b]0;owned\x07\r\n\u202e\x9b31m[bold]:smile:"
    error = Error("wait", "status_mismatch", "target", hostile)
    tls = a_tls(timedelta(days=9), subject=f"CN={hostile}", not_before=hostile)
    out = shown(capsys, a_record("down", error, tls=tls))
    assert all(each.isprintable() for line in out.split("\n") for each in line)
    assert r"\x1b]0;owned\x07\r\n\u202e\x9b31m[bold]:smile:" in out


def test_printable_keeps_what_is_harmless():
    """Letters of all scripts stay as they are."""
    assert printable("größer 東京 🙂 a\tb") == r"größer 東京 🙂 a\tb"


@pytest.mark.parametrize(
    "case",
    {
        "nothing": b"",
        "no UTF-8": b"\xff\xfe",
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "null": b"null",
        "no fields": b"{}",
        "another schema": b'{"schema": 2}',
        "no end": b'"' + b"x" * 1_000_000,
        "an event": b'{"schema": 1, "id": "x", "event": "heartbeat"}',
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_no_result(case):
    """Any other bytes are refused as such, whatever they are."""
    with pytest.raises(NotAResult):
        parse(case[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phases_ms", {"connect": 1e300}),
        ("phases_ms", {"connect": -1}),
        ("duration_ms", "long"),
        ("status", None),
        ("target", {"id": "x" * 5_000}),
        ("schema", 2),
    ],
)
def test_a_record_that_makes_no_sense_is_none(field, value):
    """What would break the drawing is refused before it is drawn."""
    with pytest.raises(NotAResult):
        parse(json.dumps({**json.loads(a_record()), field: value}).encode())


def test_a_record_of_a_newer_agent(capsys):
    """Fields, phases, codes and verdicts that are not known here are no error."""
    record = json.loads(a_record())
    record["phases_ms"]["teleport"] = 4.0
    record["tls"] = {"verified": True, "not_after": "99999-01-01T00:00:00.000000Z", "subject": "CN=x"}
    new = {"status": "splendid", "error": {"code": "new_code"}, "http": {"status_code": 200}, "novelty": [1, {"x": 2}]}
    out = shown(capsys, json.dumps({**record, **new}).encode())
    assert out.startswith("splendid  ")
    assert "new_code" in out
    assert "no date" in out
    assert "answer      200, 0 bytes" in out
