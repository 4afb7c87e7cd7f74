"""Redirects to anywhere: what is followed is a URL that can be asked for, in one request and no more than it."""

import string
from urllib.parse import SplitResult, urlsplit

from hypothesis import example, given
from hypothesis import strategies as st

from agent.config.model import Target
from agent.probers.http import HttpProber
from agent.probers.redirect import LONGEST_LOCATION, PORTS, destination, origin
from agent.probers.resolver import Resolver
from tests.fuzz import examples

BASES = st.sampled_from(
    ["http://a.example/", "https://a.example:8443/b/c?d=e", "http://[2001:db8::1]:81", "http://192.0.2.1/x"]
)
PROBER = HttpProber(Target("t", "http://a.example/", "http://a.example/", 30.0, 10.0, redirects=5), Resolver())
PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"http:", b"https://", b"//", b"/", b"..", b"?", b"#", b"@", b":", b"%", b"%2f", b"%00", b"[", b"]"]
    ),
    st.sampled_from(
        [b"\r\n", b"\t", b"\0", b" ", b"\\", b"\xe2\x84\x80", b"\xc3\xa9", b"file:", b"javascript:", b"data:"]
    ),
    st.sampled_from(
        [b"b.example", b"[::1]", b"[v1.x]", b"[::1%25lo]", b"a" * 70, b":0", b":80", b":65536", b":-1", b":\xd9\xa1"]
    ),
)
REFUSED = {"with a Location that is no URL", "to what is neither http nor https"}
LOCATIONS = st.one_of(st.lists(PIECES, max_size=10).map(b"".join), st.binary(max_size=60))


def followed(base: str, location: bytes) -> SplitResult | str:
    """Where it leads, or why it does not."""
    try:
        return destination(base, location)
    except ValueError as error:
        return str(error)


@examples(600)
@given(BASES, LOCATIONS)
@example("http://a.example/", b"//[")
@example("http://a.example/", b"http://b.example:\xd9\xa1/")
def test_any_location(base, location):
    """It leads to an http or https URL of printable ASCII, or it is refused in words without a byte of it."""
    url = followed(base, location)
    if isinstance(url, str):
        assert url in REFUSED
        return
    text = url.geturl()
    assert set(text) <= set(string.printable) - set(string.whitespace)
    assert url.scheme in PORTS
    assert url.hostname
    assert url.fragment == ""
    assert 1 <= origin(url)[2] <= 65_535
    assert origin(urlsplit(text)) == origin(url)
    assert destination(base, text.encode()) == url
    request = PROBER._request("GET", url, with_body=False)
    line, *headers = request.data.split(b"\r\n")
    assert len(line.split(b" ")) == 3
    assert line.startswith(b"GET /")
    assert [each.partition(b":")[0] for each in headers] == [b"Host", b"User-Agent", b"Accept", b"Connection", b"", b""]
    host = headers[0].decode().removeprefix("Host: ")
    assert urlsplit(f"//{host}").hostname == url.hostname
    assert (urlsplit(f"//{host}").port or PORTS[url.scheme]) == origin(url)[2]
    assert len(text) <= 3 * LONGEST_LOCATION + len(base)


@examples()
@given(BASES, st.integers(1, 3), st.binary(min_size=1, max_size=3))
def test_long_locations(base, more, piece):
    """Beyond 8 KiB it is refused; up to there it is not, for its length."""
    fits = (b"/" + piece * LONGEST_LOCATION)[:LONGEST_LOCATION]
    for location in (fits, fits + piece * more):
        found = followed(base, location)
        assert (found == "with a Location of more than 8 KiB") == (len(location) > LONGEST_LOCATION)
