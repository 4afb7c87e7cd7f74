"""This device's own way out: what bars a case's, and whether there is one at all."""

import logging
from typing import NamedTuple, Protocol

from agent.device.uplink import Ways
from agent.inquiry.case import Case
from agent.probers.result import Peer
from agent.verdict.evidence import BySource

log = logging.getLogger(__name__)

LINKS_SECONDS = 1.0  # between two looks at the links

_ANYWHERE = ("192.0.2.1", "2001:db8::1")  # of documentation (RFC 5737, RFC 3849): what default routes lead to


class News(Protocol):
    """Who tells the world."""

    def uplink_lost(self, since: float, why: str) -> None:
        """There is no way out of this device, since then (seconds since boot)."""

    def uplink_back(self, seconds: float) -> None:
        """There is one again, after so many seconds."""


class _Lost(NamedTuple):
    """The loss of the way to `peer`, or to anybody, that was noticed `at`."""

    since: float
    at: float
    peer: Peer | None
    why: str


class WayOut:
    """Watches the links, and tells the loss of the way out and its return, each once."""

    def __init__(self, evidence: BySource, news: News | None) -> None:
        self._evidence, self._news = evidence, news
        self._ways = Ways()
        self._watched = 0.0
        self._lost: _Lost | None = None

    def lost(self) -> tuple[float | None, str]:
        """Since when there is none (seconds since boot), and why that is thought; None when there is one."""
        return (None, "") if self._lost is None else (self._lost.since, self._lost.why)

    def watch(self, now: float) -> None:
        """To be called again and again."""
        if now - self._watched >= LINKS_SECONDS:
            self._watched = now
            self._ways.look(now)

    def find(self, case: Case, now: float) -> None:
        """Whatever proves a way out, a link that was down meanwhile may have cost this measurement its answer."""
        self._ways.look(now)
        to = _ANYWHERE if case.peer is None else (case.peer.address,)
        ways = [self._ways.to(each, now, case.source) for each in to]
        case.way = way = next((each for each in ways if not each.barred), ways[0])
        if way.link is False:
            case.found.barred = f"this device's link is down: {way.interface}"
        elif way.route is False and case.peer is not None:
            case.found.barred = "this device has no route to it"
        elif self.has_changed(case):
            case.found.barred = f"this device's link went down or up meanwhile: {way.interface}"

    def has_changed(self, case: Case) -> bool:
        """Whether its link went down or up since it was measured."""
        return case.way is not None and self._ways.changed(case.way.interface, case.measurement.started)

    def miss(self, case: Case) -> None:
        """It is unknown: for want of a way out? What goes by a source of its own says nothing about that."""
        if self._lost is not None or case.source is not None or self._evidence[None].heard_since(case.peer, case.at):
            return
        if case.way is not None and case.way.barred:
            why = case.found.barred or "there is no route"
        elif case.asked is not None and case.asked.nobody:
            why = f"none of the {case.asked.asked} addresses that were asked answered"
        else:
            return
        self._lost = _Lost(case.measurement.started, case.at, case.peer, why)
        log.warning("there is no way out of this device: %s", why, extra={"trouble": "uplink"})
        if self._news is not None:
            self._news.uplink_lost(self._lost.since, why)

    def settle(self, now: float) -> None:
        """Tells when there is one again."""
        if self._lost is not None and self._evidence[None].heard_since(self._lost.peer, self._lost.at):
            seconds, self._lost = now - self._lost.since, None
            log.info("there is a way out again, after %.0f s", seconds, extra={"over": "uplink"})
            if self._news is not None:
                self._news.uplink_back(seconds)
