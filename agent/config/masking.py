"""What must not be shown is shown as `***`: secrets that were configured, and what is one by its name or place."""

import functools
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, quote, quote_plus, unquote, urlsplit

import msgspec

from agent.config.model import Secret

MASK = "***"
SHORTEST = 4  # characters of a secret that is looked for within other text; a shorter one would mask half the words
LONGEST_WITH_PARTS = 8 << 10  # characters of a secret that is also looked for in parts

_SECRET_NAME = re.compile(
    r"pass|pwd|secret|token|auth|credential|session|cookie|jwt|bearer|(?:^|[^a-z])sig(?:nature)?$|(?:^|[^a-z]|api|access)key(?:\.pem)?$",
    re.IGNORECASE,
)

_SCHEME = re.compile(r"[A-Za-z+]+://")
_PART = re.compile(r"(?:^[A-Za-z-]+ +|=)([^\s;,=\"]{8,})")  # the token of `Bearer token`, the value of `name=value`


def is_secret_name(name: str) -> bool:
    """Is what bears this name (of a header, a property, a query's parameter) a secret by nature?"""
    return _SECRET_NAME.search(unquote(name)) is not None


def mask_url(url: str, *, all_values: bool = False) -> str:
    """A URL without its userinfo and fragment, the values of its query masked: of secret names, or of all."""
    parts = urlsplit(url)
    query = "&".join(_mask_parameter(each, all_values) for each in parts.query.split("&"))
    return SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, "").geturl()


def mask_malformed(text: str) -> str:
    """The same for a text that may be no URL: all that could be meant as userinfo, query or fragment is masked."""
    start = _SCHEME.match(text)
    scheme, rest = (start[0], text[start.end() :]) if start else ("", text)
    head, query = re.split(r"(?=[?#])", rest, maxsplit=1) if re.search(r"[?#]", rest) else (rest, "")
    if "@" in query:  # a password can have a question mark in it
        return f"{scheme}{MASK}"
    host = f"{MASK}@{head.rpartition('@')[2]}" if "@" in head else head
    return f"{scheme}{host}{query[:1]}{MASK if query[1:] else ''}"


def _mask_parameter(parameter: str, all_values: bool) -> str:
    name, equals, value = parameter.partition("=")
    if value and (all_values or is_secret_name(name)):
        return f"{name}={MASK}"
    return parameter if equals or not all_values or not name else MASK


class Mask:
    """Masks the secrets that stand anywhere in `configured`, such as a target, wherever they come up in other text.

    Of `Bearer token` or `name=value` these are also the token and the value; of a URL what follows its host, and the
    values of its query that are secret.
    """

    def __init__(self, configured: Any) -> None:
        forms = (str, quote, quote_plus, functools.partial(quote, safe=""))
        shown = {form(each) for each in _secrets(configured) for form in forms}
        longest_first = sorted((each for each in shown if len(each) >= SHORTEST), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if longest_first else None

    def text(self, text: str) -> str:
        """Text with these secrets masked, as they are and as a URL would quote them, in either case."""
        return text if self._secrets is None else self._secrets.sub(MASK, text)

    def url(self, url: str) -> str:
        """A URL with these secrets, and those that are one by nature, masked."""
        return self.text(mask_url(url))


def _secrets(value: Any) -> Iterator[Secret]:
    if isinstance(value, Secret):
        yield value
        if len(value) <= LONGEST_WITH_PARTS:
            yield from map(Secret, _PART.findall(value))
        if "://" in value:
            yield from _secrets_of_url(value)
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from _secrets(getattr(value, field))
    elif isinstance(value, dict):
        for each in value.values():
            yield from _secrets(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from _secrets(each)


def _secrets_of_url(url: Secret) -> Iterator[Secret]:
    try:
        parts = urlsplit(url)
    except ValueError:  # a password can look like one
        return
    yield Secret(SplitResult("", "", parts.path, parts.query, "").geturl())
    for parameter in parts.query.split("&"):
        name, _, value = parameter.partition("=")
        if is_secret_name(name):
            yield from (Secret(value), Secret(unquote(value)))
