"""librdkafka's own mock cluster, by way of the library inside the confluent-kafka wheel: a broker with faults to order.

Its functions are documented in librdkafka's src/rdkafka_mock.h.
"""

import ctypes
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError

PRODUCE = 0  # API keys of the Kafka protocol
FETCH = 1
FIND_COORDINATOR = 10
INIT_PRODUCER_ID = 22

_LIBRARIES = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"


def _librdkafka() -> ctypes.CDLL:
    library = ctypes.CDLL(str(next(_LIBRARIES.glob("librdkafka*.so*"))))
    pointers = ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new")
    for name in pointers:
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    library.rd_kafka_mock_get_requests.restype = ctypes.POINTER(ctypes.c_void_p)
    for name in (
        "topic_set_error",
        "push_request_errors_array",
        "clear_request_errors",
        "start_request_tracking",
        "clear_requests",
    ):
        getattr(library, f"rd_kafka_mock_{name}").restype = None
    return library


class MockCluster:
    """One broker in this process, at `address`. Topics with four partitions come into being when asked for."""

    def __enter__(self) -> "MockCluster":
        self._library = _librdkafka()
        error = ctypes.create_string_buffer(512)
        configuration = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        self._set(configuration, b"log_level", b"2")
        handle = self._library.rd_kafka_new(0, configuration, error, ctypes.c_size_t(len(error)))
        assert handle, error.value
        self._handle = ctypes.c_void_p(handle)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._handle, 1))
        self.address = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)

    def down(self) -> None:
        """Its port is closed, with all connections."""
        self._call("broker_set_down", ctypes.c_int32(1))

    def up(self) -> None:
        """Ends a `down`."""
        self._call("broker_set_up", ctypes.c_int32(1))

    def answer_after(self, milliseconds: int) -> None:
        """Every answer comes so late."""
        self._call("broker_set_rtt", ctypes.c_int32(1), ctypes.c_int(milliseconds))

    def answer_with(self, api: int, *errors: int) -> None:
        """The next requests of this kind are answered with these codes, one each."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._call("push_request_errors_array", ctypes.c_int16(api), ctypes.c_size_t(len(errors)), array)

    def answer_as_usual(self, api: int) -> None:
        """Ends an `answer_with`."""
        self._call("clear_request_errors", ctypes.c_int16(api))

    def count(self) -> None:
        """From now on requests are counted, from 0."""
        self._call("start_request_tracking")
        self._call("clear_requests")

    def counted(self, api: int) -> int:
        """How many requests of this kind came since `count`."""
        number = ctypes.c_size_t()
        requests = self._library.rd_kafka_mock_get_requests(self._cluster, ctypes.byref(number))
        try:
            return sum(
                self._library.rd_kafka_mock_request_api_key(ctypes.c_void_p(requests[at])) == api
                for at in range(number.value)
            )
        finally:
            self._library.rd_kafka_mock_request_destroy_array(requests, number)

    def make_topic(self, topic: str, partitions: int = 1) -> None:
        """Makes a topic."""
        self._call("topic_create", topic.encode(), ctypes.c_int(partitions), ctypes.c_int(1))

    def refuse_topic(self, topic: str, error: int = KafkaError.NO_ERROR) -> None:
        """Metadata says this of the topic, from now on."""
        self._call("topic_set_error", topic.encode(), ctypes.c_int(error))

    def _call(self, function: str, *arguments: object) -> None:
        error = getattr(self._library, f"rd_kafka_mock_{function}")(self._cluster, *arguments)
        assert not error, f"{function}: {error}"  # None of those that return nothing

    def _set(self, configuration: ctypes.c_void_p, name: bytes, value: bytes) -> None:
        error = ctypes.create_string_buffer(512)
        result = self._library.rd_kafka_conf_set(configuration, name, value, error, ctypes.c_size_t(len(error)))
        assert result == 0, error.value


class MockProcess:
    """A mock cluster in a process of its own, which can be stopped as well as told what to do."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.delivery.mock_cluster"],
            cwd=Path(__file__).parent.parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address: str = self._answer()

    def __enter__(self) -> "MockProcess":
        return self

    def __exit__(self, *raised: object) -> None:
        self.resume()
        self._process.communicate(timeout=30)  # the end of its orders ends it

    def do(self, method: str, *arguments: str | int) -> Any:
        """Calls a method of its `MockCluster`; what that returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def pause(self) -> None:
        """Its connections stay and nothing answers, until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends a `pause`."""
        self._process.send_signal(signal.SIGCONT)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the mock cluster ended with {self._process.wait()}"
        return json.loads(line)


def _obey() -> None:
    """Tells the address, and then does what each line of standard input says."""
    with MockCluster() as cluster:
        answer = cluster.address
        while True:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            if not (line := sys.stdin.readline()):
                return
            method, *arguments = json.loads(line)
            answer = getattr(cluster, method)(*arguments)


if __name__ == "__main__":
    _obey()
