"""Certificates that no CA would make, and handshakes of any bytes: facts if there are any; nothing breaks."""

import hashlib
import re
import ssl
from functools import lru_cache

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import example, given
from hypothesis import strategies as st

from agent.config.model import TlsOptions
from agent.probers.result import Tls
from agent.probers.tls import context_of, facts, failure_of
from tests.fuzz import examples
from tests.probers.certificates import DAY, NOW, certificate, trusted

VERIFYING, TRUSTING = context_of(TlsOptions(ca=trusted())), context_of(TlsOptions(verify=False))
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
OTHER_OID = ObjectIdentifier("1.2.840.113556.1.4.1")


@lru_cache
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@lru_cache
def signed(*attributes: x509.NameAttribute) -> bytes:
    """A certificate in DER with this name."""
    name = x509.Name(attributes)
    made = x509.CertificateBuilder(name, name, key().public_key(), 1, NOW - 9_000 * DAY, NOW + DAY)
    return made.sign(key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def chain_of(leaf) -> list[bytes]:
    return [ssl.PEM_cert_to_DER_cert(pem.bytes().decode()) for pem in leaf.cert_chain_pems]


CERTIFICATES = [
    *chain_of(certificate()),
    signed(x509.NameAttribute(NameOID.COMMON_NAME, "www.example")),
    signed(),
    signed(*[x509.NameAttribute(OTHER_OID, "x" * 200)] * 20),
    signed(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "\u00e9\U0001f600", _ASN1Type.UTF8String)),
    signed(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "\u00e9\0\n", _ASN1Type.BMPString)),
]
# Times as X.509 has them, UTCTime and GeneralizedTime (RFC 5280, section 4.1.2.5), good and bad.
TIMES = st.one_of(
    st.from_regex(rb"\A[0-9]{12}Z\Z").map(b"\x17\r".__add__),
    st.from_regex(rb"\A[0-9]{14}Z\Z").map(b"\x18\x0f".__add__),
    st.sampled_from(
        [b"\x18\x0f00010101000000Z", b"\x18\x0f99991231235959Z", b"\x18\x0f00000101000000Z", b"\x17\r500229000000Z"]
    ),
    st.binary(max_size=15).map(lambda text: b"\x17" + bytes([len(text)]) + text),
)
A_TIME = re.compile(rb"\x17\r[0-9]{12}Z|\x18\x0f[0-9]{14}Z", re.DOTALL)


def timed(der: bytes, begins: bytes, ends: bytes) -> bytes:
    """A certificate with other times; nobody signed it so, and the lengths around them are put right where they can."""
    both = list(A_TIME.finditer(der))[:2]
    times = [begins, ends]
    whole = b"".join(times)
    first, last = both[0].start(), both[1].end()
    changed = der[:first] + whole + der[last:]
    return _grown(changed, len(whole) - (last - first), before=first)


def _grown(der: bytes, by: int, before: int) -> bytes:
    """The lengths of the certificate, of what is signed of it, and of the times' sequence."""
    data = bytearray(der)
    for at in (2, 6):  # two lengths of two bytes each, as certificates of this size have them
        if data[at - 1 : at] == b"\x82":
            length = int.from_bytes(data[at : at + 2], "big") + by
            data[at : at + 2] = length.to_bytes(2, "big")
    data[before - 1] = (data[before - 1] + by) % 256
    return bytes(data)


@st.composite
def ders(draw) -> bytes:
    """Certificates: good, with other times, mistyped, cut; or any bytes."""
    der = draw(st.sampled_from(CERTIFICATES))
    form = draw(st.sampled_from(["good", "timed", "mistyped", "cut", "noise"]))
    if form == "timed":
        return timed(der, draw(TIMES), draw(TIMES))
    if form == "mistyped":
        for at, length, piece in draw(
            st.lists(st.tuples(st.integers(0, 700), st.integers(0, 3), st.binary(max_size=3)), max_size=3)
        ):
            at %= len(der)
            der = (
                der[:at] + (piece if draw(st.booleans()) else piece.ljust(length, b"\0")[:length]) + der[at + length :]
            )
    elif form == "cut":
        return der[: draw(st.integers(0, len(der)))]
    elif form == "noise":
        return draw(st.binary(max_size=60))
    return der


