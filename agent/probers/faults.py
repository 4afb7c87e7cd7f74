"""What an error of the network means: whether it is this device's own, the way's, or the other side's."""

import errno
import os

from agent.device.uplink import has_route
from agent.probers.result import Attribution, ErrorCode

LOCAL_RESOURCE = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ENOSPC,  # of epoll
    errno.EADDRINUSE,  # no port is left
}
LOCAL_NETWORK = {
    errno.EADDRNOTAVAIL,
    errno.ENETDOWN,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
    errno.ENODEV,
    errno.ECONNABORTED,  # this host's administrator took the connection down
    errno.EINVAL,  # an address that needs a scope, or a route that leads nowhere
}
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN}


def failure_of(error: OSError, address: str, source: str | None = None) -> tuple[ErrorCode, Attribution, str]:
    """What an error of a TCP connection means; connecting or later. `source`: see `Target`."""
    number = error.errno or 0
    why = error.strerror or os.strerror(number)
    if number == errno.ECONNREFUSED:
        return "connect_refused", "target", "the connection was refused"
    if isinstance(error, ConnectionError) and number != errno.ECONNABORTED:
        return "connect_reset", "target", "the connection was reset"
    if number in LOCAL_RESOURCE:
        return "local_resource", "local", f"this device could not open a connection: {why}"
    if is_local_network(number, address, source):
        return "local_network", "local", f"this device could not connect: {why}"
    return "connect_unreachable", "path", f"cannot be reached: {why}"


def is_local_network(number: int, address: str, source: str | None = None) -> bool:
    """Whether this errno of a socket to `address` came from this device's own network."""
    return number in LOCAL_NETWORK or (number in _UNREACHABLE and has_route(address, source) is not True)


def failure_to_send(error: OSError) -> tuple[ErrorCode, Attribution, str]:
    """What it means that a datagram could not be sent, which nobody else than this device can have caused."""
    number = error.errno or 0
    code: ErrorCode = "local_resource" if number in LOCAL_RESOURCE else "local_network"
    return code, "local", f"this device could not send: {error.strerror or os.strerror(number)}"
