"""The device's vital signs: of devices as their kernels show them, of this one, of broken ones; and who is told."""

import asyncio
import json
import os
import resource
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from agent import daemon
from agent.config.model import Kafka
from agent.delivery.kafka import EmbeddedBroker, read
from agent.device.vitals import Disk, Vitals, notices, read_disk, read_vitals
from tests.test_status import Device

WIRELESS = """Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
"""
MEMORY = "MemTotal:        {} kB\nMemFree:          100 kB\nMemAvailable:     {} kB\nHugePages_Total:       0\n"
SWAP = "SwapTotal:         {} kB\nSwapFree:          {} kB\n"

# As on Raspberry Pi OS 12, at a supply that is too weak. The firmware's own word is there, too.
PI_4 = {
    "proc/meminfo": MEMORY.format(3882488, 3391712) + SWAP.format(102396, 102140),
    "proc/loadavg": "0.20 0.18 0.12 1/180 11206\n",
    "proc/self/statm": "31034 11500 3612 1 0 11921 0\n",
    "proc/net/wireless": WIRELESS + " wlan0: 0000   50.  -60.  -256        0      0      0  13937      0        0\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61835\n",
    "sys/class/thermal/cooling_device0/type": "rpi-poe-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/class/hwmon/hwmon0/temp1_input": "61835\n",
    "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
}
# No swap, no Wi-Fi in use, and nothing that is wrong.
PI_ZERO_2 = {
    "proc/meminfo": MEMORY.format(436604, 292740) + SWAP.format(0, 0),
    "proc/loadavg": "1.05 0.70 0.30 2/140 811\n",
    "proc/self/statm": "31034 9000 3612 1 0 11921 0\n",
    "proc/net/wireless": WIRELESS + " wlan0: 0000    0     0     0         0      0      0      0      0        0\n",
    "sys/class/thermal/thermal_zone0/temp": "47236\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/class/hwmon/hwmon0/temp1_input": "47236\n",
    "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
}
# One thermal zone is a stub, another belongs to a radio that is off, a chip has no probe; the kernel slows a core down.
LAPTOP = {
    "proc/meminfo": MEMORY.format(16213232, 9122340) + SWAP.format(8388604, 8388604),
    "proc/loadavg": "6.20 5.18 4.12 9/1800 112060\n",
    "proc/self/statm": "41034 12000 3612 1 0 11921 0\n",
    "proc/net/wireless": WIRELESS
    + " wlp0s20f3: 0000   28.  -82.  -256        0      0      0      0    255        0\n"
    + "   wlx0: 0000   70.  -30.  -256        0      0      0      0    255        0\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "-274000\n",
    "sys/class/thermal/thermal_zone1/type": "iwlwifi_1\n",
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "Processor\n",
    "sys/class/thermal/cooling_device1/cur_state": "3\n",
    "sys/class/thermal/cooling_device2/type": "intel_powerclamp\n",
    "sys/class/thermal/cooling_device2/cur_state": "-1\n",
    "sys/class/hwmon/hwmon3/name": "coretemp\n",
    "sys/class/hwmon/hwmon3/temp1_input": "91000\n",
    "sys/class/hwmon/hwmon3/temp2_input": "88000\n",
    "sys/class/hwmon/hwmon4/temp1_input": "255000\n",
}
SENSORS = sorted({path for tree in (PI_4, LAPTOP) for path in tree if "get_throttled" not in path})


def built(root, tree):
    for path, text in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_a_raspberry_pi_4(tmp_path):
    """A weak supply, Wi-Fi, swap; a fan at work is no throttling."""
    assert read_vitals(built(tmp_path, PI_4)) == Vitals(
        rss_bytes=11500 * resource.getpagesize(),
        memory_available_bytes=3391712 << 10,
        memory_total_bytes=3882488 << 10,
        swap_used_bytes=256 << 10,
        load=(0.2, 0.18, 0.12),
        temperature_c=61.835,
        undervoltage=True,
        throttled=None,
        wifi_signal_dbm=-60,
        wifi_quality=50,
    )


def test_a_raspberry_pi_zero_2(tmp_path):
    """What it does not have, or does not use, is None; a good supply is known to be good."""
    assert read_vitals(built(tmp_path, PI_ZERO_2)) == Vitals(
        rss_bytes=9000 * resource.getpagesize(),
        memory_available_bytes=292740 << 10,
        memory_total_bytes=436604 << 10,
        load=(1.05, 0.7, 0.3),
        temperature_c=47.236,
        undervoltage=False,
    )


