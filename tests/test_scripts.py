"""The scripts as a person runs them: what they print, how they end, and that nothing stays behind."""

import contextlib
import fcntl
import os
import pty
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "scripts" / "demo"
# Making an environment takes minutes on a small device with a slow line.
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(not shutil.which("flock"), reason="needs bash and flock")]

# What each sample site of examples/demo.yaml is bound to give.
VERDICTS = {
    "good": ("up", "-"),
    "slow": ("up", "-"),
    "moved": ("up", "-"),
    "broken": ("down", "status_mismatch"),
    "expired": ("down", "tls_cert_expired"),
    "refused": ("down", "connect_refused"),
    "silent": ("down", "http_timeout_headers"),
}


def files(checkout):
    """All that is in a checkout, save what the tools of whoever runs these tests keep there."""
    found = set()
    for where, directories, names in os.walk(checkout):
        directories[:] = [name for name in directories if name[0] != "." and name not in ("__pycache__", "tests")]
        found |= {os.path.join(where, name) for name in (*directories, *names)}
    return found


def processes(mark):
    """Ids of the processes that have `mark` in their environment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.add(int(process.name))
    return found - {os.getpid()}


class Behind:
    """An environment for a script, in which whatever it leaves behind is found."""

    def __init__(self, directory):
        self.mark = f"UPTIME_AGENT_TEST={secrets.token_hex(8)}"
        self.temporary = directory / "temporary"
        self.temporary.mkdir()
        self.files = files(ROOT)
        name, _, value = self.mark.partition("=")
        # As a user has it: the Python of these tests has the agent in it, and theirs may not be found.
        path = [each for each in os.environ["PATH"].split(":") if each != str(Path(sys.executable).parent)]
        self.environment = {**os.environ, "PATH": ":".join(path), name: value, "TMPDIR": str(self.temporary)}

    def assert_no_process(self):
        until = time.monotonic() + 15
        while processes(self.mark) and time.monotonic() < until:
            time.sleep(0.1)
        assert not processes(self.mark)

    def assert_nothing(self):
        self.assert_no_process()
        assert not list(self.temporary.iterdir())
        assert not files(ROOT) - self.files


@pytest.fixture
def behind(tmp_path):
    """Asserts at the end that no process, no temporary file, and no new file in the checkout is left."""
    behind = Behind(tmp_path)
    yield behind
    behind.assert_nothing()


def make_environment(behind):
    """Makes the demo's environment, or there would be words about that, and times would mean nothing."""
    script = f'. "{ROOT}/scripts/environment"; environment demo'
    subprocess.run(["bash", "-c", script], env=behind.environment, check=True, capture_output=True)


@contextlib.contextmanager
def demo(behind, *arguments):
    """The demo with its output in a pipe, begun."""
    make_environment(behind)
    with subprocess.Popen(
        [DEMO, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=behind.environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def results(output):
    """Target → what its lines say of verdict and code."""
    found = {}
    for line in output.splitlines():
        if re.match(r"\d{4}-\d\d-\d\dT", line):
            _, target, status, code, *_ = line.split()
            found.setdefault(target, set()).add((status, code))
    return found


def test_demo_without_a_terminal(behind, tmp_path):
    """Every sample site has its verdict and code, read back from Kafka; after 15 s it ends by itself, in good order.

    A second one beside it that is killed takes its agent, sites and broker along; only its temporary files stay.
    """
    (tmp_path / "another").mkdir()
    killed = Behind(tmp_path / "another")
    with demo(behind) as process:
        started = time.monotonic()
        with demo(killed) as another:
            while " up " not in another.stdout.readline():
                assert another.poll() is None
        killed.assert_no_process()
        assert len(list(killed.temporary.iterdir())) == 1
        output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert time.monotonic() - started > 14
    found = results(output)
    assert found.keys() == VERDICTS.keys()
    assert {target: verdict for target, verdict in VERDICTS.items() if verdict not in found[target]} == {}
    explained = " ".join(output.split("\n\n")[0].split())
    assert "sends each result to Kafka, a server that keeps streams of messages (here a stand-in" in explained
    assert output.splitlines()[-1] == "at the end: 3 up, 4 down"
    assert "nothing runs on" in explained


@pytest.mark.parametrize(
    ("number", "when"),
    [
        pytest.param(number, when, id=f"{number.name} {when}")
        for number, when in (
            (signal.SIGINT, "at once"),
            (signal.SIGTERM, "at once"),
            (signal.SIGTERM, "while starting"),
            (signal.SIGINT, "while measuring"),
        )
    ],
)
def test_demo_ends_on_a_signal(behind, number, when):
    """A signal at any moment ends it within seconds, without a complaint."""
    with demo(behind) as process:
        if when == "while starting":
            time.sleep(0.6)
        elif when == "while measuring":
            while " up " not in process.stdout.readline():
                assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    # Before the demo has begun, the shell or the interpreter dies of the signal as any program does.
    assert process.returncode == 0 or (when != "while measuring" and process.returncode in (-number, 128 + number, 1))
    assert process.returncode or errors == ""


def test_demo_of_a_url(behind):
    """Named addresses are measured instead of the sample sites.

    What a demo that was killed has left is removed, but not what belongs to one that runs.
    """
    abandoned, in_use = (behind.temporary / f"uptime-agent-demo-{name}" for name in ("abandoned", "in-use"))
    for directory in (abandoned, in_use):
        (directory / "state").mkdir(parents=True)
        os.utime(directory, (0, 0))
    held = os.open(in_use, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/missing"
        try:
            with demo(behind, url) as process:
                while url not in (line := process.stdout.readline()):
                    assert process.poll() is None
                process.terminate()
                process.communicate(timeout=30)
        finally:
            server.shutdown()
    assert results(line) == {url: {("down", "status_mismatch")}}
    assert process.returncode == 0
    assert list(behind.temporary.iterdir()) == [in_use]
    os.close(held)
    shutil.rmtree(in_use)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("foo",), 2, 'demo: "foo" is not a URL; write it as https://foo/\n'),
        (
            ("https://a.example/", "localhost:1"),
            2,
            'demo: "localhost:1" is not a URL; write it as http://localhost:1/\n',
        ),
    ],
    ids=["a word", "one of two"],
)
def test_demo_of_no_url(behind, arguments, status, told):
    """What makes no sense is said in the agent's own words."""
    make_environment(behind)
    done = subprocess.run([DEMO, *arguments], env=behind.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, told)
    assert done.stdout == ""


