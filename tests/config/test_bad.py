"""Bad files and what is said about them: `bad/NAME.yaml` gets exactly the lines of `bad/NAME.txt`."""

from pathlib import Path

import pytest

from agent.config import ConfigError, load
from agent.delivery.kafka import refusal

BAD = Path(__file__).parent / "bad"
NAMES = sorted(path.stem for path in BAD.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_is_told(name, monkeypatch):
    """All that is wrong with a file is told in one run: where, what, and the mend, by file and place."""
    monkeypatch.chdir(BAD)
    with pytest.raises(ConfigError) as caught:
        load(Path(f"{name}.yaml"), refusal=refusal)
    assert str(caught.value).splitlines() == (BAD / f"{name}.txt").read_text().splitlines()


def test_the_table_is_whole():
    """Each file has its messages, and each message belongs to a file."""
    assert sorted(path.stem for path in BAD.glob("*.txt")) == NAMES
    assert len(NAMES) > 40


@pytest.mark.parametrize("name", NAMES)
def test_no_message_shows_a_secret(name):
    """What stands for a secret in the files, also at the wrong place, is in no message."""
    assert "dont-show" not in (BAD / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_each_message_has_its_mend(name):
    """A line says what is wrong and then, after a semicolon, what to do."""
    for line in (BAD / f"{name}.txt").read_text().splitlines():
        assert "; " in line or "write " in line or "is refused by librdkafka" in line


def test_problems_beyond_a_thousand_are_counted(problems_of):
    """A file that is wrong all over does not flood the screen."""
    lines = problems_of("targets:\n" + "- {url: https://a.example/, x: 1}\n" * 600)
    assert len(lines) == 1_001
    assert lines[0].startswith("config.yaml:5:29: targets[0].x: unknown key; ")
    assert lines[-1] == "and 199 more problems"
