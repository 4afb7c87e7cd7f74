"""Regular expressions that take linear time whatever they are given (RE2): they are searched in what servers say."""

from typing import Any, Protocol, cast

MOST_MEMORY = 1 << 20  # bytes that one expression may take, the states that it builds while it searches included


class Regexp(Protocol):
    """A compiled expression."""

    def search(self, text: bytes) -> Any:
        """Something if it is found anywhere in UTF-8 text, else None."""


def compiled(text: str) -> Regexp:
    """The expression. Raises ValueError that says what is wrong with it."""
    import re2  # type: ignore[import-untyped]  # here, as it is 3 MiB that only those shall spend who use it

    options = re2.Options()
    options.log_errors, options.max_mem = False, MOST_MEMORY
    try:
        return cast(Regexp, re2.compile(text.encode(), options))
    except re2.error as error:
        (why,) = error.args
        raise ValueError(why.decode(errors="replace") if isinstance(why, bytes) else str(why)) from None


def regexp(text: str) -> str:
    """The text of an expression that can be compiled. Raises ValueError."""
    try:
        compiled(text)
    except ValueError as error:
        raise ValueError(f"is not a regular expression: {error}; correct it (RE2 knows no look-around)") from None
    return text
