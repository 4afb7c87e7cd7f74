"""The prober for `dns` and `dns+tcp`: one question to one server, and what the answer must be like.

`dns` asks over UDP, once, and over TCP when the answer was truncated; the phases are then those of TCP, as they are
those of the last hop after a redirect. What answers another question, or comes from elsewhere, is passed over.
"""

import secrets
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from agent.config.dns import FLAGS, question, rcode_name
from agent.config.masking import MASK, Mask
from agent.config.model import Secret, Target
from agent.config.regexp import Regexp, compiled
from agent.probers import dns, dns_text
from agent.probers.dns_exchange import Ask, Outcome, exchange
from agent.probers.families import measure
from agent.probers.resolver import Resolver
from agent.probers.result import LONGEST_SHOWN, MOST_SHOWN, Dns, Error, ErrorCode, Peer, Result, ms

_RCODES: dict[str, ErrorCode] = {
    "NOERROR": "dns_answer_mismatch",
    "NXDOMAIN": "dns_nxdomain",
    "REFUSED": "dns_refused",
}


class _Pattern(NamedTuple):
    """What is expected of the records of a section; `wanted`: found in some of them, else in none."""

    section: str
    wanted: bool
    text: str
    regexp: Regexp


class DnsProber:
    """Measures one DNS server by one question."""

    type = "dns"

    def __init__(self, target: Target, resolver: Resolver) -> None:
        self._target, self._resolver = target, resolver
        self._asked = asked = question(target.url)
        self._name = b"\0" if asked.name == "." else dns.encode_name(asked.name)
        self._tcp = urlsplit(target.url).scheme == "dns+tcp"
        self._patterns = [
            _Pattern(section, not negation, text, compiled(text))
            for section in ("answer", "authority", "additional")
            for negation in ("", "_not")
            for text in getattr(target.expect, section + negation)
        ]
        hidden = target.shown_url == MASK
        self._mask = Mask((target, Secret(asked.name), Secret(asked.server)) if hidden else target)

    async def probe(self, deadline: float) -> Result:
        """Measures until `deadline` (seconds of `time.monotonic`); see `Prober`."""
        return await measure(self._target, self._asked.server, self._resolver, deadline, self._try, self._mask)

    async def _try(self, address: str, deadline: float) -> Result:
        begun, ask, port = time.monotonic(), self._ask(), self._asked.port
        tcp, source = self._tcp, self._target.source
        outcome = await exchange(address, port, ask, deadline, tcp=tcp, source=source)
        before = None
        if not tcp and outcome.answer is not None and outcome.answer.truncated:
            before, tcp = outcome.answer, True
            outcome = await exchange(address, port, ask, deadline, tcp=True, source=source)
        # For a single exchange the phases are all of it, to the digit.
        duration = outcome.phases.whole if before is None else ms(time.monotonic() - begun)
        peer = Peer(address, port, "ipv6" if ":" in address else "ipv4")
        error, found = self._judge(outcome, before, tcp=tcp)
        return Result(duration, outcome.phases, error, peer, dns=found)

    def _ask(self) -> Ask:
        asked, message_id = self._asked, secrets.randbits(16)
        flags = dns.AUTHENTIC | (dns.RECURSE_PLEASE if self._target.recursion else 0)
        message = dns.query(self._name, asked.kind, message_id, asked.klass, flags)
        return Ask(self._name, asked.kind, asked.klass, message_id, message)

    def _judge(self, outcome: Outcome, before: dns.Message | None, *, tcp: bool) -> tuple[Error | None, Dns | None]:
        """Why the measurement is not up, if it is not, and what is recorded; `before`: what UDP brought."""
        answer = outcome.answer
        if answer is None:
            return outcome.error, before and _shown(before, (), tcp=False)
        texts: tuple[str, ...] = ()
        broken = answer.broken
        if not broken:
            try:
                texts = dns_text.texts(answer.data, answer.answer)
            except dns.DnsFormatError as malformed:
                broken = str(malformed)
        masked = tuple(self._mask.text(text) for text in texts[:MOST_SHOWN])
        return self._mismatch(answer, broken, texts), _shown(answer, masked, tcp=tcp)

    def _mismatch(self, answer: dns.Message, broken: str, texts: Sequence[str]) -> Error | None:
        expect, rcode = self._target.expect, rcode_name(answer.rcode)
        if rcode not in expect.rcodes:
            told = f"the server answered {rcode}, expected {' or '.join(expect.rcodes)}"
            return Error("wait", _RCODES.get(rcode, "dns_servfail"), "target", told)
        if broken:
            return Error("wait", "dns_servfail", "target", f"the answer is not as one must be: {broken}")
        if missing := [flag for flag in expect.flags if not answer.flags & FLAGS[flag]]:
            return _mismatched(f"the flag {missing[0]} is not set")
        try:
            return self._unlike(answer, [text.encode() for text in texts])
        except dns.DnsFormatError as malformed:
            return Error("wait", "dns_servfail", "target", f"the answer is not as one must be: {malformed}")

    def _unlike(self, answer: dns.Message, texts: Sequence[bytes]) -> Error | None:
        """What is expected of the records and does not hold."""
        sections = {"answer": texts}
        for section, wanted, text, regexp in self._patterns:
            if section not in sections:
                records = [record for record in getattr(answer, section) if record.kind != dns.OPT]
                sections[section] = [each.encode() for each in dns_text.texts(answer.data, records)]
            found = next((record for record in sections[section] if regexp.search(record)), None)
            if wanted and found is None:
                return _mismatched(f"no record in {section}, of {len(sections[section])} there, matches {text!r}")
            if not wanted and found is not None:
                return _mismatched(f"a record in {section} matches {text!r}: {found.decode()[:LONGEST_SHOWN]}")
        return None


def _mismatched(message: str) -> Error:
    return Error("wait", "dns_answer_mismatch", "target", message)


def _shown(answer: dns.Message, texts: Sequence[str], *, tcp: bool) -> Dns:
    flags = tuple(flag for flag, bit in FLAGS.items() if answer.flags & bit)
    shown = tuple(text[:LONGEST_SHOWN] for text in texts)
    return Dns(rcode_name(answer.rcode), flags, shown, answer.answers, "tcp" if tcp else "udp")
