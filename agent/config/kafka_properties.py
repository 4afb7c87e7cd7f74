"""Which properties of librdkafka's producer are the agent's own: set otherwise, records would be lost or reordered.

And which name files.
"""

_TICK = "write kafka.tick, the time within which records travel together"
_NEVER_GIVEN_UP = "the agent never gives a record up; remove it"
_OWNED = {
    "bootstrap.servers": "write kafka.bootstrap_servers",
    "metadata.broker.list": "write kafka.bootstrap_servers",
    "acks": "the agent waits for all replicas; remove it",
    "request.required.acks": "the agent waits for all replicas; remove it",
    "enable.idempotence": "it is always on; remove it",
    "enable.gapless.guarantee": "a record that is refused must not stop the others; remove it",
    "transactional.id": "the agent uses no transactions; remove it",
    "partitioner": "the key decides, as with Java clients; remove it",
    "linger.ms": _TICK,
    "queue.buffering.max.ms": _TICK,
    "message.timeout.ms": _NEVER_GIVEN_UP,
    "delivery.timeout.ms": _NEVER_GIVEN_UP,
    "retries": _NEVER_GIVEN_UP,
    "message.send.max.retries": _NEVER_GIVEN_UP,
    "max.in.flight": "idempotence sets it; remove it",
    "max.in.flight.requests.per.connection": "idempotence sets it; remove it",
    "delivery.report.only.error": "the agent needs the report of every record; remove it",
}
_FILES = (".location", ".file", ".keytab")  # ends of names
_INTERNAL = ("test.mock.", "plugin.", "interceptor")
_CLIENT = (
    "logger",
    "on_delivery",
    "default.topic.config",
    "log.queue",
    "opaque",
    "enabled_events",
)  # of Python's or C's


def owned(name: str) -> str | None:
    """What to do instead of setting this property, if it is the agent's own; None if it is free to be set."""
    if (instead := _OWNED.get(name)) is not None:
        return instead
    if name.startswith("queue."):
        return "the agent bounds its own queue; remove it"
    if name.startswith(_INTERNAL) or name.endswith("_cb") or name in _CLIENT:
        return "it is for programs, not for a configuration file; remove it"
    return None


def is_read_by_client(name: str) -> bool:
    """Does this property name a file that librdkafka reads itself, when a producer is made?"""
    return name.endswith(_FILES)
