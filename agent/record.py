"""Results and events as the bytes that travel to Kafka, with ids and sequence numbers that prove nothing is missing.

The structs are the contract: what is encoded, and the JSON Schema that is shipped, come from them. Within one
`schema` number fields are only ever added. `seq` counts up by one from 1 within (`run_id`, `worker`, topic).
"""

import time
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent import __version__
from agent.config.model import Config, Target
from agent.device.clock import STEP, Clock, ClockState, boot_id, boottime, stamp
from agent.device.identity import LastSeq, Run
from agent.probers.prober import Prober
from agent.probers.result import Attempt, Dns, Error, Http, Icmp, Peer, Phases, Tls, ms
from agent.schedule import Measurement, Missed
from agent.spool.record import Gap, Origin, Record
from agent.verdict.found import Look, Ruling, Seen, Status

SHOWN = 4 << 10  # bytes of a record that Kafka will not take
TELLS_OF_LOSS = (b'{"event":"gap"', b'{"event":"record_rejected"')

Stamp = Annotated[str, Meta(pattern=r"^\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", description="RFC 3339, UTC")]


class AgentTag(msgspec.Struct):
    """Which agent, which run of it, and the record's place in that run. `config`: digest of the configuration."""

    id: str
    version: str
    run: Annotated[int, Meta(ge=0, description="grows with every start; 0 when it could not be kept")]
    run_id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    worker: Annotated[int, Meta(ge=0)]
    seq: Annotated[int, Meta(ge=1)]
    config: str


class LocationTag(msgspec.Struct, omit_defaults=True):
    """Where the device stands, as it was configured."""

    id: str
    country: str | None = None
    city: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    labels: dict[str, str] = {}


class TargetTag(msgspec.Struct):
    """What was measured; `url` is shown without its secrets. `source`: the address or interface that it left by."""

    id: str
    type: str
    url: str
    interval_ms: float
    timeout_ms: float
    labels: dict[str, str]
    source: str | UnsetType = UNSET


class ClockTag(msgspec.Struct):
    """Whether stamps can be trusted, and the boot clock at the record's moment for those that cannot.

    `corrected`: the stamps were taken with a clock that was wrong, and put right when it was set.
    """

    synchronized: bool
    max_error_ms: float | None
    boot_id: str
    boottime_s: float
    corrected: Literal[True] | UnsetType = UNSET


class ResultRecord(msgspec.Struct, kw_only=True):
    """One measurement, or with `missed` a row of ticks that could not be measured."""

    schema: Literal[1] = 1
    id: str
    agent: AgentTag
    location: LocationTag
    target: TargetTag
    scheduled_at: Stamp
    started_at: Stamp | None
    lateness_ms: float | None
    duration_ms: float | None
    status: Status
    phases_ms: Phases
    error: Error | None
    peer: Peer | None
    http: Http | UnsetType = UNSET
    tls: Tls | UnsetType = UNSET
    icmp: Icmp | UnsetType = UNSET
    dns: Dns | UnsetType = UNSET
    attempt: Annotated[int, Meta(ge=1, description="the number of the try that is told of")] = 1
    attempts: tuple[Attempt, ...] | UnsetType = UNSET
    evidence: Seen | UnsetType = UNSET
    second_look: tuple[Look, ...] | UnsetType = UNSET
    stall_ms: (
        Annotated[float, Meta(description="the longest time that the event loop was seen to stand still meanwhile")]
        | UnsetType
    ) = UNSET
    missed: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    clock: ClockTag


class Event(msgspec.Struct, kw_only=True, tag_field="event"):
    """The envelope of the agent's own news."""

    schema: Literal[1] = 1
    id: str
    agent: AgentTag
    location: LocationTag
    clock: ClockTag
    at: Stamp


class Started(Event, kw_only=True, tag="started"):
    """A run began; `previous` is the one before it as far as known, None when there was none."""

    previous: Run | None


class Stopping(Event, kw_only=True, tag="stopping"):
    """A run ends in order: this is all there is of it, but for this event. What it has not told, the next run tells."""

    last_seqs: tuple[LastSeq, ...]


class AppliedTarget(msgspec.Struct):
    """A target as `config_applied` lists it. `source`: the address or interface that it is measured by, if any."""

    id: str
    url: str
    type: str
    interval_ms: float
    labels: dict[str, str]
    source: str | UnsetType = UNSET


class ConfigApplied(Event, kw_only=True, tag="config_applied"):
    """A configuration took effect. With many targets it comes as `parts` events, numbered from 1 by `part`."""

    digest: str
    part: int
    parts: int
    targets: tuple[AppliedTarget, ...]


class ConfigRejected(Event, kw_only=True, tag="config_rejected"):
    """A configuration was refused and changed nothing; `problems`: the first of `count`, as `validate` tells them."""

    problems: tuple[str, ...]
    count: int


class GapEvent(Event, kw_only=True, tag="gap"):
    """Records that will never come: `count` of them, from `first_seq` to `last_seq` of `topic`."""

    topic: str
    run_id: str
    worker: int
    first_seq: int
    last_seq: int
    count: int
    reason: str
    first_at: Stamp
    last_at: Stamp


