"""Files that cannot be read, are no text, or are made to exhaust: a clear error, soon, in little memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import ConfigError, DiskFiles, KeptFiles, load
from agent.config.document import LARGEST

from .conftest import BASE

MEASURE = """
import json, sys, time
from pathlib import Path
from agent.config import ConfigError, load
began = time.process_time()
try:
    problems = [f"{len(load(Path(sys.argv[1])).targets)} targets"]
except ConfigError as error:
    problems = [str(problem) for problem in error.problems]
(peak,) = [int(line.split()[1]) / 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM")]
print(json.dumps([problems, time.process_time() - began, peak]))
"""
ROOT = os.geteuid() == 0
HEAD = b"agent: {id: me}\nlocation: {id: here}\nkafka: {bootstrap_servers: [broker:9092]}\n"


def measured(path):
    """The problems of a file, found in a process of its own; seconds of processor time; peak memory in MiB."""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, path],
        capture_output=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return json.loads(ran.stdout)


@pytest.fixture
def powerless():
    """While it is used, the process may do no more than an ordinary user."""
    if ROOT:
        os.seteuid(65534)
    yield
    if ROOT:
        os.seteuid(0)


@pytest.fixture
def unreadable(tmp_path):
    """A folder with a configuration, an included file and a secret that only their owner, someone else, can read."""
    tmp_path.chmod(0o755)
    (tmp_path / "locked").mkdir()
    for name in ("config.yaml", "targets.yaml", "secret", "locked/targets.yaml"):
        (tmp_path / name).write_bytes(HEAD)
        (tmp_path / name).chmod(0)
    (tmp_path / "locked").chmod(0)
    (tmp_path / "good.yaml").touch(0o666)
    (tmp_path / "good.yaml").chmod(0o666)
    yield tmp_path
    (tmp_path / "locked").chmod(0o700)


def test_missing(tmp_path):
    """A file that is not there is named, with the command that makes one."""
    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"))
    mend = "correct the path, or make it: uptime-agent init config.yaml"
    assert str(caught.value) == f"config.yaml:1:1: cannot be read: No such file or directory; {mend}"


def test_unreadable(unreadable, powerless):
    """A file that this user may not read says so, and where to look."""
    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"))
    assert str(caught.value) == "config.yaml:1:1: cannot be read: Permission denied; look at its owner and mode"


@pytest.mark.skipif(not ROOT, reason="needs root, for a file of somebody else")
def test_as_on_a_device(unreadable, powerless):
    """The configuration of an installed agent, which root writes and the agent reads, is no fault: the mend is sudo."""
    os.seteuid(0)
    shutil.chown("config.yaml", group="daemon")
    Path("config.yaml").chmod(0o640)
    os.seteuid(65534)
    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"))
    mend = "only root and the group daemon may read it: try sudo"
    assert str(caught.value) == f"config.yaml:1:1: cannot be read: Permission denied; {mend}"


def test_unreadable_parts(unreadable, powerless):
    """So do an included file, one in a folder that may not be entered, and a secret."""
    text = "include: [targets.yaml, locked/targets.yaml]\ntargets:\n- {url: https://a.example/, body: {file: secret}}\n"
    Path("good.yaml").write_bytes(HEAD + text.encode())
    with pytest.raises(ConfigError) as caught:
        load(Path("good.yaml"))
    assert str(caught.value).splitlines() == [
        'good.yaml:6:35: targets[0].body: cannot read "secret": Permission denied; mend the path or its mode',
        "locked/targets.yaml:1:1: cannot be read: Permission denied; look at its owner and mode",
        "targets.yaml:1:1: cannot be read: Permission denied; look at its owner and mode",
    ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("# caf\xe9\n".encode("latin-1") + HEAD, "config.yaml:1:6: is not UTF-8 text; save the file in that encoding"),
        ("é\n# é \udcff".encode(errors="surrogateescape"), "config.yaml:2:5: is not UTF-8 text; save the file in that"),
        (HEAD.decode().encode("utf-16"), "config.yaml:1:1: is not UTF-8 text; save the file in that encoding"),
        (HEAD.decode().encode("utf-16-le"), "config.yaml:1:2: is not valid YAML: a control character; remove it"),
        ("# ééé\nid: é\0".encode(), "config.yaml:2:6: is not valid YAML: a control character; remove it"),
        (HEAD + b"x: \x1b[31mred\n", "config.yaml:4:4: is not valid YAML: a control character; remove it"),
        (bytes(range(256)), "config.yaml:2:118: is not UTF-8 text; save the file in that encoding"),
    ],
)
def test_no_text(data, told, problems_of):
    """What is no UTF-8 text is refused at the first character that is none."""
    (line,) = problems_of(data)
    assert line.startswith(told)


def test_byte_order_mark(load_text):
    """The mark that some editors put before UTF-8 text, and Windows' line ends, do no harm."""
    config = load_text(b"\xef\xbb\xbf" + HEAD.replace(b"\n", b"\r\n") + b"targets: [https://a.example/]\r\n")
    assert [target.id for target in config.targets] == ["https://a.example/"]


def test_fifty_megabytes(tmp_path):
    """A file of 50 MB is refused before it is looked at."""
    path = tmp_path / "config.yaml"
    path.write_bytes(HEAD + b"targets:\n" + b"- https://a.example/\n" * 2_500_000)
    problems, seconds, peak = measured(path)
    told = "is too large: the configuration's files have more than 4 MiB together; is it the right file?"
    assert problems == [f"{path}:1:1: {told}"]
    assert seconds < 2
    assert peak < 150


def test_all_files_together_are_bounded(problems_of, tmp_path):
    """Many included files are no way around the bound of one."""
    for number in range(3):
        (tmp_path / f"{number}.yaml").write_bytes(b"#" * (LARGEST // 2 - 100))
    (line,) = problems_of("include: ['[0-9].yaml']\n")
    assert line.startswith("2.yaml:1:1: is too large: ")


LAUGHS = b"x:\n- &a [x, x, x]\n" + b"".join(
    b"- &%c [%s]\n" % (letter + 1, b", ".join([b"*%c" % letter] * 9)) for letter in range(ord("a"), ord("y"))
)


@pytest.mark.parametrize(
    "bomb",
    [
        LAUGHS + b"targets: *y\n",
        LAUGHS.replace(b"[x, x, x]", b"{x: x}") + b"targets: *y\n",
        b"x: &a {url: https://a.example/, id: a}\ntargets: [" + b"*a, " * 200_000 + b"]\n",
        b"x: &a https://a.example/" + b"y" * 10_000 + b"\ntargets:\n"
        + b"".join(b"- {id: t%d, url: *a}\n" % number for number in range(2_000)),
        b"x: &a {" + b"".join(b"k%d: v, " % number for number in range(10_000)) + b"}\ntargets:\n"
        + b"".join(b"- {id: t%d, url: https://a.example/, headers: *a}\n" % number for number in range(10_000)),
        b"x: &a [" + b"200, " * 10_000 + b"]\ntargets:\n"
        + b"".join(b"- {id: t%d, url: http://a/, expect: {status: *a}}\n" % number for number in range(10_000)),
    ],
    ids=["lists", "mappings", "targets", "long text", "wide mapping", "long list"],
)  # fmt: skip
def test_alias_bomb(bomb, tmp_path):
    """A short file that aliases make a huge one is refused as what it would be."""
    path = tmp_path / "config.yaml"
    path.write_bytes(HEAD + bomb)
    problems, seconds, peak = measured(path)
    told = "is too large: more than 250,000 keys and values with the aliases written out; write fewer *aliases"
    assert problems == [f"{path}:1:1: {told}"]
    assert seconds < 10
    assert peak < 200


def test_aliases_of_reasonable_size(load_text):
    """Anchors and aliases are the ordinary YAML way to write something once."""
    config = load_text(
        "targets:\n- {url: https://a.example/, headers: &json {Accept: application/json}}\n"
        "- {url: https://b.example/, headers: *json}\n"
    )
    assert config.targets[0].headers == config.targets[1].headers == {"Accept": "application/json"}


@pytest.mark.parametrize("text", ["targets: &a [*a]\n", "&a *a : b\n", "targets: [&a {url: *a}]\n", "x: &a {*a : 1}\n"])
def test_recursive_alias(text, problems_of):
    """An alias within itself, as a value or as a key, is an error like any other."""
    assert problems_of(text)


@pytest.mark.parametrize("opening", [b"[", b"{a: ", b"- ", b"? ", b"{? "])
def test_nested_too_deep(opening, tmp_path):
    """A hundred thousand brackets crash nothing."""
    path = tmp_path / "config.yaml"
    path.write_bytes(HEAD + b"targets:\n " + opening * 100_000)
    problems, seconds, _ = measured(path)
    assert problems[0].endswith("is not valid YAML: it is nested too deep; is it the right file?")
    assert seconds < 10


@pytest.mark.parametrize("line", [b"a%d: b\n", b'"%d": [a, b, c]\n'])
def test_many_keys(line, tmp_path):
    """Too many keys and values are refused while they are counted; as many as are allowed take bounded memory."""
    path = tmp_path / "config.yaml"
    path.write_bytes(HEAD + b"".join(line % number for number in range(200_000)))
    (problem,), seconds, peak = measured(path)
    told = "is too large: the configuration's files have more than 250,000 keys and values together"
    assert problem == f"{path}:1:1: {told}; is it the right file?"
    assert seconds < 20
    assert peak < 200


def test_more_targets_than_an_agent_takes(tmp_path):
    """The first target that is too many is told, once."""
    path = tmp_path / "config.yaml"
    path.write_bytes(HEAD + b"targets:\n" + b"- http://a/%d\n" * 20_003 % tuple(range(20_003)))
    problems, _, _ = measured(path)
    mend = "share them among several agents"
    told = f"targets[20000]: is one too many: an agent takes at most 20,000 targets; {mend}"
    assert problems == [f"{path}:20005:3: {told}"]


def test_bodies_of_all_targets_are_bounded(problems_of, tmp_path):
    """A body that is a default counts for each target that sends it."""
    (tmp_path / "body").write_text("x" * (1 << 20))
    targets = "".join(f"- http://a.example/{number}\n" for number in range(9))
    text = f"defaults: {{method: POST, body: {{file: body}}}}\ntargets:\n{targets}"
    (line,) = problems_of(text)
    told = "is one too many: the bodies of all targets have more than 8 MiB together"
    assert line.endswith(f"defaults.body: {told}; send shorter ones, or share them among several agents")


def test_ten_thousand_targets(tmp_path):
    """Ten thousand targets are a configuration like another."""
    path = tmp_path / "config.yaml"
    lines = (
        f"- {{id: t{number}, url: 'https://a.example/{number}', labels: {{n: {number}}}}}" for number in range(10_000)
    )
    path.write_text(HEAD.decode() + "targets:\n" + "\n".join(lines))
    targets = load(path).targets
    assert [target.id for target in targets] == [f"t{number}" for number in range(10_000)]
    assert targets[9_999].labels == {"n": "9999"}


@pytest.fixture
def special(tmp_path):
    """Folder with a pipe that nobody writes to, and a folder."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("pipe.yaml", "Is not a regular file; name a file of YAML text"),
        ("/dev/zero", "Is not a regular file; name a file of YAML text"),
        ("folder.yaml", "Is a directory; name a file of YAML text"),
        ("folder.yaml/config.yaml", "No such file or directory; correct the path, or make it: uptime-agent init"),
        ("x" * 5_000, "File name too long; name a file of YAML text"),
    ],
)
def test_no_ordinary_file(path, why, special):
    """A pipe, a device and a folder are refused at once instead of being waited for."""
    with pytest.raises(ConfigError) as caught:
        load(Path(path))
    (problem,) = caught.value.problems
    assert problem.message.startswith(f"cannot be read: {why}")


def test_no_ordinary_file_included(special, problems_of):
    """Nor are they waited for when they are included, or named by a path that no file can have."""
    long = "x" * 5_000
    lines = problems_of(f"include: [pipe.yaml, /dev/zero, {long}, 'folder.*']\n")
    assert lines == [
        "/dev/zero:1:1: cannot be read: Is not a regular file; name a file of YAML text",
        'config.yaml:4:5035: include[3]: "folder.*" matches a folder; write its files, as FOLDER/*.yaml',
        "pipe.yaml:1:1: cannot be read: Is not a regular file; name a file of YAML text",
        f"{long[:300]}…:1:1: cannot be read: File name too long; name a file of YAML text",
    ]


@pytest.mark.parametrize("path", ["pipe.yaml", "/dev/zero", "folder.yaml"])
@pytest.mark.parametrize("key", ["body: {file: PATH}", "tls: {ca: PATH}", "tls: {client_key: PATH}"])
def test_no_ordinary_file_as_a_secret(path, key, special, problems_of):
    """Nor when a secret or a certificate is to come from them."""
    (line,) = problems_of(f"targets: [{{url: 'https://a.example/', {key.replace('PATH', path)}}}]\n")
    assert line.endswith(f'"{path}" is not a regular file; name one')


def test_a_large_secret(tmp_path, problems_of):
    """A secret of more than 1 MiB is taken for a mistake."""
    (tmp_path / "secret").write_bytes(b"x" * 2_000_000)
    (line,) = problems_of("targets: [{url: 'https://a.example/', body: {file: secret}}]\n")
    assert line.endswith('"secret" is larger than 1 MiB; is it the right file?')


def test_digest(load_text, tmp_path):
    """The digest changes with any byte of any file, and only with that; equal configurations compare equal."""
    included = tmp_path / "more.yaml"
    included.write_text("- https://b.example/\n")
    text = "include: [more.yaml]\ntargets: [https://a.example/]\n"
    first, again = load_text(text), load_text(text)
    assert first == again
    assert len(first.digest) == 12
    int(first.digest, 16)
    other = load_text(text + "#")
    assert other.digest != first.digest
    assert other.targets == first.targets
    included.write_text("- https://b.example/\n\n")
    assert load_text(text).digest not in (first.digest, other.digest)
    included.write_text("- https://b.example/\n")
    assert load_text(text) == first
    included.write_text("- https://b.example/x\n")
    assert load_text(text).targets != first.targets


def test_from_what_was_read(load_text, tmp_path, authority):
    """A configuration is the same when it is read again from memory, though its files are gone."""
    authority.cert_pem.write_to_path("ca.pem")
    (tmp_path / "t.d").mkdir()
    for name, text in (("b", "- http://b/\n"), ("a", "- {url: http://a/, body: {file: body}}\n"), ("none", "")):
        (tmp_path / "t.d" / f"{name}.yaml").write_text(text)
    (tmp_path / "body").write_text("text\n")
    files = DiskFiles()
    text = "include: [t.d/*.yaml, ./t.d/../t.d/none.yaml, no/*.yaml]\ntargets: [{url: https://c/, tls: {ca: ca.pem}}]\n"
    config = load_text(text, files=files)
    for name in ("config.yaml", "ca.pem", "body", "t.d/a.yaml", "t.d/b.yaml"):
        (tmp_path / name).unlink()
    (tmp_path / "t.d" / "new.yaml").write_text("- http://new/")
    assert files.content is not None
    assert load(Path("config.yaml"), files=KeptFiles(files.content, files.footprint.patterns)) == config
    assert [target.id for target in config.targets] == ["https://c/", "http://a/", "http://b/"]


def test_what_was_not_read_is_not_there(load_text, tmp_path):
    """From memory nothing else is read, whatever the disk has."""
    (tmp_path / "secret").write_text("x")
    files = DiskFiles()
    load_text("targets: [{url: http://a/, body: {file: secret}}]\n", files=files)
    assert files.content is not None
    del files.content[str(tmp_path / "secret")]
    with pytest.raises(ConfigError, match='cannot read "secret": Is not among what was kept'):
        load(Path("config.yaml"), files=KeptFiles(files.content, {}))


@pytest.mark.parametrize("name", ["ssl.ca.location", "ssl.key.location", "sasl.kerberos.keytab"])
def test_a_file_of_kafkas_client(name, load_text, tmp_path):
    """One that Kafka's client reads itself is looked at: an edit of it is an edit, and not of the configuration."""
    text = BASE.replace("[broker:9092]", f"[broker:9092], properties: {{{name}: client.pem}}") + "#location:\n"
    files = DiskFiles()
    before = load_text(text, files=files)
    for content in ("x", "xy"):
        assert files.footprint.now() == files.footprint
        (tmp_path / "client.pem").write_text(content)
        assert files.footprint.now() != files.footprint
        edited, again = DiskFiles(), DiskFiles()
        assert load_text(text, files=edited) == load_text(text, files=again) == before
        assert edited.of_client == again.of_client != files.of_client
        files = again
