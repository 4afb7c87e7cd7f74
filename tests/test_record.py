"""Records are what the contract says, valid by the shipped schema, and numbered without holes."""

import json
from datetime import datetime

import jsonschema
import msgspec
import pytest

from agent.config.model import Agent, Config, Kafka, Location, Target
from agent.device.clock import Clock, ClockState
from agent.device.identity import LastSeq, Run
from agent.probers.result import Attempt, Dns, Error, Hop, Http, Icmp, Peer, Phases, Result, RoundTrips, Tls
from agent.record import (
    AppliedTarget,
    BrokerBack,
    BrokerLost,
    ClockSet,
    ConfigApplied,
    ConfigRejected,
    Heartbeat,
    Recorder,
    Started,
    Stopping,
    UplinkBack,
    UplinkLost,
    corrected,
    event_schema,
    result_schema,
)
from agent.schedule import Measurement, Missed
from agent.spool.record import Gap, Origin, Record
from agent.verdict.found import Look, Ruling, Seen

RESULT = jsonschema.Draft202012Validator(result_schema())
EVENT = jsonschema.Draft202012Validator(event_schema())
TARGET = Target("shop", "https://u:p@shop.example/", "https://shop.example/", 10.0, 3.0, labels={"team": "web"})
RUN = Run(17, "5f0c2a9177d04e1b")
CLOCK = ClockState(True, 12.5)
ERROR = Error("wait", "status_mismatch", "target", "HTTP 500")


class AProber:
    type = "http"


def a_recorder(**location):
    config = Config(
        Agent("ist-1-pi"),
        Location("ist-1", **location),
        "/nowhere",
        Kafka(("broker:9092",)),
        digest="9f2c1e7ab0d4",
    )
    return Recorder(config, RUN, Clock("yes"))


def a_measurement(result):
    return Measurement(TARGET, AProber(), 1000.0, 1000.000412, 1764000000.000412, result)


def recorded(record):
    value = json.loads(record.value)
    RESULT.validate(value)
    assert (record.id, record.seq, record.at) == (value["id"], value["agent"]["seq"], value["scheduled_at"])
    return value


def told(record):
    value = json.loads(record.value)
    EVENT.validate(value)
    assert (record.id, record.seq, record.at) == (value["id"], value["agent"]["seq"], value["at"])
    return value


def test_a_whole_result():
    """Every field of a successful HTTPS measurement, by its contract name."""
    result = Result(
        84.213,
        Phases(3.1, 20.4, 41.0, 0.05, 19.2, 0.4),
        peer=Peer("203.0.113.7", 443, "ipv4"),
        http=Http(200, "1.1", 5120, 0),
        tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", True, "a", "b", "c", "d", "e", "f"),
    )
    recorder = a_recorder(country="TR", city="Istanbul", latitude=41.01, longitude=28.98, labels={"provider": "x"})
    value = recorded(recorder.measured(a_measurement(result), Ruling("up"), CLOCK))
    assert value.pop("clock").keys() == {"synchronized", "max_error_ms", "boot_id", "boottime_s"}
    version = value["agent"].pop("version")
    assert version.count(".") == 2
    assert value == {
        "schema": 1,
        "id": "ist-1-pi/5f0c2a9177d04e1b/0/1",
        "agent": {
            "id": "ist-1-pi",
            "run": 17,
            "run_id": "5f0c2a9177d04e1b",
            "worker": 0,
            "seq": 1,
            "config": "9f2c1e7ab0d4",
        },
        "location": {
            "id": "ist-1",
            "country": "TR",
            "city": "Istanbul",
            "latitude": 41.01,
            "longitude": 28.98,
            "labels": {"provider": "x"},
        },
        "target": {
            "id": "shop",
            "type": "http",
            "url": "https://shop.example/",
            "interval_ms": 10000,
            "timeout_ms": 3000,
            "labels": {"team": "web"},
        },
        "scheduled_at": "2025-11-24T16:00:00.000000Z",
        "started_at": "2025-11-24T16:00:00.000412Z",
        "lateness_ms": 0.412,
        "duration_ms": 84.213,
        "status": "up",
        "phases_ms": {"resolve": 3.1, "connect": 20.4, "tls": 41.0, "send": 0.05, "wait": 19.2, "receive": 0.4},
        "error": None,
        "peer": {"address": "203.0.113.7", "port": 443, "family": "ipv4"},
        "http": {"status_code": 200, "version": "1.1", "body_bytes": 5120, "redirects": 0},
        "tls": {
            "version": "TLSv1.3",
            "cipher": "TLS_AES_256_GCM_SHA384",
            "verified": True,
            "not_before": "a",
            "not_after": "b",
            "chain_not_after": "c",
            "subject": "d",
            "issuer": "e",
            "sha256": "f",
        },
        "attempt": 1,
    }


