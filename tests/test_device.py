"""The device's clocks, its run counter."""

import json
import os
import subprocess
import sys
import time

import pytest

from agent.device import clock, identity
from agent.device.clock import Clock, boottime, stamp
from agent.device.identity import LastSeq, begin_run, keep_run


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1764000000.9999999, "2025-11-24T16:00:01.000000Z"),
        (1764000000.000412, "2025-11-24T16:00:00.000412Z"),
        (-0.5, "1969-12-31T23:59:59.500000Z"),
    ],
)
def test_stamps(wall, text):
    """Stamps are RFC 3339 in UTC with microseconds, rounded, also across the second."""
    assert stamp(wall) == text


def test_stamp_is_utc_wherever_the_device_stands():
    """The time zone of the device changes nothing."""
    code = "from agent.device.clock import stamp; print(stamp(0))"
    environment = {**os.environ, "TZ": "Asia/Tokyo"}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout == "1970-01-01T00:00:00.000000Z\n"


def test_boottime_is_the_kernels():
    """Boot time is what /proc/uptime says."""
    with open("/proc/uptime") as file:
        assert boottime() == pytest.approx(float(file.read().split()[0]), abs=1.0)


def test_the_operators_word_about_the_clock():
    """`yes` and `no` are taken as they are."""
    assert Clock("yes").state().synchronized
    assert not Clock("no").state().synchronized
    assert Clock("no").state().max_error_ms is None


def test_auto_asks_kernel_and_timesyncd(monkeypatch, tmp_path):
    """Without the kernel's word, the file that timesyncd makes decides."""
    monkeypatch.setattr(clock, "TIMESYNC_FILE", str(tmp_path / "synchronized"))
    without = Clock("auto").state().synchronized
    (tmp_path / "synchronized").touch()
    assert Clock("auto").state().synchronized
    kernel = clock._libc().adjtimex(clock.ctypes.byref(clock._Timex()))
    assert without == (kernel != 5)


def test_runs_are_counted(tmp_path):
    """Each start counts one up, has its own id, and knows the one before."""
    first, before = begin_run(tmp_path / "state")
    assert (first.run, before) == (1, None)
    keep_run(tmp_path / "state", identity.Run(1, first.run_id, (LastSeq(0, "uptime.results", 7),)))
    second, before = begin_run(tmp_path / "state")
    assert second.run == 2
    assert second.run_id != first.run_id
    assert before is not None
    assert before.run_id == first.run_id
    assert before.last_seqs == (LastSeq(0, "uptime.results", 7),)
    assert os.listdir(tmp_path / "state") == ["run.json"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0" * 100, id="zeros"),
        b"{",
        b'{"run": "x"}',
        b"[]",
        b'{"run": 1}',
        b'{"run": -5, "run_id": "5f0c2a9177d04e1b"}',
        b'{"run": 18446744073709551615, "run_id": "5f0c2a9177d04e1b"}',
        b'{"run": 1, "run_id": "not hexadecimal"}',
        pytest.param(b'{"run": 1, "run_id": "\xff"}', id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b" " * (2 << 20), id="large"),
    ],
)
def test_a_damaged_counter_is_a_warning(tmp_path, caplog, content):
    """Whatever stands in the file, the agent starts and says that it could not read it."""
    (tmp_path / "run.json").write_bytes(content)
    run, before = begin_run(tmp_path)
    assert (run.run, before) == (1, None)
    assert "run.json" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["run_id"] == run.run_id


def test_a_pipe_is_not_waited_for(tmp_path, caplog):
    """Something else in the place of the file is said and replaced."""
    os.mkfifo(tmp_path / "run.json")
    run, before = begin_run(tmp_path)
    assert (run.run, before) == (1, None)
    assert "not a regular file" in caplog.text
    assert begin_run(tmp_path)[0].run == 2


def test_a_run_without_a_number_does_not_turn_the_counter_back(tmp_path):
    """When the disk was full at the start and is not at the stop, the last number that was given out stays."""
    for _ in range(3):
        begin_run(tmp_path)
    assert not keep_run(tmp_path, identity.Run(0, "0" * 16))
    assert begin_run(tmp_path)[0].run == 4


def test_an_unwritable_state_directory_is_a_warning(tmp_path, caplog):
    """Run 0 says that the counter could not be kept; measuring goes on."""
    (tmp_path / "file").touch()
    run, before = begin_run(tmp_path / "file" / "state")
    assert (run.run, before) == (0, None)
    assert len(run.run_id) == 16
    assert "cannot be kept" in caplog.text


def test_the_state_of_the_clock_is_asked_again(monkeypatch, tmp_path):
    """A clock that becomes synchronized is noticed within about a second."""
    monkeypatch.setattr(clock, "TIMESYNC_FILE", str(tmp_path / "synchronized"))
    device = Clock("auto")
    device.state()
    (tmp_path / "synchronized").touch()
    time.sleep(1.1)
    assert device.state().synchronized
