"""Runs `uptime-agent` with the arguments after `FILE`, and at its end writes to FILE what each import took.

`imports.py FILE run --config …`. Memory and time are each package's own: what it imports itself is counted there. The
packages come in the order in which they were first imported, Python's own and the agent's parts summed up.
"""

import atexit
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_PAGE = resource.getpagesize() / (1 << 20)
_STAT = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115  # until the end


def rss() -> float:
    """MiB."""
    _STAT.seek(0)
    return int(_STAT.read().split()[1]) * _PAGE


class Imports:
    """A finder that finds as Python does, and notes what loading costs."""

    def __init__(self) -> None:
        self.costs: dict[str, list[float]] = {}  # by package: MiB, seconds
        self._inner = [[0.0, 0.0]]  # of each load that is going on: what those within it took

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            for step in ("create_module", "exec_module"):  # a library of C is loaded in the first
                setattr(spec.loader, step, self._noting(_group(name), getattr(spec.loader, step)))
        return spec

    def _noting(self, group: str, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def noted(argument: Any) -> Any:
            self.costs.setdefault(group, [0.0, 0.0])
            self._inner.append([0.0, 0.0])
            before = rss(), time.perf_counter()
            try:
                return step(argument)
            finally:
                took = rss() - before[0], time.perf_counter() - before[1]
                inner = self._inner.pop()
                for which in range(2):
                    self.costs[group][which] += took[which] - inner[which]
                    self._inner[-1][which] += took[which]

        return noted


def _group(name: str) -> str:
    top = name.partition(".")[0]
    if top == "agent":
        return "agent"
    if top in sys.stdlib_module_names and top not in {"asyncio", "ssl", "_ssl", "logging"}:
        return "other modules of Python"
    return top.removeprefix("_")


def main() -> None:
    """See above."""
    file, at_start = Path(sys.argv[1]), rss()
    imports = Imports()

    def tell() -> None:
        rows = [{"what": group, "mib": mib, "ms": seconds * 1000} for group, (mib, seconds) in imports.costs.items()]
        file.write_text(json.dumps({"python": at_start, "rows": rows, "end": rss()}))

    atexit.register(tell)
    sys.meta_path.insert(sys.meta_path.index(PathFinder), imports)
    from agent.cli import main as uptime_agent

    sys.exit(uptime_agent(sys.argv[2:]))


if __name__ == "__main__":
    main()
