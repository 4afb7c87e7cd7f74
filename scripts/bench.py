"""The command line of the benchmark; what it does is in `benchmarks/`."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchmarks import cost, memory, report, resolver, spool, start, truth
from benchmarks.peers import PEERS, OtherAgent, Peer
from benchmarks.processes import BenchError


class Stopped(BaseException):
    """A signal asked to end."""


def main() -> int:
    """The exit status: 0, 1 when it could not measure, 130 after a signal."""
    arguments = parse()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        arguments.measure(arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except Stopped:
        return 130
    return 0


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """Ends what runs, in order; a second signal does not disturb that."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped


def parse() -> argparse.Namespace:
    """The arguments; `measure` is what to call with them."""
    parser = argparse.ArgumentParser(
        prog="./scripts/bench",
        description="Measures the agent side by side with its peers, in one run on this machine.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "cost",
        help="CPU and memory for a fresh check, HTTP and HTTPS, at equal rates",
        description=cost.TEACH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(measure=measure_cost)
    command.add_argument("--rates", type=numbers, default=[100, 500, 2_000], metavar="N,…", help="HTTP checks a second")
    command.add_argument(
        "--https-rates", type=numbers, default=[100, 500], metavar="N,…", help="HTTPS checks a second; empty for none"
    )
    side_by_side(command, seconds=8)

    command = commands.add_parser(
        "truth",
        help="errors of the reported latency and of the schedule, against a target farm that knows what happened",
        description=truth.TEACH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(measure=measure_truth)
    command.add_argument("--rate", type=int, default=1_000, metavar="N", help="checks a second (1000)")
    command.add_argument("--delay", type=float, default=20.0, metavar="MS", help="what the farm's answer takes (20 ms)")
    side_by_side(command, seconds=8)

    command = commands.add_parser(
        "memory",
        help="RSS by number of targets, for a connection in flight, and import by import",
        description=memory.TEACH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(measure=measure_memory)
    command.add_argument("--targets", type=numbers, default=[100, 10_000], metavar="N,…", help="empty for none")
    command.add_argument("--interval", type=float, default=60.0, metavar="S", help="of each target (60 s)")
    command.add_argument("--in-flight", type=int, default=1_000, metavar="N", help="silent targets (1000); 0 for none")
    command.add_argument("--in-flight-interval", type=float, default=10.0, metavar="S", help="and timeout (10 s)")
    command.add_argument("--seconds", type=float, default=5.0, metavar="S", help="over which it looks (5 s)")
    whom(command, ["agent"])

    command = commands.add_parser(
        "start",
        help="seconds from the start of the process to its first measurement",
        description=start.TEACH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(measure=measure_start)
    command.add_argument("--targets", type=int, default=100, metavar="N", help="each every second (100)")
    command.add_argument("--rounds", type=int, default=7, metavar="N", help="starts that count (7)")
    whom(command, ["agent"])

    command = commands.add_parser(
        "resolver",
        help="CPU of a lookup and the error of its time, beside getaddrinfo in threads and aiodns",
        description=resolver.TEACH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(measure=measure_resolver)
    command.add_argument("--rates", type=numbers, default=[100, 500], metavar="N,…", help="lookups a second (100,500)")
    command.add_argument("--delay", type=float, default=20.0, metavar="MS", help="what an answer takes (20 ms)")
    command.add_argument("--rounds", type=int, default=5, metavar="N", help="each peer in turn, so often (5)")
    command.add_argument("--seconds", type=float, default=4.0, metavar="N", help="that each is measured a round (4)")
    command.add_argument("--json", action="store_true", help="all figures as JSON")
    add_spool(commands)
    return parser.parse_args()


def add_spool(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The arguments of `bench spool`."""
    command = commands.add_parser(
        "spool",
        help="the queue on disk: CPU and flash of a record, replay, and what a large backlog takes",
        description=spool.TEACH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(measure=measure_spool)
    command.add_argument("--rates", type=numbers, default=[100, 1_000], metavar="N,…", help="records/s; empty for none")
    command.add_argument(
        "--flash-rates", type=numbers, default=[1, 10, 100], metavar="N,…", help="records/s; empty for none"
    )
    command.add_argument("--flash-seconds", type=float, default=32.0, metavar="S", help="of them all together (32 s)")
    command.add_argument("--backlog", type=float, default=1_024.0, metavar="MIB", help="on disk (1024); 0 for none")
    command.add_argument("--live", type=int, default=100, metavar="N", help="checks a second beside the backlog (100)")
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="each in turn, so often (3)")
    command.add_argument("--seconds", type=float, default=6.0, metavar="S", help="that each is measured a round (6 s)")
    command.add_argument("--json", action="store_true", help="all figures as JSON")


def side_by_side(command: argparse.ArgumentParser, seconds: float) -> None:
    """The options of whatever compares peers in rounds."""
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="each peer in turn, so often (3)")
    command.add_argument(
        "--seconds", type=float, default=seconds, metavar="N", help=f"that each is measured a round ({seconds:g})"
    )
    whom(command, list(PEERS))


def whom(command: argparse.ArgumentParser, peers: list[str]) -> None:
    """The options of all: whom it measures, and how that is told."""
    command.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=peers,
        metavar="NAME,…",
        help=f"of {', '.join(PEERS)} ({'all' if len(peers) > 1 else peers[0]})",
    )
    command.add_argument(
        "--other", type=Path, action="append", default=[], metavar="DIR", help="another checkout's agent as a peer"
    )
    command.add_argument("--broker", metavar="HOST:PORT", help="a Kafka to write to (default: an embedded one)")
    command.add_argument("--json", action="store_true", help="all figures as JSON")


def numbers(text: str) -> list[int]:
    """`1,2` → [1, 2]."""
    return [int(number) for number in text.split(",") if number]


def chosen(arguments: argparse.Namespace) -> tuple[list[Peer], dict[str, str]]:
    """The peers that are here, and the ways to get those that are not."""
    unknown = set(arguments.peers) - set(PEERS)
    if unknown:
        raise BenchError(f"{', '.join(sorted(unknown))}: not a peer; there are {', '.join(PEERS)}")
    here: list[Peer] = []
    absent: dict[str, str] = {}
    for name in arguments.peers:
        way = PEERS[name].absent()
        if way is None:
            here.append(PEERS[name])
        else:
            absent[name] = way
            report.say(f"{name} is not here, and left out; to get it: {way}")
    here += [OtherAgent(directory.resolve()) for directory in arguments.other]
    return here, absent


def measure_cost(arguments: argparse.Namespace) -> None:
    """`bench cost`."""
    peers, absent = chosen(arguments)
    rates = {"http": arguments.rates, "https": arguments.https_rates}
    found = cost.measure(cost.Plan(rates, peers, arguments.rounds, arguments.seconds, arguments.broker))
    tell(arguments, {"cost": found}, absent, report.cost)


def measure_truth(arguments: argparse.Namespace) -> None:
    """`bench truth`."""
    peers, absent = chosen(arguments)
    plan = truth.Plan(arguments.rate, arguments.delay, peers, arguments.rounds, arguments.seconds, arguments.broker)
    tell(arguments, {"truth": truth.measure(plan)}, absent, report.truth)


def measure_memory(arguments: argparse.Namespace) -> None:
    """`bench memory`."""
    peers, absent = chosen(arguments)
    plan = memory.Plan(
        arguments.targets,
        arguments.interval,
        arguments.in_flight,
        arguments.in_flight_interval,
        peers,
        arguments.seconds,
        arguments.broker,
    )
    tell(arguments, {"memory": memory.measure(plan)}, absent, report.memory)


def measure_start(arguments: argparse.Namespace) -> None:
    """`bench start`."""
    peers, absent = chosen(arguments)
    plan = start.Plan(arguments.targets, peers, arguments.rounds, arguments.broker)
    tell(arguments, {"start": start.measure(plan)}, absent, report.start)


def measure_resolver(arguments: argparse.Namespace) -> None:
    """`bench resolver`."""
    plan = resolver.Plan(arguments.rates, arguments.delay, arguments.rounds, arguments.seconds)
    found = resolver.measure(plan)
    tell(arguments, {"resolver": found}, found.pop("absent"), report.resolver)


def measure_spool(arguments: argparse.Namespace) -> None:
    """`bench spool`."""
    plan = spool.Plan(
        arguments.rates,
        arguments.flash_rates,
        arguments.flash_seconds,
        arguments.backlog,
        arguments.live,
        arguments.rounds,
        arguments.seconds,
    )
    found = spool.measure(plan)
    tell(arguments, {"spool": found}, found.pop("absent"), report.spool)


def tell(arguments: argparse.Namespace, found: dict[str, Any], absent: dict[str, str], table: "report.Table") -> None:
    """Prints what was found, for a person or as JSON."""
    whole = {"machine": report.machine(), "command": command_line(sys.argv[1:]), **found, "absent": absent}
    if arguments.json:
        print(json.dumps(whole, indent=1))
    else:
        table(whole)


def command_line(arguments: Sequence[str]) -> str:
    """What was asked, to be asked again."""
    return " ".join(["./scripts/bench", *arguments])


if __name__ == "__main__":
    sys.exit(main())
