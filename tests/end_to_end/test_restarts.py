"""The agent is killed, stopped and started again, with a broker that comes and goes and a state that comes and goes."""

import contextlib
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent.device.clock import boottime
from tests.delivery.mock_cluster import MockProcess
from tests.end_to_end.campaign import BACK, SETTLED, Campaign
from tests.end_to_end.sites import Site, site

KILLS = int(os.environ.get("CAMPAIGN_KILLS", "6"))
QUICK = "  properties: {reconnect.backoff.ms: 50, reconnect.backoff.max.ms: 200}"  # to meet a broker that flaps
SPREAD = 10.0  # seconds within which the backlog begins, at random
BUSY = 5.0  # seconds that a busy machine may add


@pytest.fixture
def plain() -> Iterator[Site]:
    with site() as plain:
        yield plain


@pytest.fixture
def mock() -> Iterator[MockProcess]:
    with MockProcess() as mock:
        yield mock


@contextlib.contextmanager
def a_device(folder, mock, plain, **options) -> Iterator[Campaign]:
    """A device with topics on the mock cluster."""
    with Campaign(folder, mock.address, plain, **options) as device:
        mock.do("make_topic", device.topic)
        mock.do("make_topic", device.events_topic)
        device.follow()
        yield device


@contextlib.contextmanager
def flapping(mock: MockProcess, chance: random.Random) -> Iterator[None]:
    """A broker that is there for a moment, away for a moment, and so on; there at the end."""
    over = threading.Event()

    def flap() -> None:
        while not over.wait(chance.uniform(0.3, 1.2)):
            mock.do("down")
            over.wait(chance.uniform(0.2, 0.8))
            mock.do("up")

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.timeout(180 + 5 * KILLS)
def test_killed_again_and_again(mock, plain, tmp_path):
    """kill -9 at random moments, a broker that flaps, stays away and is slow, and a small spool: each kill takes at
    most what was measured in the last moment, the bound takes what it must, and the rest arrives.
    """
    seed = random.randrange(1 << 32)
    print("seed", seed)  # noqa: T201  (shown with a failure)
    chance = random.Random(seed)
    with a_device(tmp_path, mock, plain) as device:
        device.write(kafka=QUICK, more="spool: {max_size: 1MiB, min_free: 0}", noise=60)
        with flapping(mock, chance):
            for _ in range(KILLS):
                device.start()
                device.arrivals.poll(chance.uniform(0.5, 3.0))
                device.kill()
        mock.do("down")
        for _ in range(2):  # together more than the spool takes
            device.start()
            device.arrivals.poll(8)
            device.kill()
        mock.do("up")
        device.start()
        device.live_again(boottime())
        mock.do("answer_after", 3_000)  # so that a kill comes between an arrival and the word of it
        time.sleep(2)
        device.kill()
        mock.do("answer_after", 0)
        device.start()
        device.live_again(boottime())
        device.settled()
        device.stop()
        device.arrivals.poll(2)
        account = device.account(device.arrivals.by_topic)
    # Of a run that was killed soon, or early, all may be gone.
    assert set(account.runs.values()) <= set(range(1, KILLS + 5))
    assert len(set(account.runs.values())) == len(account.runs) > 3
    assert account.repeats, "no record came twice"
    assert account.dropped, "the bound took nothing"
    assert account.in_order


def test_a_stop_without_a_broker(mock, plain, tmp_path):
    """A stop with the broker away takes at most 10 s and ends with status 0; after the next start live records come
    first, then within some random seconds what waited, all of it.
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(3) as threads:
        devices = [stack.enter_context(a_device(tmp_path / str(number), mock, plain)) for number in range(3)]
        mock.do("down")
        for device in devices:
            device.write()
            device.start()
        devices[0].arrivals.poll(4)
        took = list(threads.map(Campaign.stop, devices))
        assert max(took) < 10
        mock.do("up")
        for device in devices:
            device.start()
        waits = list(threads.map(backlog_after, devices))
        assert max(waits) < SPREAD + BUSY
        assert max(waits) - min(waits) > 0.1, "they all began at once"
        for device in devices:
            device.settled()
            device.stop()
            account = device.account()
            assert (account.dropped, account.repeats, account.lost_at_ends) == (0, 0, 0)
            assert list(account.runs.values()) == [2, 1], "what is live comes first"
            assert account.in_order


def backlog_after(device: Campaign) -> float:
    """Seconds from the first live record to the first of the backlog."""
    begun = boottime()
    while len(device.arrivals.first) < 2:
        assert boottime() - begun < SETTLED, device.log
        device.arrivals.poll(0.1)
    live, backlog = device.arrivals.first.values()
    assert live - begun < BACK
    return backlog - live


def test_a_state_that_is_wiped_and_one_that_is_old(mock, plain, tmp_path):
    """Neither a wiped state directory nor one from a backup, with records in it that have arrived since, makes an id
    mean two things; nothing is lost.
    """
    with a_device(tmp_path, mock, plain) as device:
        device.write()
        mock.do("down")
        running = device.start()
        device.arrivals.poll(3)
        (first,) = re.findall(r"run 1 \((\w+)\)", running.log)
        device.stop()
        shutil.copytree(device.state, tmp_path / "backup")
        mock.do("up")
        run(device, backlog_of=first)
        shutil.rmtree(device.state)
        shutil.copytree(tmp_path / "backup", device.state)
        run(device, backlog_of=first)
        shutil.rmtree(device.state)
        run(device)
        account = device.account()
    assert sorted(account.runs.values()) == [1, 1, 2, 2]
    assert account.repeats, "the backup's backlog did not come again"
    assert (account.dropped, account.lost_at_ends) == (0, 0)


def run(device: Campaign, backlog_of: str = "") -> None:
    """From a start to a stop when all has arrived, with what that earlier run had left."""
    before = arrivals_of(device, backlog_of)
    running = device.start()
    device.live_again(boottime())
    limit = boottime() + SETTLED
    while backlog_of and arrivals_of(device, backlog_of) == before:
        assert boottime() < limit, running.log
        device.arrivals.poll(0.2)
    device.arrivals.poll(1)
    device.settled()
    device.stop()


def arrivals_of(device: Campaign, run_id: str) -> int:
    """How many results of that run have arrived, repeats too."""
    ids = [each.headers["id"].decode() for each in device.arrivals.by_topic[device.topic]]
    return sum(f"/{run_id}/" in name for name in ids)
