"""What may mislead an inquiry: each has blamed a site that was well, or excused one that was not."""

import asyncio
import contextlib
import os
import resource
from pathlib import Path

import msgspec

from agent.device import uplink
from agent.device.clock import boottime
from agent.inquiry.certificates import Certificates
from agent.probers import asking, prober_of
from agent.probers.resolver import Resolver
from agent.probers.result import Error, Peer, Phases, Result, Tls
from agent.schedule import Measurement
from agent.verdict.found import NO_DOUBT
from tests.inquiry.test_inquiry import FAR, Device, device, everything_is_far, nowhere, peer_of, silent, target, up
from tests.probers.dns_server import NXDOMAIN, SERVFAIL, A, address, dns_server, reply, zone
from tests.probers.http_server import CONTEXT, answers, says, site

KEPT = CONTEXT, device, everything_is_far, nowhere


def refused(peer=FAR):
    return Result(5.0, Phases(connect=5.0), Error("connect", "connect_refused", "target", "refused"), peer=peer)


@contextlib.contextmanager
def no_descriptors():
    """The next socket fails with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_second_look_without_descriptors(device, everything_is_far):
    """A question that this device could not ask is no second silence."""
    async with site(says(answers())) as served:
        a, b = target("a"), target("b")
        device.take(b, up())
        with no_descriptors():
            device.take(a, silent(peer_of(served)))
            await asyncio.sleep(0.05)
            device.take(b, up())
            await device.until_all_are_settled()
    assert ("a", "down", 0.0) not in device.settled


async def test_a_look_at_a_refusal_without_descriptors(device):
    """Nor does it tell who refused."""
    a = target("a")
    with no_descriptors():
        device.take(a, refused())
        await device.until_all_are_settled()
    assert device.settled == [("a", "unknown", 0.0)]


async def test_a_refusal_that_is_held_at_the_stop(device):
    """Nobody looked yet who refused it."""
    device.take(target("a"), refused())
    device.inquiry.end()
    assert device.settled == [("a", "unknown", 0.0)]


async def test_what_is_known_of_a_target_goes_when_it_is_changed(device, monkeypatch):
    """An id that names another site now: its first refusal is looked at."""
    looked = []

    async def connect(address, port, seconds, source=None):
        looked.append(address)
        return 1.0, "connect_refused" if address == "9.9.9.9" else "local_network"

    monkeypatch.setattr(asking, "connect", connect)
    before, now = target("a"), target("a", "http://8.8.8.8/")
    device.configure(before)
    device.take(before, refused())
    await device.until_all_are_settled()
    device.configure(now)
    device.take(now, refused(Peer("8.8.8.8", 80, "ipv4")))
    await device.until_all_are_settled()
    assert looked == ["9.9.9.9", "8.8.8.8"]
    assert [status for _, status, _ in device.settled] == ["down", "unknown"]


async def test_silence_of_a_changed_target_is_looked_at(device, everything_is_far, monkeypatch):
    """An id that names another site now: what was found of the old one does not spare it its second look."""
    looked = []

    async def connect(address, port, seconds, source=None):
        looked.append(address)
        return 1.0, "connect_timeout" if address == "9.9.9.9" else None

    monkeypatch.setattr(asking, "connect", connect)
    before, now, other = target("a"), target("a", "http://8.8.8.8/"), target("b")
    device.configure(before, other)
    device.take(before, silent())
    device.take(other, up())
    await device.until_all_are_settled()
    device.configure(now, other)
    device.take(other, up())
    device.take(now, silent(Peer("8.8.8.8", 80, "ipv4")))
    device.take(other, up())
    await device.until_all_are_settled()
    assert "8.8.8.8" in looked
    assert ("a", "down", 0.0) not in device.settled[2:]


async def test_a_resolver_that_is_not_configured_any_more_is_not_asked(everything_is_far, tmp_path):
    """After a reload nothing is told to a resolver that was taken out of the configuration."""
    async with dns_server(zone(a=["10.0.0.1"])) as old, dns_server(lambda ask: [reply(ask, rcode=SERVFAIL)]) as new:
        device = Device(Resolver())
        first = target("a", "http://a.example/", resolver=f"127.0.0.1:{old.port}")
        private = target("p", "http://secret.internal/", resolver=f"127.0.0.1:{new.port}")
        device.configure(first, private)
        device.take(first, Result(5.0, Phases(connect=5.0), peer=FAR, resolver="127.0.0.1"))
        device.configure(private)
        failed = Error("resolve", "dns_servfail", "resolver", "SERVFAIL")
        device.take(private, Result(5.0, Phases(resolve=5.0), failed))
        await device.until_all_are_settled()
        asked = list(old.questions)
        device.inquiry.end()
        await asyncio.sleep(0.01)
    assert not asked


async def test_the_evidence_shows_no_credentials_of_a_reference(device, everything_is_far, nowhere):
    """A reference's userinfo and query are nobody's business."""
    async with site(says(answers())) as served:
        reference = f"http://user:hunter2@127.0.0.1:{served.port}/?token=s3cret"
        device.configure(target("a"), references=(reference,), brokers=())
        device.take(target("a"), silent(nowhere))
        await device.until_all_are_settled()
    assert device.rulings[0].status == "down"
    assert "hunter2" not in str(device.rulings)
    assert "s3cret" not in str(device.rulings)


def good(number):
    address = f"{11 + number % 80}.{number // 250 % 250}.{number % 250}.7"
    tls = Tls("TLSv1.3", "x", True, sha256=f"{number:064x}", issuer=f"CN=ca{number % 7}")
    made = target(f"t{number}", f"https://n{number}.example/", resolver="9.9.9.9", source="10.0.0.9")
    return made, Result(
        5.0, Phases(connect=5.0), peer=Peer(address, 443, "ipv4"), tls=tls, named=((f"n{number}.example", address),)
    )


def is_watched(tmp_path, monkeypatch, interfaces, change):
    """Whether a change of wwan0 is seen: `interfaces` in a folder as /sys/class/net is, `change` is done to them."""

    def add(name, count="2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "carrier_changes").write_text(count)

    for each in interfaces:
        add(each)
    monkeypatch.setattr(uplink, "Path", lambda path: tmp_path if path == "/sys/class/net" else Path(path))
    ways = uplink.Ways()
    ways.look(1.0)
    for number, step in enumerate(change, 2):
        step(add)
        ways.look(float(number))
    return ways.changed("wwan0", 1.5)


def without(tmp_path, name):
    (tmp_path / name / "carrier_changes").unlink()
    (tmp_path / name).rmdir()


def test_an_interface_that_went_and_came_back(tmp_path, monkeypatch):
    """A modem that was gone for a moment has changed."""
    steps = [lambda _: without(tmp_path, "wwan0"), lambda add: add("wwan0")]
    assert is_watched(tmp_path, monkeypatch, ["lo", "eth0", "wwan0"], steps)


def test_an_interface_behind_one_that_goes(tmp_path, monkeypatch):
    """One that is listed and gone when it is read hides no other one's change."""
    steps = [
        lambda _: (tmp_path / "veth1" / "carrier_changes").unlink(),
        lambda _: (tmp_path / "wwan0" / "carrier_changes").write_text("4"),
        lambda _: without_folder(tmp_path / "veth1"),
    ]
    assert is_watched(tmp_path, monkeypatch, ["lo", "veth1", "wwan0"], steps)


