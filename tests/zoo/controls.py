"""Sites that are well. They are measured beside the others, and none of those may be felt here."""

import asyncio
import time

from tests.probers.certificates import server
from tests.probers.http_server import OK, Site, request_of
from tests.zoo.behaviour import Up, http, https

DELAY = 0.02  # seconds until they answer
TOOK: list[float] = []  # seconds from the connection's acceptance to the answer, of each


async def answer(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    begun = time.monotonic()
    await request_of(reader)
    await asyncio.sleep(DELAY)
    writer.write(OK)
    TOOK.append(time.monotonic() - begun)


CONTROLS = [
    *(http(f"control {number} in the clear", answer, Up()) for number in range(6)),
    *(https(f"control {number} over TLS", answer, Up(), context=server()) for number in range(6)),
]
