"""The truth campaign: through every fault of the device's way out, resolver and self no site that is well is blamed.
And no site that is dead is excused while all else is well.

With TRUTH_ROUNDS=20 each fault comes so often, for thousands of checks.
"""

import contextlib
import ipaddress
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest

from agent.device.clock import boottime
from agent.probers import dns
from agent.record import event_schema, result_schema
from agent.schedule import STALL
from agent.verdict.evidence import LOSS_SECONDS
from tests.probers import certificates
from tests.truth.world import OTHER_RESOLVER, ROUTER, Agent, World, missing

ROUNDS = int(os.environ.get("TRUTH_ROUNDS", "1"))
FIRST, FAULT, BETWEEN = 10.0, 3.0, 1.5  # seconds
AFTERWARDS = 2.0  # seconds after a fault until all is well again; with loss among the faults so much longer:
LOSS = LOSS_SECONDS + 2.0
LOSSY, FEW_OF_LOSS = "30 % lost", 0.1  # the fault, and the share of what fails by it that a site may be blamed for

Fault = Callable[[World, Agent], AbstractContextManager[None]]

WELL = "".join(
    [f"  - {{id: w{n}, url: 'http://11.7.1.{n}/', timeout: 1s}}\n" for n in range(1, 15)]
    + [f"  - {{id: slow{n}, url: 'http://11.7.1.{n}/', interval: 3s, timeout: 2500ms}}\n" for n in range(15, 21)]
    + [f"  - {{id: n{n}, url: 'http://n{n}.example/', timeout: 1s}}\n" for n in range(21, 27)]
    + [f"  - {{id: s{n}, url: 'http://[2a00:7:1::{n}]/', timeout: 900ms}}\n" for n in range(1, 4)]
    + [f"  - {{id: p{n}, url: 'icmp://11.7.1.{n}', timeout: 1s}}\n" for n in range(27, 29)]
    + [f"  - {{id: pn{n}, url: 'icmp://n{n}.example', timeout: 1s}}\n" for n in (29, 30)]
    + [f"  - {{id: d{n}, url: 'dns://{OTHER_RESOLVER}/n{n}.example', timeout: 1s}}\n" for n in (33, 34)]
    + [f"  - {{id: t{n}, url: 'https://n{n}.example/', ip: 4, timeout: 1s, tls: {{ca: CA}}}}\n" for n in range(36, 39)]
    + [
        f"  - {{id: t{n}, url: 'https://n{n}.example/', connect_to: {n - 32}.7.1.{n}, timeout: 1s, tls: {{ca: CA}}}}\n"
        for n in range(43, 46)
    ]
)
DEAD = {
    "silent": "http://11.7.9.9/",
    "silent6": "http://[2a00:7:9::9]/",
    "mute": "http://11.7.1.9:81/",
    "unreachable": "http://11.7.8.9/",
    "echoless": "icmp://11.7.9.9",
    "closed": "http://11.7.1.9:82/",
    "ill": "http://11.7.1.9/ill",
    "gone": "http://gone.example/",
    "mute by name": "http://n40.example:81/",
    "closed by name": "http://n41.example:82/",
    "ill by name": "http://n42.example/ill",
    "answerless": "dns://11.7.9.9/n33.example",
}
TARGETS = WELL + "".join(f"  - {{id: '{name}', url: '{url}', timeout: 500ms}}\n" for name, url in DEAD.items())


def wired(fault: str, mend: str, *, where: str = "device") -> Fault:
    """Commands of `ip`, in a namespace, that make the fault and end it."""

    @contextlib.contextmanager
    def during(world: World, agent: Agent) -> Iterator[None]:
        namespace = getattr(world, where)
        for command in fault.split(";"):
            namespace.ip(command)
        yield
        for command in mend.split(";"):
            namespace.ip(command)

    return during


def changed(part: str, **changes: object) -> Fault:
    """A part of the world is like that."""

    @contextlib.contextmanager
    def during(world: World, agent: Agent) -> Iterator[None]:
        that = getattr(world, part)
        before = {name: getattr(that, name) for name in changes}
        for name, value in changes.items():
            setattr(that, name, value)
        yield
        for name, value in before.items():
            setattr(that, name, value)

    return during


def carried(**changes: float) -> Fault:
    """The way between router and sites is like that."""
    return changed("carrier", **changes)


def named(**changes: object) -> Fault:
    """The resolver is like that."""
    return changed("sites", **changes)


def routes(kind: str) -> Fault:
    @contextlib.contextmanager
    def during(world: World, agent: Agent) -> Iterator[None]:
        world.device_routes(kind)
        yield
        world.device_routes()

    return during


