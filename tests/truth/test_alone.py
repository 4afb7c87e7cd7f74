"""A device with one target only: what else tells whether there is a way out. And one that lives in 1970."""

import os
import shutil
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.probers import certificates
from tests.truth.world import ROOT, Agent, World, missing

DEAD = "  - {id: dead, url: 'http://11.7.9.9/', timeout: 500ms}\n"
REFERENCES = {
    "nothing": {},
    "reference": {"more": "uplink: {references: ['http://11.7.1.1/']}"},
    "dead references": {"more": "uplink: {references: ['http://11.7.9.1/', 'http://11.7.9.2:82/']}"},
    "broker": {"broker": "11.7.1.1:80"},
    "neighbour": {"more": "uplink: {references: ['http://10.77.0.1:9/']}"},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What each of them recorded of its one target, which is silent, while all is well."""
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    world = World()
    try:
        folder = tmp_path_factory.mktemp("alone")
        agents = {name: Agent(world, folder / name, DEAD, **options) for name, options in REFERENCES.items()}
        time.sleep(6.0)
        records = {name: agent.stop() for name, agent in agents.items()}
    finally:
        world.close()
    return {name: [each for each in told if "target" in each and each["duration_ms"]] for name, told in records.items()}


def verdicts(records: list[dict]) -> set[str]:
    return {each["status"] for each in records[:-2]}  # the last may have been cut short by the stop


def test_without_anything_else_silence_is_unknown(alone):
    """With nobody else to ask, nobody knows whose fault it is; a neighbour that refuses is no witness for the world."""
    assert verdicts(alone["nothing"]) == {"unknown"}
    assert verdicts(alone["neighbour"]) == {"unknown"}
    assert alone["neighbour"][0]["evidence"]["answered"] >= 1


def test_a_reference_proves_the_way_out(alone):
    """A reference that answers just then is enough to blame the target, which was asked twice."""
    assert verdicts(alone["reference"]) == {"down"}
    first = alone["reference"][0]
    assert first["evidence"]["other"] == "reference http://11.7.1.1/"
    assert [look["error"] for look in first["second_look"]] == ["connect_timeout"]
    assert first["duration_ms"] < 700 < first["evidence"]["waited_ms"] < 2500


def test_a_broker_proves_the_way_out(alone):
    """So is a Kafka broker, far away."""
    assert verdicts(alone["broker"]) == {"down"}


def test_dead_references(alone):
    """When all that is asked is silent, too, there is no way out, as far as anyone can tell."""
    assert verdicts(alone["dead references"]) == {"unknown"}


def test_a_clock_that_stands_in_1970(tmp_path: Path) -> None:
    """A device that knows that its clock is not right blames no certificate, and all else as ever."""
    if why := missing() or ("" if shutil.which("cc") else "there is no cc, to make what moves a clock"):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    library, source = tmp_path / "clock_shift.so", ROOT / "tests" / "end_to_end" / "clock_shift.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    shift, ca = tmp_path / "shift", tmp_path / "ca.pem"
    shift.write_bytes(struct.pack("q", round(200 * 24 * 3600 - time.time())))
    ca.write_text(certificates.trusted())
    targets = "".join(f"  - {{id: t{n}, url: 'https://n{n}.example/', tls: {{ca: '{ca}'}}}}\n" for n in range(1, 4))
    targets += "  - {id: well, url: 'http://n5.example/'}\n  - {id: ill, url: 'http://n5.example/ill'}\n"
    targets += "  - {id: closed, url: 'https://n5.example:82/'}\n"
    world = World()
    try:
        environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}
        agent = Agent(world, tmp_path / "device", targets, synchronized="no", environment=environment)
        time.sleep(6.0)
        records = [each for each in agent.stop() if "target" in each and each["duration_ms"] is not None]
    finally:
        world.close()
    assert records[0]["started_at"].startswith("1970-")
    told = Counter((each["target"]["id"], each["status"], (each["error"] or {}).get("code")) for each in records)
    assert set(told) == {
        *((f"t{n}", "unknown", "clock_unsynchronized") for n in range(1, 4)),
        ("well", "up", None),
        ("ill", "down", "status_mismatch"),
        ("closed", "down", "connect_refused"),
    }
