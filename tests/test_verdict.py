"""Verdicts: nobody is blamed without proof, and nobody is excused who answered wrongly."""

import pytest

from agent.config.model import Target
from agent.probers.result import Dns, Error, Icmp, Peer, Phases, Result
from agent.verdict import PROOF_SECONDS, Evidence, judge

HERE = Target("here", "http://a.example/", "http://a.example/", 30.0, 10.0)
OTHER = Target("other", "http://b.example/", "http://b.example/", 30.0, 10.0)
AWAY = Peer("192.0.2.1", 80, "ipv4")


def failed(code, attribution, phase="wait", peer=AWAY, resolver=None):
    phases = Phases(connect=None if phase in ("resolve", "connect") else 0.5)
    return Result(1.0, phases, Error(phase, code, attribution, "why"), peer=peer, resolver=resolver)


def answered(peer=AWAY, resolver=None):
    return Result(1.0, Phases(), peer=peer, resolver=resolver)


def verdict(result, evidence, now=100.0, synchronized=True):
    status, error = judge(HERE, result, evidence, now, clock_synchronized=synchronized)
    return status, error and (error.code, error.attribution)


def test_up():
    """Without an error it is up."""
    assert verdict(answered(), Evidence()) == ("up", None)


def test_a_wrong_answer_needs_no_proof():
    """A target that answered wrongly is down at once."""
    assert verdict(failed("status_mismatch", "target"), Evidence())[0] == "down"


def test_silence_without_proof_is_unknown():
    """Nothing came back and nothing else answered lately: nobody is blamed."""
    assert verdict(failed("connect_timeout", "path", "connect"), Evidence()) == (
        "unknown",
        ("connect_timeout", "unknown"),
    )


def test_silence_while_another_target_answers_is_down():
    """Another target's answer proves the uplink."""
    evidence = Evidence()
    evidence.note(OTHER, answered(), 90.0)
    assert verdict(failed("connect_timeout", "path", "connect"), evidence) == ("down", ("connect_timeout", "path"))


def test_silence_after_the_connection_is_down():
    """The target's own network answered the connection: the way there is good, and what is silent is the target."""
    assert verdict(failed("http_timeout_headers", "path"), Evidence()) == ("down", ("http_timeout_headers", "path"))


def test_an_old_answer_proves_nothing():
    """Proof ends after 30 s."""
    evidence = Evidence()
    evidence.note(OTHER, answered(), 100.0 - PROOF_SECONDS - 0.1)
    assert verdict(failed("connect_timeout", "path", "connect"), evidence)[0] == "unknown"


def test_the_target_is_no_proof_for_itself():
    """Its own earlier answer says nothing about the uplink now, but does not hide another's either."""
    evidence = Evidence()
    evidence.note(OTHER, answered(), 95.0)
    evidence.note(HERE, answered(), 99.0)
    assert verdict(failed("connect_timeout", "path", "connect"), evidence)[0] == "down"
    evidence = Evidence()
    evidence.note(HERE, answered(), 99.0)
    assert verdict(failed("connect_timeout", "path", "connect"), evidence)[0] == "unknown"


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(answered(Peer("127.0.0.1", 80, "ipv4")), id="loopback"),
        pytest.param(failed("connect_timeout", "path", "connect"), id="another silence"),
        pytest.param(failed("dns_timeout", "resolver", "resolve", peer=None), id="no resolver"),
        pytest.param(failed("local_network", "local", "connect"), id="own network"),
    ],
)
def test_what_is_no_proof_of_the_uplink(result):
    """Only an answer from beyond this device proves its way out."""
    evidence = Evidence()
    evidence.note(OTHER, result, 99.0)
    assert verdict(failed("connect_timeout", "path", "connect"), evidence)[0] == "unknown"


def test_a_neighbour_is_no_witness_for_the_world():
    """That the router answers says nothing about the way out; an answer from the world proves the way to both."""
    silent = failed("connect_timeout", "path", "connect", peer=Peer("9.9.9.9", 80, "ipv4"))
    evidence = Evidence()
    evidence.note(OTHER, answered(Peer("192.168.1.1", 80, "ipv4")), 99.0)
    assert verdict(silent, evidence)[0] == "unknown"
    evidence.note(OTHER, answered(Peer("2620:fe::9", 80, "ipv6")), 99.0)
    assert verdict(silent, evidence)[0] == "down"
    assert (
        verdict(failed("connect_timeout", "path", "connect", peer=Peer("10.0.0.1", 80, "ipv4")), evidence)[0] == "down"
    )


