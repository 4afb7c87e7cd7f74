"""File systems of their own, of which the kernel tells what is written to them: ext4 images on loop devices."""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import BenchError

SIZE = 256 << 20  # bytes of an image, which is sparse
WAY = "run it as root, with util-linux and e2fsprogs, on a kernel with loop devices and ext4"
_SECTOR = 512  # of /sys/block/*/stat, whatever the device's are (Documentation/block/stat.rst)
_SECTORS_WRITTEN = 6
_CLONE_NEWNS = 0x20000
_LIBC = ctypes.CDLL(None, use_errno=True)


def absent() -> str | None:
    """The way to get them, when they are not to be had here."""
    tools = all(map(shutil.which, ("mount", "umount", "mkfs.ext4", "sync")))
    return None if os.geteuid() == 0 and tools and Path("/dev/loop-control").exists() else WAY


class Flash:
    """A mounted one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        device = os.stat(directory).st_dev
        self._stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")

    def written(self) -> int:
        """Bytes that were written to the device since it is there, once all that waits is."""
        _run("sync", "--file-system", self.directory)
        return int(self._stat.read_text().split()[_SECTORS_WRITTEN]) * _SECTOR


def alone() -> None:
    """From now on this process's mounts are its own: whatever ends it and its children, they end too, and the loop
    devices with them (mount_namespaces(7), and mount(8): those that it makes clear themselves).

    Raises `BenchError`.
    """
    if _LIBC.unshare(_CLONE_NEWNS) != 0:
        raise BenchError(f"no mount namespace of its own: {os.strerror(ctypes.get_errno())}")
    _run("mount", "--make-rprivate", "/")


@contextlib.contextmanager
def flash(directory: Path, name: str) -> Iterator[Flash]:
    """A new one, with all that mkfs would leave for later written. Raises `BenchError`."""
    image, there = directory / f"{name}.ext4", directory / name
    image.touch()
    os.truncate(image, SIZE)
    _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    there.mkdir()
    _run("mount", "-o", "loop", image, there)
    try:
        yield Flash(there)
    finally:
        _run("umount", there)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{command[0]} failed: {done.stderr.strip()}")
