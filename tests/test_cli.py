"""The commands as a person runs them, each in a process of its own; Kafka is not needed for these."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest

from agent import __version__

ROOT = Path(__file__).parent.parent
LONG = 30.0
COMMAND = [sys.executable, "-W", "error", "-m", "agent"]
CONFIG = "agent: {id: me}\nlocation: {id: here}\nkafka: {bootstrap_servers: ['localhost:1']}\n"
# What would change how the command behaves, or hide that its last words could not be written.
NOT_INHERITED = ("PYTHONUNBUFFERED", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "COLUMNS")


@pytest.fixture
def cli(tmp_path):
    """Runs a command in an empty directory of its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

    def run(*arguments, **options):
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": LONG, "text": True, **options}
        given["env"] = environment | options.get("env", {})
        return subprocess.run([*COMMAND, *arguments], cwd=tmp_path, stdin=subprocess.DEVNULL, check=False, **given)

    run.environment = environment
    return run


class Answers(BaseHTTPRequestHandler):
    """200, or the status that the path names."""

    def do_GET(self):
        self.send_response(int(self.path[1:] or 200))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    """The address of a site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def silent_resolver():
    """The address of a DNS server that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def written(tmp_path, text, name="config.yaml"):
    (tmp_path / name).write_text(text)
    return name


def outcome(done):
    return done.returncode, done.stdout, done.stderr


