"""The device's and the process's vital signs for the heartbeat; None for what the device does not have."""

import os
from collections.abc import Callable
from typing import TypeVar

import msgspec
import psutil

T = TypeVar("T")


class Vitals(msgspec.Struct, frozen=True):
    """What cannot be read now is None.

    `rss_bytes`: this process's memory in RAM; `load`: over 1, 5 and 15 minutes; `temperature_c`: the hottest sensor.

    `throttled` is None until the device's own reading of it is known.
    """

    rss_bytes: int | None
    memory_available_bytes: int | None
    load: tuple[float, float, float] | None
    temperature_c: float | None
    throttled: bool | None


def read_vitals() -> Vitals:
    """Reads /proc and /sys; about a millisecond."""
    return Vitals(
        rss_bytes=_known(lambda: psutil.Process().memory_info().rss),
        memory_available_bytes=_known(lambda: psutil.virtual_memory().available),
        load=_known(os.getloadavg),
        temperature_c=_known(_hottest),
        throttled=None,
    )


def _hottest() -> float | None:
    sensors = psutil.sensors_temperatures()
    return max((reading.current for group in sensors.values() for reading in group), default=None)


def _known(read: Callable[[], T]) -> T | None:
    """A sensor may be there and not answer, and there may be no file descriptor left to ask with."""
    try:
        return read()
    except (OSError, psutil.Error):
        return None
