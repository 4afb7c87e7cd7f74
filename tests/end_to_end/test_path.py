"""The whole path as an operator runs it: YAML, the daemon, real sites, a real Apache Kafka, what is read back."""

import json
import re
import signal
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme

from agent.record import event_schema, result_schema
from tests.end_to_end.running import agent, command, first_line, wait_for
from tests.end_to_end.sites import closed_port, silence, site
from tests.kafka import Arrived, Broker, consume

RESULT = jsonschema.Draft202012Validator(result_schema())
EVENT = jsonschema.Draft202012Validator(event_schema())


class Device:
    """A device's folder: its configuration, its state, and topics of its own on the broker."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self.config = folder / "config.yaml"
        unique = uuid.uuid4().hex[:8]
        self.id = f"device-{unique}"
        self.topic, self.events_topic = f"results-{unique}", f"events-{unique}"

    def write(self, targets: str) -> None:
        self.config.write_text(
            f"""
agent: {{id: {self.id}}}
location: {{id: here, country: NO, city: Tromsø}}
state_directory: {self.folder / "state"}
kafka:
  bootstrap_servers: {self.address}
  topic: {self.topic}
  events_topic: {self.events_topic}
defaults: {{interval: 1s}}
targets:
{targets}
"""
        )

    def results(self) -> list[dict[str, Any]]:
        """All results that arrived, checked: who sent them, by the schema, and none twice with another value."""
        return [_checked(each, RESULT, self.id) for each in consume(self.address, self.topic)]

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        events = [_checked(each, EVENT, self.id) for each in consume(self.address, self.events_topic)]
        return [event for event in events if kind in ("", event["event"])]


def _checked(arrived: Arrived, schema: jsonschema.Draft202012Validator, agent_id: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(arrived.value or b"")
    schema.validate(value)
    assert arrived.key == agent_id.encode()
    assert arrived.headers == {"content-type": b"application/json", "id": value["id"].encode()}
    assert value["agent"]["id"] == agent_id
    return value


def assert_whole(records: list[dict[str, Any]]) -> None:
    """Within each run: ids unique, `seq` counts from 1 without a hole, in the order of arrival."""
    runs = defaultdict(list)
    for record in records:
        runs[record["agent"]["run_id"]].append(record["agent"]["seq"])
    for seqs in runs.values():
        assert seqs == list(range(1, len(seqs) + 1))
    assert len({record["id"] for record in records}) == len(records)


@pytest.fixture
def device(tmp_path: Path, kafka: Broker) -> Device:
    device = Device(tmp_path, kafka.address)
    kafka.make_topic(device.topic, 4)
    kafka.make_topic(device.events_topic)
    return device


def test_the_whole_path(device, tmp_path):
    """Every kind of site gets its verdict; all records are valid, without holes, and agree with the sites' own log."""
    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    with site() as plain, site(authority.issue_cert("127.0.0.1")) as secure, silence() as silent:
        base = f"http://127.0.0.1:{plain.port}"
        device.write(
            f"""
  - {{id: good, url: '{base}/good', labels: {{team: web}}}}
  - {{id: secure, url: 'https://127.0.0.1:{secure.port}/', tls: {{ca: ca.pem}}}}
  - {{id: untrusted, url: 'https://127.0.0.1:{secure.port}/'}}
  - {{id: moved, url: '{base}/to/{base}/there'}}
  - {{id: broken, url: '{base}/500'}}
  - {{id: expected, url: '{base}/404', expect: {{status: 404}}}}
  - {{id: slow, url: '{base}/slow', timeout: 200ms}}
  - {{id: silent, url: 'http://127.0.0.1:{silent}/', timeout: 300ms}}
  - {{id: refused, url: 'http://127.0.0.1:{closed_port()}/'}}
  - {{id: off, url: '{base}/off', enabled: false}}
"""
        )
        with agent(device.config) as running:
            wait_for(lambda: device.events("heartbeat"), "a heartbeat")
            assert running.end() == 0
    results, events = device.results(), device.events()
    assert_whole(results)
    assert_whole(events)
    last = {record["target"]["id"]: record for record in results if "missed" not in record}
    verdicts = {name: (record["status"], record["error"] and record["error"]["code"]) for name, record in last.items()}
    assert verdicts == {
        "good": ("up", None),
        "secure": ("up", None),
        "untrusted": ("down", "tls_untrusted"),
        "moved": ("up", None),
        "broken": ("down", "status_mismatch"),
        "expected": ("up", None),
        "slow": ("down", "http_timeout_headers"),
        "silent": ("down", "http_timeout_headers"),
        "refused": ("down", "connect_refused"),
    }
    assert last["good"]["location"] == {"id": "here", "country": "NO", "city": "Tromsø"}
    assert last["good"]["target"]["labels"] == {"team": "web"}
    assert last["moved"]["http"]["hops"][0]["status_code"] == 302
    assert last["secure"]["tls"]["verified"] is True
    assert last["untrusted"]["tls"]["sha256"] == last["secure"]["tls"]["sha256"]
    measured = [record for record in results if record["target"]["id"] == "good" and record["started_at"]]
    # One may have been asked and cut off by the stop; then it is told as not measured.
    assert plain.paths().count("/good") - len(measured) in (0, 1)
    assert "/off" not in plain.paths()
    assert [event["event"] for event in events[:2]] == ["started", "config_applied"]
    assert events[0]["previous"] is None
    assert {each["id"] for each in events[1]["targets"]} == set(verdicts)
    assert events[-1]["event"] == "stopping"
    last_seqs = {each["topic"]: each["seq"] for each in events[-1]["last_seqs"]}
    assert last_seqs[device.topic] == len(results)
    assert device.events("heartbeat")[0]["targets"] == 9


