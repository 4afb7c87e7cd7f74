"""Which properties of librdkafka's producer are the agent's own: set otherwise, records would be lost or reordered."""

_OWNED = {
    "bootstrap.servers": "write kafka.bootstrap_servers",
    "metadata.broker.list": "write kafka.bootstrap_servers",
    "acks": "the agent waits for all replicas",
    "request.required.acks": "the agent waits for all replicas",
    "enable.idempotence": "it is always on",
    "enable.gapless.guarantee": "a record that cannot be delivered must not stop the others",
    "transactional.id": "the agent uses no transactions",
    "partitioner": "the key decides, as with Java clients",
    "linger.ms": "write kafka.tick, the time within which records travel together",
    "message.timeout.ms": "the agent never gives a record up for its age",
    "delivery.timeout.ms": "the agent never gives a record up for its age",
    "retries": "the agent never stops trying",
    "message.send.max.retries": "the agent never stops trying",
    "max.in.flight": "idempotence sets it",
    "max.in.flight.requests.per.connection": "idempotence sets it",
}
_INTERNAL = ("test.mock.", "plugin.", "interceptor")


def owned(name: str) -> str | None:
    """What to do instead of setting this property, if it is the agent's own; None if it is free to be set."""
    if name.startswith("queue."):
        return "the agent bounds its own queue"
    if name.startswith(_INTERNAL) or name.endswith("_cb"):
        return "it is none for a configuration file"
    return _OWNED.get(name)
