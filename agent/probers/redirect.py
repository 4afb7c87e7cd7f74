"""Where a redirect leads (RFC 9110, section 15.4), without I/O."""

from urllib.parse import SplitResult, quote, urljoin, urlsplit

REDIRECTS = frozenset({301, 302, 303, 307, 308})
PORTS = {"http": 80, "https": 443}
LONGEST_LOCATION = 8 << 10  # bytes


def destination(base: str, location: bytes | None) -> SplitResult:
    """The absolute http or https URL that a Location leads to from `base`, quoted, without a fragment.

    Raises ValueError with what is wrong, in words that follow "HTTP 302": they quote nothing that was received.
    """
    if location is None:
        raise ValueError("without a Location")
    if len(location) > LONGEST_LOCATION:
        raise ValueError(f"with a Location of more than {LONGEST_LOCATION >> 10} KiB")
    try:
        # Servers send spaces and UTF-8 as they are; what is quoted already stays.
        text = quote(location, safe="!#$%&'()*+,/:;=?@[]~-._")
        parts = urlsplit(text)
        if parts.scheme in PORTS and not parts.netloc:  # which urljoin would take from `base`
            raise ValueError
        url = urlsplit(urljoin(base, text))._replace(fragment="")
        host, port = url.hostname or "", url.port
    except ValueError:
        raise ValueError("with a Location that is no URL") from None
    if url.scheme not in PORTS:
        raise ValueError("to what is neither http nor https")
    if not host or "%" in host or port == 0:
        raise ValueError("with a Location that is no URL")
    return url


def method_after(status_code: int, method: str) -> str:
    """The method that follows: GET after 303, and after 301 and 302 in place of POST, as browsers have it.

    The rule is that of the Fetch standard, HTTP-redirect fetch, which RFC 9110 allows.
    """
    if status_code == 303:
        return "HEAD" if method == "HEAD" else "GET"
    return "GET" if status_code in (301, 302) and method == "POST" else method


def origin(url: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454): whoever gets a target's credentials has the same as the target."""
    return url.scheme, url.hostname or "", url.port or PORTS[url.scheme]