def without_folder(path):
    path.rmdir()


def test_the_file_of_the_bonding_driver(tmp_path, monkeypatch):
    """Where that driver is loaded a file stands among the interfaces, and those behind it are watched all the same."""
    (tmp_path / "bonding_masters").write_text("\n")
    steps = [lambda _: (tmp_path / "wwan0" / "carrier_changes").write_text("4")]
    assert is_watched(tmp_path, monkeypatch, ["lo", "wwan0"], steps)


async def test_a_target_that_leaves_while_others_are_asked_for_it(caplog):
    """A reload takes it away before its turn has come: nothing is raised."""
    known = Certificates(Resolver(), asyncio.Semaphore())
    made, result = good(1)
    known.note(made, result, 1.0)
    wrong = Tls("TLSv1.3", "x", False, sha256="bad", issuer="CN=bad")
    failed = Result(5.0, Phases(connect=5.0), Error("tls", "tls_untrusted", "target", "x"), peer=result.peer, tls=wrong)
    known.keep_only({})
    measurement = Measurement(made, prober_of(made, Resolver()), boottime(), boottime(), 0.0, failed)
    assert await known.ask(measurement, boottime()) == NO_DOUBT


async def test_a_name_is_judged_by_the_resolver_that_is_measured_with(everything_is_far):
    """A target's own resolver says that there is no such name, and finds others: what another one says is no excuse."""
    async with dns_server(zone(b__example=["10.0.0.1"])) as own, dns_server(zone(a__example=["10.0.0.2"])) as other:
        device, by = Device(Resolver()), f"127.0.0.1:{own.port}"
        a, b = target("a", "http://a.example/", resolver=by), target("b", "http://b.example/", resolver=by)
        c = target("c", "http://c.example/", resolver=f"127.0.0.1:{other.port}")
        device.configure(a, b, c)
        device.take(b, Result(5.0, Phases(connect=5.0), peer=FAR, resolver="127.0.0.1"))
        device.take(c, Result(5.0, Phases(connect=5.0), peer=FAR, resolver="127.0.0.1"))
        gone = Error("resolve", "dns_nxdomain", "target", "no such name")
        device.take(a, Result(5.0, Phases(resolve=5.0), gone, resolver="127.0.0.1"))
        device.take(b, Result(5.0, Phases(connect=5.0), peer=FAR, resolver="127.0.0.1"))
        await device.until_all_are_settled()
        device.inquiry.end()
        await asyncio.sleep(0.01)
    assert ("a", "down", 0.0) in device.settled
    assert "a.example" not in {question.name for question in other.questions}


