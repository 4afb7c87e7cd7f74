"""The daemon's life: what it can do without stops nothing, a reload is all or nothing, a stop ends in time."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import time

import pytest

from agent import configured, daemon
from agent.config import load
from agent.config.model import Kafka
from agent.delivery.kafka import DeliveryError, EmbeddedBroker, read
from tests.in_process import begun, running

TARGETS = "targets: ['http://127.0.0.1:9/a', 'http://127.0.0.1:9/b']"


class Device:
    """A configuration file, the daemon that runs on it in this process, and what it told."""

    def __init__(self, folder, address):
        self.path, self.address, self.folder = folder / "config.yaml", address, folder
        self.write(TARGETS)

    def write(self, targets, *, location="here", topic="uptime.results", tick="20ms"):
        self.path.write_text(
            f"""
agent: {{id: device}}
location: {{id: {location}}}
state_directory: {self.folder / "state"}
kafka: {{bootstrap_servers: '{self.address}', tick: {tick}, topic: {topic}}}
defaults: {{interval: 1s}}
{targets}
"""
        )

    @contextlib.asynccontextmanager
    async def running(self):
        async with running(self.path) as task:
            await asyncio.sleep(0.1)
            yield task

    def told(self, topic):
        """What arrived on a topic until nothing came for a second."""
        found = []
        for value in read(Kafka((self.address,)), topic, 600):
            if isinstance(value, tuple):
                found.append(json.loads(value[0]))
            elif found:
                return found
        return found

    def events(self, kind):
        return [event for event in self.told("uptime.events") if event["event"] == kind]


@pytest.fixture
def device(tmp_path):
    with EmbeddedBroker() as broker:
        yield Device(tmp_path, broker.address)


async def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_failing_heartbeat_stops_nothing(device, monkeypatch, caplog):
    """A part that measuring can do without fails again and again: it is said, and the agent measures on."""

    def broken():
        raise OSError(5, "a sensor is broken")

    monkeypatch.setattr(daemon, "read_vitals", broken)
    monkeypatch.setattr(daemon, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(daemon, "BEGIN_AGAIN_SECONDS", 0.05)
    async with device.running():
        await until(lambda: caplog.text.count("a sensor is broken") >= 2)
        await asyncio.sleep(1.1)
    assert device.events("stopping")
    assert {record["target"]["id"][-1] for record in device.told("uptime.results")} == {"a", "b"}


async def test_what_fails_in_a_reload_changes_nothing(device, monkeypatch, caplog):
    """Whatever goes wrong while a configuration is taken in: told as rejected, and the one before stays in force."""

    def failing(*_, **__):
        raise OSError(24, "Too many open files")

    async with device.running():
        monkeypatch.setattr(configured, "load", failing)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "stays in force" in caplog.text)
    (rejected,) = device.events("config_rejected")
    assert "Too many open files" in rejected["problems"][0]
    assert len(device.events("config_applied")) == 1


async def test_a_stop_does_not_wait_for_a_reload(device, monkeypatch):
    """A configuration that lies on a disk that hangs does not hold up a stop."""
    slow = load(device.path)

    def hanging(*_, **__):
        time.sleep(15)
        return slow

    async with device.running():
        monkeypatch.setattr(configured, "load", hanging)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.2)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10


async def test_what_needs_a_restart_is_said(device, caplog):
    """The key is named, and what stands beside it takes effect."""
    async with device.running():
        device.write(TARGETS, location="there", topic="other.results", tick="30ms")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "kafka.topic" in caplog.text)
        await asyncio.sleep(1.2)
    assert "kafka.topic: its change takes effect with a restart" in caplog.text
    assert device.told("uptime.results")[-1]["location"] == {"id": "there"}


async def test_many_reloads_at_once(device, caplog):
    """A storm of SIGHUP while targets come and go: the last edit is in force, and nothing is missing."""
    caplog.set_level(logging.INFO)
    async with device.running():
        for number in range(20):
            device.write(f"targets: ['http://127.0.0.1:9/a', 'http://127.0.0.1:9/{number}']")
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.03)
        await asyncio.sleep(1.5)
    results = device.told("uptime.results")
    assert [record["agent"]["seq"] for record in results] == list(range(1, len(results) + 1))
    assert {record["target"]["id"][-3:] for record in results[-2:]} == {"9/a", "/19"}


async def test_many_problems_are_told_in_part(device, caplog):
    """A file full of mistakes: the first fifty are told, and how many more there are."""
    async with device.running():
        device.write("targets:\n" + "".join(f"  - {{id: t{n}, url: foo{n}}}\n" for n in range(60)))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "stays in force" in caplog.text)
    (rejected,) = device.events("config_rejected")
    assert (len(rejected["problems"]), rejected["count"]) == (50, 60)
    assert all(": targets[" in problem for problem in rejected["problems"])
    assert "and 10 more problems" in caplog.messages


async def applied(caplog, times):
    """Waits until so many configurations were applied, the first one among them."""
    await until(lambda: caplog.text.count("applied: ") >= times)


def measured(device):
    """The targets of the last second, as they are named."""
    return {record["target"]["id"].rpartition("/")[2] for record in device.told("uptime.results")[-6:]}


SAVES = {
    "in place": lambda file, text: file.write_text(text),
    "by rename": lambda file, text: (
        file.with_suffix(".new").write_text(text) and file.with_suffix(".new").replace(file)
    ),
    "as a link": lambda file, text: (
        file.with_suffix(".other").write_text(text) and (file.unlink(), file.symlink_to(file.with_suffix(".other")))
    ),
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
async def test_an_edit_is_enough(device, caplog, save):
    """However the file is saved, it is in force soon after, without anybody's saying so."""
    caplog.set_level(logging.INFO)
    edited = device.path.read_text().replace("9/b", "9/edited")
    async with device.running():
        begun = time.monotonic()
        save(device.path, edited)
        await applied(caplog, 2)
        assert time.monotonic() - begun < 10  # two looks; a machine that is busy takes longer
        await asyncio.sleep(1.2)
    assert "edited" in measured(device)