def test_a_laptop(tmp_path):
    """The hottest sensor that makes sense; the kernel that slows a processor down; the first Wi-Fi that is in use."""
    vitals = read_vitals(built(tmp_path, LAPTOP))
    assert (vitals.temperature_c, vitals.throttled, vitals.undervoltage) == (91.0, True, None)
    assert (vitals.wifi_signal_dbm, vitals.wifi_quality, vitals.swap_used_bytes) == (-82, 28, 0)


@pytest.mark.parametrize(
    ("line", "signal", "quality"),
    [
        ("  rai0: 0000   10.  -256   -51        0      0      0      0      0        0", None, 10),  # no signal known
        (" wlan0: 0000   57   200     0         0      0      0      0      0        0", None, 57),  # not in dBm
        (" wlan0: 0000   57.", None, None),
        (" wlan0: 0000   a.  b.", None, None),
        ("", None, None),
    ],
)
def test_wifi_that_tells_less(tmp_path, line, signal, quality):
    """Only what is a level in dBm is told as one."""
    vitals = read_vitals(built(tmp_path, {"proc/net/wireless": WIRELESS + line + "\n"}))
    assert (vitals.wifi_signal_dbm, vitals.wifi_quality) == (signal, quality)


def fails(path):
    path.symlink_to("/proc/self/mem")  # EIO: nothing is at address 0


def huge(path):
    with path.open("wb") as file:
        file.truncate(1 << 36)


def holds(content):
    return lambda path: path.write_bytes(content)


