"""Certificates of every kind for servers on loopback, by a CA that nobody trusts but who is told to."""

import datetime
import ssl
import warnings
from functools import lru_cache
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

NAMES = ("127.0.0.1", "::1", "www.example", "localhost")
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@lru_cache
def authority(name: str = "test") -> trustme.CA:
    return trustme.CA(organization_name=name)


@lru_cache
def trusted(name: str = "test") -> str:
    """What `tls.ca` is given, in PEM."""
    return authority(name).cert_pem.bytes().decode()


@lru_cache
def certificate(*names: str, ca: str = "test", **options: Any) -> trustme.LeafCert:
    return authority(ca).issue_cert(*(names or NAMES), **options)


def server(leaf: trustme.LeafCert | None = None, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    """A server's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (leaf or certificate()).configure_cert(context)
    for name, value in versions.items():
        setattr(context, name, value)
    return context


def wants_client(*, version: ssl.TLSVersion) -> ssl.SSLContext:
    """One that wants a certificate of the client, by the CA `clients`."""
    context = server(minimum_version=version, maximum_version=version)
    authority("clients").configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@lru_cache
def short_lived_intermediate(ends: datetime.datetime) -> ssl.SSLContext:
    """A server whose certificate comes from an intermediate CA that ends first; one that expired is sent along."""
    root = authority("root")
    key = rsa.generate_private_key(65537, 2048)
    root_key = serialization.load_pem_private_key(root.private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(root.cert_pem.bytes()).subject
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "intermediate")])
    made = (
        x509.CertificateBuilder(issuer, name, key.public_key(), 2, NOW - DAY, ends)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    leaf = trustme.CA.from_pem(made, _pem(key)).issue_cert(*NAMES, not_after=ends + DAY)
    stray = certificate(not_before=NOW - 9 * DAY, not_after=NOW - DAY).cert_chain_pems[0].bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain = leaf.cert_chain_pems[0].bytes() + made + stray + leaf.private_key_pem.bytes()
    with trustme.Blob(chain).tempfile() as file:
        context.load_cert_chain(file)
    return context


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


@lru_cache
def weak_server() -> tuple[ssl.SSLContext, str]:
    """A server with a key of 1024 bits, and its certificate, signed by itself."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - DAY, NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("www.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    pem = made.public_bytes(serialization.Encoding.PEM)
    with trustme.Blob(pem + _pem(key)).tempfile() as file:
        context.load_cert_chain(file)
    return context, pem.decode()


@lru_cache
def sha1_server() -> tuple[ssl.SSLContext, str]:
    """A server whose certificate is signed by means of SHA-1, and the CA that did so, in PEM.

    No library does that any more: the algorithm's name is changed in one of SHA-256, and what comes of it signed.
    """
    ca = trustme.CA(key_type=trustme.KeyType.RSA)
    leaf = ca.issue_cert(*NAMES)
    made = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    body, whole = (der.replace(_WITH_SHA256, _WITH_SHA1) for der in (made.tbs_certificate_bytes, _der(made)))
    signature = key.sign(body, padding.PKCS1v15(), hashes.SHA1())
    pem = ssl.DER_cert_to_PEM_cert(whole[: -len(signature)] + signature).encode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with trustme.Blob(pem + leaf.private_key_pem.bytes()).tempfile() as file:
        context.load_cert_chain(file)
    return context, ca.cert_pem.bytes().decode()


# The object identifiers of PKCS #1's signatures (RFC 8017, appendix C).
_WITH_SHA256, _WITH_SHA1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


@lru_cache
def without_its_intermediate() -> ssl.SSLContext:
    """A server that keeps the certificate of its issuer to itself, whose own issuer is the CA `root`."""
    leaf = authority("root").create_child_ca().issue_cert(*NAMES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with leaf.private_key_pem.tempfile() as key, leaf.cert_chain_pems[0].tempfile() as alone:
        context.load_cert_chain(alone, key)
    return context


@lru_cache
def chain_of(length: int) -> ssl.SSLContext:
    """A server that sends so many certificates after its own, none of which helps."""
    leaf, others = certificate(), authority("another").cert_pem.bytes() * length
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    many = leaf.cert_chain_pems[0].bytes() + others
    with leaf.private_key_pem.tempfile() as key, trustme.Blob(many).tempfile() as chain:
        context.load_cert_chain(chain, key)
    return context


@lru_cache
def old_server(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A server that speaks nothing but this old version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = server(minimum_version=version, maximum_version=version)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


def client_pair(ca: str) -> dict[str, str]:
    """The options for a client's certificate by this CA."""
    leaf = authority(ca).issue_cert("me@example")
    return {
        "client_certificate": leaf.cert_chain_pems[0].bytes().decode(),
        "client_key": leaf.private_key_pem.bytes().decode(),
    }
