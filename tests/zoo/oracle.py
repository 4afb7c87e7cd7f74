"""What a record of a behaviour has to say, and what is wrong with one."""

from collections.abc import Iterator

import msgspec

from agent.record import ResultRecord
from tests.zoo.behaviour import Behaviour, Fails
from tests.zoo.measure import Observed

LATE = 0.3  # seconds that a measurement may end after its deadline, on a busy machine
EARLY = 0.05  # seconds that may go by there between the moment from which a time-out counts and the first phase


def wrong(behaviour: Behaviour, observed: Observed) -> Iterator[str]:
    """What is wrong with it, each in words."""
    record, expected = observed.record, behaviour.expected
    error = record.error and (record.error.code, observed.suspected, record.error.phase)
    if isinstance(expected, Fails):
        # Nobody's network lies between: what the path is suspected of can only be the target's.
        blamed = expected.blamed or ("target" if expected.attribution == "path" else expected.attribution)
        yield from _differs("status", record.status, expected.status)
        yield from _differs("error", error, (expected.code, expected.attribution, expected.phase))
        yield from _differs("blamed in the end", record.error and record.error.attribution, blamed)
    else:
        yield from _differs("status", record.status, "up")
        yield from _differs("error", record.error, None)
    phases = {name: ms for name, ms in msgspec.structs.asdict(record.phases_ms).items() if ms is not None}
    yield from _differs("phases", tuple(phases), behaviour.reached)
    yield from (f"{name} took {ms} ms" for name, ms in phases.items() if ms < 0)
    for way, value in behaviour.also.items():
        yield from _differs(way, _at(record, way), value)
    yield from _wrong_times(behaviour, record, sum(phases.values()))


def _wrong_times(behaviour: Behaviour, record: ResultRecord, of_phases: float) -> Iterator[str]:
    assert record.duration_ms is not None
    timeout = record.target.timeout_ms
    if record.duration_ms > timeout + LATE * 1000:
        yield f"took {record.duration_ms} ms, and has {timeout}"
    if behaviour.times_out and behaviour.phases[0] != "resolve" and record.duration_ms < timeout - EARLY * 1000:
        yield f"was given up after {record.duration_ms} ms, and has {timeout}"
    one_exchange = record.attempts is msgspec.UNSET and (record.http is msgspec.UNSET or not record.http.redirects)
    if record.target.url.startswith("dns:") and record.phases_ms.connect is not None:
        one_exchange = False  # asked over UDP first
    if one_exchange and abs(of_phases - record.duration_ms) > 1:
        yield f"its phases take {of_phases} ms, and all of it {record.duration_ms}"
    if of_phases > record.duration_ms + 1:
        yield f"its phases take {of_phases} ms, more than all of it, {record.duration_ms}"


def _at(record: object, way: str) -> object:
    for name in way.split("."):
        record = record[int(name)] if isinstance(record, tuple) else getattr(record, name, msgspec.UNSET)
    return record


def _differs(what: str, found: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{what}: {found}, expected {expected}"
