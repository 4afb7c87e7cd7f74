"""What the agent takes of a device's memory, as systemd accounts it."""

import os
import time

import pytest

from tests.device.device import Device

SECONDS = int(os.environ.get("SOAK_SECONDS", "60"))
TARGETS = 100  # each second
# As after a boot: no file is in memory yet, so those that it maps are accounted to it.
FORGET = """
import os, pathlib
os.sync()
for folder in ("/opt/uptime-agent", "/usr/bin", "/usr/lib"):
    for file in pathlib.Path(folder).rglob("*"):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
"""
BOUND = 256 << 20  # the unit's MemoryMax


@pytest.mark.timeout(SECONDS + 900)
def test_memory(machine, kafka, plain, tmp_path):
    """Under load it stays far below the bound at which it would be killed."""
    with Device(machine, tmp_path, plain, kafka, TARGETS) as device:
        machine.run("python3", "-c", FORGET)
        device.begin()
        assert machine.property("MemoryMax") == str(BOUND)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            device.arrivals.poll(min(30, SECONDS))
            took = {name: f"{of / (1 << 20):.1f} MiB" for name, of in machine.memory().items()}
            print(f"{machine.suite}: {took}")  # noqa: T201  (what it is for; shown with -s)
        device.shows("^healthy; 100 targets")
        assert machine.memory()["peak"] < BOUND / 2
        device.settled()
        assert len(device.arrivals.by_topic[device.topic]) > SECONDS * TARGETS * 0.9
