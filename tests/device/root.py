"""The system of a device in a folder: a Debian that is fetched once and kept in the user's cache, never changed."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

FETCHING = 900.0  # seconds, over a slow line
# python3-venv is what the agent needs; the rest is what a small Debian has and debootstrap's smallest has not.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-venv",
    "openssh-server",
    "iproute2",
    "sudo",
    "ca-certificates",
)
TOOLS = ("debootstrap", "systemd-nspawn", "ip", "nsenter", "unshare")


def root(suite: str) -> Path:
    """The folder of Debian's `suite`, fetched if it is not there. Raises `RuntimeError` with what the tool said."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uptime-agent" / "devices"
    cache.mkdir(parents=True, exist_ok=True)
    done, half = cache / suite, cache / f"{suite}.half"
    with (cache / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(half, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(half)]
            made = subprocess.run(command, capture_output=True, text=True, timeout=FETCHING)
            if made.returncode != 0:
                raise RuntimeError(f"debootstrap ended with {made.returncode}:\n{made.stdout[-2000:]}{made.stderr}")
            half.rename(done)
    return done
