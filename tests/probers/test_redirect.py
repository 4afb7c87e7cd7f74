"""Redirects: where they lead, what goes with them, what does not, and where they end."""

import asyncio
import base64
import time

import msgspec
import pytest

from agent.config.model import Secret
from agent.probers.redirect import LONGEST_LOCATION, destination, method_after, origin
from tests.probers.dns_server import dns_server, zone
from tests.probers.http_server import OK, answers, failure, measure, paths, redirect, site

BASE = "https://shop.example/a/b?c=d"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://other.example/", "https://other.example/"),
        ("HTTPS://Other.Example:8443/A?b=c#fragment", "https://Other.Example:8443/A?b=c"),
        ("//other.example/x", "https://other.example/x"),
        ("/x/../y", "https://shop.example/y"),
        ("x", "https://shop.example/a/x"),
        ("?e=f", "https://shop.example/a/b?e=f"),
        ("", BASE),
        ("#top", BASE),
        ("/with space", "https://shop.example/with%20space"),
        ("/größe", "https://shop.example/gr%C3%B6%C3%9Fe"),
        ("/100%25", "https://shop.example/100%25"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("https://user:pass@other.example/", "https://user:pass@other.example/"),
    ],
)
def test_destination(location, url):
    """A Location is resolved against the URL before and quoted; its fragment is dropped."""
    assert destination(BASE, location.encode()).geturl() == url


@pytest.mark.parametrize(
    ("location", "told"),
    [
        (None, "without a Location"),
        (b"file:///etc/passwd", "neither http nor https"),
        (b"ftp://shop.example/", "neither http nor https"),
        (b"javascript:alert(1)", "neither http nor https"),
        (b"https://", "no URL"),
        (b"https:///x", "no URL"),
        (b"https:x", "no URL"),
        (b"https://a:b/", "no URL"),
        (b"https://a:99999/", "no URL"),
        (b"https://a:0/", "no URL"),
        (b"https://[::1/", "no URL"),
        (b"https://[nonsense]/", "no URL"),
        (b"https://sp ace/", "no URL"),
        ("https://größe.example/".encode(), "no URL"),
        (b"https://[fe80::1%25eth0]/", "no URL"),
        (b"/" + b"x" * LONGEST_LOCATION, "more than 8 KiB"),
    ],
)
def test_no_destination(location, told):
    """What leads nowhere is said without quoting it."""
    with pytest.raises(ValueError, match=told):
        destination(BASE, location)


@pytest.mark.parametrize(
    ("status", "methods"),
    [
        (301, {"GET": "GET", "HEAD": "HEAD", "POST": "GET", "PUT": "PUT"}),
        (302, {"GET": "GET", "HEAD": "HEAD", "POST": "GET", "PUT": "PUT"}),
        (303, {"GET": "GET", "HEAD": "HEAD", "POST": "GET", "PUT": "GET"}),
        (307, {"GET": "GET", "HEAD": "HEAD", "POST": "POST", "PUT": "PUT"}),
        (308, {"GET": "GET", "HEAD": "HEAD", "POST": "POST", "PUT": "PUT"}),
    ],
)
def test_method_after(status, methods):
    """303 makes it a GET, 301 and 302 do so for POST, 307 and 308 never."""
    assert {method: method_after(status, method) for method in methods} == methods


def test_origin():
    """Scheme, host and port are one origin, the default port written or not."""
    same = [destination(BASE, each) for each in (b"https://shop.example/", b"https://SHOP.example:443/x")]
    assert {origin(url) for url in same} == {("https", "shop.example", 443)}
    for other in (b"http://shop.example/", b"https://shop.example:8443/", b"https://www.shop.example/"):
        assert origin(destination(BASE, other)) != origin(same[0])


async def test_followed(host):
    """Each redirect is a hop with its own phases; phases and status are those of the last answer."""
    behaviour = paths(_=redirect("/a", 301), a=redirect("b?c=d", 307), b=OK)
    async with site(behaviour, host) as there:
        result = await measure(there.url())
    assert result.error is None
    assert [(hop.url, hop.status_code) for hop in result.http.hops] == [(there.url(), 301), (there.url("/a"), 307)]
    assert [request.split()[1] for request in there.requests] == [b"/", b"/a", b"/b?c=d"]
    assert (result.http.status_code, result.http.redirects, result.http.body_bytes) == (200, 2, 2)
    every = [*(hop.phases_ms for hop in result.http.hops), result.phases_ms]
    assert result.duration_ms >= sum(phases.connect + phases.wait for phases in every)


@pytest.mark.parametrize("status", [300, 304, 305])
async def test_not_followed(status):
    """Other 3xx answers lead nowhere: they are the answer."""
    async with site(answers(redirect("/a", status))) as there:
        result = await measure(there.url())
    assert (result.error, result.http.status_code, result.http.redirects) == (None, status, 0)


async def test_none_allowed():
    """With `redirects: 0` the redirect is the answer, and has the status that is expected or not."""
    async with site(answers(redirect("/a"))) as there:
        assert (await measure(there.url(), redirects=0)).error is None
        result = await measure(there.url(), redirects=0, status=[(200, 299)])
    assert (failure(result), result.http.status_code) == (("status_mismatch", "receive", "target"), 302)
    assert there.connections == 2


