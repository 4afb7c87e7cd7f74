"""The largest configuration that is taken, and the worst edit of it, leave the agent far below the unit's memory."""

from pathlib import Path

import pytest

from tests.end_to_end.running import agent, wait_for

MOST = 230  # MiB, of the 256 after which systemd kills it
APPLIED = r"configuration \w+ applied"
TEN_OPTIONS = (
    "- {{id: {name}-{n}, url: 'http://127.0.0.1:9/{n}', interval: 1h, timeout: 5s, enabled: yes, ip: auto, method: GET,"
    " redirects: 3, labels: {{team: web, n: '{n}'}}}}\n"
)
TWO_OPTIONS = "- {{id: {name}-{n}, url: 'http://127.0.0.1:9/{n}'}}\n"
LONG_HEADERS = "- {{id: {name}-{n}, url: 'http://127.0.0.1:9/{n}', headers: {{A: '{long}{n}'}}}}\n"


class Large:
    """A configuration of many targets, which names them so that each edit makes all of them new."""

    def __init__(self, folder: Path):
        self.path, self.state = folder / "config.yaml", folder / "state"

    def write(self, line: str, number: int, name: str = "") -> None:
        targets = (line.format(n=n, name=name, long="x" * 500) for n in range(number))
        head = "agent: {id: me}\nlocation: {id: here}\nkafka: {bootstrap_servers: '127.0.0.1:1'}\n"
        head += f"state_directory: {self.state}\nclock: {{synchronized: yes}}\ndefaults: {{interval: 1h}}\ntargets:\n"
        new = self.path.with_suffix(".new")
        new.write_text(head + "".join(targets))
        new.replace(self.path)


def peak(running) -> float:
    """The most memory that the process ever had, MiB (proc_pid_status(5))."""
    lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return kib / 1024


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("line", "number"),
    [(TEN_OPTIONS, 10_000), (TWO_OPTIONS, 20_000), (LONG_HEADERS, 7_000)],
    ids=["ten options", "most targets", "long headers"],
)
def test_large_edits(tmp_path, line, number):
    """Edits that make every target another one, each on top of one as large, and then one that is all mistakes. A
    start that finds the mistakes goes on with the last good one.
    """
    large = Large(tmp_path)
    large.write(line, number, "first")
    with agent(large.path) as running:
        for times, name in enumerate(("second", "third"), 2):
            running.says(APPLIED, times - 1)
            large.write(line, number, name)
        running.says(APPLIED, 3)
        wait_for((large.state / "last-good").exists, "the kept configuration")
        large.write("- {{a{n}: b, url: {n}}}\n", 49_000)
        running.says("refused; the configuration before stays in force")
        large.write("- {{a{n}: b, url: {n}}}\n", 99_000)
        running.says("refused; the configuration before stays in force", 2)
        assert peak(running) < MOST
    large.write("- {{a{n}: b, url: {n}}}\n", 49_000)
    with agent(large.path) as running:
        running.says("the last good configuration, of .*, is in force until this is mended")
        running.says(APPLIED)
        assert peak(running) < MOST
