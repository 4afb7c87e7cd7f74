"""Certificates of every kind for servers on loopback, by a CA that nobody trusts but who is told to."""

import datetime
import ssl
from functools import lru_cache
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
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
    leaf = trustme.CA.from_pem(made, _pem(key)).issue_cert("127.0.0.1", not_after=ends + DAY)
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
