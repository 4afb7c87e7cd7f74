"""YAML text as nodes that know where they stand. Every scalar stays text: what it means, its key decides.

Only PyYAML's composer is used: nothing is constructed, so YAML 1.1 turns no `NO` into False, an alias is a reference
and not a copy, and a document nested over a thousand deep is refused by libyaml.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import yaml

from agent.config.problems import Mark, Problems, Rejected, printable, quoted

LARGEST = 4 << 20  # bytes of all YAML files together: twice 10,000 targets of ten options
MOST_NODES = 250_000  # keys and values of them, aliases written out: those 10,000, and 100 MB while they are read
CHARACTERS = 32  # that count as a node where there are aliases

_STANDARD = "tag:yaml.org,2002:"
_NULL, _MERGE, _TEXT = (_STANDARD + name for name in ("null", "merge", "str"))
_READ = {_STANDARD + name for name in ("null", "merge", "str", "bool", "int", "float", "seq", "map")}
_KINDS: dict[type[yaml.Node], str] = {yaml.SequenceNode: f"{_STANDARD}seq", yaml.MappingNode: f"{_STANDARD}map"}
_NAME = re.compile(r"[\w.+<-]*")


class Place(NamedTuple):
    """A node, the file it stands in, and the path of keys that leads to it."""

    file: str
    node: yaml.Node
    key: str

    @property
    def mark(self) -> Mark:
        """Where it begins."""
        return Mark(self.file, self.node.start_mark.line + 1, self.node.start_mark.column + 1)

    @property
    def empty(self) -> bool:
        """Is nothing written here, or `null`?"""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == _NULL

    @property
    def scalar(self) -> str | None:
        """The text of a scalar; None for a list or a mapping."""
        return self.node.value if isinstance(self.node, yaml.ScalarNode) else None

    @property
    def is_list(self) -> bool:
        """Is it a sequence?"""
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        """Is it a mapping?"""
        return isinstance(self.node, yaml.MappingNode)

    def describe(self) -> str:
        """What stands here, for an error. The text of a scalar is not shown: in the wrong place it may be a secret."""
        if self.is_list:
            return "a list"
        return "a mapping" if self.is_mapping else "a single value"


class Entry(NamedTuple):
    """One key of a mapping and its value."""

    name: str
    at: Mark  # of the key
    value: Place


class Room:
    """How many nodes the documents of one configuration may still have."""

    def __init__(self) -> None:
        self.left: float = MOST_NODES


class _TooMany(Exception):
    """There is no more room for the document; the message is for its reader."""


class _Loader(yaml.CSafeLoader):
    """Leaves scalars text, and counts nodes while they are made."""

    def __init__(self, text: str, room: Room) -> None:
        super().__init__(text)
        self._room = room

    def descend_resolver(self, current_node: yaml.Node | None, current_index: Any) -> None:
        """The composer calls this for every node."""
        self._room.left -= 1
        if self._room.left < 0:
            told = f"the configuration's files have more than {MOST_NODES:,} keys and values together"
            raise _TooMany(f"is too large: {told}; is it the right file?")

    def ascend_resolver(self) -> None:
        """Nothing was descended into."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node that has none of its own."""
        if kind is not yaml.ScalarNode:
            return _KINDS[kind]
        plain = implicit[0]
        if plain and value in ("", "~", "null", "Null", "NULL"):
            return _NULL
        return _MERGE if plain and value == "<<" else _TEXT


def parse(file: str, data: bytes, problems: Problems, room: Room) -> Place | None:
    """The root of one YAML document; None when there is none, or when it is no YAML, which is noted."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    before = room.left
    try:
        node = _Loader(data.decode(), room).get_single_node()
        if node is None:
            return None
        if b"*" in data and b"&" in data:
            room.left = before - _written_out(node, before)
        return _known(Place(file, node, ""), problems)
    except UnicodeDecodeError as error:
        problems.note(_mark(file, data, error.start), "", "is not UTF-8 text; save the file in that encoding")
    except yaml.MarkedYAMLError as error:
        at, why = _explained(error)
        mark, end = Mark(file, at.line + 1, at.column + 1) if at else Mark(file), _mark(file, data, len(data.rstrip()))
        problems.note(min(mark, end), "", f"is not valid YAML: {why}")  # libyaml's end of a file is a line further
    except yaml.reader.ReaderError as error:
        told = "is not valid YAML: a control character; remove it"
        problems.note(_mark(file, data, error.position), "", told)
    except _TooMany as error:
        problems.note(Mark(file), "", str(error))
    return None


def _mark(file: str, data: bytes, offset: int) -> Mark:
    """Where this byte stands; its column is counted in characters."""
    before = data[data.rfind(b"\n", 0, offset) + 1 : offset]
    return Mark(file, data.count(b"\n", 0, offset) + 1, len(before.decode(errors="replace")) + 1)


def _written_out(root: yaml.Node, most: float) -> float:
    """The nodes of the document with its aliases written out. Raises `_TooMany` when they are too many, or endless.

    Long text counts too, as an alias may stand for it.
    """
    sizes: dict[int, float] = {}  # by node: infinite while it is being measured, as only a recursive one asks then
    waiting = [root]
    while waiting:
        node = waiting[-1]
        if isinstance(node, yaml.ScalarNode):
            sizes[id(node)] = 1 + len(node.value) / CHARACTERS
            waiting.pop()
            continue
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")
            waiting.extend(part for part in parts if id(part) not in sizes)
            continue
        waiting.pop()
        if sizes[id(node)] == float("inf"):
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in parts)
            if sizes[id(node)] == float("inf"):
                raise _TooMany("has an alias within the very thing that it stands for; write that out")
            if sizes[id(node)] > most:
                size = f"more than {MOST_NODES:,} keys and values with the aliases written out"
                raise _TooMany(f"is too large: {size}; write fewer *aliases")
    return sizes[id(root)]


def _explained(error: yaml.MarkedYAMLError) -> tuple[yaml.Mark | None, str]:
    """Where the mending is to be done, what is wrong, and how. libyaml's own words do not help everyone."""
    why = f"{error.context or ''} {error.problem}".strip()
    for words, at_beginning, told in _MENDS:
        if words in why:
            begun = f", in what begins on line {error.context_mark.line + 1}" if error.context_mark else ""
            at = error.context_mark if at_beginning else error.problem_mark
            return at or error.problem_mark, told.replace("[begun]", begun)
    return error.problem_mark or error.context_mark, f"{printable(why)}; look at this line and the one before it"


