"""What is written is text, and the type of its key says what it means; what is left out has its default."""

import os
import socket

import pytest

from agent.config import ConfigError, duration, of_url
from agent.config.forms import size, written
from agent.config.model import Clock, Spool, Status, Uplink
from agent.probers.tls import context_of

EVERYTHING = """\
agent: {id: ist-1-pi}
location: {id: ist-1, country: TR, city: Istanbul, latitude: 41.01, longitude: 28.98, labels: {provider: example-net}}
state_directory: /var/lib/elsewhere
kafka:
  bootstrap_servers: [broker1:9092, broker2]
  topic: results
  events_topic: events
  tick: 100ms
  properties: {security.protocol: SASL_SSL, sasl.username: ist-1-pi, socket.keepalive.enable: true}
spool: {directory: /var/spool/elsewhere, durability: strict, max_size: 2GiB, min_free: 0}
status: {listen: off}
clock: {synchronized: yes}
uplink: {references: [https://reference.example/]}
workers: 2
defaults: {interval: 1m, timeout: 20s}
include: []
targets:
  - id: everything
    url: https://api.shop.example/health
    enabled: no
    labels: {team: web}
    interval: 10s
    timeout: 3s
    attempts: 3
    ip: 4
    connect_to: 203.0.113.7
    source: eth1
    resolver: 192.0.2.53
    tls: {verify: off, server_name: other.example, min_version: 1.3}
    method: POST
    headers: {Accept: application/json}
    body: ping
    basic_auth: {username: me, password: hidden}
    redirects: 0
    body_limit: 1MiB
    expect: {status: [200-299, 301]}
"""


def test_every_key(load_text):
    """Every key that the documentation names is accepted, and means what it says."""
    config = load_text(EVERYTHING)
    assert config.agent.id == "ist-1-pi"
    place = config.location
    assert (place.id, place.country, place.city) == ("ist-1", "TR", "Istanbul")
    assert (place.latitude, place.longitude, place.labels) == (41.01, 28.98, {"provider": "example-net"})
    assert config.state_directory == "/var/lib/elsewhere"
    assert config.kafka.bootstrap_servers == ("broker1:9092", "broker2:9092")
    assert (config.kafka.topic, config.kafka.events_topic, config.kafka.tick) == ("results", "events", 0.1)
    assert config.kafka.properties["socket.keepalive.enable"] == "true"
    assert config.spool == Spool("/var/spool/elsewhere", "strict", 2 << 30, 0)
    assert config.status == Status("off")
    assert config.clock == Clock("yes")
    assert config.uplink == Uplink(("https://reference.example/",))
    assert config.workers == 2
    (target,) = config.targets
    assert (target.id, target.url, target.shown_url) == ("everything", *["https://api.shop.example/health"] * 2)
    assert (target.enabled, target.labels, target.interval, target.timeout) == (False, {"team": "web"}, 10.0, 3.0)
    assert (target.attempts, target.ip, target.connect_to) == (3, "4", "203.0.113.7")
    assert (target.source, target.resolver) == ("eth1", "192.0.2.53:53")
    assert (target.tls.verify, target.tls.server_name, target.tls.min_version) == (False, "other.example", "1.3")
    assert (target.method, target.headers, target.body) == ("POST", {"Accept": "application/json"}, "ping")
    assert (target.basic_auth.username, target.basic_auth.password) == ("me", "hidden")
    assert (target.redirects, target.body_limit, target.expect.status) == (0, 1 << 20, ((200, 299), (301, 301)))


def test_defaults(load_text):
    """What is left out is as the documentation says."""
    config = load_text("targets: [https://a.example/]\n")
    assert (config.kafka.topic, config.kafka.events_topic) == ("uptime.results", "uptime.events")
    assert config.kafka.tick == 0.25
    assert config.spool == Spool(None, "adaptive", 1 << 30, 200 << 20)
    assert (config.status.listen, config.clock.synchronized, config.workers) == ("127.0.0.1:9469", "auto", 1)
    (target,) = config.targets
    assert (target.id, target.enabled, target.interval, target.timeout) == ("https://a.example/", True, 30.0, 10.0)
    assert (target.attempts, target.ip, target.connect_to) == (1, "auto", None)
    assert (target.source, target.resolver, target.method) == (None, None, "GET")
    assert (target.tls.verify, target.tls.min_version, target.tls.ca) == (True, "1.2", None)
    assert (target.redirects, target.body_limit, target.expect.status) == (10, 10 << 20, ((200, 399),))


