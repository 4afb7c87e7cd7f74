"""What the daemon knows about itself and its targets now: for `uptime-agent status`, over a Unix socket, or in a line.

Healthy or degraded is said of the device's own doings; a target that is down makes nobody ill.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from agent.device.vitals import Disk, Vitals, notices

SOCKET = "status.sock"
WAIT = 5.0  # seconds that either side waits for the other
FRESH = 3600.0  # seconds for which a loss makes the agent degraded
LARGEST = 64 << 20  # bytes of an answer: 45,000 targets have 15 MB
LOOK_AGAIN = 5.0  # seconds between two looks whether the socket is still there
CLIENTS = 8  # answered at a time; the others are hung up on
BUSY = 10.0  # seconds for which whoever was hung up on asks again
ASK_AGAIN = 0.2  # seconds between


class TargetNow(msgspec.Struct):
    """A target, the source that it has if any, and its last verdict: all None before the first."""

    id: str
    url: str
    source: str | None = None
    status: str | None = None
    error: str | None = None
    at: str | None = None
    duration_ms: float | None = None


class BrokerNow(msgspec.Struct):
    """`state`: `lost` for `lost_s` seconds; `unknown` for so long, before the first acknowledgement.

    An edit of the `kafka` block makes it `unknown`, too. `error`: what Kafka's client last said of it since the last
    acknowledgement, empty when it said nothing. `refused_topics`: it takes nothing for them, whatever the state.
    """

    state: Literal["up", "lost", "unknown"]
    lost_s: float | None = None
    error: str = ""
    refused_topics: tuple[str, ...] = ()


class UplinkNow(msgspec.Struct):
    """`lost_s`: for so many seconds nothing gets out of this device, and `why` that is thought; None when it does."""

    lost_s: float | None = None
    why: str = ""


class SpoolNow(msgspec.Struct):
    """What waits: records in memory, bytes on disk, the age of the oldest; `trouble` with the disk, empty when none.

    `given_up`: records that will never come, since the start; each is named in a gap event. `given_up_s`: seconds since
    the last of them, `given_up_why` its reason.
    """

    records: int
    bytes: int
    oldest_s: float | None
    trouble: str = ""
    given_up: int = 0
    given_up_s: float | None = None
    given_up_why: str = ""


class ConfigNow(msgspec.Struct):
    """What is in force; `problems` of the files as they are now, the first of `problem_count`.

    `last_good_at`: when it was kept, if it is the last good one, as the files were no good at the start. `waiting`: the
    keys whose change waits for a restart. `not_kept`: why no start could go on with what is in force.
    """

    file: str
    digest: str
    applied_at: str
    problems: tuple[str, ...] = ()
    problem_count: int = 0
    last_good_at: str | None = None
    waiting: tuple[str, ...] = ()
    not_kept: str = ""

    def why(self) -> str:
        """What is wrong with the files; empty when nothing is."""
        if not self.problems:
            return ""
        more = self.problem_count - 1
        first = self.problems[0] + (f", and {more} more problem{'s' * (more != 1)}" if more > 0 else "")
        if self.last_good_at is not None:
            return f"on the last good configuration, of {self.last_good_at}, as the files were refused: {first}"
        return f"an edit was refused: {first}"


class Status(msgspec.Struct):
    """The whole of it; `why`: what is wrong when degraded; `notices`: what is to be known of the device besides.

    `verdicts` counts targets by their last one. Rates, lateness and the device's vital signs are those of the last
    heartbeat, None before it. `boottime_s`: since the device was started.
    """

    agent: str
    location: str
    version: str
    run: int
    run_id: str
    uptime_s: float
    checks_per_second: float | None
    missed: int | None
    lateness_max_ms: float | None
    broker: BrokerNow
    uplink: UplinkNow
    spool: SpoolNow
    clock_synchronized: bool
    config: ConfigNow
    target_count: int
    verdicts: dict[str, int]
    boottime_s: float | None = None
    vitals: Vitals = Vitals()
    disk: Disk = Disk()
    targets: list[TargetNow] = []
    health: Literal["healthy", "degraded"] = "healthy"
    why: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def judge(self) -> "Status":
        """Sets `health`, `why` and `notices`; returns itself."""
        why = []
        if self.uplink.lost_s is not None:
            why.append(f"no way out for {_seconds(self.uplink.lost_s)}: {self.uplink.why}")
        error = f": {self.broker.error}" if self.broker.error else ""
        if self.broker.state == "lost":
            why.append(f"Kafka acknowledges nothing for {_seconds(self.broker.lost_s or 0)}{error}")
        if self.broker.state == "unknown" and (self.broker.lost_s or 0) > 30:
            why.append(f"Kafka has acknowledged nothing yet{error}")
        for topic in self.broker.refused_topics:
            why.append(f"Kafka does not take what is for the topic {topic}, which waits on disk; the journal says why")
        if self.spool.trouble:
            why.append(f"spool: {self.spool.trouble}")
        if self.run == 0:
            why.append("the state directory could not be written at the start, so that this run has no number")
        if self.spool.given_up_s is not None and self.spool.given_up_s < FRESH:
            ago, reason = _seconds(self.spool.given_up_s), self.spool.given_up_why
            why.append(f"records were given up: {self.spool.given_up} since the start, the last {ago} ago ({reason})")
        if not self.clock_synchronized:
            why.append("the clock is not known to be right")
        if self.config.problems:
            why.append(self.config.why())
        if self.config.not_kept:
            why.append(self.config.not_kept)
        if self.missed:
            why.append(f"{self.missed} measurements were missed since the heartbeat before")
        self.health, self.why = ("degraded", tuple(why)) if why else ("healthy", ())
        self.notices = tuple(notices(self.vitals, self.disk))
        return self

    def line(self) -> str:
        """What `systemctl status` has room for."""
        parts = [f"{self.target_count} target{'s' * (self.target_count != 1)}"]
        parts += [f"{self.verdicts[verdict]} {verdict}" for verdict in ("down", "unknown") if verdict in self.verdicts]
        if self.checks_per_second is not None:
            parts.append(f"{self.checks_per_second:g}/s")
        parts.append("Kafka up" if self.broker.state == "up" else f"Kafka {self.broker.state}")
        if self.spool.oldest_s is not None and self.spool.oldest_s > 5:
            parts.append(f"{self.spool.bytes >> 10} KiB wait for {_seconds(self.spool.oldest_s)}")
        parts.append(f"config {self.config.digest}")
        if self.config.waiting:
            parts.append(f"waiting for a restart: {', '.join(self.config.waiting)}")
        health = self.health + (": " + ", ".join(self.why) if self.why else "")
        return "; ".join([health, ", ".join(parts), *self.notices])


def _seconds(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


async def serve(path: Path, status: Callable[[], Status]) -> None:
    """Answers whoever connects to the socket at `path`, until somebody removes it. Raises `OSError`, as for a path that
    is too long or a directory that is not there.
    """
    clients: set[asyncio.StreamWriter] = set()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(clients) < CLIENTS:
            clients.add(writer)
            try:
                async with asyncio.timeout(WAIT):
                    writer.write(msgspec.json.encode(status()))
                    await writer.drain()
            except (OSError, TimeoutError):  # it left, or does not read
                writer.transport.abort()
            finally:
                clients.discard(writer)
        writer.close()

    with _listening(path) as (listening, inode):
        async with await asyncio.start_unix_server(answer, sock=listening):
            while True:
                await asyncio.sleep(LOOK_AGAIN)
                if not _is(path, inode):
                    return


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[tuple[socket.socket, int]]:
    """A socket at `path`, and its inode there."""
    if path.is_socket():  # of an agent that was killed: one that runs has the lock of the state directory
        path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o666)  # it takes nothing in and tells no secret
        inode = path.lstat().st_ino
        try:
            yield listening, inode
        finally:
            if _is(path, inode):
                path.unlink()


def _is(path: Path, inode: int) -> bool:
    try:
        return path.lstat().st_ino == inode
    except OSError:
        return False


def ask(path: Path) -> Status:
    """What the daemon at this socket says. Raises `OSError` when none is there, `TimeoutError` when it is busy."""
    end = time.monotonic() + BUSY
    while True:
        try:
            return msgspec.json.decode(_answer(path), type=Status)
        except msgspec.ValidationError:  # of another version
            raise
        except (msgspec.DecodeError, ConnectionResetError, BlockingIOError):
            pass  # cut, or none at all: it answers others
        if time.monotonic() >= end:
            raise TimeoutError("it is busy")
        time.sleep(ASK_AGAIN)


def _answer(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT)
        connection.connect(str(path))
        data = bytearray()
        while (received := connection.recv(1 << 16)) and len(data) < LARGEST:
            data += received
    return bytes(data)
