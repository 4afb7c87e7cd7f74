"""The oracle of these tests is worth something: with any one safeguard of the spool switched off, it complains."""

import contextlib
import errno
from random import Random

import pytest

from agent.spool import segment, writer
from agent.spool.ledger import Ledger
from agent.spool.store import Store
from agent.spool.writer import Writer
from tests.spool import test_every_call as every
from tests.spool.test_segment import test_every_byte_flipped as every_byte_flipped
from tests.spool.torn_disk import Crash, TornDisk


def complains(monkeypatch, power, volatile=False, seeds=1):
    """Whether the campaign finds a record missing or made up."""
    calls = every.calls_of_a_day(monkeypatch, volatile)
    for seed in range(0, seeds * 1000, 1000):
        for at in range(1, calls + 1):
            try:
                every.ends(monkeypatch, volatile, at, power, seed)
            except AssertionError:
                return True
    return False


def test_without_the_sync(monkeypatch):
    """Without fdatasync a power cut takes what was said to be safe."""
    monkeypatch.setattr(TornDisk, "sync", lambda self, file: self._call("sync"))
    assert complains(monkeypatch, power=True)


def test_without_the_sync_of_names(monkeypatch):
    """Without the sync of the directory a power cut takes whole files."""
    monkeypatch.setattr(TornDisk, "sync_directory", lambda self, directory: self._call("sync_directory"))
    assert complains(monkeypatch, power=True)


def test_without_the_sync_of_a_killed_runs_files(monkeypatch):
    """A run that was killed leaves files that were never synced: a power cut takes them later."""
    monkeypatch.setattr(Writer, "prove", lambda self, limit: None)
    assert complains(monkeypatch, power=True) or kill_then_power_cut(monkeypatch)


def kill_then_power_cut(monkeypatch):
    for seed in range(20):
        world = every.a_world(monkeypatch, False)
        try:
            world.append(5)
            world.turn()
            world.kill()
            world.start()
            world.power_cut(Random(seed))
            world.start()
            world.check()
        except AssertionError:
            return True
        finally:
            world.close()
    return False


def test_with_the_sync_of_a_killed_runs_files(monkeypatch):
    """With it, the same campaign finds nothing."""
    assert not kill_then_power_cut(monkeypatch)


def test_without_the_crc(monkeypatch):
    """Without the CRC, blocks that are zeros in part are taken for records, or fail where nobody expects it."""
    monkeypatch.setattr(segment.zlib, "crc32", lambda data, value=0: 0)
    monkeypatch.setattr(writer.zstandard, "ZstdCompressor", lambda **options: None)
    assert complains(monkeypatch, power=True, seeds=10)


def test_without_the_resync(monkeypatch):
    """Without looking for the next block after damage, what stands behind it is lost."""
    whole = segment._headers

    def stops(view, data):
        for seen in whole(view, data):
            if seen.block is None or (seen.offset and stops.last != seen.offset):
                return
            stops.last = seen.end
            yield seen

    stops.last = 0
    monkeypatch.setattr(segment, "_headers", stops)
    with pytest.raises(AssertionError):
        every_byte_flipped(None)


def test_without_the_ledger(monkeypatch):
    """Without gaps on disk, a kill right after a drop leaves a hole that nobody names."""
    monkeypatch.setattr(Ledger, "write", lambda self, area, name: None)
    assert complains(monkeypatch, power=False)


def test_dropping_before_telling(monkeypatch):
    """With the drop first and the gap after it, there is a moment without either."""
    real = Store._drop

    def late(self, key, segment):
        kept, self._keep_gaps = self._keep_gaps, lambda: None
        try:
            return real(self, key, segment)
        finally:
            del self._keep_gaps
            kept()

    monkeypatch.setattr(Store, "_drop", late)
    assert complains(monkeypatch, power=False)


def test_removing_before_the_sync_of_the_copy(monkeypatch):
    """With what is settled removed before its copy is synced, a power cut between the two takes both."""

    def careless(self, wanted):
        for new in wanted:
            self._keep([new], None)
            self._acknowledge(new.segment, len(new.records))
        if wanted:
            self._sync()

    assert not resettled(monkeypatch)
    monkeypatch.setattr(Store, "_settle", careless)
    assert resettled(monkeypatch)


def resettled(monkeypatch):
    """Whether a sync that fails, and then a power cut at any call, take what had been synced before."""
    for at in range(1, 12):
        for seed in range(8):
            world = every.a_world(monkeypatch, False)
            try:
                world.spool.broker_lost = True
                world.append(5)
                world.turn(1.5)
                world.turn(1.5)
                assert all(block.place == "synced" for block in world.spool._blocks.values())
                synced = set(world.spool._where)
                world.spool.broker_lost = False
                world.append(5)
                world.turn(0.5)
                world.spool.broker_lost = True
                world.disk.fails = {"sync": errno.EIO}
                world.turn(1.5)
                world.disk.fails = {}
                assert all(block.place == "memory" for block in world.spool._blocks.values())
                world.disk.crash_at = world.disk.calls + at
                with contextlib.suppress(Crash):
                    world.turn(1.5)
                world.power_cut(Random(seed))
                world.may_be_lost -= synced
                world.start()
                world.check()
            except AssertionError as error:
                assert "lost and not named" in str(error)  # noqa: PT017 which of the assertions it was
                return True
            finally:
                world.close()
    return False
