"""`python -m tests.zoo.serve behaviours|controls`: serves them all on both families of addresses, in a process of its
own, so that what a hostile server costs is not the measuring's.

It prints a line of JSON when all listen: `Served`. Each line on standard input is answered with one: the seconds that
each answer of the controls took since the last. It ends with its standard input.
"""

import asyncio
import sys
from collections import defaultdict
from typing import Any

import msgspec
import uvloop

from tests.probers.conftest import has_ipv6
from tests.zoo import controls
from tests.zoo.behaviour import Behaviour, Missing

HOSTS = {"ipv4": "127.0.0.1"} | ({"ipv6": "::1"} if has_ipv6() else {})


class Served(msgspec.Struct):
    """`targets`: the options of each, by family and name. `missing`: why a behaviour cannot be had here, by name."""

    targets: dict[str, dict[str, dict[str, Any]]]
    missing: dict[str, str]


async def serve(behaviours: list[Behaviour]) -> None:
    served, over = Served(defaultdict(dict), {}), asyncio.Event()
    opened = asyncio.Semaphore(0)

    async def keep(behaviour: Behaviour, family: str) -> None:
        try:
            async with behaviour.serve(HOSTS[family]) as options:
                served.targets[family][behaviour.name] = options
                opened.release()
                await over.wait()
        except Missing as missing:
            served.missing[behaviour.name] = str(missing)
            opened.release()

    async with asyncio.TaskGroup() as kept:
        for behaviour in behaviours:
            for family in HOSTS:
                kept.create_task(keep(behaviour, family))
        for _ in range(len(behaviours) * len(HOSTS)):
            await opened.acquire()
        _tell(served)
        while await asyncio.to_thread(sys.stdin.readline):
            _tell(controls.TOOK)
            controls.TOOK.clear()
        over.set()


def _tell(what: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    if sys.argv[1] == "controls":
        uvloop.run(serve(controls.CONTROLS))
    else:
        from tests.zoo.behaviours import BEHAVIOURS  # whose certificates take a second to make

        uvloop.run(serve(BEHAVIOURS))
