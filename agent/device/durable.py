"""A small file of the state directory that is, after a power cut too, either what it was or what it was to be."""

import contextlib
import os
from pathlib import Path


def write_durably(file: Path, data: bytes) -> None:
    """Puts `data` there, for nobody else to read, with the directory if need be. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")  # one fixed name: what a crash leaves of it goes with the next write
    new.unlink(missing_ok=True)
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()  # on a disk that is full
        raise
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
