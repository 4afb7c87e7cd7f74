"""Exchanges with servers that say anything, over real sockets: what is told of them is what their bytes are."""

import asyncio
import contextlib
import itertools
import ssl
import time

import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from agent.config.model import TlsOptions
from agent.probers.exchange import Outcome, TlsUse, exchange
from agent.probers.http1 import Response
from agent.probers.tls import context_of
from tests.fuzz import examples
from tests.probers.certificates import server, trusted
from tests.probers.http_server import OK
from tests.probers.test_http1_fuzz import CUTS, LIMIT, answers, facts, mistyped, read

REQUEST = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
CONTEXT = context_of(TlsOptions(ca=trusted()))
SERVER = {version: server(maximum_version=version) for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)}
PHASES = ("connect", "tls", "send", "wait", "receive")
AFTER_TLS = ("tls_", "http_", "connect_reset", "body_too_large")


class Listening:
    """A server on loopback; each connection is handled by what `behaviour` is at that moment."""

    def __init__(self) -> None:
        self.behaviour = None
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._listener = self.runner.run(asyncio.start_server(self._visit, "127.0.0.1", 0))
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _visit(self, reader, writer) -> None:
        with contextlib.suppress(OSError, EOFError):
            await self.behaviour(reader, writer)
        writer.close()

    def exchange(self, behaviour, *, tls: TlsUse | None = None, timeout: float = 5.0) -> tuple[Outcome, Response]:
        """One exchange, which was in time and whose phases are in order."""
        self.behaviour, response = behaviour, Response("GET", LIMIT)

        async def once() -> Outcome:
            begun = time.monotonic()
            ends = begun + timeout
            found = await exchange(
                "127.0.0.1", self.port, tls, REQUEST, response, started=begun, connect_deadline=ends, deadline=ends
            )
            assert time.monotonic() - begun < timeout + 1
            return found

        outcome = self.runner.run(once())
        phases = [getattr(outcome.phases, phase) for phase in PHASES if tls is not None or phase != "tls"]
        reached = [phase is not None for phase in phases]
        assert reached == sorted(reached, reverse=True)
        assert all(phase >= 0 for phase in phases if phase is not None)
        return outcome, response

    def close(self) -> None:
        self._listener.close()
        self.runner.run(asyncio.sleep(0))
        self.runner.close()


@pytest.fixture(scope="module")
def listening():
    there = Listening()
    yield there
    there.close()


@examples(150)
@given(st.one_of(answers().map(lambda each: each.data), mistyped()), CUTS)
@example(b"HTTP/1.1 200 OK\r\nLocation: /\r\n!\0", [1])
def test_any_answer(listening, data, cuts):
    """An exchange says of an answer what the codec says of its bytes, in whatever pieces they come."""

    async def behaviour(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        at = 0
        for size in itertools.cycle(cuts):
            if at >= len(data):
                break
            writer.write(data[at : at + size])
            await asyncio.sleep(0)
            at += size

    outcome, response = listening.exchange(behaviour)
    expected = read(data, eof=True)
    assert facts(response) == facts(expected)
    assert (outcome.error and outcome.error.code) == (expected.failure and expected.failure.code)
    if outcome.error is not None:
        assert outcome.error.phase in ("send", "wait", "receive")
        assert outcome.error.attribution == "target"


CHANGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3_000), st.integers(0, 3), st.binary(max_size=3)), max_size=2
)


@examples(60)
@given(CHANGES, st.integers(20, 3_000), st.sampled_from(list(SERVER)))
def test_any_tls(listening, changes, size, version):
    """Whatever is changed in what a server of TLS says, it is up, or one named failure; unchanged it is up."""

    async def behaviour(reader, writer) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session, turns = SERVER[version].wrap_bio(incoming, outgoing, server_side=True), itertools.count()

        async def say() -> None:
            data, turn = outgoing.read(), next(turns)
            for when, at, length, piece in changes:
                if when == turn and data:
                    data = data[: at % len(data)] + piece + data[at % len(data) + length :]
            for at in range(0, len(data), size):
                writer.write(data[at : at + size])
                await asyncio.sleep(0)

        step, done = session.do_handshake, 0
        while done < 2:
            try:
                step()
                step, done = (lambda: session.read(1 << 16)), done + 1
            except ssl.SSLWantReadError:
                await say()
                data = await reader.read(1 << 16)
                if not data:
                    return
                incoming.write(data)
            except ssl.SSLError:
                break
        with contextlib.suppress(ssl.SSLError):
            session.write(OK)
        await say()

    outcome, response = listening.exchange(
        behaviour, tls=TlsUse(CONTEXT, "www.example", True), timeout=0.1 if changes else 10
    )
    assert changes or outcome.error is None
    if outcome.error is None:
        assert response.complete
        assert outcome.tls.verified
    else:
        assert outcome.error.code.startswith(AFTER_TLS)
        assert outcome.error.message.isprintable()
