"""Verdicts: nobody is blamed without proof, and nobody is excused who answered wrongly."""

import msgspec
import pytest

from agent.config.model import Target
from agent.probers.result import Attempt, Dns, Error, Icmp, Peer, Phases, Result
from agent.verdict.distance import vouches
from agent.verdict.evidence import LOSS_SECONDS, PROOF_SECONDS, Evidence
from agent.verdict.found import Doubt, Found, Look
from agent.verdict.rules import judge, rule

HERE = Target("here", "http://a.example/", "http://a.example/", 30.0, 10.0)
OTHER = Target("other", "http://b.example/", "http://b.example/", 30.0, 10.0)
AWAY = Peer("9.9.9.9", 80, "ipv4")
SIX = Peer("2620:fe::9", 80, "ipv6")
NEAR = Peer("192.168.1.1", 80, "ipv4")
ANSWERS = Look("connect", 20.0)
SILENT = Look("connect", 1500.0, error="connect_timeout")
AT = 100.0  # when the measurement ended that is judged


def target(name):
    return Target(name, f"http://{name}.example/", f"http://{name}.example/", 30.0, 10.0)


def failed(code, attribution, phase="wait", peer=AWAY, resolver=None, connect=5.0, resent=False):
    phases = Phases(connect=None if phase == "resolve" else connect)
    error = Error(phase, code, attribution, "why")
    return Result(1.0, phases, error, peer=peer, resolver=resolver, resent=resent)


def silence(peer=AWAY):
    return failed("connect_timeout", "path", "connect", peer, connect=3000.0)


def no_name(code="dns_servfail", attribution="resolver"):
    return failed(code, attribution, "resolve", peer=None)


def answer(peer=AWAY, resolver=None, connect=5.0):
    return Result(1.0, Phases(connect=connect), peer=peer, resolver=resolver)


def verdict(result, evidence, *, synchronized=True, **found):
    """Status, code and attribution; None while it is open."""
    ruling = judge(HERE, result, AT, evidence, Found(), clock_synchronized=synchronized)
    if result.peer is not None:
        found.setdefault("before", evidence.other("here", result.peer, AT - 3, AT))
        found.setdefault("after", evidence.other("here", result.peer, AT, AT + PROOF_SECONDS))
    ruling = ruling or rule(HERE, result, AT, evidence, Found(**found))
    return ruling and (ruling[0], ruling[1].code, ruling[1].attribution)


def status(*args, **options):
    ruling = verdict(*args, **options)
    return ruling and ruling[0]


def heard(*sightings):
    """What was seen: target, result, and how long before or after the measurement ended."""
    evidence = Evidence()
    for who, result, after in sightings:
        evidence.note(who, result, AT + after)
    return evidence


def test_a_wrong_answer_needs_no_proof():
    """A target that answered wrongly is down at once."""
    assert status(failed("status_mismatch", "target"), Evidence()) == "down"


def test_a_wrong_answer_that_may_be_somebody_elses():
    """The weightiest doubt that has a reason is told; an open one is waited for, and stands when it is over."""
    wrong, elsewhere = failed("connect_refused", "target", "connect"), Doubt("resolver", "it is well elsewhere")
    nobody_looked, nobody_asked = Doubt("unknown", is_open=True), Doubt(is_open=True)

    def said(*doubts, over=False):
        ruling = rule(HERE, wrong, AT, Evidence(), Found(doubts=list(doubts), over=over))
        return ruling and (ruling.status, ruling.error.attribution, ruling.error.message)

    assert said(Doubt(), Doubt()) == ("down", "target", "why")
    assert said(Doubt(), elsewhere) == ("unknown", "resolver", "why; but it is well elsewhere")
    assert said(Doubt("local", "it was here"), elsewhere, nobody_asked) == ("unknown", "local", "why; but it was here")
    assert said(nobody_looked, elsewhere) is None
    assert said(nobody_looked, elsewhere, over=True) == ("unknown", "unknown", "why")
    assert said(Doubt(), nobody_asked) is None
    assert said(Doubt(), nobody_asked, over=True) == ("down", "target", "why")


