"""The oracle of every campaign: what the sites served against what arrived on both topics.

A site numbers what it serves, and the record of a measurement carries that number as `http.body_bytes`: so a record
that was lost, invented or counted twice is seen without trusting anything that the agent says of itself.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jsonschema

from agent.record import event_schema, result_schema
from tests.kafka import Arrived

RESULT = jsonschema.Draft202012Validator(result_schema())
EVENT = jsonschema.Draft202012Validator(event_schema())

LAST_TICK = 0.5  # seconds of measurements that kill -9 may take: a tick is 0.25, and the machine may be busy
TIMELY = 5.0  # seconds between the start of a measurement by its record and the site's answer to it
SHOWN = 10  # breaches of one kind in a complaint
HOLE = "neither arrived nor named"


class Stream(NamedTuple):
    """Within it `seq` counts from 1 by one."""

    run_id: str
    worker: int
    topic: str


class Account(NamedTuple):
    """What a campaign was like whose records are whole. A campaign that wants a repeat or a drop must ask for it.

    `runs`: run numbers by run_id; `repeats`: arrivals of a record that had arrived; `dropped`: records that never
    arrived and are named in a gap; `rejected`: those that Kafka would not take; `overtaken`: results that first
    arrived behind a later one of their run; `lost_at_ends`: measurements that went with a kill; `in_order`: sorted by
    run and seq they are in the order in which they were measured, which holds while the run counter is kept.
    """

    runs: dict[str, int]
    results: int
    repeats: int
    dropped: int
    rejected: int
    overtaken: int
    lost_at_ends: int
    in_order: bool


def audit(
    arrived: Mapping[str, Sequence[Arrived]], served: Mapping[str, Sequence[float]], ends: Iterable[float] = ()
) -> Account:
    """Raises `AssertionError` with every breach.

    `arrived`: by topic, in order; `served`: by target, the boot time of each request that a site answered with its
    number; `ends`: the boot times at which the agent was killed or told to stop.
    """
    books = _Books(arrived)
    dropped, rejected = books.settle()
    results_gone = sum(stream.topic not in books.event_topics for stream, _ in dropped | rejected)
    lost = books.compare(served, list(ends), results_gone)
    books.check_schemas()
    assert not books.breaches, books.complaint()
    return Account(
        runs=books.runs,
        results=len(books.results()),
        repeats=books.repeats,
        dropped=len(dropped),
        rejected=len(rejected),
        overtaken=books.overtaken,
        lost_at_ends=lost,
        in_order=books.in_order(),
    )


def unsettled(arrived: Mapping[str, Sequence[Arrived]]) -> list[str]:
    """What is still to come, as far as what is there tells."""
    books = _Books(arrived)
    books.settle()
    return books.breaches[HOLE]


def _within(at: float, begun: float, milliseconds: float) -> bool:
    """Whether a site may have answered then to a measurement that failed."""
    return -0.05 < at - begun < milliseconds / 1000 + 0.05


class _Books:
    def __init__(self, arrived: Mapping[str, Sequence[Arrived]]) -> None:
        self.values: dict[str, dict[str, Any]] = {}  # by id, in the order of first arrivals
        self.runs: dict[str, int] = {}
        self.event_topics: set[str] = set()
        self.repeats = self.overtaken = 0
        self.breaches: defaultdict[str, list[str]] = defaultdict(list)
        self._seen: defaultdict[Stream, set[int]] = defaultdict(set)
        for topic, records in arrived.items():
            self._enter(topic, records)

    def _enter(self, topic: str, records: Iterable[Arrived]) -> None:
        raw: dict[str, bytes | None] = {}
        highest: defaultdict[Stream, int] = defaultdict(int)
        for record in records:
            name = record.headers["id"].decode()
            if name in raw:
                self.repeats += 1
                if record.value != raw[name]:
                    self._breach("another value in a repeat", name)
                continue
            raw[name] = record.value
            self.values[name] = value = json.loads(record.value or b"")
            agent, seq = value["agent"], value["agent"]["seq"]
            if "event" in value:
                self.event_topics.add(topic)
            stream = Stream(agent["run_id"], agent["worker"], topic)
            place = f"{agent['id']}/{stream.run_id}/{stream.worker}/{'e' * ('event' in value)}{seq}"
            if not name == value["id"] == place or record.key != agent["id"].encode():
                self._breach("an id or a key that does not fit", name)
            if self.runs.setdefault(stream.run_id, agent["run"]) != agent["run"]:
                self._breach("two run numbers in one run", name)
            self._seen[stream].add(seq)
            self.overtaken += "event" not in value and seq < highest[stream]
            highest[stream] = max(highest[stream], seq)

    def results(self) -> list[dict[str, Any]]:
        return [value for value in self.values.values() if "event" not in value]

    def _events(self, kind: str) -> list[dict[str, Any]]:
        return [value for value in self.values.values() if value.get("event") == kind]

    def settle(self) -> tuple[set[tuple[Stream, int]], set[tuple[Stream, int]]]:
        """What never arrived and is named in a gap, and what Kafka would not take."""
        told = self._told()
        named, counts, rejected = self._named()
        all_dropped, all_rejected = set(), set()
        for stream in {*self._seen, *told, *named, *rejected}:
            seen, known = self._seen[stream], named[stream] | rejected[stream]
            highest = max(seen | known, default=0)
            # Events go on after the one that tells their number.
            if stream in told and stream.topic not in self.event_topics and highest > told[stream]:
                self._breach("beyond what the run says that it made", f"{stream} {highest} > {told[stream]}")
            missing = set(range(1, max(highest, told.get(stream, 0)) + 1)) - seen
            for seq in sorted(missing - known):
                self._breach(HOLE, f"{stream} {seq}")
            dropped = missing & named[stream] - rejected[stream]
            if len(dropped) > counts[stream]:  # of gaps that were merged over what lay between them
                self._breach("more dropped than gaps count", f"{stream}: {len(dropped)} > {counts[stream]}")
            all_dropped |= {(stream, seq) for seq in dropped}
            all_rejected |= {(stream, seq) for seq in missing & rejected[stream]}
        return all_dropped, all_rejected

    def _told(self) -> dict[Stream, int]:
        """The last number of each stream by the word of its run, or of the next."""
        told = {}
        ended = [(value["agent"]["run_id"], value["last_seqs"]) for value in self._events("stopping")]
        previous = [value["previous"] for value in self._events("started") if value["previous"]]
        for run_id, rows in [*ended, *((each["run_id"], each["last_seqs"]) for each in previous)]:
            for row in rows:
                stream = Stream(run_id, row["worker"], row["topic"])
                told[stream] = max(row["seq"], told.get(stream, 0))
        return told

    def _named(self) -> tuple[defaultdict[Stream, set[int]], defaultdict[Stream, int], defaultdict[Stream, set[int]]]:
        """The numbers that gaps name, how many they count, and the numbers of rejected records."""
        named, counts, rejected = defaultdict(set), defaultdict(int), defaultdict(set)
        for gap in self._events("gap"):
            stream = Stream(gap["run_id"], gap["worker"], gap["topic"])
            row = range(gap["first_seq"], gap["last_seq"] + 1)
            if not 1 <= gap["count"] <= len(row) or row[0] < 1:
                self._breach("a gap that cannot be", gap["id"])
            named[stream].update(row)
            counts[stream] += gap["count"]
        for event in self._events("record_rejected"):
            rejected[Stream(event["run_id"], event["worker"], event["topic"])].add(event["seq"])
        return named, counts, rejected

    def compare(self, served: Mapping[str, Sequence[float]], ends: Sequence[float], gone: int) -> int:
        """Against the witness: how many measurements no record tells of and an end explains; `gone` may be others."""
        recorded: defaultdict[str, dict[int, str]] = defaultdict(dict)
        failed: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)  # boot time, milliseconds
        last: dict[tuple[str, str], int] = {}
        for value in sorted(self.results(), key=lambda value: value["agent"]["seq"]):
            target, number = value["target"]["id"], value.get("http", {}).get("body_bytes")
            if target not in served:
                continue
            if value["status"] != "up":
                failed[target].append((value["clock"]["boottime_s"], value["duration_ms"] or 0.0))
                continue
            if number > len(served[target]):
                self._breach("invented: never served", f"{value['id']} {target} {number}")
            elif abs(served[target][number - 1] - value["clock"]["boottime_s"]) > TIMELY:
                self._breach("measured at another time", value["id"])
            if number in recorded[target]:
                self._breach("one measurement in two records", f"{recorded[target][number]} {value['id']}")
            recorded[target][number] = value["id"]
            run = value["agent"]["run_id"], target
            if number < last.get(run, 0):
                self._breach("numbered in another order than measured", value["id"])
            last[run] = number
        lost, unexplained = 0, []
        for target, moments in served.items():
            for number, at in enumerate(moments, 1):
                if number in recorded[target] or any(_within(at, *each) for each in failed[target]):
                    continue
                if any(-LAST_TICK < at - end < LAST_TICK for end in ends):
                    lost += 1
                else:
                    unexplained.append(f"{target} {number} at {at:.3f}; ends: {ends}; failed: {failed[target]}")
        if len(unexplained) > gone:
            self.breaches[f"measured, and no record ({gone} are named)"] += unexplained
        return lost

    def in_order(self) -> bool:
        """By the boot time of each target's measurements; those of different targets may end in any order."""
        places = [
            (value["target"]["id"], value["agent"]["run"], value["agent"]["seq"], value["clock"]["boottime_s"])
            for value in self.results()
        ]
        places.sort()
        return all(one[0] != other[0] or one[3] <= other[3] for one, other in itertools.pairwise(places))

    def check_schemas(self) -> None:
        """One record of each kind: thousands would take longer than the campaign."""
        kinds = {}
        for value in self.values.values():
            if "event" in value:
                kinds[value["event"], ""] = value
            else:
                kinds[value["target"]["id"], str(value["error"] and value["error"]["code"])] = value
        for value in kinds.values():
            for error in (EVENT if "event" in value else RESULT).iter_errors(value):
                self._breach("against its schema", f"{value['id']}: {error.message}")

    def _breach(self, kind: str, what: str) -> None:
        self.breaches[kind].append(what)

    def complaint(self) -> str:
        return "\n".join(f"{kind}: {len(rows)}\n  " + "\n  ".join(rows[:SHOWN]) for kind, rows in self.breaches.items())
