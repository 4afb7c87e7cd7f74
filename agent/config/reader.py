"""From places in a document to the fields of the model: the annotations there are the rules.

A struct is read as a dict of the fields that were written, so that defaults can be merged before it is built.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Set
from difflib import get_close_matches
from functools import lru_cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from agent.config import forms
from agent.config.document import Entry, Place, entries, items
from agent.config.kafka_properties import owned
from agent.config.masking import is_secret_name, mask_malformed
from agent.config.model import Secret
from agent.config.problems import Problems, Rejected, quoted
from agent.config.secrets import KINDS, NOT_OPENED, Sources

MOST_ITEMS = 100  # of a list that has no bound of its own, as of brokers or status codes
MOST_PAIRS = 64  # of labels, headers or properties
LONGEST = 64 << 10  # characters of a text value that has no bound of its own
LONGEST_LABEL = 256  # characters of a label's name, and of its value: they travel in every record

_SCALARS: dict[type, Callable[[str], Any]] = {
    bool: forms.boolean,
    int: forms.whole_number,
    float: forms.number,
    str: str,
}
NOT_WRITTEN = {"shown_url", "digest", "notes"}  # fields of the model that are made, not read

T = TypeVar("T", bound=msgspec.Struct)


class Rule(NamedTuple):
    """What an annotation says. `base`: the type without its marks; `meta`: all `Meta` found, the outermost first."""

    base: Any
    meta: tuple[Meta, ...]

    def extra(self, name: str) -> Any:
        """The first `extra` of that name."""
        return next((meta.extra[name] for meta in self.meta if meta.extra and name in meta.extra), None)

    def get(self, name: str) -> Any:
        """The first bound or text of that name."""
        return next((value for meta in self.meta if (value := getattr(meta, name)) is not None), None)


@lru_cache(maxsize=64)
def rules(kind: type[msgspec.Struct]) -> Mapping[str, Rule]:
    """The rule of each field of a struct that can be written in YAML."""
    hints = get_type_hints(kind, include_extras=True)
    return {field: rule_of(hints[field]) for field in kind.__struct_fields__ if field not in NOT_WRITTEN}


@lru_cache(maxsize=64)
def required(kind: type[msgspec.Struct]) -> Set[str]:
    """The fields of a struct that have no default."""
    return {field.name for field in msgspec.structs.fields(kind) if field.required}


def rule_of(hint: Any) -> Rule:
    """The rule in a type annotation; `| None` only means that it may be left out."""
    if get_origin(hint) is Annotated:
        inner = rule_of(hint.__origin__)
        return Rule(inner.base, (*(each for each in hint.__metadata__ if isinstance(each, Meta)), *inner.meta))
    if get_origin(hint) in (Union, UnionType):
        kinds = [each for each in get_args(hint) if each is not type(None)]
        return rule_of(kinds[0]) if len(kinds) == 1 else Rule(hint, ())
    return Rule(hint, ())


def most_items(rule: Rule) -> int:
    """How many a list may have."""
    bound: int | None = rule.get("max_length")
    return MOST_ITEMS if bound is None else bound


class Reader:
    """Reads values and notes what is wrong with them; `Rejected` means: noted, and there is no value."""

    def __init__(self, problems: Problems, sources: Sources) -> None:
        self.problems, self.sources = problems, sources
        self.inline_secrets: set[str] = set()  # the files that have some written into them

    def fields(self, place: Place, kind: type[msgspec.Struct]) -> dict[str, Any]:
        """The fields of `kind` that are written at `place`, nested ones as dicts; None for one that is no good.

        Raises `Rejected` when it is no mapping.
        """
        found = self.known_fields(entries(place, self.problems), rules(kind))
        for name in required(kind) - found.keys():
            self.problems.note(place.mark, f"{place.key}.{name}", "is missing; write it")
            found[name] = None
        return found

    def known_fields(self, written: Iterable[Entry], known: Mapping[str, Rule]) -> dict[str, Any]:
        """The same, by rules of one's own, for entries that were taken apart already.

        A field that was perhaps meant by an unknown key is None, too: that it is missing is no news then.
        """
        found: dict[str, Any] = {}
        meant: list[str] = []
        for entry in written:
            rule = known.get(entry.name)
            if rule is None:
                meant += self.unknown(entry, known)
            elif not entry.value.empty:
                try:
                    found[entry.name] = self.value(entry.value, rule)
                except Rejected:
                    found[entry.name] = None
        return dict.fromkeys(meant) | found

    def unknown(self, entry: Entry, known: Iterable[str]) -> list[str]:
        """Notes an unknown key and the one that was perhaps meant, if there is one: that is returned."""
        known = list(known)
        near = [] if self.problems.full else get_close_matches(entry.name.lower(), known, 1)
        mend = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        self.problems.note(entry.at, entry.value.key, f"unknown key; {mend}")
        return near

    def value(self, place: Place, rule: Rule) -> Any:
        """One value by its rule. Raises `Rejected`."""
        form, base = rule.extra("form"), rule.base
        if is_struct(base):
            return self.fields(place, base)
        if form in _PAIRS:
            return _PAIRS[form](self, place)
        if form == "pem":
            return self._pem(place)
        if get_origin(base) is tuple:
            # A comma means something in a regular expression.
            comma = None if form == "regexps" else ","
            return self._list(place, rule, forms.FORMS.get(form, str), comma)
        if get_origin(base) is Literal:
            return self._choice(place, get_args(base))
        parse = forms.FORMS.get(form) or _SCALARS.get(base, str)
        text = self.text(place, public=bool(rule.extra("public"))) if base is str else self._scalar(place)
        if form == "password":
            text = self._secret(place, text)
        return self._bounded(place, rule, text, self._parsed(place, text, parse))

    def text(self, place: Place, *, public: bool = False) -> str:
        """A text, or a `Secret` where it comes from a file, the environment or a credential. Raises `Rejected`.

        What is `public`, being part of every record, may come from there too and is no secret then.
        """
        if not place.is_mapping:
            return self._scalar(place)
        found = entries(place, self.problems)
        name = found[0].value.scalar if len(found) == 1 and not found[0].value.empty else None
        if not name or found[0].name not in KINDS:
            self.reject(place, "is a mapping; write a text, or {file: PATH}, {env: NAME} or {credential: NAME}")
        try:
            secret = self.sources.secret(found[0].name, name)
        except ValueError as error:
            self.reject(place, str(error))
        return str(secret) if public and secret is not NOT_OPENED else secret

    def reject(self, place: Place, message: str) -> NoReturn:
        """Notes a problem and raises `Rejected`."""
        self.problems.note(place.mark, place.key, message)
        raise Rejected

    def _scalar(self, place: Place) -> str:
        text = place.scalar
        if text is None:
            self.reject(place, f"is {place.describe()}; write one value")
        if "\0" in text:
            self.reject(place, "has a NUL character in it; write plain text")
        if len(text) > LONGEST:
            self.reject(place, f"is longer than {LONGEST >> 10} KiB; shorten it, or put it into a file: {{file: PATH}}")
        return text

    def _parsed(self, place: Place, text: str, parse: Callable[[str], Any]) -> Any:
        if text is NOT_OPENED:
            return text
        try:
            value = parse(text)
        except ValueError as error:
            if isinstance(text, Secret):
                why = ", as it has more than one line" if "\n" in text else ""
                self.reject(place, f"is a secret that cannot be a value of this key{why}; look at what it holds")
            self.reject(place, f"{quoted(mask_malformed(text))} {error}")
        return Secret(value) if isinstance(text, Secret) and isinstance(value, str) else value

    def _bounded(self, place: Place, rule: Rule, text: str, value: Any) -> Any:
        if text is NOT_OPENED:
            return value
        shown, form = quoted(text), rule.extra("form")
        if (least := rule.get("ge")) is not None and value < least:
            self.reject(place, f"{shown} is too small; write at least {forms.written(least, form)}")
        if (most := rule.get("le")) is not None and value > most:
            self.reject(place, f"{shown} is too large; write at most {forms.written(most, form)}")
        if (pattern := rule.get("pattern")) is not None and not re.fullmatch(pattern, value):
            self.reject(place, f"{shown} is not {rule.extra('is')}; write {rule.extra('write')}")
        if (longest := rule.get("max_length")) is not None and len(value) > longest:
            self.reject(place, f"has {len(value)} characters; write at most {longest}")
        if rule.get("min_length") and not value:
            self.reject(place, "is empty; write a text")
        return value

    def _choice(self, place: Place, choices: tuple[str, ...]) -> str:
        text = self._scalar(place)
        if text not in choices:
            self.reject(place, f"{quoted(text)} is not one of {', '.join(choices)}; write one of them")
        return text

    def _list(self, place: Place, rule: Rule, parse: Callable[[str], Any], comma: str | None) -> tuple[Any, ...]:
        """A list; a single text with commas is one too, where they part it."""
        written = items(place, self.problems) if place.is_list else [place]
        if not written and rule.get("min_length"):
            self.reject(place, "is empty; write at least one")
        most = most_items(rule)
        if len(written) > most:
            self.reject(place, f"has {len(written)} items; write at most {most}")
        values: list[Any] = []
        rejected = False
        for item in written:
            try:
                text = self.text(item)
                whole = text is NOT_OPENED or place.is_list or comma is None
                for each in [text] if whole else text.split(comma):
                    part = each.strip() if comma else each
                    part = Secret(part) if isinstance(text, Secret) else part
                    values.append(text if text is NOT_OPENED else self._parsed(item, part, parse))
            except Rejected:
                rejected = True
        if rejected:
            raise Rejected
        if len(values) > most:
            self.reject(place, f"has {len(values)} items; write at most {most}")
        return tuple(values)

    def _pem(self, place: Place) -> str:
        """PEM text: of the file at that path, or of a secret."""
        if place.is_mapping:
            return self.text(place)
        try:
            return self.sources.pem(self._scalar(place), private=place.key.endswith("_key"))
        except ValueError as error:
            self.reject(place, str(error))

    def labels(self, place: Place) -> dict[str, str]:
        """Free text pairs, which are part of records. Raises `Rejected`."""

        def label(entry: Entry) -> str:
            text = self.text(entry.value, public=True)
            if (longer := max(len(entry.name), len(text))) > LONGEST_LABEL:
                self.reject(entry.value, f"has {longer} characters; write at most {LONGEST_LABEL}")
            return text

        return self._pairs(place, label)

    def headers(self, place: Place) -> dict[str, str]:
        """Header fields to send. Raises `Rejected`."""

        def header(entry: Entry) -> str:
            try:
                forms.header_name(entry.name)
            except ValueError as error:
                self.reject(entry.value, str(error))
            return self._named(entry, forms.header_value)

        found = self._pairs(place, header)
        names: dict[str, str] = {}
        for name in found:
            if (other := names.setdefault(name.lower(), name)) != name:
                self.reject(place, f"{other} and {name} are the same header; remove one")
        return found

    def properties(self, place: Place) -> dict[str, str]:
        """Properties of the Kafka producer, save those that are not the user's to set. Raises `Rejected`."""

        def kafka_property(entry: Entry) -> str:
            if (instead := owned(entry.name)) is not None:
                self.reject(entry.value, f"is not yours to set: {instead}")
            return self._named(entry, str)

        return self._pairs(place, kafka_property)

    def _named(self, entry: Entry, parse: Callable[[str], str]) -> str:
        """A text that is a secret if it comes from one, or if its name says so."""
        text = self.text(entry.value)
        if is_secret_name(entry.name):
            text = self._secret(entry.value, text)
        parsed: str = self._parsed(entry.value, text, parse)
        return parsed

    def _secret(self, place: Place, text: str) -> Secret:
        """What is one by nature."""
        if isinstance(text, Secret):
            return text
        self.inline_secrets.add(place.file)
        return Secret(text)

    def _pairs(self, place: Place, read: Callable[[Entry], str]) -> dict[str, str]:
        pairs = entries(place, self.problems)
        if len(pairs) > MOST_PAIRS:
            self.reject(place, f"has {len(pairs)} entries; write at most {MOST_PAIRS}")
        found = {}
        for entry in pairs:
            with contextlib.suppress(Rejected):  # noted; what is good is looked at further
                found[entry.name] = read(entry)
        return found


_PAIRS: dict[str, Callable[[Reader, Place], dict[str, str]]] = {
    "labels": Reader.labels,
    "headers": Reader.headers,
    "properties": Reader.properties,
}


def build(kind: type[T], fields: Mapping[str, Any]) -> T:
    """The struct with these fields, of which the nested ones may be dicts."""
    known = rules(kind)
    return kind(
        **{
            name: build(known[name].base, value) if isinstance(value, dict) and is_struct(known[name].base) else value
            for name, value in fields.items()
        }
    )


def foreign(kind: type[msgspec.Struct], scheme: str) -> dict[str, tuple[str, ...]]:
    """The fields of a struct that have no meaning for this scheme of a URL, and the schemes for which each has.

    There are none for the scheme of a URL that was not opened, which is empty.
    """
    found = {name: rule.extra("schemes") for name, rule in rules(kind).items()}
    return {name: schemes for name, schemes in found.items() if scheme and schemes and scheme not in schemes}


def is_struct(kind: Any) -> TypeGuard[type[msgspec.Struct]]:
    """Is this annotation one of the structs of the model?"""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
