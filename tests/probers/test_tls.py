"""TLS: certificates of every kind, facts also of a refused one, and handshakes that go wrong at every step."""

import asyncio
import hashlib
import itertools
import shutil
import ssl
from datetime import UTC, datetime

import pytest

from agent.config.model import TlsOptions
from agent.probers.exchange import MOST_HANDSHAKE
from agent.probers.tls import context_of
from tests.probers.certificates import (
    DAY,
    NOW,
    authority,
    certificate,
    chain_of,
    client_pair,
    old_server,
    server,
    sha1_server,
    short_lived_intermediate,
    trusted,
    wants_client,
    weak_server,
    without_its_intermediate,
)
from tests.probers.dns_server import dns_server, zone
from tests.probers.http_server import HOLD, OK, RESET, answers, failure, measure, reached, redirect, says, site
from tests.probers.tls_server import alert, by_hand, handshake, no_tls

WHOLE = ["connect", "tls", "send", "wait", "receive"]
TRUSTED = {"ca": trusted()}
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def stamp(when) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


async def test_up(host):
    """A good certificate is up, with every phase, version, cipher and the certificate's facts."""
    async with site(answers(OK), host, server()) as there:
        result = await measure(there.url(), tls=TRUSTED)
    assert (result.error, reached(result)) == (None, WHOLE)
    assert result.phases_ms.tls > 0
    der = ssl.PEM_cert_to_DER_cert(certificate().cert_chain_pems[0].bytes().decode())
    facts = result.tls
    assert (facts.version, facts.cipher, facts.verified) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384", True)
    assert facts.sha256 == hashlib.sha256(der).hexdigest()
    assert "Testing cert" in facts.subject
    assert facts.issuer.endswith("O=test")
    assert facts.not_before < stamp(NOW) < facts.not_after


async def test_chain_not_after():
    """The earliest end of the chain that verified is told, here an intermediate CA's, not a stray certificate's."""
    ends = NOW + 5 * DAY
    async with site(answers(OK), tls=short_lived_intermediate(ends)) as there:
        result = await measure(there.url(), tls={"ca": trusted("root")})
    assert result.error is None
    assert (result.tls.not_after, result.tls.chain_not_after) == (stamp(ends + DAY), stamp(ends))


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_versions(version, host):
    """TLS 1.2 and 1.3 are spoken, and told."""
    async with site(answers(OK), host, server(minimum_version=version, maximum_version=version)) as there:
        result = await measure(there.url(), tls=TRUSTED)
    assert (result.error, reached(result)) == (None, WHOLE)
    assert result.tls.version == version.name.replace("_", ".")


def refused():
    """Certificates that are refused: the leaf, the options, the code."""
    yield "expired", certificate(not_before=NOW - 9 * DAY, not_after=NOW - DAY), TRUSTED, "tls_cert_expired"
    yield (
        "not yet valid",
        certificate(not_before=NOW + DAY, not_after=NOW + 9 * DAY),
        TRUSTED,
        "tls_cert_not_yet_valid",
    )
    yield "wrong host", certificate("other.example"), TRUSTED, "tls_hostname_mismatch"
    yield "wrong address", certificate("127.0.0.2", "::2"), TRUSTED, "tls_hostname_mismatch"
    yield "wrong server_name", certificate(), {**TRUSTED, "server_name": "other.example"}, "tls_hostname_mismatch"
    yield "unknown issuer", certificate(), {}, "tls_untrusted"
    yield "another issuer", certificate(), {"ca": trusted("another")}, "tls_untrusted"


REFUSED = {name: each for name, *each in refused()}


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("case", REFUSED)
async def test_refused_certificates(case, version):
    """Each is an error of the target's in `tls`, named, and the facts of the refused certificate are told."""
    leaf, options, code = REFUSED[case]
    async with site(answers(OK), tls=server(leaf, minimum_version=version, maximum_version=version)) as there:
        result = await measure(there.url(), tls=options)
    assert failure(result) == (code, "tls", "target")
    assert reached(result) == ["connect", "tls"]
    assert (result.http, there.requests) == (None, [])
    facts = result.tls
    der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
    assert (facts.sha256, facts.verified) == (hashlib.sha256(der).hexdigest(), False)
    assert (facts.version, facts.cipher, facts.chain_not_after) == (None, None, None)
    assert facts.not_before
    assert facts.not_after
    assert facts.subject
    assert facts.issuer


