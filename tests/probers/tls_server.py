"""Servers that speak TLS by hand, and so can do wrong what asyncio's do right."""

import asyncio
import contextlib
import ssl

from tests.probers.certificates import server
from tests.probers.http_server import OK, Behaviour, Part, Site, says


def by_hand(context: ssl.SSLContext, answer: bytes = OK) -> Behaviour:
    """A server that says its alert when a handshake fails, which those of asyncio keep to themselves."""

    async def behaviour(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_side=True)
        request, shaken = b"", False
        while b"\r\n\r\n" not in request:
            if not (data := await reader.read(1 << 14)):
                return
            incoming.write(data)
            try:
                if not shaken:
                    session.do_handshake()
                    shaken = True
                request += session.read(1 << 14)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                writer.write(outgoing.read())
                return
            writer.write(outgoing.read())
        session.write(answer)
        writer.write(outgoing.read())

    return behaviour


def handshake(limit: int, *then: Part, context: ssl.SSLContext | None = None) -> Behaviour:
    """A server that takes part in the handshake until it has said `limit` bytes; what it does `then`."""
    spoken = context or server()

    async def behaviour(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = spoken.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(await reader.read(1 << 14))
        with contextlib.suppress(ssl.SSLWantReadError):
            session.do_handshake()
        writer.write(outgoing.read()[:limit])
        await says(*then)(site, reader, writer)

    return behaviour


def no_tls(answer: Behaviour) -> Behaviour:
    """A server that answers the ClientHello by something else."""

    async def behaviour(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 14)
        await answer(site, reader, writer)

    return behaviour


def alert(description: int) -> bytes:
    """A fatal alert by its number (RFC 8446, section 6)."""
    return b"\x15\x03\x03\0\2\2" + bytes([description])