def test_references_in_one_text(load_text, problems_of):
    """Commas part them, up to 8."""
    written = ",".join(f"http://{each}.example/" for each in range(8))
    text = "uplink: {references: '%s'}\ntargets: [https://a.example/]\n"
    assert len(load_text(text % written).uplink.references) == 8
    (problem,) = problems_of(text % f"{written}, http://8.example/")
    assert problem.endswith("uplink.references: has 9 items; write at most 8")


def test_null_is_not_written(load_text):
    """A key without a value is as if it were not there."""
    config = load_text(
        "location: {id: here, country: ~, city: null, labels: }\nagent: {id: me}\n"
        "kafka: {bootstrap_servers: b, tick: }\nspool: ~\nstatus:\nclock: NULL\ndefaults:\ninclude:\nworkers: ~\n"
        "targets: [{url: http://a/, id: , headers: ~}]\n"
    )
    assert (config.location.country, config.location.city, config.location.labels) == (None, None, {})
    assert (config.kafka.tick, config.spool, config.workers) == (0.25, Spool(), 1)
    assert config.targets[0].id == "http://a/"


@pytest.mark.parametrize("text", ["NO", "'NO'", "!!str NO"])
def test_norway(text, load_text):
    """Norway is a country, quoted or not."""
    assert (
        load_text(f"location: {{id: no, country: {text}}}\nkafka: {{bootstrap_servers: b}}\n").location.country == "NO"
    )


@pytest.mark.parametrize(
    "text", ["yes", "Off", "012", "1.2", "1.10", "1e3", "0x1f", "2026-11-24", "12:30:00", "null", "~"]
)
def test_labels_are_text(text, target):
    """A label is the very text that was written, whatever YAML may take it for."""
    assert target(f"{{url: http://a/, labels: {{{text}: {text}}}}}").labels == {text: text}


@pytest.mark.parametrize(("text", "number"), [("012", 12), ("'7'", 7), ("0", 0), ('"08"', 8)])
def test_numbers_are_decimal(text, number, target):
    """A leading zero makes no octal number, and quotes make no difference."""
    assert target(f"{{url: http://a/, redirects: {text}}}").redirects == number


@pytest.mark.parametrize("text", ["1.2", "'1.2'", "!!float 1.2"])
def test_versions_are_text(text, target):
    """A version is no decimal number."""
    assert target(f"{{url: http://a/, tls: {{min_version: {text}}}}}").tls.min_version == "1.2"


@pytest.mark.parametrize("text", ["1_000", "0x10", "1e2", "ten", "1.0", "", "²"])
def test_no_numbers(text, problems_of):
    """Other ways to write a number are refused rather than guessed."""
    (line,) = problems_of(f"targets: [{{url: http://a/, redirects: '{text}'}}]\n")
    assert line.endswith(f'targets[0].redirects: "{text}" is not a whole number; write digits')


@pytest.mark.parametrize("text", ["off", "Off", "no", "false", "FALSE", "'off'"])
def test_off(text, target, load_text):
    """Off is off, for a switch and for the address of the status page."""
    assert target(f"{{url: http://a/, enabled: {text}}}").enabled is False
    assert load_text(f"status: {{listen: {text}}}\n").status.listen == "off"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("5m", 300), ("1h", 3_600), ("7d", 604_800), ("10", 10), ("0.25", 0.25)],
)  # fmt: skip
def test_durations(text, seconds):
    """A duration is a number and a unit, or a number of seconds."""
    assert duration(text) == seconds
    assert duration(written(duration(text), "duration")) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "10 s", "10S", "-1s", "1e3", "1m30s", ".5s", "5.", "١s", "9" * 30, "10s\n", "inf"]
)
def test_no_durations(text):
    """Anything else is none."""
    with pytest.raises(ValueError, match="is not a duration; write it as 500ms, 10s, 5m, 1h, or a number of seconds"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("512KiB", 512 << 10), ("200MiB", 200 << 20), ("1GiB", 1 << 30), ("1.5KiB", 1536), ("1024", 1024), ("1B", 1)],
)
def test_sizes(text, number):
    """A size is a number and a binary unit, or a number of bytes."""
    assert size(text) == number
    assert size(written(number, "size")) == number


