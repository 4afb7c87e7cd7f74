"""The real `uptime-agent` as a process, and sites on loopback for it to measure."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LONG = 30.0  # seconds that anything may take on a busy machine


class AgentProcess:
    """`uptime-agent run`, its log, and its end."""

    def __init__(self, config: Path, environment: dict[str, str] | None = None) -> None:
        self.log = ""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "agent", "run", "--config", str(config)],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log += line

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def says(self, pattern: str, times: int = 1) -> None:
        """Waits until the log has this `times` times."""
        wait_for(lambda: len(re.findall(pattern, self.log)) >= times, lambda: f"{pattern!r} in the log:\n{self.log}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and waits for the end: the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            status = self._process.wait(LONG)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._reader.join()
            assert self._process.stderr is not None
            self._process.stderr.close()
        return status


@contextlib.contextmanager
def agent(config: Path, environment: dict[str, str] | None = None) -> Iterator[AgentProcess]:
    """A running agent, ended in order if the test did not end it."""
    process = AgentProcess(config, environment)
    try:
        yield process
    finally:
        process.end()


def command(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `uptime-agent` with these arguments to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "agent", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
    )


def first_line(*arguments: str) -> str:
    """The first line that a command without an end of its own prints; then it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "agent", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(LONG, process.kill)
    timer.start()
    assert process.stdout is not None
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stdout.close()


def wait_for(condition: Callable[[], Any], what: str | Callable[[], str]) -> None:
    """Until it holds; fails after `LONG` seconds. `what` for is asked for only then, if it is a function."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"waited {LONG:.0f} s in vain for {what() if callable(what) else what}"
        time.sleep(0.05)
