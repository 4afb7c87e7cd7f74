"""The command line. Each command is one function that returns its exit status; nothing else parses arguments."""

import argparse
import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias, TypeVar

import msgspec

from agent import CALLED, __version__, log

DEFAULT_CONFIG = Path("/etc/uptime-agent/config.yaml")
GOOD, BAD, USAGE, UNKNOWN = 0, 1, 2, 3

T = TypeVar("T")
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EPILOG = f"""\
first steps:
  {CALLED} probe https://example.com   measures once, from here
  {CALLED} init my.yaml                writes a configuration to start from
  {CALLED} validate my.yaml            checks it
  {CALLED} run --config my.yaml        measures on, and sends to Kafka
  {CALLED} watch --config my.yaml      shows what comes to Kafka
"""
PROBE_EPILOG = """\
exit status:
  0  up
  1  down
  2  wrong usage, or a configuration that is no good
  3  unknown: this machine could not judge
With --all it is 1 if any target is down, else 3 if any is unknown.
"""

WATCH_EPILOG = f"""\
Does a device deliver? With the `run_id` that `uptime-agent status --json` has there:
  timeout 60 {CALLED} watch --json --since 5s --run 5f0c2a9177d04e1b --count 1

exit status:
  0  it was ended, or as many records came as --count says
  1  Kafka cannot be reached, or will not let it read
  2  wrong usage, or a configuration that is no good
130  it was ended before as many came
"""

SPOOL_EPILOG = """\
Nothing is taken or changed. A file of the spool goes when all of its records have
arrived, so some of what is shown may have arrived already.
"""


STATUS_EPILOG = """\
exit status:
  0  healthy
  1  degraded: the device's own trouble, never a target that is down
  3  no agent runs here, or it is too busy to answer
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments` (default: the process's) name; returns the exit status."""
    _open_standard_streams()
    try:
        try:
            options = _parser().parse_args(arguments)
            log.set_up(options.log_level)
            command: Callable[[argparse.Namespace], int] = options.command
            return command(options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _write_no_more(sys.stdout, sys.stderr)
        return GOOD
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG):
            raise
        _write_no_more(sys.stdout)
        return _complain([f"the output cannot be written: {error.strerror}"], USAGE)