def test_what_a_verdict_rests_on():
    """What was looked at, the second look, and how long the loop stood still are in the record where there is any."""
    result = Result(3000.0, Phases(connect=3000.0), Error("connect", "connect_timeout", "path", "no answer"))
    seen = Seen(1510.25, route=True, interface="eth0", link=True, other="bank", asked=4, answered=3)
    own = (Look("connect", 1500.1, address="203.0.113.7", port=443, error="connect_timeout"),)
    measurement = a_measurement(result)._replace(stall=0.12)
    value = recorded(a_recorder().measured(measurement, Ruling("down", result.error, seen, own), CLOCK))
    assert value["stall_ms"] == 120.0
    assert value["evidence"] == {
        "waited_ms": 1510.25,
        "route": True,
        "interface": "eth0",
        "link": True,
        "other": "bank",
        "asked": 4,
        "answered": 3,
    }
    assert value["second_look"] == [
        {"what": "connect", "ms": 1500.1, "address": "203.0.113.7", "port": 443, "error": "connect_timeout"}
    ]
    value = recorded(a_recorder().measured(a_measurement(result), Ruling("down", result.error), CLOCK))
    assert not {"stall_ms", "evidence", "second_look"} & value.keys()


def test_a_failure_has_null_for_what_was_not_reached():
    """Phases that were not reached are null, blocks without meaning are absent."""
    result = Result(5.0, Phases(resolve=5.0), Error("resolve", "dns_nxdomain", "target", "no such name"))
    value = recorded(a_recorder().measured(a_measurement(result), Ruling("down", result.error), CLOCK))
    assert value["phases_ms"] == {
        "resolve": 5.0,
        "connect": None,
        "tls": None,
        "send": None,
        "wait": None,
        "receive": None,
    }
    assert value["error"] == {
        "phase": "resolve",
        "code": "dns_nxdomain",
        "attribution": "target",
        "message": "no such name",
    }
    assert value["peer"] is None
    assert not {"http", "tls", "attempts", "missed"} & value.keys()


def test_the_source_is_in_the_record():
    """By which way it went is told of a target that has one of its own."""
    measurement = a_measurement(Result(1.0, Phases()))
    sourced = measurement._replace(target=msgspec.structs.replace(TARGET, source="wwan0"))
    assert recorded(a_recorder().measured(sourced, Ruling("up"), CLOCK))["target"]["source"] == "wwan0"
    assert "source" not in recorded(a_recorder().measured(measurement, Ruling("up"), CLOCK))["target"]


