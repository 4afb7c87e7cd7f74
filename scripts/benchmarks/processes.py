"""Child processes on cores of their own, what they cost, and their end: none outlives this process."""

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STOP_SECONDS = 12.0  # the agent's own stop takes at most 10
LOG_LINES = 20
_LIBC = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """Why the measurement cannot go on, for people."""


class Cores(NamedTuple):
    """Where what is measured runs, and where all else does."""

    measured: set[int]
    others: set[int]


def cores() -> Cores:
    """The first core this process may use, and the rest; with one core, that for both."""
    first, *rest = sorted(os.sched_getaffinity(0))
    return Cores({first}, set(rest) or {first})


class Usage(NamedTuple):
    """What a process has used of the CPU since its start, all of its threads, in seconds."""

    total: float
    user: float
    system: float


class Process:
    """A child in a process group of its own, with its output in a file."""

    def __init__(self, popen: "subprocess.Popen[str]", log: Path, started: float) -> None:
        self.popen, self._log = popen, log
        self.started = started  # before it was made; seconds since 1970

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def usage(self) -> Usage:
        """The total to the nanosecond (clock_getcpuclockid(3)); user and system to 10 ms (proc_pid_stat(5))."""
        self.check()
        clock = ctypes.c_int()
        if _LIBC.clock_getcpuclockid(self.pid, ctypes.byref(clock)) != 0:
            raise BenchError(f"the CPU time of process {self.pid} cannot be read")
        total = time.clock_gettime(clock.value)
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        return Usage(total, int(fields[11]) / ticks, int(fields[12]) / ticks)

    def waited(self) -> float:
        """Seconds that its threads, those that are there now, were ready to run and waited for a core."""
        self.check()
        waited = 0
        for file in Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                waited += int(file.read_text().split()[1])
        return waited / 1e9

    def rss(self) -> float:
        """Memory in RAM, MiB."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)

    def peak(self) -> float:
        """The most that `rss` ever was, MiB (proc_pid_status(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def check(self) -> None:
        """Raises `BenchError` with the end of its output when it has died."""
        if self.popen.poll() is not None:
            raise BenchError(f"{self.popen.args!r} ended with {self.popen.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        """The end of its output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def ask(self, line: str = "") -> Any:
        """Sends a line, if any, and reads one of JSON. Raises `BenchError` when none comes."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            if line:
                self.popen.stdin.write(line + "\n")
                self.popen.stdin.flush()
        answer = self.popen.stdout.readline()
        if not answer:
            self.end()
            self.check()
        return json.loads(answer)

    def end(self) -> None:
        """Asks it to end, and kills it after `STOP_SECONDS`."""
        if self.popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.popen.stdin.close()
        self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    on: set[int],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    talks: bool = False,
) -> Iterator[Process]:
    """Runs a command on these cores. With `talks` its standard input and output are for `Process.ask`."""
    pipe = subprocess.PIPE if talks else None
    with log.open("w") as output:
        started = time.time()
        popen = subprocess.Popen(
            [str(part) for part in command],
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or output,
            stderr=output,
            text=True,
            env={**os.environ, **(environment or {})},
            process_group=0,
            preexec_fn=functools.partial(_settle, on),
        )
    process = Process(popen, log, started)
    try:
        yield process
    finally:
        process.end()
        if popen.stdout is not None:
            popen.stdout.close()


def part(
    name: str,
    *arguments: object,
    on: set[int],
    directory: Path,
    talks: bool = False,
    before: Sequence[str] = (),
) -> contextlib.AbstractContextManager[Process]:
    """Runs a module of this package on these cores. `before`: a command that becomes the one after it."""
    command = [*before, sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    return running(command, on, directory / f"{name}.log", environment=environment, talks=talks)


def _settle(on: set[int]) -> None:
    """In the child: its cores, as many open files as it may have, as systemd gives them, and SIGKILL when the thread
    that made it ends (PR_SET_PDEATHSIG, prctl(2)).
    """
    os.sched_setaffinity(0, on)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _LIBC.prctl(1, signal.SIGKILL)
