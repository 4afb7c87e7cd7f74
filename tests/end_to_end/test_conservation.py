"""The oracle complains of whatever a campaign must not do, so that its silence means something."""

import json

import pytest

from tests.end_to_end.conservation import audit, unsettled
from tests.kafka import Arrived

RESULTS, EVENTS = "results", "events"
RUN, NEXT_RUN = "5f0c2a9177d04e1b", "0000000000000002"
STAMP = "2026-11-23T16:33:11.000000Z"


def envelope(seq, run, event=False):
    return {
        "schema": 1,
        "id": f"pi/{run}/0/{'e' * event}{seq}",
        "agent": {"id": "pi", "version": "1", "run": 1 + (run == NEXT_RUN), "run_id": run, "worker": 0, "seq": seq}
        | {"config": "9f2c1e7ab0d4"},
        "location": {"id": "here"},
        "clock": {"synchronized": True, "max_error_ms": None, "boot_id": "b", "boottime_s": float(seq)},
    }


def arrived(value):
    return Arrived(b"pi", {"id": value["id"].encode()}, json.dumps(value).encode())


def result(seq, number=None, run=RUN, **other):
    """The record of the measurement for which the site counted `number`, which is `seq` if not said otherwise."""
    phases = dict.fromkeys(("resolve", "connect", "tls", "send", "wait", "receive"))
    target = {"id": "t", "type": "http", "url": "http://t/", "interval_ms": 1000.0, "timeout_ms": 1000.0, "labels": {}}
    times = {"scheduled_at": STAMP, "started_at": STAMP, "lateness_ms": 0.1, "duration_ms": 0.2, "phases_ms": phases}
    http = {"status_code": 200, "version": "1.1", "body_bytes": number or seq, "redirects": 0}
    rest = {"target": target, "status": "up", "error": None, "peer": None, "http": http, "attempt": 1}
    return arrived(envelope(seq, run) | times | rest | other)


def event(seq, kind, run=RUN, **fields):
    return arrived(envelope(seq, run, event=True) | {"at": STAMP, "event": kind} | fields)


def gap(seq, first, last, count=None, run=RUN, topic=RESULTS):
    row = {
        "first_seq": first,
        "last_seq": last,
        "count": count or last - first + 1,
        "first_at": STAMP,
        "last_at": STAMP,
    }
    return event(seq, "gap", topic=topic, run_id=run, worker=0, reason="spool_full", **row)


def stopping(seq, last, run=RUN):
    rows = [{"worker": 0, "topic": RESULTS, "seq": last}, {"worker": 0, "topic": EVENTS, "seq": seq - 1}]
    return event(seq, "stopping", run, last_seqs=rows)


def started(seq, run, last=None):
    rows = [] if last is None else [{"worker": 0, "topic": RESULTS, "seq": last}]
    return event(seq, "started", run, previous={"run": 1, "run_id": RUN, "last_seqs": rows})


def account(results, events=(), served=3, ends=()):
    return audit({RESULTS: results, EVENTS: list(events)}, {"t": [float(at) for at in range(1, served + 1)]}, ends)


def test_a_whole_campaign():
    """What is whole passes, and what happened on the way is counted."""
    whole = account([result(1), result(3), result(2), result(3)], [stopping(1, 3)])
    assert (whole.results, whole.repeats, whole.overtaken, whole.dropped) == (3, 1, 1, 0)
    assert whole.runs == {RUN: 1}
    assert whole.in_order
    # A second run, after a drop and a kill that took the fourth measurement.
    runs = account(
        [result(1), result(3), result(1, 5, NEXT_RUN)],
        [gap(1, 2, 2), started(1, NEXT_RUN), stopping(2, 1, NEXT_RUN)],
        served=5,
        ends=[4.2],
    )
    assert (runs.results, runs.dropped, runs.lost_at_ends, runs.runs) == (3, 1, 1, {RUN: 1, NEXT_RUN: 2})
    assert not runs.in_order  # the second run's clock says that it was before the first one's end


@pytest.mark.parametrize(
    ("complaint", "results", "events"),
    [
        ("neither arrived nor named: 1", [result(1), result(3)], []),
        ("neither arrived nor named: 1", [result(1), result(2)], [stopping(1, 3)]),
        ("neither arrived nor named: 1", [result(1), result(2)], [started(1, NEXT_RUN, 3)]),
        ("neither arrived nor named: 1", [result(1), result(2), result(3)], [stopping(2, 3)]),
        ("neither arrived nor named: 1", [result(1), result(4)], [gap(1, 2, 2)]),
        ("neither arrived nor named: 2", [result(1), result(3)], [gap(1, 2, 2, run=NEXT_RUN)]),
        ("another value in a repeat: 1", [result(1), result(2), result(3), result(3, peer=None, attempt=2)], []),
        ("invented: never served: 1", [result(1), result(2), result(3), result(4)], []),
        ("one measurement in two records: 1", [result(1), result(2), result(3), result(4, 3)], []),
        ("measured, and no record (0 are named): 1", [result(1), result(2)], []),
        ("measured, and no record (0 are named): 1", [result(1), result(2, 3)], []),
        ("numbered in another order than measured: 1", [result(1), result(2, 3), result(3, 2)], []),
        ("beyond what the run says that it made: 1", [result(1), result(2), result(3)], [stopping(1, 2)]),
        ("beyond what the run says that it made: 1", [result(1), result(2), result(3)], [stopping(1, 3), gap(2, 4, 9)]),
        ("more dropped than gaps count: 1", [result(1)], [gap(1, 2, 3, count=1)]),
        ("measured at another time: 1", [result(1), result(2), result(3, clock=envelope(9, RUN)["clock"])], []),
        ("a gap that cannot be: 1", [result(1), result(2), result(3)], [gap(1, 2, 2, count=2)]),
        ("against its schema: 1", [result(1), result(2), result(3, attempt="one")], []),
        ("an id or a key that does not fit: 1", [result(1), result(2), result(3)._replace(key=b"other")], []),
        (
            "two run numbers in one run: 1",
            [result(1), result(2), result(3, agent=envelope(3, RUN)["agent"] | {"run": 2})],
            [],
        ),
    ],
)
def test_it_complains(complaint, results, events):
    """Of each breach by its kind, and how often there was one."""
    with pytest.raises(AssertionError) as complained:
        account(results, events)
    assert complaint in str(complained.value).splitlines()


def test_an_end_explains_only_what_was_measured_then():
    """A kill may take the last tick, and nothing that was measured long before it."""
    with pytest.raises(AssertionError, match="measured, and no record"):
        account([result(1), result(2)], ends=[4.2])
    assert account([result(1), result(2)], ends=[3.2]).lost_at_ends == 1


def test_what_is_still_to_come():
    """A campaign can wait until everything came: holes are told while there are any."""
    assert len(unsettled({RESULTS: [result(1), result(3)], EVENTS: []})) == 1
    assert unsettled({RESULTS: [result(1), result(3)], EVENTS: [gap(1, 2, 2)]}) == []
