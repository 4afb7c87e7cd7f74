"""Servers whose TLS stalls, is cut, refuses or is none, and HTTP within it."""

import asyncio
import contextlib
import ctypes
import itertools
import shutil
import signal
import ssl
from collections.abc import AsyncIterator
from typing import Any

from tests.probers.certificates import certificate, client_pair, old_server, server, trusted, wants_client
from tests.probers.http_server import HOLD, OK, RESET, answers, says
from tests.probers.tls_server import alert, by_hand, handshake, no_tls
from tests.zoo.behaviour import SECURE, Behaviour, Fails, Missing, Up, http, https

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NO_TLS = Fails("tls_protocol", "target", "tls")
STALLS = Fails("tls_timeout", "path", "tls")
REFUSES = Fails("tls_handshake", "target", "tls")
ALL = 1 << 20  # bytes: more than any of these handshakes has
HEAD = b"HTTP/1.1 200 OK\r\n"


def only(version: ssl.TLSVersion) -> ssl.SSLContext:
    return server(minimum_version=version, maximum_version=version)


# What a server has said when it stops: of TLS 1.3 its first 127 bytes are the ServerHello, with the record's header.
STEPS = {
    "after the ClientHello": (0, TLS13),
    "within the first record's header": (3, TLS13),
    "within the ServerHello": (60, TLS13),
    "after the ServerHello": (127, TLS13),
    "within its certificate": (600, TLS13),
    "within its certificate, in TLS 1.2": (600, TLS12),
}

STOPS = [
    *(
        https(f"stalls {step}", handshake(said, HOLD, context=only(version)), STALLS)
        for step, (said, version) in STEPS.items()
    ),
    https("stalls before its Finished, in TLS 1.2", handshake(ALL, HOLD, context=only(TLS12)), STALLS),
    *(
        https(f"closes {step}", handshake(said, context=only(version)), REFUSES)
        for step, (said, version) in STEPS.items()
    ),
    *(
        https(
            f"resets {step}",
            handshake(said, 0.05, RESET, context=only(version)),
            Fails("connect_reset", "target", "tls"),
        )
        for step, (said, version) in STEPS.items()
    ),
]

