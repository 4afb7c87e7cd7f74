"""The stub resolver: the host's files, every way in which a DNS server can answer or not, and who is to blame."""

import asyncio
import gc
import os
import socket
import struct
import time

import pytest

from agent.probers import resolver as module
from agent.probers.resolver import ResolveError, Resolver, is_address, parse_server
from tests.probers.conftest import IPV6
from tests.probers.dns_server import (
    AAAA,
    NOERROR,
    NXDOMAIN,
    REFUSED,
    RESPONSE,
    SERVFAIL,
    TRUNCATED,
    A,
    address,
    cname,
    dns_server,
    record,
    reply,
    zone,
)

NAME = "www.example"


async def resolve(server, name=NAME, ip="auto", timeout=2.0):
    """Asks one server; the address of the server is checked to be the one that is told."""
    begun = time.monotonic()
    try:
        resolved = await Resolver().resolve(name, ip=ip, deadline=begun + timeout, server=f"127.0.0.1:{server.port}")
    finally:
        assert time.monotonic() - begun < timeout + 0.3
    assert resolved.server == "127.0.0.1"
    return resolved.addresses


async def failed(server, name=NAME, ip="4", timeout=2.0):
    with pytest.raises(ResolveError) as caught:
        await resolve(server, name, ip, timeout)
    return caught.value.code, caught.value.attribution


def files(tmp_path, hosts="", resolv_conf="", port=53):
    (tmp_path / "hosts").write_text(hosts)
    (tmp_path / "resolv.conf").write_text(resolv_conf)
    return Resolver(tmp_path / "hosts", tmp_path / "resolv.conf", port)


async def of(resolver, name, ip="auto", timeout=2.0):
    return await resolver.resolve(name, ip=ip, deadline=time.monotonic() + timeout)


async def quickly(server, **options):
    """Asks with a shorter patience than resolv.conf can have."""
    servers = module.Servers((("127.0.0.1", server.port),), **options)
    return await module._Lookup(NAME, module.dns.encode_name(NAME), (A,), servers).run(time.monotonic() + 5)


@pytest.mark.parametrize(
    ("ip", "found"), [("auto", {"192.0.2.1", "2001:db8::1"}), ("4", {"192.0.2.1"}), ("6", {"2001:db8::1"})]
)
async def test_families(ip, found):
    """Addresses of the wanted families come back, A and AAAA asked apart, each once."""
    async with dns_server(zone(www__example=["192.0.2.1", "2001:db8::1"])) as server:
        assert set(await resolve(server, ip=ip)) == found
    assert len(server.questions) == len(found)


async def test_nothing_is_cached():
    """Every resolving asks anew: a change is seen at once."""
    async with dns_server(zone(www__example=["192.0.2.1"])) as server:
        assert await resolve(server) == ("192.0.2.1",)
        server.behaviour = zone(www__example=["192.0.2.2"])
        assert await resolve(server) == ("192.0.2.2",)


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
async def test_an_address_is_not_asked_for(text, tmp_path):
    """An address is its own answer, and nobody gave it."""
    assert await of(files(tmp_path), text) == ((text,), None)


def test_is_address():
    """Only what the standard library takes is an address; what the C library would make of 127.1 is a name."""
    assert is_address("127.0.0.1")
    assert is_address("::1")
    assert not any(map(is_address, ["127.1", "0x7f.1", "1", "a.1", "www.example", "", ":", "1.2.3.4.5"]))


async def test_aliases():
    """Aliases are followed within the answer."""
    records = cname(NAME, "a.example"), cname("a.example", "b.example"), address("b.example", "192.0.2.1")
    async with dns_server(lambda question: [reply(question, *records)]) as server:
        assert await resolve(server, ip="4") == ("192.0.2.1",)


async def test_names_are_compared_without_case():
    """A server that answers in capitals has answered."""

    def shouting(question):
        return [reply(question, address(NAME.upper(), "192.0.2.1"), section=question.section.upper())]

    async with dns_server(shouting) as server:
        assert await resolve(server, ip="4") == ("192.0.2.1",)


