"""What the spool keeps: bytes with a number, an id and a stamp; and what it says about those that will never come."""

from typing import NamedTuple

import msgspec


class Record(NamedTuple):
    """One result or event on its way. `seq` and `id` as in the contract; `at`: its RFC 3339 stamp."""

    topic: str
    seq: int
    id: str
    at: str
    value: bytes


class Origin(NamedTuple):
    """Who numbered a record: `seq` counts within (`run_id`, `worker`, topic)."""

    run: int
    run_id: str
    worker: int


class Gap(msgspec.Struct, frozen=True):
    """Records that will never come: `count` of them from `first_seq` to `last_seq`, and the stamps of these two."""

    topic: str
    run_id: str
    worker: int
    first_seq: int
    last_seq: int
    count: int
    reason: str
    first_at: str
    last_at: str