def sized(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def flight(chain: list[bytes]) -> bytes:
    """ServerHello and Certificate of TLS 1.2 (RFC 5246, section 7.4), which come in the clear."""
    hello = b"\3\3" + bytes(range(32)) + b"\0" + b"\xc0\x2b" + b"\0" + sized(b"\xff\1\0\1\0" + b"\0\x17\0\0", 2)
    sent = sized(b"".join(sized(der, 3) for der in chain), 3)
    messages = b"\2" + sized(hello, 3) + b"\x0b" + sized(sent, 3)
    pieces = [messages[at : at + (1 << 14)] for at in range(0, len(messages), 1 << 14)]
    return b"".join(b"\x16\3\3" + sized(piece, 2) for piece in pieces)


def shaken(data: bytes, *, verify: bool, size: int = 1 << 16) -> tuple[Tls | None, ssl.SSLError | None]:
    """What a client knows of a server that says this, and why it gave up if it did."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = (VERIFYING if verify else TRUSTING).wrap_bio(incoming, outgoing, server_hostname="www.example")
    failure: ssl.SSLError | None = None
    for at in range(0, max(len(data), 1), size):
        incoming.write(data[at : at + size])
        try:
            session.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            failure = error
            break
    return facts(session, verify=verify, failed=True), failure


@examples()
@given(st.lists(ders(), min_size=1, max_size=3), st.booleans())
@example([timed(CERTIFICATES[0], b"\x18\x0f00010101000000Z", b"\x18\x0f09991231235959Z")], True)
def test_any_chain(chain, verify):
    """The facts of any chain are fit for a record: stamps that can be read, names of text, the digest of the leaf."""
    found, failure = shaken(flight(chain), verify=verify)
    if failure is not None:
        told = failure_of(failure, certificate_came=found is not None)
        assert told.attribution == "target"
        assert told.code.startswith("tls_")
        assert told.message.isprintable()
    if found is None:
        return
    assert not found.verified
    assert re.fullmatch("[0-9a-f]{64}", found.sha256)
    assert (found.not_before is None) == (found.not_after is None) == (found.subject is None) == (found.issuer is None)
    for when in (found.not_before, found.not_after):
        assert when is None or STAMP.fullmatch(when)
    for name in (found.subject, found.issuer):
        assert name is None or len(name) <= 500
    assert msgspec.json.decode(msgspec.json.encode(found), type=Tls) == found


@pytest.mark.parametrize("der", CERTIFICATES)
def test_good_chains(der):
    """This way of asking brings the facts of a good certificate."""
    found, failure = shaken(flight([der]), verify=True)
    assert found.sha256 == hashlib.sha256(der).hexdigest()
    assert STAMP.fullmatch(found.not_after)
    assert failure is None or failure_of(failure, certificate_came=True).code.startswith("tls_")


@examples()
@given(
    st.lists(ders(), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 4), st.binary(max_size=4)), max_size=4),
    st.integers(1, 200),
    st.booleans(),
)
def test_any_handshake(chain, changes, size, verify):
    """A handshake of any bytes, in any split, comes to the same: it goes on, or ends with one named failure."""
    data = flight(chain)
    for at, length, piece in changes:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + length :]
    found, failure = shaken(data, verify=verify)
    again, as_well = shaken(data, verify=verify, size=size)
    assert again == found
    assert (failure and failure.reason) == (as_well and as_well.reason)
    if failure is not None:
        assert failure_of(failure, certificate_came=found is not None).attribution == "target"