def test_version_and_help(cli):
    """`--version` and `--help` work everywhere, and the first steps in the help are whole lines that can be copied."""
    assert outcome(cli("--version")) == (0, f"uptime-agent {__version__}\n", "")
    done = cli("--help", env={"COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for step in ("probe https://example.com", "init my.yaml", "validate my.yaml", "run --config", "watch --config"):
        assert re.search(rf"^  uptime-agent {step}.*   \w", done.stdout, re.MULTILINE), step
    for name in ("run", "init", "validate", "probe", "watch", "schema"):
        assert cli(name, "--help").returncode == 0
    assert "3  unknown" in cli("probe", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("measure",), "invalid choice: 'measure'"),
        (("schema",), "the following arguments are required: {config,result,event}"),
        (("probe",), "name a target or a URL, or give --all"),
        (("probe", "--all", "http://localhost/"), "give a target or --all, not both"),
        (("probe", "http://localhost/", "http://localhost/2"), "one at a time: name one target or URL, or measure"),
        (("probe", "--log-level", "debug", "http://localhost/"), "unrecognized arguments: --log-level"),
        (("probe", "localhost:8099"), "is not a URL; write it as http://localhost:8099/"),
        (("run", "--log-level", "loud"), "invalid choice: 'loud'"),
        (("watch", "--since", "soon"), '--since: "soon" is not a duration; write it as'),
        (("watch", "--bootstrap-servers", ""), '--bootstrap-servers: "" is not a broker; write host:port'),
        (("watch", "--bootstrap-servers", "a:1,b:x"), '"b:x" is not a broker; write host:port'),
        (("watch", "--run", "5F0C"), "--run: '5F0C' is not a run's id; write it as a record has it"),
        (("watch", "--count", "0"), "--count: '0' is not a number of records; write 1 or more"),
        (("watch", "--config", "not-there.yaml"), "not-there.yaml:1:1: cannot be read: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage(cli, arguments, told):
    """It is said at once what is wrong, and the exit status is 2."""
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_init_and_validate(cli, tmp_path):
    """`init` writes a configuration that is good as it is, makes the directory for it, and overwrites nothing."""
    done = cli("init", "new/my.yaml")
    command = "uptime-agent validate new/my.yaml"
    assert outcome(done) == (0, f"new/my.yaml: written. Edit it, then: {command}\n", "")
    text = (tmp_path / "new" / "my.yaml").read_text()
    assert outcome(cli("init", "-")) == (0, text, "")
    (tmp_path / "new" / "my.yaml").write_text(f"agent: {{id: me}}\n{text}")  # whatever this host's name is
    status, out, err = outcome(cli("validate", "new/my.yaml"))
    assert (status, err) == (0, "")
    assert re.fullmatch(r"new/my\.yaml: good, 2 targets, digest [0-9a-f]{12}\n", out)
    (tmp_path / "new" / "my.yaml").write_text("mine")
    told = "new/my.yaml: is there already; name another file, or move it away\n"
    assert outcome(cli("init", "new/my.yaml")) == (1, "", told)
    assert (tmp_path / "new" / "my.yaml").read_text() == "mine"


def test_hints_in_a_checkout(cli):
    """They name the command as the script of the checkout was called, which is not on the PATH."""
    called = {"UPTIME_AGENT_CALLED": "./scripts/uptime-agent"}
    hint = "my.yaml: written. Edit it, then: ./scripts/uptime-agent validate my.yaml\n"
    assert outcome(cli("init", "my.yaml", env=called)) == (0, hint, "")
    shown = cli("--help", env=called).stdout
    assert shown.count("./scripts/uptime-agent ") == shown.count("uptime-agent ") == 6
    assert "make it: ./scripts/uptime-agent init not.yaml" in cli("validate", "not.yaml", env=called).stderr


def test_init_that_cannot_write(cli, tmp_path):
    """Each reason comes with a way out, and a file that could be written in part only does not stay."""
    (tmp_path / "file").touch()
    assert outcome(cli("init", ".")) == (1, "", ".: is a directory; name a file in it, as config.yaml\n")
    no_directory = "cannot be written, as file is not a directory; name another file\n"
    assert outcome(cli("init", "file/my.yaml")) == (1, "", f"file/my.yaml: {no_directory}")
    told = "cannot be written: No such file or directory; name another file\n"
    assert outcome(cli("init", "/proc/my.yaml")) == (1, "", f"/proc/my.yaml: {told}")
    done = cli("init", "my.yaml", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
    assert outcome(done) == (1, "", "my.yaml: cannot be written: File too large; name another file\n")
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_init_without_the_right_to(cli, tmp_path):
    """A directory of somebody else is no place for it: the mend names another, or sudo."""
    tmp_path.chmod(0o500)
    told = "my.yaml: cannot be written: Permission denied; name a file of your own, or run this with sudo\n"
    assert outcome(cli("init", "my.yaml")) == (1, "", told)


def test_validate_tells_every_problem(cli, tmp_path):
    """Each is a line with its place, and the exit status is 1; a good file with one target has one `target`."""
    name = written(tmp_path, CONFIG + "targets:\n  - {url: https://a.example/, intervall: 5s}\n  - b.example\n")
    done = cli("validate", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "config.yaml:5:31: targets[0].intervall: unknown key; did you mean interval?",
        'config.yaml:6:5: targets[1]: "b.example" is not a URL; write it as https://b.example/',
    ]
    written(tmp_path, CONFIG + "targets: [https://a.example/]\n")
    assert re.fullmatch(r"config\.yaml: good, 1 target, digest [0-9a-f]{12}\n", cli("validate", name).stdout)


def test_validate_elsewhere(cli, tmp_path):
    """Secrets can be left closed, includes looked for in another directory, and the merged result is printed masked."""
    (tmp_path / "base").mkdir()
    written(tmp_path, "- {url: https://a.example/, headers: {X-Token: {file: token}}}\n", "base/targets.yaml")
    name = written(tmp_path, CONFIG + "include: targets.yaml\n")
    told = 'config.yaml:4:10: include: "targets.yaml" is not there; correct the path, or use a pattern with *\n'
    assert outcome(cli("validate", name)) == (1, "", told)
    there = ("validate", "--base-directory", "base", name)
    told = 'base/targets.yaml:1:48: [0].headers.X-Token: cannot read "base/token": No such file or directory; '
    done = cli(*there)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(told)
    assert cli(*there, "--secrets", "skip").returncode == 0
    (tmp_path / "base" / "token").write_text("dont-show\n")
    done = cli(*there, "--print-effective")
    assert done.returncode == 0
    assert "X-Token: '***'" in done.stdout
    assert "interval: 30s" in done.stdout
    assert "dont-show" not in done.stdout + done.stderr


@pytest.mark.parametrize("of", ["config", "result", "event"])
def test_schema(cli, of):
    """Each schema is a valid one."""
    done = cli("schema", of)
    assert (done.returncode, done.stderr) == (0, "")
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))


def test_probe_of_a_url(cli, site, tmp_path):
    """The exit status is the verdict; with `--json` the record is printed as it would go to Kafka."""
    name = written(tmp_path, CONFIG)
    done = cli("probe", "--config", name, site)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"up  {site}  ")
    done = cli("probe", "--config", name, f"{site}500")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"down  {site}500  ")
    done = cli("probe", "--config", name, "--json", site)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    record = json.loads(done.stdout)
    jsonschema.validate(record, json.loads(cli("schema", "result").stdout))
    assert (record["status"], record["location"]["id"], record["target"]["url"]) == ("up", "here", site)


def test_probe_of_other_schemes(cli):
    """A DNS server and a host are measured like a site, and their records are valid by the schema."""
    done = cli("probe", "--json", "dns://127.0.0.1:1/example.com")  # nobody listens there
    assert done.returncode == 1
    record = json.loads(done.stdout)
    schema = json.loads(cli("schema", "result").stdout)
    jsonschema.validate(record, schema)
    assert (record["target"]["type"], record["error"]["code"]) == ("dns", "dns_unreachable")
    done = cli("probe", "--json", "icmp://127.0.0.1")
    record = json.loads(done.stdout)
    jsonschema.validate(record, schema)
    assert record["target"]["type"] == "icmp"
    allowed = record["error"] is None
    assert (done.returncode, record["status"]) == ((0, "up") if allowed else (3, "unknown"))
    assert allowed or record["error"]["code"] == "local_resource"


