"""The whole way of a result on one machine: sites, the agent, a broker, and the results read back from its topic.

Everything lives in child processes and one temporary directory, and ends with this process: a signal only sets a flag
that is looked at between two steps, so that no step is left half done.
"""

import argparse
import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.watch import Reading

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "demo.yaml"
PREFIX = "uptime-agent-demo-"  # of the temporary directory
ABANDONED = 60.0  # seconds after which a directory that nobody holds is one of a demo that was killed
BROKER = "127.0.0.1:9092"  # as the example has it
SECONDS = 15.0  # how long it runs when nobody is there to end it
STOP_SECONDS = 12.0  # the agent's own stop takes at most 10
LOG_LINES = 30  # of the agent's log that are shown when it failed

OF_URLS = """\
agent: {{id: demo-agent}}
location: {{id: here}}
kafka:
  bootstrap_servers: [{broker}]
defaults: {{interval: 5s, timeout: 5s}}
targets:
{targets}
"""


class DemoError(Exception):
    """Why the demo cannot go on, for people."""


class NotUrls(Exception):
    """What is wrong with the arguments, a line each."""


def main() -> int:
    """The exit status: 0 when results came, 1 when something failed, 2 when the arguments make no sense."""
    parser = argparse.ArgumentParser(
        prog="./scripts/demo",
        description="Measures sample sites, or the URLs given, and shows the results as they come back from Kafka.",
        epilog="Kafka, a server that keeps streams of messages, has a stand-in here, which lives in memory.",
    )
    parser.add_argument("urls", nargs="*", metavar="URL", help="what to measure, as in https://example.com")
    arguments = parser.parse_args()
    urls = list(dict.fromkeys(arguments.urls))
    try:
        check(urls)
    except NotUrls as error:
        print(error, file=sys.stderr)
        return 2
    return run(urls)


def check(urls: list[str]) -> None:
    """Raises `NotUrls` for what is none, in the agent's own words."""
    from agent.config import forms  # which `--help` does without

    problems = []
    for url in urls:
        try:
            forms.url(url)
        except ValueError as error:
            problems.append(f"demo: {json.dumps(url, ensure_ascii=False)} {error}")
    if problems:
        raise NotUrls("\n".join(problems))


def run(urls: list[str]) -> int:
    """The exit status of the demo itself."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    from agent.delivery.kafka import DeliveryError  # takes its time to load, in which a signal is already heard

    try:
        with temporary_directory() as directory:
            demo(directory, urls, stop)
    except (DemoError, DeliveryError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader left, as `head` does; what Python would still flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory that goes with this process; those of demos that were killed go, too."""
    own = Path(tempfile.mkdtemp(prefix=PREFIX))
    held = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # until the end, whatever that is
        for other in own.parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # it is in use, or has just gone
                remove_abandoned(other)
        yield own
    finally:
        shutil.rmtree(own)
        os.close(held)


def remove_abandoned(other: Path) -> None:
    """Removes the directory of a demo that was killed. Raises OSError for another's."""
    directory = os.open(other, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(directory)
        if status.st_uid == os.geteuid() and time.time() - status.st_mtime > ABANDONED:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
    finally:
        os.close(directory)


def demo(directory: Path, urls: list[str], stop: threading.Event) -> None:
    """Starts everything, shows results until `stop`, and ends everything. Raises `DemoError`."""
    from agent.config.model import Kafka
    from agent.delivery.kafka import read
    from agent.watch import watch

    live, log = sys.stdout.isatty(), directory / "agent.log"
    with sites(directory) as addresses:
        config = directory / "config.yaml"
        config.write_text(of_urls(urls, addresses) if urls else filled_in(EXAMPLE.read_text(), addresses))
        with agent(config, log) as process:
            print(explanation(urls, live), flush=True)
            # The reader may come before the agent has written anything.
            kafka = Kafka((addresses[BROKER],), properties={"allow.auto.create.topics": "true"})
            readings = read(kafka, kafka.topic, since=60.0)
            watch(while_it_runs(readings, process, log, stop, live), live=live, as_json=False)


def filled_in(example: str, addresses: dict[str, str]) -> str:
    """The example with the addresses that hold now."""
    return re.sub(r"127\.0\.0\.1:\d+", lambda found: addresses[found[0]], example)


def of_urls(urls: list[str], addresses: dict[str, str]) -> str:
    """A configuration that measures `urls`; JSON's strings are YAML's."""
    targets = "\n".join(f"  - {json.dumps(url, ensure_ascii=False)}" for url in urls)
    return OF_URLS.format(broker=addresses[BROKER], targets=targets)


def explanation(urls: list[str], live: bool) -> str:
    """What a person is about to see, in two sentences."""
    what = "what you named every five seconds" if urls else "sample sites on this machine every two seconds"
    why = "" if urls else " (some sites are broken on purpose)"
    end = "Ctrl-C ends it" if live else f"it ends after {SECONDS:.0f} s"
    sentences = (
        f"An agent now measures {what} and sends each result to Kafka, a server that keeps streams of messages "
        "(here a stand-in that lives in memory).",
        f"What follows was read back from there{why}; {end}, and nothing runs on.",
    )
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n".join(textwrap.fill(sentence, width) for sentence in sentences) + "\n"


@contextlib.contextmanager
def sites(directory: Path) -> Iterator[dict[str, str]]:
    """The broker and the sample sites in a process of their own; what stands for each address of the example."""
    log = directory / "sites.log"
    command = [sys.executable, str(Path(__file__).with_name("sample_sites.py")), str(directory)]
    with (
        log.open("w") as errors,
        # In a process group of its own: Ctrl-C is for this process alone, and the broker outlives the agent.
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            addresses = process.stdout.readline()
            if not addresses:
                raise DemoError(f"the sample sites did not start:\n{tail(log)}")
            yield json.loads(addresses)
        finally:
            process.stdin.close()
            end(process, 5.0)


@contextlib.contextmanager
def agent(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real `uptime-agent run`, as a device would run it."""
    command = [str(Path(sys.executable).with_name("uptime-agent")), "run", "--config", str(config)]
    if shutil.which("setpriv"):
        command = ["setpriv", "--pdeathsig", "TERM", *command]  # it ends even if this process is killed
    environment = {**os.environ, "STATE_DIRECTORY": str(config.with_name("state"))}
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, process_group=0
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            end(process, STOP_SECONDS)


def end(process: subprocess.Popen[Any], seconds: float) -> None:
    """Waits for a process that was asked to end; kills it after `seconds`."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def while_it_runs(
    readings: "Iterator[Reading]", agent: "subprocess.Popen[bytes]", log: Path, stop: threading.Event, live: bool
) -> "Iterator[Reading]":
    """Passes `readings` on until `stop` or the end of the time. Raises `DemoError` when the agent dies or is mute."""
    ends = math.inf if live else time.monotonic() + SECONDS
    came = False
    for reading in readings:
        if stop.is_set():
            return
        if agent.poll() is not None:
            raise DemoError(f"the agent ended, with exit status {agent.returncode}; its log:\n{tail(log)}")
        if time.monotonic() >= ends:
            break
        came = came or isinstance(reading, tuple)
        yield reading
    if not came:
        raise DemoError(f"no result came in {SECONDS:.0f} s; the agent's log:\n{tail(log)}")


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


if __name__ == "__main__":
    sys.exit(main())