def test_a_run_knows_the_one_before(device):
    """After a stop in order the next run tells how far it had come; after kill -9 at least which run it was."""
    device.write(f"  - http://127.0.0.1:{closed_port()}/")
    with agent(device.config) as running:
        running.says("applied")
        assert running.end() == 0
    with agent(device.config) as running:
        running.says("applied")
        wait_for(lambda: len(device.events("started")) == 2, "the second start")
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
    with agent(device.config) as running:
        running.says("applied")
        assert running.end() == 0
    first, second, third = device.events("started")
    assert [each["agent"]["run"] for each in (first, second, third)] == [1, 2, 3]
    before = second["previous"]
    assert (before["run"], before["run_id"]) == (1, first["agent"]["run_id"])
    results = [each for each in device.results() if each["agent"]["run_id"] == before["run_id"]]
    assert {each["topic"]: each["seq"] for each in before["last_seqs"]}.get(device.topic, 0) == len(results)
    assert third["previous"]["run_id"] == second["agent"]["run_id"]
    assert third["previous"]["last_seqs"] == []


def test_reload(device):
    """SIGHUP takes in what changed and leaves the rhythm of the rest; a bad edit changes nothing and is told."""
    with site() as plain:
        base = f"http://127.0.0.1:{plain.port}"
        stays = f"  - {{id: stays, url: '{base}/stays'}}\n"
        device.write(stays + f"  - {{id: leaves, url: '{base}/leaves'}}")
        with agent(device.config) as running:
            wait_for(lambda: plain.paths().count("/stays") >= 2 and "/leaves" in plain.paths(), "both measured")
            device.write(stays + f"  - {{id: comes, url: '{base}/comes'}}")
            running.send(signal.SIGHUP)
            running.says("applied: 2 targets", 2)
            left = plain.paths().count("/leaves")
            wait_for(lambda: plain.paths().count("/comes") >= 2, "the new target")
            device.write(f"  - {{id: bad, url: '{base}/bad', interval: soon}}")
            running.send(signal.SIGHUP)
            running.says("stays in force")
            seen = plain.paths().count("/comes")
            wait_for(lambda: plain.paths().count("/comes") >= seen + 2, "the targets of before")
            assert plain.paths().count("/leaves") == left
            assert "/bad" not in plain.paths()
            told = command("validate", str(device.config)).stderr.splitlines()
            assert running.end() == 0
    (rejected,) = device.events("config_rejected")
    assert rejected["problems"] == told
    assert '"soon" is not a duration' in told[0]
    assert [len(event["targets"]) for event in device.events("config_applied")] == [2, 2]
    results = device.results()
    assert_whole(results)
    due = [float(each["scheduled_at"][-10:-1]) % 1 for each in results if each["target"]["id"] == "stays"]
    assert all(abs(each - due[0]) < 0.005 for each in due), "the fraction of a second at which it is due never changed"


def test_no_broker_at_the_start(device, kafka):
    """Without a broker it starts and measures; when the broker comes, all of it arrives."""
    kafka.kill()
    with site() as plain:
        device.write(f"  - {{id: good, url: 'http://127.0.0.1:{plain.port}/good'}}")
        with agent(device.config) as running:
            wait_for(lambda: plain.paths().count("/good") >= 3, "measurements")
            kafka.restart()
            wait_for(lambda: len(device.results()) >= 4, "results")
            assert running.end() == 0
    results = device.results()
    assert_whole(results)
    assert_whole(device.events())
    assert len(plain.paths()) - len(results) in (0, 1)


