"""The device's and the process's vital signs for the heartbeat; None for what the device does not have."""

import os

import msgspec
import psutil


class Vitals(msgspec.Struct, frozen=True):
    """`rss_bytes`: this process's memory in RAM; `load`: over 1, 5 and 15 minutes; `temperature_c`: the hottest sensor.

    `throttled` is None until the device's own reading of it is known.
    """

    rss_bytes: int
    memory_available_bytes: int
    load: tuple[float, float, float]
    temperature_c: float | None
    throttled: bool | None


def read_vitals() -> Vitals:
    """Reads /proc and /sys; about a millisecond."""
    return Vitals(
        rss_bytes=psutil.Process().memory_info().rss,
        memory_available_bytes=psutil.virtual_memory().available,
        load=os.getloadavg(),
        temperature_c=_hottest(),
        throttled=None,
    )


def _hottest() -> float | None:
    try:
        sensors = psutil.sensors_temperatures()
    except OSError:  # one that is there and cannot be read
        return None
    return max((reading.current for group in sensors.values() for reading in group), default=None)
