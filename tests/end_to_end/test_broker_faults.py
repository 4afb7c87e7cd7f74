"""The real agent against a real Apache Kafka in trouble: killed, moving, short of copies, strict about size and users.

Nothing is lost, live records are back within 10 s of each trouble's end, and what Kafka will never take goes alone.
"""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from agent.device.clock import boottime
from tests.end_to_end.campaign import BACK, Campaign, noisy
from tests.end_to_end.running import command, wait_for
from tests.end_to_end.sites import Site, site
from tests.kafka import Broker


@pytest.fixture(scope="module")
def plain() -> Iterator[Site]:
    """A site for all devices."""
    with site() as plain:
        yield plain


@contextlib.contextmanager
def a_device(folder: Path, broker: Broker, plain: Site, **properties: str) -> Iterator[Campaign]:
    """A device with topics of its own, which have these properties."""
    with Campaign(folder, broker.address, plain) as device:
        broker.make_topic(device.topic, 2, **properties)
        broker.make_topic(device.events_topic, **properties)
        device.follow()
        yield device


@pytest.fixture
def device(tmp_path: Path, kafka: Broker, plain: Site) -> Iterator[Campaign]:
    """A device on the broker that all tests share."""
    with a_device(tmp_path, kafka, plain) as device:
        yield device


def test_a_broker_that_is_killed(device, kafka):
    """kill -9 of the broker amid traffic, twice: live records are back soon after its return, and the others too."""
    device.write()
    device.start()
    for _ in range(2):
        device.live_again(boottime())
        kafka.kill()
        time.sleep(1)
        kafka.restart()
        device.live_again(boottime(), after="kill -9 of the broker")
    device.settled()
    device.stop()
    account = device.account()
    assert (account.dropped, account.rejected, len(account.runs)) == (0, 0, 1)


@pytest.mark.long
def test_a_topic_that_was_deleted(device, kafka):
    """The other topic goes on; once the topic is made anew, its records come soon, and all that waited with them."""
    device.write()
    running = device.start()
    device.live_again(boottime())
    device.arrivals.poll(1)
    kafka.delete_topic(device.events_topic)
    device.write(more="# An edit, so that there is an event of it.")
    running.send(signal.SIGHUP)
    running.says(f"{device.events_topic}: does not exist")
    device.live_again(boottime(), after="the loss of the other topic")
    kafka.make_topic(device.events_topic)
    made, seen = boottime(), len(device.arrivals.by_topic[device.events_topic])
    while len(device.arrivals.by_topic[device.events_topic]) == seen:
        assert boottime() - made < BACK, running.log
        device.arrivals.poll(0.1)
    device.settled()
    device.stop()
    device.arrivals.poll(2)
    assert device.account(device.arrivals.by_topic).dropped == 0


def test_records_that_are_too_large(device, kafka):
    """A record over its topic's limit goes alone: it is named, and kept whole; its neighbours arrive."""
    labels = large_records(device, kafka, events_limit=12_000)
    account = device.account()
    assert account.rejected >= 3
    told = device.events("record_rejected")
    assert {(event["topic"], event["reason"]) for event in told} == {
        (device.topic, "record_too_large"),
        (device.events_topic, "record_too_large"),  # config_applied, with the same labels in it
    }
    kept = [json.loads(line) for line in spool_dump(device, "--rejected")]
    assert {event["seq"] for event in told if event["topic"] == device.topic} == {
        value["agent"]["seq"] for value in kept if value.get("target", {}).get("labels") == labels
    }
    assert "config_applied" in {value.get("event") for value in kept}


def test_records_that_are_too_large_to_be_told_of(device, kafka):
    """Where the events that tell of them do not fit either, gaps name them."""
    large_records(device, kafka, events_limit=3_000)
    account = device.account()
    assert account.dropped + account.rejected >= 6
    assert device.events("gap")


def large_records(device: Campaign, kafka: Broker, events_limit: int) -> dict[str, str]:
    """Runs the device with one target whose results do not fit, and then without it; that target's labels."""
    kafka.change_topic(device.topic, "max.message.bytes", "3000")
    kafka.change_topic(device.events_topic, "max.message.bytes", str(events_limit))
    labels = noisy(60)
    name = f"{device.id}.large"
    device.write(targets=f"  - {{id: {name}, url: '{device.url(name)}', labels: {json.dumps(labels)}}}")
    device.start()
    wait_for(lambda: len(device.site.served.get(name, ())) >= 3, "measurements")
    device.live_again(boottime())
    device.stop()
    device.write()
    device.start()
    device.live_again(boottime())
    device.settled()
    device.stop()
    return labels