def test_each_try_is_in_the_record():
    """The number of the try that the record tells of, and of each before it; one that found no address has none."""
    refused = Error("connect", "connect_refused", "target", "x")
    unnamed = Error("resolve", "dns_servfail", "resolver", "x")
    tries = (Attempt(None, Phases(resolve=1.0), unnamed), Attempt("203.0.113.7", Phases(connect=2.0), refused, 2))
    result = Result(2084.2, Phases(connect=20.4), attempts=tries, attempt=3, earlier_ms=2000.0)
    value = recorded(a_recorder().measured(a_measurement(result), Ruling("up"), CLOCK))
    assert value["attempt"] == 3
    assert [(each["attempt"], each["address"], each["error"]["code"]) for each in value["attempts"]] == [
        (1, None, "dns_servfail"),
        (2, "203.0.113.7", "connect_refused"),
    ]
    assert "earlier_ms" not in value


def test_hops_and_attempts_are_in_the_record():
    """Redirects and earlier tries are told."""
    result = Result(
        5.0,
        Phases(),
        http=Http(200, "1.1", 0, 1, (Hop("https://a.example/", 301, Phases(connect=1.0)),)),
        attempts=(Attempt("2001:db8::1", Phases(connect=2.0), Error("connect", "connect_refused", "target", "x")),),
    )
    value = recorded(a_recorder().measured(a_measurement(result), Ruling("up"), CLOCK))
    assert value["http"]["hops"][0]["url"] == "https://a.example/"
    assert value["attempts"][0]["error"]["code"] == "connect_refused"


def test_missed_ticks():
    """A row of ticks that could not run is one record: unknown, not measured, how many, and when the first was due."""
    missed = Missed(TARGET, AProber(), 1000.0, 1764000000.0, 7, "the device was busy")
    value = recorded(a_recorder().missed(missed, CLOCK))
    assert value["status"] == "unknown"
    assert value["missed"] == 7
    assert value["scheduled_at"] == "2025-11-24T16:00:00.000000Z"
    assert value["started_at"] is None
    assert value["duration_ms"] is None
    assert value["error"] == {
        "phase": None,
        "code": "not_measured",
        "attribution": "local",
        "message": "the device was busy",
    }


def test_numbers_have_no_holes():
    """Each topic counts on its own, from 1."""
    recorder = a_recorder()
    results = [recorder.measured(a_measurement(Result(1.0, Phases())), Ruling("up"), CLOCK) for _ in range(3)]
    results.append(recorder.missed(Missed(TARGET, AProber(), 0.0, 0.0, 1, ""), CLOCK))
    events = [recorder.event(ConfigRejected, problems=("x",), count=1) for _ in range(2)]
    assert [record.seq for record in results] == [1, 2, 3, 4]
    assert [record.id for record in events] == [f"ist-1-pi/5f0c2a9177d04e1b/0/e{n}" for n in (1, 2)]
    assert recorder.last_seqs() == (LastSeq(0, "uptime.results", 4), LastSeq(0, "uptime.events", 2))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Started, {"previous": None}),
        (Started, {"previous": Run(16, "0" * 16, (LastSeq(0, "uptime.results", 9),))}),
        (Stopping, {"last_seqs": (LastSeq(0, "uptime.results", 9),)}),
        (
            ConfigApplied,
            {"digest": "d", "part": 1, "parts": 1, "targets": (AppliedTarget("a", "u", "http", 1.0, {}),)},
        ),
        (BrokerLost, {}),
        (BrokerBack, {"lost_s": 12.5}),
        (UplinkLost, {"since_s": 1.5, "why": "this device's link is down: eth0"}),
        (UplinkBack, {"lost_s": 12.5}),
        (ClockSet, {"step_ms": -3600000.0}),
        (ConfigRejected, {"problems": ("config.yaml:1:1: x",), "count": 1}),
        (
            Heartbeat,
            {
                "targets": 1,
                "checks_per_second": 0.1,
                "missed": 0,
                "lateness_max_ms": None,
                "spool_records": 0,
                "spool_bytes": 0,
                "spool_oldest_s": None,
                "rss_bytes": 1,
                "memory_available_bytes": 1,
                "memory_total_bytes": 2,
                "swap_used_bytes": None,
                "load": (0.1, 0.2, 0.3),
                "temperature_c": None,
                "undervoltage": True,
                "throttled": None,
                "wifi_signal_dbm": -60,
                "wifi_quality": 50,
                "disk_free_bytes": 1,
                "disk_total_bytes": 2,
                "disk_read_only": False,
            },
        ),
    ],
)
def test_events(kind, fields):
    """Each event has the envelope and its own fields beside it, flat, and is valid by the schema."""
    value = told(a_recorder().event(kind, **fields))
    assert value["event"] == kind.__struct_config__.tag
    assert value.keys() >= {"schema", "id", "agent", "location", "clock", "at", *fields}
    assert value["location"] == {"id": "ist-1"}


