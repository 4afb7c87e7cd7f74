"""The delivery against a real Apache Kafka: nothing is lost, whatever happens to the broker."""

import asyncio
import contextlib
import logging
import secrets
import time
import uuid

import pytest

from agent.config.model import Kafka
from agent.delivery.kafka import read
from tests.delivery.line import AGENT, EVENTS, LONG, RESULTS, ids, running, said


@pytest.fixture
def run():
    """Tells this test's records from those of others on the same topics."""
    return secrets.token_hex(8)


@pytest.fixture
def topic(kafka):
    """A topic of this test's own."""
    return kafka.make_topic(f"test-{uuid.uuid4()}")


def of_run(records, run):
    return [record for record in records if f"/{run}/" in record.headers["id"].decode()]


def by_id(records):
    """By id; a repeat must be the same byte for byte."""
    found = {}
    for record in records:
        assert found.setdefault(record.headers["id"].decode(), record.value) == record.value
    return found


async def test_a_record_as_it_arrives(kafka, run):
    """On the topics that scripts/kafka makes: key, headers and value as the contract says, in order, each once."""
    async with running(kafka.address, run) as line:
        expected = line.append(300)
        events = line.append(3, EVENTS)
        await line.drained()
    arrived = of_run(kafka.consume(RESULTS), run)
    assert ids(arrived) == expected
    assert ids(of_run(kafka.consume(EVENTS), run)) == events
    for record in arrived:
        assert record.key == AGENT.encode()
        assert record.headers == {"content-type": b"application/json", "id": record.headers["id"]}
        assert record.value == line.sent[record.headers["id"].decode()]


async def test_a_topic_that_is_made_later(kafka, run, impatient, caplog, written):
    """A topic that is not there is named in the log; events go on; once it is made, all of its records arrive."""
    caplog.set_level(logging.INFO)
    missing = f"test-{uuid.uuid4()}"
    async with running(kafka.address, run, results=missing) as line:
        expected = line.append(1_000)
        await said(caplog, f"topic {missing}: does not exist; create it, or correct kafka.topic and kafka.events_topic")
        event = line.append(1, EVENTS)
        while len(line.spool) > 1_000:
            await asyncio.sleep(0.01)
        assert ids(of_run(await asyncio.to_thread(kafka.consume, EVENTS), run)) == event
        expected += line.append(1_000)
        await asyncio.to_thread(kafka.make_topic, missing)
        await line.drained()
        await said(caplog, f"topic {missing}: takes records now")
    assert ids(kafka.consume(missing)) == expected
    assert written.getvalue().count("does not exist") == 1


async def test_an_oversize_record_goes_alone(kafka, run):
    """The broker refuses the whole batch for it: it alone is set aside and told as a gap, all neighbours arrive."""
    topic = kafka.make_topic(f"test-{uuid.uuid4()}", max_message_bytes="20000")
    async with running(kafka.address, run, results=topic, compression_type="none") as line:
        expected = line.append(30)
        line.append(size=30_000)
        expected += line.append(200)  # by themselves already more than the broker takes in one batch
        await line.drained()
        (gap,) = line.told
    assert (gap.topic, gap.first_seq, gap.last_seq, gap.count) == (topic, 31, 31, 1)
    assert gap.reason == "record_too_large"
    assert ids(kafka.consume(topic)) == expected
    assert len(of_run(kafka.consume(EVENTS), run)) == 1


async def test_a_refused_time_stamp(kafka, run, caplog):
    """Records whose stamps the broker refuses arrive without a stamp, and the log says what to do."""
    topic = kafka.make_topic(
        f"test-{uuid.uuid4()}", message_timestamp_type="CreateTime", message_timestamp_before_max_ms="1"
    )
    async with running(kafka.address, run, results=topic) as line:
        expected = line.append(20)
        await line.drained()
    assert ids(kafka.consume(topic)) == expected
    assert "Kafka refuses this device's time stamps, so records go without; set the clock" in caplog.text


async def test_a_broker_that_is_killed(kafka, run, topic):
    """kill -9 amid traffic, and a restart on the same data: all arrive, also at a reader, and a repeat is the same."""
    with contextlib.closing(read(Kafka((kafka.address,)), topic, since=600.0)) as reader:
        seen = {}

        def read_on(count):
            limit = time.monotonic() + LONG
            while len(seen) < count:
                assert time.monotonic() < limit, len(seen)
                if isinstance(reading := next(reader), tuple):
                    seen[reading[0]] = None

        async with running(kafka.address, run, results=topic) as line:
            expected = line.append(500)
            await asyncio.to_thread(read_on, 100)
            expected += line.append(500)
            await asyncio.sleep(0.06)
            kafka.kill()
            expected += line.append(2_000)
            await asyncio.to_thread(kafka.restart)
            expected += line.append(500)
            await line.drained()
            assert line.told == []
            await asyncio.to_thread(read_on, 3_500)
    arrived = by_id(kafka.consume(topic))
    assert list(arrived) == expected
    assert arrived == line.sent
    assert list(seen) == list(line.sent.values())


async def test_a_broker_that_hangs(kafka, run, topic, soon_lost, caplog):
    """With its connections open and nothing answered: said; and once it answers again, all arrive, each once."""
    async with running(kafka.address, run, results=topic, socket_timeout_ms="1000") as line:
        line.append(10)
        await line.drained()
        kafka.pause()
        try:
            line.append(500)
            await said(caplog, "Kafka acknowledges nothing")
            line.append(100)
            await asyncio.sleep(1)
        finally:
            kafka.resume()
        await line.drained()
    assert ids(kafka.consume(topic)) == list(line.sent)


async def test_a_long_backlog(kafka, run, topic):
    """It arrives whole and in order."""
    async with running(kafka.address, run, results=topic) as line:
        expected = line.append(20_000)
        await line.drained()
        assert line.told == []
    assert ids(kafka.consume(topic)) == expected
