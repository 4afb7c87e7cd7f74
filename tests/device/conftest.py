"""Devices for tests. They are booted only with ./scripts/test --all: it takes minutes, and fetches Debians."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.device import Device
from tests.device.machine import PYTHON, Machine, may_boot, wheels
from tests.end_to_end.sites import Site, site
from tests.kafka import Broker

HERE = Path(__file__).parent
LONGEST = 900  # seconds for a test; the first fetches a Debian and Apache Kafka


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    asked = os.environ.get("TEST_ALL") == "1"
    lacks = may_boot() if asked else "boots devices, which takes minutes: ./scripts/test --all"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(LONGEST))
            if lacks:
                item.add_marker(pytest.mark.skip(reason=lacks))


@pytest.fixture(scope="session", params=sorted(PYTHON))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A device of each Debian, switched on, with the agent installed and not started."""
    suite = request.param
    new = Machine(suite, tmp_path_factory.mktemp(suite))
    try:
        new.switch_on()
        new.install(wheels(suite, tmp_path_factory.mktemp("wheels")))
        yield new
    finally:
        new.remove()


@pytest.fixture
def plain() -> Iterator[Site]:
    with site() as plain:
        yield plain


@pytest.fixture
def device(machine: Machine, kafka: Broker, plain: Site, tmp_path: Path) -> Iterator[Device]:
    """The agent on a device, of an id of its own, not configured and not started."""
    with Device(machine, tmp_path, plain, kafka) as device:
        yield device
