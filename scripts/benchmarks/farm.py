"""The target farm: sites on loopback addresses that answer after a known delay, and the witness of every request.

`farm.py DELAY [CERTIFICATE]`: DELAY in seconds, negative for never; with a PEM file of key and certificate it speaks
TLS. It prints one line of JSON, its addresses, and then answers each line on standard input with one:
`count` (connections, requests, answers so far, and connections that are open now), `log FILE` (from now on keeps what
it sees; at the next one writes what was kept), until standard input ends.

One thread on epoll, because it must never be what is slow, and because it takes the kernel's own stamp of a request's
arrival (SO_TIMESTAMPNS, socket(7)): a farm that comes late to its own sockets still knows when the request was there.
"""

import contextlib
import ctypes
import heapq
import json
import os
import select
import socket
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

ADDRESSES = [f"127.0.1.{number}" for number in range(1, 17)]  # many, so that no pair of addresses runs out of ports
BODY = b"<!doctype html><title>It works</title>" + b"<p>Nothing to see here, move along.</p>" * 15
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: farm\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/html\r\n"
    b"Cache-Control: no-store\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY)
) + BODY
BACKLOG = 4_096
MOST_LOGGED = 2_000_000
SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>; the ssl module's Python has no name for it
_STAMP = struct.Struct("@qq")  # struct timespec
_TIMER = struct.Struct("@qqqq")  # struct itimerspec
_TIMER_ABSTIME = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # Python has os.timerfd_create from 3.13 on


class Seen(NamedTuple):
    """One request as the farm saw it, in seconds since 1970: which target's, when its connection was taken, when the
    kernel had the request, when the farm read it, and when it began and ended handing the answer to the kernel.
    """

    target: int
    accepted: float
    arrived: float
    read: float
    answered: float
    sent: float


class Connection:
    """One accepted connection, until it was answered."""

    __slots__ = ("accepted", "arrived", "file", "incoming", "outgoing", "read", "secured", "session", "target")

    def __init__(self, file: socket.socket, context: ssl.SSLContext | None) -> None:
        self.file = file
        self.accepted = self.arrived = self.read = 0.0
        self.target = -1
        self.secured = False
        self.session: ssl.SSLObject | None = None
        if context is not None:
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.session = context.wrap_bio(self.incoming, self.outgoing, server_side=True)


class Farm:
    """Serves until standard input ends."""

    def __init__(self, delay: float, context: ssl.SSLContext | None) -> None:
        self._delay, self._context = delay, context
        self._epoll = select.epoll()
        self._listeners = {listener.fileno(): listener for listener in map(_listen, ADDRESSES)}
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Connection]] = []
        self._timer = _LIBC.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        self._accepted = self._requests = self._answers = 0
        self._log: list[Seen] | None = None

    def serve(self) -> None:
        """Until standard input ends."""
        for number in self._listeners:
            self._epoll.register(number, select.EPOLLIN)
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._epoll.register(self._timer, select.EPOLLIN | select.EPOLLET)  # so that it need not be read
        addresses = [f"{host}:{port}" for host, port in (each.getsockname() for each in self._listeners.values())]
        print(json.dumps(addresses), flush=True)
        while True:
            if self._due:
                self._set_timer(self._due[0][0])
            for number, events in self._epoll.poll():
                if (connection := self._connections.get(number)) is not None:
                    self._readable(connection, events)
                elif number in self._listeners:
                    self._accept(self._listeners[number])
                elif number != self._timer and not self._obey():
                    return
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                self._answer(heapq.heappop(self._due)[2])

    def _set_timer(self, due: float) -> None:
        """epoll's own timeout steps by 1 ms, and would gather answers into bursts that no site sends."""
        seconds, nanoseconds = divmod(round(due * 1e9), 1_000_000_000)
        _LIBC.timerfd_settime(self._timer, _TIMER_ABSTIME, _TIMER.pack(0, 0, seconds, nanoseconds), None)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                file, _ = listener.accept()
                file.setblocking(False)
                connection = Connection(file, self._context)
                connection.accepted = time.time()
                self._accepted += 1
                self._connections[file.fileno()] = connection
                self._epoll.register(file.fileno(), select.EPOLLIN)

    def _readable(self, connection: Connection, events: int) -> None:
        try:
            data, ancillary, _, _ = connection.file.recvmsg(16_384, 64)
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._close(connection)
            return
        request = data if connection.session is None else self._decrypt(connection, data)
        if not request.startswith(b"GET ") or not request.endswith(b"\r\n\r\n"):
            return  # none, or half of one: not sent by anything that is measured here
        connection.read = connection.arrived = time.time()
        for _, kind, value in ancillary:
            if kind == SO_TIMESTAMPNS:
                seconds, nanoseconds = _STAMP.unpack(value)
                connection.arrived = seconds + nanoseconds / 1e9
        self._requests += 1
        connection.target = int(request[5 : request.index(b" ", 5)])
        if self._delay == 0:
            self._answer(connection)
        elif self._delay > 0:
            heapq.heappush(self._due, (time.monotonic() + self._delay, self._requests, connection))

    def _decrypt(self, connection: Connection, data: bytes) -> bytes:
        assert connection.session is not None
        connection.incoming.write(data)
        request = b""
        try:
            if not connection.secured:
                connection.session.do_handshake()
                connection.secured = True
            request = connection.session.read(16_384)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._close(connection)
            return b""
        if out := connection.outgoing.read():
            connection.file.send(out)
        return request

    def _answer(self, connection: Connection) -> None:
        if connection.file.fileno() < 0:
            return  # it has left
        data = ANSWER
        if connection.session is not None:
            connection.session.write(ANSWER)
            with contextlib.suppress(ssl.SSLError):
                connection.session.unwrap()
            data = connection.outgoing.read()
        answered = time.time()
        with contextlib.suppress(OSError):
            connection.file.send(data)
            self._answers += 1
        if self._log is not None and len(self._log) < MOST_LOGGED:
            stamps = connection.accepted, connection.arrived, connection.read, answered, time.time()
            self._log.append(Seen(connection.target, *stamps))
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        del self._connections[connection.file.fileno()]
        connection.file.close()  # which takes it out of the epoll set, too

    def _obey(self) -> bool:
        command, _, argument = sys.stdin.readline().strip().partition(" ")
        if command == "count":
            print(json.dumps([self._accepted, self._requests, self._answers, len(self._connections)]), flush=True)
        elif command == "log":
            kept, self._log = self._log, []
            for listener in self._listeners.values():  # those it takes inherit it
                listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            Path(argument).write_text(json.dumps(kept))
            print("true", flush=True)
        return bool(command)


def _listen(address: str) -> socket.socket:
    listener = socket.create_server((address, 0), backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def main() -> None:
    """See above."""
    with contextlib.suppress(OSError):
        os.nice(-10)  # before what shares its core, where it may
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2])
        context.set_alpn_protocols(["http/1.1"])
    Farm(float(sys.argv[1]), context).serve()


if __name__ == "__main__":
    main()