@pytest.mark.parametrize("what", ["a new file", "a file that goes", "a secret", "the target of a link"])
async def test_an_edit_of_another_file_is_enough(device, caplog, tmp_path, what):
    """Of a file in targets.d, of a secret, of a folder that is swapped by its link, as git checkouts are."""
    caplog.set_level(logging.INFO)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a.yaml").write_text("- 'http://127.0.0.1:9/a1'")
    (tmp_path / "two" / "a.yaml").write_text("- 'http://127.0.0.1:9/a2'")
    (tmp_path / "targets.d").symlink_to("one")
    (tmp_path / "secret").write_text("1")
    device.write("include: targets.d/*.yaml\ntargets: [{url: 'http://127.0.0.1:9/b', body: {file: secret}}]")
    async with device.running():
        if what == "a new file":
            (tmp_path / "one" / "c.yaml").write_text("- 'http://127.0.0.1:9/c'")
        elif what == "a file that goes":
            (tmp_path / "one" / "a.yaml").unlink()
        elif what == "a secret":
            (tmp_path / "secret").write_text("22")
        else:
            (tmp_path / "link").symlink_to("two")
            (tmp_path / "link").replace(tmp_path / "targets.d")
        await applied(caplog, 2)
        await asyncio.sleep(1.2)
    assert len(device.events("config_applied")) == 2
    expected = {"a new file": {"a1", "b", "c"}, "a file that goes": {"b"}, "a secret": {"a1", "b"}}
    assert expected.get(what, {"a2", "b"}) <= measured(device)


async def test_a_file_that_never_rests_holds_no_other_up(device, caplog, tmp_path):
    """An edit is in force soon, though a body is written anew all the time; and so is the body, now and then."""
    caplog.set_level(logging.INFO)
    body = tmp_path / "body"
    body.write_text("0")
    restless = "targets: [{url: 'http://127.0.0.1:9/b', body: {file: body}}"
    device.write(f"{restless}]")

    async def write_on():
        for number in range(1, 1000):
            body.write_text(str(number))
            await asyncio.sleep(0.2)

    async with device.running():
        writing = asyncio.create_task(write_on())
        await asyncio.sleep(3)
        begun = time.monotonic()
        device.write(f"{restless}, 'http://127.0.0.1:9/edited']")
        await applied(caplog, 2)
        assert time.monotonic() - begun < 10
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.edits.MOVING_SECONDS", 1.0)
            await applied(caplog, 3)
        writing.cancel()
        await asyncio.sleep(1.2)
    assert "edited" in measured(device)


@pytest.mark.parametrize("new", [False, True], ids=["in place", "a new file"])
async def test_a_file_that_is_written_slowly(device, caplog, tmp_path, new):
    """As over a line that stalls: what is there of it meanwhile is no edit, though it would be a configuration."""
    caplog.set_level(logging.INFO)
    (tmp_path / "targets.d").mkdir()
    file = tmp_path / "targets.d" / "a.yaml"
    if not new:
        file.write_text("[]\n")
    device.write("include: targets.d/*.yaml\ntargets: []")
    async with device.running():
        await applied(caplog, 1)
        with open(file, "w") as slow:
            for number in range(6):
                slow.write(f"- 'http://127.0.0.1:9/{number}'\n")
                slow.flush()
                await asyncio.sleep(0.7)
        await applied(caplog, 2)
        await asyncio.sleep(1.2)
    (edited,) = device.events("config_applied")[1:]
    assert len(edited["targets"]) == 6


