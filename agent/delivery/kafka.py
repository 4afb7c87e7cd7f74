"""Kafka, and the only file that knows it: the sink, the reader of `watch`, and a broker for trying things out.

The producer is called on the loop: `produce` and `poll(0)` do not block. librdkafka never gives a record up by
itself (`message.timeout.ms` 0); the spool owns retrying.
"""

import contextlib
import itertools
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from agent.config.masking import Mask
from agent.config.model import Kafka
from agent.delivery.forwarder import Fate, Report
from agent.device.clock import Clock, boottime
from agent.spool.record import Record

log = logging.getLogger(__name__)

OWNED: dict[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",  # as Java clients have it
    "linger.ms": 20,
    "message.timeout.ms": 0,
    "queue.buffering.max.messages": 20_000,
    "queue.buffering.max.kbytes": 16 << 10,
}
DEFAULTS: dict[str, Any] = {
    "log_level": 2,  # what matters comes as an error as well, and librdkafka repeats its lines without end
    "compression.type": "lz4",
    "reconnect.backoff.ms": 1_000,
    "reconnect.backoff.max.ms": 5_000,
    "socket.timeout.ms": 5_000,  # a leader that hangs is given up, and the new one asked for, in time
    "socket.connection.setup.timeout.ms": 10_000,
    "socket.keepalive.enable": True,
    "topic.metadata.propagation.max.ms": 3_000,  # how long an unknown topic is waited for before it is told
}
REMAKE = 5.0  # seconds between two producers
TROUBLE = 160  # characters of an error that are kept for whoever asks
UNSTAMPED_SECONDS = 600.0  # that records go without a stamp after one was refused
UNREACHABLE = 10.0  # seconds after which a reader gives up
TRIES = (
    0.5,
    1.5,
    8.0,
)  # seconds that a reader tries to reach a broker; not the last, if all have refused it
SILENCE = 5.0  # seconds without a value after which a reader asks the broker whether it is still there
ANSWER = 1.5  # seconds that the broker has to answer that
UNSTAMPED = 1_000  # records of a partition that a reader looks at when none is young enough by its stamp

_TOPIC_REFUSED = {
    KafkaError._UNKNOWN_TOPIC: "does not exist; create it, or correct kafka.topic and kafka.events_topic",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "does not exist; create it, or correct kafka.topic and kafka.events_topic",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "may not be written to; grant this agent's user WRITE and DESCRIBE on it",
    KafkaError.TOPIC_EXCEPTION: "is not a valid name; correct kafka.topic and kafka.events_topic",
}
_RECORD_REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE: "record_too_large",
    KafkaError._INVALID_ARG: "record_invalid",
    KafkaError.INVALID_MSG: "record_invalid",
    KafkaError.INVALID_RECORD: "record_invalid",
}


# What librdkafka writes around a cause: `HOST:PORT/ID: Connect to ipv4#… failed: ` and ` (after 3ms in state CONNECT)`.
_BEHIND_CAUSE = r" \(after \d+ms in state \w+.*\)$"
_AROUND_CAUSE = re.compile(r"^.*(?:Connect to \S+ failed|\S+:\d+(?:/\w+)?): |" + _BEHIND_CAUSE)

_HERE = ("localhost:", "127.", "[::1]:")

_SINKS = itertools.count()  # the trouble of one is news of the next
T = TypeVar("T")
Reading = tuple[bytes, float | None] | str | None


class DeliveryError(Exception):
    """Kafka cannot be used as it was asked: a property is wrong, a broker cannot be reached, a topic is not there."""