def test_a_gap():
    """The gap event names topic, run, worker, the first and the last that is missing, and why."""
    gap = Gap(
        "uptime.results",
        "0123456789abcdef",
        2,
        100,
        199,
        100,
        "spool_full",
        "2025-11-24T16:00:00.000000Z",
        "2025-11-24T16:01:00.000000Z",
    )
    value = told(a_recorder().gap(gap))
    assert {key: value[key] for key in ("event", *gap.__struct_fields__)} == {
        "event": "gap",
        **msgspec.structs.asdict(gap),
    }


def test_a_rejected_record():
    """It is named by its own run and number, and shown as far as 4 KiB of it."""
    record = Record("uptime.results", 9, "id", "2025-11-24T16:00:00.000000Z", b"\xff{" + b"x" * 5000)
    value = told(a_recorder().rejected(record, Origin(3, "0123456789abcdef", 2), "record_too_large"))
    assert {key: value[key] for key in ("event", "topic", "run_id", "worker", "seq", "bytes", "reason")} == {
        "event": "record_rejected",
        "topic": "uptime.results",
        "run_id": "0123456789abcdef",
        "worker": 2,
        "seq": 9,
        "bytes": 5002,
        "reason": "record_too_large",
    }
    assert value["record"] == "\ufffd{" + "x" * 4094


def test_of_what_tells_a_loss_no_rejection_is_told():
    """Where Kafka takes not even that, there would be no end of it: a gap tells, again and again but slowly."""
    recorder, origin = a_recorder(), Origin(17, "5f0c2a9177d04e1b", 0)
    gap = Gap("uptime.results", "0123456789abcdef", 2, 1, 1, 1, "spool_full", "2025-11-24T16:00:00.000000Z", "")
    of_gap = recorder.gap(gap)
    of_record = recorder.rejected(Record("uptime.results", 9, "id", "", b"{}"), origin, "record_invalid")
    assert recorder.rejected(of_gap, origin, "record_too_large") is None
    assert recorder.rejected(of_record, origin, "record_too_large") is None
    assert recorder.last_seqs() == (LastSeq(0, "uptime.events", 2),)


def test_stamps_are_put_right():
    """A record of a wrong clock gets the stamps it would have had; all else of it stays as it is."""
    record = a_recorder().measured(
        a_measurement(Result(1.0, Phases())), Ruling("up"), ClockState(synchronized=False, max_error_ms=None)
    )
    before = json.loads(record.value)
    ahead = datetime.fromisoformat("2026-11-25T12:00:00Z").timestamp() - before["clock"]["boottime_s"]
    right = corrected(record, ahead)
    after = json.loads(right.value)
    RESULT.validate(after)
    assert after["started_at"] == "2026-11-25T12:00:00.000000Z"
    assert after["clock"] == before["clock"] | {"corrected": True}
    seconds = [
        datetime.fromisoformat(value["started_at"]) - datetime.fromisoformat(value["scheduled_at"])
        for value in (before, after)
    ]
    assert seconds[0] == seconds[1]
    assert right.at == after["scheduled_at"]
    assert {**after, "clock": 0, "started_at": 0, "scheduled_at": 0} == {
        **before,
        "clock": 0,
        "started_at": 0,
        "scheduled_at": 0,
    }


