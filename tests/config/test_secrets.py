"""Secrets come from files, the environment and credentials, and are never shown: not even when they are no good."""

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import ConfigError, load_kafka, of_url
from agent.config.effective import effective
from agent.config.masking import Mask
from agent.config.model import Secret

NEEDLE = "n33dle-7f3a"
SECRETS = ("{file: secret}", "{env: UPTIME_SECRET}", "{credential: uptime-secret}")

# Where a secret may stand: `HERE` is its text, or one of `SECRETS` where a value is all of it.
INLINE = [
    "targets: [{url: 'https://user:HERE@a.example/'}]",
    "targets: [{url: 'https://HERE@a.example/'}]",
    "targets: ['https://user:HERE@a.example/']",
    "targets: ['https://a.example/?q=1&token=HERE']",
    "targets: ['https://a.example/?api_key=HERE&x']",
    "targets: [{url: 'https://a.example/?X-Amz-Signature=HERE', id: a}]",
    "targets: [{url: 'https://a.example/', headers: {Cookie: 'id=HERE'}}]",
    "defaults: {headers: {X-Auth-Token: HERE}}\ntargets: [http://a/]",
]
WHOLE = [
    "targets: [{url: 'https://a.example/', headers: {Authorization: HERE}}]",
    "targets: [{url: 'https://a.example/', headers: {X-Api-Key: HERE}}]",
    "targets: [{url: 'https://a.example/', basic_auth: {username: me, password: HERE}}]",
    "defaults: {basic_auth: {username: me, password: HERE}}\ntargets: [http://a/]",
    "kafka: {bootstrap_servers: [b], properties: {sasl.password: HERE}}",
    "kafka: {bootstrap_servers: [b], properties: {ssl.key.pem: HERE}}",
    "kafka: {bootstrap_servers: [b], properties: {sasl.oauthbearer.client.secret: HERE}}",
]
SOURCED = [
    "targets: [{url: 'https://a.example/', headers: {X-Any: HERE}}]",
    "targets: [{url: 'https://a.example/', body: HERE}]",
    "targets: [{url: 'https://a.example/', basic_auth: {username: HERE, password: x}}]",
    "kafka: {bootstrap_servers: [b], properties: {sasl.username: HERE}}",
]
# The same in the wrong place, or with something wrong about it.
BROKEN = [
    "targets: [{url: 'https//user:HERE@a.example/'}]",
    "targets: ['https:/user:HERE@a.example/']",
    "targets: ['user:HERE@a.example']",
    "targets: ['htps://user:HERE@a.example/']",
    "targets: ['https://user:HERE@a.example:port/']",
    "targets: ['https://user:HERE@/']",
    "targets: ['https://user:x/HERE@a.example/']",
    "targets: ['https://user:x?HERE@a.example/']",
    "targets: ['https://user:HERE@mü.example/']",
    "targets: ['https://a b.example/?token=HERE']",
    "targets: ['https://a b.example/#access_token=HERE']",
    "targets: ['https://user:HERE@a.example/', 'https://user:HERE@a.example/']",
    "targets: ['https://a.example/?token=HERE', 'https://a.example/?token=HERE']",
    "targets: [{url: 'https://user:HERE@a.example/', basic_auth: {username: me, password: x}}]",
    "targets: [{url: 'https://user:HERE@a.example/', headers: {Authorization: x}}]",
    "targets: 'https://user:HERE@a.example/'",
    "targets: [{url: 'https://a.example/', basic_auth: 'user:HERE'}]",
    "targets: [{url: 'https://a.example/', basic_auth: ['user:HERE']}]",
    "targets: [{url: 'https://a.example/', basic_auth: {username: me, pasword: HERE}}]",
    "targets: [{url: 'https://a.example/', headers: 'Authorization: Bearer HERE'}]",
    "targets: [{url: 'https://a.example/', headers: ['Authorization: Bearer HERE']}]",
    "targets: [{url: 'https://a.example/', headers: {'Authorization: Bearer HERE'}}]",
    "targets: [{url: 'https://a.example/', headers: {'Cookie=HERE': x, 'Cookie=HERE': y}}]",
    "targets: [{url: 'https://a.example/', headers: {Authorization: [HERE]}}]",
    "targets: [{url: 'https://a.example/', headers: {Authorization: {text: HERE}}}]",
    'targets: [{url: "https://a.example/", headers: {Authorization: "HERE\\n"}}]',
    'targets: [{url: "https://a.example/", headers: {X-Api-Key: "HERE\\0"}}]',
    "targets: [{url: 'https://a.example/', headers: {X-Api-Key: HERE€}}]",
    "targets: [{url: 'https://a.example/', 'password=HERE': x}]",
    "kafka: {bootstrap_servers: [b], properties: sasl.password=HERE}",
    "kafka: {bootstrap_servers: [b], properties: {sasl.password=HERE: x, acks: 1}}",
    "kafka: {bootstrap_servers: ['user:HERE@b:9092']}",
    "kafka: 'broker?password=HERE'",
    "uplink: {references: ['ftp://user:HERE@a.example/']}",
    "targets: [{url: 'https://a.example/', headers: {A: !secret HERE}}]",
    "targets: ['https://a.example/', \"HERE]",
    "targets: [HERE: HERE: x]",
]
# All in which the secret stands between quotes, so that it ends nothing for YAML.
QUOTED = [template.replace(" HERE", " 'HERE'") for template in [*INLINE, *WHOLE, *BROKEN] if ": HERE: " not in template]
QUOTED = [template for template in QUOTED if re.search("""['"][^'"]*HERE[^'"]*['"]""", template)]


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """The same secret in a file, the environment and a credential."""
    (tmp_path / "secret").write_text(f"{NEEDLE}\n")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "uptime-secret").write_text(f"{NEEDLE}\n")
    monkeypatch.setenv("UPTIME_SECRET", NEEDLE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))