def _open_standard_streams() -> None:
    """One that was closed would be taken by the first file that is opened, and written into."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(file)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  (for the life of the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _write_no_more(*streams: TextIO) -> None:
    """The reader of our output left, as `head` does, or its disk is full: Python would complain again at its end."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=CALLED,
        description="Measures whether websites and services are up, as seen from here.\nEvery result goes to Kafka.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"uptime-agent {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str,
        function: Callable[[argparse.Namespace], int],
        teach: str,
        epilog: str | None = None,
        among: _Commands = commands,
    ) -> argparse.ArgumentParser:
        added = among.add_parser(
            name,
            help=teach,
            description=teach[0].upper() + teach[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=function, log_level="info")
        return added

    added = command("run", _run, "measure all targets of a configuration until told to stop")
    added.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    added.add_argument("--log-level", choices=log.LEVELS, default="info", help="what is logged (default: %(default)s)")

    added = command("init", _init, "write a commented configuration to start from")
    added.add_argument(
        "file", type=Path, nargs="?", default=DEFAULT_CONFIG, help="`-` for stdout; default: %(default)s"
    )

    added = command("validate", _validate, "check a configuration as `run` would, and print every problem")
    added.add_argument("file", type=Path, nargs="?", default=DEFAULT_CONFIG, help="default: %(default)s")
    added.add_argument("--base-directory", type=Path, metavar="DIR", help="what includes and files are relative to")
    added.add_argument("--secrets", choices=("check", "skip"), default="check", help="skip: do not open them")
    added.add_argument("--print-effective", action="store_true", help="print the merged result, secrets masked")

    added = command("probe", _probe, "measure once, for a person; nothing goes to Kafka", PROBE_EPILOG)
    added.add_argument("target", nargs="?", metavar="TARGET-ID or URL", help="an id of the configuration, else a URL")
    added.add_argument("more", nargs="*", help=argparse.SUPPRESS)  # which is told better than by argparse
    added.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}, if it is there")
    added.add_argument("--json", action="store_true", help="print the record as it would go to Kafka")
    added.add_argument("--all", action="store_true", help="measure every target of the configuration once")

    teach = "show the newest result of each target and location, from Kafka"
    added = command("watch", _watch, teach, WATCH_EPILOG)
    added.add_argument("--config", type=Path, metavar="FILE", help="lends its `kafka:` block with the credentials")
    added.add_argument("--bootstrap-servers", type=_servers, metavar="HOST:PORT,…", help="default: the configuration's")
    added.add_argument("--topic", help="default: the configuration's, else uptime.results")
    added.add_argument(
        "--since", type=_duration, default="10m", metavar="DURATION", help="begin this long ago (default: %(default)s)"
    )
    added.add_argument("--json", action="store_true", help="print each record as a line of JSON")
    added.add_argument(
        "--run", type=_run_id, metavar="RUN-ID", help="only what this run of an agent sent; see `status`"
    )
    added.add_argument("--count", type=_count, metavar="N", help="end after so many records")

    _add_spool(commands, command)

    added = command(
        "status", _status, "show what the agent on this device knows: its own health and each target", STATUS_EPILOG
    )
    added.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    added.add_argument("--json", action="store_true", help="print it as a line of JSON")

    added = command("schema", _schema, "print the JSON Schema of the configuration, or of a record")
    of = ("config", "result", "event")
    added.add_argument("of", choices=of, metavar=f"{{{','.join(of)}}}", help="what is described")
    return parser


def _add_spool(commands: _Commands, command: Callable[..., argparse.ArgumentParser]) -> None:
    teach = "look at the spool: what waits on disk, also while the agent runs"
    spool = commands.add_parser("spool", help=teach, description=teach[0].upper() + teach[1:] + ".")
    looks = spool.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = command("status", _spool_status, "show what waits, and what is wrong", SPOOL_EPILOG, looks)
    status.add_argument("--json", action="store_true", help="print it as a line of JSON")
    teach = "print the records as lines of JSON, without taking them"
    dump = command("dump", _spool_dump, teach, SPOOL_EPILOG, looks)
    dump.add_argument("--rejected", action="store_true", help="those instead that Kafka refused, kept for people")
    for each in (status, dump):
        each.add_argument("directory", type=Path, nargs="?", metavar="DIR", help="default: the configuration's")
        each.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")


def _servers(text: str) -> tuple[str, ...]:
    from agent.config.forms import server

    return tuple(_argument(server, each.strip()) for each in text.split(","))


def _duration(text: str) -> float:
    from agent.config import duration

    return _argument(duration, text)


