"""What is doubtful is held, asked for and settled: in order, in time, within bounds, and asking no more than needed."""

import asyncio
import contextlib
import logging
import socket
import time
from collections import defaultdict

import msgspec
import pytest

from agent.config.model import Agent, Config, Kafka, Location, Target, Uplink
from agent.device.clock import ClockState, boottime
from agent.inquiry import inquiry as module
from agent.inquiry.case import Case
from agent.inquiry.inquiry import HOLD_SECONDS, PATIENCE_SECONDS, Inquiry
from agent.inquiry.witnesses import MOST_ASKED, Witnesses
from agent.probers import asking, prober_of
from agent.probers.resolver import Resolver
from agent.probers.result import Attempt, Error, Peer, Phases, Result, Tls
from agent.schedule import Measurement
from agent.verdict.evidence import Evidence
from agent.verdict.found import Found
from tests.probers.dns_server import SERVFAIL, dns_server, reply, zone
from tests.probers.http_server import CONTEXT, HOLD, answers, says, site, target_of

CLOCK = ClockState(synchronized=True, max_error_ms=None)
KEPT = CONTEXT  # making one takes longer than what is tested
FAR = Peer("9.9.9.9", 80, "ipv4")


class Device:
    """An inquiry, what it settled (target id, status and how long it took, in order), and what it told."""

    def __init__(self, resolver=None):
        self.resolver = resolver
        self.inquiry = Inquiry(self._settled, resolver, self)
        self.settled = []
        self.rulings = []
        self.news = []
        self.broken = None  # the number of a measurement whose record cannot be made

    def _settled(self, measurement, clock, ruling):
        assert clock is CLOCK
        if measurement.wall == self.broken:
            raise RuntimeError("no record")
        self.settled.append((measurement.target.id, ruling.status, measurement.wall))
        self.rulings.append(ruling)

    def uplink_lost(self, since, why):
        self.news.append(("lost", why))

    def uplink_back(self, seconds):
        self.news.append(("back", seconds))

    def configure(self, *targets, references=(), brokers=("127.0.0.1:1",)):
        self.inquiry.configure(
            Config(Agent("a"), Location("l"), "/nowhere", Kafka(brokers), targets=targets, uplink=Uplink(references))
        )

    def take(self, target, result, number=0.0, resolver=None):
        """`number` stands for the wall clock."""
        prober, now = prober_of(target, resolver or Resolver()), boottime()
        self.inquiry.take(Measurement(target, prober, now - 0.05, now - 0.05, number, result), now, CLOCK)

    async def until_all_are_settled(self):
        begun = time.monotonic()
        await self.inquiry.until_all_are_settled()
        return time.monotonic() - begun


