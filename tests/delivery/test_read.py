"""What `watch` reads from a topic, and the embedded broker that everybody can use while it lives."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from confluent_kafka import KafkaError, Producer

from agent.config.model import Kafka
from agent.delivery.kafka import DeliveryError, EmbeddedBroker, read
from tests.delivery.mock_cluster import FETCH, FIND_COORDINATOR, MockCluster
from tests.end_to_end.running import ROOT, command
from tests.kafka import consume

TOPIC = "uptime.results"
LONG = 30.0


@pytest.fixture
def cluster():
    with MockCluster() as cluster:
        yield cluster


def threads():
    """All of this process, librdkafka's too."""
    return set(os.listdir("/proc/self/task"))


def produce(address, *values, topic=TOPIC, timestamp=0):
    producer = Producer({"bootstrap.servers": address, "log_level": 2})
    for value in values:
        producer.produce(topic, value, b"key", timestamp=timestamp)
    assert producer.flush(LONG) == 0


def first(values, count):
    """The first `count` values."""
    limit = time.monotonic() + LONG
    found = []
    while len(found) < count:
        assert time.monotonic() < limit, found
        reading = next(values)
        if isinstance(reading, tuple):
            found.append(reading[0])
    return found


def test_what_is_there_and_what_comes(cluster):
    """All that is young enough is read, then what comes, and None while nothing does."""
    produce(cluster.address, b"1", b"2")
    with contextlib.closing(read(Kafka((cluster.address,)), TOPIC, since=600.0)) as values:
        assert first(values, 2) == [b"1", b"2"]
        assert next(values) is None
        produce(cluster.address, b"3")
        assert first(values, 1) == [b"3"]


def test_old_values_are_left_out(cluster):
    """A value that was stamped before the time asked for is not shown; one without a stamp is."""
    hour_ago = round((time.time() - 3_600) * 1000)
    produce(cluster.address, b"old", timestamp=hour_ago)
    produce(cluster.address, b"new")
    produce(cluster.address, b"older", timestamp=hour_ago)
    produce(cluster.address, b"without", timestamp=-1)
    with contextlib.closing(read(Kafka((cluster.address,)), TOPIC, since=600.0)) as values:
        assert first(values, 2) == [b"new", b"without"]


def test_a_broker_that_goes_and_comes_back(cluster):
    """A reader waits for its broker, and goes on with what comes afterwards."""
    produce(cluster.address, b"1")
    limit = time.monotonic() + LONG
    properties = {"reconnect.backoff.max.ms": "500"}
    with contextlib.closing(read(Kafka((cluster.address,), properties=properties), TOPIC, since=600.0)) as values:
        assert first(values, 1) == [b"1"]
        cluster.down()
        while (told := next(values)) is None:
            assert time.monotonic() < limit
        assert re.fullmatch(r"no word from the broker since \d\d:\d\d:\d\d: \S.*", told)
        assert cluster.address not in told
        cluster.up()
        while next(values) is not None:  # the broker answers again, and nothing came
            assert time.monotonic() < limit
        produce(cluster.address, b"2")
        assert first(values, 1) == [b"2"]


def test_a_broker_that_falls_silent(monkeypatch):
    """Its connections stay and nothing answers: that, too, is told, and the end of it."""
    monkeypatch.setattr("agent.delivery.kafka.SILENCE", 1.0)
    with embedded() as (address, process):
        produce(address, b"1")
        with contextlib.closing(read(Kafka((address,)), TOPIC, since=600.0)) as values:
            assert first(values, 1) == [b"1"]
            limit = time.monotonic() + LONG
            process.send_signal(signal.SIGSTOP)
            while (reading := next(values)) is None:
                assert time.monotonic() < limit
            assert re.fullmatch(r"no word from the broker since \d\d:\d\d:\d\d: no answer", reading)
            process.send_signal(signal.SIGCONT)
            while next(values) is not None:
                assert time.monotonic() < limit


def test_when_a_value_came(cluster):
    """What comes while it is read came now; when what was there before came, an ordinary topic does not tell."""
    produce(cluster.address, b"1")
    with contextlib.closing(read(Kafka((cluster.address,)), TOPIC, since=600.0)) as values:
        assert next(reading for reading in values if reading is not None) == (b"1", None)
        assert next(values) is None
        before = time.time()
        produce(cluster.address, b"2", timestamp=-1)
        value, came = next(reading for reading in values if reading is not None)
        assert value == b"2"
        assert before <= came <= time.time()


def test_no_group_is_needed(cluster):
    """Who may read the topic may watch, without a right to any consumer group."""
    produce(cluster.address, b"1")
    cluster.answer_with(FIND_COORDINATOR, *[KafkaError.GROUP_AUTHORIZATION_FAILED] * 50)
    with contextlib.closing(read(Kafka((cluster.address,)), TOPIC, since=600.0)) as values:
        assert first(values, 1) == [b"1"]
        assert next(values) is None


