"""The command line. Each command is one function that returns its exit status; nothing else parses arguments."""

import argparse
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from agent import __version__, log

DEFAULT_CONFIG = Path("/etc/uptime-agent/config.yaml")
GOOD, BAD, USAGE, UNKNOWN = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments` (default: the process's) name; returns the exit status."""
    _open_standard_streams()
    options = _parser().parse_args(arguments)
    log.set_up(options.log_level)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _write_no_more()
        return GOOD
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG):
            raise
        _write_no_more()
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


def _write_no_more() -> None:
    """The reader of our output left, as `head` does, or its disk is full: Python would complain again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uptime-agent",
        description="Measures whether websites and services are up, as seen from here; every result goes to Kafka.",
        epilog="First steps: `uptime-agent probe https://example.com` measures once; `uptime-agent init config.yaml` "
        "writes a configuration to start from; `uptime-agent run --config config.yaml` measures on.",
    )
    parser.add_argument("--version", action="version", version=f"uptime-agent {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--log-level", choices=log.LEVELS, default="info", help="what is logged (default: %(default)s)")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], teach: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=teach, description=teach[0].upper() + teach[1:] + ".", parents=[common])
        added.set_defaults(command=function)
        return added

    added = command("run", _run, "measure all targets of a configuration until told to stop")
    added.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")

    added = command("init", _init, "write a commented configuration to start from")
    added.add_argument(
        "file", type=Path, nargs="?", default=DEFAULT_CONFIG, help="`-` for stdout; default: %(default)s"
    )

    added = command("validate", _validate, "check a configuration as `run` would, and print every problem")
    added.add_argument("file", type=Path, nargs="?", default=DEFAULT_CONFIG, help="default: %(default)s")
    added.add_argument("--base-directory", type=Path, metavar="DIR", help="what includes and files are relative to")
    added.add_argument("--secrets", choices=("check", "skip"), default="check", help="skip: do not open them")
    added.add_argument("--print-effective", action="store_true", help="print the merged result, secrets masked")

    added = command("probe", _probe, "measure one target once, for a person; nothing goes to Kafka")
    added.add_argument("target", nargs="?", metavar="TARGET-ID or URL", help="an id of the configuration, else a URL")
    added.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}, if it is there")
    added.add_argument("--json", action="store_true", help="print the record as it would go to Kafka")
    added.add_argument("--all", action="store_true", help="measure every target of the configuration once")

    added = command("watch", _watch, "show the newest result of each target and location, live from Kafka")
    added.add_argument("--config", type=Path, metavar="FILE", help="lends its `kafka:` block with the credentials")
    added.add_argument("--bootstrap-servers", metavar="HOST:PORT,…", help="default: the configuration's")
    added.add_argument("--topic", help="default: the configuration's, else uptime.results")
    added.add_argument("--since", default="10m", metavar="DURATION", help="begin this long ago (default: %(default)s)")
    added.add_argument("--json", action="store_true", help="print each record as a line of JSON")

    added = command("schema", _schema, "print the JSON Schema of the configuration, a result record or an event record")
    added.add_argument("of", choices=("config", "result", "event"))
    return parser


def _run(options: argparse.Namespace) -> int:
    # The daemon has handlers of its own; to read ten thousand targets takes seconds until then.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(GOOD))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon listens: what is loaded now is the newest anyway
    from agent import daemon
    from agent.config import ConfigError, load
    from agent.delivery.kafka import refusal

    try:
        return daemon.run(options.config, load(options.config, refusal=refusal))
    except ConfigError as error:
        return _complain(error.problems)


def _init(options: argparse.Namespace) -> int:
    from agent.config.sample import sample

    if str(options.file) == "-":
        sys.stdout.write(sample())
        return GOOD
    try:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        with options.file.open("x") as new:
            new.write(sample())
    except FileExistsError:
        return _complain([f"{options.file}: is there already; name another file, or move it away"])
    except OSError as error:
        return _complain([f"{options.file}: cannot be written: {error.strerror}"])
    print(f"{options.file}: written. Edit it, then: uptime-agent validate {options.file}")
    return GOOD


def _validate(options: argparse.Namespace) -> int:
    from agent.config import ConfigError, load
    from agent.config.effective import effective
    from agent.delivery.kafka import refusal

    try:
        config = load(options.file, base_directory=options.base_directory, secrets=options.secrets, refusal=refusal)
    except ConfigError as error:
        return _complain(error.problems)
    for note in config.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.print_effective:
        sys.stdout.write(effective(config))
    else:
        print(f"{options.file}: good, {len(config.targets)} targets")
    return GOOD


def _probe(options: argparse.Namespace) -> int:
    from agent.config import ConfigError
    from agent.once import choose, measure

    if options.all == (options.target is not None):
        return _complain(["name a target or a URL, or give --all; see `uptime-agent probe --help`"], USAGE)
    path = options.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if options.all and path is None:
        return _complain([f"--all needs a configuration: give --config FILE, or write {DEFAULT_CONFIG}"], USAGE)
    try:
        config = choose(path, options.target)
    except ConfigError as error:
        return _complain(error.problems, USAGE)
    except ValueError as error:
        return _complain([error], USAGE)
    statuses = set()
    for status, record in measure(config):
        statuses.add(status)
        try:
            if options.json:
                sys.stdout.buffer.write(record + b"\n")
                sys.stdout.buffer.flush()
            else:
                from agent.show import show

                show(record)
        except BrokenPipeError:
            _write_no_more()  # the exit status is still the verdict
    return BAD if "down" in statuses else UNKNOWN if "unknown" in statuses else GOOD


def _watch(options: argparse.Namespace) -> int:
    from agent.config import ConfigError, duration, load
    from agent.config.model import Kafka
    from agent.delivery.kafka import DeliveryError, read
    from agent.watch import watch

    try:
        since = duration(options.since)
        if options.config is not None:
            kafka = load(options.config).kafka
        elif options.bootstrap_servers is None and DEFAULT_CONFIG.exists():
            kafka = load(DEFAULT_CONFIG).kafka
        elif options.bootstrap_servers is not None:
            kafka = Kafka(bootstrap_servers=())
        else:
            return _complain(["which broker? give --bootstrap-servers HOST:PORT, or --config FILE"], USAGE)
    except ConfigError as error:
        return _complain(error.problems, USAGE)
    except ValueError as error:
        return _complain([f"--since: {error}"], USAGE)
    if options.bootstrap_servers is not None:
        kafka = msgspec.structs.replace(kafka, bootstrap_servers=tuple(options.bootstrap_servers.split(",")))
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # leaves the terminal as it was, as Ctrl-C does
    try:
        watch(read(kafka, options.topic or kafka.topic, since), live=sys.stdout.isatty(), as_json=options.json)
    except DeliveryError as error:
        return _complain([error])
    except KeyboardInterrupt:
        pass  # the way to leave a live table
    return GOOD


def _schema(options: argparse.Namespace) -> int:
    from agent import record
    from agent.config.schema import config_schema

    schemas = {"config": config_schema, "result": record.result_schema, "event": record.event_schema}
    print(json.dumps(schemas[options.of](), indent=2))
    return GOOD


def _complain(problems: Iterable[object], status: int = BAD) -> int:
    for problem in problems:
        print(problem, file=sys.stderr)
    return status
