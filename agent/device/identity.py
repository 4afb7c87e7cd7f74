"""Who this run is: a counter that grows with every start, and 64 random bits that never repeat.

The counter lives in `run.json` in the state directory. `run_id` keeps record ids unique for ever, even when that
directory was wiped or restored from an old backup.
"""

import errno
import fcntl
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from agent.device.durable import write_durably

log = logging.getLogger(__name__)

LARGEST = 1 << 20  # bytes read of run.json, which has some hundred


class LastSeq(msgspec.Struct, frozen=True):
    """The last sequence number that a worker gave out for a topic."""

    worker: int
    topic: str
    seq: int


class Run(msgspec.Struct, frozen=True):
    """One start of the agent. `last_seqs` is known only of a run that was stopped in order."""

    run: Annotated[int, Meta(ge=0, le=1 << 53)]
    run_id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    last_seqs: tuple[LastSeq, ...] = ()


class StateInUse(Exception):
    """Another agent runs on this state directory."""


def lock_state(state_directory: Path) -> None:
    """Keeps other agents off this directory until the process ends. Raises `StateInUse` when one is there.

    A directory that cannot be written is not locked: `keep_run` says what is wrong with it.
    """
    try:
        state_directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(state_directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and never closed: the lock ends with the process
    except OSError as error:
        os.close(lock)
        if error.errno == errno.EWOULDBLOCK:
            raise StateInUse(
                f"{state_directory} is used by another uptime-agent; stop that one, or give this one a state_directory "
                "of its own"
            ) from None


def begin_run(state_directory: Path) -> tuple[Run, Run | None]:
    """Counts this start; returns it and the previous run, None when there was none or it cannot be known.

    A state directory that cannot be read or written is a warning, not a stop: measuring goes on with run 0.
    """
    file = state_directory / "run.json"
    previous: Run | None = None
    try:
        previous = msgspec.json.decode(_read(file), type=Run)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:  # whatever a damaged card has made of it
        log.warning("%s: cannot be read (%s); the run counter starts again", file, error)
    run = Run(run=previous.run + 1 if previous else 1, run_id=secrets.token_hex(8))
    if not keep_run(state_directory, run):
        run = Run(run=0, run_id=run.run_id)
    return run, previous


def _read(file: Path) -> bytes:
    """At most `LARGEST` bytes of a regular file: a pipe in its place would be waited for."""
    opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.read(opened, LARGEST)
    finally:
        os.close(opened)


def keep_run(state_directory: Path, run: Run) -> bool:
    """Writes `run` so that it survives a power cut; False, with a warning, when it cannot be written.

    A run without a number is not written: the file keeps the last number that was given out.
    """
    if run.run == 0:
        return False
    file = state_directory / "run.json"
    try:
        write_durably(file, msgspec.json.encode(run))
    except OSError as error:
        log.warning("%s: the run counter cannot be kept: %s", file, error)
        return False
    return True