async def test_a_lie_that_is_found_before_the_own_question_is_answered(everything_is_far, nowhere, tmp_path):
    """That one's own question found nothing wrong takes nothing from what others' found: the resolver lies."""

    def behaviour(question):
        if question.name.endswith(".invalid"):
            return [0.6, reply(question, rcode=NXDOMAIN)]
        return [reply(question, *([address(question.name, "127.0.0.2")] if question.kind == A else []))]

    async with site(answers(b"HTTP/1.1 200 OK\r\n\r\n")) as well, dns_server(behaviour) as server:
        (tmp_path / "hosts").write_text("")
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        device = Device(Resolver(tmp_path / "hosts", tmp_path / "resolv.conf", server.port))
        b, c = (target(name, f"http://{name}.test:{well.port}/") for name in "bc")
        a, d = target("a", f"http://a.test:{nowhere.port}/"), target("d")
        device.configure(a, b, c, d)
        for each in (b, c) * 2:
            name = f"{each.id}.test"
            device.take(each, msgspec.structs.replace(up(peer_of(well)), named=((name, "127.0.0.1"),)))
        device.take(a, msgspec.structs.replace(silent(nowhere), named=(("a.test", "127.0.0.1"),)))
        elsewhere = msgspec.structs.replace(silent(nowhere), named=(("b.test", "127.0.0.2"),))
        device.take(b, elsewhere)
        await asyncio.sleep(0.5)
        device.inquiry.settle(boottime())
        device.take(d, up())
        await device.until_all_are_settled()
    of_a = device.rulings[[name for name, _, _ in device.settled].index("a")]
    assert (of_a.status, of_a.error.attribution) == ("unknown", "resolver")
