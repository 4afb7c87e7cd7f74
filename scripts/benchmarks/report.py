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
    title = "CPU for a fresh check, on one core; ratio: the agent's over the peer's (goal)"
    columns = "µs/check", "user", "system", "rounds", "checks/s", "in Kafka", "MiB", "ratio", "goal"
    grid = _grid(whole, title, *columns)
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
    columns = "wait", "whole", "arrival", "start", "missed", "unseen", "untold", "false", "burst", "waited"
    grid = _grid(whole, title, *columns)
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
    grid.add_row("goals", *(goals.get(kind, "") for kind in ("wait", "whole", "arrival", "start")))
    _print(grid, whole)


def memory(whole: dict[str, Any]) -> None:
    """The tables of `bench memory`."""
    found = whole["memory"]
    if found["targets"]:
        grid = _grid(
            whole, f"RSS by number of targets, each every {found['interval']:g} s", "checks/s", "MiB", "peak", "goal"
        )
        for one in found["targets"]:
            goal = found["goals"].get(one["targets"]) if one["peer"] == "agent" else None
            told = "" if goal is None else _goal(one["rss_mib"], goal)
            name = f"{one['peer']}, {one['targets']} targets"
            grid.add_row(name, f"{one['rate']:.1f}", f"{one['rss_mib']:.1f}", f"{one['peak_mib']:.1f}", told)
        _print(grid, whole)
    if found["in_flight"]:
        grid = _grid(whole, "Connections in flight", "open", "MiB answered", "MiB in flight", "KiB a connection")
        for one in found["in_flight"]:
            figures = f"{one['answered_mib']:.1f}", f"{one['silent_mib']:.1f}", f"{one['kib_a_connection']:.1f}"
            grid.add_row(f"{one['scheme']}, {one['targets']} targets", f"{one['open']:g}", *figures)
        _print(grid, whole)
    imports = found["imports"]
    grid = _grid(whole, "Import by import", "MiB", "sum", "ms")
    total = imports["python"]
    grid.add_row("Python itself", f"{total:.1f}", f"{total:.1f}")
    for row in imports["rows"]:
        total += row["mib"]
        grid.add_row(row["what"], f"{row['mib']:.1f}", f"{total:.1f}", f"{row['ms']:.0f}")
    grid.add_row("the rest, while it ran", f"{imports['end'] - total:.1f}", f"{imports['end']:.1f}")
    _print(grid, whole)


def start(whole: dict[str, Any]) -> None:
    """The table of `bench start`."""
    found = whole["start"]
    grid = _grid(
        whole, f"From the process's start to its first measurement, {found['targets']} targets", "s", "rounds", "goal"
    )
    for name, one in found["peers"].items():
        goal = _goal(one["seconds"], found["goal"]) if name == "agent" else ""
        grid.add_row(name, f"{one['seconds']:.3f}", " ".join(f"{each:.2f}" for each in one["rounds"]), goal)
    _print(grid, whole)


def resolver(whole: dict[str, Any]) -> None:
    """The table of `bench resolver`."""
    found = whole["resolver"]
    title = f"A name's A and AAAA, which take {found['delay_ms']:g} ms, on one core; ratio: the agent's over the peer's"
    columns = "µs/lookup", "rounds", "lookups/s", "error p50 / p99 ms", "questions", "failed", "MiB", "ratio"
    grid = _grid(whole, title, *columns)
    for entry in found["rates"]:
        grid.add_section()
        grid.add_row(f"[bold]{entry['rate']}/s")
        for name, one in entry["peers"].items():
            grid.add_row(
                name,
                f"{one['cpu_us']:.0f}",
                " ".join(f"{each:.0f}" for each in one["rounds_cpu_us"]),
                f"{one['rate']:.0f}",
                f"{one['error_p50']:.3f} / {one['error_p99']:.3g}",
                f"{one['questions']:.2f}",
                f"{one['failed']:.0f}",
                f"{one['rss_mib']:.1f}",
                f"{entry['ratios'][name]:.2f}" if name in entry["ratios"] else "",
            )
    _print(grid, whole)