MEND = "check the address, and that Kafka runs there"


@pytest.mark.parametrize(
    ("server", "properties", "why"),
    [
        ("localhost:1", {}, r"Connection refused; start Kafka, or one for trying: \./scripts/kafka"),
        ("no-such-name.invalid:9092", {}, rf"Failed to resolve 'no-such-name\.invalid:9092': .+; {MEND}"),
        (None, {"security.protocol": "SSL"}, f"SSL handshake failed: .+; {MEND}"),
        (None, {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}, f".* SASL .*; {MEND}"),
    ],
    ids=["refused", "no name", "no TLS", "no SASL"],
)
def test_an_unreachable_broker_is_an_error(cluster, server, properties, why):
    """It is said soon: which address, the cause in librdkafka's own words, and what to look at."""
    server = server or cluster.address
    user = {"sasl.username": "me", "sasl.password": "dont-show"} if "sasl.mechanism" in properties else {}
    begun = time.monotonic()
    with pytest.raises(DeliveryError) as caught:
        next(read(Kafka((server,), properties=properties | user), TOPIC, since=600.0))
    assert re.fullmatch(f"no broker can be reached at {re.escape(server)}: {why}", str(caught.value))
    assert time.monotonic() - begun < 8
    assert "state" not in str(caught.value)


def test_a_broker_that_never_answers_is_an_error(monkeypatch):
    """A port that takes connections and says nothing is given up, too."""
    monkeypatch.setattr("agent.delivery.kafka.TRIES", (0.2, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeliveryError, match=f"no broker can be reached at {address}: no answer; {MEND}"):
            next(read(Kafka((address,)), TOPIC, since=600.0))


def test_a_topic_that_may_not_be_read_is_an_error(cluster):
    """It is said with the topic's name."""
    cluster.refuse_topic("secret", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(DeliveryError, match=r"topic secret: .*[Aa]uthorization failed"):
        next(read(Kafka((cluster.address,)), "secret", since=600.0))


def test_a_right_that_is_taken_away_is_an_error(cluster):
    """Who may not read the topic any more is told so, instead of seeing nothing for ever."""
    produce(cluster.address, b"1")
    with contextlib.closing(read(Kafka((cluster.address,)), TOPIC, since=600.0)) as values:
        assert first(values, 1) == [b"1"]
        cluster.answer_with(FETCH, *[KafkaError.TOPIC_AUTHORIZATION_FAILED] * 50)
        with pytest.raises(DeliveryError, match=r"topic uptime\.results: .*[Aa]uthorization failed"):
            first(values, 1)


RUN, OTHER = "5f0c2a9177d04e1b", "00000000000000aa"


def of_run(run, number):
    return b'{"agent":{"run_id":"%s","seq":%d}}' % (run.encode(), number)


def test_watch_in_a_script(cluster):
    """`watch` with --count ends well when so many came; with --run records of other runs are none of them."""
    produce(cluster.address, *(of_run(run, number) for number in range(9) for run in (OTHER, RUN)), b"no record")
    done = command(
        *("watch", "--bootstrap-servers", cluster.address, "--json", "--since", "1m", "--run", RUN, "--count", "2")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.encode().splitlines() == [of_run(RUN, 0), of_run(RUN, 1)]


@pytest.mark.parametrize(("arguments", "status"), [((), 0), (("--count", "2"), 130)], ids=["", "before enough came"])
def test_watch_that_is_ended(cluster, arguments, status):
    """To end it is no error, unless what was waited for had not come."""
    produce(cluster.address, of_run(RUN, 1))
    ask = [sys.executable, "-m", "agent", "watch", "--bootstrap-servers", cluster.address, "--json", *arguments]
    with subprocess.Popen(ask, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == of_run(RUN, 1) + b"\n"
        process.send_signal(signal.SIGTERM)
        assert (*process.communicate(timeout=LONG), process.returncode) == (b"", b"", status)


EMBEDDED = """
import sys
from agent.delivery.kafka import EmbeddedBroker
with EmbeddedBroker() as broker:
    print(broker.address, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def embedded():
    """The embedded broker in a process of its own: its address, and the process."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", EMBEDDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process.stdout.readline().strip(), process
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        assert process.wait(LONG) == 0


def test_other_processes_use_the_embedded_broker():
    """They produce, consume, and read from a moment on, as with any broker, and its process ends in order."""
    with embedded() as (address, _):
        assert address.startswith("127.0.0.1:")
        produce(address, *[b"%d" % number for number in range(100)])
        assert {record.value for record in consume(address, TOPIC, 100)} == {b"%d" % number for number in range(100)}
        with contextlib.closing(read(Kafka((address,)), TOPIC, since=600.0)) as values:
            assert len(first(values, 100)) == 100


def test_the_embedded_broker_leaves_nothing_behind():
    """Its threads end with it."""
    before = threads()
    with EmbeddedBroker() as broker:
        produce(broker.address, b"1")
        assert threads() - before
    assert not threads() - before