@pytest.mark.parametrize("allowed", [1, 3])
async def test_too_many(allowed):
    """One redirect more than allowed is a redirect_loop; those that were followed are hops."""

    async def onward(site, reader, writer):
        number = int((await reader.readuntil(b"\r\n\r\n")).split()[1][1:] or 0)
        writer.write(redirect(f"/{number + 1}"))

    async with site(onward) as there:
        result = await measure(there.url(), redirects=allowed)
    assert failure(result) == ("redirect_loop", "receive", "target")
    assert (result.http.redirects, len(result.http.hops), there.connections) == (allowed, allowed, allowed + 1)
    assert f"more than {allowed} redirects" in result.error.message


async def test_as_many_as_allowed():
    """Exactly the allowed number is followed."""
    async with site(paths(_=redirect("/a"), a=redirect("/b"), b=OK)) as there:
        assert (await measure(there.url(), redirects=2)).error is None
        assert failure(await measure(there.url(), redirects=1)) == ("redirect_loop", "receive", "target")


@pytest.mark.parametrize("behaviour", [answers(redirect("")), paths(_=redirect("/a"), a=redirect("/"))])
async def test_circles(behaviour):
    """A redirect to itself, directly or around, ends before it is followed twice."""
    async with site(behaviour) as there:
        result = await measure(there.url())
    assert failure(result) == ("redirect_loop", "receive", "target")
    assert there.connections <= 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        redirect("file:///etc/passwd"),
        redirect("https://[::1/"),
        redirect("/" + "x" * 9000),
    ],
)
async def test_refused(answer):
    """A redirect to nothing, or to what is not measured, is refused and not followed."""
    async with site(answers(answer)) as there:
        result = await measure(there.url())
    assert failure(result) == ("redirect_refused", "receive", "target")
    assert (result.http.status_code, result.http.redirects, there.connections) == (302, 0, 1)


async def test_onto_a_closed_port(host):
    """The last hop's failure is the result's; the hop before is told."""
    async with site(answers(), host) as closed:
        pass
    async with site(answers(redirect(closed.url())), host) as there:
        result = await measure(there.url())
    assert failure(result) == ("connect_refused", "connect", "target")
    assert (result.peer.port, result.http.status_code, len(result.http.hops)) == (closed.port, None, 1)


async def test_onto_a_name_that_does_not_exist():
    """So is one that cannot be resolved."""
    async with site(answers(redirect("http://a..b/"))) as there:
        result = await measure(there.url())
    assert failure(result) == ("dns_nxdomain", "resolve", "target")
    assert (result.http.status_code, result.http.redirects, result.peer) == (None, 1, None)


async def test_the_deadline_is_for_all():
    """A chain of slow redirects has one deadline."""

    async def onward(site, reader, writer):
        number = int((await reader.readuntil(b"\r\n\r\n")).split()[1][1:] or 0)
        await asyncio.sleep(0.15)
        writer.write(redirect(f"/{number + 1}"))

    async with site(onward) as there:
        result = await measure(there.url(), timeout=0.4)
    assert failure(result) == ("http_timeout_headers", "wait", "path")
    assert 380 < result.duration_ms < 700
    assert len(result.http.hops) == 2


async def test_no_hop_is_begun_after_the_deadline():
    """A redirect that is seen only after the deadline is not followed, however quickly all would answer."""

    async def onward(site, reader, writer):
        time.sleep(0.4)  # the whole loop stands still, and with it who measures
        writer.write(redirect("/again"))

    async with site(onward) as there:
        result = await measure(there.url(), timeout=0.3)
        assert result.error.code in ("connect_timeout", "http_timeout_headers")
    assert there.connections == 1


CREDENTIALS = {
    "headers": {
        "Authorization": "Bearer abcdef",
        "cookie": "sid=abcdef",
        "X-Key": Secret("topsecret"),
        "X-Plain": "plain",
        "Host": "own.example",
    }
}


async def test_credentials_stay_with_their_origin():
    """Authorization, Cookie, Host and every secret header are sent to the target's own origin only."""
    async with site(answers(OK)) as other, site(paths(_=redirect("/own"), own=redirect(other.url()))) as own:
        result = await measure(own.url(), **CREDENTIALS)
    assert result.error is None
    for request in own.requests:
        for text in (b"Bearer abcdef", b"sid=abcdef", b"topsecret", b"X-Plain: plain", b"Host: own.example"):
            assert text in request
    (request,) = other.requests
    assert b"X-Plain: plain" in request
    assert f"Host: 127.0.0.1:{other.port}".encode() in request
    for text in (b"abcdef", b"topsecret", b"Authorization", b"cookie", b"own.example"):
        assert text not in request


async def test_basic_auth_stays_with_its_origin():
    """So are user and password; the origin gets them back when a redirect returns to it."""
    async with site(lambda *each: behaviour(*each)) as other, site(paths(_=redirect(other.url()), back=OK)) as own:
        behaviour = answers(redirect(own.url("/back")))
        result = await measure(own.url(), basic_auth=("user", Secret("password")))
    assert result.error is None
    pair = base64.b64encode(b"user:password")
    assert [pair in request for request in own.requests] == [True, True]
    assert b"Authorization" not in other.requests[0]


