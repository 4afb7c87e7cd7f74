"""The configuration in force: what was read, what became of its files since, and what of it waits for a restart."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec

from agent import CALLED
from agent.config import Config, ConfigError, DiskFiles, default_state_directory, load, load_state_directory
from agent.config.problems import told
from agent.delivery.kafka import refusal
from agent.device.clock import boottime, stamp
from agent.edits import Edits
from agent.last_good import NAME, NoneKept, keep, load_last_good
from agent.status import ConfigNow

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)
Kept: TypeAlias = tuple[DiskFiles | None, str]

TRY_AGAIN_SECONDS = 30.0  # until what was refused is looked at again, although nobody edited it
NOT_KEPT = "the configuration is not kept for a start that finds a bad one"
PROBLEMS_TOLD = 50  # of a `config_rejected` event, and in the log
PROBLEMS_AT_START = 5  # in the log of a start that fails
ONLY_WITH_A_RESTART = (
    "agent.id",
    "state_directory",
    "spool",
    "status.listen",
    "workers",
    "kafka.topic",
    "kafka.events_topic",
)


class Loaded(NamedTuple):
    """A configuration that was found good, and is not in force yet.

    `files`: those on the disk. `waiting`: the keys that say something else there, which takes effect with a restart.
    `refused`: what is wrong with the files, when `config` is the last good one instead; `last_good_at`: of which date.
    """

    config: Config
    files: DiskFiles
    waiting: tuple[str, ...] = ()
    refused: ConfigError | None = None
    last_good_at: str | None = None


class Configured:
    """The configuration at `path` that was last put in force, and its files.

    To be made when there is nothing in force: the last good one takes the place of a bad one. Raises `ConfigError`
    when there is neither; what is wrong is logged. Only `is_edited` and `load` may run in a thread.

    `problems`: what is wrong with the files now, the first `PROBLEMS_TOLD` of `problem_count`. `client_files`: how
    those stood that Kafka's client reads itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._noted: set[str] = set()
        self._not_kept = ""
        self._waiting: tuple[str, ...] = ()
        loaded = _load_first(path)
        self._edits = Edits(loaded.files.footprint)
        self.apply(loaded)

    def apply(self, loaded: Loaded) -> None:
        """Puts it in force."""
        self.config, self._last_good_at = loaded.config, loaded.last_good_at
        self.client_files = loaded.files.of_client
        _say(logging.WARNING, (note for note in self.config.notes if note not in self._noted))
        for key in loaded.waiting:
            if key not in self._waiting:
                log.warning("%s: its change takes effect with a restart of the agent", key)
        self._noted, self._waiting = set(self.config.notes), loaded.waiting
        refused = loaded.refused
        self._keep_problems(refused.problems if refused else (), refused.count if refused else 0)
        self._applied_at = stamp(time.time())
        # For another state directory it would be of no use in this one.
        self._files = None if refused or "state_directory" in loaded.waiting else loaded.files

    def refuse(self, problems: Sequence[object], count: int, *, asked: bool) -> bool:
        """Says what is wrong with the files, `count` problems in all. False when that is known, and nobody `asked`."""
        before = self.problems, self.problem_count
        self._keep_problems(problems, count)
        if before == (self.problems, self.problem_count) and not asked:
            return False
        _say(logging.ERROR, told(self.problems, count))
        log.error("%s: refused; the configuration before stays in force", self.path)
        return True

    def _keep_problems(self, problems: Sequence[object], count: int) -> None:
        self.problems, self.problem_count = tuple(map(str, problems[:PROBLEMS_TOLD])), count
        # A file may have been good and not to be read for a moment; nobody edits it again for that.
        self._try_again = boottime() + TRY_AGAIN_SECONDS

    def is_edited(self) -> bool:
        """Whether something differs from what was loaded, and nobody is writing, as far as can be told from its files.

        Or it is time to look again at what was refused.
        """
        return self._edits.are_over() or (bool(self.problems) and boottime() >= self._try_again)

    def load(self) -> Loaded:
        """Reads the files anew. Raises `ConfigError`."""
        files = DiskFiles()
        self._edits.loaded(files.footprint)
        wanted = load(self.path, refusal=refusal, files=files)
        config, waiting = wanted, []
        for key in ONLY_WITH_A_RESTART:
            now = attrgetter(key)(self.config)
            if attrgetter(key)(wanted) != now:
                config = _replaced(config, key, now)
                waiting.append(key)
        return Loaded(config, files, tuple(waiting))

    @property
    def unkept(self) -> bool:
        """Whether what is in force is still to be kept."""
        return self._files is not None

    def keeping(self) -> Callable[[], Kept]:
        """Work for a thread, as the disk may not answer: keeps the files for a start that finds bad ones."""
        files, state_directory = self._files, Path(self.config.state_directory)

        def work() -> Kept:
            try:
                if files is not None:
                    keep(state_directory, self.path, files)
            except (OSError, ValueError) as error:
                log.warning("%s: %s: %s", state_directory / NAME, NOT_KEPT, error)
                # Files that are too large stay so.
                return files, f"{NOT_KEPT}: {error}" if isinstance(error, OSError) else ""
            return files, ""

        return work

    def kept(self, files: DiskFiles | None, failure: str) -> None:
        """What came of it: after a failure it is to be done again."""
        self._not_kept = failure
        if files is self._files and not failure:
            self._files = None

    def now(self) -> ConfigNow:
        """What is in force, for people."""
        return ConfigNow(
            file=os.path.abspath(self.path),
            digest=self.config.digest,
            applied_at=self._applied_at,
            problems=self.problems,
            problem_count=self.problem_count,
            last_good_at=self._last_good_at,
            waiting=self._waiting,
            not_kept=self._not_kept,
        )


def _load_first(path: Path) -> Loaded:
    files = DiskFiles()
    try:
        return Loaded(load(path, refusal=refusal, files=files), files)
    except ConfigError as error:
        refused = error
    try:
        state_directory = load_state_directory(path)
    except ConfigError:
        state_directory = Path(default_state_directory())
    try:
        config, date = load_last_good(state_directory, path, refusal)
    except NoneKept as error:
        # The service manager starts the agent again and again, and each time this is logged.
        shown, more = refused.problems[:PROBLEMS_AT_START], refused.count - PROBLEMS_AT_START
        _say(logging.ERROR, map(str, shown))
        if more > 0:
            log.error("and %d more: `%s validate %s` shows all", more, CALLED, path)
        _say(logging.ERROR, str(error).splitlines()[: 1 + PROBLEMS_AT_START])
        raise refused from None
    _say(logging.ERROR, told(refused.problems[:PROBLEMS_TOLD], refused.count))
    log.warning("%s: the last good configuration, of %s, is in force until this is mended", path, date)
    return Loaded(config, files, refused=refused, last_good_at=date)


def _say(level: int, lines: Iterable[str]) -> None:
    """Logs each as a line of its own: the journal knows all for what they are, and none is left out as one of many."""
    for line in lines:
        log.log(level, "%s", line, extra={"kind": line})


def _replaced(struct: S, key: str, value: object) -> S:
    """The same with another value at the key, which may have dots."""
    name, _, rest = key.partition(".")
    return msgspec.structs.replace(struct, **{name: _replaced(getattr(struct, name), rest, value) if rest else value})
