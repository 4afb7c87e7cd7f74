"""What is known of one failure, and what is ruled of it: plain data."""

from typing import Literal, NamedTuple

import msgspec

from agent.probers.result import Error

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
    `seen` for it, and the questions that the target itself was asked once more. Both are None when nobody looked.
    """

    status: Status
    error: Error | None = None
    seen: Seen | None = None
    own: tuple[Look, ...] | None = None


class Named(msgspec.Struct, frozen=True):
    """What a closer look at the addresses brought that a resolver had named.

    `by_wildcard`: the one that it gives for a name that cannot exist, too. `well_at`: an address that a name had when
    its target was up, and where the target is well now; None unless it has another now. `steady`: until lately the name
    kept its addresses. `taken_back`: asked again, the resolver gives one of these, and the failed one no more. `kept`
    of `compared` other names that did so have one of theirs still. `liar`: it was found to lie about others just then.
    """

    by_wildcard: str | None = None
    well_at: str | None = None
    steady: bool = False
    taken_back: bool = False
    compared: int = 0
    kept: int = 0
    liar: bool = False
    looks: tuple[Look, ...] = ()

    @property
    def lies_about_all(self) -> bool:
        """Whether no address can be believed that this resolver gives."""
        return self.well_at is not None and self.compared > 2 * self.kept

    @property
    def doubt(self) -> str:
        """Why the address may be that of somebody else, for people; empty when there is no reason to think so.

        A resolver that answers for names that do not exist may be right about those that do, hence: the same address.
        A name that has a new address may have moved, and some have another one each time, which excuses nobody.
        """
        if self.by_wildcard is not None:
            return f"the resolver answers with {self.by_wildcard} for names that do not exist"
        if self.liar:
            return "the resolver gave wrong addresses for other names just then"
        if self.well_at is None:
            return ""
        if self.steady and self.taken_back:
            return f"it is well at {self.well_at}, which is the address that the resolver gives again"
        if self.lies_about_all or (self.steady and not self.compared):
            return f"it is well at {self.well_at}, the address that it had before"
        return ""


class Found(msgspec.Struct):
    """What an inquiry knows of one failure so far.

    `own`: the second look at the target, whose first question is the one that had failed; None while it is under way.
    `before`, `after`: who else answered while it was measured, and soon after; with `large` only he counts then who
    sent as much as a certificate. `names`: whether the resolver finds most of the other names that it is asked for;
    None while it is not known. `named`: what is to be thought of the address. `refused_here`: whether it was this
    device itself that refused the connection. `intercepted`: whether others far from it are answered for by the same
    certificate, which is none of theirs. These three are None while it is not known. `barred`: why nothing could come
    through, on this device's side. `over`: it has to be judged now.
    """

    own: tuple[Look, ...] | None = ()
    before: str | None = None
    after: str | None = None
    large: bool = False
    names: bool | None = None
    named: Named | None = Named()
    refused_here: bool | None = False
    intercepted: bool | None = False
    barred: str = ""
    over: bool = False
