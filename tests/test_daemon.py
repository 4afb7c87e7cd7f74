"""The daemon's life: what it can do without stops nothing, a reload is all or nothing, a stop ends in time."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import time

import pytest

from agent import daemon
from agent.config import load
from agent.config.model import Kafka
from agent.delivery.kafka import EmbeddedBroker, read

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
        task = asyncio.create_task(daemon.Daemon(self.path, load(self.path)).run())
        await asyncio.sleep(0.1)
        try:
            yield task
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            assert await task == 0

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
        monkeypatch.setattr(daemon, "load", failing)
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
        monkeypatch.setattr(daemon, "load", hanging)
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
    assert len(rejected["problems"]) == 51
    assert rejected["problems"][-1].endswith("and 10 more problems")
