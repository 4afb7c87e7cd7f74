"""A start that finds a bad configuration goes on with the last good one, which is kept in the state directory."""

import asyncio
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from agent import configured, last_good
from agent.config import ConfigError, DiskFiles, load
from agent.config.model import Kafka
from agent.configured import Configured
from agent.delivery.kafka import EmbeddedBroker, read, refusal
from agent.last_good import FORMAT, LARGEST, keep
from agent.status import ask
from tests.end_to_end.running import ROOT, agent, command, wait_for
from tests.in_process import running

NOWHERE = "127.0.0.1:1"


class Device:
    """A configuration with an included file, a secret and a certificate in files, and the agent's state."""

    def __init__(self, folder):
        self.folder, self.path, self.state = folder / "etc", folder / "etc" / "config.yaml", folder / "state"
        self.kept = self.state / "last-good"
        (self.folder / "targets.d").mkdir(parents=True)
        (self.folder / "targets.d" / "a.yaml").write_text("- {url: 'http://127.0.0.1:9/a', body: {file: secret}}\n")
        (self.folder / "secret").write_text("a-secret-of-a-file")
        trustme.CA().cert_pem.write_to_path(str(self.folder / "ca.pem"))
        self.write()

    def write(self, more="", *, state=None, broker=NOWHERE):
        self.path.write_text(
            f"""
agent: {{id: device}}
location: {{id: here}}
clock: {{synchronized: yes}}
state_directory: {state or self.state}
kafka: {{bootstrap_servers: '{broker}', tick: 20ms}}
defaults: {{interval: 1s}}
include: targets.d/*.yaml
targets: [{{url: 'http://127.0.0.1:9/b', tls: {{ca: ca.pem}}}}]
{more}
"""
        )

    def keep(self):
        """Keeps the configuration as it is now."""
        files = DiskFiles()
        config = load(self.path, files=files)
        keep(self.state, self.path, files)
        return config

    def written(self):
        """When the kept configuration was written."""
        return self.kept.stat().st_mtime_ns

    def begin(self):
        """What an agent that starts now takes for its configuration."""
        return Configured(self.path).config

    def run_once(self):
        """An agent that starts, keeps its configuration, and stops."""
        with agent(self.path):
            wait_for(self.kept.exists, "the kept configuration")

    def says(self):
        """What the running agent says of itself."""
        with contextlib.suppress(OSError):
            return ask(self.state / "status.sock")


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


