"""How single values are written in YAML: from text to a value, or a ValueError that says what is wrong and the mend.

The messages go on after the quoted text, as in `"10 s" is not a duration; write …`.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from agent.config import dns
from agent.config.model import DNS, HTTP
from agent.config.regexp import regexp

_EXAMPLES = {
    "http": "http://example.com/",
    "https": "https://example.com/",
    "icmp": "icmp://192.0.2.1",
    "dns": "dns://192.0.2.53/example.com?type=A",
    "dns+tcp": "dns+tcp://192.0.2.53/example.com?type=A",
}
SCHEMES = tuple(_EXAMPLES)
LATER_SCHEMES = ("tcp", "tls", "dns+tls", "ws", "wss")
CONNECTED = (*HTTP, "dns+tcp")  # the schemes whose servers take a TCP connection
_SCHEMES_TOLD = f"{', '.join(SCHEMES[:-1])} and {SCHEMES[-1]}"

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(B|KiB|MiB|GiB|TiB)?", re.ASCII)
_BYTES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # RFC 9110, section 5.6.2
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*")
_INTERFACE = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_][A-Za-z0-9._-]{0,14}")  # as `agent.device.source` tells it apart
_URL_BEHIND = re.compile(r"\w+\W{1,4}(https?://[^\s@?#]+)", re.IGNORECASE)
_STATUS = re.compile(r"([1-5]\d\d)(?:\s*-\s*([1-5]\d\d))?", re.ASCII)  # RFC 9110, section 15: 100 to 599
_OURS = {"connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive"}
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


def boolean(text: str) -> bool:
    """`true` or `false`, and the other words YAML has for them."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("is neither true nor false; write one of them")


def whole_number(text: str) -> int:
    """A whole number; `012` is 12."""
    if not _WHOLE.fullmatch(text):
        raise ValueError("is not a whole number; write digits")
    return int(text)


def number(text: str) -> float:
    """A decimal number."""
    if not _NUMBER.fullmatch(text) or len(text) > 40:
        raise ValueError("is not a number; write it as 41.01")
    return float(text)


def share(text: str) -> float:
    """A number that is to be from 0 to 1; how large it may be is checked elsewhere."""
    try:
        return number(text)
    except ValueError:
        raise ValueError("is not a number; write one from 0 to 1, as 0.2 for 20 of 100") from None