def test_a_broker_that_does_not_resolve(tmp_path):
    """Said once as a warning; it measures on, and a stop ends in time with status 0."""
    device = Device(tmp_path, "no-such-broker.invalid:9092")
    with site() as plain:
        device.write(f"  - {{id: good, url: 'http://127.0.0.1:{plain.port}/good'}}")
        with agent(device.config) as running:
            running.says("WARNING .*no-such-broker.invalid")
            wait_for(lambda: plain.paths().count("/good") >= 2, "measurements")
            begun = time.monotonic()
            assert running.end() == 0
            assert time.monotonic() - begun < 10
            assert "did not reach Kafka; they wait on disk" in running.log


def test_a_second_agent(device):
    """Two agents on one state directory, or on one spool: the second says so and ends with status 1."""
    device.write("  []")
    state, text = device.folder / "state", device.config.read_text()
    own_state = device.folder / "own-state.yaml"
    own_state.write_text(text.replace(f"{state}", f"{state}-2") + f"spool: {{directory: {state / 'spool'}}}\n")
    with agent(device.config) as first:
        first.says("configuration .* applied")
        for config, what in ((device.config, state), (own_state, state / "spool")):
            second = command("run", "--config", str(config))
            assert second.returncode == 1
            assert f"{what}" in second.stderr
            assert "another uptime-agent" in second.stderr
        assert first.end() == 0


def test_a_topic_that_is_not_there(device, kafka):
    """It is said by name; once it is made, everything arrives."""
    device.topic += "-later"
    with site() as plain:
        device.write(f"  - {{id: good, url: 'http://127.0.0.1:{plain.port}/good'}}")
        with agent(device.config) as running:
            running.says(f"ERROR .*{device.topic}: does not exist")
            kafka.make_topic(device.topic, 4)
            wait_for(lambda: len(device.results()) >= 3, "results")
            assert running.end() == 0
    results = device.results()
    assert_whole(results)
    assert len(plain.paths()) - len(results) in (0, 1)


def test_secrets_stay_here(device, tmp_path):
    """What is secret reaches the site it is meant for, and neither the log nor Kafka, not even when it comes back."""
    secrets = {
        "token": "s3cr3t-t0ken",
        "password": "s3cr3t-passw0rd",
        "query": "s3cr3t-query",
        "header": "s3cr3t-h3ader",
    }
    (tmp_path / "token").write_text(secrets["token"] + "\n")
    with site() as plain:
        base = f"127.0.0.1:{plain.port}"
        device.write(
            f"""
  - {{id: a, url: 'http://user:{secrets["password"]}@{base}/a?api_key={secrets["query"]}'}}
  - {{id: b, url: 'http://{base}/echo', headers: {{X-Own: {{file: token}}}}}}
  - {{id: c, url: 'http://{base}/c', headers: {{X-Own: {{env: FROM_ENV}}}}}}
"""
        )
        with agent(device.config, {"FROM_ENV": secrets["header"]}) as running:
            wait_for(lambda: len(device.results()) >= 6, "results")
            device.config.write_text(device.config.read_text().replace("127.0.0.1", "127 0.0.1"))
            running.send(signal.SIGHUP)
            running.says("stays in force")
            assert running.end() == 0
            log = running.log
        asked = json.dumps(plain.asked)
    assert f"/echoed?x={secrets['token']}" in asked
    assert all(secrets[name] in asked for name in ("token", "query", "header"))
    everything = log + "".join(
        each.value.decode() for topic in (device.topic, device.events_topic) for each in consume(device.address, topic)
    )
    assert [name for name, secret in secrets.items() if secret in everything] == []


def test_watch(device):
    """`watch` reads the newest results back: the very records as lines, and lines for people."""
    with site() as plain:
        device.write(f"  - {{id: good, url: 'http://127.0.0.1:{plain.port}/good'}}")
        with agent(device.config):
            wait_for(lambda: len(device.results()) >= 2, "results")
    first = device.results()[0]
    assert json.loads(first_line("watch", "--config", str(device.config), "--json")) == first
    by_hand = ("watch", "--bootstrap-servers", device.address, "--topic", device.topic)
    assert re.search(r"good +up ", first_line(*by_hand))