def test_silence_without_proof_is_unknown():
    """Nothing came back and nothing else answers: nobody is blamed."""
    assert verdict(silence(), Evidence()) is None
    assert verdict(silence(), Evidence(), over=True) == ("unknown", "connect_timeout", "unknown")


def test_silence_while_another_target_answers_is_down():
    """Another target's answers while it was measured and right after prove the way out."""
    assert verdict(silence(), heard((OTHER, answer(), -1.0), (OTHER, answer(), 0.1))) == (
        "down",
        "connect_timeout",
        "path",
    )


@pytest.mark.parametrize(
    "sightings",
    [(-0.1,), (-5.0, -1.0), (0.1,), (-5.0, 0.1), (-1.0, 1.1)],
    ids=["before the end", "before", "after", "long before and after", "before and too late"],
)
def test_an_answer_before_or_after_alone_proves_nothing(sightings):
    """What answered on one side of the failure only may have done so before the cable was pulled, or later."""
    assert status(silence(), heard(*((OTHER, answer(), each) for each in sightings)), over=True) == "unknown"


def test_silent_twice():
    """When the target is silent again as it is asked again, another's answer right after is enough."""
    assert status(silence(), heard((OTHER, answer(), 0.1)), again=(SILENT,)) == "down"


def test_the_target_is_no_proof_for_itself():
    """Its own answer says nothing about the way out, but does not hide another's either."""
    assert status(silence(), heard((OTHER, answer(), 0.1), (HERE, answer(), 0.2)), again=(SILENT,)) == "down"
    assert status(silence(), heard((HERE, answer(), 0.2)), again=(SILENT,), over=True) == "unknown"


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(answer(Peer("127.0.0.1", 80, "ipv4")), id="loopback"),
        pytest.param(silence(), id="another silence"),
        pytest.param(failed("http_timeout_headers", "path"), id="a connection that fell silent, it is not known when"),
        pytest.param(no_name(), id="no resolver"),
        pytest.param(failed("local_network", "local", "connect"), id="own network"),
        pytest.param(answer(SIX), id="the other family"),
        pytest.param(answer(NEAR), id="a neighbour"),
        pytest.param(answer(connect=1100.0), id="a slow answer"),
    ],
)
def test_what_is_no_proof_of_the_uplink(result):
    """Only a quick answer from as far away, in the same family, proves the way out."""
    assert status(silence(), heard((OTHER, result, 0.1)), again=(SILENT,), over=True) == "unknown"


def test_who_vouches_for_whom():
    """An answer from the world proves the way to a neighbour, not the other way round."""
    assert vouches("9.9.9.9", "192.168.1.1")
    assert vouches("192.168.1.2", "192.168.1.1")
    assert not vouches("192.168.1.1", "9.9.9.9")
    assert not vouches("127.0.0.1", "192.168.1.1")
    assert not vouches("9.9.9.9", "2620:fe::9")
    assert status(silence(NEAR), heard((OTHER, answer(), 0.1)), again=(SILENT,)) == "down"


def test_a_refusal_elsewhere_proves_the_uplink():
    """Even a refused connection came back from beyond."""
    refused = failed("connect_refused", "target", "connect")
    assert status(silence(), heard((OTHER, refused, 0.1)), again=(SILENT,)) == "down"


def test_silence_on_loopback_is_the_targets_own():
    """No network lies between this device and itself."""
    result = failed("http_timeout_headers", "path", peer=Peer("127.0.0.1", 80, "ipv4"))
    assert verdict(result, Evidence()) == ("down", "http_timeout_headers", "target")


def test_a_second_look_is_waited_for():
    """While the target is asked again nothing is decided, though others answer."""
    evidence = heard((OTHER, answer(), 0.1))
    assert verdict(silence(), evidence, again=None) is None
    assert status(silence(), evidence, again=(SILENT,)) == "down"
    assert status(silence(), evidence, again=None, over=True) == "unknown"
    assert status(silence(), evidence, again=None, before="other", over=True) == "down"


def test_silent_and_then_not():
    """What answers as soon as it is asked again may have been silent or lost on the way: nobody knows."""
    evidence = heard((OTHER, answer(), 0.1))
    assert verdict(silence(), evidence, again=(ANSWERS,)) == ("unknown", "connect_timeout", "unknown")


