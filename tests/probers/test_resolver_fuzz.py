"""The host's own files, whatever stands in them: what is well written counts, and the rest harms nobody."""

import contextlib
import ipaddress
import socket

from hypothesis import example, given
from hypothesis import strategies as st

from agent.probers import dns
from agent.probers.resolver import MOST_SENT, MOST_SERVERS, _hosts, _resolv_conf, is_address, parse_server
from tests.fuzz import examples

ADDRESSES = st.sampled_from(
    ["192.0.2.7", "2001:db8::7", "::1%lo", "fe80::1%0", "::ffff:192.0.2.1", "127.1", "1.2.3.4.5"]
)
WORDS = st.one_of(
    ADDRESSES,
    st.text(max_size=8),
    st.sampled_from(
        ["nameserver", "options", "search", "timeout:", "timeout:2", "attempts:99", "attempts:", "#", ";", "\t"]
    ),
    st.integers(0, 10**12).map(lambda number: f"timeout:{number}"),
    st.sampled_from(
        ["\0", "\u2028", "\x85", "\ufeff", "\ufffd", "::1%\0", "::1%é", "timeout:٣", "attempts:-1", "a.example."]
    ),
)
LINES = st.lists(WORDS, max_size=6).map(" ".join)
TEXTS = st.lists(LINES, max_size=8).map("\n".join)


def usable(address: str) -> bool:
    """Whether a socket takes it for an address, be there a way to it or not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking, contextlib.suppress(OSError):
        asking.connect((address, 9))
    return True


@examples()
@given(TEXTS, TEXTS)
@example("", "options timeout:" + "9" * 5000)
@example("nameserver ::1%\0", "nameserver fe80::1%é")
def test_resolv_conf(before, after):
    """Of any file there are one to three servers that can be asked, within the bounds of resolv.conf(5)."""
    text = f"{before}\nnameserver 192.0.2.53\n{after}"
    servers = _resolv_conf(text, 53)
    assert 1 <= len(servers.addresses) <= MOST_SERVERS
    assert all(port == 53 and usable(address) for address, port in servers.addresses)
    assert 1 <= servers.first_retry <= 30
    assert 1 <= servers.sends <= max(MOST_SENT, 5 * MOST_SERVERS)
    assert ("192.0.2.53", 53) in servers.addresses or len(servers.addresses) == MOST_SERVERS


@examples()
@given(TEXTS, TEXTS)
def test_hosts(before, after):
    """Every name has addresses that a socket takes, and a good line is found among bad ones."""
    names = _hosts(f"{before}\n192.0.2.77\tGood.Example. good  # {after.splitlines()[:1]}\n{after}")
    assert "192.0.2.77" in names["good.example"]
    assert "192.0.2.77" in names["good"]
    for name, addresses in names.items():
        assert name == name.lower()
        assert addresses
        assert len(set(addresses)) == len(addresses)
        assert all(is_address(address) and usable(address) for address in addresses)


@examples()
@given(st.one_of(WORDS, st.lists(WORDS, max_size=3).map("".join), st.text("0123456789abcdef:.%[]", max_size=20)))
def test_what_is_an_address(text):
    """What is taken for an address is one, and a socket takes it; all else is a name, or none."""
    if is_address(text):
        ipaddress.ip_address(text)
        assert usable(text)
    else:
        with contextlib.suppress(dns.DnsFormatError):
            assert dns.encode_name(text).endswith(b"\0")
    with contextlib.suppress(ValueError):
        address, port = parse_server(text)
        assert usable(address)
        assert 0 < port < 65_536
