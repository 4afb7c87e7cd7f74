"""Loading: every file read once, checked as a whole, and either a `Config` or every problem of it."""

import gc
import glob
import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from agent import CALLED
from agent.config.document import LARGEST, Entry, Place, Room, entries, items, parse, taken_out
from agent.config.files import DiskFiles, Files, KeptFiles, read_regular
from agent.config.kafka_properties import is_read_by_client
from agent.config.masking import Mask
from agent.config.model import Agent, Config, Kafka, Location, Spool
from agent.config.problems import ConfigError, Mark, Problems, Rejected, printable, quoted
from agent.config.reader import Reader, build, rules
from agent.config.secrets import NOT_OPENED, Sources
from agent.config.targets import Targets

MOST_FILES = 10_000  # included
MOST_PATTERNS = 100  # of files to include
NO_EFFECT_YET = ("status", "workers")

APART = ("defaults", "include", "targets")  # sections that are read on their own
REQUIRED = {"location": "location: {id: PLACE}", "kafka": "kafka: {bootstrap_servers: [HOST:9092]}"}
COMMON_NAMES = ("localhost", "raspberrypi")


def load(
    path: Path,
    *,
    base_directory: Path | None = None,
    secrets: Literal["check", "skip"] = "check",
    refusal: Callable[[Kafka], str | None] = lambda kafka: None,
    files: Files | None = None,
) -> Config:
    """The configuration at `path`. Raises `ConfigError` with every problem of all its files.

    `base_directory`: what includes and other files are relative to, by default the folder of `path`. `skip` opens no
    secrets: the result is for looking at, not for measuring. `refusal`: what Kafka's client says against its block.
    `files`: where it is read from, by default the disk; they know afterwards what was read, also when it is no good.
    """
    base = path.parent if base_directory is None else base_directory
    with _no_collection():
        found = _Loading(path, base, files, open_secrets=secrets == "check").found(refusal)
    if isinstance(found, ConfigError):
        raise found
    return found


def load_kafka(path: Path) -> Kafka:
    """The `kafka:` block alone of the configuration at `path`, for who only reads. Raises `ConfigError`.

    Nothing else there is looked at: neither may its problems be in the way, nor are its secrets opened.
    """
    return _Loading(path, path.parent).kafka()


class Directories(NamedTuple):
    """Where an agent keeps its state, and what waits for Kafka."""

    state: Path
    spool: Path

    @classmethod
    def of(cls, state_directory: str, spool: Spool) -> "Directories":
        """As the configuration says, or by default."""
        state = Path(state_directory)
        return cls(state, Path(spool.directory) if spool.directory else state / "spool")


def load_directories(path: Path) -> Directories:
    """The directories of an agent of the configuration at `path`, whatever else is wrong with it.

    Raises `ConfigError` when it cannot be read, these keys of it are no good, or it is no YAML and has neither.
    """
    found = _load_alone(path, "state_directory", "spool")
    return Directories.of(found.get("state_directory", default_state_directory()), build(Spool, found.get("spool", {})))


def load_state_directory(path: Path) -> Path:
    """The same for the state directory, whatever is wrong with the spool's."""
    return Path(_load_alone(path, "state_directory").get("state_directory", default_state_directory()))


def _load_alone(path: Path, *names: str) -> dict[str, Any]:
    """These sections, as far as they are written. Raises `ConfigError`.

    A last good configuration is found by them when the file is no YAML, and what waits in the spool: they are then read
    as if all other lines were empty.
    """
    try:
        return _Loading(path, path.parent).alone(names)
    except ConfigError:
        with suppress(OSError, ConfigError):
            return _Loading(path, path.parent, _alone(path, names)).alone(names)
        raise


def _alone(path: Path, names: Sequence[str]) -> Files:
    """The lines of these sections, each at its place. Raises OSError."""
    lines, wanted = [], False
    for line in read_regular(path, LARGEST).splitlines(keepends=True):
        if line[:1] not in b" \t-#]}\r\n":  # a section begins
            wanted = line.startswith(tuple(f"{name}:".encode() for name in names))
        lines.append(line if wanted else b"\n")
    return KeptFiles({str(path.absolute()): b"".join(lines)}, {})