def test_a_refusal_elsewhere_proves_the_uplink():
    """Even a refused connection came back from beyond."""
    evidence = Evidence()
    evidence.note(OTHER, failed("connect_refused", "target", "connect"), 99.0)
    assert verdict(failed("connect_timeout", "path", "connect"), evidence)[0] == "down"


def test_silence_on_loopback_is_the_targets_own():
    """No network lies between this device and itself."""
    result = failed("http_timeout_headers", "path", peer=Peer("127.0.0.1", 80, "ipv4"))
    assert verdict(result, Evidence()) == ("down", ("http_timeout_headers", "target"))


def test_resolver_trouble_needs_a_resolver_that_answers_others():
    """SERVFAIL is down only when the same resolver answers for other names."""
    result = failed("dns_servfail", "resolver", "resolve", peer=None)
    evidence = Evidence()
    assert verdict(result, evidence)[0] == "unknown"
    evidence.note(OTHER, answered(resolver="192.0.2.53"), 99.0)
    assert verdict(result, evidence) == ("down", ("dns_servfail", "resolver"))


def test_another_resolver_proves_nothing_about_the_hosts():
    """A target with its own `resolver` is no witness for the host's resolver."""
    evidence = Evidence()
    own = Target("own", "http://c.example/", "http://c.example/", 30.0, 10.0, resolver="192.0.2.99")
    evidence.note(own, answered(resolver="192.0.2.99"), 99.0)
    assert verdict(failed("dns_servfail", "resolver", "resolve", peer=None), evidence)[0] == "unknown"


@pytest.mark.parametrize("code", ["tls_cert_expired", "tls_cert_not_yet_valid"])
def test_certificate_dates_need_a_clock(code):
    """Dates are judged only when this device's clock is synchronized."""
    assert verdict(failed(code, "target", "tls"), Evidence())[0] == "down"
    assert verdict(failed(code, "target", "tls"), Evidence(), synchronized=False) == (
        "unknown",
        ("clock_unsynchronized", "local"),
    )


def test_own_trouble_is_unknown():
    """What this device could not do is never the target's fault."""
    assert verdict(failed("local_resource", "local", "connect"), Evidence())[0] == "unknown"


def unanswered(code, attribution="path", phase="wait", *, icmp=None, dns=None, connect=None):
    """A failure without a connection before it."""
    error = Error(phase, code, attribution, "why")
    return Result(1.0, Phases(connect=connect), error, peer=Peer("192.0.2.1", None, "ipv4"), icmp=icmp, dns=dns)


SILENT = Icmp(3, 0, None)
ANSWER = Dns("NOERROR", ("TC",), (), 0, "udp")


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(unanswered("icmp_timeout", icmp=SILENT), id="no echo came back"),
        pytest.param(unanswered("icmp_unreachable", icmp=SILENT), id="a router's word"),
        pytest.param(unanswered("dns_timeout"), id="no DNS answer"),
        pytest.param(unanswered("dns_unreachable"), id="a router's word about a DNS server"),
    ],
)
def test_silence_without_a_connection_needs_proof(result):
    """Nobody is blamed for silence alone, and it proves nothing for others."""
    assert verdict(result, Evidence()) == ("unknown", (result.error.code, "unknown"))
    evidence = Evidence()
    evidence.note(OTHER, result, 99.0)
    assert verdict(result, evidence)[0] == "unknown"
    evidence.note(OTHER, answered(), 99.0)
    assert verdict(result, evidence) == ("down", (result.error.code, "path"))


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(unanswered("icmp_timeout", icmp=Icmp(3, 1, None)), id="an echo came back"),
        pytest.param(unanswered("icmp_unreachable", "target", icmp=SILENT), id="its own word"),
        pytest.param(unanswered("dns_unreachable", "target"), id="its port is closed"),
        pytest.param(unanswered("dns_nxdomain", "target", dns=ANSWER), id="an answer"),
        pytest.param(unanswered("connect_timeout", phase="connect", dns=ANSWER), id="truncated, and silent over TCP"),
        pytest.param(unanswered("dns_timeout", connect=1.0), id="silent on a connection"),
    ],
)
def test_what_came_back_without_a_connection(result):
    """Anything from the address proves the way to it, for itself and for others."""
    assert verdict(result, Evidence())[0] == "down"
    evidence = Evidence()
    evidence.note(OTHER, result, 99.0)
    assert verdict(unanswered("icmp_timeout", icmp=SILENT), evidence)[0] == "down"
