"""Both event loops and both families of addresses."""

import asyncio
import socket

import pytest
import uvloop

from tests.probers.namespaces import built


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trying:
            trying.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no ::1")


def pytest_asyncio_loop_factories(config, item):
    """Every asynchronous test runs on plain asyncio, and on uvloop as the daemon does."""
    if item.get_closest_marker("command"):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["127.0.0.1", pytest.param("::1", marks=IPV6)])
def host(request) -> str:
    """The address that a test's server listens on."""
    return request.param


@pytest.fixture(scope="session")
def network():
    """A device, a router and a host in network namespaces."""
    yield from built()