@pytest.fixture
def nowhere():
    """An address on loopback that says nothing: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            knocking = stack.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(listener.getsockname())
        yield Peer("127.0.0.1", listener.getsockname()[1], "ipv4")


@pytest.fixture
async def device():
    made = Device(Resolver())
    yield made
    made.inquiry.end()
    await asyncio.sleep(0.01)


@pytest.fixture
def everything_is_far(monkeypatch):
    """Loopback is as far away as the Internet."""
    monkeypatch.setattr("agent.verdict.distance.of", lambda address: "far")


def up(peer=FAR, connect=5.0):
    return Result(connect, Phases(connect=connect), peer=peer)


def silent(peer=FAR):
    return Result(50.0, Phases(connect=50.0), Error("connect", "connect_timeout", "path", "no answer"), peer=peer)


def ill(peer=FAR):
    return Result(5.0, Phases(connect=5.0), Error("receive", "status_mismatch", "target", "HTTP 500"), peer=peer)


def peer_of(served):
    return Peer("127.0.0.1", served.port, "ipv4")


def target(name, url="http://9.9.9.9/", **options):
    return target_of(url, id=name, **options)


async def test_records_of_a_target_are_in_order(device, everything_is_far):
    """What comes of a target while a result of it is held waits behind it; others pass."""
    a, b = target("a"), target("b", "http://[2620:fe::9]/")
    device.take(a, silent(), 1.0)
    device.take(a, up(), 2.0)
    device.take(b, up(Peer("2620:fe::9", 80, "ipv6")), 3.0)
    device.take(a, ill(), 4.0)
    device.inquiry.in_order("a", lambda: device.settled.append(("a", "missed", 5.0)))
    device.take(a, silent(), 6.0)
    assert device.settled == [("b", "up", 3.0)]
    await device.until_all_are_settled()
    assert [number for _, _, number in device.settled] == [3.0, 1.0, 2.0, 4.0, 5.0, 6.0]
    assert len(device.inquiry) == 0


async def test_what_is_held_is_settled_in_time(device, everything_is_far, nowhere):
    """With nobody to ask it takes as long as it may, and no longer; the wait is in the evidence."""
    device.take(target("a"), silent(nowhere))
    assert await device.until_all_are_settled() < HOLD_SECONDS + 5  # on a busy machine, too
    assert device.settled == [("a", "unknown", 0.0)]
    assert device.rulings[0].seen.waited_ms >= HOLD_SECONDS * 1000


async def test_what_is_held_is_bounded(device, monkeypatch):
    """With more than that the oldest are settled by what is known."""
    monkeypatch.setattr(module, "MOST_HELD", 3)
    for number in range(10):
        device.take(target(f"t{number}"), silent(), float(number))
    assert len(device.inquiry) == 3
    assert [number for _, _, number in device.settled] == [float(number) for number in range(7)]


async def test_the_end(device):
    """All that is held is settled at once, each target's in order, and nobody is asked any more."""
    for number in range(5):
        device.take(target("a"), silent(), number * 2.0)
        device.take(target("a"), up(), number * 2.0 + 1)
    device.inquiry.end()
    assert [number for _, _, number in device.settled] == [float(number) for number in range(10)]
    assert len(device.inquiry) == 0
    await asyncio.sleep(0.01)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_a_record_that_cannot_be_made(device, caplog):
    """A bug costs one record: what waits behind it is settled."""
    device.broken = 1.0
    device.take(target("a"), silent(), 1.0)
    for number in (2.0, 3.0):
        device.take(target("a"), up(), number)
    device.inquiry.end()
    assert [number for _, _, number in device.settled] == [2.0, 3.0]
    assert "a: its result could not be recorded" in caplog.text


async def test_a_result_that_cannot_be_judged(device, caplog, monkeypatch):
    """A bug in the rules costs one record, too, and the others of the target and the other targets are settled."""
    rule = module.rule

    def breaks(target, *rest):
        if target.id == "a":
            raise RuntimeError("a bug")
        return rule(target, *rest)

    monkeypatch.setattr(module, "rule", breaks)
    device.take(target("a"), silent(), 1.0)
    device.take(target("b"), silent(), 2.0)
    device.take(target("a"), up(), 3.0)
    device.inquiry.end()
    assert sorted(number for _, _, number in device.settled) == [2.0, 3.0]
    assert "a: its result could not be judged" in caplog.text


async def test_nothing_is_asked_while_all_is_well(everything_is_far):
    """Neither other targets nor references, brokers or the resolver hear anything."""
    async with site(answers(b"HTTP/1.1 200 OK\r\n\r\n")) as well, dns_server(zone()) as server:
        device = Device(Resolver(port=server.port))
        those = [target(f"t{number}", well.url()) for number in range(5)]
        device.configure(*those, references=(well.url(),), brokers=(f"127.0.0.1:{well.port}",))
        for number in range(20):
            for each in those:
                device.take(each, up(peer_of(well)), float(number))
                device.inquiry.settle(boottime())
        await asyncio.sleep(2 * PATIENCE_SECONDS)
        assert len(device.settled) == 100
        assert well.connections == 0
        assert not server.questions
        assert not device.inquiry._tasks