async def test_a_bad_edit_waits_for_its_mend(device, caplog):
    """It is told once, changes nothing, and the next save is looked at as any other."""
    caplog.set_level(logging.INFO)
    good = device.path.read_text()
    async with device.running():
        device.path.write_text(good.replace("interval: 1s", "interval: soon"))
        await until(lambda: "stays in force" in caplog.text)
        await asyncio.sleep(1.5)
        assert caplog.text.count("stays in force") == 1
        device.path.unlink()
        await until(lambda: caplog.text.count("stays in force") == 2)
        device.path.write_text(good.replace("9/b", "9/mended"))
        await applied(caplog, 2)
        await asyncio.sleep(1.2)
    assert len(device.events("config_rejected")) == 2
    assert {"a", "mended"} <= measured(device)


async def test_saves_in_a_row_are_few_reloads(device, caplog):
    """Ten saves in a second: the last one is in force, and no half of one ever was."""
    caplog.set_level(logging.INFO)
    good = device.path.read_text()
    async with device.running():
        for number in range(10):
            text = good.replace("9/b", f"9/save-{number}")
            device.path.write_text(text[: len(text) // 2])
            await asyncio.sleep(0.02)
            device.path.write_text(text)
            await asyncio.sleep(0.08)
        await until(lambda: "stays in force" in caplog.text or caplog.text.count("applied: ") >= 2)
        await asyncio.sleep(2.5)
    assert not device.events("config_rejected")
    assert 2 <= len(device.events("config_applied")) <= 5
    assert "save-9" in measured(device)


async def test_what_could_not_be_read_is_tried_again(device, monkeypatch, caplog):
    """A good edit that was refused because a descriptor was wanting takes effect by itself; it is said once."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(configured, "TRY_AGAIN_SECONDS", 0.2)
    device.path.write_text(device.path.read_text().replace("9/b", "9/edited"))

    def wanting(*_, **__):
        raise DeliveryError("Too many open files")

    async with device.running():
        with monkeypatch.context() as patch:
            patch.setattr(configured, "load", wanting)
            device.path.write_text(device.path.read_text().replace("9/edited", "9/again"))
            await until(lambda: "stays in force" in caplog.text)
            await asyncio.sleep(2)
        await applied(caplog, 2)
        await asyncio.sleep(1.2)
    assert caplog.text.count("stays in force") == 1
    assert "again" in measured(device)


async def test_a_stop_does_not_wait_for_a_disk(device, monkeypatch, caplog):
    """A disk that does not answer holds up a stop for its ten seconds at most, and that is said."""

    def hangs(*_):
        time.sleep(15)

    async with device.running():
        await asyncio.sleep(1)
        monkeypatch.setattr(daemon, "keep_run", hangs)
        begun = time.monotonic()
    assert time.monotonic() - begun < 12
    assert "the disk does not answer; the run's last numbers are not kept" in caplog.text


async def test_a_delivery_that_dies(device, monkeypatch, caplog):
    """A fault of its own code ends the agent with status 1, in order: what was measured waits on disk."""
    task = begun(device.path)
    await asyncio.sleep(1.2)

    def broken(*_):
        raise AssertionError("a fault of its own")

    with monkeypatch.context() as patch:
        patch.setattr("agent.spool.store.Store._keep_all", broken)
        assert await task == 1
    assert "delivery died; stopping" in caplog.text
    assert "a fault of its own" in caplog.text
    assert (device.folder / "state" / "run.json").exists()


async def test_one_target_is_told_as_one(device, caplog):
    """The log has no plural for it."""
    caplog.set_level(logging.INFO)
    device.write("targets: ['http://127.0.0.1:9/']")
    async with device.running():
        pass
    assert any(message.endswith(" applied: 1 target") for message in caplog.messages)


async def test_the_source_of_a_target_is_told(device):
    """`config_applied` has it, where there is one."""
    targets = "[{id: a, url: 'http://127.0.0.1:9/', source: 127.0.0.1}, {id: b, url: 'http://127.0.0.1:9/'}]"
    device.write(f"targets: {targets}")
    async with device.running():
        pass
    (event,) = device.events("config_applied")
    assert [target.get("source", "none") for target in event["targets"]] == ["127.0.0.1", "none"]


async def test_a_long_configuration_is_told_in_parts(device):
    """However long its targets' labels are, no part is too large for a broker, and none is missing."""
    labels = ", ".join(f"label-{number}: {'x' * 200}" for number in range(20))
    targets = "\n".join(f"  - {{id: t{n}, url: 'http://127.0.0.1:9/{n}', labels: {{{labels}}}}}" for n in range(300))
    device.write(f"targets:\n{targets}")
    async with device.running():
        await asyncio.sleep(2)
    events = device.events("config_applied")
    assert [event["part"] for event in events] == list(range(1, events[0]["parts"] + 1))
    assert len(events) > 3
    assert [target["id"] for event in events for target in event["targets"]] == [f"t{n}" for n in range(300)]
    assert max(len(json.dumps(event)) for event in events) < 300_000
