"""Real file systems on loop devices, for tests that need a disk that is full, fails or loses power."""

import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

MIB = 1 << 20


def command(*arguments):
    """Runs it; its output. Raises `subprocess.CalledProcessError`."""
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
    return done.stdout


def unmount(directory):
    """Also when something there is still open: a test that failed must not leave a mount."""
    if os.path.ismount(directory):
        for _ in range(20):
            if subprocess.run(["umount", str(directory)], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.05)
        command("umount", "-l", directory)


class Disks:
    """Makes images and mounts them below `path`, as long as the `with` lasts."""

    def __init__(self, path):
        self.path = path
        self._ends = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ends.close()

    def image(self, name="image", size=16 * MIB, *features):
        """A file with an ext4 in it."""
        file = self.path / name
        with file.open("wb") as made:
            made.truncate(size)
        command("mkfs.ext4", "-q", "-E", "nodiscard,root_owner=0:0", "-m", "0", *features, file)
        return file

    def mount(self, image, name="disk", options="loop"):
        directory = self.path / name
        directory.mkdir(exist_ok=True)
        command("mount", "-o", options, image, directory)
        self._ends.callback(unmount, directory)
        return directory

    def tmpfs(self, size, name="memory"):
        directory = self.path / name
        directory.mkdir()
        command("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory)
        self._ends.callback(unmount, directory)
        return directory


def why_not(path):
    """Why there are no real disks here, None when there are."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("mkfs.ext4", "mount", "umount", "losetup") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    try:
        with Disks(path) as disks:
            (disks.mount(disks.image()) / "file").write_text("works")
    except (subprocess.CalledProcessError, OSError) as error:
        return f"no loop device can be mounted: {getattr(error, 'stderr', '') or error}".strip()
    return None


@pytest.fixture(scope="session")
def disks_work(tmp_path_factory):
    return why_not(tmp_path_factory.mktemp("disks"))


@pytest.fixture
def disks(tmp_path, disks_work):
    """Real disks. Without root, or on a machine that has none, skipped; as root with CI=true they must work."""
    if disks_work is not None:
        if os.geteuid() == 0 and os.environ.get("CI") == "true":
            pytest.fail(disks_work)
        pytest.skip(disks_work)
    with Disks(tmp_path) as made:
        yield made


def fill(directory, leave=0):
    """Takes all that is free on a file system but `leave` bytes; the file that takes it."""
    ballast = Path(directory) / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for piece in (1 << 16, 1 << 10):
            try:
                while True:
                    system = os.statvfs(directory)
                    if system.f_bavail * system.f_frsize <= leave:
                        break
                    file.write(bytes(piece))
            except OSError:
                continue
    return ballast