async def test_a_failure_that_needs_no_proof_asks_nobody(everything_is_far):
    """A wrong answer from an address that was not resolved is settled at once."""
    async with site(answers()) as well:
        device = Device(Resolver())
        device.take(target("other", well.url()), up(peer_of(well)))
        device.take(target("a", well.url()), ill(peer_of(well)))
        assert [status for _, status, _ in device.settled] == ["up", "down"]
        assert well.connections == 0


async def test_others_who_answer_by_themselves(everything_is_far):
    """When another target answers right after, nobody but the target itself is asked."""
    async with site(answers()) as well:
        device = Device(Resolver())
        device.take(target("other", well.url()), up(peer_of(well)))
        device.take(target("a"), silent(Peer("127.0.0.1", 1, "ipv4")))
        device.take(target("other", well.url()), up(peer_of(well)))
        await device.until_all_are_settled()
        assert well.connections == 0


async def test_who_is_asked(everything_is_far, nowhere):
    """A few of the other targets, and all references, once each, when nobody answers by himself."""
    async with contextlib.AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(site(says())) for _ in range(MOST_ASKED + 3)]
        broker, *references = [await stack.enter_async_context(site(says(HOLD))) for _ in range(1 + 8)]
        device = Device(Resolver())
        those = [target(f"t{number}", each.url()) for number, each in enumerate(sites)]
        silent_one = target("a")
        urls = tuple(each.url() for each in references)
        device.configure(*those, silent_one, references=urls, brokers=(f"127.0.0.1:{broker.port}",))
        for each, served in zip(those, sites, strict=True):
            device.take(each, up(peer_of(served)))
        device.take(silent_one, silent(nowhere))
        await device.until_all_are_settled()
        assert device.settled[-1] == ("a", "down", 0.0)
        assert sum(each.connections for each in sites) == MOST_ASKED
        assert [each.connections for each in references] == [1] * 8
        assert broker.connections == 0
        seen = device.rulings[-1].seen
        assert (seen.asked, seen.answered) == (MOST_ASKED + 8, MOST_ASKED + 8)
        assert [(look.what, look.error) for look in device.rulings[-1].looks] == [("connect", "connect_timeout")]


async def test_brokers_are_asked_where_there_are_no_two_others(everything_is_far, nowhere):
    """They and the references are all that there is."""
    async with site(says()) as broker, site(says()) as reference:
        device = Device(Resolver())
        dead = target("a")
        device.configure(dead, references=(reference.url(),), brokers=(f"127.0.0.1:{broker.port}",))
        device.take(dead, silent(nowhere))
        await device.until_all_are_settled()
        assert (broker.connections, reference.connections) == (1, 1)


async def test_one_that_keeps_being_silent_is_asked_rarely(everything_is_far, monkeypatch):
    """Once, and each minute again, while others answer."""
    async with site(says(HOLD)) as well, site(says()) as dead:
        device = Device(Resolver())
        other, a = target("other", well.url()), target("a", dead.url())

        async def fails():
            for who, result in ((other, up(peer_of(well))), (a, silent(peer_of(dead))), (other, up(peer_of(well)))):
                device.take(who, result)
            await device.until_all_are_settled()

        for _ in range(4):
            await fails()
        assert dead.connections == 1
        device.take(a, up(peer_of(dead)))  # is another silence then
        await fails()
        assert dead.connections == 2
        monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
        await fails()
        assert dead.connections == 3


async def test_one_that_keeps_being_refused_is_asked_rarely(monkeypatch):
    """Whether it is this device that refuses is looked at once a minute."""
    async with site(says()) as closed:
        device = Device(Resolver())
        refused = Error("connect", "connect_refused", "target", "the connection was refused")
        for number in range(4):
            device.take(target("a"), Result(1.0, Phases(connect=1.0), refused, peer=peer_of(closed)), float(number))
            await device.until_all_are_settled()
        assert [status for _, status, _ in device.settled] == ["down"] * 4
        assert closed.connections == 1
        monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
        device.take(target("a"), Result(1.0, Phases(connect=1.0), refused, peer=peer_of(closed)))
        await device.until_all_are_settled()
        assert closed.connections == 2