def test_connections_are_taken_and_nothing_said():
    """Its network takes another connection and has taken the request: what is silent is the target, and no other needs
    to tell. A request that had to be sent again may have been lost.
    """
    quiet = failed("http_timeout_headers", "path")
    assert verdict(quiet, Evidence(), again=(ANSWERS,)) == ("down", "http_timeout_headers", "path")
    assert status(quiet, Evidence(), again=(SILENT,), over=True) == "unknown"
    assert status(quiet, Evidence(), over=True) == "unknown"
    assert status(quiet, Evidence(), again=(Look("connect", 1020.0),), over=True) == "unknown"
    resent = failed("http_timeout_headers", "path", resent=True)
    assert status(resent, Evidence(), again=(ANSWERS,), over=True) == "unknown"
    assert status(resent, heard((OTHER, answer(), 0.1)), again=(ANSWERS,)) == "down"


def test_signs_of_loss():
    """While others have to be asked twice, silence proves nothing; after a while it does again."""
    evidence = heard((OTHER, answer(), -10.0), (OTHER, answer(connect=1020.0), -5.0), (target("c"), answer(), 0.1))
    assert status(silence(), evidence, again=(SILENT,)) == "unknown"
    later = heard((OTHER, answer(), -100.0), (OTHER, answer(connect=1020.0), -LOSS_SECONDS - 1))
    later.note(target("c"), answer(), AT + 0.1)
    assert status(silence(), later, again=(SILENT,)) == "down"


@pytest.mark.parametrize(
    ("tried", "verdict"),
    [
        (Attempt("9.9.9.9", Phases(connect=900.0), Error("connect", "connect_timeout", "path", "x")), "unknown"),
        (Attempt("9.9.9.9", Phases(send=1.0, wait=900.0), Error("wait", "icmp_timeout", "path", "x")), "unknown"),
        (Attempt("9.9.9.9", Phases(connect=1.0), Error("connect", "connect_refused", "target", "x")), "down"),
        (Attempt("9.9.9.9", Phases(connect=9.0), Error("wait", "http_timeout_headers", "path", "x")), "down"),
        (Attempt("2620:fe::9", Phases(connect=900.0), Error("connect", "connect_timeout", "path", "x")), "down"),
        (Attempt(None, Phases(resolve=900.0), Error("resolve", "dns_timeout", "resolver", "x")), "down"),
    ],
    ids=["silent", "an echo", "refused", "heard", "the other family", "no address"],
)
def test_one_that_answers_the_second_try(tried, verdict):
    """An address that was silent and then answered is a sign of loss; one that had answered, if wrongly, is none."""
    evidence = heard((OTHER, msgspec.structs.replace(answer(), attempts=(tried,), attempt=2), 0.1))
    assert status(silence(), evidence, again=(SILENT,)) == verdict


def test_one_that_answers_the_second_try_of_a_device_that_stood_still():
    """What was silent meanwhile may have been heard in vain: no sign of loss."""
    evidence = Evidence()
    silent = Attempt("9.9.9.9", Phases(connect=900.0), Error("connect", "connect_timeout", "path", "x"))
    tried = msgspec.structs.replace(answer(), attempts=(silent,), attempt=2)
    evidence.note(OTHER, tried, AT + 0.1, stall=0.3)
    assert status(silence(), evidence, again=(SILENT,)) == "down"


def test_one_that_loses_packets_of_its_own():
    """Of many, one alone that has to be asked twice excuses nobody; two do. Nor does one that was always slow."""
    evidence = heard(*((target(f"t{n}"), answer(), 0.1 * n) for n in range(5)))
    evidence.lost("t1", AT)
    assert status(silence(), evidence, again=(SILENT,)) == "down"
    evidence.lost("t2", AT)
    assert status(silence(), evidence, again=(SILENT,)) == "unknown"
    slow = [(target(f"s{n}"), answer(connect=1500.0), -n) for n in range(9)]
    assert status(silence(), heard(*slow, (OTHER, answer(), 0.1)), again=(SILENT,)) == "down"


def test_own_signs_are_not_held_for_it():
    """That the target itself had to be asked twice before does not excuse it now."""
    evidence = heard((HERE, answer(), -10.0), (HERE, answer(connect=1020.0), -5.0), (OTHER, answer(), 0.1))
    assert status(silence(), evidence, again=(SILENT,)) == "down"


