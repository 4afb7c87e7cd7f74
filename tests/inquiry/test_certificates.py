"""Somebody between, who answers for every address with a certificate of his own, blames no site."""

import asyncio
import contextlib
import time
from functools import partial

import msgspec
import pytest

from agent.config.model import TlsOptions
from agent.device.clock import ClockState, boottime
from agent.inquiry import certificates as module
from agent.inquiry.inquiry import Inquiry
from agent.probers import asking, prober_of
from agent.probers.resolver import Resolver
from agent.schedule import Measurement
from tests.probers.certificates import certificate, server, trusted
from tests.probers.http_server import target_of

HOSTS = {"a": "127.1.0.1", "b": "127.2.0.1", "c": "127.3.0.1"}
NEAR = {"a": "127.1.0.1", "b": "127.1.0.2", "c": "127.1.0.3"}


class World:
    """Sites, each with a certificate of its own, and a device. `between`: whose certificate they have instead.

    Asked for another name they show that of their server. `redirects`: from whom to whom.
    """

    def __init__(self, hosts, resolver=None):
        self.hosts = hosts
        self.resolver = resolver or Resolver()
        self.between = {}
        self.redirects = {}
        self.connections = 0
        self.ruled = []
        self.inquiry = Inquiry(lambda _, __, ruling: self.ruled.append(ruling), self.resolver)

    async def __aenter__(self):
        self._open = contextlib.AsyncExitStack()
        self.targets, port = {}, 0  # the same for all
        for name, host in self.hosts.items():
            context = server()
            context.sni_callback = lambda session, asked, _, name=name: self._choose(session, asked, name)
            listener = await asyncio.start_server(partial(self._serve, name), host, port, ssl=context)
            self._open.callback(listener.close)
            port = listener.sockets[0].getsockname()[1]
            options = TlsOptions(ca=trusted())
            self.targets[name] = target_of(
                f"https://{name}.example:{port}/", id=name, connect_to=host, tls=options, method="POST"
            )
        return self

    async def __aexit__(self, *_):
        self.inquiry.end()
        await self._open.aclose()
        await asyncio.sleep(0.01)

    def _choose(self, session, asked, name):
        self.connections += 1
        own = ([asked], "test") if asked == f"{name}.example" else (["server.example"], "portal")
        names, ca = self.between.get(name, own)
        session.context = server(certificate(*names, ca=ca))

    async def _serve(self, name, reader, writer):
        answer = "200 OK"
        if name in self.redirects:
            answer = f"302 Found\r\nLocation: {self.targets[self.redirects[name]].url}"
        with contextlib.suppress(OSError, EOFError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())

    async def measure(self, name):
        """Measures once, and waits for the verdict."""
        target = self.targets[name]
        prober, started = prober_of(target, self.resolver), boottime()
        result = await prober.probe(time.monotonic() + 5)
        clock = ClockState(synchronized=True, max_error_ms=None)
        self.inquiry.take(Measurement(target, prober, started, started, 1.0, result), boottime(), clock)
        await self.inquiry.until_all_are_settled()
        return self.ruled[-1]

    async def all_are_up(self):
        for name in self.hosts:
            assert (await self.measure(name)).status == "up"
        self.connections = 0


@pytest.fixture
async def world():
    async with World(HOSTS) as made:
        await made.all_are_up()
        yield made


def is_local(ruling):
    assert "none of theirs" in ruling.error.message
    return (ruling.status, ruling.error.attribution) == ("unknown", "local")


def is_down(ruling, code="tls_untrusted"):
    return (ruling.status, ruling.error.code, ruling.error.attribution) == ("down", code, "target")


async def test_one_certificate_for_all(world):
    """That of a captive portal blames nobody, and one look is enough for all."""
    world.between = dict.fromkeys(HOSTS, (("portal.example",), "portal"))
    ruling = await world.measure("a")
    assert is_local(ruling)
    assert [(look.what, look.error) for look in ruling.looks] == [("measure", "tls_untrusted")] * 2
    assert {look.address for look in ruling.looks} == {HOSTS["b"], HOSTS["c"]}
    world.connections = 0
    assert is_local(await world.measure("b"))
    assert is_local(await world.measure("a"))
    assert world.connections == 2


