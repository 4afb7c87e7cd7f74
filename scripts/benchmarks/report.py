"""What a person reads: progress on standard error, tables on standard output."""

import os
import platform
import re
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

Table = Callable[[dict[str, Any]], None]


def say(text: str) -> None:
    """Tells how it gets on."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, str]:
    """What figures depend on."""
    model = re.search(r"^(?:model name|Model)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
    }


def cost(whole: dict[str, Any]) -> None:
    """The table of `bench cost`."""
    grid = _grid(whole, "CPU for a fresh check, on one core; ratio: the agent's over the peer's (goal)")
    for column in ("", "µs/check", "user", "system", "rounds", "checks/s", "in Kafka", "MiB", "ratio", "goal"):
        grid.add_column(column, justify="left" if not column else "right")
    for entry in whole["cost"]:
        grid.add_section()
        grid.add_row(f"[bold]{entry['scheme']} at {entry['rate']:g}/s")
        for name, one in entry["peers"].items():
            ratio, goal = entry["ratios"].get(name), entry["goals"].get(name)
            full = " [red]saturated" if one["saturated"] else ""
            grid.add_row(
                name,
                f"{one['cpu_us']:.0f}",
                f"{one['user_us']:.0f}",
                f"{one['system_us']:.0f}",
                " ".join(f"{each:.0f}" for each in one["rounds_cpu_us"]),
                f"{one['rate']:.0f}{full}",
                f"{one['records']:.1%}" if one["records"] else "",
                f"{one['rss_mib']:.1f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if goal is None or ratio is None else _goal(ratio, goal),
            )
    _print(grid, whole)


def truth(whole: dict[str, Any]) -> None:
    """The table of `bench truth`."""
    found = whole["truth"]
    title = f"Errors at {found['rate']:g} checks/s and {found['delay_ms']:g} ms: p50 / p99 in ms, on one core"
    grid = _grid(whole, title)
    for column in ("", "wait", "whole", "arrival", "start", "missed", "unseen", "untold", "false", "burst", "waited"):
        grid.add_column(column, justify="left" if not column else "right")
    for name, one in found["peers"].items():
        grid.add_row(
            name,
            *(
                "" if one[f"{kind}_p50"] is None else f"{one[f'{kind}_p50']:.3f} / {one[f'{kind}_p99']:.3g}"
                for kind in ("wait", "whole", "arrival", "start")
            ),
            f"{one['missed']} ({one['missed_told']})",
            *(str(one[count]) for count in ("unseen", "untold", "false_alarms")),
            f"{one['burst']:g} ({one['burst_planned']:g})",
            f"{one['waited']:.1%}",
        )
    goals = {kind: f"≤ {p50:g} / {p99:g}" for kind, (p50, p99) in found["goals"].items()}
    grid.add_section()
    grid.add_row("the agent's goals", *(goals.get(kind, "") for kind in ("wait", "whole", "arrival", "start")))
    _print(grid, whole)


def _goal(value: float, goal: float) -> str:
    return f"[green]≤ {goal:g}" if value <= goal else f"[red]≤ {goal:g}"


def _grid(whole: dict[str, Any], title: str) -> Grid:
    return Grid(title=title, caption=", ".join(whole["machine"].values()), title_justify="left", caption_justify="left")


def _print(grid: Grid, whole: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(grid)
    for name, way in whole["absent"].items():
        console.print(f"{name} was not here; to get it: {way}", highlight=False)