def test_a_link_that_was_down():
    """What happened to this device's link is local, whatever answers by then."""
    told = verdict(silence(), heard((OTHER, answer(), 0.1)), barred="this device's link went down or up meanwhile")
    assert told == ("unknown", "connect_timeout", "local")


def test_resolver_trouble_needs_a_resolver_that_finds_others():
    """SERVFAIL is down only when the same resolver finds most of the other names just then, and something answers."""
    evidence = heard((OTHER, answer(resolver="192.0.2.53"), 0.1))
    assert status(no_name(), evidence) is None
    assert status(no_name(), evidence, over=True) == "unknown"
    assert status(no_name(), evidence, names=False) == "unknown"
    assert verdict(no_name(), evidence, names=True) == ("down", "dns_servfail", "resolver")
    failed_again = (Look("resolve", 5.0, error="dns_servfail"),)
    assert status(no_name(), evidence, names=True, again=failed_again) == "down"


def test_a_resolver_that_answers_from_memory():
    """A resolver that finds names while nothing answers proves nothing."""
    evidence = heard((OTHER, answer(resolver="192.0.2.53"), -1.0))
    assert status(no_name(), evidence, names=True, over=True) == "unknown"


@pytest.mark.parametrize("error", ["dns_servfail", "dns_nxdomain"])
def test_a_name_that_is_found_after_all(error):
    """When it, or another resolver, finds the name as soon as it is asked, the target is not to blame."""
    evidence = heard((OTHER, answer(resolver="192.0.2.53"), -0.1), (OTHER, answer(resolver="192.0.2.53"), 0.1))
    failure = no_name(error, "target" if error == "dns_nxdomain" else "resolver")
    again = Look("resolve", 5.0, error=error), Look("resolve", 5.0, server="192.0.2.99")
    assert verdict(failure, evidence, names=True, again=again) == ("unknown", error, "resolver")


@pytest.mark.parametrize("code", ["dns_nxdomain", "dns_no_address"])
def test_no_such_name(code):
    """That there is no such name is taken at its word; a resolver that found others must find them still."""
    gone = no_name(code, "target")
    assert verdict(gone, Evidence()) == ("down", code, "target")
    own = Target("own", "http://c.example/", "http://c.example/", 30.0, 10.0, resolver="192.0.2.99")
    assert verdict(gone, heard((own, answer(resolver="192.0.2.99"), -5.0))) == ("down", code, "target")
    before = heard((OTHER, answer(resolver="192.0.2.53"), -5.0))
    assert verdict(gone, before) is None
    assert verdict(gone, before, over=True) == ("unknown", code, "resolver")
    assert verdict(gone, before, names=False) == ("unknown", code, "resolver")
    assert verdict(gone, before, names=True) == ("down", code, "target")


@pytest.mark.parametrize("code", ["tls_cert_expired", "tls_cert_not_yet_valid"])
def test_certificate_dates_need_a_clock(code):
    """Dates are judged only when this device's clock is synchronized."""
    assert status(failed(code, "target", "tls"), Evidence()) == "down"
    assert verdict(failed(code, "target", "tls"), Evidence(), synchronized=False) == (
        "unknown",
        "clock_unsynchronized",
        "local",
    )


def test_own_trouble_is_unknown():
    """What this device could not do is never the target's fault."""
    assert status(failed("local_resource", "local", "connect"), Evidence()) == "unknown"
    assert status(failed("local_network", "local", "connect"), heard((OTHER, answer(), 0.1))) == "unknown"


def unanswered(code, attribution="path", phase="wait", *, icmp=None, dns=None, connect=None):
    """A failure without a connection before it."""
    error = Error(phase, code, attribution, "why")
    return Result(1.0, Phases(connect=connect), error, peer=Peer("192.0.2.1", None, "ipv4"), icmp=icmp, dns=dns)