def test_probe_of_targets(cli, site, silent_resolver, tmp_path):
    """One by its id, or all with a count at the end; the exit status is the worst, and what is disabled is left out."""
    targets = f"""\
targets:
  - {{id: good, url: "{site}"}}
  - {{id: broken, url: "{site}503"}}
  - {{id: nameless, url: http://a.example/, resolver: "{silent_resolver}", timeout: 300ms}}
  - {{id: off, url: "{site}404", enabled: false}}
"""
    config = ("--config", written(tmp_path, CONFIG + targets))
    assert [cli("probe", *config, name).returncode for name in ("good", "broken", "nameless", "off")] == [0, 1, 3, 1]
    assert "unknown  nameless  http://a.example/" in cli("probe", *config, "nameless").stdout
    done = cli("probe", *config, "--all")
    assert (done.returncode, done.stderr) == (1, "")
    heads = re.findall(r"(?:^|\n\n)(up|down|unknown)  (\S+)  (\S+)  ", done.stdout)
    expected = [("up", "good", site), ("down", "broken", f"{site}503"), ("unknown", "nameless", "http://a.example/")]
    assert heads == expected
    assert done.stdout.endswith("\n\n1 up, 1 down, 1 unknown\n")
    lines = cli("probe", *config, "--all", "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["up", "down", "unknown"]


def test_probe_that_cannot(cli, tmp_path):
    """A bad configuration, or an id that is none, is wrong usage and measures nothing."""
    name = written(tmp_path, CONFIG + "targets: [b.example]\n")
    done = cli("probe", "--config", name, "--all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a URL" in done.stderr
    written(tmp_path, CONFIG)
    done = cli("probe", "--config", name, "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert "config.yaml has no target with this id, and" in done.stderr
    done = cli("probe", "--config", name, "--all")
    assert outcome(done) == (2, "", "config.yaml: there is no target to measure; write some that are enabled\n")


def test_watch_without_kafka(cli, tmp_path):
    """It says which address was tried and why in vain; of the configuration it reads nothing but the Kafka block."""
    targets = "targets: [{url: https://a.example/, headers: {X-Token: {file: not-there}}}]\n"
    done = cli("watch", "--config", written(tmp_path, CONFIG + targets))
    told = (
        "no broker can be reached at localhost:1: Connection refused; start Kafka, or one for trying: ./scripts/kafka\n"
    )
    assert outcome(done) == (1, "", told)


@pytest.mark.parametrize("arguments", [("schema", "event"), ("init", "-"), ("--help",), ("--version",)], ids=" ".join)
def test_a_reader_who_left(cli, arguments):
    """`uptime-agent … | head -1` is no error, whether the output is long or short."""
    readable, writable = os.pipe()
    os.close(readable)
    with os.fdopen(writable, "w") as stdout:
        done = cli(*arguments, stdout=stdout)
    assert (done.returncode, done.stderr) == (0, "")


def test_complaints_that_nobody_reads(cli, tmp_path):
    """With its standard error in a pipe that was left, the exit status is still true."""
    name = written(tmp_path, CONFIG + "targets: [b.example]\n")
    readable, writable = os.pipe()
    os.close(readable)
    with os.fdopen(writable, "w") as stderr:
        assert cli("validate", name, stderr=stderr).returncode == 1


def test_ctrl_c(cli):
    """A probe that takes its time ends at once, without a traceback, with the exit status of a signal."""
    with socket.create_server(("127.0.0.1", 0)) as silent, contextlib.ExitStack() as opened:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen([*COMMAND, "probe", url], env=cli.environment, text=True, **pipes)
        opened.enter_context(silent.accept()[0])
        process.send_signal(signal.SIGINT)
        assert (*process.communicate(timeout=LONG), process.returncode) == ("", "", 130)


def test_run_with_a_bad_configuration(cli, tmp_path):
    """Without a last good one it does not start: exit status 1, and every problem in the log."""
    name = written(tmp_path, CONFIG + "targets: [b.example, c.example]\n")
    done = cli("run", "--config", name, env={"STATE_DIRECTORY": str(tmp_path / "state")})
    assert (done.returncode, done.stdout) == (1, "")
    first, second, third = done.stderr.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \S+ ERROR +config\.yaml:4:11: targets\[0\]: .* is not a URL; .*", first)
    assert "config.yaml:4:22: targets[1]" in second
    where = tmp_path / "state" / "last-good"
    assert third.endswith(
        f"ERROR    config.yaml: there is no last good configuration to fall back to: {where}: No such file or directory"
    )


def test_priorities_for_the_journal(cli, tmp_path):
    """When the journal reads standard error, each line bears its priority; otherwise none does."""
    name = written(tmp_path, CONFIG + "targets: [b.example]\n")
    with (tmp_path / "stderr").open("w+") as stderr:
        stream = os.fstat(stderr.fileno())
        cli("run", "--config", name, stderr=stderr, env={"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"})
        stderr.seek(0)
        assert re.fullmatch(r"<3>config\.yaml:4:11: .*\n<3>config\.yaml: there is no last good .*\n", stderr.read())
    assert "<3>" not in cli("run", "--config", name, env={"JOURNAL_STREAM": "1:1"}).stderr
