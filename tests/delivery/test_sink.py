"""The Kafka sink against every answer that librdkafka's mock broker can be made to give."""

import asyncio
import logging
import threading
import time

import pytest
from confluent_kafka import KafkaError

from agent.config.kafka_properties import owned
from agent.config.model import Kafka, Secret
from agent.delivery import kafka
from agent.delivery.forwarder import Report
from agent.delivery.kafka import OWNED, DeliveryError, KafkaSink, refusal
from agent.device.clock import Clock
from agent.spool.record import Record
from tests.delivery.line import AGENT, EVENTS, LONG, RESULTS, ids, running, said
from tests.delivery.mock_cluster import INIT_PRODUCER_ID, PRODUCE, MockCluster
from tests.kafka import consume


@pytest.fixture
def cluster():
    with MockCluster() as cluster:
        yield cluster


async def test_a_record_as_it_arrives(cluster):
    """Key, headers and value are as the contract says, and all of a device's records are in one partition, in order."""
    async with running(cluster.address) as line:
        expected = line.append(50)
        await line.drained()
    arrived = consume(cluster.address, RESULTS, 50)
    assert ids(arrived) == expected
    for record in arrived:
        assert record.key == AGENT.encode()
        assert record.headers == {"content-type": b"application/json", "id": record.headers["id"]}
        assert record.value == line.sent[record.headers["id"].decode()]


@pytest.mark.parametrize(
    ("answers", "word"),
    [
        ([KafkaError.UNKNOWN, KafkaError.UNKNOWN], "Unknown broker error; it is tried again"),
        ([KafkaError.INVALID_TIMESTAMP], "refuses this device's time stamps, so records go without; set the clock"),
        ([KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER], "Kafka: the producer failed and is replaced"),
        ([KafkaError.NOT_ENOUGH_REPLICAS] * 3, None),
        ([KafkaError.UNKNOWN_TOPIC_OR_PART], None),
        ([KafkaError.MSG_SIZE_TOO_LARGE] * 4, None),
        ([KafkaError.INVALID_RECORD], None),
        ([KafkaError.TOPIC_AUTHORIZATION_FAILED], "may not be written to; grant this agent's user WRITE and DESCRIBE"),
    ],
    ids=lambda value: KafkaError(value[0]).name() if isinstance(value, list) else "",
)
async def test_a_refusal_loses_nothing(cluster, impatient, caplog, answers, word):
    """Whatever the broker answers for a while, all records arrive, each once, and what a person can mend is said."""
    async with running(cluster.address) as line:
        cluster.answer_with(PRODUCE, *answers)
        line.append(20)
        await line.drained()
        assert line.told == []
    assert sorted(ids(consume(cluster.address, RESULTS, 20))) == sorted(line.sent)
    if word is None:
        assert caplog.messages == []
    else:
        assert word in caplog.text


async def test_an_oversize_record_goes_alone(cluster, caplog):
    """One that is too large even for the producer is set aside alone and told; its neighbours arrive."""
    async with running(cluster.address, message_max_bytes="10000") as line:
        line.append(10)
        (large,) = line.append(size=20_000)
        line.append(10)
        await line.drained()
        (gap,) = line.told
    assert (gap.topic, gap.first_seq, gap.last_seq, gap.reason) == (RESULTS, 11, 11, "record_too_large")
    assert ids(consume(cluster.address, RESULTS, 20)) == [
        each for each in line.sent if each != large and "/e" not in each
    ]
    assert ids(consume(cluster.address, EVENTS, 1)) == [f"{AGENT}/5f0c2a9177d04e1b/0/e1"]
    assert f"record {large} of 20" in caplog.text


async def test_a_broker_that_goes_and_comes_back(cluster, soon_lost, caplog):
    """While it is away records wait, and its silence is said, with the reason; then all arrive in order, each once."""
    caplog.set_level(logging.INFO)
    async with running(cluster.address) as line:
        line.append(5)
        await line.drained()
        cluster.down()
        line.append(20)
        await said(caplog, "Kafka acknowledges nothing; measuring goes on, and what it yields waits on disk")
        await said(caplog, "Connection refused")
        state, _, why = line.forwarder.broker()
        assert (state, why.rpartition(": ")[2]) == ("lost", "Connection refused")
        line.append(20)
        cluster.up()
        await line.drained()
        assert line.forwarder.broker() == ("up", None, "")
        await said(caplog, "Kafka acknowledges again")
    assert ids(consume(cluster.address, RESULTS, 45)) == list(line.sent)
    assert "Connection refused" in caplog.text


async def test_a_name_that_does_not_resolve_is_said(caplog, written):
    """An agent whose broker has no address runs, keeps its records, and says so once, not for each try."""
    async with running("nowhere.invalid:9092", reconnect_backoff_ms="100", reconnect_backoff_max_ms="100") as line:
        line.append(5)
        await said(caplog, "Failed to resolve 'nowhere.invalid:9092'")
        await asyncio.sleep(1)
        assert len(line.spool) == 5
        assert "Failed to resolve 'nowhere.invalid:9092'" in line.forwarder.broker()[2]
        assert written.getvalue().count("Failed to resolve") == 1
        line.forwarder.replace(line.sink(), 0.05)
        assert line.forwarder.broker()[2] == ""