async def test_one_that_everybody_trusts(world):
    """A portal's certificate may be good, for its own name."""
    world.between = dict.fromkeys(HOSTS, (("portal.example",), "test"))
    assert is_local(await world.measure("a"))


async def test_one_issuer_for_all(world):
    """A gateway that reads along makes a certificate for each site, by a CA of its own."""
    world.between = {name: ((f"{name}.example",), "gateway") for name in HOSTS}
    assert is_local(await world.measure("a"))


async def test_one_site_has_a_wrong_certificate(world, monkeypatch):
    """The others have theirs: it is down; others are looked at once a minute."""
    world.between = {"a": (("other.example",), "portal")}
    assert is_down(await world.measure("a"))
    assert world.connections == 3
    for _ in range(3):
        assert is_down(await world.measure("a"))
    assert world.connections == 6
    monkeypatch.setattr(asking, "AGAIN_SECONDS", 0.0)
    assert is_down(await world.measure("a"))
    assert world.connections == 9


async def test_two_sites_have_wrong_certificates(world):
    """Each another one: they are down."""
    world.between = {name: ((f"{name}.wrong",), f"of {name}") for name in HOSTS}
    assert is_down(await world.measure("a"))


async def test_all_on_one_server():
    """One that shows its own certificate for all its sites is their fault."""
    async with World(NEAR) as world:
        await world.all_are_up()
        world.between = dict.fromkeys(NEAR, (("server.example",), "portal"))
        for name in NEAR:
            assert is_down(await world.measure(name))


async def test_what_was_never_up():
    """There is nothing to compare it with."""
    async with World(HOSTS) as world:
        world.between = dict.fromkeys(HOSTS, (("portal.example",), "portal"))
        assert is_down(await world.measure("a"))
        assert world.connections == 1


async def test_what_left_is_forgotten(world):
    """A target that is not configured any more, or measures something else under its id, is no witness."""
    known, a = module.Certificates(world.resolver, asyncio.Semaphore()), world.targets["a"]
    result = await prober_of(a, Resolver()).probe(time.monotonic() + 5)
    changes = {"url": "https://other.example/", "connect_to": "127.4.0.1", "tls": TlsOptions()}
    for targets in ({}, *({"a": msgspec.structs.replace(a, **{key: value})} for key, value in changes.items())):
        known.note(a, result, 1.0)
        known.keep_only(targets)
        assert not known._good
    known.note(a, result, 1.0)
    known.keep_only({"a": msgspec.structs.replace(a, interval=7.0)})
    assert known._good["a"].target.interval == 7.0


async def test_a_certificate_of_what_had_that_id_before(world):
    """It says nothing about the site that has the id now: one whose certificate was never good is down."""
    world.targets["a"] = msgspec.structs.replace(world.targets["a"], url=world.targets["a"].url + "other")
    world.between = dict.fromkeys(HOSTS, (("portal.example",), "portal"))
    assert is_down(await world.measure("a"))
    assert world.connections == 1


async def test_what_was_up_behind_a_redirect(tmp_path):
    """Nobody is asked for the first name at the address of the last hop: what is there for it excuses no site."""
    (tmp_path / "hosts").write_text(f"{HOSTS['c']} c.example\n")
    async with World(HOSTS, Resolver(tmp_path / "hosts")) as world:
        world.redirects = {"b": "c"}
        await world.all_are_up()
        world.between = {"a": (("other.example",), "portal")}
        assert is_down(await world.measure("a"))
        # It is not blamed itself for somebody between who answers there.
        world.between = dict.fromkeys("ac", (("portal.example",), "portal"))
        assert is_local(await world.measure("b"))