def wildcard(name: str, kind: int) -> bytes:
    """One address for whatever it is asked for."""
    return bytes((11, 7, 1, 200)) if kind == dns.A else b""


def at_random(name: str, kind: int) -> bytes:
    """A site, silence, or what a router says is not there; another one each time."""
    if kind == dns.A:
        return bytes((11, 7, random.choice((1, 9, 8)), random.randrange(100, 250)))
    return b"" if random.random() < 0.5 else ipaddress.ip_address(f"2a00:7:1::{random.randrange(256, 999):x}").packed


def swapped(name: str, kind: int) -> bytes | None:
    """The address of another one."""
    if not name.endswith(".example") or kind != dns.A:
        return None if not name.endswith(".example") else b""
    return bytes((11, 7, 1, int(name[1:-8]) + 1)) if name.startswith("n") else None


@contextlib.contextmanager
def no_descriptors(world: World, agent: Agent) -> Iterator[None]:
    agent.limit_files(agent.files() - 3)
    yield
    agent.limit_files(None)


def firewall(does: str) -> Fault:
    """What the device's own firewall does to all that leaves it by that, but to what it was let out to before."""

    @contextlib.contextmanager
    def during(world: World, agent: Agent) -> Iterator[None]:
        chain = "chain inet own out { type filter hook output priority 0; }"
        world.device.run("nft", f"add table inet own; add {chain}; add rule inet own out oifname eth0 {does}")
        yield
        world.device.run("nft", "delete table inet own")

    return during


@contextlib.contextmanager
def no_buffers(world: World, agent: Agent) -> Iterator[None]:
    """The interface's queue has no room for any packet: datagrams get ENOBUFS."""
    world.device.run("sh", "-c", "tc qdisc replace dev eth0 root bfifo limit 1")
    yield
    world.device.run("sh", "-c", "tc qdisc delete dev eth0 root")


@contextlib.contextmanager
def no_ports(world: World, agent: Agent) -> Iterator[None]:
    ports = "/proc/sys/net/ipv4/ip_local_port_range"
    world.device.run("sh", "-c", f"echo 61000 61000 >{ports}")
    yield
    world.device.run("sh", "-c", f"echo 32768 60999 >{ports}")


@contextlib.contextmanager
def starved(world: World, agent: Agent) -> Iterator[None]:
    with agent.starved():
        yield


@contextlib.contextmanager
def stopped(world: World, agent: Agent) -> Iterator[None]:
    os.kill(agent.pid, signal.SIGSTOP)
    yield
    os.kill(agent.pid, signal.SIGCONT)


BACK = "link set eth0 up;route replace default via 10.77.0.1;-6 address replace fd77::2/64 dev eth0 nodad;"
BACK += "-6 route replace default via fd77::1"
LAN = "link set lan0 up;-6 address replace fd77::1/64 dev lan0 nodad"
GONE = (
    "address delete 10.77.0.1/24 dev lan0;-6 address delete fd77::1/64 dev lan0;link set lan0 address 02:00:00:00:00:01"
)
THERE = f"link set lan0 address {ROUTER};address add 10.77.0.1/24 dev lan0;-6 address add fd77::1/64 dev lan0 nodad"
CAMPAIGNS: dict[str, dict[str, Fault]] = {
    "way out": {
        "link down here": wired("link set eth0 down", BACK),
        "cable out": wired("link set lan0 down", LAN, where="router"),
        "gateway gone": wired(GONE, THERE, where="router"),
        "nothing beyond the router": carried(loss=1.0),
        "the router says unreachable": wired(
            "route replace unreachable 11.7.0.0/16", "route replace 11.7.0.0/16 dev wan0", where="router"
        ),
        "IPv6 dead": carried(lost_family=6),
    },
    "device": {
        "no route": wired("route delete default", "route add default via 10.77.0.1"),
        "black hole": routes("blackhole"),
        "forbidden": routes("prohibit"),
        "no ports": no_ports,
        "no descriptors": no_descriptors,
        "processor taken": starved,
        "stopped": stopped,
    },
    "resolver": {
        "silent": named(resolves=None),
        "fails": named(resolves=dns.SERVFAIL),
        "refuses": named(resolves=dns.REFUSED),
        "lies": named(resolves=dns.NXDOMAIN),
    },
    "firewall": {
        "rejects": firewall("reject"),
        "resets": firewall("meta l4proto tcp reject with tcp reset"),
        "prohibits": firewall("reject with icmpx admin-prohibited"),
        "no buffers": no_buffers,
    },
    "lying resolver": {
        "wildcard": named(lies=wildcard),
        "random addresses": named(lies=at_random),
        "swapped": named(lies=swapped),
        "slow": named(slow=0.5),
        "wildcard, and a portal": named(lies=wildcard, portal=True),
    },
    "bad line": {
        "30 % lost": carried(loss=0.3),
        "2 s late": carried(delay=1.0),
    },
}


