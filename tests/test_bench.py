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
PROGRAMS = {"blackbox": ("prometheus-blackbox-exporter", "blackbox_exporter"), "floor": ("cc",)}
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
    whole, said = bench("cost", "--rates", "20", "--https-rates", "20", *TINY, environment=alone)
    assert_ways(whole, said)
    assert [(entry["scheme"], entry["rate"]) for entry in whole["cost"]] == [("http", 20), ("https", 20)]
    for entry in whole["cost"]:
        assert entry["peers"].keys() == {"agent", "aiohttp"}
        for one in entry["peers"].values():
            assert one["cpu_us"] > 0
            assert one["rss_mib"] > 1
            assert not one["saturated"]
        assert entry["peers"]["agent"]["records"] > 0.9
        assert entry["ratios"].keys() == {"aiohttp"}
        assert entry["ratios"]["aiohttp"] > 0


def test_truth(alone):
    """Every check of the agent and of aiohttp is found at the farm, with how far its figures are from what it saw."""
    whole, said = bench("truth", "--rate", "20", "--delay", "20", *TINY, environment=alone)
    assert_ways(whole, said)
    found = whole["truth"]
    assert (found["rate"], found["delay_ms"]) == (20, 20)
    assert found["peers"].keys() == {"agent", "aiohttp"}
    for name, one in found["peers"].items():
        assert one["expected"] == 20
        assert one["measured"] + one["missed"] == 20
        assert one["missed"] < 5
        assert (one["unseen"], one["untold"], one["false_alarms"]) == (0, 0, 0)
        for figure in ("whole", "arrival", "start", *(["wait"] if name == "agent" else [])):
            assert 0 < one[f"{figure}_p50"] <= one[f"{figure}_p99"] < 500
        assert 1 <= one["burst_planned"] <= one["burst"] + 10


def test_the_witness(monkeypatch):
    """Errors, and checks that only one side knows, come out as they were put in; the farm's lateness is nobody's."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from benchmarks.farm import Seen
    from benchmarks.reports import Check, Report
    from benchmarks.witness import Window, figures

    def check(target, due, wait_ms, up=True):
        return Check(target, due, due + 0.001, 1.0, wait_ms + 0.5, wait_ms, up)

    def seen(target, arrived, took):
        return Seen(target, arrived, arrived, arrived + 0.7, arrived + took, arrived + took)

    checks = [check(0, 100.0, 21.0), check(0, 101.0, 825.0), check(1, 100.5, 20.0), check(2, 100.2, 9.0, up=False)]
    at_the_farm = [seen(0, 100.002, 0.02), seen(0, 101.004, 0.82), seen(3, 100.1, 0.02), seen(2, 100.202, 0.02)]
    found = figures(Report(checks, [100.4, 99.0]), at_the_farm, Window(100.0, 2.0), 8)
    assert (found["wait_p50"], found["wait_p99"]) == pytest.approx((1.0, 5.0), abs=1e-3)
    assert (found["whole_p50"], found["whole_p99"]) == pytest.approx((1.5, 5.5), abs=1e-3)
    assert (found["arrival_p50"], found["arrival_p99"]) == pytest.approx((2.0, 4.0), abs=1e-3)
    assert found["start_p99"] == pytest.approx(1.0)
    counts = ("measured", "missed", "missed_told", "unseen", "untold", "false_alarms")
    assert [found[count] for count in counts] == [3, 5, 1, 1, 1, 1]
    assert (found["burst"], found["burst_planned"]) == (1, 1)


def test_memory(alone):
    """RSS by number of targets, what a silent connection holds, and what each package adds until it is the whole."""
    few = ["--targets", "20", "--interval", "1", "--in-flight", "20", "--in-flight-interval", "1", "--seconds", "0.5"]
    whole, _ = bench("memory", *few, "--json", environment=alone)
    found = whole["memory"]
    (one,) = found["targets"]
    assert (one["targets"], one["peer"]) == (20, "agent")
    assert 1 < one["rss_mib"] <= one["peak_mib"]
    assert one["rate"] > 10
    assert [(each["scheme"], each["open"] > 10) for each in found["in_flight"]] == [("http", True), ("https", True)]
    packages = {row["what"]: row["mib"] for row in found["imports"]["rows"]}
    assert packages.keys() >= {"agent", "asyncio", "ssl", "uvloop", "confluent_kafka", "yaml"}
    assert 0 < found["imports"]["python"] + sum(packages.values()) <= found["imports"]["end"]


def test_start(alone):
    """Each start has its seconds until the farm was first connected to, also those of another checkout's agent."""
    whole, _ = bench("start", "--targets", "20", "--rounds", "2", "--other", str(ROOT), "--json", environment=alone)
    assert whole["start"]["peers"].keys() == {"agent", ROOT.name}
    for one in whole["start"]["peers"].values():
        assert len(one["rounds"]) == 2
        assert 0.05 < min(one["rounds"]) <= one["seconds"] <= max(one["rounds"]) < 30


