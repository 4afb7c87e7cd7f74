"""Records for tests of the spool, as the recorder makes them."""

from base64 import b64encode
from random import Random

from agent.spool.record import Gap, Origin, Record

RESULTS, EVENTS = "uptime.results", "uptime.events"
ORIGIN = Origin(17, "5f0c2a9177d04e1b", 0)
EARLIER = Origin(16, "0123456789abcdef", 0)


def at(seq):
    return f"2026-11-23T16:{seq // 60 % 60:02d}:{seq % 60:02d}.000412Z"


def a_record(seq, topic=RESULTS, origin=ORIGIN, size=100):
    mark = "e" if topic == EVENTS else ""
    record_id = f"ist-1-pi/{origin.run_id}/{origin.worker}/{mark}{seq}"
    value = f'{{"schema":1,"id":"{record_id}","text":"'.encode()
    filling = Random(record_id).randbytes(max(size - len(value) - 2, 0) * 3 // 4 + 1)  # which does not compress well
    text = b64encode(filling)[: max(size - len(value) - 2, 0)]
    return Record(topic, seq, record_id, at(seq), value + text + b'"}')


def some(first, last, topic=RESULTS, origin=ORIGIN, size=100):
    """Records from `first` to `last`, both included."""
    return [a_record(seq, topic, origin, size) for seq in range(first, last + 1)]


def a_gap(first, last, reason="damaged", topic=RESULTS, origin=ORIGIN):
    return Gap(topic, origin.run_id, origin.worker, first, last, last - first + 1, reason, at(first), at(last))


def seqs(records):
    return [record.seq for record in records]
