"""Kafka, and the only file that knows it: the sink, the reader of `watch`, and a broker for trying things out.

The producer is called on the loop: `produce` and `poll(0)` do not block. librdkafka never gives a record up by
itself (`message.timeout.ms` 0); the queue owns retrying.
"""

import functools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from agent.config.model import Kafka
from agent.delivery.forwarder import Fate, Report
from agent.delivery.queue import Record
from agent.device.clock import Clock, boottime

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
    "socket.timeout.ms": 10_000,
    "socket.connection.setup.timeout.ms": 10_000,
    "socket.keepalive.enable": True,
    "topic.metadata.propagation.max.ms": 5_000,  # how long an unknown topic is waited for before it is told
}
SAY_AGAIN = 60.0  # seconds between two log lines of the same kind of trouble
UNREACHABLE = 10.0  # seconds after which a reader gives up
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
    KafkaError.INVALID_TIMESTAMP: "record_invalid",
}


T = TypeVar("T")


class DeliveryError(Exception):
    """Kafka cannot be used as it was asked: a property is wrong, a broker cannot be reached, a topic is not there."""


class KafkaSink:
    """Sends records keyed by agent id. Raises `DeliveryError` when librdkafka refuses a property.

    Nothing needs to be reachable: an agent starts and measures without a broker.
    """

    def __init__(self, kafka: Kafka, agent_id: str, clock: Clock) -> None:
        self._agent_id = agent_id.encode()
        self._clock = clock
        self._said: dict[object, float] = {}
        self._properties = _properties(kafka, DEFAULTS) | OWNED
        self._reports: deque[Report] = deque()
        self._outstanding: dict[tuple[str, int], Record] = {}
        self._producer = self._new_producer()

    def send(self, records: Sequence[Record]) -> None:
        """Hands records to librdkafka; what it does not take is reported at once."""
        # 0 is the wall clock now, -1 none: with a wrong one the broker refuses the batch, or its retention deletes it.
        timestamp = 0 if self._clock.state().synchronized else -1
        for record in records:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    self._agent_id,
                    headers=[("content-type", b"application/json"), ("id", record.id.encode())],
                    on_delivery=functools.partial(self._delivered, record),
                    timestamp=timestamp,
                )
                self._outstanding[record.topic, record.seq] = record
            except BufferError:
                self._reports.append(Report(record, "again", "the producer's queue is full"))
            except KafkaException as error:
                self._reports.append(_report(record, error.args[0]))

    def poll(self) -> list[Report]:
        """Delivery reports since the last call. A producer that librdkafka declared dead is replaced."""
        try:
            self._producer.poll(0)
        except KafkaException as error:
            self._say("fatal", logging.ERROR, f"the Kafka producer failed and is replaced: {error.args[0].str()}")
            _end(self._producer)
            self._producer = self._new_producer()
            self._reports.extend(Report(record, "again", "fatal") for record in self._outstanding.values())
            self._outstanding.clear()
        reports = list(self._reports)
        self._reports.clear()
        return reports

    def close(self) -> None:
        """Drops what is outstanding; librdkafka's threads end in the background, which can take a second."""
        self._outstanding.clear()
        _end(self._producer)

    def _new_producer(self) -> Producer:
        return _new(Producer, self._properties | {"error_cb": self._error, "logger": log})

    def _delivered(self, record: Record, error: KafkaError | None, message: Message) -> None:
        # A report of a producer that was replaced finds nothing outstanding.
        if self._outstanding.pop((record.topic, record.seq), None) is not None:
            self._reports.append(Report(record, "arrived") if error is None else _report(record, error))

    def _error(self, error: KafkaError) -> None:
        level = logging.ERROR if error.fatal() else logging.WARNING
        self._say(error.code(), level, f"Kafka: {error.str()}")

    def _say(self, kind: object, level: int, text: str) -> None:
        now = boottime()
        if now - self._said.get(kind, -SAY_AGAIN) >= SAY_AGAIN:
            self._said[kind] = now
            log.log(level, "%s", text)


def refusal(kafka: Kafka) -> str | None:
    """What librdkafka has against these properties; None when it takes them. Connects to nothing."""
    properties = _properties(kafka, DEFAULTS) | OWNED
    del properties["bootstrap.servers"]
    try:
        _end(_new(Producer, properties | {"logger": log}))
    except DeliveryError as error:
        return str(error)
    return None


def read(kafka: Kafka, topic: str, since: float) -> Iterator[bytes | None]:
    """The values on `topic`, from those of the last `since` seconds on, for ever; None each second without one.

    Joins no consumer group: it takes all partitions and commits nothing. Raises `DeliveryError` when no broker can be
    reached within 10 s or the topic is not there.
    """
    # librdkafka wants a group's name even from one who joins none.
    names = {"group.id": f"uptime-agent-watch-{uuid.uuid4()}", "enable.auto.commit": False}
    consumer = _new(Consumer, _properties(kafka, {"log_level": 2}) | names | {"logger": log})
    try:
        youngest = round((time.time() - since) * 1000)
        consumer.assign(_beginnings(consumer, topic, youngest))
        while True:
            message = consumer.poll(1.0)
            if message is None:
                yield None
            elif (error := message.error()) is None:
                _, stamp = message.timestamp()
                if stamp < 0 or stamp >= youngest:  # -1: not stamped, by a device whose clock was not right
                    yield message.value()
            elif error.code() != KafkaError._ALL_BROKERS_DOWN and not error.retriable():
                raise DeliveryError(f"topic {topic}: {error.str()}")
    except KafkaException as error:
        raise DeliveryError(f"topic {topic}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _beginnings(consumer: Consumer, topic: str, youngest: int) -> list[TopicPartition]:
    try:
        metadata = consumer.list_topics(topic, timeout=UNREACHABLE).topics[topic]
    except KafkaException as error:
        raise DeliveryError(f"no broker can be reached: {error.args[0].str()}; check kafka.bootstrap_servers") from None
    if metadata.error is not None:
        raise DeliveryError(f"topic {topic}: {metadata.error.str()}")
    found = consumer.offsets_for_times(
        [TopicPartition(topic, partition, youngest) for partition in metadata.partitions], timeout=UNREACHABLE
    )
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
        self._holder = _new(Producer, {"test.mock.num.brokers": 1, "logger": log, "log_level": 2})
        brokers = self._holder.list_topics(timeout=UNREACHABLE).brokers.values()
        self.address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._holder


def _properties(kafka: Kafka, defaults: dict[str, Any]) -> dict[str, Any]:
    return {**defaults, **kafka.properties, "bootstrap.servers": ",".join(kafka.bootstrap_servers)}


def _new(kind: Callable[[dict[str, Any]], T], properties: dict[str, Any]) -> T:
    try:
        return kind(properties)
    except KafkaException as error:
        raise DeliveryError(error.args[0].str()) from None


def _report(record: Record, error: KafkaError) -> Report:
    code = error.code()
    if (why := _TOPIC_REFUSED.get(code)) is not None:
        return Report(record, "topic_refused", why)
    if (why := _RECORD_REFUSED.get(code)) is not None:
        return Report(record, "record_refused", why)
    fate: Fate = "again"
    return Report(record, fate, error.str())


def _end(producer: Producer) -> None:
    """Drops what a producer holds; its destructor waits for its threads, so the last reference dies in one of ours."""
    producer.purge(in_queue=True, in_flight=True, blocking=False)
    threading.Thread(target=producer.flush, args=(0,), daemon=True).start()