def duration(text: str) -> float:
    """A time in seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if not match or len(text) > 20:
        raise ValueError("is not a duration; write it as 500ms, 10s, 5m, 1h, or a number of seconds")
    return round(float(match[1]) * _SECONDS[match[2]], 6)


def size(text: str) -> int:
    """A number of bytes."""
    match = _SIZE.fullmatch(text)
    if not match or len(text) > 20:
        raise ValueError("is not a size; write it as 512KiB, 200MiB, 1GiB, or a number of bytes")
    return int(float(match[1]) * _BYTES[match[2]])


def url(text: str) -> str:
    """A URL of one of `SCHEMES` in ASCII, its path and query quoted."""
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if not colon or not rest.startswith("//"):
        raise ValueError(f"is not a URL; write it as {_perhaps_meant(text)}")
    if scheme in LATER_SCHEMES:
        raise ValueError(f"has the scheme {scheme}, which this version does not measure yet; it does {_SCHEMES_TOLD}")
    if scheme not in SCHEMES:
        near = get_close_matches(scheme, SCHEMES, 1)
        raise ValueError(f"has an unknown scheme; write {near[0] if near else f'one of {_SCHEMES_TOLD}'}")
    if any(ord(each) <= 32 or ord(each) == 127 for each in text):
        raise ValueError("has a space or control character in it; write %20 for a space")
    try:
        parts = urlsplit(text)
        _check_host(parts.hostname or "", parts.netloc, _EXAMPLES[scheme])
        if parts.port == 0:
            raise ValueError
    except ValueError as error:
        raise ValueError(str(error) if "; " in str(error) else "is not a valid URL; check its host and port") from None
    userinfo, at, host = parts.netloc.rpartition("@")
    if scheme in HTTP:
        path, query = (quote(each, safe="!$%&'()*+,/:;=?@[]~|^{}\"<>\\`") for each in (parts.path, parts.query))
        return SplitResult(scheme, userinfo + at + host.lower(), path, query, "").geturl()
    if at:
        raise ValueError(f"has a user in it, for which {scheme} has no use; remove it")
    parts = parts._replace(scheme=scheme, netloc=host.lower(), fragment="")
    if scheme in DNS:
        return dns.canonical(parts)
    if parts.port is not None or parts.path.strip("/") or parts.query:
        raise ValueError(f"has more than a host; write it as {_EXAMPLES[scheme]}")
    return f"{scheme}://{parts.netloc}"


def reference(text: str) -> str:
    """A URL that a TCP connection can be made to, in the form of `url`."""
    scheme, found, _ = text.partition("://")
    if found and scheme.lower() not in CONNECTED:
        told = f"write it with {', '.join(CONNECTED[:-1])} or {CONNECTED[-1]}"
        raise ValueError(f"is no reference, as a TCP connection is made to each; {told}")
    return url(text)


def _perhaps_meant(text: str) -> str:
    """The URL that a text without a scheme was perhaps to be; it shows nothing of one that may hold a secret."""
    if found := _URL_BEHIND.fullmatch(text):  # url:https://…
        return found[1]
    host, colon, port = text.rstrip("/").partition(":")
    if not _HOST.fullmatch(host) or (colon and not port.isdecimal()):
        return "https://example.com/"
    return (
        f"{'http' if host in ('localhost', '127.0.0.1') or port not in ('', '443') else 'https'}://{host}{colon}{port}/"
    )


def _check_host(host: str, netloc: str, example: str) -> None:
    if not host:
        raise ValueError(f"has no host; write it as {example}")
    if not host.isascii():
        try:
            ascii_host = host.encode("idna").decode()
        except UnicodeError:
            raise ValueError("has a host that is no name; correct it") from None
        raise ValueError(f"has a host that is not ASCII; write {ascii_host}")
    if "[" in netloc:
        ipaddress.IPv6Address(host)
    elif not _HOST.fullmatch(host.removesuffix(".")) or len(host) > 253:
        raise ValueError("has a host that is no name; use letters, digits and hyphens between dots")


def address(text: str) -> str:
    """An IPv4 or IPv6 address, in its usual form."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("is not an IP address; write it as 192.0.2.1 or 2001:db8::1") from None


def source(text: str) -> str:
    """An address of this device, in its usual form, or the name of an interface."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        if not _INTERFACE.fullmatch(text):
            told = "is neither an address nor the name of an interface; write one of this device, as 192.0.2.7 or eth1"
            raise ValueError(told) from None
        return text
    if found.is_unspecified or found.is_multicast or (found.version == 6 and found.is_link_local):
        kind = "unspecified" if found.is_unspecified else "multicast" if found.is_multicast else "link-local"
        told = f"is {kind}, so nothing can be measured from it"
        raise ValueError(f"{told}; write another address of this device, or the name of an interface")
    return str(found)


def host_and_port(text: str, default: int | None = None) -> tuple[str, int]:
    """`host:port`, or `host` where there is a default port; an IPv6 address with a port stands in brackets."""
    host, rest = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        ipaddress.IPv6Address(host)
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        rest = f":{rest}"
    if rest:
        port = whole_number(rest[1:]) if rest.startswith(":") else 0
    elif default is not None:
        port = default
    else:
        raise ValueError("has no port")
    if not 0 < port < 65_536:
        raise ValueError("the port is not between 1 and 65535")
    return host, port


def resolver(text: str) -> str:
    """A DNS server, `address` or `address:port`."""
    try:
        host, port = host_and_port(text, 53)
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("is not a DNS server; write its address, as 192.0.2.53 or 192.0.2.53:5353") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def server(text: str) -> str:
    """A Kafka broker, `host:port`."""
    try:
        host, port = host_and_port(text, 9092)
        if ":" in host:
            ipaddress.IPv6Address(host)
        elif not _HOST.fullmatch(host.removesuffix(".")):
            raise ValueError
    except ValueError:
        raise ValueError("is not a broker; write host:port, as broker.example:9092") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(text: str) -> str:
    """`off`, or an address and port to listen on."""
    if text.lower() in _FALSE:
        return "off"
    try:
        host, port = host_and_port(text)
        ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ValueError("is not an address to listen on; write it as 127.0.0.1:9469, or off") from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host(text: str) -> str:
    """A host's name or address, for TLS."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not _HOST.fullmatch(text) or len(text) > 253:
            raise ValueError("is not a host's name; write it as www.example.com") from None
    return text


