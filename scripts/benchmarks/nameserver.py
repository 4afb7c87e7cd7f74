"""A DNS server with a known delay, `nameserver.py ADDRESS DELAY`, that notes when questions came and answers left.

Prints its port, 53 where it may have it and else any, as a line of JSON; then obeys lines on standard input, until that
ends: `count` prints how many names and questions came, `log FILE` writes what it noted and forgets it.
"""

import heapq
import json
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

SO_TIMESTAMPNS = 35
MOST_NOTED = 200_000
_STAMP = struct.Struct("qq")
_DATA = {1: socket.inet_pton(socket.AF_INET, "127.0.0.1"), 28: socket.inet_pton(socket.AF_INET6, "::1")}


class Noted(NamedTuple):
    """Of all questions about one name, the first's arrival and the last answer's departure; seconds since 1970."""

    arrived: float
    answered: float


class Nameserver:
    """Has one address of each family for every name."""

    def __init__(self, address: str, delay: float) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        try:
            self._socket.bind((address, 53))
        except OSError:
            self._socket.bind((address, 0))
        self.port: int = self._socket.getsockname()[1]
        self._delay = delay
        self._due: list[tuple[float, int, bytes, Any]] = []
        self._noted: dict[bytes, Noted] = {}
        self._names = self._questions = 0

    def serve(self) -> None:
        """Until standard input ends."""
        while True:
            timeout = max(self._due[0][0] - time.monotonic(), 0.0) if self._due else None
            ready, _, _ = select.select([self._socket, sys.stdin], [], [], timeout)
            if self._socket in ready:
                self._take()
            while self._due and self._due[0][0] <= time.monotonic():
                self._answer(*heapq.heappop(self._due)[2:])
            if sys.stdin in ready and not self._obey():
                return

    def _take(self) -> None:
        question, ancillary, _, peer = self._socket.recvmsg(1_500, 64)
        seconds, nanoseconds = _STAMP.unpack(ancillary[0][2])
        name = question[12 : question.index(b"\0", 12) + 1].lower()
        self._questions += 1
        if name not in self._noted and len(self._noted) < MOST_NOTED:
            self._names += 1
            self._noted[name] = Noted(seconds + nanoseconds / 1e9, 0.0)
        heapq.heappush(self._due, (time.monotonic() + self._delay, self._questions, question[: 16 + len(name)], peer))

    def _answer(self, question: bytes, peer: Any) -> None:
        name, (kind,) = question[12:-4], struct.unpack("!H", question[-4:-2])
        data = _DATA.get(kind)
        header = question[:2] + struct.pack("!5H", 0x8180, 1, 1 if data else 0, 0, 0)
        answer = struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(data)) + data if data else b""
        if (noted := self._noted.get(name.lower())) is not None:
            self._noted[name.lower()] = Noted(noted.arrived, time.time())
        self._socket.sendto(header + question[12:] + answer, peer)

    def _obey(self) -> bool:
        command, _, argument = sys.stdin.readline().strip().partition(" ")
        if command == "count":
            print(json.dumps([self._names, self._questions]), flush=True)
        elif command == "log":
            noted = {name[1 : 1 + name[0]].decode(): each for name, each in self._noted.items()}
            Path(argument).write_text(json.dumps(noted))
            self._noted.clear()
            print("true", flush=True)
        return bool(command)


def main() -> None:
    """See above."""
    server = Nameserver(sys.argv[1], float(sys.argv[2]))
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
