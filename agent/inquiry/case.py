"""One doubtful result: what becomes known of it while it is held."""

import asyncio
from collections.abc import Callable

import msgspec

from agent.device.clock import ClockState
from agent.device.uplink import Way
from agent.probers.resolver import asked_from
from agent.probers.result import Peer, ms
from agent.schedule import Measurement
from agent.verdict.found import Found, Seen


class Asked:
    """Others that are asked on behalf of some cases, from their source, and how many of them answered."""

    def __init__(self, source: str | None = None) -> None:
        self.source = source
        self.to_come = 0  # references whose addresses are not known yet
        self.asked = self.answered = self.silent = self.names_asked = self.names_found = 0

    @property
    def nobody(self) -> bool:
        """Some were asked, and all were silent."""
        return self.silent > 1 and self.silent == self.asked and not self.to_come


class Case:
    """A failed `measurement` that was told `at`, and the wall clock's state then."""

    __slots__ = ("asked", "at", "clock", "done", "found", "measurement", "tasks", "way")

    def __init__(self, measurement: Measurement, at: float, clock: ClockState, found: Found) -> None:
        self.measurement, self.at, self.clock, self.found = measurement, at, clock, found
        self.way: Way | None = None
        self.asked: Asked | None = None
        self.tasks: list[asyncio.Task[None]] = []  # that ask for it
        self.done: Callable[[], None] | None = None  # once it is decided

    @property
    def target_id(self) -> str:
        """Of its target."""
        return self.measurement.target.id

    @property
    def peer(self) -> Peer | None:
        """The address that failed, if there was any."""
        return self.measurement.result.peer

    @property
    def source(self) -> str | None:
        """By which way it went what failed: the measurement, or the question for the name."""
        target, error = self.measurement.target, self.measurement.result.error
        if error is not None and error.phase == "resolve":
            return asked_from(target.resolver, target.source)
        return target.source

    @property
    def resolver_is_blamed(self) -> bool:
        """By the prober."""
        error = self.measurement.result.error
        return error is not None and error.phase == "resolve" and error.attribution in ("resolver", "target")

    @property
    def answered(self) -> bool:
        """Somebody did, and wrongly."""
        error = self.measurement.result.error
        return error is not None and error.is_an_answer

    def put_down_to_the_path(self) -> None:
        """It is the same failure, and judged like silence."""
        result = self.measurement.result
        assert result.error is not None
        error = msgspec.structs.replace(result.error, attribution="path")
        self.measurement = self.measurement._replace(result=msgspec.structs.replace(result, error=error))

    def seen(self, now: float, *, link_changed: bool, loss: bool) -> Seen:
        """For the record."""
        way, asked, doubts = self.way or Way(), self.asked or Asked(), self.found.doubts
        return Seen(
            route=way.route,
            interface=way.interface,
            link=way.link,
            link_changed=link_changed,
            gateway=way.gateway,
            gateway_answers=way.gateway_answers,
            other=self.found.after,
            asked=asked.asked,
            answered=asked.answered,
            names_asked=asked.names_asked,
            names_found=asked.names_found,
            names_compared=sum(each.compared for each in doubts),
            names_kept=sum(each.kept for each in doubts),
            loss=loss,
            waited_ms=ms(now - self.at),
        )
