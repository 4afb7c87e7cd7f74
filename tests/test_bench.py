"""The benchmark as a person runs it, with tiny numbers: that it measures, not what comes out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WAYS = {"blackbox": "apt-get install", "telegraf": "install Go", "floor": "apt-get install"}
TINY = ["--rounds", "1", "--seconds", "1", "--json"]


@pytest.fixture
def alone(tmp_path):
    """An environment in which no peer but aiohttp is to be found; at the end no temporary file may be left in it."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    yield {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(temporary)}
    assert not list(temporary.iterdir())


def bench(*arguments, environment=None):
    """What it printed as JSON, and what it said on the way."""
    command = [sys.executable, ROOT / "scripts" / "bench.py", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def assert_ways(whole, said):
    assert whole["absent"].keys() == WAYS.keys()
    for name, way in WAYS.items():
        assert way in whole["absent"][name]
        assert f"{name} is not here, and left out; to get it: " in said
    assert whole["machine"]["cpu"]


def test_cost(alone):
    """The agent beside aiohttp, HTTP and HTTPS: each has its cost, the agent its ratio and all of its records."""
    whole, said = bench("cost", "--rates", "20,30", "--https-rates", "20", *TINY, environment=alone)
    assert_ways(whole, said)
    assert [(entry["scheme"], entry["rate"]) for entry in whole["cost"]] == [("http", 20), ("http", 30), ("https", 20)]
    for entry in whole["cost"]:
        assert entry["peers"].keys() == {"agent", "aiohttp"}
        for one in entry["peers"].values():
            assert one["cpu_us"] > 0
            assert one["rss_mib"] > 1
            assert not one["saturated"]
        assert entry["peers"]["agent"]["records"] > 0.9
        assert entry["ratios"].keys() == {"aiohttp"}
        assert entry["ratios"]["aiohttp"] > 0


@pytest.mark.parametrize(
    ("peer", "programs"), [("blackbox", ("prometheus-blackbox-exporter", "blackbox_exporter")), ("floor", ("cc",))]
)
def test_peers_that_are_here(peer, programs):
    """Those that this machine has are measured as well, as is another checkout's agent."""
    if not any(map(shutil.which, programs)):
        pytest.skip(f"there is no {programs[0]}")
    whole, _ = bench(
        "cost", "--peers", f"agent,{peer}", "--other", str(ROOT), "--rates", "20", "--https-rates", "", *TINY
    )
    (entry,) = whole["cost"]
    assert entry["ratios"].keys() == {peer, ROOT.name}
    assert not entry["peers"][peer]["saturated"]


def test_an_unknown_peer():
    """It is told which there are."""
    command = [sys.executable, ROOT / "scripts" / "bench.py", "cost", "--peers", "agent,nagios"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bench: nagios: not a peer; there are agent, aiohttp, blackbox, telegraf, floor\n"


def test_interrupted(alone):
    """Ctrl-C in the middle ends it and all that it started."""
    alone["UPTIME_AGENT_TEST"] = mark = f"bench-{os.getpid()}"
    command = [sys.executable, ROOT / "scripts" / "bench.py", "cost", *TINY]
    with subprocess.Popen(command, env=alone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "cost: http at 100/s" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, "", "")
    assert [each for each in Path("/proc").glob("[0-9]*") if mark in environment(each)] == []


def environment(process):
    try:
        return (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.timeout(900)
@pytest.mark.skipif(not shutil.which("flock"), reason="needs bash and flock")
def test_the_command():
    """`./scripts/bench` makes what it needs and explains itself."""
    done = subprocess.run([ROOT / "scripts" / "bench", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ./scripts/bench")
