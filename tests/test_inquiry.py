"""Which answers are looked at for a doubtful result, and when."""

import pytest

from agent.config.model import Target
from agent.device.clock import ClockState
from agent.inquiry import HOLD_SECONDS, Inquiry
from agent.probers.result import Attempt, Error, Peer, Phases, Result
from agent.schedule import Measurement

CLOCK = ClockState(True, 1.0)
TIMEOUT = Error("connect", "connect_timeout", "path", "no answer to the connection attempt")
REFUSED = Error("connect", "connect_refused", "target", "the connection was refused")


class AProber:
    type = "http"


class Told:
    """An inquiry that asks nobody, at a time of the test's own; `verdicts`: by target id, the last."""

    def __init__(self):
        self.verdicts = {}
        self.inquiry = Inquiry(self.settled)

    def settled(self, measurement, clock, status, error, seen=None, own=None):
        self.verdicts[measurement.target.id] = status

    def take(self, name, at, *, took=0.1, address="9.9.9.9", **options):
        """A result that ended `at`: an answer, unless an error is given."""
        url = f"http://{name}.example/"
        target = Target(name, url, url, 30.0, 10.0)
        peer = Peer(address, 80, "ipv6" if ":" in address else "ipv4")
        result = Result(took * 1000, Phases(connect=20.0), peer=peer, **options)
        self.inquiry.take(Measurement(target, AProber(), at - took, at - took, 0.0, result), at, CLOCK)

    def verdict(self, name, at):
        self.inquiry.settle(at)
        return self.verdicts.get(name)


@pytest.mark.parametrize(("earlier", "verdict"), [(0.0, "down"), (1500.0, "unknown")])
def test_what_answered_before_the_last_try_proves_nothing_for_it(earlier, verdict):
    """Between an answer during an earlier try and the beginning of the last one the cable may have been pulled."""
    told = Told()
    told.take("other", 101.0)
    refused = (Attempt("9.9.9.9", Phases(connect=1.0), REFUSED),)
    told.take("shop", 103.0, took=3.0, error=TIMEOUT, earlier_ms=earlier, attempts=refused, attempt=2)
    told.take("other", 103.5)
    assert told.verdict("shop", 103.0 + HOLD_SECONDS) == verdict