def placed(template, secret):
    """A whole configuration with this secret in its place."""
    kafka = "" if "kafka:" in template else "kafka: {bootstrap_servers: [b]}\n"
    return f"agent: {{id: me}}\nlocation: {{id: here}}\n{kafka}{template.replace('HERE', secret)}\n"


def shown(config):
    """Everything of a configuration that anybody gets to see."""
    targets = [
        text for target in config.targets for text in (target.id, target.shown_url, repr(target), str(target.labels))
    ]
    return [effective(config), repr(config), *config.notes, *targets]


def outcome(load_text, text):
    """A good configuration, or all that is said about one that is no good."""
    try:
        return load_text(text), ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("template", [*INLINE, *WHOLE])
def test_written_into_the_configuration(template, load_text):
    """A secret that stands in the configuration itself is used and not shown."""
    config = load_text(placed(template, NEEDLE))
    assert not [text for text in shown(config) if NEEDLE in text]
    assert NEEDLE not in Mask(config).text(f"refused: {NEEDLE}")


@pytest.mark.parametrize("template", [*WHOLE, *SOURCED])
@pytest.mark.parametrize("source", SECRETS)
def test_from_elsewhere(template, source, load_text):
    """Nor is one from a file, the environment or a credential, whatever its key is."""
    config = load_text(placed(template, source))
    assert not [text for text in shown(config) if NEEDLE in text]
    assert NEEDLE not in Mask(config).text(f"refused: {NEEDLE}")


@pytest.mark.parametrize("template", BROKEN)
def test_no_problem_shows_it(template, problems_of):
    """What is wrong is told without the text that may be a secret."""
    lines = problems_of(placed(template, NEEDLE))
    assert lines
    assert NEEDLE not in "\n".join(lines)


@pytest.mark.parametrize("source", SECRETS)
@pytest.mark.parametrize("key", ["url", "id", "method", "connect_to", "resolver", "interval", "ip", "body", "tls"])
def test_a_secret_where_none_belongs(key, source, load_text):
    """A secret as the value of any other key is an error, or is used; it is not shown, save as an id."""
    rest = ", ".join(f"{name}: {value}" for name, value in (("url", "http://a/"), ("id", "a")) if name != key)
    config, problems = outcome(load_text, placed(f"targets: [{{{key}: {source}, {rest}}}]", ""))
    assert NEEDLE not in problems
    assert not config or key in ("body", "method") or config.targets[0].id == NEEDLE


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    secret=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=6, max_size=20),
    template=st.sampled_from(QUOTED),
)
def test_any_text_can_be_a_secret(secret, template, load_text):
    """Whatever a secret is made of, neither a good configuration nor a problem shows it."""
    needle = f"{NEEDLE}{secret.replace(chr(39), '')}{NEEDLE}"  # a quote would end the text that it stands in
    if '"HERE' in template:
        needle = needle.replace("\\", "").replace('"', "")
    config, problems = outcome(load_text, placed(template, needle))
    assert NEEDLE not in problems
    # What follows a sign that ends a password or a parameter is no secret any more to whoever reads URLs.
    if config and not set(needle) & set("/?#&@:[]"):
        assert not [text for text in shown(config) if NEEDLE in text]


