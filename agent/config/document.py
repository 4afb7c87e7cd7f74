"""YAML text as nodes that know where they stand. Every scalar stays text: what it means, its key decides.

Only PyYAML's composer is used: nothing is constructed, so YAML 1.1 turns no `NO` into False, an alias is a reference
and not a copy, and a document nested over a thousand deep is refused by libyaml.
"""

from typing import NamedTuple

import yaml

from agent.config.problems import Mark, Problems, Rejected, printable, quoted

LARGEST = 16 << 20  # bytes of all YAML files together: some 50,000 targets

_STANDARD = "tag:yaml.org,2002:"


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
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == f"{_STANDARD}null"

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
        """What stands here, for an error."""
        if self.is_list:
            return "a list"
        return "a mapping" if self.is_mapping else quoted(self.scalar or "")


class Entry(NamedTuple):
    """One key of a mapping and its value."""

    name: str
    at: Mark  # of the key
    value: Place


def parse(file: str, data: bytes, problems: Problems) -> Place | None:
    """The root of one YAML document; None when there is none, or when it is no YAML, which is noted."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        problems.note(Mark(file, line, column), "", "is not UTF-8 text; save the file in that encoding")
        return None
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Mark(file, mark.line + 1, mark.column + 1) if mark else Mark(file)
        problems.note(at, "", f"is not valid YAML: {_why(error)}")
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        problems.note(Mark(file, line, column), "", "is not valid YAML: a control character; remove it")
        return None
    return None if node is None else Place(file, node, "")


def _why(error: yaml.MarkedYAMLError) -> str:
    why = printable(" ".join(each for each in (error.context, error.problem) if each))
    if error.problem == "but found another document":
        return "there is a second document; remove the line ---"
    if error.problem == "found undefined alias":
        return "an alias that no anchor defines; quote a text that begins with *"
    if "cannot start any token" in why:
        return f"{why}; indent with spaces, not tabs, and quote text that begins with a special character"
    return f"{why}; look at this line and the one before it for a missing quote, bracket, colon or space"


def entries(place: Place, problems: Problems) -> list[Entry]:
    """The keys of a mapping in order. Raises `Rejected` for another kind of node; what is wrong with a key is noted."""
    if not place.is_mapping:
        problems.note(place.mark, place.key, f"is {place.describe()}; write keys and values below it, as name: value")
        raise Rejected
    found: dict[str, Entry] = {}
    for key_node, value_node in place.node.value:
        key = Place(place.file, key_node, place.key)
        if key.scalar is None:
            problems.note(key.mark, place.key, f"a key that is {key.describe()}; write plain text")
            continue
        name = f"{place.key}.{key.scalar}" if place.key else key.scalar
        if key_node.tag == f"{_STANDARD}merge":
            problems.note(key.mark, name, "merge keys are not read; write the options out, or put them under defaults")
        elif (first := found.get(key.scalar)) is not None:
            problems.note(key.mark, name, f"is here twice, first on line {first.at.line}; remove one")
        else:
            found[key.scalar] = Entry(key.scalar, key.mark, _known(Place(place.file, value_node, name), problems))
    return list(found.values())


def items(place: Place, problems: Problems) -> list[Place]:
    """The items of a list. Raises `Rejected` for another kind of node."""
    if not place.is_list:
        problems.note(place.mark, place.key, f"is {place.describe()}; write a list, as [one, two] or - one")
        raise Rejected
    return [
        _known(Place(place.file, node, f"{place.key}[{number}]"), problems)
        for number, node in enumerate(place.node.value)
    ]


def _known(place: Place, problems: Problems) -> Place:
    if not place.node.tag.startswith(_STANDARD):
        problems.note(place.mark, place.key, f"has the tag {quoted(place.node.tag)}, which is not read; remove it")
    return place
