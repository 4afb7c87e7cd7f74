"""The spool alone, as its daemon drives it: `spooled.py PLAN`, a JSON file. At its end it prints what it found as JSON.

`way` is `deque`, `spool`, `make` or `replay`. The first two take `rate` records a second in ticks of 250 ms for
`seconds`, and hand them over and have them acknowledged a tick later: in a plain deque, or in a spool in `directory`
(with `volatile` a directory, or null). With `lost_after` the broker goes away then: nothing is acknowledged any more,
and five seconds later it is known. `make` writes segments to `directory` until they are `bytes`. `replay` takes so many
`records` of them, as fast as it can.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from agent.config import load
from agent.device.clock import Clock
from agent.device.identity import Run
from agent.probers import prober_of
from agent.probers.resolver import Resolver
from agent.probers.result import Http, Peer, Phases, Result, Tls
from agent.record import Recorder
from agent.schedule import Measurement
from agent.spool.record import Gap, Origin, Record
from agent.spool.spool import Spool
from agent.spool.store import Store
from agent.spool.turn import New, Request
from agent.verdict.found import Ruling
from benchmarks.peers import Load, agent_config

TICK = 0.25
WARM = 8  # ticks before it counts
KNOWN_AFTER = 5.0  # seconds from the broker's going until the forwarder knows
POOL = 8_192  # different values, used in turn
BLOCK = 250  # records of a block of `make`: of a tick, at 1,000 a second
MOST = 1 << 34  # bytes of `make`

ORIGIN = Origin(1, "5f0c2a9177d04e1b", 0)
EARLIER = Origin(0, "0123456789abcdef", 0)


def values(directory: Path) -> list[bytes]:
    """The agent's own records of successful checks of 100 targets, half of them over TLS, as they differ in life."""
    config = directory / "records.yaml"
    names = [f"www{number}.shop.example" for number in range(20)]
    config.write_text(agent_config(Load("https", names, 100, "127.0.0.1:9092", None), directory))
    loaded, clock, chance = load(config), Clock(), random.Random(17)
    recorder = Recorder(loaded, Run(17, ORIGIN.run_id), clock)
    probers = [prober_of(target, Resolver()) for target in loaded.targets]
    state, found = clock.state(), []
    for number in range(POOL):
        which = number % len(probers)
        phases = [round(chance.lognormvariate(0, 0.5) * typical, 3) for typical in (3, 20, 41, 0.05, 19, 0.4)]
        scheduled = 86_400.0 + number / 100
        started = scheduled + chance.expovariate(5_000)
        result = Result(
            round(sum(phases), 3),
            Phases(*phases),
            peer=Peer(f"203.0.113.{which}", 443, "ipv4"),
            http=Http(200, "1.1", chance.randrange(5_000, 5_200), 0),
            tls=certificate(which % 20) if which % 2 else None,
        )
        measurement = Measurement(loaded.targets[which], probers[which], scheduled, started, 1.8e9 + started, result)
        found.append(recorder.measured(measurement, Ruling("up"), state).value)
    return found


def certificate(site: int) -> Tls:
    """What a record tells of TLS."""
    return Tls(
        version="TLSv1.3",
        cipher="TLS_AES_256_GCM_SHA384",
        verified=True,
        not_before="2026-10-01T00:00:00.000000Z",
        not_after="2026-12-30T23:59:59.000000Z",
        chain_not_after="2026-12-30T23:59:59.000000Z",
        subject=f"CN=www{site}.shop.example",
        issuer="CN=R11,O=Let's Encrypt,C=US",
        sha256=f"{random.Random(site).getrandbits(256):064x}",
    )


def records(pool: Sequence[bytes], origin: Origin) -> Iterator[Record]:
    """Without end; their values come again, their numbers do not."""
    seq = 0
    while True:
        for value in pool:
            seq += 1
            at = f"2026-11-23T16:{seq // 60 % 60:02d}:{seq % 60:02d}.000412Z"
            yield Record("uptime.results", seq, f"bench/{origin.run_id}/0/{seq}", at, value)


class Queue:
    """What the path is without a spool: it is kept, handed over, and forgotten."""

    def __init__(self) -> None:
        self._waiting: deque[Record] = deque()
        self._taken: list[Record] = []
        self.on_the_way = 0

    def tick(self, fresh: Sequence[Record], acknowledge: bool) -> None:
        """Forgets what was taken, if that was acknowledged, and takes what is new."""
        if acknowledge:
            self._taken.clear()
        self._waiting.extend(fresh)
        while self._waiting:
            self._taken.append(self._waiting.popleft())

    async def rest(self, until: float) -> None:
        """To the next tick."""
        await asyncio.sleep(max(until - time.monotonic(), 0.0))

    async def close(self) -> None:
        """Nothing to do."""