def spool(whole: dict[str, Any]) -> None:
    """The tables of `bench spool`."""
    found = whole["spool"]
    goals = found["goals"]
    if found["cpu"]:
        size = found["cpu"][0]["bytes_a_record"]
        grid = _grid(whole, f"CPU of a record of {size:.0f} bytes, µs", "whole", "rounds", "over without", "goal")
        for entry in found["cpu"]:
            grid.add_section()
            for name, one in entry["ways"].items():
                over = one["over_us"]
                each = " ".join(f"{each:.1f}" for each in one["rounds"])
                told = ("", "") if name == "without" else (f"{over:.1f}", _goal(over, goals["cpu_us"]))
                grid.add_row(f"{entry['rate']}/s, {name}", f"{one['cpu_us']:.1f}", each, *told)
        _print(grid, whole)
    if found["flash"]:
        grid = _grid(whole, "Written to flash, ext4, over a spool without records", "bytes/record", "goal", "bytes/s")
        for one in found["flash"]:
            goal = _goal(one["bytes"], goals["away" if one["broker"] == "away" else "up"])
            name = f"{one['rate']}/s, broker {one['broker']}"
            grid.add_row(name, f"{one['bytes']:,.1f}", goal, f"{one['bytes_a_second']:,.0f}")
        _print(grid, whole)
    if found["backlog"]:
        _print(_backlog(whole, found), whole)
        _print(_replay(whole, found), whole)


def _backlog(whole: dict[str, Any], found: dict[str, Any]) -> Grid:
    goals, made = found["goals"], found["backlog"]
    title = f"{made['bytes'] / (1 << 20):.0f} MiB of backlog: {made['records']:,} records in {made['files']:,} files"
    grid = _grid(whole, title, "s to the first check", "goal", "MiB", "peak", "goal")
    for name in ("with", "without"):
        start, rss, peak = (made[name][figure] for figure in ("start", "rss_mib", "peak_mib"))
        told = _goal(start, goals["start"]), f"{rss:.1f}", f"{peak:.1f}", _goal(peak, goals["rss_mib"])
        grid.add_row(f"{name} it, broker away", f"{start:.2f}", *told)
    return grid


def _replay(whole: dict[str, Any], found: dict[str, Any]) -> Grid:
    replay, goal = found["replay"], -found["goals"]["replay"]
    columns = "records/s", "goal", "late p50 / p99 ms", "CPU", "MiB", "peak"
    grid = _grid(whole, "Replay of it, on one core", *columns)
    nothing = replay["nothing"]
    told = f"{nothing:,.0f}", _goal(-nothing, goal), "", f"{replay['nothing_cpu_us']:.1f} µs/record"
    grid.add_row("the spool, into nothing", *told)
    for name in ("with", "without"):
        one = replay[name]
        grid.add_row(
            f"the agent {name} it",
            f"{one['records']:,.0f}",
            _goal(-one["records"], goal) if name == "with" else "",
            f"{one['late_p50']:.3f} / {one['late_p99']:.3g}",
            f"{one['cpu']:.0%}",
            f"{one['rss_mib']:.1f}",
            f"{one['peak_mib']:.1f}",
        )
    return grid


def _goal(value: float, goal: float) -> str:
    """Negative: at least that much."""
    told = f"≤ {goal:g}" if goal >= 0 else f"≥ {-goal:,.0f}"
    return f"[green]{told}" if value <= goal else f"[red]{told}"


def _grid(whole: dict[str, Any], title: str, *columns: str) -> Grid:
    caption = ", ".join(whole["machine"].values())
    grid = Grid("", title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in columns:
        grid.add_column(column, justify="right")
    return grid


def _print(grid: Grid, whole: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(grid)
    for name, way in whole["absent"].items():
        console.print(f"{name} was not here; to get it: {way}", highlight=False)
