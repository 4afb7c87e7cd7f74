"""librdkafka's own mock cluster, by way of the library inside the confluent-kafka wheel: a broker with faults to order.

Its functions are documented in librdkafka's src/rdkafka_mock.h.
"""

import ctypes
from pathlib import Path
from types import TracebackType

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
    for name in ("topic_set_error", "push_request_errors_array"):
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