def test_one_newline_is_stripped(load_text, tmp_path):
    """The newline that an editor leaves is no part of a secret; what else stands there is."""
    for content, secret in (("x\n", "x"), ("x", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), (" x ", " x "), ("\nx", "\nx")):
        (tmp_path / "secret").write_bytes(content.encode())
        assert load_text("targets: [{url: http://a/, body: {file: secret}}]\n").targets[0].body == secret


def test_labels_and_ids_are_public(load_text):
    """What every record is tagged with may come from the environment, and is no secret then."""
    config = load_text(
        "agent: {id: {env: UPTIME_SECRET}}\nlocation: {id: {env: UPTIME_SECRET}, labels: {a: {env: UPTIME_SECRET}}}\n"
        "kafka: {bootstrap_servers: b}\ntargets: [{url: http://a/, id: {env: UPTIME_SECRET}}]\n"
    )
    assert (config.agent.id, config.location.id, config.location.labels) == (NEEDLE, NEEDLE, {"a": NEEDLE})
    assert not isinstance(config.agent.id, Secret)
    assert effective(config).count(NEEDLE) == 4


def test_a_url_that_is_a_secret(load_text, tmp_path):
    """A URL from a file is requested, and shown nowhere: not even a part of it that a server sends back."""
    (tmp_path / "secret").write_text("https://hooks.example/services/T0/B0/xyz?id=1\n")
    config = load_text("targets: [{id: hook, url: {file: secret}}]\n")
    (target,) = config.targets
    assert (target.url, target.shown_url) == ("https://hooks.example/services/T0/B0/xyz?id=1", "***")
    assert not [text for text in shown(config) if "T0/B0" in text]
    assert (
        Mask(target).text("moved to http://other.example/services/T0/B0/xyz?id=1") == "moved to http://other.example***"
    )


def test_a_parameter_is_masked_wherever_it_comes_up(load_text):
    """The value of a secret parameter of a URL is masked in other text too."""
    (target,) = load_text(f"targets: ['https://a.example/x?token={NEEDLE}%2B&page=12345']\n").targets
    assert Mask(target).text(f"no {NEEDLE}+ on page 12345, {NEEDLE}%2B") == "no *** on page 12345, ***"


@pytest.mark.parametrize("name", ["secret", "./secret", "/dev/null/no", "locked"])
def test_skip_opens_nothing(name, load_text, monkeypatch):
    """A configuration can be looked at on a machine that has none of its files, its variables and credentials."""
    monkeypatch.delenv("UPTIME_SECRET")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    text = (
        "kafka: {bootstrap_servers: [{env: UPTIME_SECRET}], properties: {sasl.password: {credential: none}}}\n"
        "agent: {id: me}\nlocation: {id: here, labels: {a: {env: UPTIME_SECRET}}}\ninclude: [{env: UPTIME_SECRET}]\n"
        "defaults: {basic_auth: {username: {env: UPTIME_SECRET}, password: {file: absent}}}\ntargets:\n"
        "- {id: a, url: {file: absent}, body: {file: absent}, method: {env: UPTIME_SECRET}}\n"
        "- {id: {env: A}, url: http://a/, connect_to: {env: UPTIME_SECRET}, ip: 6}\n"
        "- {id: {env: B}, url: http://a/, resolver: {env: UPTIME_SECRET}, expect: {status: [{env: UPTIME_SECRET}]}}\n"
        "- {id: tls, url: https://a/, tls: {ca: absent, client_certificate: absent, client_key: absent}}\n"
    )
    with pytest.raises(ConfigError):
        load_text(text)
    config = load_text(text.replace("absent", name), secrets="skip")
    assert [target.shown_url for target in config.targets] == ["***", "http://a/", "http://a/", "https://a/"]
    assert effective(config).count("***") > 10
    assert NEEDLE not in effective(config)


