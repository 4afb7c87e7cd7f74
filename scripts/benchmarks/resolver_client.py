"""Looks names up at a steady rate, each name once: `resolver_client.py PLAN`, a JSON file.

It has: `peer`; `mark`, which the names begin with; `address` and `port` of the server, and `resolv_conf`, a file that
names it; `rate`; and `report`, a file for what each lookup took, in seconds, None when it failed; written at SIGTERM.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.pace import pace

THREADS = 64  # more than are ever in flight: getaddrinfo waits for none
MOST_IN_FLIGHT = 1_000

Lookup = Callable[[str], Awaitable[object]]


def agent(plan: dict[str, Any]) -> Lookup:
    """The agent's own stub resolver."""
    from agent.probers.resolver import Resolver

    resolver = Resolver(resolv_conf=Path(plan["resolv_conf"]), port=plan["port"])
    return lambda name: resolver.resolve(name, ip="auto", deadline=time.monotonic() + 5)


def getaddrinfo(plan: dict[str, Any]) -> Lookup:
    """What asyncio's `loop.getaddrinfo` does, with threads enough. It asks whom /etc/resolv.conf names, on port 53."""
    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(THREADS)
    return lambda name: loop.run_in_executor(pool, socket.getaddrinfo, name, 80, 0, socket.SOCK_STREAM)


def aiodns(plan: dict[str, Any]) -> Lookup:
    """aiodns on c-ares."""
    from aiodns import DNSResolver

    port = plan["port"]
    resolver = DNSResolver(nameservers=[plan["address"]], udp_port=port, tcp_port=port)
    return lambda name: resolver.getaddrinfo(name, socket.AF_UNSPEC, 80, socket.SOCK_STREAM)


PEERS = {"agent": agent, "getaddrinfo": getaddrinfo, "aiodns": aiodns}


async def main(plan: dict[str, Any]) -> dict[str, float | None]:
    """Until SIGTERM; what each lookup took."""
    lookup = PEERS[plan["peer"]](plan)
    took: dict[str, float | None] = {}
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    async def one(label: str) -> None:
        begun = time.monotonic()
        try:
            await lookup(f"{label}.bench.test")
        except Exception:  # noqa: BLE001 each peer has errors of its own; that it failed is what is told
            took[label] = None
        else:
            took[label] = time.monotonic() - begun

    def call(number: int, due: float) -> None:
        if len(tasks) < MOST_IN_FLIGHT:
            task = loop.create_task(one(f"{plan['mark']}-{number}"))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    await pace(plan["rate"], call)
    return took


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(asked["report"]).write_text(json.dumps(uvloop.run(main(asked))))
