"""What a peer says of each of its checks, in one form, from its file or from its records in Kafka."""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple


class Check(NamedTuple):
    """One check as the peer reports it. Stamps: seconds since 1970.

    `scheduled`: when it was due; `started`: when it began; `late_ms`: how much later than due that was by its own
    account; `whole_ms`: from there to the answer's head, connecting included; `wait_ms`: from the request sent to the
    answer's first byte; `up`: whether it took the target for up. None: the peer does not tell.
    """

    target: int
    scheduled: float
    started: float
    late_ms: float | None
    whole_ms: float
    wait_ms: float | None
    up: bool


class Report(NamedTuple):
    """All checks of a run, and the due times of those that the peer itself says it missed.

    `slack`: seconds that a request may be seen before its check began, because `started` is not exact. `driven`: the
    peer has no schedule of its own, and its requests are due when it is asked for them.
    """

    checks: list[Check]
    missed: list[float]
    slack: float = 0.005
    driven: bool = False


def keep(checks: list[Check], file: Path) -> None:
    """Writes what a peer of ours reports, at its end."""
    file.write_text(json.dumps(checks))


def of_file(file: Path) -> Report:
    """What `keep` wrote."""
    return Report([Check(*each) for each in json.loads(file.read_text())], [])


def of_agent(records: Iterable[bytes]) -> Report:
    """From the agent's records. Its `wait` is None when a check failed before; then there is no latency to judge."""
    checks, missed = [], []
    for record in map(json.loads, records):
        scheduled = _stamp(record["scheduled_at"])
        if record["started_at"] is None:
            interval = record["target"]["interval_ms"] / 1000
            missed += [scheduled + number * interval for number in range(record["missed"])]
            continue
        phases: dict[str, float | None] = record["phases_ms"]
        whole = sum(phases[phase] or 0.0 for phase in ("connect", "tls", "send", "wait"))
        target, started, late = int(record["target"]["id"][1:]), _stamp(record["started_at"]), record["lateness_ms"]
        checks.append(Check(target, scheduled, started, late, whole, phases["wait"], record["status"] == "up"))
    return Report(checks, missed)


def of_telegraf(records: Iterable[bytes], targets: int, interval: float) -> Report:
    """From Telegraf's records, which are stamped when they are made, some time after the end of a check.

    Its schedule is in no record: it is the clock's grid of intervals, shifted by the offset that each url was given.
    """
    checks = []
    for record in map(json.loads, records):
        fields: dict[str, Any] = record["fields"]
        target = int(record["tags"]["server"].rpartition("/")[2])
        whole = fields.get("response_time", 0.0)
        started, offset = record["timestamp"] / 1e6 - whole, interval * target / targets
        scheduled = round((started - offset) / interval) * interval + offset
        checks.append(Check(target, scheduled, started, None, whole * 1000, None, fields["result_type"] == "success"))
    return Report(checks, [], slack=interval * 0.4)


def _stamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
