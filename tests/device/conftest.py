"""Devices for tests. They are booted only with ./scripts/test --all, which takes minutes, and fetches Debians; with
CI=true those are that are marked `core`, of one Debian, and then what this machine lacks is a failure.
"""

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device import root
from tests.device.device import Device
from tests.device.machine import PYTHON, Machine, may_boot, wheelhouse
from tests.end_to_end.sites import Site, site
from tests.kafka import Broker

HERE = Path(__file__).parent
LONGEST = 900  # seconds for a test; the first fetches a Debian and Apache Kafka
CORE = "bookworm"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: of tests on devices, one of those that CI runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    everything, ci = os.environ.get("TEST_ALL") == "1", os.environ.get("CI") == "true"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(LONGEST))
            if not (everything or (ci and _is_core(item))):
                item.add_marker(pytest.mark.skip(reason="boots devices, which takes minutes: ./scripts/test --all"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Shows the agent's log on the device when a test there failed."""
    report = yield
    device = getattr(item, "funcargs", {}).get("device")
    if report.failed and call.when == "call" and isinstance(device, Device) and device.machine.is_on:
        report.sections.append(("The agent's log on the device", "\n".join(device.log_lines())))
    return report


def _is_core(item: pytest.Item) -> bool:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    suites = {parameters.get(name, CORE) for name in ("machine", "suite")}
    return item.get_closest_marker("core") is not None and suites == {CORE}


@contextlib.contextmanager
def booted(folder: Path, suite: str = CORE, architecture: str = root.HERE) -> Iterator[Machine]:
    """A machine, switched on, with nothing of the agent; it is removed in the end."""
    if lacks := may_boot(architecture):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacks)
    machine = Machine(suite, folder, architecture)
    try:
        machine.switch_on()
        yield machine
    finally:
        machine.remove()


@pytest.fixture(scope="session", params=sorted(PYTHON))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A device of each Debian, switched on, with the agent installed and not started."""
    with booted(tmp_path_factory.mktemp(request.param), request.param) as machine:
        machine.install(wheelhouse(request.param))
        yield machine


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Machine]:
    """A device of the older Debian, switched on, with nothing of the agent."""
    folder = tmp_path / "device"
    folder.mkdir()
    with booted(folder) as machine:
        yield machine


@pytest.fixture
def plain() -> Iterator[Site]:
    with site() as plain:
        yield plain


@pytest.fixture
def device(machine: Machine, kafka: Broker, plain: Site, tmp_path: Path) -> Iterator[Device]:
    """The agent on a device, of an id of its own, not configured and not started."""
    with Device(machine, tmp_path, plain, kafka) as device:
        yield device
