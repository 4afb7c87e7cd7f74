"""What an operator sees of a running agent: `uptime-agent status`, and what systemd is told."""

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading
import time

import pytest

from agent import daemon
from agent.delivery.forwarder import Forwarder
from agent.delivery.kafka import EmbeddedBroker
from agent.device.systemd import Systemd
from agent.status import CLIENTS, ask
from tests.end_to_end.running import command
from tests.in_process import running

NOWHERE = "127.0.0.1:1"


class Device:
    """A configuration, and the daemon that runs on it in this process."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "config.yaml"
        self.socket = folder / "state" / "status.sock"

    def write(self, address=NOWHERE, more="", interval="1s"):
        self.path.write_text(
            f"""
agent: {{id: device}}
location: {{id: here}}
clock: {{synchronized: yes}}
state_directory: {self.folder / "state"}
kafka: {{bootstrap_servers: '{address}', tick: 20ms}}
defaults: {{interval: {interval}}}
targets: ['http://127.0.0.1:9/a', {{id: b, url: 'http://u:secret@127.0.0.1:9/b'}}]
{more}
"""
        )

    def running(self):
        return running(self.path)

    async def says(self, condition):
        """Waits until what the agent says of itself is so; that."""
        limit = time.monotonic() + 30
        said = None
        while time.monotonic() < limit:
            with contextlib.suppress(OSError):
                said = await asyncio.to_thread(ask, self.socket)
                if condition(said):
                    return said
            await asyncio.sleep(0.05)
        return pytest.fail(f"it said at last: {said}")

    def command(self, *options):
        """Exit status, and what is printed on both streams."""
        ran = command("status", "--config", str(self.path), *options)
        return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def device(tmp_path):
    device = Device(tmp_path)
    device.write()
    return device


async def test_a_healthy_agent(device, monkeypatch):
    """Exit status 0; each target with its last verdict, whatever it is; no secret."""
    monkeypatch.setattr(daemon, "HEARTBEAT_SECONDS", 0.5)
    with EmbeddedBroker() as broker:
        device.write(broker.address)
        async with device.running():
            said = await device.says(lambda said: said.verdicts == {"down": 2} and said.checks_per_second)
            assert (said.health, said.why, said.broker.state) == ("healthy", (), "up")
            good, shown = await asyncio.to_thread(device.command)
            json_good, told = await asyncio.to_thread(device.command, "--json")
    assert (good, json_good) == (0, 0)
    assert "healthy  device at here" in shown
    assert shown.count("connect_refused") == 2
    verdicts = {target["id"]: target["status"] for target in json.loads(told)["targets"]}
    assert verdicts == {
        "http://127.0.0.1:9/a": "down",
        "b": "down",
    }
    assert "secret" not in shown + told


async def test_a_source(device):
    """By what a target is measured, where it has a source of its own."""
    device.path.write_text(device.path.read_text().replace("{id: b,", "{id: b, source: 127.0.0.1,"))
    async with device.running():
        await device.says(lambda said: sum(said.verdicts.values()) == 2)
        _, shown = await asyncio.to_thread(device.command)
        _, told = await asyncio.to_thread(device.command, "--json")
    assert re.search(r"^  b by 127\.0\.0\.1 +(down|unknown) ", shown, re.MULTILINE)
    sources = {target["id"]: target["source"] for target in json.loads(told)["targets"]}
    assert sources == {"http://127.0.0.1:9/a": None, "b": "127.0.0.1"}


async def test_a_kafka_that_takes_no_results_is_not_well(device):
    """Though it acknowledges what is for another topic."""
    with EmbeddedBroker() as broker:
        device.write(broker.address)
        async with device.running():
            said = await device.says(lambda said: said.broker.state == "up")
    said.broker.refused_topics = ("uptime.results",)
    assert said.judge().health == "degraded"
    assert "Kafka does not take what is for the topic uptime.results" in said.line()


async def test_a_run_without_a_number_is_not_well(device):
    """Where the state directory cannot be written, nobody has to read the journal to know."""
    (device.folder / "state" / "run.json.new" / "in the way").mkdir(parents=True)
    async with device.running():
        said = await device.says(lambda said: True)
    assert (said.health, said.run) == ("degraded", 0)
    assert any("the state directory could not be written" in why for why in said.why)


async def test_a_degraded_agent(device, monkeypatch):
    """Exit status 1, and why, in words: the broker, an edit that was refused."""
    monkeypatch.setattr("agent.delivery.forwarder.LOST_AFTER", 0.2)
    async with device.running():
        await device.says(lambda said: said.broker.state == "lost" and said.broker.error)
        device.write(more="nonsense: 1")
        said = await device.says(lambda said: said.config.problems)
        status, shown = await asyncio.to_thread(device.command)
    assert status == 1
    assert "degraded" in shown
    assert re.search(r"Kafka acknowledges nothing for \d+ s: .*127\.0\.0\.1:1.* Connection refused\n", shown)
    assert "an edit was refused: " in shown
    assert "nonsense: unknown key" in shown
    assert said.health == "degraded"


@pytest.mark.parametrize(("mistakes", "told"), [(1, None), (2, "and 1 more problem"), (3000, "and 2999 more problems")])
async def test_how_much_is_wrong_with_an_edit(device, mistakes, told):
    """Its first problem is told, and how many more there are, however many."""
    async with device.running():
        await device.says(lambda said: True)
        device.write(more="\n".join(f"nonsense_{number}: 1" for number in range(mistakes)))
        said = await device.says(lambda said: said.config.problems)
    (why,) = [why for why in said.why if "an edit was refused" in why]
    assert "nonsense_0: unknown key" in why
    assert why.endswith(told) if told else "more" not in why
    assert len(said.config.problems) == min(mistakes, 50)
    assert said.config.problem_count == mistakes


async def test_what_waits_for_a_restart(device, caplog):
    """A key that cannot change while the agent runs is named until it is as before, once in the log; it is no ill."""
    with EmbeddedBroker() as broker:
        device.write(broker.address)
        async with device.running():
            await device.says(lambda said: said.health == "healthy")
            waiting = "spool: {max_size: 2GiB}\nworkers: 2"
            device.write(broker.address, waiting)
            said = await device.says(lambda said: said.config.waiting)
            assert said.config.waiting == ("spool", "workers")
            assert said.line().startswith("healthy; 2 targets, ")
            assert said.line().endswith(f"config {said.config.digest}, waiting for a restart: spool, workers")
            status, shown = await asyncio.to_thread(device.command)
            assert status == 0
            assert "restart   is waited for by spool, workers" in shown
            _, told = await asyncio.to_thread(device.command, "--json")
            assert json.loads(told)["config"]["waiting"] == ["spool", "workers"]
            device.write(broker.address, waiting, interval="2s")
            await device.says(lambda again: again.config.digest != said.config.digest)
            device.write(broker.address)
            said = await device.says(lambda said: not said.config.waiting)
            assert "restart" not in said.line()
    assert caplog.text.count("spool: its change takes effect with a restart") == 1


async def test_the_digest_is_the_same_everywhere(device):
    """What `validate` prints of the files, with its secrets or without, is what the agent says that runs on them."""
    (device.folder / "more.yaml").write_text("- {url: 'http://127.0.0.1:9/c', body: {file: config.yaml}}")
    device.write(more="include: more.yaml")
    async with device.running():
        said = await device.says(lambda said: True)
        checked = await asyncio.to_thread(command, "validate", str(device.path))
        skipped = await asyncio.to_thread(command, "validate", "--secrets", "skip", str(device.path))
    assert checked.stdout == skipped.stdout == f"{device.path}: good, 3 targets, digest {said.config.digest}\n"
    assert f"config {said.config.digest}" in said.line()


async def test_what_was_given_up_is_no_secret(device, monkeypatch):
    """Records that will never come are told as long as that is fresh, with their reason."""
    monkeypatch.setattr("agent.spool.spool.MAX_RAW", 1_200)  # half of it is the largest record
    async with device.running():
        said = await device.says(lambda said: said.spool.given_up > 0)
        assert said.health == "degraded"
        (why,) = [why for why in said.why if "given up" in why]
        assert re.fullmatch(r"records were given up: \d+ since the start, the last \d+ s ago \(too_large\)", why)


async def test_no_agent(device):
    """Exit status 3 and where was looked, before a start, after a stop, and when one was killed."""
    status, told = device.command()
    assert status == 3
    first, where = told.splitlines()
    assert first.startswith("no agent runs here on this configuration; start it, or ")
    assert where.startswith(f"no agent answers at {device.socket} (No such file or directory) or /run/uptime-agent/")
    async with device.running():
        await device.says(lambda said: said.target_count == 2)
    assert not device.socket.exists()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(device.socket))
    status, _ = device.command()
    assert status == 3


async def test_a_socket_of_a_killed_agent_is_no_hindrance(tmp_path):
    """What a killed one left is replaced."""
    device = Device(tmp_path)
    device.write()
    device.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(device.socket))
    async with device.running():
        await device.says(lambda said: said.target_count == 2)


async def test_a_socket_that_is_removed_comes_back(device, monkeypatch):
    """Whoever cleans up a directory does not make the agent unreachable; what is not ours there is left alone."""
    monkeypatch.setattr("agent.status.LOOK_AGAIN", 0.05)
    async with device.running():
        await device.says(lambda said: True)
        device.socket.unlink()
        await device.says(lambda said: said.target_count == 2)
        device.socket.unlink()
        device.socket.write_text("of somebody else")
        await asyncio.sleep(0.5)
    assert device.socket.read_text() == "of somebody else"


async def test_a_client_that_does_not_read_holds_nothing_up(device, monkeypatch):
    """Nor do many of them: others are answered, and measuring goes on."""
    monkeypatch.setattr("agent.status.WAIT", 0.5)
    async with device.running():
        await device.says(lambda said: True)
        with contextlib.ExitStack() as clients:
            for _ in range(40):
                clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(device.socket))
            said = await device.says(lambda said: said.verdicts == {"down": 2})
        assert said.target_count == 2


async def test_clients_that_do_not_read_make_it_busy(device, monkeypatch):
    """Who asks meanwhile gets an answer when they are gone; one who gives up is not told that no agent is there."""
    targets = "\n".join(f"  - 'http://127.0.0.1:9/{number}{'x' * 100}'" for number in range(3_000))
    text = device.path.read_text().replace("interval: 1s", "interval: 1h")
    device.path.write_text(re.sub(r"targets: .*", f"targets:\n{targets}", text))
    async with device.running():
        await device.says(lambda said: said.target_count == 3_000)
        with _not_reading(device.socket):
            status, _ = await asyncio.to_thread(device.command)
        assert status in (0, 1)  # it runs; that Kafka is away it may not know yet
        monkeypatch.setattr("agent.status.WAIT", 60.0)
        monkeypatch.setattr("agent.status.BUSY", 0.5)
        with _not_reading(device.socket):
            await asyncio.sleep(0.5)
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(ask, device.socket)
            status, told = await asyncio.to_thread(device.command)
    assert status == 3
    assert told.startswith(f"an agent is there at {device.socket}, and busy: ")
    assert "no agent runs here" not in told


@contextlib.contextmanager
def _not_reading(path):
    with contextlib.ExitStack() as clients:
        for _ in range(CLIENTS):
            clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        yield


async def test_no_place_for_a_socket(device, caplog):
    """A path that is too long for one is said, and everything else goes on."""
    caplog.set_level(logging.INFO)
    long = device.folder / ("x" * 120)
    device.path.write_text(device.path.read_text().replace(f"{device.folder / 'state'}", str(long)))
    async with device.running():
        await asyncio.sleep(1.5)
    assert "`uptime-agent status` gets no answer there" in caplog.text
    assert "applied: 2 targets" in caplog.text


class Manager:
    """A service manager that writes down what it is told (sd_notify(3))."""

    def __init__(self, folder):
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self.told = []
        self._thread = threading.Thread(target=self._listen)

    def listen(self):
        self._thread.start()

    def _listen(self):
        while text := self._socket.recv(65536).decode():
            self.told.append(text)

    async def heard(self, text, times=1):
        limit = time.monotonic() + 30
        while sum(text in each for each in self.told) < times:
            assert time.monotonic() < limit, self.told
            await asyncio.sleep(0.02)

    def close(self):
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ending:
                ending.sendto(b"", str(self.path))
            self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path, monkeypatch):
    manager = Manager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    yield manager
    manager.close()


async def test_what_systemd_is_told(device, manager):
    """Ready when it measures, reloading and ready again with each edit, the status in a line, and the stop."""
    manager.listen()
    async with device.running():
        await manager.heard("READY=1")
        assert manager.told[manager.told.index("READY=1") - 1].startswith("STATUS=healthy; 2 targets, Kafka unknown, ")
        await manager.heard("2 targets, 2 down")
        device.write(interval="2s")
        await manager.heard("RELOADING=1\nMONOTONIC_USEC=")
        await manager.heard("READY=1", 2)
        device.write(more="nönsense: 1")
        await manager.heard("STATUS=degraded: an edit was refused: ")
        await manager.heard("nönsense")
    await manager.heard("STOPPING=1")


async def test_systemd_is_told_why_it_cannot_start(device, manager):
    """The first mistake, so that nobody has to search the journal for it."""
    manager.listen()
    device.write(more="nonsense: 1\nmore_nonsense: 1")
    ran = await asyncio.to_thread(command, "run", "--config", str(device.path))
    assert ran.returncode == 1
    await manager.heard(f"STATUS=cannot start: {device.path}:9:1: nonsense: unknown key")


async def test_a_long_line_for_systemd_is_cut(manager):
    """It ignores what is longer than it has room for, and what is no UTF-8."""
    manager.listen()
    Systemd().status("a" + "ö" * 5_000)
    await manager.heard("STATUS=aö")
    assert 3_900 < len(manager.told[0].encode()) <= 4_096


async def test_the_watchdog_is_fed_by_progress(device, manager, monkeypatch):
    """While the broker is away all is well; when measuring or delivery does not get on, the watchdog hears nothing."""
    monkeypatch.setattr("agent.delivery.forwarder.LOST_AFTER", 0.2)
    monkeypatch.setattr(daemon, "HUNG_SECONDS", 1.5)
    manager.listen()
    async with device.running():
        await device.says(lambda said: said.broker.state == "lost")
        before = manager.told.count("WATCHDOG=1")
        await manager.heard("WATCHDOG=1", before + 5)

        async def stuck(self, limit):
            await asyncio.sleep(3600)

        with monkeypatch.context() as patch:
            patch.setattr(Forwarder, "_something_to_take", stuck)
            await asyncio.sleep(3)
            hung = manager.told.count("WATCHDOG=1")
            await asyncio.sleep(1)
            assert manager.told.count("WATCHDOG=1") == hung


async def test_an_agent_without_targets_is_well(device, manager, monkeypatch):
    """The last target switched off is no lack of progress."""
    monkeypatch.setattr(daemon, "HUNG_SECONDS", 1.0)
    manager.listen()
    async with device.running():
        await device.says(lambda said: said.verdicts == {"down": 2})
        device.path.write_text(device.path.read_text().replace("defaults: {", "defaults: {enabled: false, "))
        await device.says(lambda said: said.target_count == 0 and said.verdicts == {})
        await asyncio.sleep(2)
        before = manager.told.count("WATCHDOG=1")
        await manager.heard("WATCHDOG=1", before + 3)


async def test_measuring_that_hangs_is_noticed(device, manager, monkeypatch):
    """When due targets are not looked at any more, the watchdog hears nothing."""
    monkeypatch.setattr(daemon, "HUNG_SECONDS", 1.5)
    manager.listen()
    async with device.running():
        await device.says(lambda said: said.verdicts == {"down": 2})
        with monkeypatch.context() as patch:
            patch.setattr("agent.schedule.Scheduler._arm", lambda self: None)
            await asyncio.sleep(4)
            hung = manager.told.count("WATCHDOG=1")
            await asyncio.sleep(1)
            assert manager.told.count("WATCHDOG=1") == hung


async def test_a_configuration_that_is_being_mended(device, monkeypatch):
    """Its mistake is told, and the agent is looked for where one without a word of it would be."""
    monkeypatch.setenv("STATE_DIRECTORY", str(device.folder / "state"))
    async with device.running():
        await device.says(lambda said: True)
        device.path.write_text("kafka: [")
        status, _ = await asyncio.to_thread(device.command)
        assert status in (0, 1)
        monkeypatch.setenv("STATE_DIRECTORY", str(device.folder / "elsewhere"))
        status, told = await asyncio.to_thread(device.command)
    assert status == 3
    assert "config.yaml:1:" in told
    assert "no agent runs here on this configuration" in told


async def test_another_agents_status_is_not_mine(device, tmp_path, monkeypatch):
    """An agent that answers where mine should, and runs on another configuration, is not taken for mine."""
    other = tmp_path / "other.yaml"
    async with device.running():
        await device.says(lambda said: True)
        other.write_text(device.path.read_text())
        ran = await asyncio.to_thread(command, "status", "--config", str(other))
    assert ran.returncode == 3
    assert f"runs on {device.path}, not on {other}" in ran.stderr


async def test_a_manager_that_is_busy_holds_nothing_up(device, manager):
    """When systemd does not listen, what it is to be told is left out; measuring goes on, and a stop ends in time."""
    async with device.running():
        await device.says(lambda said: said.verdicts == {"down": 2} and said.uptime_s > 3)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
