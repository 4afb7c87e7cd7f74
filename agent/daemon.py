"""The daemon: builds the parts, runs them until a signal, reloads on SIGHUP, stops in order.

Measuring never waits for delivery, and delivery never for measuring; between them stands the spool.
"""

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET

from agent import __version__
from agent.config import Config, ConfigError, Directories
from agent.config.model import Target
from agent.configured import Configured, Loaded
from agent.delivery.forwarder import Forwarder
from agent.delivery.kafka import DeliveryError, KafkaSink
from agent.device.clock import Clock, ahead, boottime, stamp
from agent.device.identity import StateInUse, begin_run, keep_run, lock_state
from agent.device.systemd import Systemd, runtime_directory
from agent.device.vitals import Disk, Vitals, read_disk, read_vitals
from agent.probers import prober_of, type_of
from agent.probers.prober import Prober
from agent.probers.resolver import Resolver
from agent.record import (
    AppliedTarget,
    BrokerBack,
    BrokerLost,
    ClockSet,
    ConfigApplied,
    ConfigRejected,
    Event,
    Heartbeat,
    Recorder,
    Started,
    Stopping,
    UplinkBack,
    UplinkLost,
    corrected,
    whole_ms,
)
from agent.results import Results
from agent.schedule import MOST_IN_FLIGHT, Scheduler
from agent.spool.area import SpoolInUse
from agent.spool.held import Waiting
from agent.spool.record import Origin, Record
from agent.spool.spool import MAX_MEMORY, Spool
from agent.spool.store import Store
from agent.status import SOCKET, BrokerNow, SpoolNow, Status, TargetNow, UplinkNow, serve

log = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT_SECONDS = 15.0
VITALS_SECONDS = 3.0  # that a heartbeat waits for a sensor, or for the disk
PROBE_GRACE_SECONDS = 1.0  # what is in flight at a stop has this long to end
FLUSH_SECONDS = 5.0  # and what waits for Kafka this long
STOP_SECONDS = 8.5  # all of it, with what is left on its way to the disk
KEEP_SECONDS = 0.5  # the run's last numbers have at least
BEGIN_AGAIN_SECONDS = 5.0
SERVE_AGAIN_SECONDS = 60.0
KEEP_AGAIN_SECONDS = 60.0  # until a configuration that could not be kept for a bad start is tried again
STATUS_SECONDS = 5.0  # between two status lines for systemd
HUNG_SECONDS = 15.0  # without progress of measuring or of delivery: the watchdog is no longer told that all is well
SET_BACK_SECONDS = 5.0  # of the wall clock that Kafka's client only waits longer for
LOOK_SECONDS = 0.5  # between two looks for edits
OWN_DESCRIPTORS = 100  # kept for the spool, Kafka, the files of the configuration, and for asking once more
PART_BYTES = 200_000  # of the targets in a `config_applied` event: brokers take a megabyte, if not told otherwise
# A collection after so many objects more than before, of the older ones after so many such: a probe leaves nothing for
# it to find, and what does leave circles (an exception that was logged) waits among 10,000 objects at most, some MB.
COLLECT_AFTER = (10_000, 20, 50)


def run(configured: Configured) -> int:
    """Runs the daemon until SIGTERM or SIGINT; the exit status."""
    import uvloop

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection each; the usual soft limit is 1,024

    async def live() -> int:
        try:
            return await Daemon(configured).run()
        except (StateInUse, SpoolInUse) as error:
            log.critical("%s", error)
            return 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(live())