async def test_connect_to_is_for_its_origin():
    """`connect_to` holds for the target's origin; another host of a redirect is reached by its own address."""
    async with site(answers(OK), "127.0.0.1") as other, site(answers(redirect(other.url()))) as own:
        result = await measure(own.url(name="nowhere.invalid"), connect_to="127.0.0.1")
    assert (result.error, result.peer.port, result.phases_ms.resolve) == (None, other.port, None)


@pytest.mark.parametrize(
    ("status", "method", "body"), [(307, b"POST", b"text"), (308, b"POST", b"text"), (303, b"GET", b"")]
)
async def test_a_body_goes_with_its_method(status, method, body):
    """307 and 308 send the body again, also to another origin; after 303 neither it nor what describes it is sent."""
    async with site(answers(OK)) as other, site(answers(redirect(other.url(), status))) as own:
        result = await measure(own.url(), method="POST", body="text", headers={"Content-Type": "a/b"})
    assert result.error is None
    assert other.requests[0].startswith(method + b" / ")
    assert other.requests[0].partition(b"\r\n\r\n")[2] == body
    assert (b"Content-" in other.requests[0]) == bool(body)


async def test_a_secret_body_stays_with_its_origin():
    """A body that is a secret is not sent to another origin; as a request without it is another one, that ends it."""
    async with (
        site(answers(OK)) as other,
        site(paths(_=redirect("/next", 307), next=redirect(other.url(), 307))) as own,
    ):
        result = await measure(own.url(), method="POST", body=Secret("topsecret"))
    assert failure(result) == ("redirect_refused", "receive", "target")
    assert [b"topsecret" in request for request in own.requests] == [True, True]
    assert other.connections == 0


SECRET = "s/e+c r&t?\"'é"


@pytest.mark.parametrize(
    "location",
    [
        "/?q={}",
        "/{}",
        "/?token={}",
        "http://127.0.0.1:9/{}",
        "file:///{}",
        "http://{}/",
        "/%73%2Fe%2bc%20r%26t%3F%22%27%c3%a9",
        "/?a=s%2fe%2bc+r%26t%3f%22%27%C3%A9",
        "/plainsecret",
        "http://plainsecret.invalid/",
        "http://user:plainsecret@127.0.0.1:9/",
        "/dXNlcjpwbGFpbnNlY3JldA==",
    ],
)
async def test_secrets_are_not_shown(location):
    """A server that sends a secret back, in whatever quoting, does not get it into hops or messages."""
    headers = {"X-Key": Secret(SECRET)}
    auth = ("user", Secret("plainsecret"))
    async with dns_server(zone()) as dns, site(answers(redirect(location.format(SECRET)))) as there:
        result = await measure(there.url(), redirects=3, headers=headers, basic_auth=auth, timeout=1.0, server=dns)
    shown = repr(result)
    assert result.error is not None
    assert result.http.status_code == 302 or [hop.url for hop in result.http.hops] == [there.url()]
    for text in (SECRET, "s/e", "s%2", "plainsecret", "dXNlcjpwbGFpbnNlY3JldA"):
        assert text not in shown


async def test_a_secret_url_is_not_shown():
    """Nothing of a URL that is a secret is shown: not as a hop, not in a message, nor its name."""
    async with site(answers(redirect("/path/next"))) as there:
        url = Secret(there.url("/path/key", name="hidden.localhost"))
        result = await measure(url, shown_url="***")
    assert failure(result) == ("redirect_loop", "receive", "target")
    assert [hop.url for hop in result.http.hops] == ["***"] * len(result.http.hops)
    for text in ("hidden", "path", "next", "key"):
        assert text not in repr(result)
    unknown = await measure(Secret("http://hid..den/path"), shown_url="***")
    assert unknown.error.code == "dns_nxdomain"
    assert "hid" not in repr(unknown)


async def test_a_url_with_a_secret_in_its_query_is_shown_without_it():
    """Of `?token=…` only the value is hidden: the site and the path of each hop are still told."""
    async with site(answers(redirect("/next?token=topsecret"))) as there:
        url = Secret(there.url("/first?token=topsecret"))
        result = await measure(url, shown_url=there.url("/first?token=***"), redirects=1)
    assert failure(result) == ("redirect_loop", "receive", "target")
    assert [hop.url for hop in result.http.hops] == [there.url("/first?token=***")]
    assert there.url("/next?token=***") in result.error.message


async def test_long_redirects_do_not_make_the_record_too_large():
    """A server that redirects on to ever other long URLs gets a result of a size that Kafka takes."""
    number = iter(range(1000))

    async def onward(there, reader, writer):
        await answers(redirect(f"/{next(number)}/" + "\N{SNOWMAN}" * 2_600))(there, reader, writer)

    async with site(onward) as there:
        result = await measure(there.url(), redirects=100)
    assert result.error.code == "redirect_loop"
    assert len(msgspec.json.encode(result)) < 500_000
