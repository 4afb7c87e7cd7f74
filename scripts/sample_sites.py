"""The demo's broker and sample sites, on free ports of 127.0.0.1, until standard input ends.

`sample_sites.py DIRECTORY` writes demo-ca.pem there and prints one line of JSON: for each address that
examples/demo.yaml names, the one that stands for it now.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import trustme

from agent.delivery.kafka import EmbeddedBroker

HOST = "127.0.0.1"
Site = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer(
    head: str, body: str, after: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A site that answers every request so, `after` seconds later."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(after)
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await writer.drain()
    writer.close()


async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A site that takes whatever comes and says nothing."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(4096):
            pass
    writer.close()


async def listen(site: Site, tls: ssl.SSLContext | None = None) -> str:
    """Starts a site; its address."""
    server = await asyncio.start_server(site, HOST, 0, ssl=tls)
    host, port = server.sockets[0].getsockname()
    return f"{host}:{port}"


def certified(authority: trustme.CA, ends: timedelta) -> ssl.SSLContext:
    """TLS with a certificate for this host that ends so long from now."""
    now = datetime.now(UTC)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST, not_before=now - timedelta(days=30), not_after=now + ends).configure_cert(context)
    return context


async def serve(broker: str, directory: Path) -> None:
    """Runs all of it until standard input ends."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "demo-ca.pem"))
    ok = partial(answer, "200 OK", "It works.\n")
    good = await listen(partial(ok, 0), certified(authority, timedelta(days=60)))
    nobody = socket.socket()
    nobody.bind((HOST, 0))  # and never listens: the port stays ours, and refuses
    addresses = {
        "9092": broker,
        "8441": good,
        "8082": await listen(partial(ok, 0.5)),
        "8083": await listen(partial(answer, f"302 Found\r\nLocation: https://{good}/", "", 0)),
        "8084": await listen(partial(answer, "500 Internal Server Error", "", 0)),
        "8445": await listen(partial(ok, 0), certified(authority, timedelta(days=-1))),
        "8086": f"{HOST}:{nobody.getsockname()[1]}",
        "8087": await listen(keep_silent),
    }
    print(json.dumps({f"{HOST}:{port}": address for port, address in addresses.items()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with EmbeddedBroker() as broker:
        asyncio.run(serve(broker.address, Path(sys.argv[1])))