def test_resolver():
    """Lookups have their cost and the error of their time, beside those of other resolvers; none fails."""
    whole, _ = bench("resolver", "--rates", "20", *TINY)
    (entry,) = whole["resolver"]["rates"]
    assert entry["peers"].keys() | whole["absent"].keys() == {"agent", "getaddrinfo", "aiodns"}
    assert entry["ratios"].keys() == entry["peers"].keys() - {"agent"}
    for one in entry["peers"].values():
        assert one["cpu_us"] > 0
        assert one["failed"] == 0
        assert one["questions"] == pytest.approx(2, abs=0.5)
        assert 0 < one["error_p50"] <= one["error_p99"] < 500


def test_spool(alone):
    """The spool has its cost, its bytes of flash (as root) and its replay; nothing stays mounted."""
    few = ["--rates", "40", "--flash-rates", "40", "--flash-seconds", "3", "--backlog", "16", "--live", "20"]
    alone["PATH"] += ":/usr/sbin:/usr/bin:/sbin:/bin"
    whole, _ = bench("spool", *few, *TINY, environment=alone)
    found = whole["spool"]
    (entry,) = found["cpu"]
    assert entry["ways"].keys() == {"without", "with", "volatile"}
    assert all(one["cpu_us"] > 0 for one in entry["ways"].values())
    assert 500 < entry["bytes_a_record"] < 3_000
    if "flash" not in whole["absent"]:
        assert [one["broker"] for one in found["flash"]] == ["up", "up, volatile", "away"]
        assert found["flash"][2]["bytes"] > 50
    assert found["backlog"]["records"] > 10_000
    assert 0.05 < found["backlog"]["with"]["start"] < 30
    assert 1 < found["backlog"]["with"]["rss_mib"] <= found["backlog"]["with"]["peak_mib"]
    assert found["replay"]["nothing"] > 1_000
    assert found["replay"]["with"]["records"] > found["replay"]["without"]["records"] > 10
    assert "uptime-agent-bench" not in Path("/proc/mounts").read_text()


def test_peers_that_are_here():
    """Those that this machine has are measured as well."""
    peers = {name for name, programs in PROGRAMS.items() if any(map(shutil.which, programs))}
    if not peers:
        pytest.skip("there is none of them")
    names = ",".join(sorted(peers))
    whole, _ = bench("cost", "--peers", f"agent,{names}", "--rates", "20", "--https-rates", "", *TINY)
    (entry,) = whole["cost"]
    assert entry["ratios"].keys() == peers
    assert not any(entry["peers"][peer]["saturated"] for peer in peers)
    whole, _ = bench("truth", "--peers", names, "--rate", "20", *TINY)
    assert whole["truth"]["peers"].keys() == peers
    for one in whole["truth"]["peers"].values():
        assert one["measured"] >= 15
        assert (one["unseen"], one["untold"], one["false_alarms"]) == (0, 0, 0)
        assert 0 < one["wait_p50"] < 500


def test_an_unknown_peer():
    """It is told which there are."""
    command = [sys.executable, ROOT / "scripts" / "bench.py", "cost", "--peers", "agent,nagios"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bench: nagios: not a peer; there are agent, aiohttp, blackbox, telegraf, floor\n"


def test_interrupted(alone):
    """Ctrl-C in the middle ends it and all that it started."""
    alone["UPTIME_AGENT_TEST"] = mark = f"bench-{os.getpid()}"
    command = [sys.executable, ROOT / "scripts" / "bench.py", "cost", *TINY, "--seconds", "60"]
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
