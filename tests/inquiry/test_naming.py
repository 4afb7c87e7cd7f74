"""A resolver that leads to somebody else blames no target, and excuses none that is dead."""

import asyncio
import contextlib
import time
from collections import Counter

import msgspec
import pytest

from agent.device.clock import Clock, boottime
from agent.inquiry import naming
from agent.inquiry.inquiry import HOLD_SECONDS, Inquiry
from agent.inquiry.naming import MOST_ADDRESSES, STEADY, Naming
from agent.probers import asking, prober_of
from agent.probers.resolver import Resolver
from agent.probers.result import Peer, Phases, Result
from agent.schedule import Measurement
from tests.probers.conftest import IPV6
from tests.probers.dns_server import NXDOMAIN, A, address, dns_server, reply
from tests.probers.http_server import request_of, target_of

NAMES = [f"n{number}.example" for number in range(1, 6)]
CLOCK = Clock("yes").state()
ELSEWHERE, AGAIN_ELSEWHERE = "127.7.9.1", "127.7.9.2"  # nobody serves any of these names there


class World:
    """Names, where the resolver says that they are (`named`), and where they are served (`served`); a device.

    `wildcard`: the address of all other names, that do not exist. `requests`: what the sites were asked, `questions`:
    the resolver, by address and by name.
    """

    def __init__(self, tmp_path):
        self.named = {name: [f"127.7.1.{number}"] for number, name in enumerate(NAMES, 1)}
        self.served = {name: set(addresses) for name, addresses in self.named.items()}
        self.wildcard = None
        self.silent = False  # the resolver, for names that it does not know
        self.redirects = {}
        self.requests, self.questions = Counter(), Counter()
        self.records = {}
        self._hosts, self._resolv_conf = tmp_path / "hosts", tmp_path / "resolv.conf"
        self._hosts.touch()
        self._resolv_conf.write_text("nameserver 127.0.0.1\n")

    async def __aenter__(self):
        self._open = contextlib.AsyncExitStack()
        server = await self._open.enter_async_context(dns_server(self._answer))
        self._listener = await asyncio.start_server(self._serve, "0.0.0.0", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        self.resolver = Resolver(self._hosts, self._resolv_conf, server.port)
        self.inquiry = Inquiry(self._settled, self.resolver)
        return self

    async def __aexit__(self, *_):
        self.inquiry.end()
        self._listener.close()
        await self._open.aclose()
        await asyncio.sleep(0.01)

    def _answer(self, question):
        self.questions[question.name] += question.kind == A
        if question.name in self.named:
            addresses = self.named[question.name]
        elif self.silent:
            return []
        elif self.wildcard is None:
            return [reply(question, rcode=NXDOMAIN)]
        else:
            addresses = [self.wildcard]
        return [reply(question, *(address(question.name, each) for each in addresses if question.kind == A))]

    async def _serve(self, reader, writer):
        head = (await request_of(reader)).decode()
        name, here = head.partition("\r\nHost: ")[2].partition(":")[0], writer.get_extra_info("sockname")[0]
        self.requests[name, here] += 1
        answer = "200 OK" if here in self.served.get(name, ()) else "404 Not Found"
        if answer == "200 OK" and name in self.redirects:
            answer = f"302 Found\r\nLocation: http://{self.redirects[name]}:{self.port}/"
        writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    def _settled(self, measurement, clock, ruling):
        self.records.setdefault(measurement.target.id, []).append(ruling)

    async def begin(self, name, **options):
        """Measures once."""
        target = target_of(f"http://{name}:{self.port}/", id=name, **options)
        prober, started = prober_of(target, self.resolver), boottime()
        result = await prober.probe(time.monotonic() + 5)
        self.inquiry.take(Measurement(target, prober, started, started, 1.0, result), boottime(), Clock("yes").state())

    async def measure(self, name, **options):
        """Measures once, and waits for the verdict."""
        await self.begin(name, **options)
        begun = time.monotonic()
        await self.inquiry.until_all_are_settled()
        assert time.monotonic() - begun < HOLD_SECONDS + 1
        return self.records[name][-1]

    async def all_are_up(self, *names, times=STEADY + 1, **options):
        for _ in range(times):
            for name in names or NAMES:
                assert (await self.measure(name, **options)).status == "up"
        self.requests.clear()
        self.questions.clear()

    def asked_for_no_name(self):
        return sum(count for name, count in self.questions.items() if name.endswith(".invalid"))


@pytest.fixture
async def world(tmp_path):
    async with World(tmp_path) as made:
        yield made


def is_down(ruling):
    return (ruling.status, ruling.error.code, ruling.error.attribution) == ("down", "status_mismatch", "target")


def is_doubted(ruling, why):
    told = ruling.error
    assert why in told.message
    return (ruling.status, told.code, told.attribution) == ("unknown", "status_mismatch", "resolver")


async def test_nothing_is_asked_while_all_is_well(world):
    """The resolver is asked for what is measured, and for nothing else; each site once a measurement."""
    await world.all_are_up()
    for name in NAMES:
        await world.measure(name)
    assert world.questions == dict.fromkeys(NAMES, 1)
    assert set(world.requests.values()) == {1}


async def test_one_address_for_all_names(world):
    """A captive portal's resolver, which has the same answer for names that cannot exist, blames nobody."""
    world.wildcard = ELSEWHERE
    world.named = {}
    ruling = await world.measure("n1.example")
    assert is_doubted(ruling, f"HTTP 404, expected 200-399; but the resolver answers with {ELSEWHERE} for names that")
    (look,) = ruling.looks
    assert (look.what, look.address, look.server) == ("resolve", ELSEWHERE, "host")
    assert look.name.endswith(".invalid")
    assert is_doubted(await world.measure("n1.example"), "for names that do not exist")
    assert world.asked_for_no_name() == 1


async def test_one_that_is_right_about_names_that_exist(world):
    """A resolver that answers for names that do not exist, and rightly for others, excuses no site that is dead."""
    world.wildcard = ELSEWHERE
    world.served["n1.example"] = set()
    assert is_down(await world.measure("n1.example"))


async def test_a_site_that_never_was_well(world):
    """There is nothing to compare it with: the resolver is believed."""
    world.served["n1.example"] = set()
    ruling = await world.measure("n1.example")
    assert is_down(ruling)
    assert [(look.what, look.error) for look in ruling.looks] == [("resolve", "dns_nxdomain")]


async def test_all_on_one_server_that_dies(world):
    """They are where they always were, and are down; one question is enough for all."""
    world.named = {key: ["127.7.1.1"] for key in NAMES}
    world.served = {name: {"127.7.1.1"} for name in NAMES}
    await world.all_are_up()
    world.served = {}
    await asyncio.gather(*(world.begin(name) for name in NAMES))
    await world.inquiry.until_all_are_settled()
    assert all(is_down(world.records[name][-1]) for name in NAMES)
    assert world.asked_for_no_name() <= 2
    assert sum(world.requests.values()) == len(NAMES)


async def test_wrong_addresses_for_all(world):
    """Names that kept their addresses have others now, and the sites are well where they were: nobody is blamed."""
    await world.all_are_up()
    world.named = {name: [f"127.7.9.{number}"] for number, name in enumerate(NAMES, 10)}
    ruling = await world.measure("n1.example")
    assert is_doubted(ruling, "it is well at 127.7.1.1, the address that it had before")
    assert (ruling.seen.names_compared, ruling.seen.names_kept) == (3, 0)
    looks = [(look.what, look.address, look.error) for look in ruling.looks]
    assert looks[1:] == [("measure", "127.7.1.1", None), ("resolve", "127.7.9.10", None)]
    # That is enough for all others.
    world.requests.clear()
    world.questions.clear()
    for name in NAMES[1:]:
        assert is_doubted(await world.measure(name), "the resolver gave wrong addresses for other names just then")
    assert world.questions == dict.fromkeys(NAMES[1:], 1)
    assert sum(world.requests.values()) == len(NAMES) - 1


async def test_names_swapped_among_each_other(world):
    """Each has the address of another one."""
    await world.all_are_up()
    addresses = [world.named[name] for name in NAMES]
    world.named = dict(zip(NAMES, [*addresses[1:], addresses[0]], strict=True))
    for name in NAMES:
        ruling = await world.measure(name)
        assert (ruling.status, ruling.error.attribution) == ("unknown", "resolver")


async def test_a_site_that_moved_to_where_it_is_broken(world):
    """Other names are where they were: it is down, though it is well at its old address."""
    await world.all_are_up()
    world.named["n1.example"] = [ELSEWHERE]
    ruling = await world.measure("n1.example")
    assert is_down(ruling)
    assert (ruling.seen.names_compared, ruling.seen.names_kept) == (3, 3)


async def test_a_site_that_moved_from_where_it_is_broken_too(world):
    """All have other addresses, as after a disaster, and it is well at none of them: it is down."""
    await world.all_are_up()
    world.named = {name: [f"127.7.9.{number}"] for number, name in enumerate(NAMES, 10)}
    world.served["n1.example"] = set()
    assert is_down(await world.measure("n1.example"))
    assert world.requests["n1.example", "127.7.1.1"] == 1


async def test_addresses_that_rotate(world):
    """A site with another address each time is down when it is broken at one of them, whatever the others do."""
    for number in range(MOST_ADDRESSES + STEADY + 2):
        world.named["n1.example"] = [f"127.7.3.{number}"]
        world.served["n1.example"] = {f"127.7.3.{number}", "127.7.3.1"}
        await world.all_are_up("n1.example", times=1)
    world.named["n1.example"] = [ELSEWHERE]
    assert is_down(await world.measure("n1.example"))
    # Names that rotate are no witnesses.
    await world.all_are_up("n2.example")
    world.named["n2.example"] = [AGAIN_ELSEWHERE]
    ruling = await world.measure("n2.example")
    assert ruling.seen.names_compared == 0


async def test_one_of_many_addresses_is_broken(world):
    """It is one that it had before: it is down."""
    world.named["n1.example"], world.served["n1.example"] = ["127.7.3.1"], {"127.7.3.1", "127.7.3.2"}
    await world.all_are_up("n1.example")
    world.named["n1.example"] = ["127.7.3.2", "127.7.3.1"]
    await world.all_are_up("n1.example")
    world.served["n1.example"] = {"127.7.3.1"}
    assert is_down(await world.measure("n1.example"))


async def test_a_single_site(world, monkeypatch):
    """With no other name to ask for, one that kept its address is well there still: nobody knows, for an hour."""
    await world.all_are_up("n1.example")
    world.named["n1.example"] = [ELSEWHERE]
    assert is_doubted(await world.measure("n1.example"), "it is well at 127.7.1.1")
    monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
    world.served["n1.example"] = set()
    assert is_down(await world.measure("n1.example"))
    world.served["n1.example"] = {"127.7.1.1"}
    monkeypatch.setattr(naming, "MOVED_SECONDS", 0.0)
    assert is_down(await world.measure("n1.example"))


async def test_a_lie_that_is_over_when_it_is_looked_at(world):
    """Asked again the resolver takes its answer back."""
    await world.all_are_up()
    right = world.named["n1.example"]
    world.named["n1.example"] = [ELSEWHERE]
    await world.begin("n1.example")
    world.named["n1.example"] = right
    await world.inquiry.until_all_are_settled()
    (ruling,) = world.records["n1.example"][-1:]
    assert is_doubted(ruling, "it is well at 127.7.1.1, which is the address that the resolver gives again")


async def test_one_that_keeps_failing_is_asked_rarely(world, monkeypatch):
    """At the same wrong address once a minute, and so at another one each time."""
    await world.all_are_up("n1.example")
    for number in range(1, 9):
        world.named["n1.example"] = [f"127.7.9.{max(number, 4)}"]
        assert is_doubted(await world.measure("n1.example"), "it is well at 127.7.1.1")
    assert world.requests["n1.example", "127.7.1.1"] == 1
    monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
    await world.measure("n1.example")
    assert world.requests["n1.example", "127.7.1.1"] == 2


async def test_a_dead_one_is_asked_for_rarely(world, monkeypatch):
    """While it keeps failing where it always was, one question a minute."""
    await world.all_are_up("n1.example")
    world.served["n1.example"] = set()
    for _ in range(5):
        assert is_down(await world.measure("n1.example"))
    assert world.asked_for_no_name() == 1
    monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
    await world.measure("n1.example")
    assert world.asked_for_no_name() == 2


async def test_what_must_not_be_repeated_is_not(world):
    """A POST is not made a second time: a connection to where it was must do."""
    await world.all_are_up("n1.example", method="POST")
    world.named["n1.example"] = [ELSEWHERE]
    ruling = await world.measure("n1.example", method="POST")
    assert is_doubted(ruling, "it is well at 127.7.1.1")
    assert [look.what for look in ruling.looks] == ["resolve", "connect", "resolve"]
    assert world.requests == {("n1.example", ELSEWHERE): 1}


async def test_names_that_a_redirect_led_to(world):
    """They are remembered and looked at as the target's own."""
    world.redirects["n1.example"] = "n2.example"
    await world.all_are_up("n1.example")
    world.named["n2.example"] = [ELSEWHERE]
    assert is_doubted(await world.measure("n1.example"), "it is well at 127.7.1.2")
    world.named = {}
    world.wildcard = ELSEWHERE
    assert is_doubted(await world.measure("n1.example"), "for names that do not exist")


async def test_another_name_than_the_one_that_was_looked_at(world):
    """That one name's site is well where it was is no excuse for where another one leads, a moment later."""
    world.redirects["n1.example"] = "n2.example"
    await world.all_are_up("n1.example")
    right = world.named["n2.example"]
    world.named["n2.example"] = [ELSEWHERE]
    assert is_doubted(await world.measure("n1.example"), "it is well at 127.7.1.2")
    world.named.update({"n1.example": [ELSEWHERE], "n2.example": right})
    world.served["n1.example"] = set()
    assert is_down(await world.measure("n1.example"))


async def test_a_target_that_is_another_one_now(world):
    """What was found of it before its options changed is not taken for what it is now."""
    await world.all_are_up("n1.example")
    world.named["n1.example"] = [ELSEWHERE]
    assert is_doubted(await world.measure("n1.example"), "it is well at 127.7.1.1")
    world.served["n1.example"] = set()
    assert is_down(await world.measure("n1.example", method="HEAD"))


async def test_what_nobody_asks_any_more_is_forgotten(world):
    """With the targets of a resolver goes what is known of it, and of them."""
    target = target_of(f"http://n1.example:{world.port}/", id="n1.example", labels={"now": "other"})
    world.served["n1.example"] = set()
    (known,) = (each for each in world.inquiry._doubters if isinstance(each, Naming))
    assert is_down(await world.measure("n1.example"))
    known.keep_only({target.id: target})
    assert (len(known._doubted), len(known._asked)) == (0, 1)
    known.keep_only({target.id: msgspec.structs.replace(target, resolver="127.0.0.1:9")})
    assert not known._asked


@IPV6
async def test_a_site_that_is_well_by_the_other_version_of_ip(world):
    """That excuses nobody who is measured by this one, and is dead both where it is now and where it was."""
    target = target_of(f"http://n1.example:{world.port}/", id="six", ip="6")
    six = Result(1.0, Phases(), peer=Peer("::1", world.port, "ipv6"), named=(("n1.example", "::1"),))
    for _ in range(STEADY + 1):
        await world.all_are_up("n1.example", times=1, ip="4")
        now = boottime()
        world.inquiry.take(Measurement(target, prober_of(target, world.resolver), now, now, 1.0, six), now, CLOCK)
    world.named["n1.example"], world.served["n1.example"] = [ELSEWHERE], {"::1"}
    async with await asyncio.start_server(world._serve, "::1", world.port):
        assert is_down(await world.measure("n1.example", ip="4"))
    assert world.requests == {("n1.example", ELSEWHERE): 1, ("n1.example", "127.7.1.1"): 1}


async def test_a_resolver_that_is_silent_about_what_does_not_exist(world):
    """It is judged by the other signs, and in time; without these it is believed."""
    world.silent = True
    await world.all_are_up("n1.example")
    world.named["n1.example"], world.served["n2.example"] = [ELSEWHERE], set()
    await asyncio.gather(world.begin("n1.example"), world.begin("n2.example"))
    await world.inquiry.until_all_are_settled()
    assert is_doubted(world.records["n1.example"][-1], "it is well at 127.7.1.1")
    assert is_down(world.records["n2.example"][-1])


async def test_a_fixed_address_is_nobodys_lie(world):
    """What was not resolved is down at once."""
    world.wildcard = ELSEWHERE
    await world.begin("n1.example", connect_to=ELSEWHERE)
    assert is_down(world.records["n1.example"][-1])
    assert not world.questions


async def test_what_is_remembered_is_bounded(world, monkeypatch):
    """The names, the addresses of each, and what left the configuration."""
    monkeypatch.setattr(naming, "MOST_NAMES", 3)
    known = Naming(world.resolver)
    target = target_of("http://n1.example/", id="n1")
    for number in range(100):
        peer = Peer(f"127.7.2.{number}", 80, "ipv4")
        named = (f"n{number}.example", peer.address), ("n1.example", peer.address)
        known.note(target, Result(1.0, Phases(), peer=peer, named=named), 1.0)
    assert len(known) == 3
    assert max(len(each.addresses) for each in known._known.values()) <= MOST_ADDRESSES
    known.keep_only({"n1": msgspec.structs.replace(target, interval=7.0)})
    assert len(known) == 3
    known.keep_only({"n1": msgspec.structs.replace(target, url="http://other.example/")})
    assert len(known) == 0


async def test_wrong_addresses_for_very_many(world):
    """Hundreds that fail at once at the onset of a lie are not blamed, and few are looked at for it."""
    names = [f"m{number}.example" for number in range(300)]
    world.named = {name: [f"127.7.{4 + number // 200}.{number % 200 + 1}"] for number, name in enumerate(names)}
    world.served = {name: set(addresses) for name, addresses in world.named.items()}
    for _ in range(2):
        await asyncio.gather(*(world.begin(name) for name in names))
    assert {world.records[name][-1].status for name in names} == {"up"}
    world.requests.clear()
    world.named = {name: [f"127.7.{8 + number // 200}.{number % 200 + 1}"] for number, name in enumerate(names)}
    await asyncio.gather(*(world.begin(name) for name in names))
    await world.inquiry.until_all_are_settled()
    assert {world.records[name][-1].status for name in names} == {"unknown"}
    assert sum(world.requests.values()) < 1.5 * len(names)