BROKEN = {
    "fails": fails,
    "gone": lambda path: None,
    "directory": Path.mkdir,
    "huge": huge,
    "empty": holds(b""),
    "negative": holds(b"-99999999\n"),
    "garbage": holds(b"\xff\xfe\x00 nan inf -1 : : kB\n" * 20),
    "digits": holds(b"9" * 100_000),
    "lines": holds(b"MemTotal: 1 kB\n" * 100_000),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_sensor(tmp_path, how):
    """Whatever one file does, nothing is raised, the others are told, and it is None or another sensor's word."""
    for number, broken in enumerate(SENSORS):
        tree = PI_4 if broken in PI_4 else LAPTOP
        root = tmp_path / str(number)
        before = read_vitals(built(root, tree))
        (root / broken).unlink()
        BROKEN[how](root / broken)
        vitals = read_vitals(root)
        changed = [name for name in Vitals.__struct_fields__ if getattr(vitals, name) != getattr(before, name)]
        file = Path(broken).name
        allowed = {
            "meminfo": {"memory_available_bytes", "memory_total_bytes", "swap_used_bytes"},
            "loadavg": {"load"},
            "statm": {"rss_bytes"},
            "wireless": {"wifi_signal_dbm", "wifi_quality"},
            "name": {"undervoltage"},
            "in0_lcrit_alarm": {"undervoltage"},
        }.get(file, {"temperature_c", "throttled"})
        assert set(changed) <= allowed, broken
        for name in changed:
            told = getattr(vitals, name)
            # `lines` tell of 1 kB, or a page; the processor and the sensor that are left say something else.
            assert told in (None, False, 1024, resource.getpagesize(), 88.0), (broken, name)
        assert json.dumps([getattr(vitals, name) for name in changed], allow_nan=False)


def test_every_sensor_broken(tmp_path):
    """A device that tells nothing at all."""
    for path in SENSORS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        fails(tmp_path / path)
    assert read_vitals(tmp_path) == Vitals()
    assert read_vitals(tmp_path / "nothing") == Vitals()


def test_this_device():
    """Memory and load are what the kernel says, also of this process."""
    vitals = read_vitals()
    assert 5 << 20 < vitals.rss_bytes < 1 << 30
    assert 1 << 20 < vitals.memory_available_bytes < vitals.memory_total_bytes
    assert vitals.memory_total_bytes == os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    assert vitals.load == pytest.approx(os.getloadavg(), abs=1.0)
    assert vitals.temperature_c is None or -50 < vitals.temperature_c < 150
    held = bytearray(os.urandom(64 << 20))
    assert read_vitals().rss_bytes - vitals.rss_bytes > len(held) // 2


def test_without_file_descriptors():
    """What cannot be read is None, and nothing is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        vitals = read_vitals()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert vitals == Vitals()


def test_the_disk(tmp_path):
    """What is free for the agent, of how much, as `df` tells it; a place that is not there tells nothing."""
    told = os.statvfs(tmp_path)
    disk = read_disk(tmp_path)
    assert disk.disk_total_bytes == told.f_blocks * told.f_frsize
    assert disk.disk_free_bytes == pytest.approx(told.f_bavail * told.f_frsize, abs=1 << 30)
    assert disk.disk_read_only is False
    assert read_disk(tmp_path / "gone") == Disk()
    assert read_disk(Path("/proc")).disk_total_bytes is None


@pytest.mark.parametrize(
    ("vitals", "disk", "said"),
    [
        (Vitals(), Disk(), ""),
        (Vitals(undervoltage=False, throttled=False, temperature_c=79.9), Disk(2 << 30, 1 << 40, False), ""),
        (Vitals(undervoltage=True), Disk(), "undervoltage: the power supply or its cable is too weak"),
        (Vitals(temperature_c=82.3), Disk(), "82 °C"),
        (Vitals(throttled=True), Disk(), "slowed down"),
        (Vitals(wifi_signal_dbm=-84), Disk(), "weak Wi-Fi: -84 dBm"),
        (Vitals(), Disk(300 << 20, 8 << 30, False), "nearly full: 300 of 8,192 MiB are free"),
        (Vitals(), Disk(1 << 29, 1 << 40, False), "nearly full"),
        (Vitals(), Disk(5 << 30, 8 << 30, True), "read-only"),
    ],
)
def test_what_is_said_of_it(vitals, disk, said):
    """Trouble in plain words, and nothing else."""
    told = list(notices(vitals, disk))
    assert len(told) == bool(said)
    assert said in "".join(told)


@pytest.fixture
def beating(tmp_path, monkeypatch):
    """A device whose sensors are a tree of files, and whose agent's heart beats quickly."""

    def make(broker, tree):
        monkeypatch.setattr(daemon, "HEARTBEAT_SECONDS", 0.2)
        monkeypatch.setattr(daemon, "VITALS_SECONDS", 0.2)
        root = built(tmp_path / "root", tree)
        monkeypatch.setattr(daemon, "read_vitals", partial(read_vitals, root))
        device = Device(tmp_path)
        device.write(broker.address)
        return device, root

    return make


async def heartbeats(broker, number):
    """The first ones, when so many have arrived."""

    def arrive():
        for value in read(Kafka((broker.address,)), "uptime.events", 600):
            if isinstance(value, tuple) and (event := json.loads(value[0]))["event"] == "heartbeat":
                found.append(event)
            if len(found) == number:
                return

    found = []
    await asyncio.to_thread(arrive)
    return found


async def test_undervoltage_is_a_notice(beating):
    """It is told in plain words wherever an operator looks, and does not make the agent ill; nor would the disk."""
    with EmbeddedBroker() as broker:
        device, _ = beating(broker, PI_4)
        async with device.running():
            said = await device.says(lambda said: said.notices and said.broker.state == "up")
            status, shown = await asyncio.to_thread(device.command)
            (beat,) = await heartbeats(broker, 1)
    assert (said.health, status) == ("healthy", 0)
    assert "notice: undervoltage: the power supply" in shown
    assert "62 °C, memory 3,312 of 3,791 MiB free, disk " in shown
    assert said.line().endswith("; undervoltage: the power supply or its cable is too weak for this device")
    assert said.boottime_s == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=60)
    assert (beat["undervoltage"], beat["temperature_c"], beat["wifi_signal_dbm"]) == (True, 61.835, -60)
    assert beat["disk_total_bytes"] == os.statvfs(device.folder).f_blocks * os.statvfs(device.folder).f_frsize


async def test_a_sensor_that_hangs(beating, monkeypatch):
    """Heartbeats come without its word, measuring goes on, no thread is added; when it answers all is told again."""
    with EmbeddedBroker() as broker:
        device, root = beating(broker, PI_4)
        sensor = root / "sys/class/hwmon/hwmon0/temp1_input"
        sensor.unlink()
        os.mkfifo(sensor)
        async with device.running():
            await device.says(lambda said: said.checks_per_second)
            threads = threading.active_count()
            beats = await heartbeats(broker, 5)
            assert threading.active_count() <= threads + 1
            assert {(each["load"], each["disk_read_only"]) for each in beats} == {(None, False)}
            sensor.rename(sensor.with_name("away"))
            with sensor.with_name("away").open("wb"):
                pass
            said = await device.says(lambda said: said.vitals.undervoltage)
    assert said.vitals.load == (0.2, 0.18, 0.12)
    assert said.verdicts == {"down": 2}
