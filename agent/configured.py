"""The configuration in force: what was read, what became of its files since, and what of it waits for a restart."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.config import Config, ConfigError, DiskFiles, default_state_directory, load, load_state_directory
from agent.delivery.kafka import refusal
from agent.device.clock import boottime, stamp
from agent.last_good import NAME, NoneKept, keep, load_last_good
from agent.status import ConfigNow

log = logging.getLogger(__name__)

TRY_AGAIN_SECONDS = 30.0  # until what was refused is looked at again, although nobody edited it
PROBLEMS_TOLD = 50  # of a `config_rejected` event, and in the log
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
    `refused`: what is wrong with the files, when `config` is the last good one instead, kept at `last_good`.
    """

    config: Config
    files: DiskFiles
    waiting: tuple[str, ...] = ()
    refused: ConfigError | None = None
    last_good: str = ""


class Configured:
    """The configuration at `path` that was last put in force, and its files.

    To be made when there is nothing in force: the last good one takes the place of a bad one. Raises `ConfigError`
    when there is neither; what is wrong is logged. Only `is_edited` and `load` may run in a thread.

    `client_files`: how those stood that Kafka's client reads itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._noted: set[str] = set()
        self._waiting: tuple[str, ...] = ()
        loaded = _begun(path)
        self._footprint = self._edited = loaded.files.footprint
        self.applied(loaded)

    def applied(self, loaded: Loaded) -> None:
        """To be called when it is put in force."""
        self.config, self._last_good = loaded.config, loaded.last_good
        self.client_files = loaded.files.of_client
        for note in self.config.notes:
            if note not in self._noted:
                log.warning("%s", note)
        for key in loaded.waiting:
            if key not in self._waiting:
                log.warning("%s: its change takes effect with a restart of the agent", key)
        self._noted, self._waiting = set(self.config.notes), loaded.waiting
        refused = loaded.refused
        self.problems = _told(self.path, refused.problems, refused.count) if refused else ()
        self._problem_count = refused.count if refused else 0
        self._try_again = boottime() + TRY_AGAIN_SECONDS
        self._applied_at = stamp(time.time())
        # For another state directory it would be of no use in this one.
        self._files = None if refused or "state_directory" in loaded.waiting else loaded.files

    def refuse(self, problems: Sequence[object], count: int, *, asked: bool) -> bool:
        """Says what is wrong with the files, `count` problems in all. False when that is known, and nobody `asked`."""
        # A file may have been good and not to be read for a moment; nobody edits it again for that.
        self._try_again = boottime() + TRY_AGAIN_SECONDS
        told = _told(self.path, problems, count)
        if told == self.problems and not asked:
            return False
        for problem in told[:PROBLEMS_TOLD]:
            log.error("%s", problem)
        log.error("%s: %d problem(s); the configuration before stays in force", self.path, count)
        self.problems, self._problem_count = told, count
        return True

    def is_edited(self) -> bool:
        """Whether something differs from what was loaded, and is the same as at the last look: nobody is writing.

        Or it is time to look again at what was refused.
        """
        before, self._edited = self._edited, self._footprint.now()
        edited = self._edited != self._footprint and self._edited == before
        return edited or (bool(self.problems) and boottime() >= self._try_again)

    def load(self) -> Loaded:
        """Reads the files anew. Raises `ConfigError`."""
        files = DiskFiles()
        self._footprint = files.footprint
        wanted, now, replace = load(self.path, refusal=refusal, files=files), self.config, msgspec.structs.replace
        config = replace(
            wanted,
            agent=now.agent,
            state_directory=now.state_directory,
            spool=now.spool,
            status=now.status,
            workers=now.workers,
            kafka=replace(wanted.kafka, topic=now.kafka.topic, events_topic=now.kafka.events_topic),
        )
        changed = tuple(key for key in ONLY_WITH_A_RESTART if attrgetter(key)(config) != attrgetter(key)(wanted))
        return Loaded(config, files, changed)

    def keeping(self) -> Callable[[], None]:
        """Work for a thread, as the disk may not answer: keeps the files for a start that finds bad ones."""
        files, self._files = self._files, None
        state_directory = Path(self.config.state_directory)

        def work() -> None:
            try:
                if files is not None:
                    keep(state_directory, self.path, files)
            except (OSError, ValueError) as error:
                told = "the configuration is not kept for a start that finds a bad one"
                log.warning("%s: %s: %s", state_directory / NAME, told, error)

        return work

    def now(self) -> ConfigNow:
        """What is in force, for people."""
        return ConfigNow(
            file=os.path.abspath(self.path),
            digest=self.config.digest,
            applied_at=self._applied_at,
            problems=self.problems,
            problem_count=self._problem_count,
            last_good=self._last_good,
            waiting=self._waiting,
        )


def _begun(path: Path) -> Loaded:
    files = DiskFiles()
    try:
        return Loaded(load(path, refusal=refusal, files=files), files)
    except ConfigError as error:
        refused = error
    for problem in _told(path, refused.problems, refused.count):
        log.error("%s", problem)  # so that the journal knows them for what they are
    try:
        state_directory = load_state_directory(path)
    except ConfigError:
        state_directory = Path(default_state_directory())
    try:
        config, date = load_last_good(state_directory, path, refusal)
    except NoneKept as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        raise refused from None
    log.warning("%s: the last good configuration, of %s, is in force until this is mended", path, date)
    return Loaded(config, files, refused=refused, last_good=date)


def _told(path: Path, problems: Sequence[object], count: int) -> tuple[str, ...]:
    told = [str(problem) for problem in problems[:PROBLEMS_TOLD]]
    if count > PROBLEMS_TOLD:
        told.append(f"{path}: and {count - PROBLEMS_TOLD} more problems")
    return tuple(told)