@pytest.mark.parametrize(("synchronized", "seconds"), [(True, 1000.0), (False, 0.1)])
def test_stamps_that_are_right_stay(synchronized, seconds):
    """Those of a clock that was synchronized, and those that are as right as NTP makes them."""
    state = ClockState(synchronized=synchronized, max_error_ms=None)
    record = a_recorder().measured(a_measurement(Result(1.0, Phases())), Ruling("up"), state)
    value = json.loads(record.value)
    ahead = datetime.fromisoformat(value["started_at"]).timestamp() - value["clock"]["boottime_s"]
    assert corrected(record, ahead + seconds) is record


def test_the_stamp_of_an_event_is_put_right():
    """Events have one stamp."""
    recorder = a_recorder()
    recorder._clock.mode = "no"
    recorder._clock._asked = -1.0
    record = recorder.event(BrokerLost)
    boottime_s = json.loads(record.value)["clock"]["boottime_s"]
    right = corrected(record, 1_800_000_000.0 - boottime_s)
    assert told(right)["at"] == right.at == "2027-01-15T08:00:00.000000Z"


def test_echoes_and_a_dns_answer():
    """Their blocks are there for their probers, and an address may be without a port."""
    peer = Peer("192.0.2.1", None, "ipv4")
    icmp = Icmp(5, 4, RoundTrips(1.5, 2.5, 4.5, 0.5))
    record = a_recorder().measured(a_measurement(Result(1.0, Phases(), peer=peer, icmp=icmp)), Ruling("up"), CLOCK)
    value = recorded(record)
    assert value["peer"] == {"address": "192.0.2.1", "port": None, "family": "ipv4"}
    trips = {"min": 1.5, "avg": 2.5, "max": 4.5, "stddev": 0.5}
    assert value["icmp"] == {"sent": 5, "received": 4, "rtt_ms": trips}
    assert not {"dns", "http", "tls"} & value.keys()
    dns = Dns("NOERROR", ("RD", "RA"), ("a. 60 IN A 192.0.2.1",), 1, "udp")
    value = recorded(a_recorder().measured(a_measurement(Result(1.0, Phases(), dns=dns)), Ruling("up"), CLOCK))
    shown = {"rcode": "NOERROR", "flags": ["RD", "RA"], "answers": ["a. 60 IN A 192.0.2.1"], "answer_count": 1}
    assert value["dns"] == {**shown, "transport": "udp"}
    assert "icmp" not in value


def test_the_schema_refuses_what_is_wrong():
    """A schema that accepts anything would prove nothing."""
    value = json.loads(a_recorder().measured(a_measurement(Result(1.0, Phases())), Ruling("up"), CLOCK).value)
    for key, wrong in (("status", "maybe"), ("schema", 2), ("scheduled_at", "yesterday"), ("duration_ms", "1")):
        with pytest.raises(jsonschema.ValidationError):
            RESULT.validate({**value, key: wrong})
    del value["target"]
    with pytest.raises(jsonschema.ValidationError):
        RESULT.validate(value)


def test_a_record_that_cannot_be_encoded_leaves_no_hole():
    """Its number goes to the next one."""
    recorder = a_recorder()
    broken = Result(1.0, Phases(), Error("wait", "http_protocol", "target", "\ud800"))
    with pytest.raises(UnicodeEncodeError):
        recorder.measured(a_measurement(broken), Ruling("down", broken.error), CLOCK)
    assert recorder.measured(a_measurement(Result(1.0, Phases())), Ruling("up"), CLOCK).seq == 1


def test_whole_milliseconds_are_whole_numbers():
    """An interval is written as 10000, and only what is not whole with its fraction."""
    value = a_recorder().measured(a_measurement(Result(1.0, Phases())), Ruling("up"), CLOCK).value
    assert b'"interval_ms":10000,"timeout_ms":3000,' in value
