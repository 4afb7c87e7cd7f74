"""JSON Schema of the configuration, for editors that complete and check YAML; from the same rules as the reader's."""

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import msgspec

from agent.config.dns import FLAGS, RCODES
from agent.config.load import APART
from agent.config.model import Config, Target
from agent.config.reader import MOST_ITEMS, MOST_PAIRS, Rule, is_struct, most_items, rules
from agent.config.secrets import KINDS

_TEXT = {"type": ["string", "number", "boolean"]}  # scalars are text to the agent, whatever an editor takes them for
_SOURCES = [
    {
        "type": "object",
        "properties": {kind: {"type": "string"}},
        "required": [kind],
        "additionalProperties": False,
        "description": f"a secret from {article}",
    }
    for kind, article in zip(KINDS, ("a file", "the environment", "a systemd credential"), strict=True)
]
_TEXT_OR_SECRET = {"anyOf": [_TEXT, *_SOURCES]}
_SCALARS: dict[Any, dict[str, Any]] = {
    bool: {"enum": [True, False, "true", "false", "yes", "no", "on", "off"]},
    int: {"type": ["integer", "string"], "pattern": r"^[-+]?\d+$"},
    float: {"type": ["number", "string"], "pattern": r"^[-+]?\d+(\.\d+)?([eE][-+]?\d+)?$"},
}
_URL = {
    "type": "string",
    "pattern": "^([Hh][Tt][Tt][Pp][Ss]?|[Ii][Cc][Mm][Pp]|[Dd][Nn][Ss](\\+[Tt][Cc][Pp])?)://",
}
_REFERENCE = {"type": "string", "pattern": "^([Hh][Tt][Tt][Pp][Ss]?|[Dd][Nn][Ss]\\+[Tt][Cc][Pp])://"}
_FORMS: dict[str, dict[str, Any]] = {
    "duration": {"type": ["string", "number"], "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)?$", "minimum": 0},
    "size": {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(B|KiB|MiB|GiB|TiB)?$", "minimum": 0},
    "workers": {"anyOf": [{"enum": ["auto"]}, {"type": ["integer", "string"], "minimum": 1}]},
    "pem": {"anyOf": [{"type": "string"}, *_SOURCES]},
    "url": {"anyOf": [_URL, *_SOURCES]},
}


def _words(words: Iterable[str], more: str = "") -> dict[str, Any]:
    """One of these words, in either case."""
    either = ["".join(f"[{each}{each.lower()}]" if each.isalpha() else each for each in word) for word in words]
    return {"type": "string", "pattern": f"^({'|'.join(either)}{more})$"}


_STATUSES = {
    "type": ["string", "integer"],
    "pattern": r"^[1-5]\d\d(\s*-\s*[1-5]\d\d)?$",
    "minimum": 100,
    "maximum": 599,
}
_ITEMS: dict[str, dict[str, Any]] = {
    "references": {"anyOf": [_REFERENCE, *_SOURCES]},
    "statuses": {"anyOf": [_STATUSES, *_SOURCES]},
    "rcodes": {"anyOf": [_words(RCODES, r"|[Rr][Cc][Oo][Dd][Ee]\d{1,4}"), *_SOURCES]},
    "flags": {"anyOf": [_words(FLAGS), *_SOURCES]},
}
_PAIRS = ("labels", "headers", "properties")


def config_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a configuration file."""
    schema = _struct(Config, leave_out=("targets",))
    target = _struct(Target)
    defaults = _struct(Target, leave_out=("id", "url"))
    del defaults["required"]
    apart = {
        "defaults": defaults | {"description": "Any option of a target but id and url, for all targets."},
        "include": _list({"type": "string"}, 0) | {"description": "Files with a list of targets each; patterns."},
        "targets": {"type": ["array", "null"], "items": {"anyOf": [_URL, target]}},
    }
    assert apart.keys() == set(APART)
    schema["properties"] |= apart
    schema["required"] = ["location", "kafka"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "uptime-agent configuration",
        **schema,
    }


def _struct(kind: type[msgspec.Struct], leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    fields = {name: rule for name, rule in rules(kind).items() if name not in leave_out}
    required = [field.name for field in msgspec.structs.fields(kind) if field.required and field.name in fields]
    if kind is Target:
        required = ["url"] if "url" in fields else []  # the others have defaults that are not plain values
    return {
        "type": "object",
        "properties": {name: _value(rule) for name, rule in fields.items()},
        "required": [name for name in required if name != "id" or kind.__name__ != "Agent"],
        "additionalProperties": False,
    }


def _value(rule: Rule) -> dict[str, Any]:
    schemes = rule.extra("schemes")
    told = [rule.get("description"), f"Only for {' and '.join(schemes)}." if schemes else None]
    description = " ".join(filter(None, told))
    return ({"description": description} if description else {}) | _plain(rule)


def _plain(rule: Rule) -> dict[str, Any]:
    form, base = rule.extra("form"), rule.base
    if is_struct(base):
        return _struct(base)
    if form in _FORMS:
        return _FORMS[form]
    if form in _PAIRS:
        return {"type": "object", "maxProperties": MOST_PAIRS, "additionalProperties": _TEXT_OR_SECRET}
    if get_origin(base) is tuple:
        return _list(_ITEMS.get(form, _TEXT_OR_SECRET), rule.get("min_length") or 0, most_items(rule))
    if get_origin(base) is Literal:
        return {"enum": [each for choice in get_args(base) for each in _as_yaml(choice)]}
    if base in _SCALARS:
        bounds = {"minimum": rule.get("ge"), "maximum": rule.get("le")}
        return _SCALARS[base] | {name: bound for name, bound in bounds.items() if bound is not None}
    text = _TEXT | {
        name: bound
        for name, bound in {
            "pattern": rule.get("pattern"),
            "minLength": rule.get("min_length"),
            "maxLength": rule.get("max_length"),
        }.items()
        if bound is not None
    }
    return {"anyOf": [text, *_SOURCES]}


def _list(item: dict[str, Any], least: int, most: int = MOST_ITEMS) -> dict[str, Any]:
    return {"anyOf": [_TEXT, {"type": "array", "items": item, "minItems": least, "maxItems": most}]}


def _as_yaml(choice: str) -> list[Any]:
    """A word as it is, and as what an editor's YAML may make of it: `yes` is true there, and `1.2` a number."""
    also: list[Any] = [choice]
    if choice in ("yes", "no"):
        also.append(choice == "yes")
    if choice.replace(".", "").isdigit():
        also.append(float(choice) if "." in choice else int(choice))
    return also