@pytest.mark.parametrize("case", REFUSED)
async def test_not_verified(case):
    """With `verify: false` the same are up, and the record says that nothing was verified."""
    leaf, options, _ = REFUSED[case]
    async with site(answers(OK), tls=server(leaf)) as there:
        result = await measure(there.url(), tls={**options, "verify": False})
    assert (result.error, reached(result)) == (None, WHOLE)
    assert (result.tls.verified, result.tls.chain_not_after, result.tls.version) == (False, None, "TLSv1.3")
    assert result.tls.not_after


async def test_missing_intermediate():
    """A server that leaves out the intermediate CA is not trusted."""
    async with site(answers(OK), tls=without_its_intermediate()) as there:
        result = await measure(there.url(), tls={"ca": trusted("root")})
    assert failure(result) == ("tls_untrusted", "tls", "target")


async def test_self_signed():
    """A certificate that its own key signed is not trusted."""
    context, _ = weak_server()
    async with site(answers(OK), tls=context) as there:
        result = await measure(there.url(), tls={"server_name": "www.example"})
    assert failure(result) == ("tls_untrusted", "tls", "target")


async def test_pinned():
    """A server's own certificate can be the `ca`."""
    own = certificate().cert_chain_pems[0].bytes().decode()
    async with site(answers(OK), tls=server()) as there:
        assert (await measure(there.url(), tls={"ca": own})).error is None


async def test_weak_key():
    """A key of 1024 bits is not trusted, whoever signed it; without verification it is up."""
    context, own = weak_server()
    async with site(answers(OK), tls=context) as there:
        result = await measure(there.url(), tls={"ca": own, "server_name": "www.example"})
        assert failure(result) == ("tls_untrusted", "tls", "target")
        assert result.tls.subject == "CN=weak"
        assert (await measure(there.url(), tls={"verify": False})).error is None


async def test_weak_signature():
    """A certificate that was signed by means of SHA-1 is not trusted, whoever signed it."""
    context, ca = sha1_server()
    async with site(answers(OK), tls=context) as there:
        result = await measure(there.url(), tls={"ca": ca})
        assert failure(result) == ("tls_untrusted", "tls", "target")
        assert (await measure(there.url(), tls={"ca": ca, "min_version": "1.0"})).error is None
        assert (await measure(there.url(), tls={"verify": False})).error is None


@pytest.mark.parametrize(
    ("name", "options"),
    [("www.example", {}), ("www.example.", {}), ("other.example", {"server_name": "www.example"})],
)
async def test_names(name, options):
    """The URL's name is sent and verified, without its last dot; `server_name` stands in for it."""
    seen = []
    context = server(certificate("www.example"))
    context.sni_callback = lambda session, name, context: seen.append(name)
    names = zone(www__example=["127.0.0.1"], other__example=["127.0.0.1"])
    async with dns_server(names) as dns, site(answers(OK), tls=context) as there:
        result = await measure(there.url(name=name), server=dns, tls={**TRUSTED, **options})
    assert (result.error, result.tls.verified, seen) == (None, True, ["www.example"])
    assert reached(result) == ["resolve", *WHOLE]


async def test_connect_to_verifies_the_name(host):
    """`connect_to` changes the address only: the name is sent and verified."""
    async with site(answers(OK), host, server(certificate("www.example"))) as there:
        result = await measure(there.url(name="www.example"), connect_to=host, tls=TRUSTED)
    assert (result.error, reached(result)) == (None, WHOLE)


