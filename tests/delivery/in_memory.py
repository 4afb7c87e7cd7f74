"""A spool whose disk is memory and answers on the spot: what waits in it is what a test of the delivery looks at."""

from collections.abc import Callable
from pathlib import Path

from agent.spool.record import Gap, Origin, Record
from agent.spool.spool import Spool
from agent.spool.store import Store
from tests.spool.torn_disk import TornDisk

ORIGIN = Origin(1, "5f0c2a9177d04e1b", 0)


class _Answer:
    """Of a disk that has done what was asked before it was asked for the answer."""

    def __init__(self, result: object) -> None:
        self._result = result

    def add_done_callback(self, function: Callable[["_Answer"], None]) -> None:
        function(self)

    def exception(self) -> None:
        return None

    def result(self) -> object:
        return self._result


class _Disk:
    def call(self, function: Callable[[], object]) -> _Answer:
        return _Answer(function())

    def end(self) -> None:
        pass


def a_spool(tell_gap: Callable[[Gap], Record], disk: TornDisk | None = None, origin: Origin = ORIGIN) -> Spool:
    """An open spool; `disk`: with what an earlier one left there."""
    store = Store(Path("spool"), origin, files=disk or TornDisk())
    spool = Spool(store, tell_gap)
    spool._disk = _Disk()
    spool._receive(store.open())
    return spool
