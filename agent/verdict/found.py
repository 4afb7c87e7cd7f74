"""What is known of one failure, and what is ruled of it: plain data."""

from typing import Literal, NamedTuple

import msgspec

from agent.probers.result import Attribution, Error

REFUSED_HERE = "that was this device's own word, which lets nothing out to there"

Status = Literal["up", "down", "unknown"]


class Look(msgspec.Struct, frozen=True, omit_defaults=True):
    """One more question that was asked when the measurement had failed: `connect` to an `address`, `resolve` by a
    `server` (another `name` than the target's, if there is one; `address`: the first that it gave), or `measure` all of
    it again (at another `address`). `ms`: how long it took. `error`: its code; without it there was an answer.
    """

    what: Literal["connect", "resolve", "measure"]
    ms: float
    address: str | None = None
    port: int | None = None
    server: str | None = None
    name: str | None = None
    error: str | None = None


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was looked at before anyone was blamed, or not; what is absent could not be told, or was not needed.

    Of this device's way there: `route`; the `interface`, whether its `link` is up and has a carrier, and whether that
    changed since the measurement began; the `gateway`, and whether it answers to the question for its hardware address.
    Of others, when the measurement had ended: the id of an `other` target that answered, or its address; how many
    addresses were `asked`, and `answered`; for how many other names its resolver was asked (`names_asked`), and found
    an address (`names_found`); how many other names, which had kept their addresses, were asked for (`names_compared`),
    and have one of these still (`names_kept`); `loss`: some had to be asked twice lately.
    `waited_ms` went by between the measurement's end and its verdict.
    """

    waited_ms: float
    route: bool | None = None
    interface: str | None = None
    link: bool | None = None
    link_changed: bool = False
    gateway: str | None = None
    gateway_answers: bool | None = None
    other: str | None = None
    asked: int = 0
    answered: int = 0
    names_asked: int = 0
    names_found: int = 0
    names_compared: int = 0
    names_kept: int = 0
    loss: bool = False


class Ruling(NamedTuple):
    """What is recorded of one measurement besides what was found: the verdict, the error that goes with it, what was
    `seen` for it, and the `looks`: what was asked on its account. Both are None when nobody looked.
    """

    status: Status
    error: Error | None = None
    seen: Seen | None = None
    looks: tuple[Look, ...] | None = None


class Doubt(msgspec.Struct, frozen=True):
    """`whose` a failure may be, if not the target's, and `why`, for people; None where there is no reason to think so.

    `is_open`: it is being asked for, and stands as it is when nobody could tell. `looks`: what was asked. `compared`,
    `kept`: other names, see `Seen`.
    """

    whose: Attribution | None = None
    why: str = ""
    is_open: bool = False
    looks: tuple[Look, ...] = ()
    compared: int = 0
    kept: int = 0


NO_DOUBT = Doubt()


class Found(msgspec.Struct):
    """What an inquiry knows of one failure so far.

    `again`: the second look at the target, whose first question is the one that had failed; None while it is under way.
    `before`, `after`: who else answered while it was measured, and soon after; with `large` only he counts then who
    sent as much as a certificate. `names`: whether the resolver finds most of the other names that it is asked for;
    None while it is not known. `doubts`: of each one who may have any, the weightiest first. `barred`: why nothing
    could come through, on this device's side. `over`: it has to be judged now.
    """

    again: tuple[Look, ...] | None = ()
    before: str | None = None
    after: str | None = None
    large: bool = False
    names: bool | None = None
    doubts: list[Doubt] = []
    barred: str = ""
    over: bool = False

    @property
    def doubt(self) -> Doubt | None:
        """The first with a reason, or none; None while one before it is open."""
        for each in self.doubts:
            if each.is_open and not self.over:
                return None
            if each.whose is not None:
                return each
        return NO_DOUBT
