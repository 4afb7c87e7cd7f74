"""Change by editing on a device: whatever tool saves the files, the agent notices."""

import time

from agent.device.clock import boottime
from tests.device.machine import SHARED, host
from tests.end_to_end.running import wait_for

NOTICED = 2.0  # seconds within which an edit is noticed: the contract
BUSY = 2.0  # seconds that a busy machine may add
ETC = "/etc/uptime-agent"


def test_a_secret_in_a_file(device):
    """A secret is sent anew soon after its file was changed, without a restart; it shows nowhere."""
    token = device.machine.path(f"{ETC}/token")

    def save(secret):
        new = token.with_suffix(".new")
        new.write_text(f"Bearer {secret}\n")
        device.machine.run("chown", "root:uptime-agent", f"{ETC}/token.new")
        new.chmod(0o640)
        new.rename(token)

    def sent():
        return [headers["Authorization"] for path, headers in device.site.asked if path == "/secret"]

    save("abc-not-to-be-seen")
    url = f"http://{device.machine.address}:{device.site.port}/secret"
    device.configure(targets=f"  - {{url: '{url}', headers: {{Authorization: {{file: {ETC}/token}}}}}}\n")
    device.switch_on()
    wait_for(lambda: "Bearer abc-not-to-be-seen" in sent(), "a measurement with the secret")
    before = device.pid
    saved = boottime()
    save("def-not-to-be-seen")
    wait_for(lambda: "Bearer def-not-to-be-seen" in sent(), "a measurement with the new secret")
    assert boottime() - saved < NOTICED + BUSY + 1  # it is measured each second
    assert device.pid == before
    assert "not-to-be-seen" not in device.log + device.status_line()
    token.unlink()


def test_ten_saves_in_a_second(device):
    """Of ten saves in a second the last is in force, and every target is measured on."""
    device.begin()
    good = device.read()
    for number in range(9):
        device.edit(good.replace("interval: 1s", f"interval: {number + 2}s") if number % 2 else "{half a")
        time.sleep(0.1)
    device.targets.append(f"{device.id}.new")
    device.configure()
    saved = boottime()
    wait_for(lambda: device.site.served.get(f"{device.id}.new"), "a measurement of the new target")
    assert boottime() - saved < NOTICED + BUSY
    device.shows("^healthy; 6 targets")
    device.settled()
    device.switch_off()
    account = device.account()
    assert (account.dropped, len(account.runs)) == (0, 1)


def test_by_git(device):
    """Targets that are a git checkout are in force soon after another commit was checked out, and so are those before
    after going back.
    """

    def git(*arguments):
        who = ["-c", "user.name=operator", "-c", "user.email=operator@example.com"]
        host("git", "-C", str(targets), *who, *arguments)

    def checked_out(commit, without, with_):
        git("checkout", "--quiet", commit)
        at = boottime()
        wait_for(lambda: device.site.served.get(with_, [0])[-1] > at, f"a measurement of {with_}")
        assert boottime() - at < NOTICED + BUSY
        gone = device.site.served.get(without, [0])
        time.sleep(2)
        assert gone[-1] < boottime() - 2

    targets = device.machine.shared / "targets"
    old, new = f"{device.id}.old", f"{device.id}.new"
    targets.mkdir()
    git("init", "--quiet")
    for name in (old, new):
        (targets / "site.yaml").write_text(f"- {{id: {name}, url: '{device.url(name)}'}}\n")
        git("add", "site.yaml")
        git("commit", "--quiet", "-m", name)
        git("tag", name)
    device.configure(more=f"include: ['{SHARED}/targets/*.yaml']")
    device.switch_on()
    wait_for(lambda: device.site.served.get(new), "a measurement")
    for there, away in ((old, new), (new, old)):
        checked_out(there, away, there)
    device.shows("^healthy; 6 targets")
    device.targets += [old, new]
    device.settled()
    device.switch_off()
    account = device.account()
    assert (account.dropped, len(account.runs)) == (0, 1)
