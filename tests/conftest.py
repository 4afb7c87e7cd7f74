"""What tests of several parts share: a real Apache Kafka, and a process that does not stand still."""

import gc
import os
from collections.abc import Iterator

import pytest

from tests.kafka import Broker, CannotStart

FIRST = ("tests/truth/", "tests/device/", "tests/end_to_end/")  # so that files side by side end together
FIRST_START = 300  # seconds; a machine's first start fetches Apache Kafka


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Who asks for the broker needs Apache Kafka, and the time to start it. What is long waits for `--all`; what takes
    minutes is begun before the rest.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    if os.environ.get("TEST_ALL") != "1":
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker("kafka")
            item.add_marker(pytest.mark.timeout(FIRST_START))


@pytest.fixture(scope="module", autouse=True)
def without_pauses() -> None:
    """What pytest keeps of thousands of tests is not looked through again at each collection, which takes 0.2 s and
    more: as long as some tests wait for an answer.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Apache Kafka for the whole run. Without Java and Maven its tests are skipped, but fail with CI=true."""
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
    except CannotStart as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no Apache Kafka: {error}")
        pytest.skip(f"no Apache Kafka: {error}")
    yield broker
    broker.close()
