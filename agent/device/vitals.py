"""The device's and the process's vital signs for the heartbeat; None for what the device does not have.

By files of /proc and /sys alone, which the service's sandbox lets it read: it has no devices and no netlink. A sensor
that fails or tells nonsense is one that is not there.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

LARGEST = 1 << 16  # bytes read of a file of the kernel
MOST_SENSORS = 64
COLDEST_C, HOTTEST_C = -60, 150  # beyond, a sensor is broken
WEAKEST_DBM = -120  # /proc/net/wireless tells -256 when the driver has no signal
HOT_C = 80.0  # from here on a Raspberry Pi slows itself down, and laptops are about to
WEAK_DBM = -80
FULL_SHARE, FULL_BYTES = 0.05, 1 << 30  # less free than both: the disk is nearly full


class Vitals(msgspec.Struct, frozen=True):
    """What cannot be read now is None.

    `rss_bytes`: this process's memory in RAM. `swap_used_bytes`: None without swap. `load`: over 1, 5 and 15 minutes.
    `temperature_c`: the hottest sensor. `undervoltage`: a Raspberry Pi's supply was too weak within the last 2 s or so.
    `throttled`: the kernel slows the processor down for its heat. `wifi_quality`: as the driver counts, most of them up
    to 70.
    """

    rss_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    load: tuple[float, float, float] | None = None
    temperature_c: float | None = None
    undervoltage: bool | None = None
    throttled: bool | None = None
    wifi_signal_dbm: int | None = None
    wifi_quality: int | None = None


class Disk(msgspec.Struct, frozen=True):
    """The file system of the spool; `disk_free_bytes`: for this process."""

    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None
    disk_read_only: bool | None = None


def read_vitals(root: Path = Path("/")) -> Vitals:
    """Reads /proc and /sys below `root`; some milliseconds, or as long as a sensor takes."""
    memory = _memory(root)
    swap, swap_free = memory.get("SwapTotal"), memory.get("SwapFree")
    resident = _number(_text(root / "proc/self/statm").partition(" ")[2].partition(" ")[0])  # proc(5): in pages
    signal, quality = _wifi(root)
    return Vitals(
        rss_bytes=resident * os.sysconf("SC_PAGE_SIZE") if resident and resident > 0 else None,
        memory_available_bytes=memory.get("MemAvailable"),
        memory_total_bytes=memory.get("MemTotal"),
        swap_used_bytes=swap - swap_free if swap and swap_free is not None and swap_free <= swap else None,
        load=_load(root),
        temperature_c=_hottest(root),
        undervoltage=_undervoltage(root),
        throttled=_throttled(root),
        wifi_signal_dbm=signal,
        wifi_quality=quality,
    )


def read_disk(directory: Path) -> Disk:
    """Asks the file system that the directory is on; never returns while that is a disk that hangs."""
    try:
        told = os.statvfs(directory)
    except OSError:
        return Disk()
    if not told.f_blocks:  # it has no size to tell
        return Disk(disk_read_only=bool(told.f_flag & os.ST_RDONLY))
    return Disk(told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize, bool(told.f_flag & os.ST_RDONLY))


def notices(vitals: Vitals, disk: Disk) -> Iterator[str]:
    """What whoever looks after the device should know, in plain words."""
    if vitals.undervoltage:
        yield "undervoltage: the power supply or its cable is too weak for this device"
    if vitals.temperature_c is not None and vitals.temperature_c >= HOT_C:
        yield f"{vitals.temperature_c:.0f} °C: so hot that devices slow down; it wants cooling"
    if vitals.throttled:
        yield "the processor is slowed down for its heat"
    free, total = disk.disk_free_bytes, disk.disk_total_bytes
    if free is not None and total is not None and free < min(total * FULL_SHARE, FULL_BYTES):
        yield f"the disk of the spool is nearly full: {free >> 20:,} of {total >> 20:,} MiB are free"
    if disk.disk_read_only:
        yield "the disk of the spool is read-only"
    if vitals.wifi_signal_dbm is not None and vitals.wifi_signal_dbm <= WEAK_DBM:
        yield f"weak Wi-Fi: {vitals.wifi_signal_dbm} dBm"


def _memory(root: Path) -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    told = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, amount = line.partition(":")
        if (kilobytes := _number(amount.removesuffix("kB"))) is not None and 0 <= kilobytes < 1 << 50:
            told[name] = kilobytes << 10
    return told


def _load(root: Path) -> tuple[float, float, float] | None:
    try:
        one, five, fifteen = map(float, _text(root / "proc/loadavg").split()[:3])
    except ValueError:
        return None
    return (one, five, fifteen) if all(0 <= each < 1e6 for each in (one, five, fifteen)) else None


def _hottest(root: Path) -> float | None:
    """Of the thermal zones and of all chips of hwmon, which tell thousandths of a degree."""
    sensors = itertools.chain(
        _found(root / "sys/class/thermal", "thermal_zone*/temp"),
        _found(root / "sys/class/hwmon", "hwmon*/temp*_input"),
    )
    told = [each / 1000 for path in sensors if (each := _number(_text(path))) is not None]
    return max((each for each in told if COLDEST_C <= each <= HOTTEST_C), default=None)


def _undervoltage(root: Path) -> bool | None:
    """The alarm of the kernel's driver raspberrypi-hwmon.

    Not the firmware's `get_throttled` in sysfs, which tells more: to read it leaves a warning with a stack trace in the
    kernel's log, and Raspberry Pi's kernels have it no more since 2025.
    """
    for name in _found(root / "sys/class/hwmon", "hwmon*/name"):
        if _text(name).strip() == "rpi_volt":
            alarm = _number(_text(name.with_name("in0_lcrit_alarm")))
            return bool(alarm) if alarm in (0, 1) else None
    return None


def _throttled(root: Path) -> bool | None:
    """Whether a cooling device that is a processor is at work (the kernel's sysfs-api for thermal devices)."""
    states = [
        _number(_text(kind.with_name("cur_state")))
        for kind in _found(root / "sys/class/thermal", "cooling_device*/type")
        if _text(kind).startswith(("Processor", "cpufreq-", "thermal-cpufreq-"))
    ]
    known = [each for each in states if each is not None and each >= 0]
    return any(known) if known else None


def _wifi(root: Path) -> tuple[int | None, int | None]:
    """Signal and quality of the first interface that is on a network, in /proc/net/wireless below two lines of heading.

    As `wireless_seq_printf_stats` of the kernel writes it: a full stop behind what is new, a level in dBm below 0.
    """
    for line in _text(root / "proc/net/wireless").splitlines()[2:]:
        told = [_number(each.removesuffix(".")) for each in line.rpartition(":")[2].split()[1:3]]
        if len(told) < 2:
            continue
        quality, level = told
        signal = level if level is not None and WEAKEST_DBM <= level < 0 else None  # else it is no dBm
        quality = quality if quality is not None and 0 < quality < 256 else None
        if signal is not None or quality is not None:
            return signal, quality
    return None, None


def _found(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(itertools.islice(folder.glob(pattern), MOST_SENSORS))
    except OSError:
        return []


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # nonsense, or nothing
        return None


def _text(path: Path) -> str:
    """The file, or its beginning; empty when it is not there or fails, or no file descriptor is left."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST).decode(errors="replace")
    except OSError:
        return ""
