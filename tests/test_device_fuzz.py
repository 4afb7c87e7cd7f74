"""What the kernel's tables may hold, whatever it is, and stamps of all times."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.device import uplink
from agent.device.clock import stamp
from agent.device.uplink import Ways, _four, _neighbour, _rows, _six
from tests.fuzz import examples

# A good row of each table, as proc(5) and the kernel have it.
ROUTE = "eth0\t0002A8C0\t0102A8C0\t0003\t0\t0\t100\t00FFFFFF\t0\t0\t0" + " " * 60
ROUTE_6 = (
    f"{'20010db8' + '0' * 24} 40 {'0' * 32} 00 {'fe80' + '0' * 27 + '1'} 00000400 00000001 00000000 00000003     eth0"
)
NEIGHBOUR = "192.168.2.1      0x1         0x2         02:fc:00:00:00:05     *        eth0"
READ = {"route": (ROUTE, _four), "ipv6_route": (ROUTE_6, _six), "arp": (NEIGHBOUR, _neighbour)}
PIECES = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["\t", " ", "\0", "\u2028", "-1", "0x", "FFFFFFFFFF", "٣", "1" * 40, "0203", "0200", "eth0", "lo"]),
)


@pytest.mark.parametrize("table", READ)
@examples()
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 12), PIECES), max_size=4), st.integers(0, 200))
@example([], 40)
def test_any_row(table, tmp_path, changes, cut):
    """A row that is cut or mistyped is read, or left out; the good ones around it are read."""
    good, row_of = READ[table]
    row = good
    for at, length, piece in changes:
        at %= len(row) + 1
        row = row[:at] + piece + row[at + length :]
    row = row[:cut] if not changes else row
    file = tmp_path / table
    file.write_bytes(f"Heading of it\n{good}\n{row}\n{good}\n".encode("utf-8", "surrogateescape") + b"\xff\xfe\n")
    found = list(_rows(str(file), row_of))
    assert found[0] == found[-1] == row_of(good)
    assert 2 <= len(found) <= 3 + row.count("\n")


def test_a_table_longer_than_is_read(tmp_path, monkeypatch):
    """What the bound cuts off is the last row that is read, and half of it is none."""
    monkeypatch.setattr(uplink, "LARGEST_TABLE", 3 * len(ROUTE) - 70)
    (tmp_path / "route").write_text("\n".join([ROUTE] * 9))
    assert len(list(_rows(str(tmp_path / "route"), _four))) == 2


def test_no_table(tmp_path):
    """Where there is none, nothing is known."""
    assert list(_rows(str(tmp_path / "none"), _four)) == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
def test_an_interface_with_a_name_that_is_no_text():
    """The kernel allows any bytes but a few in the name of an interface, and the ways are told all the same."""
    code = (
        "from agent.device.uplink import Ways; ways = Ways(); ways.look(1.0);"
        "print(ways.to('192.0.2.9', 1.0).route, ways.to('2001:db8::9', 1.0).route)"
    )
    script = (
        "name=$'w\\xff'; ip link add $name type veth peer name other && ip addr add 192.0.2.1/24 dev $name"
        f' && ip link set $name up && exec "$0" -c "{code}"'
    )
    ran = subprocess.run(
        ["unshare", "-n", "bash", "-c", script, sys.executable], capture_output=True, text=True, check=False
    )
    if "unshare" in ran.stderr or "RTNETLINK" in ran.stderr:
        pytest.skip(ran.stderr)
    assert (ran.stderr, ran.stdout) == ("", "True False\n")


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEARS = st.floats(-62_135_596_800, 253_402_300_798, allow_nan=False)


@examples()
@given(YEARS)
@example(-62_135_596_800.0)
@example(253_402_300_798.0)
@example(-0.0000001)
def test_stamps_of_all_times(wall):
    """A stamp is RFC 3339 to the microsecond from the year 1 to 9999, so that it can be read and sorted as text."""
    text = stamp(wall)
    assert len(text) == len("2026-11-23T16:33:11.000412Z")
    assert datetime.fromisoformat(text) == EPOCH + timedelta(microseconds=round(wall * 1e6))


def test_ways_for_any_address():
    """The way to an address of any form is told, or unknown."""
    ways = Ways()
    for address in (
        "192.0.2.1",
        "::1",
        "fe80::1%lo",
        "fe80::1%nowhere",
        "::ffff:192.0.2.1",
        "255.255.255.255",
        "0.0.0.0",
    ):
        ways.to(address, 1.0)
