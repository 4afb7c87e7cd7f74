"""Hours of load, with a broker that goes and comes: nothing of the agent grows.

`SOAK_SECONDS` makes it long, an hour of it being what a release is given; the usual run is too short to see memory grow
and looks at files and connections only.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.delivery.mock_cluster import MockProcess
from tests.end_to_end.campaign import Campaign
from tests.end_to_end.sites import site

USUAL = 24.0
SECONDS = float(os.environ.get("SOAK_SECONDS", USUAL))
ROUND = min(120.0, SECONDS / 3)  # of which the broker is away for a sixth
TARGETS = 50  # each measured once a second
GROWTH = 4 << 20  # bytes from the second third to the last: what an allocator's moods come to


class Look(NamedTuple):
    """The agent at one moment, the broker being there."""

    memory: int
    descriptors: int
    threads: int
    files: int

    @classmethod
    def at(cls, process: psutil.Process, state: Path) -> "Look":
        files = sum(path.is_file() for path in state.rglob("*"))
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads(), files)


def test_nothing_grows(tmp_path, capsys):
    """Memory, descriptors, threads and files are after the last round what they were after the first ones."""
    looks = []
    with MockProcess() as mock, site() as served, Campaign(tmp_path, mock.address, served, TARGETS) as campaign:
        for topic in (campaign.topic, campaign.events_topic):
            mock.do("make_topic", topic)
        campaign.write()
        agent = psutil.Process(campaign.start().pid)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            served.asked.clear()
            time.sleep(ROUND / 2)
            mock.do("down")
            time.sleep(ROUND / 6)
            mock.do("up")
            time.sleep(ROUND / 3)
            looks.append(Look.at(agent, campaign.state))
            if SECONDS > USUAL:
                with capsys.disabled():
                    print(f"\n{looks[-1]}", end="")  # noqa: T201 progress on long work
        log = campaign.log
        assert campaign.stop() < 10.0
    assert "will never come" not in log
    third = max(len(looks) // 3, 1)
    before, after = looks[third : 2 * third] or looks[:1], looks[-third:]
    for name in ("descriptors", "threads", "files"):
        most = max(getattr(look, name) for look in before)
        assert max(getattr(look, name) for look in after) <= most + 8, f"{name}: {looks}"
    if SECONDS > USUAL:
        assert max(look.memory for look in after) <= max(look.memory for look in before) + GROWTH, looks