async def test_the_loss_of_the_way_out_is_told_once(everything_is_far, nowhere, monkeypatch):
    """However many targets fall silent, and the return once, too."""
    monkeypatch.setattr(asking, "ASK_SECONDS", 0.3)
    device = Device(Resolver())
    async with site(says()) as back:
        for number in range(4):
            device.take(target(f"t{number}"), up(nowhere))
        for number in range(5):
            device.take(target(f"silent{number}"), silent(nowhere))
        await device.until_all_are_settled()
        assert [kind for kind, _ in device.news] == ["lost"]
        assert device.inquiry.uplink()[0] is not None
        device.take(target("a"), silent(nowhere))
        await device.until_all_are_settled()
        assert [kind for kind, _ in device.news] == ["lost"]
        device.take(target("b", back.url()), up(peer_of(back)))
        for _ in range(3):
            device.inquiry.settle(boottime())
        assert [kind for kind, _ in device.news] == ["lost", "back"]
        assert device.inquiry.uplink() == (None, "")


async def test_a_reference_whose_name_takes_a_while_counts(everything_is_far, nowhere, tmp_path):
    """The way out is not lost while the name of one that is to be asked is being resolved, and it answers then."""
    (tmp_path / "hosts").touch()
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    known = zone(reference__example=["127.0.0.1"])
    async with site(says()) as reference, dns_server(lambda question: [0.2, *known(question)]) as server:
        device = Device(Resolver(tmp_path / "hosts", tmp_path / "resolv.conf", server.port))
        device.configure(target("a"), references=(f"http://reference.example:{reference.port}/",), brokers=())
        for last in (2, 3):  # they sent certificates, and take no connections any more
            address = f"127.0.0.{last}"
            tls = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", verified=True)
            good = msgspec.structs.replace(up(Peer(address, 9, "ipv4")), tls=tls)
            device.take(target(address, f"https://{address}:9/"), good)
        error = Error("tls", "tls_timeout", "path", "no answer")
        device.take(target("a"), Result(50.0, Phases(connect=5.0, tls=45.0), error, peer=nowhere))
        await device.until_all_are_settled()
        assert reference.connections == 1
    assert device.news == []


async def test_a_resolver_that_fails_is_asked_for_other_names(everything_is_far, tmp_path):
    """And then for the one that failed, each once for however many."""
    hosts, resolv_conf = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.touch()
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    known = zone(**{f"n{number}__example": ["127.0.0.1"] for number in range(9)})

    def behaviour(question):
        return [reply(question, rcode=SERVFAIL)] if question.name.startswith("ill") else known(question)

    async with dns_server(behaviour) as server, site(says()) as well:
        device = Device(Resolver(hosts, resolv_conf, server.port))
        for number in range(9):
            each = target(f"n{number}", f"http://n{number}.example:{well.port}/")
            found = Result(5.0, Phases(connect=5.0), peer=peer_of(well), resolver="127.0.0.1")
            device.take(each, found)
        failed = Error("resolve", "dns_servfail", "resolver", "SERVFAIL")
        for number in range(3):
            result = Result(5.0, Phases(resolve=5.0), failed)
            device.take(target(f"ill{number}", f"http://ill{number}.example/"), result)
        for number in range(2):
            device.take(target(f"n{number}", f"http://n{number}.example:{well.port}/"), found)
        await device.until_all_are_settled()
        assert [status for name, status, _ in device.settled if name.startswith("ill")] == ["down"] * 3
        names = {question.name for question in server.questions}
        assert {f"ill{number}.example" for number in range(3)} <= names
        assert len(names) == 3 + MOST_ASKED


