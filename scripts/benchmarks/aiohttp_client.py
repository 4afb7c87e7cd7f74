"""The peer to beat: aiohttp's bare request, a fresh connection each, on uvloop; no records, no Kafka.

`aiohttp_client.py PLAN`, a JSON file: `urls`, `rate` (checks a second over all of them), `ca` (a file or null), and
`report`, a file in which each check is written down at SIGTERM (null: none is kept).
"""

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.pace import pace
from benchmarks.reports import Check, keep

MOST_IN_FLIGHT = 1_000  # beyond, a check is left out: the core is not fast enough


async def main(plan: dict[str, Any]) -> None:
    """Until SIGTERM."""
    urls: list[str] = plan["urls"]
    checks: list[Check] = []
    tasks: set[asyncio.Task[None]] = set()
    tls = ssl.create_default_context(cafile=plan["ca"]) if plan["ca"] else True
    loop = asyncio.get_running_loop()

    async def check(target: int, due: float) -> None:
        started, begun, up = time.time(), time.monotonic(), True
        try:
            async with session.get(urls[target], ssl=tls) as response:
                answered = time.monotonic()
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            answered, up = time.monotonic(), False
        if plan["report"]:
            checks.append(Check(target, due, started, (started - due) * 1000, (answered - begun) * 1000, None, up))

    def call(number: int, due: float) -> None:
        if len(tasks) < MOST_IN_FLIGHT:
            task = loop.create_task(check(number % len(urls), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as session:
        await pace(plan["rate"], call)
    if plan["report"]:
        keep(checks, Path(plan["report"]))


if __name__ == "__main__":
    uvloop.run(main(json.loads(Path(sys.argv[1]).read_text())))