def spool_dump(device: Campaign, *options: str) -> list[str]:
    """What `spool dump` prints of a device."""
    process = command("spool", "dump", *options, str(device.state / "spool"))
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.fixture(scope="module")
def cluster(kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Three nodes. `kafka` is asked for because it knows whether this machine can run one."""
    cluster = Broker(tmp_path_factory.mktemp("cluster"), 3)
    cluster.start()
    yield cluster
    cluster.close()


@pytest.mark.long
def test_a_leader_that_moves(cluster, plain, tmp_path):
    """The leader hangs and another takes over, that one is killed, and then copies are too few for a while."""
    with a_device(tmp_path, cluster, plain, min_insync_replicas="2") as device:
        device.write()
        device.start()
        device.live_again(boottime())
        hanging = cluster.leader(device.topic)
        cluster.pause(hanging)
        device.live_again(moved(cluster, device, hanging), after="a leader that hangs")
        cluster.resume(hanging)
        wait_for(lambda: len(cluster.in_sync(device.topic)) == 3, "three copies")
        device.live_again(boottime(), after="its return")
        killed = cluster.leader(device.topic)
        cluster.kill_node(killed)
        device.live_again(moved(cluster, device, killed), after="kill -9 of a leader")
        cluster.change_topic(device.topic, "min.insync.replicas", "3")
        time.sleep(6)
        assert device.arrivals.newest < boottime() - 4, "Kafka took records with too few copies"
        cluster.change_topic(device.topic, "min.insync.replicas", "2")
        device.live_again(boottime(), after="too few copies")
        device.settled()
        device.stop()
        account = device.account()
        assert (account.dropped, account.rejected, len(account.runs)) == (0, 0, 1)


def moved(cluster: Broker, device: Campaign, before: int) -> float:
    """Waits until all partitions have another leader; the boot time then."""
    places = [(device.topic, 0), (device.topic, 1), (device.events_topic, 0)]
    wait_for(lambda: not {cluster.leader(*place) for place in places} & {before, -1}, "another leader")
    return boottime()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a broker's certificate, the authority that made it, and another authority."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
    # Kafka reads a key in PKCS #8 only.
    (folder / "broker.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain)
    (folder / "right.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "other.pem").write_bytes(trustme.CA().cert_pem.bytes())
    return folder


@pytest.fixture(scope="module")
def secure(kafka: Broker, authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker with TLS and SCRAM-SHA-512."""
    certificate = str(authority / "broker.pem")
    secure = Broker(tmp_path_factory.mktemp("secure"), 1, "--tls", certificate, "--user", "pi:right password")
    secure.start()
    yield secure
    secure.close()


def test_tls_and_scram(secure, plain, authority, tmp_path):
    """Without the right authority or password nothing goes and nothing is lost; each edit of the YAML is enough."""

    def write(trusted: str, password: str) -> None:
        device.write(
            f"""\
  properties:
    security.protocol: SASL_SSL
    sasl.mechanism: SCRAM-SHA-512
    sasl.username: pi
    sasl.password: {password}
    ssl.ca.location: {authority / trusted}
"""
        )

    with a_device(tmp_path, secure, plain) as device:
        device.bootstrap = secure.secure
        write("other.pem", "right password")
        running = device.start()
        running.says("WARNING .*certificate verify failed")
        for reload in (1, 2):
            write("right.pem", "wrong password")
            running.send(signal.SIGHUP)
            running.says("configuration .* applied", 2 * reload)
            running.says("WARNING .*[Aa]uthentication", reload)
            assert reload > 1 or device.arrivals.newest == 0
            status = json.loads(command("status", "--config", str(device.config), "--json").stdout)
            assert "uthentication" in status["broker"]["error"]
            write("right.pem", "right password")
            running.send(signal.SIGHUP)
            running.says("configuration .* applied", 2 * reload + 1)
            device.live_again(boottime(), after="a wrong password")
        device.settled()
        assert "wrong password" not in running.log
        device.stop()
        account = device.account()
        assert (account.dropped, account.rejected, len(account.runs)) == (0, 0, 1)


def test_an_authority_that_is_edited(secure, plain, authority, tmp_path):
    """Saving the right authority over the wrong one is enough, though only Kafka's client reads that file."""
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes((authority / "other.pem").read_bytes())
    with a_device(tmp_path, secure, plain) as device:
        device.bootstrap = secure.secure
        device.write(
            f"""\
  properties:
    security.protocol: SASL_SSL
    sasl.mechanism: SCRAM-SHA-512
    sasl.username: pi
    sasl.password: right password
    ssl.ca.location: {trusted}
"""
        )
        running = device.start()
        running.says("WARNING .*certificate verify failed")
        trusted.write_bytes((authority / "right.pem").read_bytes())
        device.live_again(boottime(), after="a wrong authority")
        trusted.write_text("no certificate")
        running.says("ERROR .*kafka.properties.ssl.ca.location: is refused by librdkafka")
        device.live_again(boottime(), after="a spoiled authority")
        device.settled()
        device.stop()
        account = device.account()
        assert (account.dropped, account.rejected, len(account.runs)) == (0, 0, 1)