@contextmanager
def _no_collection() -> Iterator[None]:
    """Meanwhile the cyclic collector rests: it finds nothing among a document's nodes, and takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def of_url(url: str) -> Config:
    """A configuration that measures just this URL, from the location `local`. Raises ValueError."""
    if not url.isprintable():
        raise ValueError("the URL has a character that cannot be printed, which no URL has; correct it")
    problems = Problems()
    place = parse("URL", json.dumps(url, ensure_ascii=False).encode(), problems, Room())
    targets = Targets(Reader(problems, Sources(Path(), DiskFiles())))
    if place is not None:
        targets.take(place)
    try:
        problems.raise_any()
    except ConfigError as error:
        raise ValueError("; ".join(problem.message for problem in error.problems)) from None
    return Config(Agent(host_name() or "local"), Location("local"), "", Kafka(()), targets=tuple(targets.taken))


class _Loading:
    def __init__(self, path: Path, base: Path, files: Files | None = None, *, open_secrets: bool = True) -> None:
        self._path, self._base = path, base
        self._problems, self._files = Problems(), files or DiskFiles()
        self._reader = Reader(self._problems, Sources(base, self._files, open_secrets=open_secrets))
        self._targets = Targets(self._reader)
        self._digest = hashlib.blake2b(digest_size=6)
        self._left, self._room = LARGEST, Room()  # bytes that may still be read
        self._open_to_all: list[str] = []  # the files that every user of this machine can read

    def found(self, refusal: Callable[[Kafka], str | None]) -> Config | ConfigError:
        """The configuration, or what is wrong. Not raised from here: who keeps an error would keep all documents."""
        try:
            return self._run(refusal)
        except ConfigError as error:
            return ConfigError(error.problems, error.count)

    def _run(self, refusal: Callable[[Kafka], str | None]) -> Config:
        root = self._root()
        written = self._written(root, self._problems)
        fields = self._sections(root, written)
        self._read_targets(written)
        self._ask(refusal, fields, written)
        self._problems.raise_any()
        return build(
            Config,
            fields
            | {
                "targets": tuple(self._targets.taken),
                "digest": self._digest.hexdigest(),
                "notes": tuple(self._notes(written)),
            },
        )

    def kafka(self) -> Kafka:
        root = self._root()
        entry = self._written(root, Problems()).get("kafka")
        block = self._reader.known_fields([entry] if entry else [], {"kafka": rules(Config)["kafka"]})
        if not block:
            self._problems.note(root.mark, "kafka", f"is missing; write {REQUIRED['kafka']}")
        self._problems.raise_any()
        return build(Kafka, block["kafka"])

    def alone(self, names: Sequence[str]) -> dict[str, Any]:
        written = self._written(self._root(), Problems())
        known = {name: rules(Config)[name] for name in names}
        found = self._reader.known_fields([written[name] for name in known if name in written], known)
        self._problems.raise_any()
        return found

    def _root(self) -> Place:
        """Raises `ConfigError` when nothing is written there."""
        root = self._parsed(self._path)
        if root is None or root.empty:
            mend = f"write location, kafka and targets; `{CALLED} init FILE` makes one to start from"
            self._problems.note_if_none(Mark(str(self._path)), f"is empty; {mend}")
            raise self._problems.error()
        return root

    @staticmethod
    def _written(root: Place, problems: Problems) -> dict[str, Entry]:
        """The sections by name. Raises `ConfigError` when it is no mapping."""
        try:
            return {entry.name: entry for entry in entries(root, problems)}
        except Rejected:
            raise problems.error() from None

    def _sections(self, root: Place, written: dict[str, Entry]) -> dict[str, Any]:
        """All but the targets; what is missing and has no default is noted."""
        known = {name: rule for name, rule in rules(Config).items() if name not in ("agent", *APART)}
        names = dict.fromkeys([*rules(Config), *APART])
        meant: list[str] = []  # by unknown keys: that they are missing is no news then
        for name, entry in written.items():
            if name not in names:
                meant += self._reader.unknown(entry, names)
        fields = self._reader.known_fields([entry for name, entry in written.items() if name in known], known)
        fields["agent"] = {} if "agent" in meant else self._agent(root, written.get("agent"))
        fields.setdefault("state_directory", default_state_directory())
        for name, mend in REQUIRED.items():
            if name not in fields and name not in meant:
                self._problems.note(root.mark, name, f"is missing; write {mend}")
        for name, value in ((fields.get("kafka") or {}).get("properties") or {}).items():
            if is_read_by_client(name):
                self._files.leave(Path(value))
        return fields

    def _agent(self, root: Place, entry: Entry | None) -> dict[str, Any]:
        """The agent's id is the host's name where none is written, unless a thousand devices have the same."""
        place = root
        if entry is not None and not entry.value.empty:
            place = entry.value
            try:
                agent = self._reader.known_fields(entries(place, self._problems), rules(Agent))
            except Rejected:
                return {}
            if agent:
                return agent
        if (name := host_name()) is None:
            told = f"is missing, and this host's name, {quoted(socket.gethostname())}, tells no device from another"
            self._problems.note(place.mark, "agent.id", f"{told}; write agent: {{id: NAME}}")
        return {"id": name}

    def _read_targets(self, written: dict[str, Entry]) -> None:
        try:
            if "defaults" in written and not written["defaults"].value.empty:
                self._targets.default(written["defaults"].value)
        except Rejected:
            pass  # noted where it was raised; the targets are looked at all the same
        included = self._included(written)  # now, as nothing is left in a list of targets that was taken
        self._take_all(written["targets"].value if "targets" in written else None)
        for file in included:
            self._take_all(self._parsed(file))

    def _take_all(self, place: Place | None) -> None:
        if place is None or place.empty:
            return
        if place.is_mapping and not place.key:
            self._problems.note(
                place.mark, "", "is a mapping; write a list of targets alone, as - https://example.com/"
            )
            return
        try:
            for each in taken_out(place, self._problems):
                self._targets.take(each)
        except Rejected:
            pass  # it is no list, which was noted

    def _included(self, written: dict[str, Entry]) -> list[Path]:
        """The files of all patterns, each once, in the order of the patterns, sorted within one."""
        place = written["include"].value if "include" in written else None
        found: dict[Path, None] = {}
        if place is None or place.empty:
            return []
        try:
            patterns = items(place, self._problems) if place.is_list else [place]
            if len(patterns) > MOST_PATTERNS:
                self._reader.reject(place, f"has {len(patterns)} items; write at most {MOST_PATTERNS}")
        except Rejected:
            return []
        for each in patterns:
            with suppress(Rejected):  # noted; the other files are looked at all the same
                found |= dict.fromkeys(self._matching(each))
        if len(found) > MOST_FILES:
            self._problems.note(place.mark, place.key, f"matches {len(found)} files; at most {MOST_FILES} are read")
        return list(found)[:MOST_FILES]

    def _matching(self, place: Place) -> list[Path]:
        pattern = self._reader.text(place)
        if pattern is NOT_OPENED:
            return []
        literal = not glob.has_magic(pattern)
        not_there = f"{quoted(pattern)} is not there; correct the path, or use a pattern with *"
        names = [pattern] if literal else self._files.matching(self._base, pattern)
        files = [self._base / name for name in names]
        for file in files:
            try:
                found = self._files.stat(file)
            except OSError as error:
                if literal and isinstance(error, FileNotFoundError):
                    self._reader.reject(place, not_there)
                continue  # reading it will tell
            if not pattern:  # the base itself
                self._reader.reject(place, not_there)
            if stat.S_ISDIR(found.st_mode):
                self._reader.reject(place, f"{quoted(pattern)} matches a folder; write its files, as FOLDER/*.yaml")
            with suppress(OSError):
                if os.path.samestat(found, self._files.stat(self._path)):
                    told = f"{quoted(pattern)} matches this very file"
                    self._reader.reject(place, f"{told}; keep the others in a folder of their own, as targets.d/*.yaml")
        return files

    def _parsed(self, file: Path) -> Place | None:
        """The document in a file, whose bytes go into the digest; None for none. What is wrong is noted."""
        mark = Mark(str(file))
        try:
            data = self._read(file)
        except OSError as error:
            why = error.strerror or str(error)
            self._problems.note(mark, "", f"cannot be read: {why}; {_mend(error, file)}")
            return None
        if len(data) > self._left:
            told = f"is too large: the configuration's files have more than {LARGEST >> 20} MiB together"
            self._problems.note(mark, "", f"{told}; is it the right file?")
            return None
        self._left -= len(data)
        self._digest.update(len(data).to_bytes(8, "big") + data)
        return parse(str(file), data, self._problems, self._room)

    def _read(self, file: Path) -> bytes:
        """At most one byte more than is allowed. Raises OSError."""
        data = self._files.read(file, self._left + 1)
        if self._files.stat(file).st_mode & stat.S_IROTH:
            self._open_to_all.append(str(file))
        return data

    def _ask(self, refusal: Callable[[Kafka], str | None], fields: dict[str, Any], written: dict[str, Entry]) -> None:
        """Asks Kafka's client what it has against the block; it tells one property at a time."""
        block = fields.get("kafka")
        if block is None or None in block.values():
            return
        kafka, place = build(Kafka, block), written["kafka"].value
        at = {"": place}
        for entry in entries(place, self._problems):
            if entry.name == "properties" and kafka.properties:
                at = {"": entry.value} | {each.name: each.value for each in entries(entry.value, self._problems)}
        while (told := refusal(kafka)) is not None:
            named = max((name for name in kafka.properties if name in told), key=len, default="")
            message = f"is refused by librdkafka: {Mask(kafka).text(told)}; correct or remove it"
            self._problems.note(at[named].mark, at[named].key, message)
            if not named:
                break
            left = {name: value for name, value in kafka.properties.items() if name != named}
            kafka = msgspec.structs.replace(kafka, properties=left)

    def _notes(self, written: dict[str, Entry]) -> Iterator[str]:
        for name in NO_EFFECT_YET:
            if name in written:
                yield f"{self._path}: {name} is read and checked, and has no effect in this version"
        if not self._targets.taken:
            yield f"{self._path}: there are no targets, so nothing is measured; write some, or look at include"
        for file in self._open_to_all:
            if file in self._reader.inline_secrets:
                mend = "chmod o-r, or write {file: …} or {credential: …} in their place"
                yield f"{file}: secrets stand in it and everyone on this machine can read it; {mend}"


def _mend(error: OSError, file: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"correct the path, or make it: {CALLED} init {printable(str(file))}"
    if not isinstance(error, PermissionError):
        return "name a file of YAML text"
    with suppress(OSError, KeyError):  # it is not to be seen, or belongs to nobody who has a name
        there = file.stat()
        if there.st_uid != os.geteuid() and there.st_mode & (stat.S_IRGRP | stat.S_IROTH) == stat.S_IRGRP:
            return f"only {file.owner()} and the group {file.group()} may read it: try sudo"
    return "look at its owner and mode"


def host_name() -> str | None:
    """This host's name if it can be an agent's id; None for a name that many hosts have."""
    name = socket.gethostname()
    common = name.partition(".")[0].lower() in COMMON_NAMES
    return name if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) and not common else None


def default_state_directory() -> str:
    """Where the agent keeps its state when the configuration does not say (systemd.exec(5), XDG base directories)."""
    if given := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return given
    if os.geteuid() == 0:
        return "/var/lib/uptime-agent"
    return str(Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "uptime-agent")
