"""`uptime-agent spool` as a person or a program uses it, beside an agent or without one."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent.spool.store import Store
from agent.spool.turn import HandOver, Loaded, New, Request
from tests.spool.records import EVENTS, ORIGIN, RESULTS, a_gap, some

COMMAND = [sys.executable, "-W", "error", "-m", "agent", "spool"]
ROOT = Path(__file__).parent.parent
MIB = 1 << 20


@pytest.fixture
def spool(tmp_path):
    """Runs `uptime-agent spool …` in an empty directory."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("STATE_DIRECTORY", "COLUMNS")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}

    def run(*arguments, **options):
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            env={**environment, **options},
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    run.environment = environment
    return run


@contextlib.contextmanager
def a_spool(directory, volatile=None):
    """One that is in use, with records of two topics, some of them young, one refused, and a gap."""
    store = Store(directory, ORIGIN, volatile=volatile)
    store.open()
    store.turn(Request(new=[New(1, RESULTS, some(1, 1200))], strict=True))
    store.turn(Request(new=[New(2, EVENTS, some(1, 3, EVENTS))]))
    store.turn(Request(refused=[Loaded(0, ORIGIN, RESULTS, some(2000, 2000))], gaps=(a_gap(3000, 3099, "spool_full"),)))
    yield store
    store.close()


def configuration(tmp_path, more):
    (tmp_path / "config.yaml").write_text(
        "agent: {id: me}\nlocation: {id: here}\nkafka: {bootstrap_servers: ['localhost:1'], "
        f"properties: {{sasl.password: {{file: /none}}}}}}\n{more}\n"
    )
    return tmp_path / "config.yaml"


def test_status_for_people(spool, tmp_path):
    """A person sees how much waits of each topic since when, what is lost and what needs a look."""
    with a_spool(tmp_path / "spool", tmp_path / "volatile"):
        code, out, err = spool("status", tmp_path / "spool")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/spool: 1,203 records in 2 files, ")
    assert lines[0].endswith("KiB")
    assert [line.split()[:3] for line in lines[3:5]] == [
        [EVENTS, "3", "2026-11-23T16:00:01Z"],
        [RESULTS, "1,200", "2026-11-23T16:00:01Z"],
    ]
    assert "not told yet: 100 records of uptime.results from 2026-11-23T16:50:00.000412Z to" in out
    assert "lost: spool_full" in out
    assert "1 record that Kafka refused: see dump --rejected" in out


def test_status_for_programs(spool, tmp_path):
    """With --json the same is one line of JSON."""
    with a_spool(tmp_path / "spool", tmp_path / "volatile"):
        code, out, err = spool("status", "--json", tmp_path / "spool")
    assert (code, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    assert found["topics"][RESULTS]["records"] == 1200
    assert found["volatile_directory"] == str(tmp_path / "volatile")
    assert (found["exists"], found["segments"], found["rejected_records"]) == (True, 2, 1)
    assert [(gap["first_seq"], gap["reason"]) for gap in found["gaps"]] == [(3000, "spool_full")]


def test_dump(spool, tmp_path):
    """Every record is a line, byte for byte as it would reach Kafka, and the refused ones by themselves."""
    with a_spool(tmp_path / "spool", tmp_path / "volatile"):
        code, out, err = spool("dump", tmp_path / "spool")
        assert spool("dump", "--rejected", tmp_path / "spool") == (0, some(2000, 2000)[0].value.decode() + "\n", "")
    assert (code, err) == (0, "")
    assert out.encode().splitlines() == [record.value for record in [*some(1, 1200), *some(1, 3, EVENTS)]]


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ("spool: {{directory: {0}/mine}}", "mine"),
        ("state_directory: {0}/state", "state/spool"),
        ("", "uptime-agent/spool"),
    ],
    ids=["spool.directory", "state_directory", "neither"],
)
def test_the_spool_of_the_configuration(spool, tmp_path, more, where):
    """Without a directory it is the configuration's, whose secrets are not opened."""
    config = configuration(tmp_path, more.format(tmp_path))
    state = {"STATE_DIRECTORY": str(tmp_path / "uptime-agent")}
    with a_spool(tmp_path / where):
        code, out, err = spool("status", "--config", config, **state)
        assert (code, err) == (0, "")
        assert out.startswith(f"{tmp_path}/{where}: 1,203 records")
        code, out, err = spool("dump", "--config", config, **state)
        assert (code, err, len(out.splitlines())) == (0, "", 1203)


def test_a_directory_of_the_environment(spool, tmp_path):
    """It is taken from there; without it, nothing is said of a spool that nobody knows."""
    config = configuration(tmp_path, "state_directory: {env: STATE}")
    with a_spool(tmp_path / "spool"):
        assert spool("status", "--config", config, STATE=str(tmp_path))[1].startswith(
            f"{tmp_path}/spool: 1,203 records"
        )
        code, out, err = spool("status", "--config", config)
    assert (code, out) == (2, "")
    assert "state_directory: the environment has no variable" in err


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("x: [\nspool:\n  directory: {}/s\n", True),
        ("x: [\nstate_directory: {}\nspool: {{directory: s\n", False),
        ("x: [\n", False),
    ],
)
def test_a_configuration_that_is_no_yaml(spool, tmp_path, more, found):
    """What its section says is found for all that; when it cannot be read, that is told and no other spool is shown."""
    config = configuration(tmp_path, more.format(tmp_path))
    with a_spool(tmp_path / "s"):
        code, out, err = spool("status", "--config", config, STATE_DIRECTORY=str(tmp_path))
    if found:
        assert (code, err, out.startswith(f"{tmp_path}/s: 1,203 records")) == (0, "", True)
    else:
        assert (code, out) == (2, "")
        assert "is not valid YAML" in err


