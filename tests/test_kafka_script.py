"""./scripts/kafka as a person runs it; that it serves, the tests with the `kafka` fixture show."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "kafka"
INSTALL = "sudo apt-get install default-jre-headless maven"
LONG = 60.0


@pytest.fixture
def tools(tmp_path):
    """A directory with the only programs that the script finds; a test adds its own."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("bash", "dirname"):
        (directory / name).symlink_to(shutil.which(name))
    (directory / "python3").symlink_to(sys.executable)
    return directory


def add(tools, name, text):
    (tools / name).write_text(f"#!/bin/bash\n{text}\n")
    (tools / name).chmod(0o755)


def run(tools, tmp_path, *arguments):
    """Its exit status, and what it says."""
    process = subprocess.run(
        [SCRIPT, *arguments],
        env={"PATH": str(tools), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert process.stdout == ""
    return process.returncode, process.stderr


def test_without_python(tools, tmp_path):
    """It says what to install, and ends with 1."""
    (tools / "python3").unlink()
    assert run(tools, tmp_path) == (1, "kafka: needs Python 3; on Debian: sudo apt-get install python3\n")


def test_what_to_do_now(kafka):
    """When it is up, it says how to end it and what comes next; both not on standard output, which others read."""
    told = "kafka: Ctrl-C ends it; now, in another terminal: ./scripts/uptime-agent run --config FILE\n"
    assert told in (kafka._directory / "script.log").read_text()


def test_without_java(tools, tmp_path):
    """It says what to install, and ends with 1."""
    status, said = run(tools, tmp_path)
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith(f"kafka: needs Java 17 or newer: {INSTALL}")


def test_with_an_old_java(tools, tmp_path):
    """A Java that is too old for Kafka is as good as none, and is named."""
    add(tools, "java", "echo 'openjdk version \"11.0.27\" 2025-04-15' >&2")
    status, said = run(tools, tmp_path)
    assert status == 1
    assert re.match(r"kafka: needs Java 17 or newer, \S+/java is openjdk version .11\.0\.27..*: " + INSTALL, said)


def test_without_maven(tools, tmp_path):
    """Without a Kafka in the cache it says that Maven is needed, and ends with 1."""
    add(tools, "java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2")
    status, said = run(tools, tmp_path)
    assert (status, said.count("\n")) == (1, 1)
    assert re.match(r"kafka: needs Maven to fetch Apache Kafka [\d.]+ once: " + INSTALL, said)


def test_when_maven_fails(tools, tmp_path):
    """Maven's own error is shown, and nothing half done is left for the next run to use."""
    add(tools, "java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2")
    add(tools, "mvn", "echo '[INFO] Scanning'; echo '[ERROR] No route to host'; exit 1")
    status, said = run(tools, tmp_path)
    assert status == 1
    assert said.endswith("Maven could not fetch it:\n[ERROR] No route to host\n")
    assert os.listdir(tmp_path / "cache" / "uptime-agent") == ["kafka.lock"]


def test_concurrent_first_runs(tools, tmp_path):
    """Two first runs at once fetch one after the other, and the second uses what the first has fetched."""
    add(tools, "java", 'echo \'openjdk version "17.0.15" 2025-04-15\' >&2; [ "$1" = -version ]')
    output = "${5#-DoutputDirectory=}"
    add(
        tools,
        "mvn",
        f'echo fetched >>{tmp_path}/fetched; /bin/mkdir "{output}"; /bin/sleep 0.5; echo >"{output}/a.jar"',
    )
    command = [SCRIPT, "--port", "0"]
    environment = {"PATH": str(tools), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    runs = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(process.communicate(timeout=LONG)[1] for process in runs)
    assert (tmp_path / "fetched").read_text() == "fetched\n"
    assert said.count("StorageTool format") == 2  # which the Java here cannot do
    (libraries,) = (tmp_path / "cache" / "uptime-agent").glob("kafka-*")
    assert os.listdir(libraries) == ["a.jar"]


def test_a_taken_port(tools, tmp_path, kafka):
    """It says so at once instead of starting a broker that cannot listen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = subprocess.run([SCRIPT, "--port", str(port)], capture_output=True, text=True, timeout=LONG)
    assert process.returncode == 1
    assert f"port {port} is taken: stop what listens there, or choose another with --port" in process.stderr


def test_data_in_use(tmp_path, kafka):
    """Two on the same data would destroy it: the second does not start."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [SCRIPT, "--port", "0", "--data", tmp_path]
        process = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert process.returncode == 1
    assert process.stderr == f"kafka: {tmp_path} is in use by another run of this\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_all_of_its_own(tmp_path, kafka, number):
    """A signal ends it in order and leaves nothing; even kill -9 takes the broker along."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("PYTHONUNBUFFERED", None)  # which hides that the last words could not be written
    process = subprocess.Popen(
        [SCRIPT, "--port", "0"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line == "kafka: starting 1 node\n":
            break
    limit = time.monotonic() + LONG
    while not (brokers := with_argument(str(tmp_path))):
        assert time.monotonic() < limit
    process.stderr.close()  # whoever read how it gets on has left, which changes nothing
    process.send_signal(number)
    assert process.wait(LONG) == (-9 if number == signal.SIGKILL else 0)
    while with_argument(str(tmp_path)):
        assert time.monotonic() < limit, brokers
        time.sleep(0.01)
    if number != signal.SIGKILL:
        assert os.listdir(tmp_path) == []


def with_argument(text):
    """Ids of the processes that have this in an argument."""
    found = []
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in arguments.read_text():
                found.append(int(arguments.parent.name))
        except OSError:
            continue  # it has ended
    return found


def test_a_user_without_a_password(tools, tmp_path):
    """A word that is not NAME:PASSWORD is a usage error that says so."""
    status, said = run(tools, tmp_path, "--user", "pi")
    assert (status, said.splitlines()[-1]) == (2, "./scripts/kafka: error: argument --user: pi is not NAME:PASSWORD")
