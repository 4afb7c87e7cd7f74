"""Whether the configuration's files were edited, and whoever edits them is done: from one look to the next."""

import os
from collections.abc import Iterator

from agent.config.files import Footprint
from agent.device.clock import boottime

# With two looks a second an edit is noticed within two: a rename at the second look, a write in place at the third.
RESTING_SECONDS = 0.9  # without a change, until a file that is written in place is whole
WAITED_SECONDS = 2.0  # for the others, until one that rests is enough
MOVING_SECONDS = 30.0  # until files that do not rest are read as they are


class Edits:
    """Looks at what was loaded last, as `footprint` has it."""

    def __init__(self, footprint: Footprint) -> None:
        self.loaded(footprint)

    def loaded(self, footprint: Footprint) -> None:
        """What is there now was loaded, or is being loaded."""
        self._loaded = self._before = footprint
        self._still: dict[str, float] = {}  # boot time from which on a file has stood as it does
        self._since: float | None = None  # boot time of the first look that saw an edit

    def are_over(self) -> bool:
        """Takes a look: something is not as it was loaded, and what is edited rests."""
        before, self._before = self._before, self._loaded.now()
        now = boottime()
        if self._before == self._loaded:
            self._still, self._since = {}, None
            return False
        self._since = now if self._since is None else self._since
        resting = [self._rests(file, before, now) for file in self._edited()]
        waited = now - self._since
        if all(resting) and self._before.patterns == before.patterns:
            return True
        return (any(resting) and waited >= WAITED_SECONDS) or waited >= MOVING_SECONDS

    def _edited(self) -> list[str]:
        new = [file for file in self._new() if self._before.look(file)]
        known = [file for file, seen in self._loaded.files.items() if self._before.look(file) != seen]
        return [*known, *new]

    def _new(self) -> Iterator[str]:
        """What the patterns match now and did not."""
        for (base, pattern), names in self._before.patterns.items():
            for name in set(names).difference(self._loaded.patterns[base, pattern]):
                yield os.path.join(base, name)

    def _rests(self, file: str, before: Footprint, now: float) -> bool:
        was, seen = before.files.get(file), self._before.look(file)
        if was != seen:
            replaced = was is not None and seen is not None and was.inode != seen.inode
            self._still[file] = 0.0 if replaced else now  # which is whole, as a rename brings it
            return False
        # So is one that was renamed, or given another mode, after it was written: the last write sets both stamps.
        whole = seen is None or seen.changed_ns != seen.modified_ns
        return whole or now - self._still.setdefault(file, now) >= RESTING_SECONDS
