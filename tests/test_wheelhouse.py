"""./scripts/wheelhouse and ./scripts/uptime-agent, in a checkout and with a cache of their own."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HERE = "{}.{}".format(*sys.version_info)
PARTS = ("agent", "systemd", "scripts", "pyproject.toml", "LICENSE", "README.md")
NEEDED = {"confluent_kafka", "httptools", "msgspec", "pyyaml", "rich", "uvloop", "zstandard"}
# What fetches wheels takes minutes on a slow line.
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(not shutil.which("flock"), reason="needs bash and flock")]


class Checkout:
    """A copy of this one, and a cache that is empty at first."""

    def __init__(self, folder):
        self.path, self.cache = folder / "checkout", folder / "cache"
        self.path.mkdir()
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, self.path / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, self.path)
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(self.cache)}

    def begin(self, script, *arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.environment}
        return subprocess.Popen([self.path / "scripts" / script, *arguments], **pipes)

    def run(self, script, *arguments):
        """Its exit status, and what it printed on both streams."""
        with self.begin(script, *arguments) as process:
            output, errors = process.communicate()
        return process.returncode, output, errors

    def wheelhouse(self, *arguments):
        """What is made or found, and what was said of that."""
        status, output, errors = self.run("wheelhouse", *arguments)
        assert status == 0, errors
        assert output.count("\n") == 1
        return Path(output.strip()), errors

    def change(self):
        """As an edit of the code does."""
        with (self.path / "agent" / "__init__.py").open("a") as file:
            file.write("# changed\n")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("wheelhouse"))


@pytest.mark.parametrize(("python", "architecture"), [("3.13", "aarch64"), (HERE, platform.machine())])
def test_what_a_wheelhouse_has(checkout, python, architecture):
    """Wheels of the agent with its unit, of all it needs and of pip, for the asked Python and architecture alone."""
    wheelhouse, _ = checkout.wheelhouse("--python", python, "--architecture", architecture)
    assert wheelhouse.parent.name == f"cp{python.replace('.', '')}-{architecture}"
    assert wheelhouse.name.startswith("0.1.0-")
    wheels = {name.split("-")[0]: name for name in os.listdir(wheelhouse)}
    assert len(wheels) == len(os.listdir(wheelhouse))
    assert wheels.keys() >= NEEDED | {"uptime_agent", "pip"}
    tags = {name: wheel.removesuffix(".whl").split("-")[-3:] for name, wheel in wheels.items()}
    assert {name for name, (_, _, where) in tags.items() if where != "any" and architecture not in where} == set()
    assert tags["uvloop"][0] == f"cp{python.replace('.', '')}"
    with zipfile.ZipFile(wheelhouse / wheels["uptime_agent"]) as wheel:
        shared = {name.partition(".data/data/")[2] for name in wheel.namelist()}
    assert shared >= {"share/uptime-agent/uptime-agent.service", "share/uptime-agent/uptime-agent.sysusers.conf"}


def test_it_installs_without_an_index(checkout, tmp_path):
    """An environment without pip, and the wheelhouse: no more is needed, as on a device."""
    wheelhouse, _ = checkout.wheelhouse("--python", HERE)
    (pip,) = wheelhouse.glob("pip-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    install = [f"{pip}/pip", "--isolated", "install", "--quiet", "--no-index", "--find-links", wheelhouse]
    subprocess.run([tmp_path / "venv/bin/python", *install, "uptime-agent"], check=True)
    said = subprocess.run([tmp_path / "venv/bin/uptime-agent", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == "uptime-agent 0.1.0\n"
    unit = tmp_path / "venv/share/uptime-agent/uptime-agent.service"
    assert unit.read_bytes() == (ROOT / "systemd/uptime-agent.service").read_bytes()


def test_the_same_release_at_once(checkout):
    """A second run prints the same without a word or a fetch; a change of the code gives another release, and two runs
    at the same time make one.
    """
    first, _ = checkout.wheelhouse()
    begun = time.monotonic()
    assert checkout.wheelhouse() == (first, "")
    assert time.monotonic() - begun < 5
    checkout.change()
    with ThreadPoolExecutor() as pool:
        second, third = pool.map(lambda _: checkout.wheelhouse(), range(2))
    assert second[0] == third[0] != first
    assert sorted(["fetching" in second[1], "fetching" in third[1]]) == [False, True]
    assert first.exists()


def test_old_ones_go(checkout):
    """Of a Python and an architecture the five that were used last stay; half-made ones go."""
    now, _ = checkout.wheelhouse()
    kind = now.parent
    for age in range(1, 7):
        (kind / f"old-{age}").mkdir(exist_ok=True)
        os.utime(kind / f"old-{age}", (time.time() - 1e6 * age,) * 2)
    (kind / "cut-short.half").mkdir()
    checkout.change()
    new, _ = checkout.wheelhouse()
    left = {each.name for each in kind.iterdir() if not each.is_symlink()}
    assert len(left) == 5
    assert left > {new.name, now.name}
    assert "old-6" not in left
    assert "cut-short.half" not in left


def test_interrupted(checkout):
    """A signal while it is made leaves nothing of it, and ends what was making it."""
    before, _ = checkout.wheelhouse()
    checkout.change()
    with checkout.begin("wheelhouse") as process:
        while "building" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate()  # until everybody has closed its end
    assert (process.returncode, output) == (143, "")
    assert errors.splitlines()[-1] == "wheelhouse: interrupted"
    assert not [name for name in os.listdir(before.parent) if name.endswith(".half")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--pyton", "3.11"), 'what is "--pyton"?'),
        (("--python",), "--python needs a value"),
        (("--python", "3.9"), "--python 3.9: give it as 3.11; older ones will not do"),
        (("--architecture", "armv7l"), "--architecture armv7l: it has to be x86_64 or aarch64"),
    ],
)
def test_arguments_without_sense(tmp_path, arguments, told):
    """They are refused before anything is made."""
    command = [ROOT / "scripts" / "wheelhouse", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"wheelhouse: {told}; see ./scripts/wheelhouse --help\n"
    assert not list(tmp_path.iterdir())


def test_the_agent_of_the_checkout(checkout, tmp_path):
    """Its standard output and its exit status are the agent's, and a signal reaches it."""
    checkout.wheelhouse()  # makes the environment, which is told
    status, output, errors = checkout.run("uptime-agent", "probe", "--json", "http://127.0.0.1:1/")
    assert (status, errors) == (1, "")
    assert json.loads(output)["error"]["code"] == "connect_refused"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
location: {{id: here}}
state_directory: {tmp_path / "state"}
kafka: {{bootstrap_servers: [127.0.0.1:1]}}
targets: [http://127.0.0.1:1/]
"""
    )
    with checkout.begin("uptime-agent", "run", "--config", config) as process:
        while "applied" not in process.stderr.readline():
            assert process.poll() is None
        process.terminate()
        process.communicate()
    assert process.returncode == 0