def test_help_of_the_demo(behind, tmp_path):
    """It is there before an environment is made for minutes."""
    behind.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    done = subprocess.run([DEMO, "--help"], env=behind.environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ./scripts/demo [-h] [URL ...]")
    assert not (tmp_path / "cache").exists()


def test_demo_when_the_agent_does_not_start(behind):
    """The demo says why in the agent's own words, and fails."""
    with demo(behind, "http://a.example/?page=1", "http://a.example/?page=2") as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert not results(output)
    assert "the agent ended, with exit status 1; its log:" in errors
    assert 'has the id "http://a.example/?page=***"' in errors
    assert "Traceback" not in errors


def test_demo_on_a_terminal(behind):
    """A live table of all sites until Ctrl-C, which gives the cursor back."""
    behind.environment |= {"TERM": "xterm-256color", "LINES": "40", "COLUMNS": "100"}
    make_environment(behind)
    child, terminal = pty.fork()
    if child == 0:
        os.execve(DEMO, [str(DEMO)], behind.environment)
    screen = ""
    while not all(re.search(rf"{target} .*({verdict})", screen) for target, (verdict, _) in VERDICTS.items()):
        screen += os.read(terminal, 65_536).decode(errors="replace")
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while data := os.read(terminal, 65_536):
            screen += data.decode(errors="replace")
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Ctrl-C ends it" in screen
    assert all(target in screen for target in VERDICTS)
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")
    assert "Traceback" not in screen


def test_help_of_the_tests(behind, tmp_path):
    """`./scripts/test --help` says what it does, and needs no environment for that."""
    behind.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    command = [ROOT / "scripts" / "test", "--help"]
    done = subprocess.run(command, env=behind.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "./scripts/test tests/config -k secret" in done.stdout
    assert "#" not in done.stdout
    assert not (tmp_path / "cache").exists()


def test_a_part_of_the_tests(behind):
    """`./scripts/test PATH -k WORD` runs just that, its last line is pytest's summary, and its exit status pytest's."""
    command = [ROOT / "scripts" / "test", "tests/test_layers.py", "-k", "short"]
    done = subprocess.run(command, env=behind.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1 passed, \d+ deselected in", done.stdout.splitlines()[-1])
    command[-1] = "nothing_is_called_so"
    done = subprocess.run(command, env=behind.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5


PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"
[project]
name = "tiny"
version = "1"
[dependency-groups]
tiny = []
[tool.hatch.build.targets.wheel]
packages = ["tiny"]
"""


def test_environments(tmp_path, behind):
    """Two at the same time make one; half-made and old ones go, those in use or of other checkouts stay."""
    checkout, environments = tmp_path / "checkout", tmp_path / "cache" / "uptime-agent" / "environments"
    for directory in ("scripts", "tiny"):
        (checkout / directory).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "environment", checkout / "scripts")
    (checkout / "pyproject.toml").write_text(PYPROJECT)
    before = files(checkout)
    for name, of in {"old": checkout, "used": checkout, "gone": tmp_path / "gone", "other": ROOT, "half": None}.items():
        (environments / f"tiny-{name}").mkdir(parents=True)
        if of is not None:
            (environments / f"tiny-{name}" / "complete").write_text(f"{of}\n")
    behind.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def begin():
        script = '. scripts/environment; environment tiny; "$python" -c "print(7)"; echo "$environment"'
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", "-c", script], cwd=checkout, env=behind.environment, **pipes)

    def told(process):
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        seven, environment = output.splitlines()
        assert seven == "7"
        return Path(environment), "making an environment" in errors

    with (environments / "tiny-used" / "complete").open() as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        first, second = [told(process) for process in [begin(), begin()]]
    assert first[0] == second[0]
    assert {first[1], second[1]} == {False, True}
    assert {each.name for each in environments.iterdir()} == {".lock", "tiny-used", "tiny-other", first[0].name}
    assert told(begin()) == (first[0], False)
    assert {each.name for each in environments.iterdir()} == {".lock", "tiny-other", first[0].name}
    assert files(checkout) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_environment(tmp_path, behind, number, status):
    """A signal while an environment is made leaves nothing of it, ends what was making it, and is told in a word."""
    behind.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    with subprocess.Popen([DEMO], env=behind.environment, stderr=subprocess.PIPE, text=True) as process:
        assert "making an environment" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(number)
        assert process.stderr.read() == "demo: interrupted\n"
    assert process.returncode == status
    behind.assert_nothing()
    assert [each.name for each in (tmp_path / "cache" / "uptime-agent" / "environments").iterdir()] == [".lock"]
