"""The HTTP prober against servers that behave in every way: one named error, one to blame, in time."""

import asyncio
import base64
import itertools
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from agent import __version__
from agent.config.model import Secret
from agent.probers.resolver import Resolver
from tests.probers.conftest import IPV6
from tests.probers.dns_server import SERVFAIL, dns_server, reply, zone
from tests.probers.http_server import (
    HOLD,
    OK,
    RESET,
    answers,
    failure,
    measure,
    reached,
    request_of,
    says,
    site,
)
from tests.probers.namespaces import within

TO_WAIT = ["connect", "send", "wait"]
WHOLE = ["connect", "send", "wait", "receive"]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"


def slowly(data: bytes, pause: float = 0.05):
    """A byte at a time."""
    return [(data[at : at + 1], pause) for at in range(len(data))]


async def test_up(host):
    """A good answer is up, with every phase but `resolve` (an address needs none), the peer and the body's size."""
    async with site(answers(OK), host) as there:
        result = await measure(there.url("/health?a=1"))
    assert result.error is None
    assert reached(result) == WHOLE
    assert (result.peer.address, result.peer.port) == (host, there.port)
    assert result.peer.family == ("ipv6" if ":" in host else "ipv4")
    assert (result.http.status_code, result.http.version, result.http.body_bytes) == (200, "1.1", 2)
    assert (result.http.redirects, result.tls, result.attempts, result.resolver) == (0, None, (), None)


async def test_what_is_sent(host):
    """The request is plain HTTP/1.1 with Host, a name of its own and the wish to close."""
    async with site(answers(OK), host) as there:
        await measure(there.url("/a%20b?c=d"))
    authority = f"[{host}]" if ":" in host else host
    assert there.requests == [
        f"GET /a%20b?c=d HTTP/1.1\r\nHost: {authority}:{there.port}\r\nUser-Agent: uptime-agent/{__version__}\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n".encode()
    ]


async def test_headers_replace_the_defaults():
    """Host, User-Agent and Accept can be set, each is sent once, and Latin-1 goes as it is."""
    async with site(answers(OK)) as there:
        await measure(there.url(), headers={"host": "shop.example", "USER-AGENT": "me", "X-Name": "é", "Accept": "a/b"})
    (request,) = there.requests
    assert request.lower().count(b"host:") == request.lower().count(b"user-agent:") == 1
    assert b"\r\nhost: shop.example\r\nUSER-AGENT: me\r\nAccept: a/b\r\nX-Name: \xe9\r\n" in request


@pytest.mark.parametrize(
    ("method", "body", "end"),
    [
        ("POST", "größe", b"Content-Length: 7\r\nConnection: close\r\n\r\n" + "größe".encode()),
        ("GET", "x", b"Content-Length: 1\r\nConnection: close\r\n\r\nx"),
        ("PUT", None, b"Content-Length: 0\r\nConnection: close\r\n\r\n"),
        ("DELETE", None, b"Accept: */*\r\nConnection: close\r\n\r\n"),
    ],
)
async def test_method_and_body(method, body, end):
    """The method goes as it is written, a body as UTF-8 with its length, also the length of none where one is due."""
    async with site(answers(OK)) as there:
        assert (await measure(there.url(), method=method, body=body)).error is None
    assert there.requests[0].startswith(f"{method} / HTTP/1.1\r\n".encode())
    assert there.requests[0].endswith(end)


async def test_basic_auth():
    """User and password are sent as basic authentication, in UTF-8."""
    async with site(answers(OK)) as there:
        await measure(there.url(), basic_auth=("jürgen", Secret("a:b")))
    pair = base64.b64encode("jürgen:a:b".encode())
    assert b"\r\nAuthorization: Basic " + pair + b"\r\n" in there.requests[0]


