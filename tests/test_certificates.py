"""Somebody between, who answers for every address with a certificate of his own, blames no site."""

import asyncio
import contextlib
import time

import pytest

from agent import certificates as module
from agent.config.model import TlsOptions
from agent.device.clock import ClockState, boottime
from agent.inquiry import Inquiry
from agent.probers import asking, prober_of
from agent.probers.resolver import Resolver
from agent.schedule import Measurement
from tests.probers.certificates import certificate, server, trusted
from tests.probers.http_server import target_of

HOSTS = {"a": "127.1.0.1", "b": "127.2.0.1", "c": "127.3.0.1"}
NEAR = {"a": "127.1.0.1", "b": "127.1.0.2", "c": "127.1.0.3"}


class World:
    """Sites, each with a certificate of its own, and a device. `between`: whose certificate they have instead."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.between = {}
        self.connections = 0
        self.ruled = []
        self.inquiry = Inquiry(lambda _, __, ruling: self.ruled.append(ruling), Resolver())

    async def __aenter__(self):
        self._open = contextlib.AsyncExitStack()
        self.targets = {}
        for name, host in self.hosts.items():
            context = server()
            context.sni_callback = lambda session, _, __, name=name: self._choose(session, name)
            listener = await asyncio.start_server(self._serve, host, 0, ssl=context)
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

    def _choose(self, session, name):
        self.connections += 1
        names, ca = self.between.get(name, ([f"{name}.example"], "test"))
        session.context = server(certificate(*names, ca=ca))

    async def _serve(self, reader, writer):
        with contextlib.suppress(OSError, EOFError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def measure(self, name):
        """Measures once, and waits for the verdict."""
        target, resolver = self.targets[name], Resolver()
        prober, started = prober_of(target, resolver), boottime()
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
    assert [(look.what, look.error) for look in ruling.own] == [("measure", "tls_untrusted")] * 2
    assert {look.address for look in ruling.own} == {HOSTS["b"], HOSTS["c"]}
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
    """A target that is not configured any more is no witness."""
    good = module.Certificates()
    result = await prober_of(world.targets["a"], Resolver()).probe(time.monotonic() + 5)
    good.note(world.targets["a"], result, 1.0)
    good.keep_only({"b"})
    assert not good._good
