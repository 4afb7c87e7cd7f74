"""HTTP/1.1 answers of every form, cut, mistyped and split: what is whole is taken, what is not never is."""

import itertools
import time
import tracemalloc
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.probers.http1 import MAX_HEADERS, Response
from tests.fuzz import examples
from tests.probers.test_http1 import ENDLESS, outcome

LIMIT = 1000
MOST_HELD = 512 << 10  # bytes: headers, a line that is not understood yet, and a piece of 64 KiB, some of it twice
CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


class Answer(NamedTuple):
    """A good answer. `ends`: it says itself where; else `head` bytes of it are enough, whatever follows."""

    data: bytes
    status: int
    body: int
    ends: bool
    head: int


def read(data: bytes, cuts=(1 << 16,), *, method: str = "GET", eof: bool = False) -> Response:
    """The response after these bytes, in pieces of these sizes."""
    response, at = Response(method, LIMIT), 0
    for size in itertools.cycle(cuts):
        if at >= len(data) or response.complete or response.failure is not None:
            break
        response.feed(data[at : at + size])
        at += size
    if eof and not response.complete and response.failure is None:
        response.feed_eof()
    response.release()
    return response


def facts(response: Response) -> tuple:
    """What is told of it. Of a body that is too large as much was counted as came; a failure leads nowhere, whether its
    last line had come in one piece or not.
    """
    failure = response.failure.code if response.failure is not None else None
    counted = None if failure == "body_too_large" else response.body_bytes
    location = None if failure else response.location
    return outcome(response), failure, response.status_code, response.version, location, counted


TOKEN = st.text("abcXYZ-_.!#09", min_size=1, max_size=12).map(str.encode)
TEXT = st.binary(max_size=20).map(lambda each: bytes(byte for byte in each if byte in range(33, 127)))
OTHERS = st.lists(st.tuples(TOKEN.map(b"x-".__add__), TEXT), max_size=4)

INTERIM = st.sampled_from([b"", b"Link: x\n", b"Content-Length: 7\r\n"])


@st.composite
def answers(draw) -> Answer:
    """Answers as servers may send them."""
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    first = b"HTTP/1.1 10%d Go on" + end
    interim = b"".join(
        first % draw(st.sampled_from([0, 2, 3])) + draw(INTERIM) + end for _ in range(draw(st.integers(0, 2)))
    )
    status = draw(st.sampled_from([200, 200, 200, 302, 404, 500, 999, 204, 304]))
    body = draw(st.binary(max_size=80))
    lines = [name + b":" + draw(st.sampled_from([b"", b" ", b"\t"])) + value for name, value in draw(OTHERS)]
    form = draw(st.sampled_from(["length", "chunks", "end"]))
    if status in (204, 304):
        form, body = "none", b""
    if form == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif form == "chunks":
        lines.append(draw(st.sampled_from([b"Transfer-Encoding: chunked", b"transfer-encoding:gzip , Chunked"])))
    lines = [b"HTTP/1.1 %d " % status + draw(TEXT), *draw(st.permutations(lines))]
    head = interim + end.join(lines) + end + end
    return Answer(
        head + (_chunks(draw, body) if form == "chunks" else body), status, len(body), form != "end", len(head)
    )


def _chunks(draw, body: bytes) -> bytes:
    made, at = b"", 0
    while at < len(body):
        size = draw(st.integers(1, 40))
        piece = body[at : at + size]
        made += b"%x%b\r\n%b\r\n" % (len(piece), draw(st.sampled_from([b"", b";a=b", b";q", b"  "])), piece)
        at += size
    trailers = b"".join(b"%b: %b\r\n" % each for each in draw(OTHERS))
    return made + b"0\r\n" + trailers + b"\r\n"


@examples()
@given(answers(), CUTS, st.binary(max_size=60))
def test_good_answers_are_taken(answer, cuts, more):
    """In pieces of any size, and with anything behind it where it says itself where it ends."""
    data = answer.data + (more if answer.ends else b"")
    response = read(data, cuts, eof=not answer.ends)
    assert facts(response)[:3] == ("complete", None, answer.status)
    assert response.body_bytes == answer.body


