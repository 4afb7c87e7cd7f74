"""The merged configuration as YAML for a person: every default written out, secrets masked.

Without secrets and certificates it can be loaded again, and is the same configuration.
"""

import hashlib
from typing import Any, get_origin

import msgspec
import yaml

from agent.config import forms
from agent.config.masking import MASK
from agent.config.model import Config, Secret, Target
from agent.config.reader import Rule, rules


def effective(config: Config) -> str:
    """YAML text of all that was read or is the default."""
    return yaml.safe_dump(_struct(config), sort_keys=False, allow_unicode=True, width=120)


def _struct(struct: msgspec.Struct) -> dict[str, Any]:
    shown = {}
    for field, rule in rules(type(struct)).items():
        value = getattr(struct, field)
        if field == "url" and isinstance(struct, Target):
            value = struct.shown_url
        if value is not None:
            shown[field] = _value(value, rule)
    return shown


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
