"""Targets: the short and the long way to write one, defaults merged in, and what must fit together."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from agent.config.document import Entry, Place, entries
from agent.config.forms import written
from agent.config.masking import mask_url
from agent.config.model import BasicAuth, Secret, Target
from agent.config.pem import check_authorities, check_pair
from agent.config.problems import Mark, Rejected, quoted
from agent.config.reader import Reader, Rule, build, rules
from agent.config.secrets import NOT_OPENED

INTERVAL, TIMEOUT = 30.0, 10.0  # seconds, when nothing is written
MERGED = ("labels", "headers", "tls", "expect")  # by key; of all else the target's own replaces the default
MOST_TARGETS = 100_000


class Targets:
    """Takes targets in, one after the other; `taken` are the good ones."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._defaults: dict[str, Any] = {}
        self._defaults_at: dict[str, Entry] = {}
        self._first: dict[str, Mark] = {}  # by id: where it was written first
        self.taken: list[Target] = []

    def default(self, place: Place) -> None:
        """Takes the `defaults`, which must come before the targets."""
        known = {name: rule for name, rule in rules(Target).items() if name not in ("id", "url")}
        own = []
        for entry in entries(place, self._reader.problems):
            if entry.name in ("id", "url"):
                self._reader.problems.note(entry.at, entry.value.key, "is no default; write it in each target")
            else:
                own.append(entry)
        self._defaults_at = {entry.name: entry for entry in own}
        found = self._reader.known_fields(own, known)
        self._defaults = {name: value for name, value in found.items() if value is not None}

    def take(self, place: Place) -> None:
        """Takes one target; what is wrong with it is noted."""
        try:
            if len(self._first) >= MOST_TARGETS:
                self._reader.reject(place, f"is one too many; an agent takes at most {MOST_TARGETS} targets")
            known: Mapping[str, Rule] = rules(Target)
            if place.is_mapping:
                own = {entry.name: entry for entry in entries(place, self._reader.problems)}
                found = self._reader.known_fields(own.values(), known)
            elif place.empty or place.is_list:
                self._reader.reject(place, "is not a target; write a URL, or url: and options below it")
            else:
                own, found = {}, {"url": self._reader.value(place, known["url"])}
            self._add(place, own, found)
        except Rejected:
            pass  # noted where it was raised

    def _add(self, place: Place, own: Mapping[str, Entry], found: dict[str, Any]) -> None:
        if "url" not in found:
            self._reader.reject(place, "has no url; write url: https://…")
        if found["url"] is None:
            raise Rejected
        merged = _merged(self._defaults, found)
        self._identify(place, own, merged)
        self._fit(place, own, merged)
        if None in merged.values():
            raise Rejected
        self.taken.append(build(Target, merged))

    def _identify(self, place: Place, own: Mapping[str, Entry], merged: dict[str, Any]) -> None:
        """Adds the id where none was written, and what is shown of the URL; takes the userinfo out of it."""
        url = merged["url"]
        if isinstance(url, Secret):
            merged["shown_url"] = "***"
            if "id" not in own:
                self._reader.reject(place, "has a url that is a secret, so it needs an id; write one")
        else:
            merged["shown_url"] = mask_url(url)
            merged.setdefault("id", mask_url(url, all_values=True))
        if url is not NOT_OPENED and "@" in (parts := urlsplit(url)).netloc:
            userinfo, _, host = parts.netloc.rpartition("@")
            username, _, password = userinfo.partition(":")
            if "basic_auth" in own:
                self._reader.reject(own["basic_auth"].value, "and the url both have a user; write it in one place")
            self._reader.inline_secret |= not isinstance(url, Secret)
            merged["basic_auth"] = BasicAuth(unquote(username), Secret(unquote(password)))
            merged["url"] = type(url)(parts._replace(netloc=host).geturl())
        target_id = merged["id"]
        if target_id is None:
            return
        mark = own["id"].value.mark if "id" in own else place.mark
        if len(target_id) > 512:
            self._reader.reject(place, "has a very long url; give it an id")
        if (first := self._first.setdefault(target_id, mark)) != mark:
            at = f"{first.file}:{first.line}"
            mend = "write another id" if "id" in own else "give one of them an id"
            self._reader.problems.note(mark, place.key, f"has the id {quoted(target_id)}, as the one at {at}; {mend}")

    def _fit(self, place: Place, own: Mapping[str, Entry], merged: dict[str, Any]) -> None:
        """Notes options that do not go together; adds interval and timeout where they are not written."""

        def note(message: str, *names: str) -> None:
            """At the first of these that the target wrote itself, else at the default."""
            at = next((each[name].value for each in (own, self._defaults_at) for name in names if name in each), place)
            self._reader.problems.note(at.mark, at.key, message)

        interval = merged.setdefault("interval", INTERVAL)
        timeout = merged.setdefault("timeout", min(TIMEOUT, interval or INTERVAL))
        if interval is not None and timeout is not None and timeout > interval:
            told = f"{written(timeout, 'duration')} is longer than the interval, {written(interval, 'duration')}"
            note(f"the timeout, {told}; write at most that", "timeout", "interval")
        address, ip = merged.get("connect_to"), merged.get("ip", "auto")
        if address is not None and ip == ("4" if ":" in address else "6"):
            note(f"is not an IPv{ip} address, which ip: {ip} asks for; change one", "connect_to")
        headers = merged.get("headers") or {}
        if merged.get("basic_auth") and any(name.lower() == "authorization" for name in headers):
            note("and an Authorization header are both given; write one", "basic_auth", "headers")
        if (tls := merged.get("tls")) is not None and NOT_OPENED not in tls.values():
            self._fit_tls(tls, note)

    @staticmethod
    def _fit_tls(tls: dict[str, Any], note: Any) -> None:
        authorities, certificate, key = (tls.get(name) for name in ("ca", "client_certificate", "client_key"))
        try:
            if authorities is not None:
                check_authorities(authorities)
        except ValueError as error:
            note(f"ca: {error}", "tls")
        try:
            if certificate is not None:
                check_pair(certificate, key)
            elif key is not None:
                raise ValueError("is missing beside client_key; name the certificate's file")
        except ValueError as error:
            note(f"client_certificate: {error}", "tls")


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **own}
    for name in MERGED:
        default, mine = defaults.get(name), own.get(name)
        if default is not None and mine is not None:
            if name == "headers":
                replaced = {each.lower() for each in mine}
                default = {each: value for each, value in default.items() if each.lower() not in replaced}
            merged[name] = {**default, **mine}
    return merged
