"""TLS: contexts, what a failed handshake means, and the facts of a certificate, also of one that was refused."""

import hashlib
import re
import ssl
import warnings
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from agent.config.model import TlsOptions
from agent.config.pem import load_pair
from agent.device.clock import stamp
from agent.probers.result import Attribution, ErrorCode, Tls

_VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}

# <openssl/x509_vfy.h>, X509_V_ERR_…
_VERIFY_CODES: dict[int, ErrorCode] = {
    9: "tls_cert_not_yet_valid",
    10: "tls_cert_expired",
    62: "tls_hostname_mismatch",
    64: "tls_hostname_mismatch",  # the certificate is not for this address
}
# How OpenSSL's reasons begin that are an alert of the server's (RFC 8446, section 6.2); others are its own findings.
_ALERT = re.compile(r"(SSLV3|TLSV1|TLSV13)_(ALERT_)?")
_CLIENT_CERTIFICATE_ALERTS = {
    "CERTIFICATE_REQUIRED",
    "UNKNOWN_CA",
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_UNKNOWN",
    "UNSUPPORTED_CERTIFICATE",
    "ACCESS_DENIED",
}
_WEAK = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}


class TlsFailure(NamedTuple):
    """What a failed handshake comes to."""

    code: ErrorCode
    attribution: Attribution
    message: str


_contexts: WeakValueDictionary[TlsOptions, ssl.SSLContext] = WeakValueDictionary()


def context_of(options: TlsOptions) -> ssl.SSLContext:
    """The context for these options, shared by all that have the same: one with the system's CAs costs 20 ms.

    Raises `ssl.SSLError` and `ValueError` for PEM text that is none.
    """
    context = _contexts.get(options)
    if context is None:
        context = _contexts[options] = _new_context(options)
    return context


def _new_context(options: TlsOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=options.ca)
    # The same verdict on every Python, 3.13 has other defaults: a private CA that leaves out what RFC 5280 wants in a
    # certificate is fine, and so is a `ca` that is the server's own certificate, or an intermediate one.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if options.min_version in ("1.0", "1.1"):
        # OpenSSL speaks these only below its default security level; SSLv3 stays off.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for 1.0 and 1.1, which somebody asked for
        context.minimum_version = _VERSIONS[options.min_version]
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.client_certificate is not None:
        load_pair(context, options.client_certificate, options.client_key)
    return context


def failure_of(error: ssl.SSLError, *, certificate_came: bool) -> TlsFailure:
    """What an error of the handshake, or an alert after it, means. `certificate_came`: the server's."""
    code: ErrorCode
    if isinstance(error, ssl.SSLCertVerificationError):
        code = _VERIFY_CODES.get(error.verify_code, "tls_untrusted")
        return TlsFailure(code, "target", f"the certificate was refused: {error.verify_message}")
    reason = error.reason or "unknown alert"  # Python has no name for some
    if alert := _ALERT.match(reason):
        reason = reason[alert.end() :]
    told = reason.lower().replace("_", " ")
    if alert is None and error.reason is not None:
        code = "tls_untrusted" if reason in _WEAK else "tls_protocol"
        return TlsFailure(code, "target", f"TLS failed: {told}")
    # TLS 1.2 has no alert of its own for a missing client certificate. Once a server has shown its own certificate,
    # there is hardly anything else left for which it sends this one.
    if reason in _CLIENT_CERTIFICATE_ALERTS or (reason == "HANDSHAKE_FAILURE" and certificate_came):
        return TlsFailure("tls_client_cert", "target", f"the server wants another client certificate: {told}")
    code = "tls_protocol" if reason in ("PROTOCOL_VERSION", "NO_RENEGOTIATION") else "tls_handshake"
    return TlsFailure(code, "target", f"the server refused TLS: {told}")


def facts(session: ssl.SSLObject, *, verify: bool, failed: bool) -> Tls | None:
    """The session and the server's certificate as a record has them; None when no certificate came.

    Public in Python 3.13; until then `ssl` keeps the chain to itself, though OpenSSL has it after a refusal too.
    """
    inner: Any = session._sslobj  # type: ignore[attr-defined]
    sent = inner.get_unverified_chain()
    if not sent:
        return None
    verified = verify and not failed
    chain = inner.get_verified_chain() if verified else None
    leaf = _certificate(_der(sent[0]), sent[0])
    ends = [end for each in chain or () if (end := _certificate(_der(each), each).ends) is not None]
    cipher = None if failed else session.cipher()
    return Tls(
        version=None if failed else session.version(),
        cipher=cipher[0] if cipher else None,
        verified=verified,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        chain_not_after=stamp(min(ends)) if ends else None,
        subject=leaf.subject,
        issuer=leaf.issuer,
        sha256=leaf.sha256,
    )


class _Certificate(NamedTuple):
    sha256: str
    not_before: str | None = None
    not_after: str | None = None
    ends: float | None = None
    subject: str | None = None
    issuer: str | None = None


_known: dict[bytes, _Certificate] = {}
_MOST_KNOWN = 4_096


def _der(certificate: Any) -> bytes:
    der: bytes = certificate.public_bytes(2)  # _ssl.ENCODING_DER
    return der


def _certificate(der: bytes, certificate: Any) -> _Certificate:
    digest = hashlib.sha256(der).digest()
    known = _known.get(digest)
    if known is None:
        try:
            info = certificate.get_info()
            begins, ends = ssl.cert_time_to_seconds(info["notBefore"]), ssl.cert_time_to_seconds(info["notAfter"])
            names = _name(info["subject"]), _name(info["issuer"])
            known = _Certificate(digest.hex(), stamp(begins), stamp(ends), ends, *names)
        except (ValueError, ssl.SSLError):  # whatever a hostile server puts into one
            known = _Certificate(digest.hex())
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[digest] = known
    return known


_SHORT = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
}


def _name(name: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """A distinguished name as text, most specific first (RFC 4514), at most 500 characters."""
    parts = [f"{_SHORT.get(key, key)}={value}" for part in reversed(name) for key, value in part]
    return ",".join(parts)[:500]