def test_a_variable_that_is_not_utf_8(problems_of, monkeypatch):
    """Bytes that are no text would break whatever they are put into, and are refused."""
    monkeypatch.setitem(os.environb, b"UPTIME_SECRET", b"n\xff")
    (line,) = problems_of("targets: [{url: http://a/, body: {env: UPTIME_SECRET}}]\n")
    assert line.endswith('the variable "UPTIME_SECRET" is not UTF-8 text; correct what sets it')


@pytest.mark.parametrize(
    ("setting", "content", "told"),
    [
        ("{env: UPTIME_EMPTY}", "", 'the variable "UPTIME_EMPTY" is empty; put the secret into it'),
        ("{credential: empty}", "\n", 'the credential "empty" is empty; put the secret into it'),
        (
            "{credential: ../secret}",
            "",
            '"../secret" is not a credential\'s name; write the name given to LoadCredential=',
        ),
    ],
)
def test_an_empty_secret(setting, content, told, problems_of, tmp_path, monkeypatch):
    """An empty secret is a forgotten one."""
    monkeypatch.setenv("UPTIME_EMPTY", content)
    (tmp_path / "credentials" / "empty").write_text(content)
    (line,) = problems_of(f"targets: [{{url: http://a/, body: {setting}}}]\n")
    assert line.endswith(f"targets[0].body: {told}")


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize(("mode", "told"), [(0o644, True), (0o640, False), (0o600, False)])
def test_secrets_that_everyone_can_read(mode, told, included, load_text, tmp_path):
    """A file with a secret in it that every user of the machine can read is pointed out, that very file."""
    text = f"- 'https://user:{NEEDLE}@a.example/'\n"
    (tmp_path / "more.yaml").write_text(text if included else "")
    (tmp_path / "more.yaml").chmod(mode)
    load_text("")
    (tmp_path / "config.yaml").chmod(mode)
    notes = load_text("include: [more.yaml]\ntargets:\n" + ("- http://a/\n" if included else text)).notes
    name = "more.yaml" if included else "config.yaml"
    mend = "chmod o-r, or write {file: …} or {credential: …} in their place"
    expected = f"{name}: secrets stand in it and everyone on this machine can read it; {mend}"
    assert notes == ((expected,) if told else ())


def test_of_url_shows_none():
    """The error about an address given on the command line hides its user too."""
    with pytest.raises(ValueError, match="unknown scheme") as caught:
        of_url(f"htps://user:{NEEDLE}@a.example/?token={NEEDLE}")
    assert NEEDLE not in str(caught.value)


@pytest.mark.parametrize("form", ["a b/c%D", "a+b%2fc%25d", "a%20b/c%25D", "A%20B%2FC%25D"])
def test_a_secret_is_masked_in_whatever_quoting(form):
    """As it is, and as servers and libraries quote it in URLs, in either case."""
    assert Mask((Secret("a b/c%D"),)).text(f"http://site.example/{form}?x") == "http://site.example/***?x"


def test_kafka_alone(tmp_path):
    """Who only reads from Kafka needs that block: no other secret is opened, and no other problem is in the way."""
    path = tmp_path / "config.yaml"
    (tmp_path / "password").write_text("dont-show\n")
    path.write_text(
        "kafka: {bootstrap_servers: broker, topic: results, properties: {sasl.password: {file: password}}}\n"
        "loction: {}\nworkers: many\n"
        "targets: [{url: https://a.example/, headers: {Authorization: {file: not-there}}}]\n"
    )
    kafka = load_kafka(path)
    assert (kafka.bootstrap_servers, kafka.topic) == (("broker:9092",), "results")
    assert kafka.properties == {"sasl.password": "dont-show"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("location: {id: here}\n", ":1:1: kafka: is missing; write kafka: {bootstrap_servers: [HOST:9092]}"),
        ("kafka: {topic: results}\n", ":1:8: kafka.bootstrap_servers: is missing; write it"),
        ("- kafka\n", ":1:1: is a list; write keys and values, as name: value"),
        ("", ":1:1: is empty; "),
    ],
    ids=["missing", "incomplete", "a list", "empty"],
)
def test_kafka_alone_that_is_no_good(tmp_path, text, problem):
    """What is wrong with that block, or the whole file, is told as by `validate`."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_kafka(path)
    (told,) = map(str, caught.value.problems)
    assert told.startswith(f"{path}{problem}")
