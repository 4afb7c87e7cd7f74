"""The real agent against every fault that librdkafka's mock broker can be made to have.

Each row of faults is one run of the agent with a broker of its own; the rows go on at the same time, because what they
mostly do is wait. After each fault live records are back in time; after a row all that was measured has arrived.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import KafkaError

from agent.device.clock import boottime
from tests.delivery.mock_cluster import INIT_PRODUCER_ID, PRODUCE, MockProcess
from tests.end_to_end.campaign import Campaign
from tests.end_to_end.conservation import Account
from tests.end_to_end.sites import site

LASTS = 1.0  # seconds that a fault lasts if it does not say otherwise
FOR_EVER = 10_000  # answers: more than are asked for while a fault lasts
E = KafkaError

Rows = dict[str, Future[Account]]


class Fault(NamedTuple):
    """What happens to the broker for `seconds`. `met`: whether the agent noticed, for those that it might not."""

    name: str
    begin: Callable[[MockProcess, Campaign], object]
    end: Callable[[MockProcess, Campaign], object] = lambda mock, campaign: None
    seconds: float = LASTS
    met: Callable[[MockProcess], bool] = lambda mock: True


def answers(code: int, api: int = PRODUCE, times: int = FOR_EVER) -> Fault:
    """Each request of this kind is answered so."""

    def begin(mock: MockProcess, campaign: Campaign) -> None:
        mock.do("count")
        mock.do("answer_with", api, *[code] * times)

    return Fault(
        KafkaError(code).name(),
        begin,
        lambda mock, campaign: mock.do("answer_as_usual", api),
        met=lambda mock: mock.do("counted", api) > 0,
    )


def kills_producers(code: int) -> Fault:
    """The producer is done with, and each new one is told this."""
    then = answers(code, INIT_PRODUCER_ID)

    def begin(mock: MockProcess, campaign: Campaign) -> None:
        then.begin(mock, campaign)
        mock.do("answer_with", PRODUCE, E.OUT_OF_ORDER_SEQUENCE_NUMBER)

    return then._replace(name=f"{then.name} of new producers", begin=begin, seconds=7.0)


def says_of_topic(code: int) -> Fault:
    """Metadata says so of the topic of results; a producer asks for it when its leader seems to have gone."""

    def begin(mock: MockProcess, campaign: Campaign) -> None:
        mock.do("refuse_topic", campaign.topic, code)
        mock.do("answer_with", PRODUCE, *[E.NOT_LEADER_FOR_PARTITION] * FOR_EVER)

    def end(mock: MockProcess, campaign: Campaign) -> None:
        mock.do("refuse_topic", campaign.topic)
        mock.do("answer_as_usual", PRODUCE)

    return Fault(f"{KafkaError(code).name()} of the topic", begin, end, 3.0)


def flap(mock: MockProcess, campaign: Campaign) -> None:
    """Up for a second, down for a second, and so on."""
    for _ in range(6):
        mock.do("up")
        time.sleep(1)
        mock.do("down")
        time.sleep(1)


DOWN = Fault("down", lambda mock, campaign: mock.do("down"), lambda mock, campaign: mock.do("up"), 2.0)
FLAPPING = DOWN._replace(name="flapping", begin=flap, seconds=0.0)
LONG_DOWN = DOWN._replace(name="down for longer than any time-out", seconds=22.0)
HANGING = Fault("hanging", lambda mock, campaign: mock.pause(), lambda mock, campaign: mock.resume(), 3.0)
LONG_HANGING = HANGING._replace(name="hanging for longer than any time-out", seconds=22.0)
SLOW = Fault(
    "slow",
    lambda mock, campaign: mock.do("answer_after", 2_500),
    lambda mock, campaign: mock.do("answer_after", 0),
    8.0,
)
ROWS: dict[str, list[Fault]] = {
    "not now": [
        answers(E.NOT_ENOUGH_REPLICAS),
        answers(E.NOT_ENOUGH_REPLICAS_AFTER_APPEND),
        answers(E.NOT_LEADER_FOR_PARTITION),
        answers(E.LEADER_NOT_AVAILABLE),
        answers(E.REQUEST_TIMED_OUT),
        answers(E.KAFKA_STORAGE_ERROR),
        answers(E.NETWORK_EXCEPTION),
        answers(E.THROTTLING_QUOTA_EXCEEDED),
        answers(E.UNKNOWN),
        answers(E.UNKNOWN_LEADER_EPOCH),
        answers(E._TRANSPORT),  # the mock hangs up
        says_of_topic(E.LEADER_NOT_AVAILABLE),
    ],
    "not you": [
        answers(E.TOPIC_AUTHORIZATION_FAILED),
        answers(E.CLUSTER_AUTHORIZATION_FAILED),
        answers(E.UNKNOWN_TOPIC_OR_PART),
        answers(E.TOPIC_EXCEPTION),
        answers(E.SASL_AUTHENTICATION_FAILED),
        says_of_topic(E.TOPIC_AUTHORIZATION_FAILED),
    ],
    "no topic": [says_of_topic(E.UNKNOWN_TOPIC_OR_PART)],
    "not this producer": [
        answers(E.OUT_OF_ORDER_SEQUENCE_NUMBER, times=1),
        answers(E.INVALID_PRODUCER_EPOCH, times=1),
        answers(E.UNKNOWN_PRODUCER_ID, times=1),
        answers(E.INVALID_PRODUCER_ID_MAPPING),
        answers(E.PRODUCER_FENCED),
        answers(E.OUT_OF_ORDER_SEQUENCE_NUMBER),
        kills_producers(E.CLUSTER_AUTHORIZATION_FAILED),
        kills_producers(E.COORDINATOR_LOAD_IN_PROGRESS),
    ],
    "not this record": [
        answers(E.MSG_SIZE_TOO_LARGE, times=1),
        answers(E.INVALID_RECORD, times=1),
        answers(E.INVALID_MSG, times=1),
        answers(E.INVALID_MSG_SIZE, times=1),
        answers(E.INVALID_TIMESTAMP, times=1),
        answers(E.RECORD_LIST_TOO_LARGE, times=1),
        answers(E.UNSUPPORTED_FOR_MESSAGE_FORMAT, times=1),
        answers(E.POLICY_VIOLATION, times=1),
        answers(E.INVALID_REQUIRED_ACKS, times=1),
    ],
    "no record": [answers(E.MSG_SIZE_TOO_LARGE), answers(E.INVALID_RECORD)],
    "away": [DOWN, FLAPPING, LONG_DOWN],
    "hanging": [SLOW, HANGING, LONG_HANGING],
}


def campaign(row: str, folder: Path) -> Account:
    """One row of faults, from the start of the agent to its end."""
    with MockProcess() as mock, site() as plain, Campaign(folder, mock.address, plain) as device:
        mock.do("make_topic", device.topic, 4)
        mock.do("make_topic", device.events_topic)
        device.write()
        device.follow()
        if row == "away":
            mock.do("down")
        device.start()
        if row == "away":
            time.sleep(3)
            mock.do("up")
        device.live_again(boottime())
        for fault in ROWS[row]:
            fault.begin(mock, device)
            time.sleep(fault.seconds)
            assert fault.met(mock), f"{fault.name}: the agent asked for nothing"
            fault.end(mock, device)
            device.live_again(boottime(), after=fault.name)
        device.settled()
        device.stop()
        return device.account()


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """Those that were asked for, under way."""
    items = [item for item in request.session.items if item.path == request.path and "rows" in item.fixturenames]
    chosen = [item.callspec.params["row"] for item in items]
    with ThreadPoolExecutor(len(ROWS)) as threads:
        yield {row: threads.submit(campaign, row, tmp_path_factory.mktemp("row")) for row in chosen}


@pytest.mark.parametrize("row", ROWS)
def test_nothing_is_lost(rows: Rows, row: str) -> None:
    """Live records are back within 10 s of each fault's end, and all that was measured arrives, or is named."""
    account = rows[row].result()
    assert list(account.runs.values()) == [1], "one run went through all of it"
    if row == "hanging":
        assert account.repeats, "what was not answered in time must have gone twice"
    if row == "no record":
        assert account.dropped + account.rejected, "records that were refused alone must be named"
    else:
        assert account.dropped == 0
