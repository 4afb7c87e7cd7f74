"""An HTTP/1.1 response as it comes in, without I/O (RFC 9112). The body is counted, not kept.

httptools (llhttp) parses; what it leaves open is decided here: what an end of the stream means, responses without a
body, interim responses, and every bound.
"""

from typing import NamedTuple

import httptools

from agent.probers.result import ErrorCode

MAX_HEADER_BYTES = 64 << 10  # of all headers, and of anything that is read without being understood
MAX_HEADERS = 256
MAX_INTERIM = 16


class Failure(NamedTuple):
    """Why a response is not acceptable."""

    code: ErrorCode
    message: str


class Response:
    """Feed it bytes until `complete` or `failure`; then it takes no more. `location`: of a redirect, as it was sent."""

    def __init__(self, method: str, body_limit: int) -> None:
        self.status_code: int | None = None
        self.version: str | None = None
        self.location: bytes | None = None
        self.body_bytes = 0
        self.complete = False
        self.failure: Failure | None = None
        self._method, self._body_limit = method, body_limit
        self._began = self._has_headers = self._interim = False
        self._interims = self._headers = self._header_bytes = self._unparsed = 0
        self._length: bytes | None = None
        self._chunked = False
        self._parser = httptools.HttpResponseParser(self)
        # As browsers have it: a bare LF ends a line of the head (RFC 9112, section 2.2), chunk sizes may be padded.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)

    def feed(self, data: bytes) -> None:
        """Takes what was received; bytes after a complete response are ignored."""
        self._began = True
        self._unparsed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # what follows a 101, which is complete with its headers
        except httptools.HttpParserError as error:
            # Its texts are constants of llhttp: they quote nothing that was received.
            self._fail("http_protocol", f"not an HTTP/1.1 response: {error}")
        if self._unparsed > MAX_HEADER_BYTES:
            self._fail("http_protocol", f"a line of more than {MAX_HEADER_BYTES >> 10} KiB")

    def feed_eof(self) -> None:
        """The stream ended: the end of a body without a length, else too early."""
        if not self._began:
            self._fail("http_closed", "the server closed the connection without an answer")
        elif self._has_headers and self._length is None and not self._chunked:
            self.complete = self.failure is None
        else:
            self._fail("http_truncated", "the server closed the connection within its answer")

    def release(self) -> None:
        """Breaks the circle with the parser, which would keep both in memory until a collection."""
        del self._parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header or trailer is whole."""
        self._unparsed = 0
        self._headers += 1
        self._header_bytes += len(name) + len(value) + 4
        if self._headers > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            self._fail("http_protocol", f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES >> 10} KiB of them")
            return
        lower = name.lower()
        if lower == b"content-length" and not self._has_headers:
            if self._length is not None and self._length != value:
                self._fail("http_protocol", "two different Content-Lengths")
            self._length = value
        elif lower == b"transfer-encoding" and not self._has_headers:
            # As llhttp has it, which takes no tab behind it: else what it reads to the end would count as cut short.
            self._chunked = value.lower().rpartition(b",")[2].lstrip(b" \t").rstrip(b" ") == b"chunked"
        elif lower == b"location" and self.location is None and not self._has_headers:
            self.location = value.rstrip(b" \t")

    def on_headers_complete(self) -> None:
        """httptools: the head of a response, interim ones included."""
        if self.complete or self.failure is not None:
            return
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        if version not in ("1.0", "1.1") or not 100 <= status <= 999:
            self._fail("http_protocol", f"status line of HTTP/{version} with status {status}")
            return
        self._unparsed = 0
        self._interim = status < 200 and status != 101
        if self._interim:
            self._interims += 1
            if self._interims > MAX_INTERIM:
                self._fail("http_protocol", f"more than {MAX_INTERIM} interim answers")
            self._length, self._chunked, self.location = None, False, None
            return
        if self._length is not None and self._chunked:
            self._fail("http_protocol", "both Content-Length and chunked")
            return
        self.status_code, self.version, self._has_headers = status, version, True
        if self._method == "HEAD" or status in (101, 204, 304):
            self.complete = True  # whatever follows is no body of it (RFC 9112, section 6.3)

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body."""
        self._unparsed = 0
        if self.complete or self.failure is not None:
            return
        self.body_bytes += len(body)
        if self.body_bytes > self._body_limit:
            self._fail("body_too_large", f"the body is larger than {self._body_limit} bytes")

    def on_message_complete(self) -> None:
        """httptools: a response ended, interim ones included."""
        self._unparsed = 0
        if self._has_headers and self.failure is None:
            self.complete = True

    def _fail(self, code: ErrorCode, message: str) -> None:
        if not self.complete and self.failure is None:
            self.failure = Failure(code, message)