CASES = {
    "NXDOMAIN": (lambda q: [reply(q, rcode=NXDOMAIN)], ("dns_nxdomain", "target")),
    "SERVFAIL": (lambda q: [reply(q, rcode=SERVFAIL)], ("dns_servfail", "resolver")),
    "REFUSED": (lambda q: [reply(q, rcode=REFUSED)], ("dns_refused", "resolver")),
    "FORMERR": (lambda q: [reply(q, rcode=1)], ("dns_servfail", "resolver")),
    "unknown rcode": (lambda q: [reply(q, rcode=11)], ("dns_servfail", "resolver")),
    "no address": (lambda q: [reply(q)], ("dns_no_address", "target")),
    "other types": (lambda q: [reply(q, record(NAME, 16, b"\4text"))], ("dns_no_address", "target")),
    "other names": (lambda q: [reply(q, address("other.example", "192.0.2.1"))], ("dns_no_address", "target")),
    "circle": (lambda q: [reply(q, cname(NAME, "b.x"), cname("b.x", NAME))], ("dns_no_address", "target")),
    "alias of itself": (lambda q: [reply(q, cname(NAME, NAME))], ("dns_no_address", "target")),
    "referral": (lambda q: [reply(q, flags=RESPONSE)], ("dns_refused", "resolver")),
    "malformed": (lambda q: [reply(q, record(NAME, A, b"\1\2\3"))], ("dns_servfail", "resolver")),
    "cut": (lambda q: [reply(q, address(NAME, "192.0.2.1"))[:-2]], ("dns_servfail", "resolver")),
    "silence": (lambda q: [], ("dns_timeout", "resolver")),
    "wrong id": (lambda q: [reply(q, address(NAME, "192.0.2.9"), id=q.id ^ 1)], ("dns_timeout", "resolver")),
    "wrong question": (
        lambda q: [reply(q, address(NAME, "192.0.2.9"), section=b"\1x\0\0\1\0\1")],
        ("dns_timeout", "resolver"),
    ),
    "noise": (lambda q: [b"", b"\0", os.urandom(100)], ("dns_timeout", "resolver")),
}


@pytest.mark.parametrize("case", CASES)
async def test_failures(case):
    """Each has one code, and the target is blamed for a name only when a server said that it has no address."""
    behaviour, expected = CASES[case]
    async with dns_server(behaviour) as server:
        assert await failed(server, timeout=0.3 if expected[0] == "dns_timeout" else 2.0) == expected


async def test_a_right_answer_after_wrong_ones():
    """Forged answers before the right one are ignored."""

    def forged(question):
        yield reply(question, address(NAME, "192.0.2.9"), id=question.id ^ 1)
        yield reply(question, address("x", "192.0.2.9"), section=b"\1x\0\0\1\0\1")
        yield 0.05
        yield reply(question, address(NAME, "192.0.2.1"))

    async with dns_server(forged) as server:
        assert await resolve(server, ip="4") == ("192.0.2.1",)


async def test_an_answer_from_another_address():
    """What did not come from the server that was asked is not even seen."""
    elsewhere = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    elsewhere.bind(("127.0.0.1", 0))

    def answer_from_elsewhere(data, peer):
        question_end = 12 + len(b"\3www\7example\0") + 4
        header = data[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0)
        elsewhere.sendto(header + data[12:question_end] + address(NAME, "192.0.2.9"), peer)

    class Silent(asyncio.DatagramProtocol):
        def datagram_received(self, data, peer):
            answer_from_elsewhere(data, peer)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Silent, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    with pytest.raises(ResolveError) as caught:
        await Resolver().resolve(NAME, ip="4", deadline=time.monotonic() + 0.3, server=f"127.0.0.1:{port}")
    transport.close()
    elsewhere.close()
    assert caught.value.code == "dns_timeout"


async def test_a_lost_question_is_asked_again():
    """A question without an answer is sent again, to be answered then."""
    async with dns_server(lambda q: [reply(q, address(NAME, "192.0.2.1"))] if q.number == 3 else []) as server:
        found = await quickly(server, first_retry=0.05)
    assert found.addresses == ("192.0.2.1",)
    assert server.asked(A) == 3


async def test_a_late_answer_counts():
    """An answer to an earlier sending is taken."""

    def late(question):
        if question.number == 1:
            yield 0.2
            yield reply(question, address(NAME, "192.0.2.1"))

    async with dns_server(late) as server:
        assert (await quickly(server, first_retry=0.05)).addresses == ("192.0.2.1",)
    assert server.asked(A) > 1


async def test_questions_are_bounded():
    """One question is sent at most as often as is said, however much time there is."""
    async with dns_server(lambda q: []) as server:
        with pytest.raises(ResolveError, match="no answer"):
            await quickly(server, first_retry=0.001, sends=4)
    assert server.asked(A) == 4