NOT_TLS = [
    https("speaks HTTP on a TLS port", no_tls(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")), NO_TLS),
    https("speaks SMTP on a TLS port", says(b"220 mail.example ESMTP\r\n", HOLD), NO_TLS),
    https("says zeros on a TLS port", no_tls(says(bytes(100), HOLD)), NO_TLS),
    https("has a record of 64 KB", no_tls(says(b"\x16\x03\x03\xff\xff" + bytes(65_535), HOLD)), NO_TLS),
    https("has empty records for ever", no_tls(says(itertools.repeat(b"\x16\x03\x03\0\0" * 100))), NO_TLS),
    https(
        "has a message that is too long",
        no_tls(says(itertools.repeat(b"\x16\x03\x03\x40\0\x02\xff\xff\xff" + bytes(16_380)))),
        NO_TLS,
    ),
    https(
        "has a byte of a record now and then",
        no_tls(says(b"\x16\x03\x03\x40\0\x02\0\x3f\xfc", itertools.repeat((b"\0", 0.05)))),
        STALLS,
    ),
    http("speaks TLS where HTTP is asked for", by_hand(server()), Fails("http_closed", "target", "wait")),
]

ALERTS = [
    https("refuses the handshake", no_tls(says(alert(40), HOLD)), REFUSES),
    https("refuses the handshake before it began", says(alert(40), HOLD), REFUSES),
    https("has an internal error", no_tls(says(alert(80))), REFUSES),
    https("does not know the name", no_tls(says(alert(112), HOLD)), REFUSES),
    https("refuses the protocol's version", no_tls(says(alert(70), HOLD)), NO_TLS),
    https("says an alert that nobody knows", no_tls(says(alert(200), HOLD)), REFUSES),
    https("says that it closes, in the handshake", no_tls(says(alert(0), HOLD)), REFUSES),
]

VERSIONS = [
    https("speaks TLS 1.2", answers(OK), Up(), context=only(TLS12), also={"tls.version": "TLSv1.2"}),
    https("speaks TLS 1.3", answers(OK), Up(), context=only(TLS13), also={"tls.version": "TLSv1.3"}),
    https("speaks TLS 1.0 alone", by_hand(old_server(ssl.TLSVersion.TLSv1)), NO_TLS),
    https("speaks TLS 1.1 alone", by_hand(old_server(ssl.TLSVersion.TLSv1_1)), NO_TLS),
    https("speaks TLS 1.2 where 1.3 is wanted", by_hand(only(TLS12)), NO_TLS, tls={"min_version": "1.3"}),
    https(
        "speaks TLS 1.0 where that will do",
        by_hand(old_server(ssl.TLSVersion.TLSv1)),
        Up(),
        tls={"min_version": "1.0"},
        also={"tls.version": "TLSv1"},
    ),
]

# TLS 1.2 refuses within the handshake; in TLS 1.3 the client has ended its own by then, and asked.
CLIENTS = [
    each
    for version, text, phase in ((TLS12, "1.2", "tls"), (TLS13, "1.3", "wait"))
    for each in (
        https(
            f"wants a client certificate, and gets none, in TLS {text}",
            by_hand(wants_client(version=version)),
            Fails("tls_client_cert", "target", phase),
        ),
        https(
            f"wants another client certificate, in TLS {text}",
            by_hand(wants_client(version=version)),
            Fails("tls_client_cert", "target", phase),
            tls=client_pair("strangers"),
        ),
        https(
            f"wants a client certificate, and gets it, in TLS {text}",
            by_hand(wants_client(version=version)),
            Up(),
            tls=client_pair("clients"),
        ),
    )
]

WITHIN = [
    https(
        "says nothing after its handshake",
        handshake(ALL, HOLD, context=only(TLS13)),
        Fails("http_timeout_headers", "path", "wait"),
    ),
    https("closes after its handshake", answers(), Fails("http_closed", "target", "wait"), context=server()),
    https(
        "closes after its handshake, without a notice", by_hand(server(), b""), Fails("http_closed", "target", "wait")
    ),
    https(
        "takes a request over TLS and says nothing",
        answers(HOLD),
        Fails("http_timeout_headers", "path", "wait"),
        context=server(),
    ),
    https(
        "ends before its length, over TLS",
        answers(HEAD + b"Content-Length: 9\r\n\r\nhi"),
        Fails("http_truncated", "target", "receive"),
        context=server(),
    ),
    https(
        "ends before its length, without a notice",
        by_hand(server(), HEAD + b"Content-Length: 9\r\n\r\nhi"),
        Fails("http_truncated", "target", "receive"),
    ),
    https(
        "ends a body without length, without a notice",
        by_hand(server(), HEAD + b"\r\nhello"),
        Up(),
        also={"http.body_bytes": 5},
    ),
    https(
        "says nonsense over TLS",
        answers(b"nonsense\r\n\r\n"),
        Fails("http_protocol", "target", "receive"),
        context=server(),
    ),
    https(
        "has a body for ever, over TLS",
        answers(HEAD + b"\r\n", itertools.repeat(b"x" * 10_000)),
        Fails("body_too_large", "target", "receive"),
        context=server(),
        body_limit=1 << 20,
    ),
    https(
        "falls silent in its body, over TLS",
        answers(HEAD + b"\r\nhello", HOLD),
        Fails("http_timeout_body", "path", "receive"),
        context=server(),
    ),
    https(
        "resets in its body, over TLS",
        answers(HEAD + b"\r\nhello", 0.05, RESET),
        Fails("connect_reset", "target", "receive"),
        context=server(),
    ),
]


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _ends_with_its_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.asynccontextmanager
async def renegotiates(host: str) -> AsyncIterator[dict[str, Any]]:
    """OpenSSL's own server, told to renegotiate whenever it was asked for something: Python's cannot."""
    if shutil.which("openssl") is None:
        raise Missing("openssl is the server that renegotiates")
    authority = f"[{host}]" if ":" in host else host
    pipe = asyncio.subprocess.PIPE
    with certificate().private_key_and_cert_chain_pem.tempfile() as file:
        arguments = ("s_server", "-tls1_2", "-cert", file, "-key", file, "-accept", f"{authority}:0")
        openssl = await asyncio.create_subprocess_exec(
            "openssl",
            *arguments,
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.DEVNULL,
            preexec_fn=_ends_with_its_parent,
        )
        assert openssl.stdin is not None
        assert openssl.stdout is not None
        line = await openssl.stdout.readline()
        while line and not line.startswith(b"ACCEPT"):
            line = await openssl.stdout.readline()

    async def wish() -> None:
        while line := await openssl.stdout.readline():
            if line.startswith(b"GET /"):
                openssl.stdin.write(b"R\n")

    wishing = asyncio.create_task(wish())
    try:
        yield {"url": f"https://{authority}:{int(line.rpartition(b':')[2])}/", "tls": {"ca": trusted()}}
    finally:
        wishing.cancel()
        openssl.kill()
        await openssl.wait()


BEHAVIOURS = [
    *STOPS,
    *NOT_TLS,
    *ALERTS,
    *VERSIONS,
    *CLIENTS,
    *WITHIN,
    Behaviour("renegotiates", renegotiates, Fails("tls_protocol", "target", "wait"), SECURE),
]
