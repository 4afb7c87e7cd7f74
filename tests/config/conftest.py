"""What the tests of the configuration share: a small good configuration, and ways to load a text as a file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from agent.config import Config, ConfigError, load

Load = Callable[..., Config]
Problems = Callable[..., list[str]]

BASE = """\
agent: {id: me}
location: {id: here}
kafka: {bootstrap_servers: [broker:9092]}
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    """What the environment gives is what a test gives; relative paths start in a folder of the test's own."""
    for name in ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load_text(tmp_path) -> Load:
    """Loads a text, after `BASE` unless it has a location of its own, as `config.yaml` in the test's folder."""

    def loaded(text: str | bytes, **options) -> Config:
        if isinstance(text, str) and "location:" not in text:
            text = BASE + text
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(Path("config.yaml"), **options)

    return loaded


@pytest.fixture
def problems_of(load_text) -> Problems:
    """The lines that are printed about a text that is no good."""

    def problems(text: str | bytes, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_text(text, **options)
        return str(caught.value).splitlines()

    return problems


@pytest.fixture
def target(load_text) -> Callable[..., object]:
    """The only target of a configuration with these options (YAML in flow style) and defaults."""

    def of(options: str, defaults: str = "{}", **more):
        (only,) = load_text(f"defaults: {defaults}\ntargets: [{options}]\n", **more).targets
        return only

    return of


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority) -> trustme.LeafCert:
    """A certificate of `authority`."""
    return authority.issue_cert("client.example")
