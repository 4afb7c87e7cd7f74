"""The HTTP/1.1 codec: what is an answer, where it ends, and that no bytes can harm it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.probers.http1 import MAX_HEADERS, MAX_INTERIM, Response

LIMIT = 1000


def read(data: bytes, *, method: str = "GET", size: int = 1 << 16, eof: bool = False) -> Response:
    """The response after these bytes, `size` of them at a time."""
    response = Response(method, LIMIT)
    for at in range(0, len(data), size):
        if response.complete or response.failure is not None:
            break
        response.feed(data[at : at + size])
    if eof and not response.complete and response.failure is None:
        response.feed_eof()
    response.release()
    return response


def outcome(response: Response) -> str:
    assert not (response.complete and response.failure)
    return "complete" if response.complete else response.failure.code if response.failure else "open"


CASES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "complete", 2),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", "complete", 2),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "complete", 2),
    "LF": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "complete", 2),
    "padded chunk size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2   \r\nhi\r\n0\r\n\r\n",
        "complete",
        2,
    ),
    "empty header": (b"HTTP/1.1 200 OK\r\nEmpty:\r\nContent-Length: 2\r\n\r\nhi", "complete", 2),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        "complete",
        13,
    ),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nExpires: 7\r\nB: c\r\n\r\n",
        "complete",
        1,
    ),
    "bytes after": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more", "complete", 2),
    "another after": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 500 No\r\n\r\n", "complete", 2),
    "204 with a body": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", "complete", 0),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "complete", 0),
    "101": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbytes", "complete", 0),
    "101 without Upgrade": (b"HTTP/1.1 101 Switching\r\n\r\nbytes", "complete", 0),
    "100 before": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "complete", 2),
    "103 with a length": (
        b"HTTP/1.1 103 Early\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "complete",
        2,
    ),
    "to the end": (b"HTTP/1.1 200 OK\r\n\r\nhello", "complete", 5),
    "coded to the end": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", "complete", 5),
    "nothing": (b"", "http_closed", 0),
    "half a status line": (b"HTTP/1.1 20", "http_truncated", 0),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", "http_truncated", 0),
    "only 100": (b"HTTP/1.1 100 Continue\r\n\r\n", "http_truncated", 0),
    "short body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "http_truncated", 5),
    "no last chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "http_truncated", 5),
    "no end of trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n", "http_truncated", 0),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "http_protocol", 0),
    "HTML alone": (b"<html>HTTP/0.9 was like this</html>", "http_protocol", 0),
    "HTTP/0.9": (b"HTTP/0.9 200 OK\r\n\r\n", "http_protocol", 0),
    "HTTP/1.2": (b"HTTP/1.2 200 OK\r\n\r\n", "http_protocol", 0),
    "HTTP/2.0": (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "http_protocol", 0),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http_protocol", 0),
    "HTTP/2 frame": (b"\0\0\x12\x04\0\0\0\0\0\0\3\0\0\0\x64", "http_protocol", 0),
    "TLS alert": (b"\x15\x03\x01\0\2\2\x46", "http_protocol", 0),
    "status 99": (b"HTTP/1.1 099 Odd\r\n\r\n", "http_protocol", 0),
    "status 1000": (b"HTTP/1.1 1000 Odd\r\n\r\n", "http_protocol", 0),
    "no colon": (b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n", "http_protocol", 0),
    "negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "http_protocol", 0),
    "lengths differ": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", "http_protocol", 0),
    "length twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", "http_protocol", 0),
    "huge length": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", "http_protocol", 0),
    "length and chunked": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "http_protocol",
        0,
    ),
    "chunked and length": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        "http_protocol",
        0,
    ),
    "bad chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "http_protocol", 0),
    "huge chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 17, "http_protocol", 0),
    "long chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhixx0\r\n\r\n", "http_protocol", 2),
}


@pytest.mark.parametrize("size", [1, 3, 1 << 16])
@pytest.mark.parametrize("case", CASES)
def test_answers(case, size):
    """An answer has one outcome and one count of its body, however it is cut in pieces."""
    data, expected, body_bytes = CASES[case]
    response = read(data, size=size, eof=True)
    assert (outcome(response), response.body_bytes) == (expected, body_bytes)


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_head_is_complete_with_its_headers(data):
    """The answer to HEAD has no body, whatever its headers say, and a body that comes nevertheless is ignored."""
    assert outcome(read(data, method="HEAD")) == "complete"
    response = read(data + b"hello", method="HEAD")
    assert (outcome(response), response.body_bytes) == ("complete", 0)


def test_facts():
    """Status, version and Location are those of the final answer, not of an interim one."""
    response = read(
        b"HTTP/1.1 103 Early\r\nLocation: /no\r\n\r\n"
        b"HTTP/1.0 302 Found\r\nEmpty:\r\nLoCation: /yes \r\nLocation: /second\r\nContent-Length: 0\r\n\r\n"
        b"HTTP/1.1 500 Late\r\nLocation: /late\r\n\r\n"
    )
    assert (response.status_code, response.version, response.location) == (302, "1.0", b"/yes")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1001 + b"0\r\n\r\n",
    ],
)
def test_body_limit(data):
    """One byte more than the limit is too large; the limit itself is not."""
    assert outcome(read(data)) == "body_too_large"
    fits = Response("GET", 1001)
    fits.feed(data)
    fits.feed_eof()
    assert (outcome(fits), fits.body_bytes) == ("complete", 1001)


ENDLESS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"Some-Name: value\r\n"),
    "short headers": (b"HTTP/1.1 200 OK\r\n", b"a:\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nName: ", b"x" * 1000),
    "one name": (b"HTTP/1.1 200 OK\r\n", b"x" * 1000),
    "reason": (b"HTTP/1.1 200 ", b"x" * 1000),
    "empty lines": (b"", b"\r\n" * 500),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "interim answers with headers": (b"", b"HTTP/1.1 103 Early\r\nLink: " + b"x" * 2000 + b"\r\n\r\n"),
    "chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 1000),
    "chunk extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"x" * 1000),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"Name: value\r\n"),
    "trailer": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nName:", b"x" * 1000),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_is_cut(case):
    """Whatever goes on for ever is given up within 130 KiB."""
    start, more = ENDLESS[case]
    response = Response("GET", 1 << 30)
    read_bytes = 0
    for piece in itertools.chain([start], itertools.repeat(more, 200_000 // len(more))):
        response.feed(piece)
        read_bytes += len(piece)
        if response.failure is not None:
            break
    assert outcome(response) == "http_protocol"
    assert read_bytes < 130 << 10


def test_as_much_as_is_allowed():
    """256 headers and 16 interim answers are fine."""
    head = b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (MAX_HEADERS - 1) + b"Content-Length: 0\r\n\r\n"
    assert outcome(read(head)) == "complete"
    assert outcome(read(b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_INTERIM + head)) == "complete"


def test_one_large_piece():
    """A head and a body that come in one read are no line that is too long."""
    response = Response("GET", 1 << 20)
    response.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000)
    assert outcome(response) == "complete"


PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([data for data, _, _ in CASES.values()]),
    st.sampled_from([b"\r\n", b"HTTP/1.1 200 OK\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"]),
)


@given(st.lists(PIECES, max_size=8), st.sampled_from(["GET", "HEAD"]), st.integers(1, 40))
def test_no_bytes_can_harm(pieces, method, size):
    """Any bytes end in exactly one of: complete, one named failure, or more to come; and the end settles it."""
    response = read(b"".join(pieces), method=method, size=size)
    assert outcome(response) in ("complete", "open", "http_protocol", "body_too_large")
    assert response.body_bytes <= LIMIT + size
    settled = read(b"".join(pieces), method=method, size=size, eof=True)
    assert outcome(settled) in ("complete", "http_protocol", "body_too_large", "http_closed", "http_truncated")


@given(st.sampled_from(list(CASES)), st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_any_split_says_the_same(case, sizes):
    """The outcome does not depend on where the network cuts."""
    data, expected, body_bytes = CASES[case]
    response, at = Response("GET", LIMIT), 0
    for size in itertools.cycle(sizes):
        if at >= len(data) or response.complete or response.failure:
            break
        response.feed(data[at : at + size])
        at += size
    if not response.complete and response.failure is None:
        response.feed_eof()
    response.release()
    assert (outcome(response), response.body_bytes) == (expected, body_bytes)
