"""What an error of the network means: whether it is this device's own, the way's, or the other side's."""

import errno
import os
import socket

from agent.probers.result import Attribution, ErrorCode

_RESOURCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}  # the last: epoll's
_NETWORK = {
    errno.EADDRNOTAVAIL,
    errno.ENETDOWN,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
    errno.EINVAL,  # an address that needs a scope
}
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN}


def failure_of(error: OSError, address: str) -> tuple[ErrorCode, Attribution, str]:
    """What an error of a TCP connection means; connecting or later."""
    number = error.errno or 0
    why = os.strerror(number)
    if number == errno.ECONNREFUSED:
        return "connect_refused", "target", "the connection was refused"
    if isinstance(error, ConnectionError):
        return "connect_reset", "target", "the connection was reset"
    if number in _RESOURCE:
        return "local_resource", "local", f"this device could not open a connection: {why}"
    if number in _NETWORK or (number in _UNREACHABLE and not _has_route(address)):
        return "local_network", "local", f"this device could not connect: {why}"
    return "connect_unreachable", "path", f"cannot be reached: {why}"


def failure_to_send(error: OSError) -> tuple[ErrorCode, Attribution, str]:
    """What it means that a datagram could not be sent, which nobody else than this device can have caused."""
    number = error.errno or 0
    code: ErrorCode = "local_resource" if number in _RESOURCE else "local_network"
    return code, "local", f"this device could not send: {os.strerror(number)}"


def _has_route(address: str) -> bool:
    """Asks this device's routing table: connecting a datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((address, 9))
    except OSError:
        return False
    return True
