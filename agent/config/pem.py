"""Certificates and keys as PEM text: whether OpenSSL takes them, and a way to give it a key that is in memory only."""

import os
import ssl
from functools import lru_cache


@lru_cache(maxsize=64)  # many targets share one
def check_authorities(pem: str) -> None:
    """Raises ValueError unless this is PEM text with at least one certificate."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        raise ValueError("the ca holds no certificate that can be read; name a file in PEM format") from None


@lru_cache(maxsize=64)
def check_pair(certificate: str, key: str | None) -> None:
    """Raises ValueError unless these are a certificate and its key, both in PEM format."""
    try:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError("the client_certificate does not belong to the client_key; name the two that do") from None
        raise ValueError(
            "the client_certificate or its key cannot be read; name files in PEM format, the key not encrypted"
        ) from None


def load_pair(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Gives the context a client certificate; the key may stand in the same text. Raises `ssl.SSLError`.

    The ssl module reads these from files only; one in memory keeps the key off the disk.
    """
    file = os.memfd_create("client-certificate")
    try:
        with open(file, "w", closefd=False) as memory:
            memory.write(f"{certificate}\n{key or ''}\n")
        # An empty pass phrase: without one, OpenSSL would ask for it on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{file}", password="")
    finally:
        os.close(file)
