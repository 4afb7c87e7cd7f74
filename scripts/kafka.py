"""A real Apache Kafka for development and tests: KRaft nodes on loopback, with the topics as the agent wants them.

The nodes are children that die with this process, however it ends.
"""

import argparse
import base64
import contextlib
import ctypes
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn
from xml.etree import ElementTree

PARTS = Path(__file__).resolve().parent / "kafka.d"
POM = PARTS / "pom.xml"
TOPICS = {"uptime.results": 4, "uptime.events": 1}  # and the number of their partitions
JAVA = 17  # at least, for Kafka 4
INSTALL = "sudo apt-get install default-jre-headless maven"
TOOL = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]  # starts sooner
UP = "Kafka Server started"  # in a node's log
UP_SECONDS = 90.0
STOP_SECONDS = 15.0  # for an orderly end; then SIGKILL
JAAS = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
PORTS = range(20_000, 32_000)  # below those that outgoing connections get, so that a restarted node finds its own free
LOG_LINES = 20  # shown of a log when something failed


class KafkaError(Exception):
    """Why it cannot start or go on, for people."""


class Stopped(Exception):
    """A signal asked to stop."""


class Node:
    """One broker that is a controller too. `address` is where clients reach it, `secure` where with TLS and SCRAM."""

    def __init__(self, number: int, ports: list[int], data: Path) -> None:
        self.number = number
        self.address, self.controller, self.secure = (f"127.0.0.1:{port}" for port in ports)
        self.log = data / f"node-{number}.log"
        self.data = data / f"node-{number}"
        self.properties = data / f"node-{number}.properties"
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, nodes: "list[Node]", certificate: Path | None) -> None:
        """Writes its server.properties; with `certificate` it serves `secure` too."""
        secure = f",SASL_SSL://{self.secure}" if certificate else ""
        copies = min(len(nodes), 3)
        in_sync = max(copies - 1, 1)
        self.properties.write_text(f"""\
process.roles=broker,controller
node.id={self.number}
controller.quorum.voters={",".join(f"{node.number}@{node.controller}" for node in nodes)}
listeners=PLAINTEXT://{self.address},CONTROLLER://{self.controller}{secure}
advertised.listeners=PLAINTEXT://{self.address}{secure}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={JAAS}
log.dirs={self.data}
auto.create.topics.enable=false
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.num.partitions=1
offsets.topic.replication.factor={copies}
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
# A node that was killed may come back only when its session before has ended.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# What is stamped years back goes at once, as in a cluster that runs for long, and not after minutes.
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=1000
{f"ssl.keystore.type=PEM{os.linesep}ssl.keystore.location={certificate}" if certificate else ""}
""")

    def is_up(self) -> bool:
        """Whether it serves clients. Raises `KafkaError` when it has ended instead."""
        assert self.process is not None
        log = self.log.read_text(errors="replace")
        if self.process.poll() is not None:
            raise KafkaError(f"node {self.number} ended at its start; its log:\n{tail(log)}")
        return UP in log


def main() -> int:
    """The exit status: 0 when it was asked to stop, 1 when it could not start or a node died."""
    arguments = parsed()
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
        java = find_java()
        libraries = fetched()
        with directory(arguments.data) as data, running(java, libraries, data, arguments) as nodes:
            for node in nodes:
                assert node.process is not None
                print(f"node {node.number}: {node.address}, pid {node.process.pid}")
            if arguments.tls:
                print(f"with TLS and SCRAM-SHA-512: {','.join(node.secure for node in nodes)}")
            print(f"bootstrap servers: {','.join(node.address for node in nodes)}", flush=True)
            say("Ctrl-C ends it; now, in another terminal: ./scripts/uptime-agent run --config FILE")
            watch(nodes)
    except Stopped:
        return 0
    except (KafkaError, OSError) as error:
        say(str(error))
        return 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./scripts/kafka",
        description=f"Starts a real Apache Kafka with the topics {' and '.join(TOPICS)}, until Ctrl-C.",
        epilog="It is ready when it names the bootstrap servers, and what to do next.",
    )
    parser.add_argument(
        "--port", type=int, default=9092, help="of the first node, the others follow; 0: free ones (default: 9092)"
    )
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 3), help="how many (default: 1)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep the data here, and go on with what is here")
    parser.add_argument(
        "--tls",
        type=Path,
        metavar="FILE",
        help="also serve TLS with SCRAM-SHA-512, by this private key (PKCS #8) and certificate chain in PEM",
    )
    parser.add_argument("--user", metavar="NAME:PASSWORD", help="of SCRAM-SHA-512; made with new data, and kept in it")
    arguments = parser.parse_args()
    if arguments.user and ":" not in arguments.user:
        parser.error(f"argument --user: {arguments.user} is not NAME:PASSWORD")
    if not 0 <= arguments.port <= 65_536 - arguments.nodes:
        parser.error(f"argument --port: {arguments.port} is no port")
    return arguments