async def test_one_family_is_enough():
    """A family that is late, silent or broken does not keep the other from being used."""
    good = zone(www__example=["192.0.2.1"])
    for six in (lambda q: [], lambda q: [reply(q, rcode=SERVFAIL)], lambda q: [reply(q)], lambda q: [b"x"]):
        async with dns_server(lambda q, six=six: six(q) if q.kind == AAAA else good(q)) as server:
            begun = time.monotonic()
            assert await resolve(server) == ("192.0.2.1",)
            assert time.monotonic() - begun < 0.5


async def test_no_address_needs_both_families():
    """That there is no IPv4 address says nothing while the question for IPv6 failed."""
    async with dns_server(lambda q: [reply(q, rcode=SERVFAIL if q.kind == AAAA else NOERROR)]) as server:
        assert await failed(server, ip="auto") == ("dns_servfail", "resolver")


async def test_tcp_when_truncated():
    """An answer that does not fit is fetched over TCP, as long as it may be."""
    addresses = [address(NAME, f"192.0.{n // 250}.{n % 250 + 1}") for n in range(1000)]

    def large(question):
        return [reply(question, *addresses)] if question.tcp else [reply(question, flags=RESPONSE | TRUNCATED)]

    async with dns_server(large) as server:
        assert len(await resolve(server, ip="4")) == 1000
        assert len(await resolve(server, ip="auto")) == 1000
    assert server.asked(A, tcp=True) == 2


@pytest.mark.parametrize(
    "by_tcp",
    [lambda q: [reply(q, flags=RESPONSE | TRUNCATED)], lambda q: [b"x"], lambda q: [reply(q, rcode=SERVFAIL)]],
)
async def test_tcp_fails(by_tcp):
    """When TCP brings no answer either, that is the resolver's failure."""
    async with dns_server(lambda q: by_tcp(q) if q.tcp else [reply(q, flags=RESPONSE | TRUNCATED)]) as server:
        assert await failed(server) == ("dns_servfail", "resolver")


async def test_tcp_is_silent():
    """A server that says no more over TCP is a time-out, within the deadline."""
    async with dns_server(lambda q: [5.0] if q.tcp else [reply(q, flags=RESPONSE | TRUNCATED)]) as server:
        assert await failed(server, timeout=0.3) == ("dns_timeout", "resolver")


async def test_closed_port():
    """A resolver whose port is closed is told at once."""
    async with dns_server(lambda q: []) as server:
        pass
    begun = time.monotonic()
    assert await failed(server, ip="auto", timeout=5.0) == ("dns_unreachable", "resolver")
    assert time.monotonic() - begun < 2


async def test_no_time_left():
    """Without time left nothing is asked, and nobody is blamed but this device."""
    async with dns_server(zone(www__example=["192.0.2.1"])) as server:
        assert await failed(server, timeout=0.0) == ("dns_timeout", "local")
    assert server.questions == []


@pytest.mark.parametrize("name", ["a..b", ".", "x" * 64 + ".example", "größe.example", ".".join(["x" * 60] * 5)])
async def test_impossible_names(name):
    """What cannot be a name does not exist; nobody is asked."""
    async with dns_server(zone()) as server:
        assert await failed(server, name) == ("dns_nxdomain", "target")
    assert server.questions == []


async def test_messages_tell_who_said_it():
    """A message names the name and the resolver."""
    async with dns_server(zone()) as server:
        with pytest.raises(ResolveError) as caught:
            await resolve(server)
    assert str(caught.value) == "www.example does not exist, says resolver 127.0.0.1"
    assert caught.value.server == "127.0.0.1"


async def test_hosts_file(tmp_path):
    """The hosts file comes first: all its addresses of the wanted family, names without case, comments left out."""
    hosts = "# comment\n192.0.2.1\tWWW.example alias # more\n2001:db8::1 www.example\nnonsense www.example\n"
    hosts += "\n192.0.2.2 alias"
    resolver = files(tmp_path, hosts)
    assert set((await of(resolver, "www.EXAMPLE.")).addresses) == {"192.0.2.1", "2001:db8::1"}
    assert await of(resolver, "www.example", "6") == (("2001:db8::1",), None)
    assert await of(resolver, "alias") == (("192.0.2.1", "192.0.2.2"), None)


