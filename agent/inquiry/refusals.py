"""Whether a connection was refused by the target: this device's own firewall does so, too, and others on the way.

So it is connected to once more, and looked who refuses. While a target keeps refusing that is done rarely.
"""

import asyncio
from collections.abc import Mapping

from agent.config.model import Target
from agent.device.clock import boottime
from agent.inquiry import questions
from agent.inquiry.doubter import Doubter
from agent.probers import asking
from agent.probers.result import Result
from agent.schedule import Measurement
from agent.verdict.evidence import BySource
from agent.verdict.found import NO_DOUBT, REFUSED_HERE, Doubt

REFUSED_SECONDS = 10.0  # so long it counts that this device refused a connection itself
MOST_LOOKS = 8  # at once; they are short, and do not wait for those that are not

_OPEN = Doubt("unknown", is_open=True)  # where nobody could look, it may have been this device


class Refusals(Doubter):
    """Looks who refused. `evidence`, by source: a target that refuses when it is asked is a witness."""

    def __init__(self, evidence: BySource) -> None:
        self._evidence = evidence
        self._refused: dict[str, tuple[Target, float]] = {}  # when it was seen last that it did, and not this device
        self._refused_here = -REFUSED_SECONDS  # when this device was seen last to do so
        self._turns = asyncio.Semaphore(MOST_LOOKS)

    def note(self, target: Target, result: Result, at: float) -> None:
        """See `Doubter`."""
        self._refused.pop(target.id, None)

    def keep_only(self, targets: Mapping[str, Target]) -> None:
        """See `Doubter`."""
        self._refused = {target_id: last for target_id, last in self._refused.items() if target_id in targets}

    def known(self, measurement: Measurement, now: float) -> Doubt:
        """See `Doubter`."""
        error = measurement.result.error
        if error is None or error.code not in ("connect_refused", "connect_reset"):
            return NO_DOUBT
        last = questions.last_asked(measurement.target, self._refused)
        return _OPEN if now - last >= asking.AGAIN_SECONDS else NO_DOUBT

    def learned(self, measurement: Measurement, now: float) -> Doubt:
        """Nothing: another time it may be another one who refuses."""
        return _OPEN

    async def ask(self, measurement: Measurement, at: float) -> Doubt:
        """See `Doubter`."""
        target, peer, failed = measurement.target, measurement.result.peer, measurement.result.error
        assert peer is not None
        assert failed is not None
        async with self._turns:
            look = await questions.connect(peer.address, peer.port or 0, asking.ASK_SECONDS, target.source)
        now, error, looks = boottime(), look.error, (look,)
        if error == "local_resource":
            return _OPEN  # nothing was seen
        if error == "local_network":
            self._refused_here = now
        # To one that takes connections now it was perhaps let out again.
        if self._refused_here >= at - REFUSED_SECONDS and error != "connect_refused":
            return Doubt("local", REFUSED_HERE, looks=looks)
        if failed.code == "connect_refused" and error not in asking.ANSWERS:
            return Doubt("path", looks=looks)  # it was, or may be, another's word
        self._refused[target.id] = target, now
        if error == "connect_refused":
            self._evidence[target.source].heard(target.id, peer, look.ms, now)
        return Doubt(looks=looks)