def say(text: str) -> None:
    """Tells a person how it gets on, who may have left."""
    try:
        print(f"kafka: {text}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        # What is still buffered goes nowhere: Python flushes it at the end, and would exit with 120 if it could not.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the wait that the signal came into; a second signal does not disturb the end."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped


def find_java() -> str:
    """The path of a Java that is new enough. Raises `KafkaError`."""
    java = shutil.which("java")
    if java is None:
        raise KafkaError(f"needs Java {JAVA} or newer: {INSTALL}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < JAVA:
        raise KafkaError(f"needs Java {JAVA} or newer, {java} is {said.partition(os.linesep)[0]}: {INSTALL}")
    return java


def fetched() -> Path:
    """The directory of Kafka's jars, fetched from Maven Central at the first time. Raises `KafkaError`."""
    version = ElementTree.parse(POM).getroot().findtext("{*}version")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uptime-agent"
    libraries = cache / f"kafka-{version}"
    if libraries.is_dir():
        return libraries
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaError(f"needs Maven to fetch Apache Kafka {version} once: {INSTALL}")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that fetches Kafka")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not libraries.is_dir():
            say(f"fetching Apache Kafka {version} into {libraries} (44 MB, once)")
            # We hold the lock: what another left half done is nobody's.
            for partial in cache.glob("kafka-*.partial"):
                shutil.rmtree(partial)
            fetch(maven, libraries)
    return libraries


def fetch(maven: str, libraries: Path) -> None:
    """Fetches beside `libraries` and renames, so that what stands there is whole. Raises `KafkaError`."""
    partial = libraries.with_name(libraries.name + ".partial")
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={partial}", "-DincludeScope=runtime"]
    with tempfile.TemporaryFile() as log:
        process = start([maven, "-B", "-f", str(POM), *goal], log)
        try:
            next_word = time.monotonic() + 5
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() > next_word:
                    say(f"{text_of(log).count('Downloaded from')} files so far")
                    next_word += 5
        finally:
            end([process])
        if process.returncode != 0:
            problems = [line for line in text_of(log).splitlines() if "ERROR" in line]
            raise KafkaError("Maven could not fetch it:\n" + "\n".join(problems[:LOG_LINES]))
    partial.rename(libraries)


@contextlib.contextmanager
def directory(kept: Path | None) -> Iterator[Path]:
    """Where the data lives: `kept`, or a temporary directory that is removed. Raises `KafkaError`."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        with (kept / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise KafkaError(f"{kept} is in use by another run of this") from None
            yield kept.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="uptime-agent-kafka-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)


@contextlib.contextmanager
def running(java: str, libraries: Path, data: Path, arguments: argparse.Namespace) -> Iterator[list[Node]]:
    """The nodes, up and with the topics made; ended afterwards. Raises `KafkaError`."""
    count = arguments.nodes
    before = len(list(data.glob("node-*.properties")))
    if before not in (0, count):
        raise KafkaError(f"{data} holds a cluster of {before}: start it with --nodes {before}")
    ports = free_ports(arguments.port, count)
    nodes = [Node(number, ports[number - 1 :: count], data) for number in range(1, count + 1)]
    base = [java, "-cp", f"{libraries}/*", f"-Dlog4j2.configurationFile={PARTS / 'log4j2.properties'}"]
    for node in nodes:
        node.configure(nodes, arguments.tls and arguments.tls.resolve())
    format_new(base, nodes, arguments.user)
    say(f"starting {count} node{'s' * (count > 1)}")
    try:
        for node in nodes:
            with node.log.open("wb") as log:
                node.process = start([*base, "-Xms128m", "-Xmx512m", "kafka.Kafka", str(node.properties)], log)
        wait_until_up(nodes)
        make_topics(base, nodes)
        yield nodes
    finally:
        say("stopping")
        end([node.process for node in nodes if node.process is not None])


def format_new(base: list[str], nodes: list[Node], user: str | None) -> None:
    """Makes those nodes' data directories that are not there, and `user` in them. Raises `KafkaError`."""
    cluster = base64.urlsafe_b64encode(b"\1" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
    new = []
    for node in nodes:
        try:
            known = re.search(r"^cluster\.id=(.+)$", (node.data / "meta.properties").read_text(), re.MULTILINE)
            cluster = known[1] if known else cluster
        except FileNotFoundError:
            new.append(node)
    if new:
        say("formatting")
    scram = []
    if user:
        name, _, password = user.partition(":")
        scram = ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
    for node in new:
        run([*base, *TOOL, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(node.properties), *scram])


def wait_until_up(nodes: list[Node]) -> None:
    """Returns when all serve clients. Raises `KafkaError`."""
    limit = time.monotonic() + UP_SECONDS
    while not all(node.is_up() for node in nodes):
        if time.monotonic() > limit:
            raise KafkaError(f"not up after {UP_SECONDS:.0f} s; the log:\n{tail(nodes[0].log.read_text())}")
        time.sleep(0.1)


def make_topics(base: list[str], nodes: list[Node]) -> None:
    """Makes those of the agent's topics that are not there, with as many copies as nodes. Raises `KafkaError`."""
    new = {topic: n for topic, n in TOPICS.items() if not any((node.data / f"{topic}-0").exists() for node in nodes)}
    if new:
        say(f"making the topics {' and '.join(new)}")
    command = [*base, *TOOL, "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", nodes[0].address]
    # The broker stamps: a device's clock can be wrong, and retention goes by stamps.
    command += ["--create", "--if-not-exists", "--config", "message.timestamp.type=LogAppendTime"]
    command += ["--replication-factor", str(len(nodes))]
    for topic, partitions in new.items():
        run([*command, "--topic", topic, "--partitions", str(partitions)])


def watch(nodes: list[Node]) -> NoReturn:
    """Waits for a signal. Raises `KafkaError` when the last node has died by itself."""
    alive = list(nodes)
    while alive:
        for node in list(alive):
            assert node.process is not None
            status = node.process.poll()
            if status is not None:
                alive.remove(node)
                how = f"by signal {-status}" if status < 0 else f"with exit status {status}"
                say(f"node {node.number} died {how}; {len(alive)} left; its log:\n{tail(node.log.read_text())}")
        time.sleep(0.1)
    raise KafkaError("no node is left")


def free_ports(first: int, nodes: int) -> list[int]:
    """The nodes' ports, from `first` on or, if that is 0, free ones; then the controllers', and those with TLS.

    Raises `KafkaError`.
    """
    ports: list[int] = []
    if first:
        ports = list(range(first, first + nodes))
        for port in ports:
            if not is_free(port):
                raise KafkaError(f"port {port} is taken: stop what listens there, or choose another with --port")
    while len(ports) < 3 * nodes:
        port = random.choice(PORTS)
        if port not in ports and is_free(port):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def start(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A child that Ctrl-C does not reach, and that SIGKILL does when this process has died."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent
    )


def run(command: list[str]) -> None:
    """Runs a tool to its end. Raises `KafkaError` when it failed."""
    with tempfile.TemporaryFile() as log:
        process = start(command, log)
        try:
            status = process.wait()
        finally:
            end([process])
        if status != 0:
            raise KafkaError(f"{' '.join(command[4:])} failed:\n{tail(text_of(log))}")


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ends all at once, in order if they do so in time."""
    for process in processes:
        process.terminate()
    limit = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(limit - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def die_with_parent() -> None:
    """PR_SET_PDEATHSIG, prctl(2): SIGKILL when the thread that made this process ends."""
    LIBC.prctl(1, signal.SIGKILL)


LIBC = ctypes.CDLL(None)


def text_of(log: IO[bytes]) -> str:
    """All that was written to it, also by others."""
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


def tail(text: str) -> str:
    """The last lines."""
    return "\n".join(text.splitlines()[-LOG_LINES:])


if __name__ == "__main__":
    sys.exit(main())