async def test_redirect_to_another_name():
    """`server_name` and the client's certificate are for the target's origin only."""
    asked = server(certificate("127.0.0.1"))
    authority("clients").configure_trust(asked)
    asked.verify_mode = ssl.CERT_OPTIONAL
    shown = []

    async def look(site, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        shown.append(bool(writer.get_extra_info("peercert")))
        writer.write(there_to if len(shown) == 1 else OK)

    own = server(certificate("www.example"))
    authority("clients").configure_trust(own)
    own.verify_mode = ssl.CERT_OPTIONAL
    async with site(look, tls=asked) as other, site(look, tls=own) as there:
        there_to = redirect(other.url())
        client = client_pair("clients")
        result = await measure(there.url(), tls={**TRUSTED, **client, "server_name": "www.example"})
    assert (result.error, shown) == (None, [True, False])


async def test_from_http_to_https():
    """A redirect from http to https is measured with its TLS."""
    async with site(answers(OK), tls=server()) as secure, site(answers(redirect(secure.url()))) as plain:
        result = await measure(plain.url(), tls=TRUSTED)
    assert (result.error, reached(result), result.tls.verified) == (None, WHOLE, True)
    assert result.http.hops[0].phases_ms.tls is None


@pytest.mark.parametrize("version", [TLS12, TLS13])
async def test_client_certificate(version, host):
    """A server that wants a certificate takes the right one; another or none is tls_client_cert."""
    right, wrong = client_pair("clients"), client_pair("strangers")
    async with site(by_hand(wants_client(version=version)), host, True) as there:
        assert (await measure(there.url(), tls={**TRUSTED, **right})).error is None
        for options in ({}, wrong):
            result = await measure(there.url(), tls={**TRUSTED, **options})
            assert (result.error.code, result.error.attribution) == ("tls_client_cert", "target")
            assert result.tls.verified == (version is TLS13)
            assert result.tls.sha256


async def test_minimum_version():
    """An older protocol than wanted is refused, by either side."""
    async with site(by_hand(server(maximum_version=TLS12)), tls=True) as old:
        result = await measure(old.url(), tls={**TRUSTED, "min_version": "1.3"})
    assert failure(result) == ("tls_protocol", "tls", "target")


@pytest.mark.parametrize(("minimum", "code"), [("1.0", None), ("1.1", "tls_protocol"), ("1.2", "tls_protocol")])
async def test_old_protocol(minimum, code):
    """A server of TLS 1.0 alone is `tls_protocol`, and up for who asked for that version."""
    async with site(by_hand(old_server(ssl.TLSVersion.TLSv1)), tls=True) as there:
        result = await measure(there.url(), tls={**TRUSTED, "min_version": minimum})
    if code is None:
        assert (result.error, result.tls.version) == (None, "TLSv1")
    else:
        assert failure(result) == (code, "tls", "target")


async def test_a_handshake_that_stalls():
    """Wherever a handshake stops, it is a time-out of TLS."""

    async def stalled(limit):
        async with site(handshake(limit, HOLD), tls=True) as there:
            result = await measure(there.url(), timeout=0.5, tls=TRUSTED)
        return failure(result), reached(result)

    found = await asyncio.gather(*[stalled(limit) for limit in (0, 1, 5, 100, 127, 800)])
    assert found == [(("tls_timeout", "tls", "path"), ["connect", "tls"])] * 6


@pytest.mark.parametrize("limit", [0, 1, 100, 800])
async def test_a_handshake_that_is_cut(limit, host):
    """Wherever the server closes in a handshake, it is a failed handshake; a reset is a reset."""
    async with site(handshake(limit), host, True) as closing:
        result = await measure(closing.url(), tls=TRUSTED)
    assert failure(result) == ("tls_handshake", "tls", "target")
    async with site(handshake(limit, 0.05, RESET), host, True) as resetting:
        result = await measure(resetting.url(), tls=TRUSTED)
    assert failure(result) == ("connect_reset", "tls", "target")


NOT_TLS = {
    "plain HTTP": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "tls_protocol"),
    "plain text": (says(b"220 mail.example ESMTP\r\n", HOLD), "tls_protocol"),
    "nonsense": (says(b"\0" * 100, HOLD), "tls_protocol"),
    "alert at once": (says(alert(40), HOLD), "tls_handshake"),
    "alert protocol version": (says(alert(70), HOLD), "tls_protocol"),
    "alert unrecognized name": (says(alert(112), HOLD), "tls_handshake"),
    "alert internal error": (says(alert(80)), "tls_handshake"),
    "empty records for ever": (says(itertools.repeat(b"\x16\x03\x03\0\0" * 100)), "tls_protocol"),
    "huge handshake": (says(itertools.repeat(b"\x16\x03\x03\x40\0\x02\0\x3f\xfc" + b"\0" * 16380)), "tls_protocol"),
}


@pytest.mark.parametrize("case", NOT_TLS)
async def test_what_is_not_tls(case, host):
    """Whatever else a server says in place of a handshake is named, and bounded."""
    behaviour, code = NOT_TLS[case]

    async with site(no_tls(behaviour), host, True) as there:
        result = await measure(there.url(), tls=TRUSTED)
    assert failure(result) == (code, "tls", "target")
    assert (reached(result), result.tls) == (["connect", "tls"], None)
    assert there.sent < MOST_HANDSHAKE + (16 << 20)


async def test_a_huge_chain():
    """A chain of certificates larger than OpenSSL takes is refused as a protocol error."""
    async with site(answers(OK), tls=chain_of(300)) as there:
        result = await measure(there.url(), tls=TRUSTED)
    assert failure(result) == ("tls_protocol", "tls", "target")


