"""What an agent knows of itself, drawn for a person."""

from rich.text import Text

from agent.show import VERDICTS, Terminal, many, milliseconds, named, tally
from agent.status import Status, TargetNow

LABEL = 10  # columns
KAFKA = {"up": "acknowledges", "lost": "acknowledges nothing", "unknown": "not reached yet"}


def show(status: Status) -> None:
    """Prints the agent's health, then each target with its last verdict, those that are not up first."""
    out = Terminal()
    out.print(Text(status.health, "bold green" if status.health == "healthy" else "bold yellow"), end="  ")
    out.print(out.printable(f"{status.agent} at {status.location}, uptime-agent {status.version}"), soft_wrap=True)
    for why in status.why:
        out.print(Text(f"  {out.printable(why)}", "yellow"), soft_wrap=True)
    for notice in status.notices:
        out.print(Text(f"  notice: {out.printable(notice)}", "yellow"), soft_wrap=True)
    out.print()
    for label, text in _facts(status):
        out.print(Text(f"  {label:<{LABEL}}", "dim"), Text(out.printable(text)), sep="", soft_wrap=True)
    if not status.targets:
        return
    out.print()
    out.print(Text(f"  {'targets':<{LABEL}}", "dim"), tally(_verdicts(status), out.encoding), sep="")
    width = min(max(len(named(target.id, target.source)) for target in status.targets), 50)
    for target in sorted(status.targets, key=lambda each: (each.status == "up", each.id)):
        out.print(_row(out, target, width), soft_wrap=True)


def _facts(status: Status) -> list[tuple[str, str]]:
    broker, spool = status.broker, status.spool
    measured = "known after the first 15 s"
    if status.checks_per_second is not None:
        late = "" if status.lateness_max_ms is None else f", at most {status.lateness_max_ms:.1f} ms late"
        measured = f"{status.checks_per_second:g} a second{late}"
    waits = "nothing"
    if spool.oldest_s is not None:
        memory = many(spool.records, "record")
        waits = f"{spool.bytes:,} bytes on disk for {spool.oldest_s:,.0f} s; in memory as well: {memory}"
    facts = [
        ("runs", f"for {status.uptime_s:,.0f} s, run {status.run} ({status.run_id})"),
        ("measures", measured),
        ("Kafka", KAFKA[broker.state] + _since(broker.lost_s)),
        ("waits", waits),
        ("device", _device(status)),
        ("config", f"{status.config.file} ({status.config.digest}), applied {status.config.applied_at}"),
    ]
    if status.config.waiting:
        facts.append(("restart", f"is waited for by {', '.join(status.config.waiting)}"))
    return facts


def _device(status: Status) -> str:
    """What is known of it; all but the first of the last heartbeat."""
    vitals, disk = status.vitals, status.disk
    told = ["up" if status.boottime_s is None else f"up for {status.boottime_s / 3600:,.1f} h"]
    if vitals.load is not None:
        told.append(f"load {vitals.load[0]:g}")
    if vitals.temperature_c is not None:
        told.append(f"{vitals.temperature_c:.0f} °C")
    for what, free, total in (
        ("memory", vitals.memory_available_bytes, vitals.memory_total_bytes),
        ("disk", disk.disk_free_bytes, disk.disk_total_bytes),
    ):
        if free is not None and total is not None:
            told.append(f"{what} {free >> 20:,} of {total >> 20:,} MiB free")
    if vitals.wifi_signal_dbm is not None:
        told.append(f"Wi-Fi {vitals.wifi_signal_dbm} dBm")
    return ", ".join(told)


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f" for {seconds:,.0f} s"


def _verdicts(status: Status) -> list[str]:
    return [target.status or "not measured yet" for target in status.targets]


def _row(out: Terminal, target: TargetNow, width: int) -> Text:
    verdict = target.status or "-"
    row = Text(f"  {out.printable(named(target.id, target.source)):<{width}}  ")
    row.append(f"{out.printable(verdict):<8}", VERDICTS.get(verdict, "dim"))
    row.append(
        f" {milliseconds(target.duration_ms):>10}  {target.at or '':<28}{out.printable(target.error or '')}".rstrip()
    )
    return row