class RecordRejected(Event, kw_only=True, tag="record_rejected"):
    """A record that Kafka will not take, which a `gap` names as well. The agent keeps it in the spool's `rejected/`;
    `record` is its beginning.
    """

    topic: str
    run_id: str
    worker: int
    seq: int
    bytes: int
    record: str
    reason: str


class BrokerLost(Event, kw_only=True, tag="broker_lost"):
    """Kafka acknowledges nothing since some seconds. Comes when it is back, before `broker_back`."""


class BrokerBack(Event, kw_only=True, tag="broker_back"):
    """Kafka acknowledges again; `lost_s`: seconds that it did not."""

    lost_s: float


class UplinkLost(Event, kw_only=True, tag="uplink_lost"):
    """Nothing gets out of this device since `since_s` seconds before `at`, `why` tells. Until it is back what is silent
    is `unknown`.
    """

    since_s: float
    why: str


class UplinkBack(Event, kw_only=True, tag="uplink_back"):
    """There is a way out again; `lost_s`: seconds that there was none."""

    lost_s: float


class ClockSet(Event, kw_only=True, tag="clock_set"):
    """The wall clock jumped, by so much; `at` and all later stamps are by the new one."""

    step_ms: float


class Heartbeat(Event, kw_only=True, tag="heartbeat"):
    """Sign of life each 15 s. Rates and lateness are over the time since the last one; None: nothing to tell it from.

    What waits for Kafka: `spool_records` in memory, `spool_bytes` on disk, `spool_oldest_s` the age of the oldest (of
    what an earlier run left, since this one began). `lateness_max_ms`: the latest start of a measurement.

    Of the device, None for what it does not have: `rss_bytes` is the agent's own memory in RAM; `load` over 1, 5 and 15
    minutes; `temperature_c` of the hottest sensor; `undervoltage`: a Raspberry Pi's supply was too weak within the last
    seconds; `throttled`: the kernel slows the processor down for its heat; `wifi_quality` as the driver counts;
    `disk_…`: the file system of the spool, what of it is free for the agent. For how long it runs: `clock.boottime_s`.
    """

    targets: int
    checks_per_second: float
    missed: int
    lateness_max_ms: float | None
    spool_records: int
    spool_bytes: int
    spool_oldest_s: float | None
    rss_bytes: int | None
    memory_available_bytes: int | None
    memory_total_bytes: int | None
    swap_used_bytes: int | None
    load: tuple[float, float, float] | None
    temperature_c: float | None
    undervoltage: bool | None
    throttled: bool | None
    wifi_signal_dbm: int | None
    wifi_quality: int | None
    disk_free_bytes: int | None
    disk_total_bytes: int | None
    disk_read_only: bool | None


AnyEvent = (
    Started
    | Stopping
    | ConfigApplied
    | ConfigRejected
    | GapEvent
    | RecordRejected
    | BrokerLost
    | BrokerBack
    | UplinkLost
    | UplinkBack
    | ClockSet
    | Heartbeat
)


def corrected(record: Record, ahead: float) -> Record:
    """The record with right stamps, if they were taken with a clock that was not right; else the same.

    `ahead`: seconds by which the right wall clock is ahead of boot time. Only for records of this boot, and only for
    those that nobody has seen.
    """
    value = msgspec.json.decode(record.value)
    clock = value["clock"]
    name = "at" if "at" in value else "scheduled_at" if value["started_at"] is None else "started_at"
    shift = clock["boottime_s"] + ahead - _seconds(value[name])
    if clock["synchronized"] or abs(shift) < STEP:
        return record
    clock["corrected"] = True
    for each in ("at", "scheduled_at", "started_at"):
        if value.get(each) is not None:
            value[each] = stamp(_seconds(value[each]) + shift)
    return record._replace(at=value.get("at") or value["scheduled_at"], value=msgspec.json.encode(value))


def _seconds(stamped: str) -> float:
    return datetime.fromisoformat(stamped).timestamp()


def result_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a record on the results topic."""
    return _schema(ResultRecord, "uptime-agent result record")


def event_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a record on the events topic."""
    return _schema(AnyEvent, "uptime-agent event record")


def _schema(of: Any, title: str) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **msgspec.json.schema(of)}


