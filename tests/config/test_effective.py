"""The merged configuration and the JSON Schema say what the loader does."""

import re
import socket
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from agent.config import Config, ConfigError
from agent.config.effective import effective
from agent.config.load import NO_EFFECT_YET
from agent.config.sample import sample
from agent.config.schema import config_schema

from .configurations import CONFIGURATIONS
from .test_values import EVERYTHING

SCHEMA = jsonschema.Draft202012Validator(config_schema())
BAD = Path(__file__).parent / "bad"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
# What is wrong with these stands in one file, and is a matter of form.
REJECTED = [
    *(
        "durations",
        "ids",
        "locations",
        "missing_inner_keys",
        "missing_keys",
        "root_is_a_list",
        "root_is_text",
        "secrets",
    ),
    *("sizes", "statuses", "unknown_keys", "urls", "wrong_types", "references", "references_too_many"),
]


def plain(config):
    """A configuration without what tells from where it came."""
    return msgspec.structs.replace(config, digest="", notes=())


@pytest.fixture
def host_name(monkeypatch):
    """The name of this host, which is one of its own."""
    monkeypatch.setattr(socket, "gethostname", lambda: "ist-1-pi")
    return "ist-1-pi"


def test_the_sample_is_good(load_text, host_name):
    """What `init` writes can be used as it is, and on no two devices under the same name."""
    config = load_text(sample())
    assert config.agent.id == host_name
    assert [target.id for target in config.targets] == ["https://example.com/", "example-api"]
    assert config.notes == ()
    SCHEMA.validate(yaml.safe_load(sample()))


def test_the_sample_uncommented_is_good(load_text):
    """So can what stands there as comments."""
    text = re.sub(r"^( *)# ( *[a-z_.]+: )", r"\1\2", sample(), flags=re.MULTILINE)
    assert text.count("# ") < sample().count("# ") - 10
    text = re.sub("{file: /etc/uptime-agent/[a-z-]+}", "hidden", text)
    config = load_text(text)
    assert (config.agent.id, config.location.country) == ("my-device", "TR")
    assert config.targets[1].method == "POST"
    SCHEMA.validate(yaml.safe_load(text))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(configuration=CONFIGURATIONS)
def test_the_effective_configuration_loads_again(configuration, load_text):
    """What is printed as the merged result is, loaded, the same configuration, and good by the schema as well."""
    SCHEMA.validate(configuration)
    config = load_text(yaml.safe_dump(configuration, allow_unicode=True))
    again = effective(config)
    assert plain(load_text(again)) == plain(config)
    assert effective(load_text(again)) == again
    SCHEMA.validate(yaml.safe_load(again))


def test_everything_is_shown(load_text):
    """Every default is written out, secrets masked, in the order of the documentation."""
    shown = yaml.safe_load(effective(load_text(EVERYTHING)))
    assert list(shown) == [field for field in Config.__struct_fields__ if field not in ("digest", "notes")]
    (target,) = shown["targets"]
    assert target["basic_auth"] == {"username": "me", "password": "***"}
    assert target["expect"] == {"status": ["200-299", 301]}
    assert target["timeout"] == "3s"
    SCHEMA.validate(shown)


def test_certificates_are_shown_by_their_digest(load_text, tmp_path, authority):
    """PEM text is not printed; which one it is can be told all the same."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    shown = effective(load_text("targets: [{url: https://a/, tls: {ca: ca.pem}}]\n"))
    assert "ca: (PEM text, sha256 " in shown
    assert "BEGIN" not in shown


def test_the_schema_is_one():
    """Editors can read it."""
    jsonschema.Draft202012Validator.check_schema(config_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_shipped_examples_are_good(path):
    """The schema accepts every example, and none has what would have no effect."""
    content = yaml.safe_load(path.read_text())
    assert not any(each in content for each in NO_EFFECT_YET)
    SCHEMA.validate(
        content
        if isinstance(content, dict)
        else {"location": {"id": "a"}, "kafka": {"bootstrap_servers": ["a"]}, "targets": content}
    )


def test_the_schema_accepts_everything():
    """The schema has every key, and takes scalars as an editor's YAML does."""
    SCHEMA.validate(yaml.safe_load(EVERYTHING))


@pytest.mark.parametrize("name", REJECTED)
def test_the_schema_rejects(name):
    """What is wrong in its form is marked while it is typed."""
    assert not SCHEMA.is_valid(yaml.safe_load((BAD / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "interval: 10 s", "interval: soon", "interval: [10s]", "redirects: -1", "redirects: many", "ip: 5",
        "enabled: perhaps", "body_limit: 10MB", "tls: {min_version: 1.4}", "tls: {verify: maybe}",
        "expect: {status: []}", "expect: {status: [2xx]}", "headers: [a]", "headers: {a: {vault: b}}",
        "basic_auth: {username: a}", "labels: a", "method: [GET]", "url: [http://b/]", "id: ''", "unknown: 1",
        "labels: {a: [b]}", "timeout: -1", "connect_to: {a: b}",
    ],
)  # fmt: skip
def test_schema_and_loader_agree(text, load_text, problems_of):
    """What the loader refuses for its form, the schema refuses too."""
    document = f"targets: [{{url: 'http://a/', {text}}}]\n".replace("url: 'http://a/', url", "url")
    assert problems_of(document)
    head = {"location": {"id": "a"}, "kafka": {"bootstrap_servers": ["a"]}}
    assert not SCHEMA.is_valid(head | yaml.safe_load(document))


def test_descriptions(load_text):
    """An editor shows what a key is for."""
    assert config_schema()["properties"]["targets"]["items"]["anyOf"][1]["properties"]["timeout"]["description"]
    with pytest.raises(ConfigError):
        load_text("x: y\n")
