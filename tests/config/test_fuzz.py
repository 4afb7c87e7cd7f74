"""Whatever a file holds, it is a good configuration or has problems with their places; nothing else comes out."""

import trustme
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.config import Config, ConfigError
from agent.config.effective import effective
from agent.config.model import Target
from agent.config.reader import rules
from agent.config.sample import sample

from .configurations import CONFIGURATIONS
from .conftest import BASE

CA = trustme.CA()
AUTHORITY, KEY = CA.cert_pem.bytes().decode(), CA.private_key_pem.bytes().decode()
SETTINGS = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KEYS = [*rules(Config), *rules(Target), "defaults", "include", "file", "env", "credential", "<<"]
PIECES = st.sampled_from(
    [
        *"[]{}:,-?#&*!|>'\"%@`~=\\\n\t \0\r\x85\u2028\ufeff\x1f\x7fé\U0001f600",
        *(f"{key}: " for key in KEYS),
        *("\n- ", "\n  ", "\n    ", ": ", "? ", "- &a ", "*a ", "<<: *a", "--- ", "... ", "[[[[", "{{{{"),
        *(
            "!!str ",
            "!!binary ",
            "!x ",
            "%YAML 1.2\n",
            "https://a/",
            "http://u:p@a",
            "10s",
            "1e999",
            "012",
            "NO",
            "null",
        ),
        *("{file: /dev/zero}", "{env: HOME}", "{env: a\0b}", "*.yaml", "/", "..", "**/", "[a-"),
    ]
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=9),
        st.sampled_from(["http://a/", "/", "*"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=12,
)


def check(load_text, data):
    """Loads it: the outcome is one of two, and each is fit for a person to read."""
    try:
        effective(load_text(data))
        return
    except ConfigError as error:
        problems = list(error.problems)
    lines = data.decode(errors="replace").replace("\r\n", "\n")
    most = 1 + sum(lines.count(end) for end in "\n\r\x85\u2028\u2029")  # what ends a line for YAML
    assert problems
    assert problems == sorted(problems)
    for problem in problems:
        assert problem.message
        assert str(problem).isprintable()
        assert problem.column >= 1
        assert problem.line >= 1
        assert problem.line <= most or problem.file != "config.yaml"


@SETTINGS
@given(data=st.binary(max_size=200))
@example(data=b"\xef\xbb\xbf\xef\xbb\xbf")
@example(data=b"\xf0\x9f\x98")
def test_any_bytes(data, load_text):
    """Bytes that mean nothing."""
    check(load_text, data)
    check(load_text, BASE.encode() + data)


@SETTINGS
@given(text=st.lists(PIECES, max_size=30).map("".join))
def test_what_looks_like_yaml(text, load_text):
    """Text made of what YAML and its keys are made of."""
    check(load_text, text.encode())
    check(load_text, (BASE + "targets:\n- " + text).encode())


@SETTINGS
@given(value=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_document(value, load_text):
    """Any value at any key of a document."""
    check(load_text, yaml.safe_dump(value, allow_unicode=True).encode())


@SETTINGS
@given(
    options=st.dictionaries(st.sampled_from([*rules(Target)]), VALUES, max_size=5),
    default=st.booleans(),
    url=st.sampled_from(["http://a/", "icmp://a", "dns://a/b"]),
)
def test_any_target(options, default, url, load_text):
    """Any value for any option of a target, or as a default."""
    document = {"defaults": options, "targets": [url]} if default else {"targets": [{"url": url} | options]}
    check(load_text, BASE.encode() + yaml.safe_dump(document, allow_unicode=True).encode())


@SETTINGS
@given(
    configuration=st.one_of(
        st.just(sample()), CONFIGURATIONS.map(lambda each: yaml.safe_dump(each, allow_unicode=True))
    ),
    cuts=st.lists(
        st.tuples(st.integers(0, 2_000), st.integers(0, 20), st.one_of(PIECES, st.just(""))), min_size=1, max_size=3
    ),
)
def test_a_good_configuration_mistyped(configuration, cuts, load_text):
    """A good configuration in which something was cut out, or put in, here and there."""
    for at, length, piece in cuts:
        at %= len(configuration) + 1
        configuration = configuration[:at] + piece + configuration[at + length :]
    check(load_text, configuration.encode())


@SETTINGS
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 2_000), st.integers(0, 20), st.one_of(PIECES, st.text(max_size=3))), max_size=3
    ),
    option=st.sampled_from(["ca", "client_certificate"]),
)
@example(cuts=[(0, 0, "# Zertifikate f\u00fcr uns\n")], option="ca")
def test_a_certificate_mistyped(cuts, option, load_text, tmp_path):
    """A file of PEM in which something was cut out, or put in."""
    text = AUTHORITY + KEY * (option == "client_certificate")
    for at, length, piece in cuts:
        at %= len(text) + 1
        text = text[:at] + piece + text[at + length :]
    (tmp_path / "it.pem").write_bytes(text.encode())
    check(load_text, f"{BASE}targets:\n- {{url: https://a/, tls: {{{option}: it.pem}}}}\n".encode())
