"""The last good configuration, kept for a start that finds a bad one.

One file in the state directory, for the agent's own user alone: the bytes of the YAML files, the names that their
patterns matched, and the bytes of every file that they name: certificates, bodies, `{file: …}` secrets. Credentials of
systemd and variables of the environment are not in it, nor what librdkafka reads itself: they are read anew.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from agent.config import Config, ConfigError, DiskFiles, KeptFiles, load
from agent.config.files import read_regular
from agent.config.model import Kafka
from agent.device.durable import write_durably

NAME = "last-good"
LARGEST = 48 << 20  # bytes of the file: `MOST_KEPT` and the names
FORMAT = b"uptime-agent last-good 1\n"
CHECKSUM = 16  # bytes behind it, of all that follows


class NoneKept(Exception):
    """There is no last good configuration that could be used; the lines of the message say why."""


class _Kept(msgspec.Struct, frozen=True):
    """Names are bytes, as the file system has them. `config`: the main file."""

    config: bytes
    content: list[tuple[bytes, bytes]]
    patterns: list[tuple[bytes, bytes, list[bytes]]]


def keep(state_directory: Path, path: Path, files: DiskFiles) -> None:
    """Keeps what the configuration at `path` was read from, unless the very same is kept already.

    Raises OSError, and ValueError when it is too large.
    """
    if files.content is None:
        raise ValueError("its files are too large")
    encode, patterns = os.fsencode, files.footprint.patterns
    body = msgspec.msgpack.encode(
        _Kept(
            encode(path.absolute()),
            [(encode(name), data) for name, data in files.content.items()],
            [(encode(base), encode(of), list(map(encode, names))) for (base, of), names in patterns.items()],
        )
    )
    data = FORMAT + _checksum(body) + body
    if len(data) > LARGEST:
        raise ValueError("its files are too large")
    file = state_directory / NAME
    if not _holds(file, data):
        write_durably(file, data)


def load_last_good(state_directory: Path, path: Path, refusal: Callable[[Kafka], str | None]) -> tuple[Config, str]:
    """What was kept for `path`, found good again, and when it was kept. Raises `NoneKept`."""
    file = state_directory / NAME

    def none(why: object) -> NoReturn:
        raise NoneKept(f"{path}: there is no last good configuration to fall back to: {why}") from None

    try:
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime))
        kept = _read(file)
    except OSError as error:
        none(f"{file}: {error.strerror}")
    except (ValueError, OverflowError, RecursionError) as error:  # whatever a damaged card has made of it
        none(f"{file}: {error}")
    decode = os.fsdecode
    if decode(kept.config) != str(path.absolute()):
        none(f"{file} is of {decode(kept.config)}")
    content = {decode(name): data for name, data in kept.content}
    patterns = {(decode(base), decode(of)): list(map(decode, names)) for base, of, names in kept.patterns}
    try:
        config = load(path, refusal=refusal, files=KeptFiles(content, patterns))
    except ConfigError as error:
        lines = (f"as it was then: {problem}" for problem in str(error).splitlines())
        none("\n".join([f"{file}, of {date}, is not good any more", *lines]))
    if Path(config.state_directory) != state_directory:
        none(f"{file}, of {date}, is for the state_directory {config.state_directory}")
    return config, date


def _read(file: Path) -> _Kept:
    """Raises OSError, and ValueError for what is damaged or foreign."""
    data = read_regular(file, LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError("is too large to be one")
    if not data.startswith(FORMAT):
        raise ValueError("was not written by this version of the agent")
    checksum, body = data[len(FORMAT) :][:CHECKSUM], data[len(FORMAT) + CHECKSUM :]
    if checksum != _checksum(body):
        raise ValueError("is damaged")
    return msgspec.msgpack.decode(body, type=_Kept)


def _holds(file: Path, data: bytes) -> bool:
    try:
        return read_regular(file, len(data) + 1) == data
    except OSError:
        return False


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECKSUM).digest()