class KafkaSink:
    """Sends records keyed by agent id. Raises `DeliveryError` when librdkafka refuses a property.

    Nothing needs to be reachable: an agent starts and measures without a broker.
    """

    def __init__(self, kafka: Kafka, agent_id: str, clock: Clock) -> None:
        self.trouble = ""
        self._agent_id = agent_id.encode()
        self._clock = clock
        self._kafka = kafka
        self._number = next(_SINKS)
        self._properties = _properties(kafka, DEFAULTS) | OWNED
        self._blocks: list[_Block] = []  # on their way
        self._stamp_from = 0.0  # boot time
        self._made = boottime()
        self._asking: threading.Thread | None = None
        self._producer: Producer | None = self._new_producer()

    def send(self, records: Sequence[Record]) -> None:
        """Hands records of one topic to librdkafka."""
        block = _Block(records)
        self._blocks.append(block)
        if self._producer is None:
            block.fail(records, KafkaError(KafkaError._FATAL))
            return
        # 0 is the wall clock now, -1 none: with a wrong one the broker refuses the batch, or its retention deletes it.
        timestamp = 0 if self._clock.state().synchronized and boottime() >= self._stamp_from else -1
        for at, record in enumerate(records):
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    self._agent_id,
                    headers=[("content-type", b"application/json"), ("id", record.id.encode())],
                    on_delivery=block.delivered,
                    timestamp=timestamp,
                )
            except BufferError:
                # Nor the rest, or it would overtake this one.
                block.fail(records[at:], KafkaError(KafkaError._QUEUE_FULL))
                break
            except KafkaException as error:
                block.fail([record], error.args[0])

    def poll(self) -> list[Report]:
        """What became of records since the last call. A producer that librdkafka declared dead is replaced."""
        if self._producer is None:
            self._remake()
        else:
            try:
                self._producer.poll(0)
            except KafkaException as error:
                self._bury(error.args[0])
        reports = [report for block in self._blocks for report in block.reports(self._fate)]
        self._blocks = [block for block in self._blocks if block.left]
        for records, fate, reason in reports:
            if fate == "arrived":
                self.trouble = ""
            elif fate == "topic_refused":
                self._complain_of(f"topic {records[0].topic}: {reason}")
        return reports

    def withdraw(self) -> None:
        """Takes back what waits in librdkafka. What is in flight stays: it may have arrived, and Kafka's answer to it
        is the first sign that it is back.
        """
        if self._producer is not None:
            self._producer.purge(in_queue=True, in_flight=False, blocking=False)

    def close(self) -> None:
        """Drops what is on its way; librdkafka's threads end in the background, where one may still wait for a name."""
        self._blocks.clear()
        if self._producer is not None:
            holder, self._producer = [self._producer], None
            _end(holder)

    def _new_producer(self) -> Producer:
        return _new(Producer, self._properties | {"error_cb": self._error, "logger": log}, self._kafka)

    def _ask_for_topics(self) -> None:
        """librdkafka asks again for a topic that was there and is gone only after minutes: so we do, in a thread."""
        if self._producer is not None and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=_ask_for_topics, args=(self._producer,), daemon=True)
            self._asking.start()

    def _bury(self, error: KafkaError) -> None:
        text = "Kafka: the producer failed and is replaced: %s"
        log.error(text, error.str(), extra={"trouble": "fatal", "secrets_of": self._kafka})
        self._complain_of(error.str())
        left = [block.left for block in self._blocks]
        self.close()
        for records in left:
            block = _Block(records)  # not the one that the dead producer still reports to
            block.fail(records, KafkaError(KafkaError._FATAL))
            self._blocks.append(block)
        self._remake()

    def _remake(self) -> None:
        """At most each `REMAKE` seconds: what killed one may kill the next."""
        if boottime() - self._made >= REMAKE:
            self._made = boottime()
            try:
                self._producer = self._new_producer()
            except DeliveryError as error:  # a file of keys may have gone since
                text = "Kafka: no new producer: %s; it is tried again each %.0f s"
                log.error(text, error, REMAKE, extra={"trouble": "remake"})
                self._complain_of(str(error))

    def _error(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # which counts them wrongly, and says no cause
            self._complain_of(error.str())
            log.warning(
                "Kafka: %s", error.str(), extra={"trouble": (self._number, error.code()), "secrets_of": self._kafka}
            )

    def _complain_of(self, text: str) -> None:
        said = re.sub(_BEHIND_CAUSE, "", Mask(self._kafka).text(text))
        self.trouble = said if len(said) <= TROUBLE else said[:TROUBLE] + "…"

    def _fate(self, error: KafkaError) -> tuple[Fate, str]:
        code = error.code()
        if code == KafkaError._PURGE_QUEUE:
            return "unsent", ""
        if (why := _TOPIC_REFUSED.get(code)) is not None:
            self._ask_for_topics()
            return "topic_refused", why
        if (why := _RECORD_REFUSED.get(code)) is not None:
            return "record_refused", why
        if code == KafkaError.INVALID_TIMESTAMP:
            self._stamp_from = boottime() + UNSTAMPED_SECONDS
            return "again", "Kafka refuses this device's time stamps, so records go without; set the clock"
        return "again", error.str()


class _Block:
    """Records of one topic that were handed over together. One method takes the reports of all, which costs less than
    one for each, and what they have in common is reported as one.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.left = records  # not reported
        self._arrived = 0
        self._failed: list[tuple[bytes, KafkaError]] = []

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        """Takes librdkafka's report of one record."""
        if error is None:
            self._arrived += 1
        else:
            # The value holds the id; the headers are not in a report.
            self._failed.append((message.value() or b"", error))

    def fail(self, records: Sequence[Record], error: KafkaError) -> None:
        """The same for records that librdkafka did not take."""
        self._failed += [(record.value, error) for record in records]

    def reports(self, fate_of: Callable[[KafkaError], tuple[Fate, str]]) -> list[Report]:
        """What is known since the last call: failures at once, arrivals when nothing else is left."""
        reports = []
        if self._failed:
            failed, self._failed = dict(self._failed), []
            by_fate: dict[tuple[Fate, str], list[Record]] = {}
            for record in self.left:
                if record.value in failed:
                    by_fate.setdefault(fate_of(failed[record.value]), []).append(record)
            reports += [Report(records, fate, reason) for (fate, reason), records in by_fate.items()]
            self.left = [record for record in self.left if record.value not in failed]
        if self.left and self._arrived == len(self.left):
            reports.append(Report(self.left, "arrived"))
            self.left = []
        return reports


def refusal(kafka: Kafka) -> str | None:
    """What librdkafka has against these properties; None when it takes them. Connects to nothing."""
    properties = _properties(kafka, DEFAULTS) | OWNED
    del properties["bootstrap.servers"]
    try:
        _end([_new(Producer, properties | {"logger": log}, kafka)])
    except DeliveryError as error:
        return str(error)
    return None


def read(kafka: Kafka, topic: str, since: float) -> Iterator[Reading]:
    """What is on `topic`, from the values of the last `since` seconds on, for ever.

    Each value comes with the moment at which it came to Kafka, in seconds since the epoch: the broker's stamp of it
    (LogAppendTime), else now if it came after the reading began, else None. Without a value there is each second None,
    or a text that says since when the broker gives no answer, and why.

    Joins no consumer group: it takes all partitions and commits nothing. Raises `DeliveryError` when no broker can be
    reached, which takes 2 to 10 s to find out, or the topic is not there.
    """
    # librdkafka wants a group's name even from one who joins none.
    names = {"group.id": f"uptime-agent-watch-{uuid.uuid4()}", "enable.auto.commit": False}
    broker = _Heard()
    up_to_date: set[int | None] = set()  # the partitions that were read to their end, so that what comes is new
    told = {"logger": log, "error_cb": broker.failed, "enable.partition.eof": True}
    consumer = _new(Consumer, _properties(kafka, {"log_level": 2}) | names | told, kafka)
    try:
        youngest = round((time.time() - since) * 1000)
        partitions = _reached(consumer, kafka, topic, broker)
        consumer.assign(_beginnings(consumer, [TopicPartition(topic, each, youngest) for each in partitions]))
        while True:
            message = consumer.poll(1.0)
            if message is None:
                if (trouble := broker.trouble(consumer, topic)) is not None:
                    up_to_date.clear()
                yield trouble
            elif (error := message.error()) is None:
                broker.answered()
                kind, stamp = message.timestamp()
                if stamp < 0 or stamp >= youngest:  # -1: not stamped, by a device whose clock was not right
                    now = time.time() if message.partition() in up_to_date else None
                    yield message.value() or b"", stamp / 1000 if kind == TIMESTAMP_LOG_APPEND_TIME else now
            elif error.code() == KafkaError._PARTITION_EOF:
                up_to_date.add(message.partition())
            elif message.topic() is not None and not error.retriable():
                # The others are of brokers, which come back, or of the group, which may be none of ours to use.
                raise DeliveryError(f"topic {topic}: {error.str()}")
    except KafkaException as error:
        raise DeliveryError(f"topic {topic}: {error.args[0].str()}") from None
    finally:
        consumer.close()


class _Heard:
    """When a reader last heard of the broker, and what librdkafka has told against it since."""

    def __init__(self) -> None:
        self.all_down = False
        self._why: str | None = None
        self._last = boottime()

    @property
    def why(self) -> str:
        """The cause in plain words, without librdkafka's addresses and times."""
        if self._why is None:
            return "no answer"
        cause = _AROUND_CAUSE.sub("", self._why)
        in_handshake = "in state SSL_HANDSHAKE" in self._why and "SSL" not in cause
        return f"SSL handshake failed: {cause}" if in_handshake else cause

    def answered(self) -> None:
        """All is well again."""
        self.all_down, self._why, self._last = False, None, boottime()

    def failed(self, error: KafkaError) -> None:
        """Takes an error of a connection: the first is what began it, unless one says that we are not let in."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.all_down = True
        elif self._why is None or error.code() in (KafkaError._SSL, KafkaError._AUTHENTICATION):
            self._why = error.str()

    def trouble(self, consumer: Consumer, topic: str) -> str | None:
        """None while the broker answers, else a text. It is asked when there was an error or a long silence."""
        silent = boottime() - self._last
        if self._why is None and not self.all_down and silent < SILENCE:
            return None
        try:
            consumer.list_topics(topic, timeout=ANSWER)
        except KafkaException:
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - silent))
            return f"no word from the broker since {since}: {self.why}"
        self.answered()
        return None


def _reached(consumer: Consumer, kafka: Kafka, topic: str, broker: _Heard) -> list[int]:
    """The partitions of the topic. Raises `DeliveryError`."""
    for wait in TRIES:
        try:
            metadata = consumer.list_topics(topic, timeout=wait).topics[topic]
        except KafkaException:  # says only that it failed; why, is told when polling
            consumer.poll(0)
            if broker.all_down and wait > TRIES[0]:
                break
        else:
            broker.answered()
            if metadata.error is not None:
                raise DeliveryError(f"topic {topic}: {metadata.error.str()}")
            return list(metadata.partitions)
    mend = "check the address, and that Kafka runs there"
    if broker.why == "Connection refused" and all(each.startswith(_HERE) for each in kafka.bootstrap_servers):
        mend = "start Kafka, or one for trying: ./scripts/kafka"
    raise DeliveryError(f"no broker can be reached at {', '.join(kafka.bootstrap_servers)}: {broker.why}; {mend}")


def _beginnings(consumer: Consumer, times: list[TopicPartition]) -> list[TopicPartition]:
    found = consumer.offsets_for_times(times, timeout=UNREACHABLE)
    for partition in found:
        if partition.error is not None or partition.offset < 0:
            # Nothing is that young, by its stamps; a device without a clock sends none, so the last ones are looked at.
            low, high = consumer.get_watermark_offsets(partition, timeout=UNREACHABLE)
            partition.offset = max(low, high - UNSTAMPED)
    return list(found)


class EmbeddedBroker:
    """librdkafka's mock cluster in this process: a broker in memory for demonstrations, never for production."""

    address: str

    def __enter__(self) -> "EmbeddedBroker":
        self._holder = Producer({"test.mock.num.brokers": 1, "logger": log, "log_level": 2})
        brokers = self._holder.list_topics(timeout=UNREACHABLE).brokers.values()
        self.address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._holder


def _properties(kafka: Kafka, defaults: dict[str, Any]) -> dict[str, Any]:
    return {**defaults, **kafka.properties, "bootstrap.servers": ",".join(kafka.bootstrap_servers)}


def _new(kind: Callable[[dict[str, Any]], T], properties: dict[str, Any], kafka: Kafka) -> T:
    """Raises `DeliveryError`, without what is secret in `kafka`."""
    try:
        return kind(properties)
    except KafkaException as error:
        raise DeliveryError(Mask(kafka).text(error.args[0].str())) from None


def _ask_for_topics(producer: Producer) -> None:
    with contextlib.suppress(KafkaException):  # told by the next refusal
        producer.list_topics(timeout=ANSWER)


def _end(holder: list[Producer]) -> None:
    """Drops what a producer holds. Its destructor waits for its threads: so the last reference, which must be the one
    in `holder`, dies in a thread of ours.
    """
    holder[0].purge(blocking=False)
    threading.Thread(target=_destroy, args=(holder,), daemon=True).start()


def _destroy(holder: list[Producer]) -> None:
    producer = holder.pop()
    with contextlib.suppress(KafkaException):  # of one that failed, and is dropped for that
        producer.flush(1.0)  # its reports free what they refer to