async def test_a_resolver_that_is_well_for_a_moment(everything_is_far, tmp_path):
    """One that finds other names, and is ill again when the failed one is asked for, proves nothing."""
    hosts, resolv_conf = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.touch()
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    known, ill = zone(well__example=["127.0.0.1"]), []

    def behaviour(question):
        ill.extend(["since then"] * (question.name == "ill.example"))
        return [reply(question, rcode=SERVFAIL)] if ill else known(question)

    async with dns_server(behaviour) as server, site(says()) as served:
        device = Device(Resolver(hosts, resolv_conf, server.port))
        well = target("well", f"http://well.example:{served.port}/")
        answer = Result(5.0, Phases(connect=5.0), peer=peer_of(served), resolver="127.0.0.1")
        device.take(well, answer)
        failed = Error("resolve", "dns_servfail", "resolver", "SERVFAIL")
        device.take(target("a", "http://ill.example/"), Result(5.0, Phases(resolve=5.0), failed))
        device.take(well, answer)
        await device.until_all_are_settled()
        assert [status for name, status, _ in device.settled if name == "a"] == ["unknown"]


async def test_a_resolver_that_fails_and_this_device_that_cannot_ask_it():
    """Only for what the resolver failed at are other names asked for, and is it asked again then."""
    again, cases = [], []
    for code, whose in (("dns_servfail", "resolver"), ("local_network", "local"), ("dns_timeout", "resolver")):
        failed = Result(5.0, Phases(resolve=5.0), Error("resolve", code, whose, "why"))
        measurement = Measurement(target(code, "http://a.example/"), AProber(), 1.0, 1.0, 1.0, failed)
        cases.append(Case(measurement, 1.0, CLOCK, Found()))
    witnesses = Witnesses(
        defaultdict(Evidence), Resolver(), lambda now: None, lambda case, other: again.append(case.target_id)
    )
    await witnesses.ask(cases, cases)
    assert again == ["dns_servfail", "dns_timeout"]


async def test_what_asking_raises_is_told(everything_is_far, caplog, monkeypatch):
    """A bug while asking costs the answer, and the result is settled in time by what is known."""
    caplog.set_level(logging.ERROR)

    async def breaks(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(asking, "connect", breaks)
    device = Device(Resolver())
    device.take(target("a"), silent())
    assert await device.until_all_are_settled() < HOLD_SECONDS + 1
    assert device.settled == [("a", "unknown", 0.0)]
    assert "asking once more failed" in caplog.text


class AProber:
    type = "http"


class Told:
    """An inquiry that asks nobody, at a time of the test's own; `verdicts`: by target id, the last."""

    def __init__(self):
        self.verdicts = {}
        self.lost = []
        self.inquiry = Inquiry(self.settled, news=self)

    def uplink_lost(self, since, why):
        self.lost.append(why)

    def settled(self, measurement, clock, ruling):
        self.verdicts[measurement.target.id] = ruling.status

    def take(self, name, at, *, took=0.1, address="9.9.9.9", source=None, **options):
        """A result that ended `at`: an answer, unless an error is given."""
        url = f"http://{name}.example/"
        target = Target(name, url, url, 30.0, 10.0, source=source)
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
    timeout = Error("connect", "connect_timeout", "path", "no answer to the connection attempt")
    refused = Error("connect", "connect_refused", "target", "the connection was refused")
    attempts = (Attempt("9.9.9.9", Phases(connect=1.0), refused),)
    told.take("shop", 103.0, took=3.0, error=timeout, earlier_ms=earlier, attempts=attempts, attempt=2)
    told.take("other", 103.5)
    assert told.verdict("shop", 103.0 + HOLD_SECONDS) == verdict


def test_an_uplink_that_is_some_targets_source_alone():
    """What fails by an interface that is not there is unknown, and no news of the device's way out."""
    told = Told()
    timeout = Error("connect", "connect_timeout", "path", "no answer to the connection attempt")
    told.take("shop", 103.0, error=timeout, source="gone7")
    assert told.verdict("shop", 103.0 + HOLD_SECONDS) == "unknown"
    assert told.lost == []
