"""Devices whose clocks are wrong, before, during and after an outage: nothing is refused or expires for its stamp.

Six devices live through the same outage of a real Kafka, each with a wall clock of its own.
"""

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from agent.device.clock import ahead, boottime
from tests.end_to_end.campaign import Campaign
from tests.end_to_end.running import wait_for
from tests.end_to_end.sites import site
from tests.kafka import Broker, consume

YEAR = 365 * 24 * 3600
OUTAGE = 8.0, 3.0  # seconds until the clocks change, which is after Kafka was judged lost, and from then on
# Kafka deletes what is stamped more than an hour ago, and refuses what is stamped more than an hour ahead.
STAMPED_BY_AGENT = {"message_timestamp_type": "CreateTime", "retention_ms": "3600000"}


class Device(NamedTuple):
    """How far its clock is ahead at first and then, in seconds; what it knows of that; who stamps its records."""

    at_first: float
    then: float
    synchronized: str = "no"
    synchronized_then: str = "no"
    topic: dict[str, str] = STAMPED_BY_AGENT
    killed: bool = False  # during the outage


def devices() -> dict[str, Device]:
    to_1970 = -time.time() + 200 * 24 * 3600
    return {
        "in 1970 for ever": Device(to_1970, to_1970, killed=True),
        "in 1970, then set": Device(to_1970, 0, "no", "yes"),
        "fifty years ahead, and sure of it": Device(50 * YEAR, 50 * YEAR, "yes", "yes"),
        "fifty years ahead, then set": Device(50 * YEAR, 0, "no", "yes", killed=True),
        "set back by an hour": Device(0, -3600 + 60, "yes", "yes"),
        "in 1970 and sure of it": Device(to_1970, to_1970, "yes", "yes", {"message_timestamp_type": "LogAppendTime"}),
    }


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that moves a process's clock."""
    compiler = shutil.which("cc")
    if compiler is None:
        lacks = "no cc: the library that moves a clock cannot be made; apt-get install gcc libc6-dev"
        if os.environ.get("CI") == "true":
            pytest.fail(lacks)
        pytest.skip(lacks)
    library = tmp_path_factory.mktemp("shim") / "clock_shift.so"
    source = Path(__file__).with_name("clock_shift.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True)
    return library


def set_clock(device: Campaign, seconds: float) -> None:
    """Moves the device's clock by so much from the right time."""
    with (device.folder / "shift").open("r+b") as file:
        file.write(struct.pack("q", round(seconds)))


def configure(device: Campaign, synchronized: str) -> None:
    """Tells the device whether its clock is right."""
    device.write(more=f"clock: {{synchronized: {synchronized}}}")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        pytest.param(Broker.pause, Broker.resume, id="hangs", marks=pytest.mark.long),
        pytest.param(Broker.kill, Broker.restart, id="dies"),
    ],
)
def test_wrong_clocks(kafka, shim, tmp_path, begin, end):
    """All their records arrive and stay, in order by run and seq; stamps are put right where nobody has seen them."""
    expires(kafka)
    with site() as plain, contextlib.ExitStack() as stack, ThreadPoolExecutor(6) as threads:
        campaigns = {}
        for number, (name, device) in enumerate(devices().items()):
            folder = tmp_path / str(number)
            campaign = campaigns[name] = stack.enter_context(Campaign(folder, kafka.address, plain, 5))
            kafka.make_topic(campaign.topic, **device.topic)
            kafka.make_topic(campaign.events_topic, **device.topic)
            (folder / "shift").write_bytes(bytes(8))
            campaign.environment = {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": str(folder / "shift")}
            campaign.follow()
            set_clock(campaign, device.at_first)
            configure(campaign, device.synchronized)
            campaign.start()
        list(threads.map(lambda campaign: campaign.live_again(boottime()), campaigns.values()))
        begin(kafka)
        time.sleep(OUTAGE[0])
        for name, device in devices().items():
            campaign = campaigns[name]
            if device.killed:
                campaign.kill()
            set_clock(campaign, device.then)
            configure(campaign, device.synchronized_then)
            if device.killed:
                campaign.start()
            else:
                campaign.running.send(signal.SIGHUP)
        time.sleep(OUTAGE[1])
        end(kafka)
        back = boottime()
        list(threads.map(lambda campaign: campaign.live_again(back, after="the outage"), campaigns.values()))
        list(threads.map(Campaign.settled, campaigns.values()))
        list(threads.map(Campaign.stop, campaigns.values()))
        time.sleep(3)  # Kafka looks each second for what has expired
        for name, device in devices().items():
            account = campaigns[name].account()
            assert (account.dropped, account.rejected) == (0, 0), name
            assert sorted(account.runs.values()) == [1, 2][: 1 + device.killed], name
            assert account.in_order, name
        check_corrected(campaigns["in 1970, then set"])


def expires(kafka: Broker) -> None:
    """This broker does delete what is stamped years back, or the campaign would prove nothing."""
    topic = kafka.make_topic(f"expires-{uuid.uuid4()}", **STAMPED_BY_AGENT)
    producer = Producer({"bootstrap.servers": kafka.address})
    producer.produce(topic, b"old", timestamp=1_000)
    assert producer.flush(30) == 0
    consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": "expires"})
    try:
        wait_for(lambda: consumer.get_watermark_offsets(TopicPartition(topic, 0))[0] == 1, "the record to expire")
    finally:
        consumer.close()


def check_corrected(device: Campaign) -> None:
    """Stamps were put right in what was measured during the outage, and only there."""
    corrected = 0
    for record in consume(device.address, device.topic):
        value = json.loads(record.value or b"")
        if value["started_at"] is None:
            continue
        off = datetime.fromisoformat(value["started_at"]).timestamp() - (value["clock"]["boottime_s"] + ahead())
        assert value["clock"].get("corrected") is None or abs(off) < 1
        assert abs(off) < 1 or value["started_at"].startswith("1970-")
        corrected += "corrected" in value["clock"]
    assert corrected >= 5
