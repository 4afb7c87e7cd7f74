"""Asks blackbox_exporter's /probe for one check after the other, on time, over connections that it keeps.

`blackbox_driver.py PLAN`, a JSON file: `exporter` (host and port), `urls`, `rate`, and `report`, a file in which each
check is written down at SIGTERM (null: none is kept). It runs beside what is measured, and its CPU is not counted.
"""

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvloop

from benchmarks.pace import pace
from benchmarks.reports import Check, keep

MOST_IN_FLIGHT = 256  # connections; beyond, a check is left out: the exporter is not fast enough
_TO_THE_HEAD = (b"connect", b"tls", b"processing")
_CHUNK = re.compile(rb"\r\n[0-9a-f]+\r\n")  # a chunk's boundary can be anywhere, and no line of metrics looks so
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)
_PHASE = re.compile(rb'\nprobe_http_duration_seconds\{phase="(\w+)"\} (\S+)')


class Asking(asyncio.Protocol):
    """One kept connection to the exporter, which asks one question at a time."""

    def __init__(self, driver: "Driver") -> None:
        self.driver = driver
        self.transport: asyncio.Transport
        self.answer = b""
        self.target, self.due, self.asked = 0, 0.0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is one in all but name

    def ask(self, target: int, due: float) -> None:
        self.target, self.due, self.asked = target, due, time.time()
        self.transport.write(self.driver.questions[target])

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if _complete(self.answer):
            self.driver.take(self, self.answer)
            self.answer = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.driver.asking -= 1


class Driver:
    """Holds the connections."""

    def __init__(self, plan: dict[str, Any]) -> None:
        urls: list[str] = plan["urls"]
        self.host, _, self.port = str(plan["exporter"]).rpartition(":")
        self.questions = [
            f"GET /probe?module=http&target={quote(url, safe='')} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode()
            for url in urls
        ]
        self.report = plan["report"]
        self.checks: list[Check] = []
        self.free: list[Asking] = []
        self.asking = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()

    def call(self, number: int, due: float) -> None:
        target = number % len(self.questions)
        if self.free:
            self.free.pop().ask(target, due)
        elif self.asking < MOST_IN_FLIGHT:
            self.asking += 1
            task = self.loop.create_task(self.connect(target, due))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def connect(self, target: int, due: float) -> None:
        _, asking = await self.loop.create_connection(lambda: Asking(self), self.host, int(self.port))
        asking.ask(target, due)

    def take(self, asking: Asking, answer: bytes) -> None:
        if self.report:
            answer = _CHUNK.sub(b"", answer)
            ms = {phase: float(seconds) * 1000 for phase, seconds in _PHASE.findall(answer)}
            whole, up = sum(ms.get(phase, 0.0) for phase in _TO_THE_HEAD), b"\nprobe_success 1\n" in answer
            self.checks.append(Check(asking.target, asking.due, asking.asked, None, whole, ms.get(b"processing"), up))
        if not asking.transport.is_closing():
            self.free.append(asking)


def _complete(answer: bytes) -> bool:
    """Is it a whole response, as Go's net/http writes them?"""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    length = _LENGTH.search(head + b"\r\n")
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


async def main(plan: dict[str, Any]) -> None:
    """Until SIGTERM."""
    driver = Driver(plan)
    await pace(plan["rate"], driver.call)
    if plan["report"]:
        keep(driver.checks, Path(plan["report"]))


if __name__ == "__main__":
    uvloop.run(main(json.loads(Path(sys.argv[1]).read_text())))
