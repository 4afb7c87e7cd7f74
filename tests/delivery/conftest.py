"""What tests of the delivery share."""

import pytest

from agent.delivery import forwarder, kafka
from tests.written import written_log


@pytest.fixture
def written():
    """The log, as it is written."""
    with written_log() as written:
        yield written


@pytest.fixture
def impatient(monkeypatch):
    """The waits between tries are short, to spare the time of who runs this."""
    monkeypatch.setattr(forwarder, "HOLD", 0.5)
    monkeypatch.setattr(kafka, "REMAKE", 0.5)


@pytest.fixture
def soon_lost(monkeypatch):
    """The broker is judged lost sooner, to spare the time of who runs this."""
    monkeypatch.setattr(forwarder, "LOST_AFTER", 1.0)
