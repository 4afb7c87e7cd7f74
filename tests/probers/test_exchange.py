"""What a probe leaves behind: nothing, however it ended; and this device's own troubles are told as its own."""

import asyncio
import gc
import os
import subprocess
import sys
import time
import warnings

import pytest

from agent.probers.http import HttpProber
from agent.probers.resolver import Resolver
from tests.probers.certificates import server, trusted
from tests.probers.http_server import HOLD, OK, RESET, answers, measure, redirect, says, site, target_of

TRUSTED = {"ca": trusted()}
NAMES = ("_Connection", "Response", "HttpResponseParser", "SSLObject", "Task")


def alive() -> dict[str, int]:
    """How many of the objects of a probe there are; the server's half of TLS is not ours."""
    counts = dict.fromkeys(NAMES, 0)
    for each in gc.get_objects():
        if (name := type(each).__name__) in counts and not (name == "SSLObject" and each.server_side):
            counts[name] += 1
    return counts


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


ENDS = {
    "up": (answers(OK), False, {}),
    "up with TLS": (answers(OK), server(), {}),
    "closed": (answers(), False, {}),
    "reset": (answers(RESET), False, {}),
    "too large": (answers(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100), False, {"body_limit": 10}),
    "no HTTP": (answers(b"nonsense"), False, {}),
    "silent": (answers(HOLD), False, {}),
    "silent with TLS": (says(HOLD), True, {}),
    "no TLS": (says(b"nonsense"), True, {}),
    "refused certificate": (answers(OK), server(), {"tls": {}}),
    "redirected": (answers(redirect("/a")), False, {}),
}


@pytest.mark.parametrize("case", ENDS)
async def test_nothing_is_left(case):
    """Probes leave no objects for the collector and no sockets, however they end."""
    behaviour, tls, options = ENDS[case]
    async with site(behaviour, tls=tls) as there:
        prober = HttpProber(target_of(there.url(), **({"tls": TRUSTED} | options)), Resolver())
        count, timeout = (20, 0.02) if "silent" in case else (200, 5.0)
        await prober.probe(time.monotonic() + timeout)
        await asyncio.sleep(0.02)
        gc.collect()
        before, open_before = alive(), descriptors()
        gc.disable()
        try:
            for _ in range(count):
                await prober.probe(time.monotonic() + timeout)
            await asyncio.sleep(0.02)
            after = alive()
        finally:
            gc.enable()
        assert after == before
        assert descriptors() <= open_before + 1


async def test_refused_leaves_nothing():
    """Nor do connections that were refused."""
    async with site(says()) as there:
        pass
    prober = HttpProber(target_of(there.url()), Resolver())
    await prober.probe(time.monotonic() + 1)
    gc.collect()
    before, open_before = alive(), descriptors()
    gc.disable()
    try:
        for _ in range(200):
            await prober.probe(time.monotonic() + 1)
        after = alive()
    finally:
        gc.enable()
    assert after == before
    assert descriptors() == open_before


@pytest.mark.parametrize(("tls", "phase"), [(False, "wait"), (True, "tls")])
async def test_cancelling(tls, phase):
    """Cancelling a probe passes through at once and closes its connection."""
    async with site(says(HOLD), tls=tls) as there:
        prober = HttpProber(target_of(there.url(), tls=TRUSTED), Resolver())
        await prober.probe(time.monotonic() + 0.02)  # a loop's first probe opens what all others share
        await asyncio.sleep(0.02)
        open_before = descriptors()
        for pause in (0, 0.0001, 0.001, 0.02):
            probing = asyncio.create_task(prober.probe(time.monotonic() + 5))
            await asyncio.sleep(pause)
            probing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probing
        for _ in range(50):
            await asyncio.sleep(0.01)
            if descriptors() == open_before:
                break
        assert descriptors() == open_before
        gc.collect()
        assert alive()["_Connection"] == 0


async def test_no_resource_warning():
    """Python has nothing to complain about either, not even after a collection."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        async with site(answers(OK), tls=server()) as there:
            for options in (TRUSTED, {}):
                await measure(there.url(), tls=options)
            await measure(there.url().replace("https", "http"), timeout=0.1)
        gc.collect()
    assert [str(each.message) for each in seen if issubclass(each.category, ResourceWarning)] == []


STARVED = """
import asyncio, gc, os, resource, sys, time, uvloop
from agent.probers.http import HttpProber
from agent.probers.resolver import Resolver
from tests.probers.dns_server import dns_server, zone
from tests.probers.http_server import OK, answers, site, target_of

async def main():
    async with dns_server(zone(www__example=["127.0.0.1"])) as dns, site(answers(OK)) as there:
        urls = there.url(), there.url(name="www.example")
        probers = [HttpProber(target_of(url, resolver=f"127.0.0.1:{dns.port}"), Resolver()) for url in urls]
        for prober in probers:
            assert (await prober.probe(time.monotonic() + 5)).error is None
        await asyncio.sleep(0.05)
        soft = len(os.listdir("/proc/self/fd")) - 1  # one is the listing itself
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for prober in probers:
            error = (await prober.probe(time.monotonic() + 5)).error
            print(error.code, error.phase, error.attribution)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft + 20, soft + 20))
        for prober in probers:
            print((await prober.probe(time.monotonic() + 5)).error)

(uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_no_file_descriptors_left(loop):
    """Without file descriptors the trouble is this device's, in resolving as in connecting, and passes with it."""
    ran = subprocess.run([sys.executable, "-c", STARVED, loop], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "local_resource connect local",
        "local_resource resolve local",
        "None",
        "None",
    ]


async def test_a_stalled_loop():
    """A loop that stood still beyond the deadline ends the probe at once, with what was there to read."""
    async with site(answers(0.01, OK)) as there:
        prober = HttpProber(target_of(there.url()), Resolver())
        probing = asyncio.create_task(prober.probe(time.monotonic() + 0.2))
        await asyncio.sleep(0.005)
        time.sleep(0.4)
        begun = time.monotonic()
        result = await probing
    assert time.monotonic() - begun < 0.3
    assert result.error is None or result.error.code.startswith(("http_timeout", "connect_timeout"))