_MENDS = (  # words of libyaml; does the mending belong where the thing begins, or where it was found wrong?; ours
    ("scanning a quoted scalar", True, "the quote that opens here is not closed; close it"),
    ("scanning a simple key", True, "there is no colon and space after this key; write name: value"),
    ("scanning an alias", True, "a text that begins with *; quote it"),
    ("scanning an anchor", True, "a text that begins with &; quote it"),
    ("undefined alias", False, "an alias that no anchor defines; quote a text that begins with *"),
    ("another document", False, "there is a second document; remove the line ---"),
    ("maximum nesting depth", False, "it is nested too deep; is it the right file?"),
    ("start any token", False, "a tab, or a text that begins with @ or `; indent with spaces, and quote such a text"),
    (
        "mapping values are not allowed",
        False,
        "a colon within a text, or a line indented too far; quote it, or align it",
    ),
    ("parsing a flow sequence", False, "a comma or ] is missing here[begun]; add it"),
    ("parsing a flow mapping", False, "a comma or } is missing here[begun]; add it"),
    ("parsing a flow node", False, "a value is missing here, or a bracket is not closed; add it"),
    ("parsing a block", False, "this line stands under none of those before it; indent it as its neighbours"),
)


def entries(place: Place, problems: Problems) -> list[Entry]:
    """The keys of a mapping in order. Raises `Rejected` for another kind of node; what is wrong with a key is noted."""
    if not place.is_mapping:
        mend = f"write keys and values{' below it' if place.key else ''}, as name: value"
        problems.note(place.mark, place.key, f"is {place.describe()}; {mend}")
        raise Rejected
    found: dict[str, Entry] = {}
    for key_node, value_node in place.node.value:
        key = Place(place.file, key_node, place.key)
        if key.scalar is None:
            problems.note(key.mark, place.key, f"a key that is {key.describe()}; write plain text")
            continue
        _known(key, problems)
        name = f"{place.key}.{_shown(key.scalar)}" if place.key else _shown(key.scalar)
        if key_node.tag == _MERGE:
            problems.note(key.mark, name, "merge keys are not read; write the options out, or put them under defaults")
        elif (first := found.get(key.scalar)) is not None:
            problems.note(key.mark, name, f"is here twice, first on line {first.at.line}; remove one")
        else:
            found[key.scalar] = Entry(key.scalar, key.mark, _known(Place(place.file, value_node, name), problems))
    return list(found.values())


def items(place: Place, problems: Problems) -> list[Place]:
    """The items of a list. Raises `Rejected` for another kind of node."""
    return list(_items(place, place.node.value, problems))


def taken_out(place: Place, problems: Problems) -> Iterator[Place]:
    """The same, each taken out of the list, which is empty then: of a long one, what was read takes no memory."""
    nodes = place.node.value
    each = iter(())
    if place.is_list:
        nodes.reverse()
        each = (nodes.pop() for _ in range(len(nodes)))
    return _items(place, each, problems)


def _items(place: Place, nodes: Iterable[yaml.Node], problems: Problems) -> Iterator[Place]:
    if not place.is_list:
        problems.note(place.mark, place.key, f"is {place.describe()}; write a list, as [one, two] or - one")
        raise Rejected
    for number, node in enumerate(nodes):
        yield _known(Place(place.file, node, f"{place.key}[{number}]"), problems)


def _known(place: Place, problems: Problems) -> Place:
    if place.node.tag not in _READ:
        tag = place.node.tag.replace(_STANDARD, "!!")
        problems.note(place.mark, place.key, f"has the tag {quoted(tag)}, which is not read; remove it")
    return place


def _shown(key: str) -> str:
    """A key as it is shown: as far as it looks like one. The rest, as in `"Cookie: id=1":`, may be a secret."""
    name = _NAME.match(key[:80])
    shown = name[0] if name else ""
    return shown if shown == key else f"{shown}…"