def _run_id(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{16}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a run's id; write it as a record has it, 5f0c2a9177d04e1b")
    return text


def _count(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of records; write 1 or more")
    return int(text)


def _argument(read: Callable[[str], T], text: str) -> T:
    """A value as it is written in the configuration. Raises argparse's own error."""
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{json.dumps(text, ensure_ascii=False)} {error}") from None


def _run(options: argparse.Namespace) -> int:
    # The daemon has handlers of its own; to read ten thousand targets takes seconds until then.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(GOOD))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon listens: what is loaded now is the newest anyway
    from agent import daemon
    from agent.config import ConfigError
    from agent.configured import Configured
    from agent.device.systemd import Systemd

    try:
        configured = Configured(options.config)
    except ConfigError as error:  # which was told
        Systemd().status(f"cannot start: {error.problems[0]}")
        return BAD
    return daemon.run(configured)


def _init(options: argparse.Namespace) -> int:
    from agent.config.sample import sample

    if str(options.file) == "-":
        sys.stdout.write(sample())
        return GOOD
    try:
        _write(options.file, sample())
    except OSError as error:
        return _complain([f"{options.file}: {_not_written(options.file, error)}"])
    print(f"{options.file}: written. Edit it, then: {CALLED} validate {options.file}")
    return GOOD


def _write(file: Path, text: str) -> None:
    """Makes a file that was not there, with its directory; a half-written one does not stay. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as new:
        try:
            new.write(text)
            new.flush()
        except OSError:
            file.unlink()
            raise


def _not_written(file: Path, error: OSError) -> str:
    if os.path.isdir(file):
        return f"is a directory; name a file in it, as {file / 'config.yaml'}"
    if isinstance(error, FileExistsError) and os.path.lexists(file):
        return "is there already; name another file, or move it away"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"cannot be written, as {error.filename} is not a directory; name another file"
    if isinstance(error, PermissionError):
        return f"cannot be written: {error.strerror}; name a file of your own, or run this with sudo"
    return f"cannot be written: {error.strerror}; name another file"


def _validate(options: argparse.Namespace) -> int:
    from agent.config import ConfigError, load
    from agent.config.effective import effective
    from agent.delivery.kafka import refusal

    try:
        config = load(options.file, base_directory=options.base_directory, secrets=options.secrets, refusal=refusal)
    except ConfigError as error:
        return _complain([error])
    for note in config.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.print_effective:
        sys.stdout.write(effective(config))
    else:
        targets = f"{len(config.targets)} target{'' if len(config.targets) == 1 else 's'}"
        print(f"{options.file}: good, {targets}, digest {config.digest}")
    return GOOD


def _probe(options: argparse.Namespace) -> int:
    from agent.config import ConfigError
    from agent.once import choose, measure

    if options.more:
        return _complain(["one at a time: name one target or URL, or measure all of a configuration with --all"], USAGE)
    if options.all and options.target is not None:
        return _complain(["give a target or --all, not both"], USAGE)
    if not options.all and options.target is None:
        return _complain([f"name a target or a URL, or give --all; see `{CALLED} probe --help`"], USAGE)
    path = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if options.all and path is None:
        return _complain([f"--all needs a configuration: give --config FILE, or write {DEFAULT_CONFIG}"], USAGE)
    try:
        config = choose(path, options.target)
    except ConfigError as error:
        return _complain([error], USAGE)
    except ValueError as error:
        return _complain([error], USAGE)
    if not config.targets:
        return _complain([f"{path}: there is no target to measure; write some that are enabled"], USAGE)
    statuses = []
    for status, record in measure(config):
        statuses.append(status)
        try:
            if options.json:
                sys.stdout.buffer.write(record + b"\n")
                sys.stdout.buffer.flush()
            else:
                from agent.show import show

                show(record)
                if options.all:
                    print()
        except BrokenPipeError:
            _write_no_more(sys.stdout)  # the exit status is still the verdict
    if options.all and not options.json:
        from agent.show import tally

        print(tally(statuses).plain)
    return BAD if "down" in statuses else UNKNOWN if "unknown" in statuses else GOOD


def _watch(options: argparse.Namespace) -> int:
    from agent.config import ConfigError, load_kafka
    from agent.config.masking import Mask
    from agent.config.model import Kafka
    from agent.delivery.kafka import DeliveryError, read
    from agent.watch import of_run, watch

    servers = options.bootstrap_servers
    path = options.config or (DEFAULT_CONFIG if servers is None and DEFAULT_CONFIG.exists() else None)
    if path is None and servers is None:
        return _complain(["which broker? give --bootstrap-servers HOST:PORT, or --config FILE"], USAGE)
    try:
        kafka = Kafka(()) if path is None else load_kafka(path)
    except ConfigError as error:
        return _complain([error], USAGE)
    if servers is not None:
        kafka = msgspec.structs.replace(kafka, bootstrap_servers=servers)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # leaves the terminal as it was, as Ctrl-C does
    try:
        readings = read(kafka, options.topic or kafka.topic, options.since)
        if options.run is not None:
            readings = of_run(readings, options.run)
        watch(readings, live=sys.stdout.isatty(), as_json=options.json, count=options.count)
    except DeliveryError as error:
        return _complain([Mask(kafka).text(str(error))])
    except KeyboardInterrupt:
        if options.count is not None:
            raise  # else it is the way to leave a live table
    return GOOD


def _status(options: argparse.Namespace) -> int:
    from agent.config import ConfigError, default_state_directory, load_state_directory
    from agent.overview import show
    from agent.status import SOCKET, ask

    places = [Path("/run/uptime-agent", SOCKET)]  # where the unit has it (RuntimeDirectory=)
    told: list[str] = []
    silent: list[str] = []
    first = "no agent runs here on this configuration; start it, or name another with --config"
    try:
        places.insert(0, load_state_directory(options.config) / SOCKET)
    except ConfigError as error:  # it may not be ours to read, or be half edited
        told.append(str(error))
        places.insert(0, Path(default_state_directory(), SOCKET))
    for path in places:
        try:
            status = ask(path)
        except TimeoutError:
            first = f"an agent is there at {path}, and busy: it does not answer; try again"
            continue
        except (OSError, ValueError) as error:
            silent.append(f"{path} ({getattr(error, 'strerror', error)})")
            continue
        if not _same(Path(status.config.file), options.config):
            told.append(f"the agent that answers at {path} runs on {status.config.file}, not on {options.config}")
            continue
        if options.json:
            print(msgspec.json.encode(status).decode())
        else:
            show(status)
        return GOOD if status.health == "healthy" else BAD
    if silent:
        told.append(f"no agent answers at {' or '.join(silent)}")
    return _complain([first, *told], UNKNOWN)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _spool_status(options: argparse.Namespace) -> int:
    from agent.spool.status import CannotRead, status
    from agent.waiting import show

    directory = _spool_directory(options)
    if directory is None:
        return USAGE
    try:
        found = status(directory)
    except CannotRead as error:
        return _complain([error])
    if options.directory is not None and not found.segments and (directory / "spool").is_dir():
        return _complain([f"{directory}: is not a spool; did you mean {directory / 'spool'}?"])
    if options.json:
        print(msgspec.json.encode(found).decode())
    else:
        show(found)
    return GOOD


def _spool_dump(options: argparse.Namespace) -> int:
    from agent.spool.status import CannotRead, dump, dump_rejected
    from agent.waiting import write

    directory = _spool_directory(options)
    if directory is None:
        return USAGE
    if not os.path.lexists(directory):
        print(f"{directory}: there is no spool, so nothing waits", file=sys.stderr)
    try:
        write(dump_rejected(directory) if options.rejected else dump(directory))
    except CannotRead as error:
        return _complain([error])
    return GOOD


def _spool_directory(options: argparse.Namespace) -> Path | None:
    """None when there is none that is known, which was told."""
    from agent.config import ConfigError, load_directories

    if options.directory is not None:
        return Path(options.directory)
    try:
        return load_directories(options.config).spool
    except ConfigError as error:
        _complain([error, "or name the spool's directory, as /var/lib/uptime-agent/spool"])
        return None


def _schema(options: argparse.Namespace) -> int:
    from agent import record
    from agent.config.schema import config_schema

    schemas = {"config": config_schema, "result": record.result_schema, "event": record.event_schema}
    print(json.dumps(schemas[options.of](), indent=2))
    return GOOD


def _complain(problems: Iterable[object], status: int = BAD) -> int:
    try:
        for problem in problems:
            print(problem, file=sys.stderr)
    except BrokenPipeError:
        _write_no_more(sys.stderr)  # the exit status is still true
    return status
