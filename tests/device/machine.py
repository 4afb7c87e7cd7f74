"""A device: a real systemd in a container of its own, with its own network, and the agent installed as on a Pi."""

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.device.root import FETCHING, HERE, emulate, missing, root

CHECKOUT = Path(__file__).parent.parent.parent
EMULATED = 10  # times as long as here takes all that an emulated processor does
BOOT = 60.0  # seconds
COMMAND = 90.0  # seconds that any command on the device may take
PYTHON = {"bookworm": "3.11", "trixie": "3.13"}  # of each suite
OPT = "/opt/uptime-agent"
REBOOT = 133  # systemd-nspawn's exit status by which the device asks for it
NAME = "pi1"
SHARED = "/srv/shared"
UNIT = "uptime-agent.service"
LIBC = ctypes.CDLL(None)


class Machine:
    """Off at first. `address`: of this host, as the device sees it, and `link` its end of the cable; `own`: of the
    device. There is no way from it to anywhere else. `patience`: how many times longer than usual all that it does may
    take. It dies with the tests, however they end.
    """

    def __init__(self, suite: str, folder: Path, architecture: str = HERE) -> None:
        self._root, self._folder = root(suite, architecture), folder
        self.suite, self.architecture = suite, architecture
        self.patience = 1 if architecture == HERE else EMULATED
        self.link = f"ve-{secrets.token_hex(4)}"
        first = secrets.randbelow(1 << 14) * 4  # a /30 of 10.231.0.0/16
        self.address, self.own = (f"10.231.{first >> 8}.{(first & 255) + last}" for last in (1, 2))
        self._memory = _memory_group(self.link)
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        self.shared = folder / "shared"  # a folder of this host that the device has as `SHARED`
        for name in ("upper", "work", "root", "shared", "upper/etc"):
            (folder / name).mkdir(mode=0o755)
        (folder / "upper/etc/hosts").write_text(
            f"127.0.0.1 localhost\n127.0.1.1 {NAME}\n"
        )  # as Debian's installer does

    def switch_on(self) -> None:
        """Boots it, and waits until that is done; its network and its clock are there then."""
        layers = f"lowerdir={self._root},upperdir={self._folder}/upper,workdir={self._folder}/work"
        here = self._folder / "root"
        # The mounts are seen by these processes alone and go with them; they end when the first of them does.
        script = f"{emulate(self.architecture)} && mount -t overlay overlay -o {layers} {here} && exec systemd-nspawn"
        if self._memory:
            self._memory.mkdir()
            script = f"echo 0 >{self._memory}/cgroup.procs && {script}"
        around = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        options = ["-D", str(here), "--register=no", "--keep-unit", "--boot", "--console=pipe"]
        options += [f"--network-veth-extra={self.link}:host0", f"--bind={self.shared}:{SHARED}"]
        # What a device lets its processes do, and a container does not: ask whether the clock is right.
        options.append("--system-call-filter=adjtimex clock_adjtime")
        with (self._folder / "console.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*around, "sh", "-c", f'{script} "$@"', "sh", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._wait(lambda: bool(self._child()), BOOT, "the device's first process")
        self._init = self._child()
        self._wait(self._is_up, BOOT, "the end of its boot")
        if self._memory:
            self.run("mount", "-o", "remount,bind,rw", "/sys/fs/cgroup/memory")
            self.run("systemctl", "daemon-reexec")
        host("ip", "address", "add", f"{self.address}/30", "dev", self.link)
        self.cable(plugged=True)
        self.run("ip", "address", "add", f"{self.own}/30", "dev", "host0")
        self.run("ip", "link", "set", "host0", "up")
        assert self.attempt("ip", "route", "get", "192.0.2.1").returncode != 0, "a way to the Internet"
        self.run("mkdir", "-p", "/run/systemd/timesync")
        self.run("touch", "/run/systemd/timesync/synchronized")  # as timesyncd does; there is no NTP here

    def cable(self, *, plugged: bool) -> None:
        """The network's cable is pulled or put in at the other end, which the device sees as a carrier that is gone."""
        host("ip", "link", "set", self.link, "up" if plugged else "down")

    def cut_power(self) -> None:
        """Every process ends at once, and what is in memory only, as /run, is gone. (What was written and not synced
        is not: the disk is the host's.)"""
        if self._process is not None:
            self._process.kill()
            self._gone()

    def reboot(self) -> None:
        """`systemctl reboot`, until it is up again: everything is stopped in order."""
        assert self._process is not None
        self.attempt("systemctl", "reboot")
        status = self._process.wait(COMMAND * self.patience)
        assert status == REBOOT, f"the device ended with {status}\n{self._console()}"
        self._gone()
        self.switch_on()

    def _gone(self) -> None:
        assert self._process is not None
        self._process.wait(COMMAND)
        self._process = None
        self._wait(lambda: not Path(f"/proc/{self._init}/root/etc").exists(), COMMAND, "the end of the device")
        subprocess.run(["ip", "link", "delete", self.link], capture_output=True)  # if it has not gone by itself
        self._wait(self._is_forgotten, COMMAND, "the end of its processes")

    def remove(self) -> None:
        """Switches it off and removes what it wrote."""
        self.cut_power()
        shutil.rmtree(self._folder)

    @property
    def is_on(self) -> bool:
        """Whether it was booted and its power was not cut."""
        return self._process is not None

    @property
    def network(self) -> Path:
        """Its network namespace."""
        return Path(f"/proc/{self._init}/ns/net")

    def path(self, on_device: str) -> Path:
        """A file of the device, as seen from here while it is on."""
        return Path(f"/proc/{self._init}/root{on_device}")

    def run(self, *command: str) -> str:
        """Runs a command on the device as root: what it prints. Raises `AssertionError` when it fails."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Runs a command on the device as a user of it, to its end, whatever that is."""
        enter = ["nsenter", "-t", str(self._init), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin"]
        return subprocess.run(
            [*enter, "runuser", "-u", user, "--", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND * self.patience,
        )

    def install(self, wheelhouse: Path) -> None:
        """The agent as on a real device, without an Internet; not configured, and not started."""
        shutil.copytree(wheelhouse, self.path(f"/root/{wheelhouse.name}"))
        shutil.copy(CHECKOUT / "scripts/install", self.path("/root"))
        self.run("/root/install", "--wheelhouse", f"/root/{wheelhouse.name}")
        self.run("systemctl", "enable", "--quiet", UNIT)

    def property(self, name: str) -> str:
        """What `systemctl show` says of the unit."""
        return self.run("systemctl", "show", "--property", name, "--value", UNIT).strip()

    def memory(self) -> dict[str, int]:
        """What the unit's processes take, in bytes, as systemd has it accounted: `current`, the `peak`, and of what is
        current `anon` and `file`: their own, and the cache of files, which goes when it is needed elsewhere.
        """
        group = self.property("ControlGroup")
        if self._memory:
            folder, peak, names = f"/sys/fs/cgroup/memory{group}", "memory.max_usage_in_bytes", ("rss", "cache")
        else:
            folder, peak, names = f"/sys/fs/cgroup{group}", "memory.peak", ("anon", "file")
        parts = dict(line.split() for line in self.path(f"{folder}/memory.stat").read_text().splitlines())
        return {
            "current": int(self.property("MemoryCurrent")),
            "peak": int(self.path(f"{folder}/{peak}").read_text()),
            "anon": int(parts[names[0]]),
            "file": int(parts[names[1]]),
        }

    def journal(self) -> list[dict[str, str]]:
        """What the unit, and systemd of it, logged since this boot."""
        lines = self.run("journalctl", "--boot", "--unit", UNIT, "--output", "json", "--no-pager").splitlines()
        return [json.loads(line) for line in lines]

    def _child(self) -> int:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "console.log").read_text()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            for tool in _children(self._process.pid):
                for child in _children(tool):
                    # Between its birth and its exec it is still the tool, in namespaces that are not the device's yet.
                    if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                        return child
        return 0

    def _is_up(self) -> bool:
        return self.attempt("systemctl", "is-system-running").stdout in ("running\n", "degraded\n")

    def _is_forgotten(self) -> bool:
        if self._memory is None:
            return True
        for folder, _, _ in os.walk(self._memory, topdown=False):
            with contextlib.suppress(OSError):  # a process in it has not ended yet
                os.rmdir(folder)
        return not self._memory.exists()

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        limit = time.monotonic() + seconds * self.patience
        while not condition():
            assert time.monotonic() < limit, f"{what}: not after {seconds:.0f} s\n{self._console()}"
            time.sleep(0.1)

    def _console(self) -> str:
        return (self._folder / "console.log").read_text(errors="replace")[-2000:]


def _memory_group(name: str) -> Path | None:
    """Where the kernel has cgroups of version 1, a group for a device within our own. To be made, and removed.

    A container is given its own part of that hierarchy read-only, and its systemd then accounts and limits no memory.
    With version 2 it has all of its part.
    """
    found = re.search(r"^\d+:memory:(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    return Path(f"/sys/fs/cgroup/memory{found[1]}/{name}") if found else None


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def host(*command: str, seconds: float = COMMAND) -> str:
    """Runs a command here: what it prints. Raises `AssertionError` when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def wheelhouse(suite: str, architecture: str = HERE, checkout: Path = CHECKOUT) -> Path:
    """The wheels that a device of that Debian needs, as ./scripts/wheelhouse of a checkout makes them."""
    script = str(checkout / "scripts/wheelhouse")
    made = host(script, "--python", PYTHON[suite], "--architecture", architecture, seconds=FETCHING)
    return Path(made.strip())


def _end_with_parent() -> None:
    """PR_SET_PDEATHSIG, prctl(2): SIGKILL when the thread that made this process ends."""
    LIBC.prctl(1, signal.SIGKILL)


def may_boot(architecture: str = HERE) -> str:
    """Empty when this machine can boot such devices, else what it lacks."""
    if lacks := missing(architecture):
        packages = "debootstrap systemd-container iproute2 util-linux openssh-client qemu-user-static"
        return f"needs {', '.join(lacks)}: apt-get install {packages}"
    return "" if os.geteuid() == 0 else "needs root: it boots a container"
