"""Servers with certificates of every kind, and what each is with `tls.verify: false`."""

import ssl
from collections.abc import Iterator, Mapping

from agent.probers.result import ErrorCode
from tests.probers.certificates import (
    DAY,
    NOW,
    certificate,
    chain_of,
    server,
    sha1_server,
    short_lived_intermediate,
    trusted,
    weak_server,
    without_its_intermediate,
)
from tests.probers.http_server import OK, answers
from tests.zoo.behaviour import Behaviour, Fails, Up, https

ROOT = {"ca": trusted("root")}
OWN = certificate().cert_chain_pems[0].bytes().decode()


def refused() -> Iterator[tuple[str, ErrorCode, ssl.SSLContext, Mapping[str, object]]]:
    """What the certificate is like, the code, the server, and `tls` of the target."""
    expired = certificate(not_before=NOW - 9 * DAY, not_after=NOW - DAY)
    coming = certificate(not_before=NOW + DAY, not_after=NOW + 9 * DAY)
    below = certificate("*.shop.example")
    weak, weak_ca = weak_server()
    sha1, sha1_ca = sha1_server()
    yield "has expired", "tls_cert_expired", server(expired), {}
    yield "is not yet valid", "tls_cert_not_yet_valid", server(coming), {}
    yield (
        "comes from an intermediate that has expired",
        "tls_cert_expired",
        short_lived_intermediate(NOW - DAY / 2),
        ROOT,
    )
    yield "comes without its intermediate", "tls_untrusted", without_its_intermediate(), ROOT
    yield "is for another name", "tls_hostname_mismatch", server(certificate("other.example")), {}
    yield "is for another address", "tls_hostname_mismatch", server(certificate("127.0.0.2", "::2")), {}
    yield "is for no name", "tls_hostname_mismatch", server(certificate("me@example")), {}
    yield "is for names below", "tls_hostname_mismatch", server(below), {"server_name": "shop.example"}
    yield "is not for `server_name`", "tls_hostname_mismatch", server(), {"server_name": "other.example"}
    yield "is signed by itself", "tls_untrusted", weak, {"server_name": "www.example"}
    yield "comes from an issuer whom nobody knows", "tls_untrusted", server(), {"ca": trusted("another")}
    yield "has a key of 1024 bits", "tls_untrusted", weak, {"ca": weak_ca, "server_name": "www.example"}
    yield "is signed by means of SHA-1", "tls_untrusted", sha1, {"ca": sha1_ca}


def both() -> Iterator[Behaviour]:
    for what, code, context, tls in refused():
        told = {"tls.verified": False, "tls.chain_not_after": None}
        yield https(
            f"has a certificate that {what}",
            answers(OK),
            Fails(code, "target", "tls"),
            context=context,
            tls=tls,
            also={**told, "tls.version": None},
        )
        yield https(
            f"has a certificate that {what}, which is not verified",
            answers(OK),
            Up(),
            context=context,
            tls={**tls, "verify": False},
            also={**told, "tls.version": "TLSv1.3"},
        )


def by_name() -> ssl.SSLContext:
    """Shows the certificate that is asked for (RFC 6066, section 3); who asks for none gets one of another's."""
    asked = server(certificate("www.example"))
    context = server(certificate("other.example"))

    def choose(session: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name == "www.example":
            session.context = asked

    context.sni_callback = choose
    return context


BEHAVIOURS = [
    *both(),
    https("has a good certificate", answers(OK), Up(), context=server(), also={"tls.verified": True}),
    https(
        "has a certificate for the name that is asked for",
        answers(OK),
        Up(),
        context=by_name(),
        tls={"server_name": "www.example"},
        also={"tls.verified": True},
    ),
    https(
        "has a certificate for names that are asked for only",
        answers(OK),
        Fails("tls_hostname_mismatch", "target", "tls"),
        context=by_name(),
    ),
    https(
        "has a certificate for all names of a domain",
        answers(OK),
        Up(),
        context=server(certificate("*.shop.example")),
        tls={"server_name": "www.shop.example"},
    ),
    https("has a certificate that is itself the CA", answers(OK), Up(), context=server(), tls={"ca": OWN}),
    https("sends a chain of twenty certificates", answers(OK), Up(), context=chain_of(20)),
    https("sends a huge chain", answers(OK), Fails("tls_protocol", "target", "tls"), context=chain_of(300)),
]