@pytest.mark.parametrize(("tickets", "expected"), [(20, None), (3_000, ("tls_protocol", "wait", "target"))])
async def test_what_comes_beside_an_answer(tickets, expected):
    """Of TLS without an answer in it, as session tickets are, no more is taken than of a handshake."""
    context = server()
    context.num_tickets = tickets
    async with site(answers(0.2, OK), tls=context) as there:
        result = await measure(there.url(), tls=TRUSTED)
    assert failure(result) == expected
    assert result.tls.verified


async def test_tls_on_a_plain_port():
    """A plain request to a TLS server is no HTTP, or an end without an answer."""
    async with site(answers(OK), tls=server()) as there:
        result = await measure(there.url().replace("https:", "http:"))
    assert result.error.code in ("http_protocol", "http_closed", "connect_reset")
    assert (result.error.attribution, result.tls) == ("target", None)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), ("http_closed", "wait", "target")),
        ((HOLD,), ("http_timeout_headers", "wait", "path")),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",), ("http_truncated", "receive", "target")),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", HOLD), ("http_timeout_body", "receive", "path")),
        ((b"HTTP/1.1 200 OK\r\n\r\nhello",), None),
        ((OK + b"more",), None),
        ((b"nonsense\r\n\r\n",), ("http_protocol", "receive", "target")),
        ((b"HTTP/1.1 200 OK\r\n\r\n", itertools.repeat(b"x" * 9999)), ("body_too_large", "receive", "target")),
        ((b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000,), None),
    ],
)
async def test_answers_within_tls(parts, expected, host):
    """Within TLS the same answers mean the same, and keep what is known of the certificate."""
    async with site(answers(*parts), host, server()) as there:
        result = await measure(there.url(), timeout=0.3 if HOLD in parts else 5.0, tls=TRUSTED, body_limit=1 << 20)
    assert failure(result) == expected
    assert result.tls.verified


async def test_a_large_body_within_tls():
    """A request's body of 1 MiB arrives whole."""
    async with site(answers(OK), tls=server()) as there:
        result = await measure(there.url(), method="POST", body="x" * (1 << 20), tls=TRUSTED)
    assert result.error is None
    assert there.requests[0].endswith(b"\r\n\r\n" + b"x" * (1 << 20))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is the server that renegotiates")
async def test_renegotiation_is_refused():
    """A server that wants to renegotiate TLS gets a refusal, and the result says so."""
    with certificate().private_key_and_cert_chain_pem.tempfile() as file:
        arguments = ("s_server", "-tls1_2", "-cert", file, "-key", file, "-accept", "127.0.0.1:0")
        pipe = asyncio.subprocess.PIPE
        openssl = await asyncio.create_subprocess_exec("openssl", *arguments, stdin=pipe, stdout=pipe)
        try:
            while not (line := await openssl.stdout.readline()).startswith(b"ACCEPT"):
                pass
            url = f"https://127.0.0.1:{int(line.rpartition(b':')[2])}/"
            probing = asyncio.create_task(measure(url, timeout=10.0, tls=TRUSTED))
            while not (await openssl.stdout.readline()).startswith(b"GET /"):
                pass
            openssl.stdin.write(b"R\n")
            result = await probing
        finally:
            openssl.kill()
            await openssl.communicate()
    assert failure(result) == ("tls_protocol", "wait", "target")
    assert "renegotiate" in result.error.message


def test_contexts_are_shared():
    """Targets with the same options share one context; others have their own."""
    first = context_of(TlsOptions(ca=trusted()))
    assert context_of(TlsOptions(ca=trusted())) is first
    assert context_of(TlsOptions(ca=trusted(), verify=False)) is not first


async def test_certificates_with_odd_contents():
    """Dates at both ends of what a certificate can say are told, or left out, never an error of the prober."""
    for begins, ends in [
        (datetime(1950, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (datetime(1960, 1, 1, tzinfo=UTC), datetime(1961, 1, 1, tzinfo=UTC)),
    ]:
        leaf = authority().issue_cert("127.0.0.1", common_name="\x1b[31m" + "é" * 20, not_before=begins, not_after=ends)
        async with site(answers(OK), tls=server(leaf)) as there:
            result = await measure(there.url(), tls={**TRUSTED, "verify": False})
        assert result.error is None
        assert (result.tls.not_before, result.tls.not_after) == (stamp(begins), stamp(ends))
        assert "é" in result.tls.subject