async def test_what_is_said_of_kafka_is_bounded_and_no_secret(caplog):
    """Whoever asks for its state sees neither what the configuration hides nor a line without end."""
    async with running("nowhere.invalid:9092", client_id=Secret("nowhere")) as line:
        await said(caplog, "Failed to resolve")
        told = line.forwarder.broker()[2]
    assert "Failed to resolve '***.invalid:9092'" in told
    name = ".".join(["a" * 60] * 4)
    async with running(f"{name}:9092") as line:
        caplog.clear()
        await said(caplog, "Failed to resolve")
        assert len(line.forwarder.broker()[2]) == kafka.TROUBLE + 1


async def test_a_producer_that_keeps_dying_is_replaced_in_measure(cluster, caplog):
    """A broker that kills each producer at once does not make the agent build them without end."""
    cluster.answer_with(INIT_PRODUCER_ID, *[KafkaError.CLUSTER_AUTHORIZATION_FAILED] * 100)
    begin = time.monotonic()
    async with running(cluster.address) as line:
        line.append(5)
        await said(caplog, "Kafka: the producer failed and is replaced: Failed to acquire idempotence PID")
        turns = 0
        end = time.monotonic() + 2
        while time.monotonic() < end:
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 50, "the loop stood still"
        assert "Failed to acquire idempotence PID" in line.forwarder.broker()[2]
        assert len(line.spool) == 5
    seconds = time.monotonic() - begin
    assert 1 <= caplog.text.count("FATAL [rdkafka#producer") <= 1 + seconds / kafka.REMAKE


async def test_a_refused_property_shows_no_secret(cluster):
    """A producer that cannot be made says why, without what came from a secret file."""
    kafka = Kafka((cluster.address,), properties={"compression.type": Secret("hunter-22")})
    with pytest.raises(DeliveryError, match=r'Invalid value "\*\*\*" for configuration property'):
        KafkaSink(kafka, AGENT, Clock("yes"))


async def test_a_producer_that_is_full(cluster, monkeypatch, caplog):
    """What it does not take waits in the spool, and all arrives in order."""
    monkeypatch.setitem(kafka.OWNED, "queue.buffering.max.messages", 10)
    async with running(cluster.address) as line:
        expected = line.append(100)
        await line.drained()
    assert ids(consume(cluster.address, RESULTS, 100)) == expected
    assert "Local: Queue full; it is tried again" in caplog.text


async def test_a_new_sink_loses_nothing(cluster):
    """A change of the Kafka configuration amid traffic: all arrive, and a repeat is the same byte for byte."""
    async with running(cluster.address) as line:
        cluster.answer_after(100)
        for _ in range(4):
            line.append(50)
            await asyncio.sleep(0.06)
            line.forwarder.replace(line.sink(), 0.05)
        await line.drained()
    arrived = consume(cluster.address, RESULTS)
    assert {record.headers["id"].decode(): record.value for record in arrived} == line.sent


async def test_ending_a_sink_does_not_hold_up_the_loop(cluster):
    """Closing a producer with much on its way returns at once; its threads end by themselves."""
    sink = KafkaSink(Kafka((cluster.address,)), AGENT, Clock("yes"))
    async with running(cluster.address) as line:
        cluster.down()
        line.append(2_000)
        await asyncio.sleep(0.5)
        before = time.perf_counter()
        line.forwarder.replace(sink, 0.05)
        assert time.perf_counter() - before < 0.5
    async with asyncio.timeout(30):
        while any(thread.name.endswith("(_destroy)") for thread in threading.enumerate()):
            await asyncio.sleep(0.05)


def test_properties_are_checked_without_a_broker():
    """What librdkafka will not have is said before anything runs, in its words."""
    assert refusal(Kafka(("127.0.0.1:1",))) is None
    assert refusal(Kafka(("127.0.0.1:1",), properties={"no.such": "x"})) == 'No such configuration property: "no.such"'
    with pytest.raises(DeliveryError, match=r"no\.such"):
        KafkaSink(Kafka(("127.0.0.1:1",), properties={"no.such": "x"}), AGENT, Clock("yes"))


@pytest.mark.parametrize("name", [*OWNED, "bootstrap.servers"])
def test_what_the_agent_sets_cannot_be_configured(name):
    """Each property that the sink sets for its promises is refused in a configuration."""
    assert owned(name)


def taken_back(cluster):
    """Whether what was sent while the broker was away is reported as unsent, and never arrives."""
    records = [Record(RESULTS, seq, f"a/b/0/{seq}", "", f'{{"seq":{seq}}}'.encode()) for seq in range(1, 11)]
    sink = KafkaSink(Kafka((cluster.address,)), AGENT, Clock("yes"))
    cluster.down()
    sink.send(records)
    sink.withdraw()
    reports = []
    limit = time.monotonic() + 2.0
    while not reports and time.monotonic() < limit:
        reports += sink.poll()
        time.sleep(0.01)
    cluster.up()
    sink.send(records[:1])
    limit = time.monotonic() + LONG
    while not any(report.fate == "arrived" for report in reports):
        assert time.monotonic() < limit
        reports += sink.poll()
        time.sleep(0.01)
    sink.close()
    arrived = [record.value for record in consume(cluster.address, RESULTS)]
    return reports[0] == Report(records, "unsent") and arrived == [records[0].value]


def test_what_was_not_sent_is_taken_back(cluster):
    """What waits in librdkafka when the broker is lost can be had back, with the certainty that nobody has seen it."""
    assert taken_back(cluster)


def test_without_the_purge(cluster, monkeypatch):
    """The test above is worth something: it fails when nothing is purged."""
    monkeypatch.setattr(KafkaSink, "withdraw", lambda self: None)
    assert not taken_back(cluster)
