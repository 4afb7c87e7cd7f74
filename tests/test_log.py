"""The log stays small whatever happens, says what it left out, and shows no secret."""

import logging
import os
import re
import subprocess
import sys
import time

import pytest

from agent import log as module
from agent.config.model import Secret
from tests.written import written_log

log = logging.getLogger("agent.part")


@pytest.fixture
def written(monkeypatch):
    """With a minute of 0.4 s."""
    monkeypatch.setattr(module, "MINUTE", 0.4)
    with written_log() as written:
        yield written


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def damaged(number):
    log.warning("%s: damaged", number)


def test_a_flood_is_told_and_not_written(written):
    """Ten lines of a kind pass; of the others the last is written when the minute is over, with the number of all."""
    for number in range(100):
        damaged(number)
    log.info("something else")
    assert written.messages == [f"{number}: damaged" for number in range(10)] + ["something else"]
    until(lambda: "the last of" in written.getvalue())
    assert written.messages[11:] == ["99: damaged; the last of 90 like it in the last minute"]


def test_a_flood_that_goes_on_is_one_line_a_minute(written):
    """However long it lasts."""
    begin = time.monotonic()
    while time.monotonic() < begin + 5 * module.MINUTE:
        damaged(1)
    minutes = (time.monotonic() - begin) / module.MINUTE
    assert 3 <= len(written.messages) - 10 <= minutes + 1


def test_after_a_quiet_time_all_is_as_before(written, monkeypatch):
    """What was left out once is no reason to leave out more later."""
    monkeypatch.setattr(module, "MINUTE", 0.02)
    for number in range(12):
        damaged(number)
    time.sleep(12 * module.MINUTE)
    until(lambda: "11: damaged" in written.getvalue())
    before = len(written.messages)
    for number in range(10):
        damaged(number)
    assert len(written.messages) - before == 10


def process(program, level="info"):
    """What a process of its own writes."""
    begin = f"import logging; from agent import log; log.set_up({level!r})\n"
    done = subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_what_was_left_out_is_told_at_the_exit():
    """Also when the minute is not over."""
    lines = process("for n in range(100): logging.error(f'no {n}')")
    assert len(lines) == 11
    assert lines[-1].endswith("ERROR    no 99; the last of 90 like it in the last minute")


def test_debug_leaves_nothing_out():
    """Who asks for all of it gets it."""
    assert len(process("for n in range(100): logging.error('no %d', n)", "debug")) == 100


def test_texts_that_are_made_before_are_one_kind(written):
    """A line that is put together by its caller is as bounded as one that is not."""
    for number in range(100):
        log.warning(f"{number}: damaged")  # noqa: G004  (as a library may)
    assert len(written.messages) == 10


def test_problems_are_all_told():
    """A configuration's fifty problems are all in the log; a flood of different texts is not."""
    problem = "logging.error('config.yaml:%d:1: no such key', n, extra={'kind': n})"
    assert len(process(f"for n in range(50): {problem}")) == 50
    lines = process(f"for n in range(10_000): {problem}")
    assert len(lines) == module.KINDS + module.BURST + 1
    assert "config.yaml:9999:1" in lines[-1]


def test_trouble_that_goes_on(written):
    """It is said at once and each minute; after its end, which is said at once too, a new one is."""

    def trouble(name):
        log.error("no %s", name, extra={"trouble": name})

    for _ in range(20):
        trouble("a")
        trouble("b")
    assert written.messages == ["no a", "no b"]
    time.sleep(module.MINUTE + 0.1)
    assert written.messages == ["no a", "no b"]  # it may be over
    trouble("a")
    log.info("a again", extra={"over": "a"})
    trouble("a")
    assert written.messages[2:] == ["no a", "a again", "no a"]


def test_trouble_that_comes_and_goes(written):
    """It does not fill the log, and the last line of it tells how it stands."""
    for _ in range(100):
        log.error("no a", extra={"trouble": "a"})
        log.info("a again", extra={"over": "a"})
    assert written.messages == ["no a", "a again"] * 5
    until(lambda: "the last of" in written.getvalue())
    assert written.messages[10:] == ["a again; the last of 190 like it in the last minute"]


FLOOD = """
import time

class Fussy:
    shown = 0

    def __str__(self):
        Fussy.shown += 1
        return "fussy"

begin = time.process_time()
for _ in range(100_000):
    logging.warning("%s: damaged", Fussy())
logging.warning("took %.3f s, shown %d times", time.process_time() - begin, Fussy.shown)
"""


def test_what_is_left_out_costs_little():
    """It is not even put into words: 100,000 such lines take 0.6 s where they were tried."""
    *_, took, last = process(FLOOD)
    seconds, shown = re.search(r"took (\S+) s, shown (\d+) times", took).groups()
    assert float(seconds) < 5
    assert int(shown) == module.BURST
    assert "the last of 99990 like it" in last


def deep(depth):
    return other(depth - 1) if depth else 1 / 0


def other(depth):
    return deep(depth)  # Python would show a function that calls itself as one


def test_a_traceback_is_bounded(written):
    """Its end is shown, which says what happened, and no line is endless."""
    try:
        deep(100)
    except ZeroDivisionError:
        log.exception("a: failed")
    lines = written.messages
    assert lines[0] == "a: failed"
    assert re.fullmatch(r"… \d+ lines of the traceback left out", lines[1])
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert len(lines) <= module.TRACEBACK + 2
    log.error("a: %s", "x" * 100_000)
    assert len(written.messages[-1]) <= module.LONGEST + 1


def test_control_characters_are_shown_for_what_they_are(written):
    """The journal would hide the whole line."""
    log.error("a: %s", "\x1b[31mred\x00")
    assert written.messages == ["a: \\x1b[31mred\\x00"]


def test_an_exception_shows_no_secret(written):
    """What is configured as a secret is masked in all of a line and its traceback."""
    password = Secret("pässword-12")
    try:
        raise ValueError(f"not ASCII: {password!s}")
    except ValueError as error:
        log.exception("a: %s", error, extra={"secrets_of": (password,)})
    assert "not ASCII: ***" in written.getvalue()
    assert "word-12" not in written.getvalue()


@pytest.mark.parametrize("where", ["fail()", "threading.Thread(target=fail).start()"])
def test_a_crash_is_critical(tmp_path, where):
    """All lines of a fault that nobody caught have their priority in the journal."""
    program = f"import threading; from agent import log; log.set_up('info')\ndef fail(): 1 / 0\n{where}"
    with (tmp_path / "stderr").open("w+") as stderr:
        stream = os.fstat(stderr.fileno())
        environment = os.environ | {"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"}
        subprocess.run([sys.executable, "-c", program], stderr=stderr, env=environment, check=False)
        stderr.seek(0)
        lines = stderr.read().splitlines()
    assert lines[0] == "<2>uptime-agent: a fault of its own"
    assert lines[-1] == "<2>ZeroDivisionError: division by zero"
    assert all(line.startswith("<2>") for line in lines)