def test_a_mistake_elsewhere_in_the_configuration_is_no_hindrance(spool, tmp_path):
    """What waits can be looked at while an edit is being mended."""
    config = configuration(tmp_path, "spool: {directory: " + str(tmp_path / "s") + "}\nnonsense: 1\n")
    code, out, _ = spool("status", "--config", config)
    assert (code, str(tmp_path / "s") in out) == (0, True)


def test_the_state_directory_is_no_spool(spool, tmp_path):
    """Who names the directory above it is told so, and not that nothing waits."""
    (tmp_path / "spool").mkdir()
    code, out, err = spool("status", tmp_path)
    assert (code, out) == (1, "")
    assert f"did you mean {tmp_path / 'spool'}?" in err


def test_no_configuration(spool, tmp_path):
    """Without a good configuration it says what is wrong with it, and that a directory does as well."""
    code, out, err = spool("status", "--config", tmp_path / "none.yaml")
    assert (code, out) == (2, "")
    assert "none.yaml:1:1: cannot be read: No such file or directory" in err
    assert err.endswith("or name the spool's directory, as /var/lib/uptime-agent/spool\n")


def test_no_spool(spool, tmp_path):
    """A directory that is not there is no error, is told as such, and is not made."""
    assert spool("status", "none") == (0, "none: there is no spool, so nothing waits\n", "")
    assert spool("dump", "none") == (0, "", "none: there is no spool, so nothing waits\n")
    assert json.loads(spool("status", "--json", "none")[1])["exists"] is False
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    assert spool("status", "empty") == (0, "empty: nothing waits\n", "")


def test_no_directory(spool, tmp_path):
    """What is no directory is an error that says what to do."""
    (tmp_path / "file").write_text("")
    told = "file: is not a directory; name the directory of the spool\n"
    assert spool("status", "file") == spool("dump", "file") == (1, "", told)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user, and so root")
def test_of_another_user(spool):
    """Who may not read the spool is told how to."""
    program = """if True:
        import os, sys
        from agent import cli
        cli.main(["spool", "status", sys.argv[1]])
        print("now as another", flush=True)
        os.setuid(65534)
        sys.exit(cli.main(["spool", "status", sys.argv[1]]))
    """
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        with a_spool(Path(above, "spool")):
            command = [sys.executable, "-c", program, f"{above}/spool"]
            done = subprocess.run(command, env=spool.environment, capture_output=True, text=True, check=False)
    told = f"{above}/spool: Permission denied; run this as the agent's user, or with sudo\n"
    out = done.stdout.partition("now as another\n")[2]
    assert (done.returncode, out, done.stderr) == (1, "", told)


def test_usage(spool):
    """`spool` alone is a usage error that names the commands."""
    code, _, err = spool()
    assert code == 2
    assert "the following arguments are required: COMMAND" in err
    code, out, _ = spool("--help")
    assert code == 0
    assert "status" in out
    assert "dump" in out


def test_a_reader_who_leaves(spool, tmp_path):
    """`spool dump | head -1` ends in silence."""
    with a_spool(tmp_path / "spool"):
        command = [*COMMAND, "dump", str(tmp_path / "spool")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=spool.environment, **pipes) as process:
            assert process.stdout.readline() == some(1, 1)[0].value + b"\n"
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 0


def test_much_waits(spool, tmp_path):
    """However much waits, a little memory is enough to show it."""
    store = Store(tmp_path / "spool", ORIGIN)
    store.open()
    record = some(1, 1)[0]
    for number in range(200):
        rows = [record._replace(seq=seq, value=os.urandom(10_000)) for seq in range(number * 20 + 1, number * 20 + 21)]
        segment = store.turn(Request(new=[New(1, RESULTS, rows)])).placed[1]
        store.turn(Request(hand_over=[HandOver(segment, ((rows[0].seq, rows[-1].seq),))]))
    store.close()
    size = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    assert size > 38 * MIB
    for arguments in (["status"], ["dump"]):
        process = subprocess.Popen(
            [*COMMAND, *arguments, str(tmp_path / "spool")], env=spool.environment, stdout=subprocess.DEVNULL
        )
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = code
        assert code == 0
        small = process_size(spool)
        assert usage.ru_maxrss * 1024 < small + 20 * MIB


def process_size(spool):
    """Bytes of memory that the same takes of a spool that is empty."""
    process = subprocess.Popen([*COMMAND, "status", "none"], env=spool.environment, stdout=subprocess.DEVNULL)
    _, process.returncode, usage = os.wait4(process.pid, 0)
    return usage.ru_maxrss * 1024
