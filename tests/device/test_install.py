"""./scripts/install on a device without the Internet, as its operator sees it."""

import os
import shutil
from pathlib import Path

import pytest

from agent.device.clock import boottime
from tests.device.conftest import booted
from tests.device.device import CONFIG, STATE, Device
from tests.device.machine import CHECKOUT, OPT, PYTHON, UNIT, wheelhouse
from tests.end_to_end.running import LONG, wait_for

WHEELS = "/root/wheels"  # on the device
CREDENTIALS = "/etc/uptime-agent/credentials"
PARTS = ("agent", "systemd", "scripts", "pyproject.toml", "LICENSE", "README.md")


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Wheels of releases, by suite and name: `one` is this checkout's, of `two` the version differs, `broken` ends at
    once, `dying` after some seconds.
    """
    edits = {
        "two": ("agent/__init__.py", '__version__ = "0.1.0"', '__version__ = "0.2.0"'),
        "broken": ("agent/daemon.py", "def run(", 'raise SystemExit("broken, as it was meant to be")\n\n\ndef run('),
        "dying": (
            "agent/daemon.py",
            "def run(",
            "import os, threading\nthreading.Timer(4, os._exit, [7]).start()\n\n\ndef run(",
        ),
    }
    copy = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        (shutil.copytree if (CHECKOUT / part).is_dir() else shutil.copy)(CHECKOUT / part, copy / part)
    made: dict[tuple[str, str], Path] = {}

    def release(suite, name):
        if (suite, name) not in made:
            file, old, new = edits.get(name, ("LICENSE", "", ""))
            good = (copy / file).read_text()
            assert old in good
            (copy / file).write_text(good.replace(old, new, 1) if old else good)
            made[suite, name] = wheelhouse(suite, checkout=copy)
            (copy / file).write_text(good)
        return made[suite, name]

    return release


class Operator:
    """Who has copied the script and the wheels to a device, and runs it there."""

    def __init__(self, machine, releases):
        self.machine, self._releases = machine, releases
        shutil.copy(CHECKOUT / "scripts/install", machine.path("/root"))

    def release(self, name):
        """What it is called."""
        return self._releases(self.machine.suite, name).name

    def command(self, name):
        wheels = self._releases(self.machine.suite, name)
        shutil.copytree(wheels, self.machine.path(f"{WHEELS}/{wheels.name}"), dirs_exist_ok=True)
        return ["/root/install", "--wheelhouse", f"{WHEELS}/{wheels.name}"]

    def install(self, name, status=0):
        """What the script says of a release."""
        return self.does(*self.command(name), status=status)

    def does(self, *command, status=0):
        done = self.machine.attempt(*command)
        assert done.returncode == status, done.stdout + done.stderr
        print(done.stdout + done.stderr)  # noqa: T201  (shown with a failure)
        return done.stdout + done.stderr

    def prepare(self, name):
        """As far as an upgrade comes that is interrupted before its restart."""
        _, wheels = self.command(name)[1:]
        made = f"{OPT}/{Path(wheels).name}"
        self.machine.run("python3", "-m", "venv", "--without-pip", made)
        pip = self.machine.run("sh", "-c", f"echo {wheels}/pip-*.whl").strip() + "/pip"
        install = ["install", "-q", "--no-index", "--find-links", wheels, "uptime-agent"]
        self.machine.run(f"{made}/bin/python", pip, *install)
        self.machine.run("touch", f"{made}/complete")
        self.machine.run("ln", "-sfn", self.current(), f"{OPT}/previous")
        self.machine.run("ln", "-sfn", Path(wheels).name, f"{OPT}/current")

    def current(self):
        return self.machine.run("readlink", f"{OPT}/current").strip()

    def there(self):
        """The releases that the device has."""
        return {name for name in self.machine.run("ls", OPT).split() if name not in ("current", "previous")}


@pytest.fixture
def operator(fresh, releases):
    return Operator(fresh, releases)


@pytest.fixture
def installed(operator, kafka, plain, tmp_path):
    """A device on which the first release was installed, and runs."""
    operator.install("one")
    with Device(operator.machine, tmp_path, plain, kafka) as device:
        device.configure()
        operator.install("one")
        device.live_again(boottime(), within=LONG)
        yield device


def settled(device):
    """The account of all that the site served, after an end in order."""
    device.settled()
    device.switch_off()
    return device.account()


@pytest.mark.parametrize("suite", sorted(PYTHON))
def test_a_fresh_device(suite, releases, kafka, plain, tmp_path):
    """Installed without the Internet and without apt, it waits for its configuration; then the line that was shown
    starts it; further runs change nothing.
    """
    (tmp_path / "device").mkdir()
    with booted(tmp_path / "device", suite) as machine:
        operator = Operator(machine, releases)
        assert machine.attempt("python3", "-c", "import ensurepip").returncode != 0
        said = operator.install("one")
        assert f"{operator.release('one')} is installed" in said
        assert "    sudo systemctl enable --now uptime-agent" in said
        assert said.count("\n") == 5
        assert machine.run("stat", "--format", "%U:%G %a", CONFIG, str(Path(CONFIG).parent)) == (
            "root:uptime-agent 640\nroot:root 755\n"
        )
        assert machine.property("ActiveState") == "inactive"
        machine.run("/usr/local/bin/uptime-agent", "validate")
        before = machine.run("find", "/opt", "/etc", "/usr/local", "-printf", "%p %C@\n")
        operator.install("one")
        assert machine.run("find", "/opt", "/etc", "/usr/local", "-printf", "%p %C@\n") == before
        with Device(machine, tmp_path, plain, kafka) as device:
            device.configure()
            machine.run("systemctl", "enable", "--now", "uptime-agent")
            device.live_again(boottime(), within=LONG)
            pid = device.pid
            before = machine.run("find", "/opt", "/etc", "/usr/local", "-printf", "%p %C@\n")
            assert operator.install("one") == (f"install: {operator.release('one')} runs; nothing was to be changed\n")
            assert device.pid == pid
            assert machine.run("find", "/opt", "/etc", "/usr/local", "-printf", "%p %C@\n") == before
            assert settled(device).dropped == 0


def test_upgrade_and_back(operator, installed):
    """An upgrade restarts the agent once, so does a rollback, which leaves no way further back; no record is lost."""
    one, two = operator.release("one"), operator.release("two")
    operator.install("two")
    assert (operator.current(), operator.there()) == (two, {one, two})
    assert operator.machine.run("/usr/local/bin/uptime-agent", "--version") == "uptime-agent 0.2.0\n"
    installed.live_again(boottime(), within=LONG)
    assert "went back to" in operator.does("/root/install", "--rollback")
    assert operator.current() == one
    installed.live_again(boottime(), within=LONG)
    assert "no release before" in operator.does("/root/install", "--rollback", status=1)
    assert (operator.current(), operator.there()) == (one, {one})
    account = settled(installed)
    assert (account.dropped, account.repeats, account.lost_at_ends, len(account.runs)) == (0, 0, 0, 3)


def test_a_bad_configuration(operator, installed):
    """An upgrade is refused, with the line and the mend, and nothing that runs is touched; so is a way back."""
    one, pid = operator.release("one"), installed.pid
    good = installed.read()
    installed.edit(good.replace("interval: 1s", "interval: soon"))
    said = operator.install("two", status=1)
    assert f"{CONFIG}:" in said
    assert "soon" in said
    assert said.endswith(f"not good for {operator.release('two')}; nothing that runs was changed\n")
    assert (operator.current(), installed.pid) == (one, pid)
    installed.edit(good)
    operator.install("two")
    installed.edit(good.replace("interval: 1s", "interval: soon"))
    operator.does("/root/install", "--rollback", status=1)
    assert operator.current() == operator.release("two")
    installed.edit(good)
    assert settled(installed).dropped == 0


def test_secrets_of_the_unit(operator, installed):
    """The configuration is checked with the credentials that a drop-in gives the agent."""
    operator.machine.path("/etc/uptime-agent/token").write_text("secret\n")
    operator.machine.path("/etc/uptime-agent/token").chmod(0o600)
    installed.drop_in("[Service]\nLoadCredential=token:/etc/uptime-agent/token\n")
    installed.configure(targets=f"  - {{url: '{installed.url('x')}', headers: {{X-Token: {{credential: token}}}}}}\n")
    operator.install("two")
    assert operator.current() == operator.release("two")
    assert installed.pid


def bring(operator, name, text, **credentials):
    """What --configuration brings to a device, as its option."""
    folder = operator.machine.path("/root/brought")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "credentials").mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    for credential, value in credentials.items():
        (folder / "credentials" / credential).write_text(value)
    return [*operator.command(name), "--configuration", "/root/brought"]


def with_token(installed, token):
    headers = f"{{X-Token: {{credential: {token}}}}}"
    url = f"http://{installed.machine.address}:{installed.site.port}/secret"
    target = f"  - {{id: secret, url: '{url}', headers: {headers}}}\n"
    return installed.read().split("  - {id: secret")[0] + target


def test_a_configuration_that_is_brought(operator, installed):
    """It comes into force with its secrets, which only root can read; a new secret needs a restart, other news none; a
    second time nothing is changed, and what was brought is left as it was.
    """
    machine, text = operator.machine, with_token(installed, "token")
    operator.does(*bring(operator, "one", text, token="first"))
    wait_for(lambda: dict(installed.site.asked).get("/secret", {}).get("X-Token") == "first", "the first secret")
    assert machine.run("stat", "-c", "%U:%G %a", CONFIG, f"{CREDENTIALS}", f"{CREDENTIALS}/token").splitlines() == [
        "root:uptime-agent 640",
        "root:root 700",
        "root:root 600",
    ]
    pid = installed.pid
    assert "nothing was to be changed" in operator.does(*bring(operator, "one", text, token="first"))
    operator.does(*bring(operator, "one", text.replace("interval: 1s", "interval: 2s"), token="first"))
    assert installed.pid == pid
    operator.does(*bring(operator, "one", text, token="second"))
    wait_for(lambda: dict(installed.site.asked)["/secret"]["X-Token"] == "second", "the second secret")
    assert installed.pid not in (0, pid)
    assert machine.path("/root/brought/config.yaml").read_text() == text
    operator.does(*bring(operator, "one", installed.read().split("  - {id: secret")[0]))
    assert list(machine.path(CREDENTIALS).iterdir()) == []
    assert settled(installed).dropped == 0


@pytest.mark.parametrize("what", ["another secret", "a home"])
def test_a_configuration_that_is_no_good(operator, installed, what):
    """It is refused as the service would find it; what runs keeps its configuration and its secrets, and stays."""
    operator.does(*bring(operator, "one", with_token(installed, "token"), token="first"))
    before, pid = installed.read(), installed.pid
    bad = with_token(installed, "other")
    if what == "a home":  # which the service's sandbox hides, though root could read it
        operator.machine.path("/home/token").write_text("secret")
        bad = bad.replace("{credential: other}", "{file: /home/token}")
    said = operator.does(*bring(operator, "one", bad, token="second"), status=1)
    assert "headers.X-Token: cannot read" in said
    assert said.endswith(f"not good for {operator.release('one')}; nothing that runs was changed\n")
    assert (installed.read(), installed.pid) == (before, pid)
    assert operator.machine.run("cat", f"{CREDENTIALS}/token") == "first"
    assert sorted(os.listdir(operator.machine.path("/etc/uptime-agent"))) == ["config.yaml", "credentials"]


def test_a_configuration_that_comes_with_a_bad_release(operator, installed):
    """Both go back, and the secrets with them."""
    operator.does(*bring(operator, "one", with_token(installed, "token"), token="first"))
    before = installed.read()
    said = operator.does(*bring(operator, "dying", with_token(installed, "other"), other="second"), status=1)
    assert said.endswith(f"went back to {operator.release('one')}, which runs\n")
    assert installed.read() == before
    assert [file.name for file in operator.machine.path(CREDENTIALS).iterdir()] == ["token"]
    installed.live_again(boottime(), within=LONG)
    installed.shows("^healthy")


def test_secrets_that_come_with_a_bad_release(operator, installed):
    """Where there were none before, none are left."""
    said = operator.does(*bring(operator, "dying", with_token(installed, "other"), other="second"), status=1)
    assert said.endswith(f"went back to {operator.release('one')}, which runs\n")
    assert not operator.machine.path(CREDENTIALS).exists()
    assert not operator.machine.path(f"/etc/systemd/system/{UNIT}.d/credentials.conf").exists()
    assert os.listdir(operator.machine.path("/etc/uptime-agent")) == ["config.yaml"]


def test_a_switch_that_was_interrupted(operator, installed):
    """Another run brings back what is missing and mends the rest; no edit by hand is lost."""
    machine, text = operator.machine, with_token(installed, "token")
    brought = bring(operator, "one", text, token="first")
    operator.does(*brought)
    for place in (CONFIG, CREDENTIALS):
        machine.run("mv", place, f"{place}.before")
        assert operator.install("one").splitlines()[-1].startswith(f"install: {operator.release('one')} runs")
        assert installed.read() == text
        assert machine.run("cat", f"{CREDENTIALS}/token") == "first"
    machine.run("rm", f"/etc/systemd/system/{UNIT}.d/credentials.conf")
    operator.does(*brought)
    machine.run("cp", "-a", CONFIG, f"{CONFIG}.before")
    edited = text.replace("interval: 1s", "interval: 2s")
    installed.edit(edited)
    operator.install("broken", status=1)
    assert installed.read() == edited
    installed.shows("^healthy")
    assert sorted(os.listdir(machine.path("/etc/uptime-agent"))) == ["config.yaml", "credentials"]


def test_a_release_that_does_not_run(operator, installed):
    """The release before is put back and runs, the operator is told and shown why, and no record is lost; the next
    release is as welcome as ever.
    """
    one, two, broken = map(operator.release, ("one", "two", "broken"))
    said = operator.install("broken", status=1)
    assert f"{broken} does not run as it is configured; the end of its log:" in said
    assert "broken, as it was meant to be" in said
    assert said.endswith(f"went back to {one}, which runs\n")
    assert operator.current() == one
    installed.live_again(boottime(), within=LONG)
    assert "no release before" in operator.does("/root/install", "--rollback", status=1)
    operator.install("two")
    assert operator.there() == {one, two}
    account = settled(installed)
    assert (account.dropped, account.lost_at_ends) == (0, 0)


def test_a_release_that_does_not_stay(operator, installed):
    """One that dies within seconds does not count as running."""
    said = operator.install("dying", status=1)
    assert "status=7" in said
    assert said.endswith(f"went back to {operator.release('one')}, which runs\n")
    assert operator.current() == operator.release("one")
    installed.live_again(boottime(), within=LONG)


def test_killed(operator, installed):
    """Killed at some moment of an upgrade, another run ends it, and no record is lost."""
    one, two = operator.release("one"), operator.release("two")
    upgrade = operator.command("two")
    for seconds in (0.5, 2, 4, 6):
        operator.machine.attempt("timeout", "--signal=KILL", str(seconds), *upgrade)  # with all that it started
        operator.does(*upgrade)
        assert operator.current() == two
        installed.live_again(boottime(), within=LONG)
        operator.does("/root/install", "--rollback")
    account = settled(installed)
    assert operator.current() == one
    assert (account.dropped, account.lost_at_ends, len(account.runs)) == (0, 0, 9)


def test_interrupted_before_the_restart(operator, installed):
    """An upgrade that ended with its release in place, but not running yet, is ended by another run."""
    one, two, pid = operator.release("one"), operator.release("two"), installed.pid
    operator.prepare("two")
    said = operator.install("two")
    assert operator.current() == two
    assert installed.pid not in (0, pid)
    assert said.endswith(f"{two} runs\n")
    installed.live_again(boottime(), within=LONG)
    assert operator.there() == {one, two}


def test_interrupted_before_the_restart_into_nothing(operator, installed):
    """If the release does not run, the other run goes back to the one that did."""
    one = operator.release("one")
    operator.prepare("broken")
    said = operator.install("broken", status=1)
    assert operator.current() == one
    assert said.endswith(f"went back to {one}, which runs\n")
    installed.live_again(boottime(), within=LONG)


def test_a_way_back_that_was_interrupted(operator, installed):
    """Another run ends it."""
    one = operator.release("one")
    operator.install("two")
    pid = installed.pid
    operator.machine.run("ln", "-sfn", one, f"{OPT}/current")  # as far as it came
    assert operator.does("/root/install", "--rollback") == f"install: went back to {one}, which runs\n"
    assert installed.pid not in (0, pid)
    assert operator.current() == one
    assert operator.there() == {one}


def test_after_an_upgrade_of_debian(operator, installed):
    """An environment that is not for the device's Python is no release: another run makes it anew, and starts it."""
    one = operator.release("one")
    operator.machine.run("mv", f"{OPT}/{one}/lib/python3.11", f"{OPT}/{one}/lib/python3.10")
    installed.switch_off()
    assert operator.install("one") == f"install: installing {one}\ninstall: {one} runs\n"
    installed.live_again(boottime(), within=LONG)