async def test_files_are_read_again(tmp_path):
    """A change of the hosts file or of resolv.conf is seen at the next name."""
    async with dns_server(zone(www__example=["192.0.2.1"])) as one:
        resolver = files(tmp_path, "", "nameserver 127.0.0.1\n", one.port)
        assert await of(resolver, NAME) == (("192.0.2.1",), "127.0.0.1")
        async with dns_server(zone(www__example=["192.0.2.2"]), "127.0.0.2", one.port):
            (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.2 # moved\n")
            assert await of(resolver, NAME) == (("192.0.2.2",), "127.0.0.2")
        (tmp_path / "hosts").write_text("192.0.2.3 www.example\n")
        assert await of(resolver, NAME) == (("192.0.2.3",), None)
        (tmp_path / "hosts").unlink()
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        assert await of(resolver, NAME) == (("192.0.2.1",), "127.0.0.1")


@pytest.mark.parametrize("first", ["silent", "servfail", "closed"])
async def test_the_next_server(tmp_path, first):
    """A server that does not answer, or fails, is not the last word while there is another one."""
    broken = (lambda q: []) if first == "silent" else (lambda q: [reply(q, rcode=SERVFAIL)])
    async with dns_server(zone(www__example=["192.0.2.1"])) as good:
        resolver = files(
            tmp_path, "", "nameserver 127.0.0.2\nnameserver 127.0.0.1\noptions timeout:1 attempts:2\n", good.port
        )
        if first == "closed":
            assert (await of(resolver, NAME)).addresses == ("192.0.2.1",)
        else:
            async with dns_server(broken, "127.0.0.2", good.port) as bad:
                assert await of(resolver, NAME, timeout=5.0) == (("192.0.2.1",), "127.0.0.1")
            assert bad.questions


def test_resolv_conf():
    """Up to three servers and two options are read; what is not understood is passed over; without any, this host."""
    read = module._resolv_conf
    text = "; c\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver\nsearch a b\nnameserver 2001:db8::1 x\n"
    more = "nameserver 192.0.2.3\nnameserver 192.0.2.4\noptions rotate timeout:3 attempts:2 ndots:x timeout:99\n"
    assert read(text, 53).addresses == (("192.0.2.1", 53), ("2001:db8::1", 53))
    three = read(text + more, 5353)
    assert [server for server, _ in three.addresses] == ["192.0.2.1", "2001:db8::1", "192.0.2.3"]
    assert (three.first_retry, three.sends) == (30, 6)
    assert read("", 53).addresses == (("127.0.0.1", 53),)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "a.localhost", "localhost."])
async def test_localhost(name, tmp_path):
    """localhost is this host, without asking, IPv4 first as servers often listen on that alone."""
    resolver = files(tmp_path)
    assert (await of(resolver, name)).addresses == ("127.0.0.1", "::1")
    assert (await of(resolver, name, "6")).addresses == ("::1",)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_parse_server(text, server):
    """A server is an address, with or without a port."""
    assert parse_server(text) == server


@pytest.mark.parametrize("text", ["", "name", "192.0.2.1:0", "192.0.2.1:x", "192.0.2.1:99999", "[::1", "[::1]x", ":53"])
def test_no_server(text):
    """Everything else is refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - the text is for the reader of a configuration, checked there
        parse_server(text)


@IPV6
async def test_a_server_over_ipv6():
    """A server with an IPv6 address is asked as any other."""
    async with dns_server(zone(www__example=["192.0.2.1"]), "::1") as server:
        found = await Resolver().resolve(NAME, ip="auto", deadline=time.monotonic() + 2, server=f"[::1]:{server.port}")
    assert found == (("192.0.2.1",), "::1")


async def test_cancelling_leaves_nothing():
    """Cancelling passes through; no socket, timer or question stays."""
    async with dns_server(lambda q: [5.0] if q.tcp else [reply(q, flags=RESPONSE | TRUNCATED)]) as server:
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for pause in (0, 0.001, 0.02):
            asking = asyncio.create_task(resolve(server, timeout=10.0))
            await asyncio.sleep(pause)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await server.close()
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_many_at_once():
    """Many names at a time are resolved, each by its own answer."""
    names = {f"n{n}__example": [f"192.0.2.{n}"] for n in range(100)}
    async with dns_server(zone(**names)) as server:
        found = await asyncio.gather(*[resolve(server, f"n{n}.example", timeout=10.0) for n in range(100)])
    assert [each[0] for each in found] == [f"192.0.2.{n}" for n in range(100)]