class Span(NamedTuple):
    """A fault, in seconds since boot."""

    fault: str
    begin: float
    end: float


class Campaign:
    """What was done, and what the agent recorded of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.spans: list[Span] = []
        self.records: list[dict[str, Any]] = []
        self.log = ""
        self.failed: Exception | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            world = World()
            try:
                self._campaign(world)
            finally:
                world.close()
        except Exception as error:  # noqa: BLE001  (raised where it is looked at)
            self.failed = error

    def _campaign(self, world: World) -> None:
        ca = self.folder.with_suffix(".pem")
        ca.write_text(certificates.trusted())
        agent = Agent(world, self.folder, TARGETS.replace("CA}", f"'{ca}'}}"))
        try:
            time.sleep(FIRST)
            for number in range(ROUNDS):
                for name, fault in CAMPAIGNS[self.name].items():
                    begin = boottime()
                    with fault(world, agent):
                        time.sleep(2 * FAULT if self.name == "bad line" else FAULT)
                    self.spans.append(Span(name, begin, boottime()))
                    time.sleep(BETWEEN)
                if number % 5 == 4:
                    time.sleep(LOSS + FIRST)
            time.sleep(AFTERWARDS)
            self.records = agent.stop()
        finally:
            self.log = agent.log()
            agent.process.kill()
            agent.process.wait()

    def results(self) -> Iterator[tuple[dict[str, Any], float, float]]:
        """Each measurement, from its beginning to its verdict."""
        for record in self.records:
            if "target" in record and record["duration_ms"] is not None:
                begin = record["clock"]["boottime_s"]
                took = record["duration_ms"] + record.get("evidence", {}).get("waited_ms", 0.0)
                yield record, begin, begin + took / 1000

    def stood_still(self) -> list[Span]:
        """When the machine that this runs on had no time for the device."""
        return [
            Span("stood still", begin - 1.0, end + 1.0)
            for record, begin, end in self.results()
            if record.get("stall_ms", 0.0) > STALL * 500
        ]

    def fault_in(self, begin: float, end: float, margin: float = 0.0) -> str:
        return next((each.fault for each in self.spans if begin < each.end + margin and end > each.begin), "")

    def stop(self) -> float:
        return max(end for _, _, end in self.results())


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Campaign]:
    """All at once, each in a world of its own."""
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    certificates.trusted()  # made once, and not by each thread
    folder = tmp_path_factory.mktemp("truth")
    made = {name: Campaign(name, folder / str(number)) for number, name in enumerate(CAMPAIGNS)}
    for campaign in made.values():
        campaign.thread.start()
    for campaign in made.values():
        campaign.thread.join()
    return made


@pytest.fixture(params=CAMPAIGNS)
def campaign(campaigns: dict[str, Campaign], request: pytest.FixtureRequest) -> Campaign:
    found = campaigns[request.param]
    if found.failed is not None:
        raise AssertionError(found.log[-3000:]) from found.failed
    return found


pytestmark = pytest.mark.timeout(300 + 60 * ROUNDS)


def shown(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["target"]["id"], record["error"], record.get("evidence"), record.get("second_look")


def test_nobody_who_is_well_is_blamed(campaign: Campaign) -> None:
    """Whatever happens to the device, a site that is well is up or unknown; but where a third of all packets is lost,
    a few may be blamed: the loss of a site's own packets looks like the site's silence until others show it.
    """
    counts: Counter[tuple[str, str]] = Counter()
    blamed: list[Any] = []
    unknown_when_well: list[Any] = []
    for record, begin, end in campaign.results():
        if record["target"]["id"] in DEAD:
            continue
        fault = campaign.fault_in(begin, end) or ("" if campaign.fault_in(begin, end, AFTERWARDS) else "all is well")
        counts[fault, record["status"]] += 1
        stood_still = record["error"] is not None and "stood still" in record["error"]["message"]
        if (fault, record["status"]) == ("all is well", "unknown") and not stood_still:
            unknown_when_well.append((begin, *shown(record)))
        if record["status"] == "down":
            blamed.append((fault, begin, *shown(record)))
    for fault in ("all is well", *CAMPAIGNS[campaign.name]):
        up, unknown, down = (counts[fault, status] for status in ("up", "unknown", "down"))
        print(f"{campaign.name}: {fault}: {up} up, {unknown} unknown, {down} down")  # noqa: T201
        assert up + unknown > 0 or fault == "stopped"
    at_random = [each for each in blamed if each[0] == LOSSY]
    assert blamed == at_random, "\n".join(map(str, blamed[:10]))
    assert len(at_random) <= FEW_OF_LOSS * counts[LOSSY, "unknown"], "\n".join(map(str, at_random))
    assert len(unknown_when_well) <= counts["all is well", "up"] * 0.03, "\n".join(map(str, unknown_when_well[:20]))


def test_nobody_who_is_dead_is_excused(campaign: Campaign) -> None:
    """While the device is well, a site that is dead is down, each time."""
    counts: Counter[tuple[str, str]] = Counter()
    excused: list[Any] = []
    still, stop = campaign.stood_still(), campaign.stop()
    for record, begin, end in campaign.results():
        if record["target"]["id"] not in DEAD:
            continue
        assert record["status"] != "up"
        stood_still = any(begin < each.end and end > each.begin for each in still)
        if record["status"] == "unknown" and (stood_still or "stood still" in record["error"]["message"]):
            continue
        if not campaign.fault_in(begin, end, LOSS) and end < stop - 2.0:
            counts[record["target"]["id"], record["status"]] += 1
            if record["status"] == "unknown":
                excused.append((begin, *shown(record)))
    print(campaign.name, dict(counts))  # noqa: T201
    assert not excused, "\n".join(map(str, excused[:10]))
    assert {name for name, _ in counts} == set(DEAD)


def test_records_are_valid(campaign: Campaign) -> None:
    """All is what the schema says, each tick is there once, and each target's measurements are in order."""
    result = jsonschema.Draft202012Validator(result_schema())
    event = jsonschema.Draft202012Validator(event_schema())
    seqs: list[int] = []
    last: dict[str, float] = {}
    ticks: defaultdict[str, list[float]] = defaultdict(list)
    for record in sorted(campaign.records, key=lambda each: each["agent"]["seq"]):
        (result if "target" in record else event).validate(record)
        if "target" in record:
            seqs.append(record["agent"]["seq"])
            name, at = record["target"]["id"], record["clock"]["boottime_s"]
            if record["duration_ms"] is not None:  # a tick that is missed is told while the one before it is measured
                assert last.get(name, 0.0) < at, (name, record)
                last[name] = at
            interval, late = record["target"]["interval_ms"] / 1000, (record["lateness_ms"] or 0.0) / 1000
            ticks[name] += [at - late + n * interval for n in range(record.get("missed", 1))]
    assert sorted(seqs) == list(range(1, len(seqs) + 1))
    for name, due in ticks.items():
        steps = {round(after - before, 3) for before, after in pairwise(sorted(due))}
        assert steps == {3.0 if name.startswith("slow") else 1.0}, (name, steps)
    assert "Traceback" not in campaign.log