@examples()
@given(answers(), CUTS, st.data())
def test_what_is_cut_is_not_whole(answer, cuts, data):
    """An answer that ends too early is told from a whole one at every byte of it."""
    length = data.draw(st.integers(0, len(answer.data) - 1))
    response = read(answer.data[:length], cuts, eof=True)
    whole = not answer.ends and length >= answer.head
    bodiless = answer.status in (204, 304) and length >= answer.head
    assert outcome(response) == ("complete" if whole or bodiless else "http_truncated" if length else "http_closed"), (
        response.failure
    )


PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b":", b" ", b"\t", b"\0", b"0", b"5", b"ffffffffffffffff", b";"]
    ),
    st.sampled_from(
        [b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Go on\r\n\r\n", b"101", b"Connection: close\r\n"]
    ),
    st.sampled_from(
        [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Location: /\r\n", b"Upgrade: h2\r\n"]
    ),
    st.sampled_from([b"a: b\r\n" * (MAX_HEADERS + 1), b"Transfer-Encoding: gzip\r\n", b"Connection: upgrade\r\n"]),
)


@st.composite
def mistyped(draw) -> bytes:
    """A good answer with something cut out or put in, here and there; or nothing but pieces of one."""
    data = draw(st.one_of(answers().map(lambda each: each.data), st.lists(PIECES, max_size=8).map(b"".join)))
    for at, length, piece in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9), PIECES), max_size=4)):
        at %= len(data) + 1
        data = data[:at] + piece + data[at + length :]
    return data


@examples(400)
@given(mistyped(), CUTS, st.sampled_from(["GET", "HEAD"]), st.booleans())
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", [1], "GET", True)
def test_any_split_says_the_same(data, cuts, method, eof):
    """The same bytes come to the same, in one piece or in many; the end settles what was open."""
    whole = read(data, method=method, eof=eof)
    assert facts(read(data, cuts, method=method, eof=eof)) == facts(whole)
    if eof:
        assert outcome(whole) in ("complete", "http_protocol", "body_too_large", "http_closed", "http_truncated")
    if outcome(whole) == "complete":
        assert whole.version in ("1.0", "1.1")
        assert 101 <= whole.status_code <= 999


@examples()
@given(st.text(' \t,;chunkedgzip="', max_size=12), st.sampled_from(["chunked", "gzip, chunked", "chunked, gzip", ""]))
@example("\t", "chunked")
@example(",", "chunked")
def test_it_is_known_whether_there_are_chunks(more, coding):
    """An end of the stream is the end of an answer, unless the parser waits for more chunks."""
    for value in (coding + more, more + coding):
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n" % value.encode()
        whole = read(data + b"1\r\na\r\n0\r\n\r\n", eof=True)
        if outcome(whole) == "http_protocol":
            continue
        assert outcome(whole) == "complete"
        counted = whole.body_bytes == 1  # and not all the bytes that came
        assert outcome(read(data + b"1\r\na\r\n", eof=True)) == ("http_truncated" if counted else "complete")


@pytest.mark.parametrize("size", [1 << 16, 1 << 10])
@pytest.mark.parametrize("case", [*ENDLESS, "body", "chunks"])
def test_memory_is_bounded(case, size):
    """Of 3 MiB of anything 512 KiB are held at most, in pieces as large as a wire reads."""
    start, more = {
        "body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000),
        "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"),
        **ENDLESS,
    }[case]
    pieces = [start, *[more * (size // len(more) + 1)] * (3 << 20 // size)]
    tracemalloc.start()
    try:
        response = Response("GET", 1 << 30)
        for piece in pieces:
            if response.failure is None:
                response.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_HELD


def test_byte_by_byte():
    """A header of 60 KiB that comes byte by byte is no work to speak of."""
    data = b"HTTP/1.1 200 OK\r\nName: " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n"
    begun = time.monotonic()
    assert outcome(read(data, [1])) == "complete"
    assert time.monotonic() - begun < 10