class Recorder:
    """Numbers and encodes what one worker of one run has to tell."""

    def __init__(self, config: Config, run: Run, clock: Clock, worker: int = 0) -> None:
        self._agent_id = config.agent.id
        self._topic, self._events_topic = config.kafka.topic, config.kafka.events_topic
        self._run, self._worker = run, worker
        self._clock, self._boot_id = clock, boot_id()
        self._seqs: dict[str, int] = {}
        self._encode = msgspec.json.Encoder().encode
        self.configure(config)

    def configure(self, config: Config) -> None:
        """From now on records carry this configuration's digest and location. Topics and agent id stay."""
        self._digest = config.digest
        self._location = LocationTag(
            **{field: getattr(config.location, field) for field in LocationTag.__struct_fields__}
        )

    @property
    def origin(self) -> Origin:
        """Whose numbers they are."""
        return Origin(self._run.run, self._run.run_id, self._worker)

    def last_seqs(self) -> tuple[LastSeq, ...]:
        """The last sequence number given out for each topic."""
        return tuple(LastSeq(self._worker, topic, seq) for topic, seq in self._seqs.items())

    def measured(self, measurement: Measurement, ruling: Ruling, clock: ClockState) -> Record:
        """The record of a measurement with its verdict; `clock`: as it was when the measurement was made."""
        target, prober, scheduled, started, wall, result, stall = measurement
        return self._result(
            target,
            prober,
            wall - (started - scheduled),
            self._clock_tag(clock, started),
            started_at=stamp(wall),
            lateness_ms=ms(started - scheduled),
            duration_ms=result.duration_ms,
            status=ruling.status,
            phases_ms=result.phases_ms,
            error=ruling.error,
            peer=result.peer,
            http=UNSET if result.http is None else result.http,
            tls=UNSET if result.tls is None else result.tls,
            icmp=UNSET if result.icmp is None else result.icmp,
            dns=UNSET if result.dns is None else result.dns,
            stall_ms=ms(stall) if stall else UNSET,
            attempt=result.attempt,
            attempts=result.attempts or UNSET,
            evidence=UNSET if ruling.seen is None else ruling.seen,
            second_look=UNSET if ruling.looks is None else ruling.looks,
        )

    def missed(self, missed: Missed, clock: ClockState) -> Record:
        """The record of a row of ticks that were not measured; `clock`: as it was when that was known."""
        target, prober, scheduled, wall, ticks, reason = missed
        return self._result(
            target,
            prober,
            wall,
            self._clock_tag(clock, scheduled),
            started_at=None,
            lateness_ms=None,
            duration_ms=None,
            status="unknown",
            phases_ms=Phases(),
            error=Error(None, "not_measured", "local", reason),
            peer=None,
            missed=ticks,
        )

    def event(self, kind: type[Event], **fields: Any) -> Record:
        """The record of an event of the agent's own; `fields` are those that `kind` adds to the envelope."""
        tag, now = self._tag(self._events_topic), stamp(time.time())
        event = kind(
            id=f"{tag.id}/{tag.run_id}/{tag.worker}/e{tag.seq}",
            agent=tag,
            location=self._location,
            clock=self._clock_tag(self._clock.state(), boottime()),
            at=now,
            **fields,
        )
        return self._numbered(Record(self._events_topic, tag.seq, event.id, now, self._encode(event)))

    def gap(self, gap: Gap) -> Record:
        """The event that tells records which will never come, of this run or an earlier one."""
        return self.event(GapEvent, **msgspec.structs.asdict(gap))

    def rejected(self, record: Record, origin: Origin, reason: str) -> Record | None:
        """The event that tells of a record which Kafka will not take; None of one that itself tells of a loss: what is
        told of that may not be taken either, and so on for ever.
        """
        if record.value.startswith(TELLS_OF_LOSS):
            return None
        return self.event(
            RecordRejected,
            topic=record.topic,
            run_id=origin.run_id,
            worker=origin.worker,
            seq=record.seq,
            bytes=len(record.value),
            record=record.value[:SHOWN].decode(errors="replace"),
            reason=reason,
        )

    def _result(self, target: Target, prober: Prober, scheduled: float, clock: ClockTag, **found: Any) -> Record:
        """`scheduled` is wall time, `clock` tells the boot clock at the start (or at `scheduled`, if none was made)."""
        tag, scheduled_at = self._tag(self._topic), stamp(scheduled)
        record = ResultRecord(
            id=f"{tag.id}/{tag.run_id}/{tag.worker}/{tag.seq}",
            agent=tag,
            location=self._location,
            target=TargetTag(
                target.id,
                prober.type,
                target.shown_url,
                whole_ms(target.interval),
                whole_ms(target.timeout),
                target.labels,
                target.source or UNSET,
            ),
            scheduled_at=scheduled_at,
            clock=clock,
            **found,
        )
        return self._numbered(Record(self._topic, tag.seq, record.id, scheduled_at, self._encode(record)))

    def _numbered(self, record: Record) -> Record:
        """Only now is its number spent: one that could not be encoded leaves no hole that nobody could explain."""
        self._seqs[record.topic] = record.seq
        return record

    def _tag(self, topic: str) -> AgentTag:
        seq = self._seqs.get(topic, 0) + 1
        run = self._run
        return AgentTag(self._agent_id, __version__, run.run, run.run_id, self._worker, seq, self._digest)

    def _clock_tag(self, state: ClockState, boottime_s: float) -> ClockTag:
        return ClockTag(state.synchronized, state.max_error_ms, self._boot_id, round(boottime_s, 6))


@lru_cache(maxsize=256)
def whole_ms(seconds: float) -> float:
    """Configured seconds as milliseconds: `10000`, not `10000.0`, which not every consumer reads as a whole number."""
    milliseconds = ms(seconds)
    return int(milliseconds) if milliseconds.is_integer() else milliseconds
