"""The system of a device in a folder: a Debian that is fetched once and kept in the user's cache, never changed."""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

FETCHING = 1800.0  # seconds, over a slow line, or unpacked by an emulated processor
# python3 is what the agent needs; the rest is what a small Debian has and debootstrap's smallest has not.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "openssh-server", "iproute2", "sudo", "ca-certificates")
TOOLS = ("debootstrap", "systemd-nspawn", "ip", "nsenter", "unshare", "ssh")
HERE = platform.machine()
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}  # its names of architectures
BINFMT = "/proc/sys/fs/binfmt_misc"


def root(suite: str, architecture: str) -> Path:
    """The folder of Debian's `suite`, fetched if it is not there. Raises `RuntimeError` with what the tool said."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uptime-agent" / "devices"
    cache.mkdir(parents=True, exist_ok=True)
    name = f"{suite}-{architecture}"
    done = cache / f"{name}-{hashlib.sha256(' '.join(PACKAGES).encode()).hexdigest()[:8]}"
    half = cache / f"{name}.half"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for old in (half, *cache.glob(f"{name}-*")):
                shutil.rmtree(old, ignore_errors=True)
            _fetch(suite, architecture, half)
            half.rename(done)
    return done


def _fetch(suite: str, architecture: str, to: Path) -> None:
    include = f"--include={','.join(PACKAGES)}"
    if architecture == HERE:
        _run("debootstrap", "--variant=minbase", include, suite, str(to))
    else:
        foreign = ["--foreign", f"--arch={DEBIAN[architecture]}"]
        _run("debootstrap", *foreign, "--variant=minbase", include, suite, str(to))
        second = f"{emulate(architecture)} && exec chroot {to} /debootstrap/debootstrap --second-stage"
        _run("unshare", "--mount", "--propagation", "private", "sh", "-c", second)


def _run(*command: str) -> None:
    made = subprocess.run(command, capture_output=True, text=True, timeout=FETCHING)
    if made.returncode != 0:
        raise RuntimeError(f"{command} ended with {made.returncode}:\n{made.stdout[-2000:]}{made.stderr}")


def emulate(architecture: str) -> str:
    """A shell command by which programs of that architecture run here, as long as there is the mount namespace in which
    it was run. The kernel opens the emulator now, so it is there in any root.
    """
    if architecture == HERE:
        return "true"
    emulator = f"qemu-{architecture}"
    # With C, the rights of a program that is set-uid are its owner's, as sudo's.
    register = f"sed 's/$/C/' /usr/lib/binfmt.d/{emulator}.conf >{BINFMT}/register"
    return f"mount -t binfmt_misc binfmt_misc {BINFMT} && {{ [ -e {BINFMT}/{emulator} ] || {register}; }}"


def missing(architecture: str = HERE) -> list[str]:
    """The tools that this machine lacks to boot such a device."""
    needed = TOOLS if architecture == HERE else (*TOOLS, f"qemu-{architecture}-static")
    return [tool for tool in needed if shutil.which(tool) is None]
