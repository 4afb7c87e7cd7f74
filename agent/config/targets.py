"""Targets: the short and the long way to write one, defaults merged in, and what must fit together."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from agent.config.document import Entry, Place, entries
from agent.config.forms import written
from agent.config.masking import MASK, mask_malformed, mask_url
from agent.config.model import HTTP, BasicAuth, Expect, Secret, Target
from agent.config.pem import check_authorities, check_pair
from agent.config.problems import Mark, Rejected, quoted
from agent.config.reader import Reader, Rule, build, foreign, rules
from agent.config.secrets import NOT_OPENED

INTERVAL, TIMEOUT = 30.0, 10.0  # seconds, when nothing is written
MERGED = ("labels", "headers", "tls", "expect")  # by key; of all else the target's own replaces the default
MOST_TARGETS = 20_000  # as two configurations of so many fit into the unit's MemoryMax, while one replaces the other
LONGEST_ID = 512  # characters
MOST_BODIES = 8 << 20  # bytes of the bodies of all targets: each sends its own copy, also of one that is a default


class Targets:
    """Takes targets in, one after the other; `taken` are the good ones."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._defaults: dict[str, Any] = {}
        self._defaults_at: dict[str, Entry] = {}
        self._first: dict[str, Mark] = {}  # by id: where it was written first
        self._seen, self._bodies = 0, 0
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
        self._seen += 1
        if self._seen > MOST_TARGETS:
            if self._seen == MOST_TARGETS + 1:
                mend = "share them among several agents"
                message = f"is one too many: an agent takes at most {MOST_TARGETS:,} targets; {mend}"
                self._reader.problems.note(place.mark, place.key, message)
            return
        try:
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
        scheme = urlsplit(found["url"]).scheme if found["url"] is not NOT_OPENED else ""
        merged = _merged(_without_foreign(self._defaults, scheme), found)
        self._note_foreign(own, scheme)
        self._identify(place, own, merged)
        self._fit(place, own, merged)
        if None in merged.values():
            raise Rejected
        self.taken.append(build(Target, merged))

    def _note_foreign(self, own: Mapping[str, Entry], scheme: str) -> None:
        """Notes the options that were written and have no meaning for this scheme."""
        written = [(entry, foreign(Target, scheme)) for entry in own.values()]
        if "expect" in own and own["expect"].value.is_mapping:
            inner = entries(own["expect"].value, self._reader.problems)
            written += [(entry, foreign(Expect, scheme)) for entry in inner]
        for entry, elsewhere in written:
            if entry.name in elsewhere and not entry.value.empty:
                mend = f"remove it, as it is for {' and '.join(elsewhere[entry.name])}"
                self._reader.problems.note(entry.at, entry.value.key, f"has no meaning for {scheme}; {mend}")

    def _identify(self, place: Place, own: Mapping[str, Entry], merged: dict[str, Any]) -> None:
        """Adds the id where none was written, and what is shown of the URL; takes the userinfo out of it."""
        url = merged["url"]
        if isinstance(url, Secret):
            merged["shown_url"] = MASK
            if "id" not in merged:
                self._reader.reject(place, "has a url that is a secret, so it needs an id; write one")
        else:
            merged["shown_url"] = mask_url(url)
            merged.setdefault("id", mask_url(url, all_values=urlsplit(url).scheme in HTTP))
        if url is not NOT_OPENED:
            self._take_secrets_out(place, own, merged)
        target_id = merged["id"]
        if target_id is None or target_id is NOT_OPENED:
            return
        mark = own["id"].value.mark if "id" in own else place.mark
        if len(target_id) > LONGEST_ID:
            self._reader.reject(place, f"has a url of more than {LONGEST_ID} characters; write an id for it")
        if (first := self._first.get(target_id)) is not None:
            mend = "write another id" if "id" in own else "write an id for one of them"
            told = (
                f"has the id {quoted(_shown_id(own, target_id))}, as the one at {first.file}:{first.line} has; {mend}"
            )
            self._reader.problems.note(mark, place.key, told)
        else:
            self._first[target_id] = mark

    def _take_secrets_out(self, place: Place, own: Mapping[str, Entry], merged: dict[str, Any]) -> None:
        """Makes the userinfo of the URL its basic authentication, and the URL a secret if its query has one."""
        given, parts = merged["url"], urlsplit(merged["url"])
        userinfo, at, host = parts.netloc.rpartition("@")
        if at:
            if "basic_auth" in own:
                told = "is given, and a user in the url too; write it in one place"
                self._reader.reject(own["basic_auth"].value, told)
            username, _, password = userinfo.partition(":")
            merged["basic_auth"] = BasicAuth(Secret(unquote(username)), Secret(unquote(password)))
        url = parts._replace(netloc=host).geturl()
        merged["url"] = url if url == merged["shown_url"] else Secret(url)
        if not isinstance(given, Secret) and (at or url != merged["shown_url"]):
            self._reader.inline_secrets.add(place.file)

    def _fit(self, place: Place, own: Mapping[str, Entry], merged: dict[str, Any]) -> None:
        """Notes options that do not go together; adds interval and timeout where they are not written."""

        def note(message: str, *names: str) -> None:
            """At the first of these that the target wrote itself, else at the default."""
            at = next((each[name].value for each in (own, self._defaults_at) for name in names if name in each), place)
            self._reader.problems.note(at.mark, at.key, message)

        interval = merged.setdefault("interval", INTERVAL)
        timeout = merged.setdefault("timeout", min(TIMEOUT, interval or INTERVAL))
        if interval is not None and timeout is not None and timeout > interval:
            longest = written(interval, "duration")
            told = f"the timeout is {written(timeout, 'duration')}, longer than the interval, {longest}"
            note(f"{told}; write a timeout of at most {longest}", "timeout", "interval")
        address, ip = merged.get("connect_to"), merged.get("ip", "auto")
        if address is not None and address is not NOT_OPENED and ip == ("4" if ":" in address else "6"):
            note(f"is not an IPv{ip} address, which ip: {ip} asks for; change one", "connect_to")
        self._fit_source(place, own, merged, ip, note)
        headers = merged.get("headers") or {}
        if merged.get("basic_auth") and any(name.lower() == "authorization" for name in headers):
            told = "a user (basic_auth, or one in the url) and an Authorization header are both given"
            note(f"{told}; write one of them", "basic_auth", "headers")
        self._bodies += len((merged.get("body") or "").encode())
        if merged.get("body") and self._bodies > MOST_BODIES:
            told = f"is one too many: the bodies of all targets have more than {MOST_BODIES >> 20} MiB together"
            note(f"{told}; send shorter ones, or share them among several agents", "body")
        if (tls := merged.get("tls")) is not None and not any(each is NOT_OPENED for each in tls.values()):
            self._fit_tls(tls, note)

    @staticmethod
    def _fit_source(place: Place, own: Mapping[str, Entry], merged: dict[str, Any], ip: str | None, note: Any) -> None:
        """All is of the version of IP of a source that is an address; `ip` says so then, too."""
        version = _version(merged.get("source"))
        if version is None or ip is None:
            return
        url, connect_to, resolver = (merged.get(name) or "" for name in ("url", "connect_to", "resolver"))
        server = urlsplit(f"//{resolver}").hostname or ""
        others = {
            "ip": (ip if ip != "auto" else None, "ip: {0} asks for IPv{0}"),
            "connect_to": (_version(connect_to), "connect_to is an IPv{} address"),
            "url": (None if connect_to else _version(urlsplit(url).hostname), "the url has an IPv{} address"),
            "resolver": (None if _is_loopback(server) else _version(server), "the resolver has an IPv{} address"),
        }
        for name, (other, text) in others.items():
            if other in (None, version):
                continue
            told = text.format(other)
            if "source" in own or (name != "url" and name not in own):
                note(f"is an IPv{version} address, but {told}; change one", "source")
            else:
                which = quoted(_shown_id(own, merged["id"])) if merged["id"] else place.key
                told = f"but in the target {which} {told}; write a source for that one"
                note(f"is an IPv{version} address, {told}", "source")
        merged["ip"] = version

    @staticmethod
    def _fit_tls(tls: dict[str, Any], note: Any) -> None:
        authorities, certificate, key = (tls.get(name) for name in ("ca", "client_certificate", "client_key"))
        try:
            if authorities is not None:
                check_authorities(authorities)
        except ValueError as error:
            note(str(error), "tls")
        try:
            if certificate is not None:
                check_pair(certificate, key)
            elif key is not None:
                raise ValueError("the client_key has no client_certificate beside it; name the certificate's file")
        except ValueError as error:
            note(str(error), "tls")


def _shown_id(own: Mapping[str, Entry], target_id: str) -> str:
    # A password that holds an @ and a slash reads as a host and a path.
    return mask_malformed(target_id) if "@" in target_id and "id" not in own else target_id


def _version(text: str | None) -> str | None:
    """Of IP, if it is an address."""
    try:
        return str(ip_address(text or "").version)
    except ValueError:
        return None


def _is_loopback(text: str) -> bool:
    return _version(text) is not None and ip_address(text).is_loopback


def _without_foreign(defaults: Mapping[str, Any], scheme: str) -> dict[str, Any]:
    """What of the defaults has a meaning for this scheme."""
    found = {name: value for name, value in defaults.items() if name not in foreign(Target, scheme)}
    if found.get("expect"):
        elsewhere = foreign(Expect, scheme)
        found["expect"] = {name: value for name, value in found["expect"].items() if name not in elsewhere}
    return found


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