MISTAKES = {
    "a mistake": lambda device: device.write("nonsense: 1"),
    "a file cut off": lambda device: device.path.write_text(device.path.read_text()[:-40]),
    "no file": lambda device: device.path.unlink(),
    "an empty file": lambda device: device.path.write_text(""),
    "a secret that is gone": lambda device: (device.folder / "secret").unlink(),
    "a certificate that is gone": lambda device: (device.folder / "ca.pem").unlink(),
    "an included mistake": lambda device: (device.folder / "targets.d" / "b.yaml").write_text("- b.example"),
    "a property that Kafka's client refuses": lambda device: device.path.write_text(
        device.path.read_text().replace("tick: 20ms", "tick: 20ms, properties: {batch.size: much}")
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_at_the_start(device, monkeypatch, mistake):
    """Whatever is wrong with the files, the very configuration before is in force, with its targets and its secrets."""
    monkeypatch.setenv("STATE_DIRECTORY", str(device.state))  # where one is looked for whose key cannot be read
    before = device.keep()
    mistake(device)
    after = device.begin()
    assert after.targets == before.targets
    assert (after.digest, after.kafka, after.location) == (before.digest, before.kafka, before.location)


def test_no_yaml_at_the_start(device):
    """A state directory of one's own is found wherever the mistake is, though it be in the spool's section."""
    before = device.keep()
    good = device.path.read_text()
    for bad in (
        good[:-40],
        good + "\tx: 1\n",
        good + "'x: 1\n",
        good + "x: [\n  1\n",
        good + "  x: 1\n",
        good + "\xff: [",
        "\tx: 1\n" + good,
        "x: [\n" + good,
        good + "spool:\n  max_size: 1GiB\n directory: x\n",
        good + "spool: {max_size: much}\n",
    ):
        device.path.write_text(bad, encoding="latin-1")
        assert device.begin().digest == before.digest


def test_on_the_last_good_one(device):
    """The log has every problem, and `status` is degraded and says why; another mistake changes only that. The mend is
    taken in.
    """
    device.run_once()
    device.write("nonsense: 1\nmore_nonsense: 1")
    with agent(device.path) as running:
        wait_for(lambda: (said := device.says()) and said.verdicts == {"down": 2}, "measurements")
        running.says(r"ERROR +\S+config.yaml:\d+:1: nonsense: unknown key")
        running.says(r"the last good configuration, of \d{4}-\d\d-\d\dT\S+Z, is in force until this is mended")
        shown = command("status", "--config", str(device.path))
        assert shown.returncode == 1
        date = re.search(
            r"on the last good configuration, of (\S+), as the files were refused: \S+: nonsense: ", shown.stdout
        )
        assert date
        assert date[1] == f"{datetime.fromtimestamp(device.kept.stat().st_mtime, UTC):%Y-%m-%dT%H:%M:%SZ}"
        assert "and 1 more problem" in shown.stdout
        device.write("other_nonsense: 1")
        wait_for(lambda: "other_nonsense" in device.says().why[-1], "the next mistake")
        assert device.says().why[-1].startswith("on the last good configuration, of ")
        device.write("# mended")
        wait_for(lambda: not device.says().config.problems, "the mend")
        assert device.says().config.last_good_at is None
        assert not any("last good" in why for why in device.says().why)


async def test_it_is_told_on_kafka(tmp_path, caplog):
    """A `config_rejected` event comes between the start and the configuration that is applied instead."""
    device = Device(tmp_path)
    caplog.set_level(logging.INFO)
    with EmbeddedBroker() as broker:
        device.write(broker=broker.address)
        before = device.keep()
        device.write("nonsense: 1", broker=broker.address)
        async with running(device.path):
            await until(lambda: " applied: " in caplog.text)
        events = []
        for value in read(Kafka((broker.address,)), "uptime.events", 600):
            if isinstance(value, tuple):
                events.append(json.loads(value[0]))
            elif events:
                break
    _, rejected, applied, *_ = events
    assert [event["event"] for event in events[:3]] == ["started", "config_rejected", "config_applied"]
    assert "nonsense: unknown key" in rejected["problems"][0]
    assert applied["digest"] == before.digest
    assert {target["id"] for target in applied["targets"]} == {"http://127.0.0.1:9/a", "http://127.0.0.1:9/b"}


def refused(device, caplog):
    """Nothing to fall back to: what is said of it."""
    device.write("nonsense: 1")
    caplog.clear()
    with pytest.raises(ConfigError) as caught:
        device.begin()
    assert "nonsense" in str(caught.value)  # what is wrong with the files, not with what was kept
    (told, *more) = [each for each in caplog.messages if "last good" in each]
    assert "nonsense: unknown key" in caplog.messages[0]
    return told.removeprefix(f"{device.path}: there is no last good configuration to fall back to: "), more


def test_few_lines_of_a_start_that_fails(device, caplog):
    """However much is wrong, as it is started again and again; and where all of it is shown."""
    mistakes = "\n".join(f"nonsense_{number}: 1" for number in range(2_000))
    device.write(mistakes)
    with pytest.raises(ConfigError):
        device.begin()
    assert len(caplog.messages) == 7
    assert f"and 1995 more: `uptime-agent validate {device.path}` shows all" in caplog.messages


def spoiled(device, data):
    device.state.mkdir(exist_ok=True)
    device.kept.unlink(missing_ok=True)
    device.kept.write_bytes(data)


@pytest.mark.parametrize("length", [0, 1, len(FORMAT) - 1, len(FORMAT), len(FORMAT) + 15, len(FORMAT) + 16, -1])
def test_a_truncated_one(device, caplog, length):
    """What is left of one is no configuration, wherever it ends."""
    device.keep()
    spoiled(device, device.kept.read_bytes()[:length])
    told, _ = refused(device, caplog)
    assert told.endswith(("last-good: is damaged", "last-good: was not written by this version of the agent"))


def test_a_damaged_one(device, caplog):
    """Nor is one with a bit that is not as it was, wherever it is."""
    device.keep()
    good = device.kept.read_bytes()
    for at in range(0, len(good), 97):
        spoiled(device, good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        refused(device, caplog)


FOREIGN = {
    "garbage": bytes(range(256)) * 100,
    "of a newer version": FORMAT.replace(b" 1\n", b" 2\n") + b"\0" * 100,
    "of another shape": FORMAT + last_good._checksum(b"\x93\x01\x02\x03") + b"\x93\x01\x02\x03",
    "nested": FORMAT + last_good._checksum(b"\x91" * 100_000) + b"\x91" * 100_000,
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_one(device, caplog, data):
    """A file that somebody else wrote is none; a good configuration replaces it."""
    spoiled(device, data)
    refused(device, caplog)
    device.write()
    device.keep()
    device.write("nonsense: 1")
    assert len(device.begin().targets) == 2


def test_a_huge_one(device, caplog):
    """A file that is too large is not taken into memory."""
    spoiled(device, b"")
    os.truncate(device.kept, LARGEST * 1000)
    assert refused(device, caplog)[0].endswith("is too large to be one")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_no_file_in_its_place(device, caplog, make):
    """A folder, a pipe and a device are told instead of being waited for."""
    device.state.mkdir()
    make(device.kept)
    assert re.search("last-good: Is ", refused(device, caplog)[0])


def test_one_of_another_configuration(device, caplog):
    """What was kept for another main file, or says another state directory, is not taken for this one's."""
    other = device.folder / "other.yaml"
    other.write_text(device.path.read_text())
    files = DiskFiles()
    load(other, files=files)
    keep(device.state, other, files)
    assert refused(device, caplog)[0] == f"{device.kept} is of {other}"
    device.write(state=device.folder / "elsewhere")
    device.keep()
    assert refused(device, caplog)[0].endswith(f"is for the state_directory {device.folder / 'elsewhere'}")


def test_one_that_is_not_good_any_more(device, caplog, monkeypatch):
    """What it needs from outside may have gone: both are said, and that one is what it was then."""
    monkeypatch.setenv("LABEL", "x")
    device.path.write_text(device.path.read_text().replace("id: here", "id: {env: LABEL}"))
    device.keep()
    monkeypatch.delenv("LABEL")
    told, (line,) = refused(device, caplog)[0], [each for each in caplog.messages if each.startswith("as it was then")]
    assert re.search(r"last-good, of \S+Z, is not good any more$", told)
    assert "location.id: the environment has no variable" in line


def test_what_is_kept_and_what_is_not(device, monkeypatch, tmp_path):
    """Only the agent's user can read it. Credentials and variables are not in it: the new ones are used."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "token").write_text("a-credential")
    (device.folder / "linked").symlink_to(tmp_path / "credentials" / "token")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    monkeypatch.setenv("TOKEN", "a-variable")
    headers = "{A: {credential: token}, B: {env: TOKEN}, C: {file: linked}, D: {file: secret}}"
    (device.folder / "targets.d" / "a.yaml").write_text(f"- {{url: 'http://127.0.0.1:9/a', headers: {headers}}}")
    device.state.mkdir()
    Path(f"{device.kept}.new").write_text("what a power cut left")
    Path(f"{device.kept}.new").chmod(0o644)
    before = os.umask(0)
    try:
        device.keep()
    finally:
        os.umask(before)
    assert device.kept.stat().st_mode & 0o777 == 0o600
    data = device.kept.read_bytes()
    assert b"a-secret-of-a-file" in data
    assert b"a-credential" not in data
    assert b"a-variable" not in data
    (tmp_path / "credentials" / "token").write_text("a-new-credential")
    monkeypatch.setenv("TOKEN", "a-new-variable")
    (device.folder / "secret").unlink()
    device.write("nonsense: 1")
    headers = next(target.headers for target in device.begin().targets if target.headers)
    assert headers == {
        "A": "a-new-credential",
        "B": "a-new-variable",
        "C": "a-new-credential",
        "D": "a-secret-of-a-file",
    }


CUT = """
import os, sys
from pathlib import Path
from agent.config import DiskFiles, load
from agent.last_good import keep
state, path, cut = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
files = DiskFiles()
load(path, files=files)
def die(event, arguments):
    if event == cut and "last-good" in str(arguments[0]):
        os._exit(9)
sys.addaudithook(die)
keep(state, path, files)
"""


@pytest.mark.parametrize("cut", ["os.remove", "open", "os.rename"])
def test_a_cut_while_it_is_written(device, cut):
    """What dies before the new one is in its place leaves the old one whole; the next writes over what it left."""
    before = device.keep()
    Path(f"{device.kept}.new").write_text("of a cut before")
    device.write("# edited")
    edited = load(device.path)
    ran = subprocess.run([sys.executable, "-c", CUT, device.state, device.path, cut], check=False, cwd=ROOT)
    assert ran.returncode == 9
    device.write("nonsense: 1")
    assert device.begin().digest == before.digest
    device.write("# edited")
    device.keep()
    device.write("nonsense: 1")
    assert device.begin().digest == edited.digest
    assert os.listdir(device.state) == ["last-good"]


async def test_it_is_written_when_something_changed(device, caplog):
    """A start with what is kept already writes nothing; ten saves in a second are written no oftener than applied."""
    caplog.set_level(logging.INFO)
    await asyncio.to_thread(device.run_once)
    first = device.written()
    times = set()
    async with running(device.path):
        await asyncio.sleep(1)
        assert device.written() == first
        for number in range(10):
            device.write(f"# save {number}")
            times.add(device.written())
            await asyncio.sleep(0.1)
        await until(lambda: times.add(device.written()) or b"# save 9" in device.kept.read_bytes())
        times.add(device.written())
    applied = caplog.text.count(" applied: ") - 1
    assert 2 <= len(times) <= applied + 1
    device.write("nonsense: 1")
    assert device.begin().digest == re.findall(r"configuration (\w+) applied", caplog.text)[-1]


async def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_it_cannot_be_kept(device, caplog):
    """Where nothing can be written, that is a warning, and all else goes on."""
    (device.state / "last-good.new" / "in the way").mkdir(parents=True)
    async with running(device.path):
        await until(lambda: "is not kept for a start that finds a bad one" in caplog.text)
        await until(lambda: (device.state / "status.sock").exists())
        said = await asyncio.to_thread(ask, device.state / "status.sock")
        assert said.target_count == 2
    assert f"{device.kept}: the configuration is not kept" in caplog.text


async def test_it_is_tried_again(device, monkeypatch):
    """What could not be kept is told by `status`, and kept when it can be, though nobody edits anything."""
    monkeypatch.setattr("agent.daemon.KEEP_AGAIN_SECONDS", 0.2)
    in_the_way = device.state / "last-good.new" / "in the way"
    in_the_way.mkdir(parents=True)
    async with running(device.path):
        while not (said := await asyncio.to_thread(device.says)) or not any("is not kept" in why for why in said.why):
            await asyncio.sleep(0.05)
        in_the_way.rmdir()
        in_the_way.parent.rmdir()
        await until(device.kept.exists)
        while (await asyncio.to_thread(device.says)).config.not_kept:
            await asyncio.sleep(0.05)
    device.write("nonsense: 1")
    assert device.begin().targets


async def test_a_disk_that_does_not_answer(device, caplog, monkeypatch):
    """While the disk hangs, edits are taken in, and a stop ends in time."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(configured, "keep", lambda *_: time.sleep(15))
    async with running(device.path):
        await asyncio.sleep(0.5)
        device.write("# edited")
        await until(lambda: caplog.text.count(" applied: ") == 2)
        begun = time.monotonic()
    assert time.monotonic() - begun < 12


def test_a_configuration_that_is_a_link(device, caplog):
    """As of a release that is switched by its link: when the link leads nowhere, the last release is in force."""
    release = device.folder / "releases"
    release.mkdir()
    device.path.rename(release / "1.yaml")
    device.path.symlink_to("releases/1.yaml")
    before = device.keep()
    device.path.unlink()
    device.path.symlink_to("releases/2.yaml")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STATE_DIRECTORY", str(device.state))
        assert device.begin().digest == before.digest


def test_wherever_it_is_started(device, monkeypatch):
    """A relative path is the same configuration in its folder only."""
    monkeypatch.chdir(device.folder)
    files = DiskFiles()
    before = load(Path("config.yaml"), files=files)
    keep(device.state, Path("config.yaml"), files)
    device.write("nonsense: 1")
    monkeypatch.chdir("/")
    assert device.begin().targets == before.targets


async def test_an_edit_of_the_state_directory(device, caplog):
    """It waits for the restart, and what is kept stays the one that is of use here."""
    async with running(device.path):
        await until(device.kept.exists)
        first = device.kept.read_bytes()
        device.write(state=device.folder / "elsewhere")
        await until(lambda: "state_directory: its change takes effect with a restart" in caplog.text)
        await asyncio.sleep(1)
        assert device.kept.read_bytes() == first


def test_commands_look_at_the_files(device):
    """`validate` and `probe` do not fall back: they say what is wrong."""
    device.keep()
    device.write("nonsense: 1")
    assert command("validate", str(device.path)).returncode == 1
    assert command("probe", "--config", str(device.path), "--all").returncode == 2


def test_more_than_is_kept(device, monkeypatch, caplog):
    """Files that are too large together are measured with, and not kept."""
    monkeypatch.setattr("agent.config.files.MOST_KEPT", 100)
    files = DiskFiles()
    assert len(load(device.path, files=files, refusal=refusal).targets) == 2
    with pytest.raises(ValueError, match="too large"):
        keep(device.state, device.path, files)
