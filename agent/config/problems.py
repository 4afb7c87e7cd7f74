"""What is wrong with a configuration: every problem of one run, where it stands and how to mend it."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from agent.config.model import Secret

MOST_PROBLEMS = 1_000  # kept; the others are counted


class Mark(NamedTuple):
    """A place in a file; line and column count from 1."""

    file: str
    line: int = 1
    column: int = 1


class Problem(NamedTuple):
    """One thing that is wrong. `key` is the path to it, as `targets[3].interval`; empty for a whole file."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{printable(self.key)}: " if self.key else ""
        return f"{printable(self.file)}:{self.line}:{self.column}: {key}{self.message}"


class ConfigError(Exception):
    """A configuration that is no good; `problems` are what was found, by file and line, the first of `count`."""

    def __init__(self, problems: tuple[Problem, ...], count: int) -> None:
        super().__init__("\n".join(told(problems, count)))
        self.problems, self.count = problems, count


def told(problems: Sequence[object], count: int) -> list[str]:
    """Lines for people: `problems`, and how many more there are when they are the first of `count`."""
    more = count - len(problems)
    return [*map(str, problems), *([f"and {more} more problem{'s' * (more != 1)}"] if more else [])]


class Rejected(Exception):
    """A value is no good, and its problem is noted already."""


class Problems:
    """Notes problems, each once, and the first `MOST_PROBLEMS` of them."""

    def __init__(self) -> None:
        self._kept: set[Problem] = set()
        self._more = 0

    def note(self, mark: Mark, key: str, message: str) -> None:
        """Notes one problem; again the very same is nothing new."""
        problem = Problem(mark.file, mark.line, mark.column, key, message)
        if problem in self._kept:
            return
        if self.full:
            self._more += 1
        else:
            self._kept.add(problem)

    @property
    def full(self) -> bool:
        """Are as many kept as there can be? What else is wrong is then only counted."""
        return len(self._kept) >= MOST_PROBLEMS

    def note_if_none(self, mark: Mark, message: str) -> None:
        """Notes a problem of a whole file that only matters when nothing else is wrong."""
        if not self._kept:
            self.note(mark, "", message)

    def error(self) -> ConfigError:
        """All of them, by file and place."""
        return ConfigError(tuple(sorted(self._kept)), len(self._kept) + self._more)

    def raise_any(self) -> None:
        """Raises `ConfigError` if there was any."""
        if self._kept:
            raise self.error()


def printable(text: str, most: int = 300) -> str:
    """On one line, without control characters, not longer than `most`."""
    if len(text) > most:
        text = text[:most] + "…"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def quoted(text: str) -> str:
    """Text as it can be shown in a message: quoted, short, and a secret not at all."""
    if isinstance(text, Secret):
        return "***"
    return printable(json.dumps(text if len(text) <= 80 else text[:80] + "…", ensure_ascii=False), 500)