def test_removal(operator, installed):
    """It keeps what is the operator's, with which another installation goes on; purged, nothing is left."""
    machine = operator.machine
    said = operator.does("/root/install", "--remove")
    assert "/etc/uptime-agent" in said
    assert STATE in said
    assert machine.property("LoadState") == "not-found"
    assert not machine.path(OPT).exists()
    assert not machine.path("/usr/local/bin/uptime-agent").is_symlink()
    assert machine.path(CONFIG).exists()
    run = installed.run_number()
    operator.install("two")
    installed.live_again(boottime(), within=LONG)
    assert installed.run_number() == run + 1
    assert settled(installed).dropped == 0
    operator.does("/root/install", "--remove", "--purge")
    operator.does("/root/install", "--remove", "--purge")
    for path in ("/etc/uptime-agent", STATE, OPT, "/run/uptime-agent", f"/etc/systemd/system/{UNIT}"):
        assert not machine.path(path).exists()
    assert machine.attempt("id", "uptime-agent").returncode != 0


def test_not_a_wheelhouse(operator):
    """What is no wheelhouse, or one for another machine, is refused in words; so is none, without a checkout."""
    assert "it has no checkout around it here, so it needs --wheelhouse DIR" in operator.does("/root/install", status=2)
    assert "has not the name that ./scripts/wheelhouse gave it" in operator.does(
        "/root/install", "--wheelhouse", "/root", status=2
    )
    other = wheelhouse("trixie")
    shutil.copytree(other, operator.machine.path(f"{WHEELS}/{other.name}"))
    said = operator.does("/root/install", "--wheelhouse", f"{WHEELS}/{other.name}", status=1)
    assert "not for Python 3.11" in said.splitlines()[-1]
    assert operator.there() == {other.name}
