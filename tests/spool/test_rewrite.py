"""Stamps are put right in what nobody has seen, on disk before it goes, and nowhere else."""

import asyncio

import pytest

from agent.spool.record import Record
from tests.delivery.in_memory import ORIGIN, a_spool
from tests.spool.conservation import World
from tests.spool.records import RESULTS, a_record
from tests.spool.torn_disk import TornDisk


def right(record: Record) -> Record:
    return record._replace(at="2026-11-25T00:00:00.000000Z", value=b"right" + record.value)


class Line:
    def __init__(self):
        self.disk = TornDisk()
        self.spool = a_spool(lambda gap: pytest.fail(f"{gap}"), self.disk)
        self.number = 0

    def append(self, count):
        for _ in range(count):
            self.number += 1
            self.spool.append(a_record(self.number))
        self.spool.turn()

    def take(self, limit=1000):
        return self.spool.take(RESULTS, limit)

    def left_on_disk(self):
        """What the next run finds."""
        self.disk.kill()
        next_run = a_spool(lambda gap: pytest.fail(f"{gap}"), self.disk, ORIGIN._replace(run=2, run_id="1" * 16))
        next_run.turn()
        return next_run.take_backlog(RESULTS, 1000)


def test_what_nobody_has_seen_goes_with_right_stamps():
    """What is written and what is not yet: all go in their order with the new value, and the disk has no other."""
    line = Line()
    line.append(2)
    line.append(2)
    line.spool.append(a_record(5))
    assert line.spool.rewrite(right)
    assert line.take() == []
    line.spool.turn()
    line.spool.turn()
    expected = [right(a_record(number)) for number in range(1, 6)]
    assert line.take() == expected
    assert line.left_on_disk() == expected


def test_what_was_seen_stays_as_it_is():
    """A repeat is the same byte for byte: what Kafka may have, or may get at any moment, is not touched; what stands
    beside it in one file is, and the file is gone.
    """
    line = Line()
    line.append(2)
    line.spool.give_back(line.take())
    line.append(2)
    on_the_way = line.take(3)
    assert [record.seq for record in on_the_way] == [1, 2, 3]
    line.append(1)
    assert line.spool.rewrite(right)
    line.spool.turn()
    line.spool.give_back(on_the_way)
    expected = [*(a_record(number) for number in range(1, 5)), right(a_record(5))]
    assert line.take() == expected
    assert line.left_on_disk() == expected


def test_what_arrives_meanwhile_is_gone():
    """Acknowledged between the writing and its end, or after it, it comes from neither file again."""
    line = Line()
    line.append(2)
    on_the_way = line.take(2)
    line.append(1)
    assert line.spool.rewrite(right)
    line.spool.acknowledge(on_the_way[:1])
    line.spool.turn()
    line.spool.acknowledge(on_the_way[1:])
    line.spool.acknowledge(line.take())
    line.spool.turn()
    assert len(line.spool) == 0
    assert line.left_on_disk() == []


def test_what_arrived_is_no_hindrance():
    """What follows records that arrived is put right, and the file of those is gone with it."""
    line = Line()
    line.append(2)
    line.append(2)
    line.spool.acknowledge(line.take(3))
    assert line.spool.rewrite(right)
    line.spool.turn()
    assert line.take() == line.left_on_disk() == [right(a_record(4))]


def test_what_was_taken_back_unsent_was_not_seen():
    """What waited in the producer while there was no broker is put right as well."""
    line = Line()
    line.append(3)
    line.spool.give_back(line.take(), unsent=True)
    assert line.spool.rewrite(right)
    line.spool.turn()
    assert line.take() == [right(a_record(number)) for number in range(1, 4)]


def test_an_answer_that_is_not_heard_yet(monkeypatch):
    """Between the disk's answer and its hearing nothing is asked for again: each record is on disk once, and goes."""
    world = World(monkeypatch, volatile=False)
    try:
        world.append(3)
        world.spool.turn()
        world.spool.turn()
        world.do(asyncio.sleep(0))
        records = world.take(10)
        assert len(records) == 3
        world.arrive(records)
        world.turn()
        assert world.disk.bytes() == 0
    finally:
        world.close()


def test_what_need_not_change_is_not_written_again():
    """When all stamps are right the disk has nothing to do."""
    line = Line()
    line.append(3)
    calls = line.disk.calls
    assert line.spool.rewrite(lambda record: record)
    line.spool.turn()
    assert line.disk.calls == calls
    assert len(line.take()) == 3