def test_the_loss_of_the_way_out_is_told(campaigns: dict[str, Campaign]) -> None:
    """Each time the way out is gone there is an event that says since when and why, and one when it is back."""
    campaign = campaigns["way out"]
    events = [record for record in campaign.records if record.get("event", "").startswith("uplink_")]
    for span in campaign.spans:
        within = [each for each in events if span.begin < each["clock"]["boottime_s"] < span.end + BETWEEN]
        print(span.fault, [(each["event"], each.get("why", each.get("lost_s"))) for each in within])  # noqa: T201
        kinds = [each["event"] for each in within]
        by_ipv6 = span.fault in ("the router says unreachable", "IPv6 dead")  # one family is enough
        assert kinds == ([] if by_ipv6 else ["uplink_lost", "uplink_back"])


LOCAL = {
    "no route": "local_network",
    "black hole": "local_network",
    "forbidden": "local_network",
    "no ports": "local_network",
    "no descriptors": "local_resource",
}


def test_own_trouble_is_named(campaigns: dict[str, Campaign]) -> None:
    """What this device could not do is put down to it, by its own code."""
    campaign = campaigns["device"]
    told = {fault: Counter[str]() for fault in LOCAL}
    for record, begin, end in campaign.results():
        fault, error = campaign.fault_in(begin, end), record["error"]
        if fault in LOCAL and error is not None and record["target"]["id"].startswith("w"):
            told[fault][error["code"]] += 1
            assert error["attribution"] == "local" or fault != campaign.fault_in(begin, begin), shown(record)
    for fault, code in LOCAL.items():
        print(fault, dict(told[fault]))  # noqa: T201
        assert told[fault].most_common(1)[0][0] == code