def test_what_has_no_effect_yet_is_said(load_text):
    """An option that this version only checks is named, so that nobody relies on it."""
    notes = load_text(EVERYTHING).notes
    for name in ("status", "workers"):
        assert f"config.yaml: {name} is read and checked, and has no effect in this version" in notes
    assert load_text("targets: [https://a.example/]\n").notes == ()


def test_no_targets_is_said(load_text):
    """A configuration that measures nothing, perhaps as no file matches, says so."""
    (note,) = load_text("include: [targets.d/*.yml]\n").notes
    assert note == "config.yaml: there are no targets, so nothing is measured; write some, or look at include"


@pytest.mark.parametrize("name", ["ist-1", "pi.ist-1.example", "a" * 64])
@pytest.mark.parametrize("agent", ["", "agent:\n", "agent: {}\n", "agent: {id: }\n"])
def test_agent_id_is_the_host_name(name, agent, load_text, monkeypatch):
    """An agent without an id is called as its host."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    config = load_text(f"{agent}location: {{id: here}}\nkafka: {{bootstrap_servers: b}}\n")
    assert config.agent.id == name


@pytest.mark.parametrize(
    "name", ["localhost", "raspberrypi", "RaspberryPi", "localhost.localdomain", "", "a" * 65, "ä"]
)
def test_a_host_name_that_is_no_id(name, problems_of, monkeypatch):
    """A name that a thousand hosts have, or that is none, is refused with the mend."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    lines = problems_of("location: {id: here}\nkafka: {bootstrap_servers: b}\n")
    told = f'agent.id: is missing, and this host\'s name, "{name}", tells no device from another'
    assert lines == [f"config.yaml:1:1: {told}; write agent: {{id: NAME}}"]


@pytest.mark.parametrize(
    ("environment", "user", "directory"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a"}, 0, "/var/lib/a"),
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, 1000, "/var/lib/a"),
        ({}, 0, "/var/lib/uptime-agent"),
        ({"XDG_STATE_HOME": "/home/me/state"}, 1000, "/home/me/state/uptime-agent"),
        ({"XDG_STATE_HOME": "/home/me/state"}, 0, "/var/lib/uptime-agent"),
        ({"HOME": "/home/me"}, 1000, "/home/me/.local/state/uptime-agent"),
    ],
)
def test_state_directory(environment, user, directory, load_text, monkeypatch):
    """State is kept where systemd says, else where root or a user keeps it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert load_text("").state_directory == directory
    assert load_text("state_directory: /elsewhere\n").state_directory == "/elsewhere"


def test_one_url_needs_no_file(monkeypatch):
    """A single address can be measured without a configuration, from the location `local`."""
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    config = of_url("HTTPS://Me:hidden@A.example/x?token=hidden#top")
    (target,) = config.targets
    assert (config.agent.id, config.location.id) == ("local", "local")
    assert (target.id, target.shown_url) == ("https://a.example/x?token=***",) * 2
    assert target.url == "https://a.example/x?token=hidden"
    assert (target.basic_auth.username, target.basic_auth.password) == ("Me", "hidden")


@pytest.mark.parametrize(
    "text",
    ["", "a.example", "htps://a/", "*x", "&x", "{a: b}", "http://a/\n- b", "a\0", "\udcff", "\x85", "x" * 70_000],
)
def test_what_is_no_url(text):
    """Anything but a URL is a ValueError that says so, in one line."""
    with pytest.raises(ValueError, match="; ") as caught:
        of_url(text)
    assert "\n" not in str(caught.value)


def test_problems_have_types(problems_of, load_text):
    """A program reads file, line, column, key and message apart."""
    with pytest.raises(ConfigError) as caught:
        load_text("targets: [{url: http://a/, redirects: x}]\n")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.column, problem.key) == ("config.yaml", 4, 39, "targets[0].redirects")
    assert problem.message == '"x" is not a whole number; write digits'


def test_comments_in_a_file_of_certificates(target, authority, tmp_path):
    """They may be in any language."""
    pem = authority.cert_pem.bytes()
    (tmp_path / "ca.pem").write_bytes("# unsere, für Köln\n".encode() + pem)
    assert context_of(target("{url: https://a.example/, tls: {ca: ca.pem}}").tls).cert_store_stats()["x509_ca"] == 1