async def test_a_large_body_is_sent_whole(host):
    """A body of 1 MiB arrives whole, and its sending has its own phase."""
    async with site(answers(OK), host) as there:
        result = await measure(there.url(), method="POST", body="x" * (1 << 20))
    assert result.error is None
    assert there.requests[0].endswith(b"\r\n\r\n" + b"x" * (1 << 20))
    assert result.phases_ms.send > 0


# What the server says, the error (code, phase, attribution) or None, and the phases that are reached.
ANSWERS = {
    "bytes after": (answers(OK + b"more"), None, WHOLE),
    "before the request": (says(OK, HOLD), None, WHOLE),
    "LF": (answers(OK.replace(b"\r\n", b"\n")), None, WHOLE),
    "to the end": (answers(ENDLESS + b"hello"), None, WHOLE),
    "in small pieces": (answers(slowly(OK, 0.001)), None, WHOLE),
    "chunks": (answers(CHUNKED + b"2\r\nhi\r\n0\r\nA: b\r\n\r\n"), None, WHOLE),
    "204 with a body": (answers(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello"), None, WHOLE),
    "interim": (answers(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, OK), None, WHOLE),
    "closes": (answers(), ("http_closed", "wait", "target"), TO_WAIT),
    "resets": (answers(RESET), ("connect_reset", "wait", "target"), TO_WAIT),
    "resets within": (answers(HEAD, 0.05, RESET), ("connect_reset", "receive", "target"), WHOLE),
    "500": (
        answers(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
        ("status_mismatch", "receive", "target"),
        WHOLE,
    ),
    "101": (answers(b"HTTP/1.1 101 Switching\r\n\r\n"), ("status_mismatch", "receive", "target"), WHOLE),
    "short body": (answers(HEAD + b"hi"), ("http_truncated", "receive", "target"), WHOLE),
    "half a head": (answers(HEAD[:20]), ("http_truncated", "receive", "target"), WHOLE),
    "no last chunk": (answers(CHUNKED + b"2\r\nhi\r\n"), ("http_truncated", "receive", "target"), WHOLE),
    "bad chunk": (answers(CHUNKED + b"zz\r\n"), ("http_protocol", "receive", "target"), WHOLE),
    "not HTTP": (says(b"220 mail.example ESMTP\r\n", HOLD), ("http_protocol", "receive", "target"), WHOLE),
    "HTTP/0.9": (answers(b"<html></html>"), ("http_protocol", "receive", "target"), WHOLE),
    "HTTP/2": (says(b"\0\0\0\4\0\0\0\0\0", HOLD), ("http_protocol", "receive", "target"), WHOLE),
    "HTTP/2.0": (answers(b"HTTP/2.0 200 OK\r\n\r\n"), ("http_protocol", "receive", "target"), WHOLE),
    "negative length": (
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
        ("http_protocol", "receive", "target"),
        WHOLE,
    ),
    "two lengths": (
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhi"),
        ("http_protocol", "receive", "target"),
        WHOLE,
    ),
    "long header": (
        answers(b"HTTP/1.1 200 OK\r\nName: " + b"x" * (1 << 20) + b"\r\n\r\n"),
        ("http_protocol", "receive", "target"),
        WHOLE,
    ),
    "100,000 headers": (
        answers(b"HTTP/1.1 200 OK\r\n" + b"Name: x\r\n" * 100_000 + b"\r\n"),
        ("http_protocol", "receive", "target"),
        WHOLE,
    ),
    "headers for ever": (
        answers(b"HTTP/1.1 200 OK\r\n", itertools.repeat(b"Name: x\r\n" * 100)),
        ("http_protocol", "receive", "target"),
        WHOLE,
    ),
    "interim for ever": (
        answers(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
        ("http_protocol", "receive", "target"),
        WHOLE,
    ),
    "body for ever": (
        answers(ENDLESS, itertools.repeat(b"x" * 10_000)),
        ("body_too_large", "receive", "target"),
        WHOLE,
    ),
    "chunks for ever": (
        answers(CHUNKED, itertools.repeat(b"1\r\nx\r\n" * 1000)),
        ("body_too_large", "receive", "target"),
        WHOLE,
    ),
    "announced too large": (
        answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", itertools.repeat(b"x" * 10_000)),
        ("body_too_large", "receive", "target"),
        WHOLE,
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_answers(case, host):
    """Whatever a server says has one verdict of the prober's, and an endless one ends at its bound."""
    behaviour, expected, phases = ANSWERS[case]
    async with site(behaviour, host) as there:
        result = await measure(there.url(), timeout=10.0, body_limit=1 << 20)
    assert (failure(result), reached(result)) == (expected, phases)
    assert there.sent < 16 << 20  # what the kernel's buffers took before we hung up


async def test_closes_unasked(host):
    """A server that accepts and closes has closed, or reset when the request was there before it closed."""
    async with site(says(), host) as there:
        result = await measure(there.url())
    assert failure(result) in [("http_closed", "wait", "target"), ("connect_reset", "wait", "target")]
    assert reached(result) == TO_WAIT


# The same, for what takes until the deadline.
SILENCES = {
    "says nothing": (answers(HOLD), ("http_timeout_headers", "wait", "path"), TO_WAIT),
    "does not read": (says(HOLD), ("http_timeout_headers", "wait", "path"), TO_WAIT),
    "half a head": (answers(HEAD[:20], HOLD), ("http_timeout_headers", "receive", "path"), WHOLE),
    "a byte now and then": (answers(slowly(HEAD)), ("http_timeout_headers", "receive", "path"), WHOLE),
    "interim only": (answers(b"HTTP/1.1 100 Go\r\n\r\n", HOLD), ("http_timeout_headers", "receive", "path"), WHOLE),
    "half a body": (answers(HEAD + b"hi", HOLD), ("http_timeout_body", "receive", "path"), WHOLE),
    "a body now and then": (
        answers(ENDLESS, itertools.repeat((b"x", 0.02))),
        ("http_timeout_body", "receive", "path"),
        WHOLE,
    ),
    "a body without end": (answers(ENDLESS, HOLD), ("http_timeout_body", "receive", "path"), WHOLE),
    "no last chunk": (answers(CHUNKED + b"2\r\nhi\r\n", HOLD), ("http_timeout_body", "receive", "path"), WHOLE),
}


async def test_silences(host):
    """What never comes ends at the deadline, with the name of what was waited for."""

    async def seen(behaviour):
        async with site(behaviour, host) as there:
            result = await measure(there.url(), timeout=0.4)
        assert result.duration_ms > 390
        return failure(result), reached(result)

    found = await asyncio.gather(*[seen(behaviour) for behaviour, _, _ in SILENCES.values()])
    assert dict(zip(SILENCES, found, strict=True)) == {case: each[1:] for case, each in SILENCES.items()}


async def test_an_answer_that_came_with_the_connection():
    """What was there before the request was sent took no time, and not less than none."""

    def answer(listening):
        with listening.accept()[0] as connection:
            connection.sendall(OK)
            connection.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        probing = asyncio.create_task(measure(f"http://127.0.0.1:{listening.getsockname()[1]}/"))
        answering = asyncio.get_running_loop().run_in_executor(None, answer, listening)
        await asyncio.sleep(0)
        time.sleep(0.1)  # so that both are seen at once
        result = await probing
        await answering
    assert (result.error, reached(result), result.phases_ms.wait) == (None, WHOLE, 0)


async def test_a_request_that_is_not_taken():
    """A server that stops reading is a time-out of sending."""

    async def never_reads(site, reader, writer):
        writer.transport.pause_reading()
        await asyncio.sleep(10)

    async with site(never_reads) as there:
        result = await measure(there.url(), timeout=0.4, method="POST", body="x" * (32 << 20))
    assert failure(result) == ("http_timeout_send", "send", "path")
    assert reached(result) == ["connect", "send"]


async def test_an_answer_before_the_request_is_all_sent():
    """A server may refuse a large body early: its complete answer is taken."""

    async def refuses(site, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(1)

    async with site(refuses) as there:
        result = await measure(there.url(), method="POST", body="x" * (32 << 20), status=[(413, 413)])
    assert (result.error, reached(result)) == (None, WHOLE)


async def test_early_answer_and_close():
    """The same when the server closes at once, which resets the connection behind the answer."""

    async def refuses(site, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    async with site(refuses) as there:
        result = await measure(there.url(), method="POST", body="x" * (8 << 20), status=[(413, 413)])
    assert (result.error, result.http.status_code) == (None, 413)


async def test_head():
    """HEAD is complete with its headers, whatever length they announce, also when a body comes nevertheless."""
    for behaviour in (answers(HEAD, HOLD), answers(HEAD + b"hello", HOLD)):
        async with site(behaviour) as there:
            result = await measure(there.url(), method="HEAD")
        assert (result.error, result.http.body_bytes) == (None, 0)


async def test_refused(host):
    """Nobody listens: refused, by the target, in connecting."""
    async with site(says(), host) as there:
        pass
    result = await measure(there.url())
    assert failure(result) == ("connect_refused", "connect", "target")
    assert reached(result) == ["connect"]
    assert (result.http, result.peer.address) == (None, host)


async def test_no_answer_to_connecting(host):
    """An address that takes no connections is a time-out of connecting, on the path."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as full:
        full.bind((host, 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [await filler(host, port) for _ in range(3)]
        authority = f"[{host}]" if ":" in host else host
        result = await measure(f"http://{authority}:{port}/", timeout=0.3)
        for each in fillers:
            each.close()
    assert failure(result) == ("connect_timeout", "connect", "path")
    assert reached(result) == ["connect"]


async def filler(host: str, port: int) -> socket.socket:
    """Takes a place in a listener's queue; what does not fit any more is left waiting."""
    taking = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    taking.setblocking(False)
    taking.connect_ex((host, port))
    await asyncio.sleep(0.02)
    return taking


@pytest.mark.parametrize("address", ["10.217.3.1", "fd17:3::1"])
async def test_a_router_says_that_it_is_unreachable(network, address):
    """It is the path's: nobody knows whether the target is well."""
    result = await _of_the_device(network, address)
    assert failure(result) == ("connect_unreachable", "connect", "path")
    assert (reached(result), result.peer.address) == (["connect"], address)


@pytest.mark.parametrize("address", ["10.217.6.1", "fd17:6::1"])
async def test_this_device_has_no_way(network, address):
    """The same error is this device's own when it has no route."""
    assert failure(await _of_the_device(network, address)) == ("local_network", "connect", "local")


async def _of_the_device(network, address):
    with within(network.device):
        return await measure("http://www.example/", timeout=3.0, connect_to=address)


@pytest.mark.parametrize("address", ["255.255.255.255", "0.0.0.0", "::"])
async def test_addresses_that_cannot_be_connected(address):
    """Odd addresses are an error of connecting, never of the prober."""
    result = await measure("http://odd.example/", timeout=0.3, connect_to=address)
    assert result.error.phase == "connect"
    assert result.error.code in ("local_network", "connect_refused", "connect_unreachable", "connect_timeout")


async def test_deadline_passed_before():
    """Without time left there is a result, too, and nobody is connected to."""
    async with site(answers(OK)) as there:
        assert failure(await measure(there.url(), timeout=0.0)) == ("connect_timeout", "connect", "path")
        assert (await measure(there.url())).error is None
    assert there.connections == 1


@pytest.mark.parametrize(
    ("answered", "expected", "up"),
    [
        (200, [(200, 399)], True),
        (399, [(200, 399)], True),
        (404, [(200, 399)], False),
        (404, [(404, 404)], True),
        (200, [(404, 404)], False),
        (503, [(200, 299), (500, 599)], True),
        (999, [(200, 299), (500, 599)], False),
    ],
)
async def test_expected_status(answered, expected, up):
    """Any of the ranges will do, both ends included, and the message names them."""
    async with site(answers(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % answered)) as there:
        result = await measure(there.url(), status=expected)
    assert (result.error is None) == up
    if not up:
        assert f"HTTP {answered}" in result.error.message
    assert result.http.status_code == answered


async def test_expected_statuses_are_told():
    """What was expected is told as it was written."""
    async with site(answers(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")) as there:
        result = await measure(there.url(), status=[(200, 299), (404, 404)])
    assert result.error.message == "HTTP 500, expected 200-299, 404"


async def test_body_limit():
    """A body of the limit's size is fine, one byte more is too large; it is counted, not kept."""
    async with site(answers(ENDLESS + b"x" * 1000)) as there:
        assert (await measure(there.url(), body_limit=1000)).http.body_bytes == 1000
        assert failure(await measure(there.url(), body_limit=999)) == ("body_too_large", "receive", "target")


async def test_bounded_memory():
    """Neither an endless head nor a body of 64 MiB makes the prober large."""
    body = answers(ENDLESS, itertools.repeat(b"x" * (1 << 16), 1024))
    head = answers(b"HTTP/1.1 200 OK\r\nName: ", itertools.repeat(b"x" * (1 << 16), 1024))
    async with site(body) as large, site(head) as endless:
        await measure(endless.url())
        tracemalloc.start()
        try:
            assert (await measure(large.url(), 20.0, body_limit=1 << 30)).http.body_bytes == 64 << 20
            assert failure(await measure(endless.url())) == ("http_protocol", "receive", "target")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 << 20


async def test_connect_to(host):
    """Another address is connected to, without resolving; the name stays in Host."""
    async with site(answers(OK), host) as there:
        result = await measure(there.url(name="nowhere.invalid"), connect_to=host)
    assert (result.error, reached(result), result.peer.address) == (None, WHOLE, host)
    assert b"\r\nHost: nowhere.invalid:" in there.requests[0]


async def test_resolver_of_the_target(host):
    """A name is resolved by the target's own resolver, which the result names; `resolve` is then a phase."""
    names = zone(www__example=[host])
    async with dns_server(names) as dns, site(answers(OK), host) as there:
        result = await measure(there.url(name="www.example"), server=dns)
    assert (result.error, result.resolver, result.peer.address) == (None, "127.0.0.1", host)
    assert reached(result) == ["resolve", *WHOLE]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (zone(), ("dns_nxdomain", "resolve", "target")),
        (zone(www__example=[]), ("dns_no_address", "resolve", "target")),
        (lambda question: [reply(question, rcode=SERVFAIL)], ("dns_servfail", "resolve", "resolver")),
        (lambda question: [], ("dns_timeout", "resolve", "resolver")),
    ],
)
async def test_unresolved(behaviour, expected):
    """A name without an address ends in `resolve`; nothing was tried, so there is no peer."""
    async with dns_server(behaviour) as dns:
        result = await measure("http://www.example/", timeout=0.4, server=dns)
    assert (failure(result), reached(result)) == (expected, ["resolve"])
    assert (result.peer, result.http) == (None, None)


@pytest.mark.parametrize(("ip", "kinds"), [("4", {1}), ("6", {28}), ("auto", {1, 28})])
async def test_ip(ip, kinds):
    """Only the wanted family is asked for, and only it is connected to."""
    async with dns_server(zone(www__example=[])) as dns:
        result = await measure("http://www.example/", ip=ip, server=dns)
    assert {question.kind for question in dns.questions} == kinds
    assert result.error.code == "dns_no_address"


@IPV6
async def test_second_family(tmp_path):
    """With `auto` the other family has its turn when the first is refused; that try is listed, not counted."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 both.example\n::1 both.example\n")
    async with site(answers(OK), "::1") as there:
        result = await measure(there.url(name="both.example"), files=Resolver(hosts, tmp_path / "none"))
    assert (result.error, result.peer.address) == (None, "::1")
    (attempt,) = result.attempts
    assert (attempt.address, attempt.error.code, attempt.error.phase) == ("127.0.0.1", "connect_refused", "connect")
    assert attempt.phases_ms.connect is not None
    assert attempt.phases_ms.send is None
    assert result.duration_ms >= result.phases_ms.connect


@IPV6
async def test_second_family_after_a_black_hole(tmp_path):
    """A family that does not answer has half of the time that is left; then the other one is measured."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 both.example\n::1 both.example\n")
    async with site(answers(OK), "::1") as there:
        with socket.socket() as full:
            full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            full.bind(("127.0.0.1", there.port))
            full.listen(0)
            fillers = [await filler("127.0.0.1", there.port) for _ in range(3)]
            url = there.url(name="both.example")
            result = await measure(url, timeout=1.0, files=Resolver(hosts, tmp_path / "none"))
            for each in fillers:
                each.close()
    assert (result.error, result.peer.address) == (None, "::1")
    (attempt,) = result.attempts
    assert attempt.error.code == "connect_timeout"
    assert 400 < attempt.phases_ms.connect < 800
    assert result.duration_ms > 400


@IPV6
async def test_both_families_fail(tmp_path):
    """The last try is the result, the one before is listed."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 both.example\n::1 both.example\n")
    async with site(says()) as there:
        pass
    result = await measure(there.url(name="both.example"), files=Resolver(hosts, tmp_path / "none"))
    assert failure(result) == ("connect_refused", "connect", "target")
    assert [attempt.address for attempt in result.attempts] + [result.peer.address] == ["127.0.0.1", "::1"]


async def test_many_at_once(host):
    """A slow site does not delay the others."""

    async def slow_for_some(site, reader, writer):
        request = await request_of(reader)
        await asyncio.sleep(0.5 if b"/slow" in request else 0)
        writer.write(OK)

    async with site(slow_for_some, host) as there:
        results = await asyncio.gather(*[measure(there.url("/slow" if n % 2 else "/fast")) for n in range(40)])
    assert all(result.error is None for result in results)
    assert max(result.duration_ms for result in results[::2]) < 400 < min(r.duration_ms for r in results[1::2])


ROOT = Path(__file__).parent.parent.parent
WITHOUT_IPV6 = """
import asyncio, fcntl, pathlib, socket, struct, sys, time
from agent.probers.http import HttpProber
from agent.probers.resolver import Resolver
from tests.probers.http_server import target_of

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    fcntl.ioctl(asking, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP: netdevice(7)

async def probe(name):
    resolver = Resolver(pathlib.Path(sys.argv[1]), pathlib.Path("/none"))
    result = await HttpProber(target_of(f"http://{name}.example:9/"), resolver).probe(time.monotonic() + 5)
    tried = [(each.address, each.error.code) for each in result.attempts]
    print(result.error.code, result.error.attribution, result.peer.address, tried)

asyncio.run(probe("both"))
asyncio.run(probe("six"))
"""


def test_a_family_that_this_device_has_not(tmp_path):
    """On a device without IPv6, what came of IPv4 is the verdict; a site with IPv6 alone could not be judged."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 both.example\n2001:db8::1 both.example six.example\n")
    run = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", WITHOUT_IPV6, str(hosts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if "unshare:" in run.stderr:
        pytest.skip(f"no network namespace of one's own here: {run.stderr.strip()}")
    assert run.stdout.splitlines() == [
        "connect_refused target 127.0.0.1 [('2001:db8::1', 'local_network')]",
        "local_network local 2001:db8::1 []",
    ], run.stderr
