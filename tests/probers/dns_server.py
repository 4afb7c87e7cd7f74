"""A DNS server on loopback that behaves as a test tells it to, with an encoder of its own."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import NamedTuple

A, CNAME, AAAA = 1, 5, 28
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
RESPONSE, AUTHORITATIVE, TRUNCATED, RECURSION = 0x8100, 0x0400, 0x0200, 0x0080


class Question(NamedTuple):
    """A question as it came. `section` is its bytes; `number` counts the questions of this type from 1.

    `flags`: those of the header.
    """

    id: int
    name: str
    kind: int
    section: bytes
    tcp: bool
    number: int
    flags: int = 0


RESET = object()  # cuts the connection with an RST
HOLD = object()  # says no more, and waits for the other side to go

Behaviour = Callable[[Question], Iterable[bytes | float | object]]
"""What is sent in reply; a float is a pause in seconds."""


def name_bytes(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def record(name: str, kind: int, data: bytes) -> bytes:
    return name_bytes(name) + struct.pack("!HHIH", kind, 1, 60, len(data)) + data


def address(name: str, text: str) -> bytes:
    """An A or AAAA record."""
    if ":" in text:
        return record(name, AAAA, socket.inet_pton(socket.AF_INET6, text))
    return record(name, A, socket.inet_pton(socket.AF_INET, text))


def cname(name: str, target: str) -> bytes:
    return record(name, CNAME, name_bytes(target))


def reply(
    question: Question,
    *records: bytes,
    rcode: int = NOERROR,
    flags: int = RESPONSE | RECURSION,
    id: int | None = None,
    section: bytes | None = None,
    counts: tuple[int, int, int] | None = None,
) -> bytes:
    sections = counts or (len(records), 0, 0)
    header = struct.pack("!6H", question.id if id is None else id, flags | rcode, 1, *sections)
    return header + (question.section if section is None else section) + b"".join(records)


def zone(**names: list[str]) -> Behaviour:
    """Answers for these names (a double underscore is a dot) with those addresses; NXDOMAIN for others."""
    known = {name.replace("__", "."): addresses for name, addresses in names.items()}

    def behaviour(question: Question) -> Iterable[bytes]:
        if question.name not in known:
            return [reply(question, rcode=NXDOMAIN)]
        wanted = [text for text in known[question.name] if (":" in text) == (question.kind == AAAA)]
        return [reply(question, *[address(question.name, text) for text in wanted])]

    return behaviour


class DnsServer(asyncio.DatagramProtocol):
    """Listens on a port of its own, UDP and TCP. `questions`: all that came.

    `stream`: what it says over TCP instead, bytes as they are; there it may also be `RESET` or `HOLD`.
    """

    def __init__(self, behaviour: Behaviour, stream: Behaviour | None = None) -> None:
        self.behaviour, self._stream = behaviour, stream
        self.questions: list[Question] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, kind: int, *, tcp: bool = False) -> int:
        return sum(question.kind == kind and question.tcp == tcp for question in self.questions)

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer) -> None:
        task = asyncio.get_running_loop().create_task(
            self._answer(data, False, lambda message: self._transport.sendto(message, peer))
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            if self._stream is None:
                await self._answer(data, True, lambda message: _frame(writer, message))
            else:
                await self._say(self._stream(self._question(data, tcp=True)), reader, writer)
            await writer.drain()
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(asyncio.current_task())

    async def _answer(self, data: bytes, tcp: bool, send: Callable[[bytes], None]) -> None:
        for each in self.behaviour(self._question(data, tcp=tcp)):
            if isinstance(each, float):
                await asyncio.sleep(each)
            else:
                send(each)

    async def _say(
        self, parts: Iterable[bytes | float | object], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for each in parts:
            if writer.is_closing():
                return
            if isinstance(each, float):
                await asyncio.sleep(each)
            elif isinstance(each, bytes):
                writer.write(each)
                await writer.drain()
            elif each is RESET:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                while await reader.read(1 << 16):
                    pass

    def _question(self, data: bytes, *, tcp: bool) -> Question:
        at, labels = 12, []
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        kind = int.from_bytes(data[at + 1 : at + 3], "big")
        id = int.from_bytes(data[:2], "big")
        name = ".".join(labels)
        flags = int.from_bytes(data[2:4], "big")
        question = Question(id, name, kind, data[12 : at + 5], tcp, self.asked(kind, tcp=tcp) + 1, flags)
        self.questions.append(question)
        return question

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _frame(writer: asyncio.StreamWriter, message: bytes) -> None:
    if not writer.is_closing():
        writer.write(len(message).to_bytes(2, "big") + message)


@contextlib.asynccontextmanager
async def dns_server(
    behaviour: Behaviour, host: str = "127.0.0.1", port: int = 0, *, stream: Behaviour | None = None, tcp: bool = True
) -> AsyncIterator[DnsServer]:
    """A server on `host`; port 0 takes one that is free for UDP and TCP both. `stream`: see `DnsServer`.

    `tcp`: else nobody listens there, though the port is taken.
    """
    server = DnsServer(behaviour, stream)
    with bound_to_both(host, port) as (udp, tcp_too):
        server.port = udp.getsockname()[1]
        listener = await asyncio.start_server(server.stream, sock=tcp_too.dup()) if tcp else None
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: server, sock=udp.dup())
        try:
            yield server
        finally:
            transport.close()
            if listener is not None:
                listener.close()
            await server.close()
            await asyncio.sleep(0)  # the transports close in the next turn of the loop


@contextlib.contextmanager
def bound_to_both(host: str, port: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Sockets of UDP and TCP that have one port of `host`; 0 takes one that is free for both."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.socket(family, socket.SOCK_DGRAM) as udp, socket.socket(family) as tcp:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((host, port))
            try:
                udp.bind(tcp.getsockname()[:2])
            except OSError:
                if port:
                    raise
                continue  # another's
            yield udp, tcp
            return