def method(text: str) -> str:
    """An HTTP method; they are case-sensitive (RFC 9110, section 9.1)."""
    if text.upper() in _METHODS and text != text.upper():
        raise ValueError(f"is not a method; write {text.upper()}")
    if not _TOKEN.fullmatch(text) or text.upper() in ("CONNECT", "TRACE"):
        raise ValueError(f"is not a method that can be measured with; write one such as {', '.join(_METHODS)}")
    return text


def header_name(text: str) -> str:
    """The name of a header field to send."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("is not the name of a header; use letters, digits and hyphens")
    if text.lower() in _OURS:
        raise ValueError("is set by the agent itself; remove it")
    return text


def header_value(text: str) -> str:
    """The value of a header field: one line of at most 8 KiB (RFC 9110, section 5.5)."""
    if any(each in text for each in "\r\n\0") or not all(ord(each) < 256 for each in text):
        raise ValueError("is not a header's value; write one line without characters beyond Latin-1")
    if len(text) > 8 << 10:
        raise ValueError("is longer than 8 KiB; shorten it")
    return text.strip(" \t")


def username(text: str) -> str:
    """Of basic authentication: without a colon (RFC 7617)."""
    if ":" in text:
        raise ValueError("has a colon, which a user name cannot have in basic authentication; remove it")
    return text


def statuses(text: str) -> tuple[int, int]:
    """A status code or a range of them, both ends included."""
    match = _STATUS.fullmatch(text)
    if not match:
        raise ValueError("is not a status code (100 to 599); write it as 200 or 200-299")
    low, high = int(match[1]), int(match[2] or match[1])
    if high < low:
        raise ValueError(f"is no range; write {high}-{low}")
    return low, high


def workers(text: str) -> int | str:
    """`auto`, or a number of processes."""
    if text == "auto":
        return text
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or not 1 <= int(text) <= 256:
        raise ValueError("is not a number of processes; write auto, or 1 to 256")
    return int(text)


def directory(text: str) -> str:
    """An absolute path."""
    if not text.startswith("/") or "\0" in text:
        raise ValueError("is not an absolute path; begin it with /")
    return text


def written(value: Any, form: str | None) -> str:
    """The other way round: a value as it is written in YAML."""
    if form == "duration":
        microseconds = round(value * 1_000_000)
        units: dict[str | None, int] = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000}
        return _with_unit(microseconds, units) if microseconds % 1_000 == 0 else f"{microseconds / 1_000:.3f}ms"
    if form == "size":
        return _with_unit(value, {unit: size for unit, size in reversed(_BYTES.items()) if unit not in (None, "B")})
    if form == "statuses":
        low, high = value
        return str(low) if low == high else f"{low}-{high}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_unit(value: int, units: Mapping[str | None, int]) -> str:
    for unit, size in units.items():
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


FORMS: dict[str, Callable[[str], Any]] = {
    "duration": duration,
    "size": size,
    "share": share,
    "url": url,
    "references": reference,
    "address": address,
    "source": source,
    "resolver": resolver,
    "servers": server,
    "listen": listen,
    "server_name": host,
    "method": method,
    "username": username,
    "statuses": statuses,
    "rcodes": dns.rcode,
    "flags": dns.flag,
    "regexps": regexp,
    "workers": workers,
    "directory": directory,
}
