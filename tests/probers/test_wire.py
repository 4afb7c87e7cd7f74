"""The wires under all connections lose no event, give none to another, and let each have its turn."""

import asyncio
import os
import socket
import time

import pytest

from agent.probers import poll, wire
from agent.probers.wire import Wire

BYTES = 3 << 20


class Recording:
    """An end that keeps what it is told, and may do something on it."""

    def __init__(self, on_received=None):
        self.told = []
        self.data = 0
        self.on_received = on_received
        self.wire = Wire(self)

    def connected(self, now):
        self.told.append("connected")

    def received(self, data, now):
        self.data += len(data)
        if self.on_received is not None:
            self.on_received()

    def ended(self, now):
        self.told.append("ended")

    def emptied(self, now):
        self.told.append("emptied")

    def failed(self, error):
        self.told.append(type(error).__name__)

    def expired(self):
        self.told.append("expired")


@pytest.fixture
def listener(host):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        yield listening


def pair(listener, end, deadline=60.0):
    """Connects `end`; the other side of its connection."""
    end.wire.connect(*listener.getsockname()[:2], time.monotonic() + deadline)
    return listener.accept()[0]


async def until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come")


async def test_all_of_a_long_answer_comes(listener):
    """Much at once is read in turns, and to its end."""
    end = Recording()
    with pair(listener, end) as there:
        sending = asyncio.to_thread(there.sendall, bytes(BYTES))
        await sending
        there.shutdown(socket.SHUT_WR)
        await until(lambda: "ended" in end.told)
        assert end.data == BYTES
        assert end.told == ["connected", "ended"]
    end.wire.close()


async def test_a_long_answer_lets_others_have_their_turn(listener, monkeypatch):
    """While one peer sends without a break, another's event is not kept waiting for its end."""
    monkeypatch.setattr(wire, "_PIECE", 1 << 10)
    long, short, order = Recording(), Recording(), []
    long.on_received = lambda: order.append("long")
    short.on_received = lambda: order.append("short")
    with pair(listener, long) as floods, pair(listener, short) as says:
        await until(lambda: long.told and short.told)
        floods.setblocking(False)
        sent = 0
        try:
            while True:
                sent += floods.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        says.send(b"x")
        await until(lambda: short.data and long.data == sent)
        assert order.index("short") <= 2 * wire._PIECES
    for end in (long, short):
        end.wire.close()


async def test_a_long_request_is_sent_to_its_end(listener):
    """What the kernel does not take at once goes as soon as there is room, and that it went is told."""
    end = Recording()
    with pair(listener, end) as there:
        await until(lambda: end.told)
        assert not end.wire.write(bytes(2 * BYTES))
        assert not end.wire.write(bytes(BYTES))
        came = 0
        there.setblocking(False)
        while came < 3 * BYTES:
            came += len(await asyncio.get_running_loop().sock_recv(there, 1 << 16))
        await until(lambda: "emptied" in end.told)
    end.wire.close()


async def test_a_descriptor_that_was_closed_and_opened_again(listener):
    """The event of a connection that an earlier event of the same poll closed is not given to the next one."""
    first, second, third = Recording(), Recording(), Recording()
    with pair(listener, first) as one, pair(listener, second) as other:
        await until(lambda: first.told and second.told)
        descriptor = second.wire._fd

        def replace():
            second.wire.close()
            lower = []  # descriptors that something else in this process has closed meanwhile
            while (free := os.dup(0)) < descriptor:
                lower.append(free)
            os.close(free)
            third.wire.connect(*listener.getsockname()[:2], time.monotonic() + 60)
            for each in lower:
                os.close(each)

        first.on_received = replace
        one.send(b"x")
        other.send(b"x")
        time.sleep(0.05)  # so that one poll tells both
        poll.running()._look()
        assert third.wire._fd == descriptor
        assert (second.data, third.told) == (0, [])
        await until(lambda: third.told == ["connected"])
    for end in (first, third):
        end.wire.close()


async def test_a_bug_at_one_end(listener):
    """What one end raises comes back to it, and costs no other its events."""
    broken, fine = Recording(lambda: 1 / 0), Recording()
    with pair(listener, broken) as one, pair(listener, fine) as other:
        await until(lambda: broken.told and fine.told)
        one.send(b"x")
        other.send(b"x")
        time.sleep(0.05)
        await until(lambda: fine.data == 1)
        assert broken.told == ["connected", "ZeroDivisionError"]
    for end in (broken, fine):
        end.wire.close()


async def test_deadlines(listener):
    """A deadline is told once, at its time; one that was set anew or hung up before is not."""
    ends = {name: Recording() for name in ("expires", "later", "closed")}
    there = [pair(listener, end, 0.1) for end in ends.values()]
    ends["later"].wire.expire_at(time.monotonic() + 60.0)
    ends["closed"].wire.close()
    begun = time.monotonic()
    await until(lambda: "expired" in ends["expires"].told)
    assert time.monotonic() - begun > 0.05
    await asyncio.sleep(0.1)
    assert ends["expires"].told == ["connected", "expired"]
    assert ends["later"].told == ["connected"]
    assert ends["closed"].told == []
    for end in ends.values():
        end.wire.close()
    for each in there:
        each.close()


async def test_a_bug_at_a_deadline(listener):
    """What one end raises at its deadline comes back to it, and costs no other its own: neither then nor later."""
    broken, fine, later = Recording(), Recording(), Recording()
    broken.expired = lambda: 1 / 0
    until_then = time.monotonic() + 0.1
    there = [pair(listener, end) for end in (broken, fine, later)]
    for end in (broken, fine):
        end.wire.expire_at(until_then)
    later.wire.expire_at(until_then + 0.1)
    await until(lambda: "expired" in later.told)
    assert broken.told == ["connected", "ZeroDivisionError"]
    assert fine.told == later.told == ["connected", "expired"]
    for end in (broken, fine, later):
        end.wire.close()
    for each in there:
        each.close()


async def test_deadlines_do_not_pile_up(listener):
    """A thousand connections that ended long before their deadlines leave no heap of them behind."""
    for _ in range(1000):
        end = Recording()
        pair(listener, end, 3600.0).close()
        end.wire.close()
    assert len(poll.running()._deadlines) < 200
    assert poll.running()._watched == {}
