"""The merged configuration as YAML for a person: every default written out, secrets masked.

Without secrets and certificates it can be loaded again, and is the same configuration.
"""

import hashlib
from typing import Any, get_origin
from urllib.parse import urlsplit

import msgspec
import yaml

from agent.config import forms
from agent.config.masking import MASK
from agent.config.model import Config, Expect, Secret, Target
from agent.config.reader import Rule, foreign, rules


def effective(config: Config) -> str:
    """YAML text of all that was read or is the default."""
    return yaml.safe_dump(_struct(config), sort_keys=False, allow_unicode=True, width=120)


def _struct(struct: msgspec.Struct) -> dict[str, Any]:
    shown = {}
    for field, rule in rules(type(struct)).items():
        value = getattr(struct, field)
        if value is not None:
            shown[field] = _value(value, rule)
    return _target(struct, shown) if isinstance(struct, Target) else shown


def _target(target: Target, shown: dict[str, Any]) -> dict[str, Any]:
    """Without what has no meaning for its scheme, which would be refused."""
    scheme = urlsplit(target.url).scheme
    expected = {name: value for name, value in shown["expect"].items() if name not in foreign(Expect, scheme)}
    shown |= {"url": target.shown_url, "expect": expected}
    return {name: value for name, value in shown.items() if name not in foreign(Target, scheme)}


def _value(value: Any, rule: Rule) -> Any:
    form = rule.extra("form")
    if isinstance(value, Secret):
        return MASK
    if form == "pem":
        return f"(PEM text, sha256 {hashlib.sha256(value.encode()).hexdigest()[:12]})"
    if isinstance(value, msgspec.Struct):
        return _struct(value)
    if isinstance(value, dict):
        return {key: MASK if isinstance(each, Secret) else each for key, each in value.items()}
    if get_origin(rule.base) is tuple:
        return [
            _struct(each) if isinstance(each, msgspec.Struct) else _value(each, Rule(str, rule.meta)) for each in value
        ]
    if form in ("duration", "size", "statuses"):
        text = forms.written(value, form)
        return int(text) if text.isdigit() else text
    return value
