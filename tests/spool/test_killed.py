"""kill -9 again and again, with real processes on a real directory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.spool.record import Origin
from tests.spool.agent import Agent, files
from tests.spool.witnessed import Witness

ROOT = Path(__file__).parent.parent.parent
# The usual run; thousands with SPOOL_KILLS.
KILLS = int(os.environ.get("SPOOL_KILLS", "20"))
NEXT = Origin(1 << 20, "f" * 16, 0)


def the_process(tmp_path, volatile, kills=0, seed=0, max_size=10 << 20, sync="with", spool=None):
    arguments = [spool or tmp_path / "spool", volatile or "", tmp_path / "witness", kills, seed, max_size, sync]
    command = [sys.executable, "-m", "tests.spool.witnessed", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(120 + KILLS)
@pytest.mark.parametrize("max_size", [30_000, 10 << 20], ids=["full", "roomy"])
@pytest.mark.parametrize("volatile", ["volatile", "without"])
async def test_killed_again_and_again(tmp_path, volatile, max_size):
    """Each kill -9 takes at most what was made in the current tick; all else arrives, or was dropped and is named.

    A kill between the telling and the dropping leaves records that are named and come all the same: better than none.
    """
    volatile = tmp_path / "volatile" if volatile == "volatile" else None
    with the_process(tmp_path, volatile, KILLS, seed=KILLS, max_size=max_size) as process:
        said = process.stderr.read().splitlines()
        assert process.wait() == 0
    assert [line for line in said if "will never come: spool_full (" not in line] == []
    witness = Witness(tmp_path / "witness")
    agent = Agent(tmp_path / "spool", NEXT, volatile=volatile, max_size=max_size)
    await agent.spool.open()
    await agent.deliver_all()
    assert await agent.spool.close(5) == 0
    witness.hear(agent)
    assert not witness.missing() & witness.kept
    last = {}
    for record, tick in witness.ticks.items():
        last[record[0]] = max(last.get(record[0], 0), tick)
    assert all(witness.ticks[record] == last[record[0]] for record in witness.missing()), "more than one tick"
    assert files(tmp_path) == ["witness"]
    # The campaign proves something only if all of this occurred.
    assert witness.reasons == ({"spool_full"} if max_size == 30_000 else set())
    assert max(witness.arrived.values()) > 1
    assert len({record[0] for record in witness.made}) > KILLS / 10


def test_two_processes(tmp_path):
    """While one process has the spool a second one is told so, and as soon as the first is killed it may have it."""
    opens = """if True:
        import pathlib, sys, time
        from agent.spool.area import SpoolInUse
        from agent.spool.store import Store
        from tests.spool.records import ORIGIN
        try:
            Store(pathlib.Path(sys.argv[1]), ORIGIN).open()
            print("opened", flush=True)
            time.sleep(60)
        except SpoolInUse as error:
            print(error, flush=True)
    """

    def another():
        command = [sys.executable, "-c", opens, str(tmp_path / "spool")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    with another() as first:
        try:
            assert first.stdout.readline() == "opened\n"
            with another() as second:
                assert second.stdout.read() == f"{tmp_path}/spool: another uptime-agent uses this spool\n"
        finally:
            first.send_signal(signal.SIGKILL)
        first.wait()
        with another() as third:
            assert third.stdout.readline() == "opened\n"
            third.kill()