NO_ECHO = Icmp(3, 0, None)
ANSWER = Dns("NOERROR", ("TC",), (), 0, "udp")


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(unanswered("icmp_timeout", icmp=NO_ECHO), id="no echo came back"),
        pytest.param(unanswered("icmp_timeout", icmp=Icmp(3, 1, None)), id="one echo of three came back"),
        pytest.param(unanswered("icmp_unreachable", icmp=NO_ECHO), id="a router's word"),
        pytest.param(unanswered("dns_timeout"), id="no DNS answer"),
        pytest.param(unanswered("dns_unreachable"), id="a router's word about a DNS server"),
        pytest.param(unanswered("connect_timeout", phase="connect", dns=ANSWER), id="truncated, and silent over TCP"),
        pytest.param(unanswered("dns_timeout", connect=1.0), id="silent on a connection"),
    ],
)
def test_silence_without_a_connection_needs_proof(result):
    """Nobody is blamed for silence alone, and it proves nothing for others."""
    assert status(result, heard((OTHER, result, -0.1), (OTHER, result, 0.1)), over=True) == "unknown"
    evidence = heard((OTHER, answer(), -0.1), (OTHER, answer(), 0.1))
    assert verdict(result, evidence) == ("down", result.error.code, "path")


def test_echoes_that_come_back_the_second_time():
    """What is measured again and is well then may have been lost on the way, all of it or a part."""
    evidence = heard((OTHER, answer(), -0.1), (OTHER, answer(), 0.1))
    for icmp in (NO_ECHO, Icmp(3, 1, None)):
        lost = unanswered("icmp_timeout", icmp=icmp)
        assert status(lost, evidence, again=(Look("measure", 20.0),)) == "unknown"
        assert status(lost, evidence, again=(Look("measure", 1500.0, error="icmp_timeout"),)) == "down"


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(unanswered("icmp_unreachable", "target", icmp=NO_ECHO), id="its own word"),
        pytest.param(unanswered("dns_unreachable", "target"), id="its port is closed"),
        pytest.param(unanswered("dns_nxdomain", "target", dns=ANSWER), id="an answer"),
    ],
)
def test_what_came_back_without_a_connection(result):
    """The target's own word is taken, and proves the way out for others."""
    assert status(result, heard((OTHER, answer(resolver="192.0.2.53"), -1.0))) == "down"
    silent = unanswered("icmp_timeout", icmp=NO_ECHO)
    assert status(silent, heard((OTHER, result, -0.1), (OTHER, result, 0.1))) == "down"


def test_what_left_is_forgotten():
    """A target that is not configured any more is no witness, and takes no memory."""
    evidence = heard((OTHER, answer(), 0.1), (HERE, answer(), 0.1))
    evidence.lost("other", AT)
    evidence.keep_only({"here"}, {None})
    assert [each.id for each, _ in evidence.witnesses((), AT)] == ["here"]
    assert not evidence.lossy("here", AT)


def test_a_slow_answer_while_this_device_stood_still_is_no_sign_of_loss():
    """It may have come at once, and waited here: it proves nothing, and excuses nobody."""
    for stall, said in ((0.5, "down"), (0.05, "unknown")):
        evidence = heard((OTHER, answer(), -5.0), (target("third"), answer(), -0.5))
        evidence.note(OTHER, answer(connect=1100.0), AT - 0.2, stall)
        evidence.note(target("third"), answer(), AT + 0.1)
        assert status(silence(), evidence, over=True) == said


@pytest.mark.parametrize(("source", "expected"), [(None, ("down", "target")), ("eth0", ("unknown", "local"))])
def test_silence_on_loopback(source, expected):
    """This device's own is silent itself; but by a source it cannot be reached, and others answering prove nothing."""
    evidence, peer = heard((OTHER, answer(), -1.0), (OTHER, answer(), 0.1)), Peer("127.0.0.1", 80, "ipv4")
    here = msgspec.structs.replace(HERE, source=source)
    ruling = judge(here, silence(peer), AT, evidence, Found(), clock_synchronized=True)
    assert (ruling.status, ruling.error.attribution) == expected


def test_no_echo_is_no_witness():
    """A host that is up however many echoes are lost says nothing when all are."""
    lost = Result(500.0, Phases(wait=500.0), peer=AWAY, icmp=Icmp(3, 0, None))
    assert verdict(silence(), heard((OTHER, lost, -1.0), (OTHER, lost, 0.1))) is None
