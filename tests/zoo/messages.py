"""Servers whose answers are no HTTP/1.1, or nearly so, or such as are seldom seen: the head, and where a body ends.

What is easy to disagree on follows browsers and RFC 9112.
"""

import itertools

from tests.probers.http_server import HOLD, OK, answers, says
from tests.zoo.behaviour import Fails, Up, http

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NO_HTTP = Fails("http_protocol", "target", "receive")
CUT = Fails("http_truncated", "target", "receive")
MISMATCH = Fails("status_mismatch", "target", "receive")
HEAD_WITHOUT_END = Fails("http_timeout_headers", "path", "receive")
BODY_WITHOUT_END = Fails("http_timeout_body", "path", "receive")


def length(*values: bytes, body: bytes = b"hello") -> bytes:
    return HEAD + b"".join(b"Content-Length: " + value + b"\r\n" for value in values) + b"\r\n" + body


def header(line: bytes) -> bytes:
    return HEAD + line + b"\r\nContent-Length: 2\r\n\r\nhi"


FIRST_LINES = [
    http("speaks SMTP", says(b"220 mail.example ESMTP\r\n", HOLD), NO_HTTP),
    http("speaks SSH", says(b"SSH-2.0-OpenSSH_9.6\r\n", HOLD), NO_HTTP),
    http("speaks HTTP/0.9", answers(b"<html></html>"), NO_HTTP),
    http("speaks HTTP/2 at once", says(b"\0\0\0\4\0\0\0\0\0", HOLD), NO_HTTP),
    http("says the preface of HTTP/2", answers(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HOLD), NO_HTTP),
    http("speaks TLS on a plain port", answers(b"\x15\x03\x01\0\2\2\x46"), NO_HTTP),
    http("says nonsense", answers(bytes(range(128, 256)) * 100, HOLD), NO_HTTP),
    http("says nothing but line ends", answers(itertools.repeat(b"\r\n" * 5_000)), NO_HTTP),
    http("has a status line without end", answers(HEAD[:-2] + b"K" * (1 << 20), HOLD), NO_HTTP),
    http("has a status line of HTTP/2.0", answers(b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    http("has a status line in lower case", answers(b"http/1.1 200 ok\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    http("has a status of two digits", answers(b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    http("has a status of four digits", answers(b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    http("has a status below 100", answers(b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"), NO_HTTP),
    http("has a status without reason", answers(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi"), Up()),
    http("speaks HTTP/1.0", answers(b"HTTP/1.0 200 OK\r\n\r\nhello"), Up(), also={"http.version": "1.0"}),
    http("has an empty line before its answer", answers(b"\r\n" + OK), Up()),
    http("has status 500", answers(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"), MISMATCH),
    http("has status 999", answers(b"HTTP/1.1 999 Hm\r\nContent-Length: 0\r\n\r\n"), MISMATCH),
    http(
        "has the status 404 that is expected",
        answers(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n"),
        Up(),
        expect={"status": [[404, 404]]},
    ),
]

INTERIM = [
    http("says 100 and 103 first", answers(b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", OK), Up()),
    http("says 100 for ever", answers(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")), NO_HTTP),
    http("says 100 and no more", answers(b"HTTP/1.1 100 Continue\r\n\r\n", HOLD), HEAD_WITHOUT_END),
    http("says 100 and closes", answers(b"HTTP/1.1 100 Continue\r\n\r\n"), CUT),
    http("switches protocols unasked", answers(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", HOLD), MISMATCH),
]

HEADERS = [
    http("ends lines with LF alone", answers(OK.replace(b"\r\n", b"\n")), Up()),
    http("ends lines with CR alone", answers(OK.replace(b"\r\n", b"\r"), HOLD), NO_HTTP),
    http("has headers without end", answers(HEAD, itertools.repeat(b"Name: x\r\n" * 100)), NO_HTTP),
    http("has a header line of 1 MB", answers(header(b"Name: " + b"x" * (1 << 20))), NO_HTTP),
    http("has a header name of 1 MB", answers(header(b"x" * (1 << 20) + b": x")), NO_HTTP),
    http("has 100,000 headers", answers(HEAD + b"Name: x\r\n" * 100_000 + b"\r\n"), NO_HTTP),
    http("has a header of 60 KB", answers(header(b"Name: " + b"x" * 60_000)), Up()),
    # llhttp's own rule; browsers take it for a space.
    http("folds a header", answers(header(b"Name: a\r\n b")), NO_HTTP),
    http("has NUL in a header", answers(header(b"Name: a\0b")), NO_HTTP),
    http("has a space before a colon", answers(header(b"Name : a")), NO_HTTP),
    http("has a header without a colon", answers(header(b"Name")), NO_HTTP),
    http("has a header without a name", answers(header(b": a")), NO_HTTP),
    http("has a header in Latin-1 and UTF-8", answers(header("Name: é".encode() + b"\xe9")), Up()),
    http("has an empty header", answers(header(b"Name:")), Up()),
]

LENGTHS = [
    http("ends before its length", answers(length(b"6")), CUT),
    http("goes on after its length", answers(length(b"2")), Up(), also={"http.body_bytes": 2}),
    http("has another answer after its answer", answers(OK + b"HTTP/1.1 500 Oops\r\n\r\n"), Up()),
    http("has a negative length", answers(length(b"-1")), NO_HTTP),
    http("has a length that is no number", answers(length(b"five")), NO_HTTP),
    http("has a length in hexadecimal", answers(length(b"0x5")), NO_HTTP),
    http("has a length with a sign", answers(length(b"+5")), NO_HTTP),
    http("has an empty length", answers(length(b"")), NO_HTTP),
    http("has a length of 19 digits", answers(length(b"9" * 19), HOLD), BODY_WITHOUT_END),
    http("has a length of 30 digits", answers(length(b"9" * 30), HOLD), NO_HTTP),
    # llhttp's own rule; browsers accept it, and this does not, as README says.
    http("has the same length twice", answers(length(b"5", b"5")), NO_HTTP),
    http("has the same length twice in a line", answers(length(b"5, 5")), NO_HTTP),
    http("has two lengths", answers(length(b"5", b"6")), NO_HTTP),
    http("has a length and chunks", answers(length(b"5", body=b"").replace(b"\r\n\r\n", CHUNKED[15:])), NO_HTTP),
    http("has neither length nor chunks", answers(HEAD + b"\r\nhello"), Up(), also={"http.body_bytes": 5}),
]

CHUNKS = [
    http(
        "has chunks", answers(CHUNKED + b"2\r\nhi\r\nA\r\n0123456789\r\n0\r\n\r\n"), Up(), also={"http.body_bytes": 12}
    ),
    http("has trailers", answers(CHUNKED + b"2\r\nhi\r\n0\r\nName: x\r\n\r\n"), Up()),
    http("has trailers without end", answers(CHUNKED + b"0\r\n", itertools.repeat(b"Name: x\r\n" * 100)), NO_HTTP),
    http("has a chunk's extension", answers(CHUNKED + b'2;a=b;c="d"\r\nhi\r\n0\r\n\r\n'), Up()),
    http("has a chunk's extension without end", answers(CHUNKED + b"2;", itertools.repeat(b"x" * 10_000)), NO_HTTP),
    http(
        "has extensions of every chunk for ever",
        answers(CHUNKED, itertools.repeat((b"1;" + b"x" * 9_999 + b"\r\nx\r\n", 0.005))),
        BODY_WITHOUT_END,
    ),
    http("has a chunk's size that is no number", answers(CHUNKED + b"zz\r\nhi\r\n0\r\n\r\n"), NO_HTTP),
    http("has a negative chunk's size", answers(CHUNKED + b"-2\r\nhi\r\n0\r\n\r\n"), NO_HTTP),
    http("has a chunk's size of 30 digits", answers(CHUNKED + b"F" * 30 + b"\r\nhi"), NO_HTTP),
    http("has a chunk of an exabyte", answers(CHUNKED + b"F" * 15 + b"\r\nhi", HOLD), BODY_WITHOUT_END),
    http("has a chunk longer than its size", answers(CHUNKED + b"2\r\nhello\r\n0\r\n\r\n"), NO_HTTP),
    http("ends chunks with LF alone", answers(CHUNKED + b"2\nhi\n0\n\n", HOLD), NO_HTTP),
    http("closes before the last chunk", answers(CHUNKED + b"2\r\nhi\r\n"), CUT),
    http("falls silent before the last chunk", answers(CHUNKED + b"2\r\nhi\r\n", HOLD), BODY_WITHOUT_END),
    http("closes within the last chunk's line", answers(CHUNKED + b"2\r\nhi\r\n0\r\n"), CUT),
    http(
        "has chunks by another name",
        answers(CHUNKED.replace(b"chunked", b"gzip, Chunked") + b"2\r\nhi\r\n0\r\n\r\n"),
        Up(),
    ),
    http("has a transfer coding that nobody knows", answers(CHUNKED.replace(b"chunked", b"odd") + b"hello"), Up()),
]

BEHAVIOURS = [*FIRST_LINES, *INTERIM, *HEADERS, *LENGTHS, *CHUNKS]