def most_in_flight() -> int:
    """As many probes as there are file descriptors for: one for the connection, up to three while it resolves."""
    return max(min((resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OWN_DESCRIPTORS) // 4, MOST_IN_FLIGHT), 1)


class Prepared(NamedTuple):
    """What was loaded, and what could still have failed: made, and not in force yet.

    `probers`: by id, of the targets that are new or changed; `sink`: None where Kafka is used as before.
    """

    loaded: Loaded
    probers: dict[str, Prober]
    sink: KafkaSink | None


class Daemon:
    """All parts of one running agent. To be made on the running loop. Raises `StateInUse`."""

    def __init__(self, configured: Configured) -> None:
        self._configured, config = configured, configured.config
        self._state_directory = Path(config.state_directory)
        lock_state(self._state_directory)
        self._run, self._previous = begin_run(self._state_directory)
        self._clock = Clock(config.clock.synchronized)
        self._recorder = Recorder(config, self._run, self._clock)
        self._spool = _spool(config, self._recorder)
        self._resolver = Resolver()
        self._results = Results(self._recorder, self._clock, self._spool, self._resolver, self)
        self._forwarder = Forwarder(
            self._spool,
            self._sink_of(config),
            config.kafka.tick,
            self,
            self._each_tick,
        )
        self._wrong_stamps = False  # a record may have been made by a clock that was not right
        self._scheduler = Scheduler(config.agent.id, self._results, most_in_flight())
        self._systemd = Systemd()
        self._begun = boottime()
        self._figures: dict[str, Any] = {}  # of the last heartbeat
        self._read_vitals, self._read_disk = _Reading(read_vitals), _Reading(self._disk)
        self._vitals, self._disk_told = Vitals(), Disk()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._applied = asyncio.Event()

    @property
    def _config(self) -> Config:
        return self._configured.config

    async def run(self) -> int:
        """Until a signal asks to stop: exit status 0. 1 when the delivery died, which the agent cannot do without.

        Raises `SpoolInUse`.
        """
        loop = asyncio.get_running_loop()
        for stopping in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stopping, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        log.info(
            "uptime-agent %s: agent %s, location %s, run %d (%s)",
            __version__,
            self._config.agent.id,
            self._config.location.id,
            self._run.run,
            self._run.run_id,
        )
        await self._spool.open()
        self._tell(Started, previous=self._previous)
        if self._configured.problems:
            self._tell_refused()
        self._put_in_force(self._probers_of(self._config.targets))
        # Before it is ready, so that who looks when `systemctl start` has returned sees a line.
        self._systemd.status(self.status().line())
        self._systemd.ready()
        parts = [
            loop.create_task(part, name=name)
            for name, part in (
                ("stop", self._stop.wait()),
                ("delivery", self._forwarder.run()),
                ("keep", self._again_and_again(self._keep)),
                ("reload", self._again_and_again(self._reload_when_asked)),
                ("heartbeat", self._again_and_again(self._beat)),
                ("watchdog", self._again_and_again(self._watch)),
                ("status", self._again_and_again(self._serve)),
            )
        ]
        ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        status = 0
        for part in ended - {parts[0]}:
            log.critical("%s died; stopping", part.get_name(), exc_info=part.exception())
            status = 1
        await self._stop_in_order(parts)
        return status

    async def _again_and_again(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs for ever what measuring can do without: its failure is said, and it begins again."""
        while True:
            try:
                await part()
            except Exception:
                text = "%s: failed, measuring goes on; it begins again in %.0f s"
                log.exception(text, part.__name__, BEGIN_AGAIN_SECONDS, extra={"secrets_of": self._config})
                await asyncio.sleep(BEGIN_AGAIN_SECONDS)

    async def _stop_in_order(self, parts: list[asyncio.Task[Any]]) -> None:
        """Measuring first, so that all of it is recorded; then what waits goes to Kafka, and to the disk, in time."""
        log.info("stopping")
        self._systemd.stopping()
        end = boottime() + STOP_SECONDS
        await self._scheduler.stop(PROBE_GRACE_SECONDS)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        self._results.settle(end=True)
        self._tell(Stopping, last_seqs=self._recorder.last_seqs())
        try:
            left = await self._forwarder.stop(FLUSH_SECONDS)
        except Exception:  # what waits is kept all the same
            log.exception("the delivery failed at the stop")
            left = self._spool.live()
        lost = await self._spool.close(end - boottime())
        if lost:
            log.error("%d record%s reached neither Kafka nor the disk in time: lost, perhaps", lost, "s" * (lost != 1))
        elif left:
            log.info("%d new records did not reach Kafka; they wait on disk, with what was there", left)
        run = msgspec.structs.replace(self._run, last_seqs=self._recorder.last_seqs())
        try:
            async with asyncio.timeout(max(end - boottime(), KEEP_SECONDS)):
                await _in_thread(lambda: keep_run(self._state_directory, run))
        except TimeoutError:
            log.warning("%s: the disk does not answer; the run's last numbers are not kept", self._state_directory)
        log.info("stopped")

    async def _reload_when_asked(self) -> None:
        """On SIGHUP, or when the files were edited; a signal during a reload makes one more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._reload.wait()
        if self._reload.is_set():
            self._reload.clear()
            await self._load_again(asked=True)
        elif await _in_thread(self._configured.is_edited):
            await self._load_again()

    async def _keep(self) -> None:
        """Keeps what was put in force last; while the disk does not answer, all else goes on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KEEP_AGAIN_SECONDS if self._configured.unkept else None):
                await self._applied.wait()
        self._applied.clear()
        self._configured.kept(*await _in_thread(self._configured.keeping()))

    async def _load_again(self, *, asked: bool = False) -> None:
        """Loads, validates all of it, and only then applies."""
        self._systemd.reloading()
        try:
            # In a thread: ten thousand targets take seconds to read, and measuring does not wait for that.
            self._apply(await _in_thread(self._prepare))
        except ConfigError as error:
            self._reject(error.problems, error.count, asked=asked)
        except DeliveryError as error:
            self._reject([f"{self._configured.path}: kafka: {error}"], 1, asked=asked)
        except Exception as error:
            why = getattr(error, "strerror", None) or type(error).__name__  # another text may have a secret in it
            self._reject([f"{self._configured.path}: cannot be taken in: {why}"], 1, asked=asked)
            raise
        finally:
            self._systemd.ready()
            self._systemd.status(self.status().line())

    def _prepare(self) -> Prepared:
        """Loads the configuration and makes all that can fail. Raises `ConfigError` and `DeliveryError`."""
        loaded = self._configured.load()
        config = loaded.config
        running = {target.id: target for target in self._config.targets if target.enabled}
        probers = self._probers_of(target for target in config.targets if running.get(target.id) != target)
        now = self._config.kafka, self._configured.client_files
        changed = (config.kafka, loaded.files.of_client) != now
        return Prepared(loaded, probers, self._sink_of(config) if changed else None)

    def _probers_of(self, targets: Iterable[Target]) -> dict[str, Prober]:
        return {target.id: prober_of(target, self._resolver) for target in targets if target.enabled}

    def _each_tick(self) -> None:
        """Records what was measured, before it is written and sent; puts stamps right when the clock was set."""
        if (step := self._clock.step()) is not None:
            log.info("the clock was set by %+.1f s", step)
            self._tell(ClockSet, step_ms=round(step * 1000, 3))
            if step < -SET_BACK_SECONDS:
                self._replace_sink()
        self._results.settle()
        if not self._clock.state().synchronized:
            self._wrong_stamps = True
        elif self._wrong_stamps:
            right = ahead()
            self._wrong_stamps = not self._spool.rewrite(lambda record: corrected(record, right))

    def _sink_of(self, config: Config) -> KafkaSink:
        """Raises `DeliveryError`."""
        return KafkaSink(config.kafka, config.agent.id, self._clock)

    def _replace_sink(self) -> None:
        """librdkafka waits by the wall clock: set back by an hour, it would not look at its broker for an hour."""
        try:
            sink = self._sink_of(self._config)
        except DeliveryError as error:  # a file of keys may have gone since
            log.warning("Kafka may be slow to come back after the clock was set: %s", error)
        else:
            self._forwarder.replace(sink, self._config.kafka.tick)

    def _reject(self, problems: Sequence[object], count: int, *, asked: bool) -> None:
        if self._configured.refuse(problems, count, asked=asked):
            self._tell_refused()

    def _tell_refused(self) -> None:
        self._tell(ConfigRejected, problems=self._configured.problems, count=self._configured.problem_count)

    def _apply(self, prepared: Prepared) -> None:
        """Puts in force what was prepared; nothing here can fail."""
        loaded, probers, sink = prepared
        if sink is not None:
            self._forwarder.replace(sink, loaded.config.kafka.tick)
        self._results.settle()  # what was measured under the configuration before is recorded as that
        self._configured.apply(loaded)
        self._put_in_force(probers)

    def _put_in_force(self, probers: Mapping[str, Prober]) -> None:
        config = self._config
        self._clock.mode = config.clock.synchronized
        self._recorder.configure(config)
        self._scheduler.reconcile(config.targets, lambda target: probers[target.id])
        self._results.inquiry.configure(config)
        self._results.forget_others({target.id for target in config.targets if target.enabled})
        _keep_for_long()
        count = len(self._scheduler)
        log.info("configuration %s applied: %d target%s", config.digest, count, "s" * (count != 1))
        self._tell_applied(config)
        self._applied.set()

    def _tell_applied(self, config: Config) -> None:
        shown = [
            AppliedTarget(
                target.id,
                target.shown_url,
                type_of(target),
                whole_ms(target.interval),
                target.labels,
                target.source or UNSET,
            )
            for target in config.targets
            if target.enabled
        ]
        parts: list[list[AppliedTarget]] = [[]]
        size = 0
        for target in shown:
            size += len(msgspec.json.encode(target))
            if size > PART_BYTES and parts[-1]:
                parts.append([])
                size = 0
            parts[-1].append(target)
        for number, part in enumerate(parts, 1):
            self._tell(ConfigApplied, digest=config.digest, part=number, parts=len(parts), targets=tuple(part))

    async def _beat(self) -> None:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        vitals, disk = await asyncio.gather(self._read_vitals.now(), self._read_disk.now())
        self._vitals, self._disk_told = vitals or Vitals(), disk or Disk()
        waiting = self._spool.waiting()
        self._figures = self._results.since_last()
        self._tell(
            Heartbeat,
            targets=len(self._scheduler),
            spool_records=waiting.records,
            spool_bytes=waiting.bytes,
            spool_oldest_s=waiting.oldest_s,
            **self._figures,
            **msgspec.structs.asdict(self._vitals),
            **msgspec.structs.asdict(self._disk_told),
        )

    def _disk(self) -> Disk:
        return read_disk(Directories.of(self._config.state_directory, self._config.spool).spool)

    async def _watch(self) -> None:
        """Tells systemd how it goes, and that all is well while measuring and delivery get on; Kafka may be away."""
        watchdog = self._systemd.watchdog
        await asyncio.sleep(min(STATUS_SECONDS, watchdog / 4) if watchdog else STATUS_SECONDS)
        hung = max(self._scheduler.late(), boottime() - self._forwarder.last_turn)
        if hung < HUNG_SECONDS:
            self._systemd.alive()
        self._systemd.status(self.status().line())

    async def _serve(self) -> None:
        """Answers `uptime-agent status`."""
        path = (runtime_directory() or self._state_directory) / SOCKET
        try:
            await serve(path, lambda: self.status(each_target=True))
        except OSError as error:
            log.warning("%s: `uptime-agent status` gets no answer there: %s", path, error)
            await asyncio.sleep(SERVE_AGAIN_SECONDS)

    def status(self, *, each_target: bool = False) -> Status:
        """What is known now; `each_target`: with all targets, which takes some milliseconds when they are many."""
        waiting = self._spool.waiting()
        verdicts = self._results.verdicts
        return Status(
            agent=self._config.agent.id,
            location=self._config.location.id,
            version=__version__,
            run=self._run.run,
            run_id=self._run.run_id,
            uptime_s=round(boottime() - self._begun, 3),
            checks_per_second=self._figures.get("checks_per_second"),
            missed=self._figures.get("missed"),
            lateness_max_ms=self._figures.get("lateness_max_ms"),
            broker=BrokerNow(*self._forwarder.broker(), self._forwarder.refused_topics()),
            uplink=self._uplink_now(),
            spool=_spool_now(waiting),
            clock_synchronized=self._clock.state().synchronized,
            boottime_s=round(boottime(), 3),
            vitals=self._vitals,
            disk=self._disk_told,
            config=self._configured.now(),
            target_count=len(self._scheduler),
            verdicts=dict(Counter(verdicts[each.id].status for each in self._config.targets if each.id in verdicts)),
            targets=[self._target_now(each) for each in self._config.targets if each.enabled] if each_target else [],
        ).judge()

    def _uplink_now(self) -> UplinkNow:
        since, why = self._results.inquiry.uplink()
        return UplinkNow() if since is None else UplinkNow(round(boottime() - since, 3), why)

    def _target_now(self, target: Target) -> TargetNow:
        now = TargetNow(target.id, target.shown_url, target.source)
        if (last := self._results.verdicts.get(target.id)) is not None:
            now.status, now.error, now.at, now.duration_ms = last.status, last.error, stamp(last.wall), last.duration_ms
        return now

    def broker_lost(self) -> None:
        """Tells that Kafka acknowledges nothing."""
        self._tell(BrokerLost)

    def broker_back(self, seconds: float) -> None:
        """Tells that Kafka acknowledges again, after so many seconds."""
        self._tell(BrokerBack, lost_s=round(seconds, 3))

    def uplink_lost(self, since: float, why: str) -> None:
        """Tells that nothing gets out of this device."""
        self._tell(UplinkLost, since_s=round(boottime() - since, 3), why=why)

    def uplink_back(self, seconds: float) -> None:
        """Tells that there is a way out again, after so many seconds."""
        self._tell(UplinkBack, lost_s=round(seconds, 3))

    def rejected(self, record: Record, origin: Origin, reason: str) -> None:
        """Tells what a record was that Kafka will not take."""
        if (told := self._recorder.rejected(record, origin, reason)) is not None:
            self._spool.append(told)

    def _tell(self, kind: type[Event], **fields: Any) -> None:
        self._spool.append(self._recorder.event(kind, **fields))


def _spool_now(waiting: Waiting) -> SpoolNow:
    now = SpoolNow(waiting.records, waiting.bytes, waiting.oldest_s, waiting.trouble, waiting.given_up)
    if waiting.last_loss is not None:
        at, now.given_up_why = waiting.last_loss
        now.given_up_s = round(boottime() - at, 3)
    return now


def _spool(config: Config, recorder: Recorder) -> Spool:
    """With a volatile directory where systemd gives one: it spares flash."""
    runtime = runtime_directory()
    store = Store(
        Directories.of(config.state_directory, config.spool).spool,
        recorder.origin,
        max_size=config.spool.max_size,
        min_free=config.spool.min_free,
        volatile=runtime / "spool" if runtime else None,
    )
    # What is live cannot be dropped from disk to make room, so it must never be all of it.
    memory = min(MAX_MEMORY, config.spool.max_size // 4)
    return Spool(store, recorder.gap, strict=config.spool.durability == "strict", max_memory=memory)


def _keep_for_long() -> None:
    """What lives as long as a configuration is no business of the collector's: ten thousand targets are 30 ms of it.

    What was kept before is collected first, so that the configurations of many reloads do not pile up.
    """
    gc.set_threshold(*COLLECT_AFTER)
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class _Reading(Generic[T]):
    """What is read in a thread, as it may hang: then there is None, and never a second thread."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._task: asyncio.Task[T] | None = None

    async def now(self) -> T | None:
        """None after `VITALS_SECONDS`."""
        if self._task is not None:
            if not self._task.done():
                return None
            self._task.exception()  # what hung has ended, and is old
        self._task = asyncio.create_task(_in_thread(self._read))
        done, _ = await asyncio.wait([self._task], timeout=VITALS_SECONDS)
        if not done:
            return None
        task, self._task = self._task, None
        return task.result()


async def _in_thread(work: Callable[[], T]) -> T:
    """What `work` returns or raises. Unlike an executor's, the thread is not waited for when the agent stops."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        if not done.set_running_or_notify_cancel():  # from here on, whoever stops waiting leaves it to end on its own
            return
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  (raised where it is awaited)
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(done)
