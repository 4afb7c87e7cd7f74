"""A device whose disk is full."""

import time

from agent.device.clock import boottime
from tests.device.device import STATE

SIZE = 8 << 20  # bytes of the file system that has the state
LEFT = 1 << 20  # bytes that something else leaves of it
FULL = 120  # seconds until it is
BUSY = 30  # seconds that a busy machine may add


def test_a_full_disk(device):
    """When the disk is full with Kafka away, the agent says so and measures on; the oldest go, and each is named. With
    room, and Kafka, it is well again, and nothing else is missing.
    """
    run = device.machine.run
    run("mkdir", "-p", STATE)
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", STATE)
    try:
        device.configure(more="spool: {min_free: 0}", noise=60)
        device.switch_on()
        device.live_again(boottime(), within=BUSY)
        run("dd", "if=/dev/zero", f"of={STATE}/ballast", f"bs={SIZE - LEFT}", "count=1", "status=none")
        device.broker.close()
        wait_until(lambda: "spool_full" in device.status_line(), "its word on what it gave up")
        assert device.status_line().startswith("degraded: ")
        device.says("spool: there is no room for it")
        device.says(r"spool: \d+ records? of \S+ from \S+ to \S+ will never come: spool_full")
        run("rm", f"{STATE}/ballast")
        device.broker.open()
        device.live_again(boottime())
        device.settled()
        device.says("spool: the disk takes records again")
        device.switch_off()
        account = device.account()
        gaps = device.events("gap")
        assert account.dropped == sum(gap["count"] for gap in gaps) > 0
        assert {gap["reason"] for gap in gaps} == {"spool_full"}
        assert (len(account.runs), account.lost_at_ends) == (1, 0)
    finally:
        run("systemctl", "stop", "uptime-agent")
        run("umount", STATE)


def wait_until(condition, what):
    """Until it holds; fails after `FULL` seconds."""
    end = time.monotonic() + FULL
    while not condition():
        assert time.monotonic() < end, f"waited {FULL} s in vain for {what}"
        time.sleep(0.5)