class Spooled:
    """The same with a spool, as the forwarder drives it."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._taken: list[Record] = []

    def tick(self, fresh: Sequence[Record], acknowledge: bool) -> None:
        """As `Queue.tick`; one request to the disk."""
        if acknowledge:
            self._spool.acknowledge(self._taken)
            self._taken.clear()
        for record in fresh:
            self._spool.append(record)
        self._spool.tell_gaps()
        self._spool.ready.clear()
        self._spool.turn()

    async def rest(self, until: float) -> None:
        """To the next tick; meanwhile it takes what the disk has."""
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._spool.ready.wait()
                self._spool.ready.clear()
                self._spool.turn()
                for topic in self._spool.topics():
                    self._taken += self._spool.take(topic, 1_000_000)

    async def close(self) -> None:
        """What waits comes to the disk."""
        await self._spool.close(5)

    def lost(self) -> None:
        """The forwarder found that the broker is away."""
        self._spool.broker_lost = True


def no_gaps(gap: Gap) -> Record:
    """Nothing is to be lost here."""
    raise AssertionError(f"lost: {gap}")


async def a_spool(plan: dict[str, Any], origin: Origin = ORIGIN) -> Spool:
    """One in the plan's directories."""
    volatile = Path(plan["volatile"]) if plan.get("volatile") else None
    spool = Spool(Store(Path(plan["directory"]), origin, volatile=volatile), no_gaps)
    await spool.open()
    return spool


async def ticks(plan: dict[str, Any], pool: Sequence[bytes]) -> dict[str, float]:
    """Records and seconds of CPU, after the first two seconds."""
    way = Queue() if plan["way"] == "deque" else Spooled(await a_spool(plan))
    source, per_tick = records(pool, ORIGIN), plan["rate"] * TICK
    begun = due = time.monotonic()
    number, made, owed, used = 0, 0, 0.0, 0.0
    while number < WARM + plan["seconds"] / TICK:
        if number == WARM:
            made, used = 0, time.process_time()
        owed += per_tick
        fresh = [next(source) for _ in range(int(owed))]
        owed -= len(fresh)
        made += len(fresh)
        gone = due - begun - plan["lost_after"] if plan.get("lost_after") is not None else -1.0
        if gone >= KNOWN_AFTER and isinstance(way, Spooled):
            way.lost()
        way.tick(fresh, acknowledge=gone < 0)
        number, due = number + 1, due + TICK
        await way.rest(due)
    used = time.process_time() - used
    way.tick([], acknowledge=plan.get("lost_after") is None)
    await way.rest(due + TICK)
    await way.close()
    return {"records": made, "cpu": used, "all": made + WARM * per_tick}


def make(plan: dict[str, Any], pool: Sequence[bytes]) -> dict[str, float]:
    """Records, and bytes on disk as `max_size` counts them."""
    store = Store(Path(plan["directory"]), EARLIER, max_size=MOST)
    source, count, size = records(pool, EARLIER), 0, store.open().bytes
    while size < plan["bytes"]:
        block = [next(source) for _ in range(BLOCK)]
        count += len(block)
        size = store.turn(Request(new=[New(count, block[0].topic, block)])).bytes
    store.close()
    return {"records": count, "bytes": size, "files": len(os.listdir(plan["directory"]))}


async def replay(plan: dict[str, Any]) -> dict[str, float]:
    """As fast as the disk's thread and the loop can, with nothing behind them."""
    spool, count = await a_spool(plan), 0
    begun, used = time.monotonic(), time.process_time()
    while count < plan["records"]:
        spool.ready.clear()
        for topic in spool.topics():
            taken = spool.take_backlog(topic, 500)
            count += len(taken)
            spool.acknowledge(taken)
        spool.turn()
        if not spool.topics():
            await spool.ready.wait()
        await asyncio.sleep(0)
    took, used = time.monotonic() - begun, time.process_time() - used
    await spool.close(5)
    return {"records": count, "seconds": took, "cpu": used}


def main() -> None:
    """See above."""
    file = Path(sys.argv[1])
    plan = json.loads(file.read_text())
    if plan["way"] == "replay":
        found = uvloop.run(replay(plan))
    else:
        pool = values(file.parent)
        found = make(plan, pool) if plan["way"] == "make" else uvloop.run(ticks(plan, pool))
        found["bytes_a_record"] = sum(map(len, pool)) / len(pool)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
