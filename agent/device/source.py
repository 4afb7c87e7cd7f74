"""From which of this device's addresses, or by which of its interfaces, something leaves: the option `source`."""

import errno
import os
import socket

_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>
_WHY = {
    errno.EADDRNOTAVAIL: "{}, its source, is no address of this device",
    errno.ENODEV: "{}, its source, is no interface of this device",
    errno.EAFNOSUPPORT: "{}, its source, is of the other version of IP",
    errno.EPERM: "the interface {}, its source, may be chosen by root only before Linux 5.7; name an address instead",
}


def leave_by(made: socket.SocketType, source: str) -> None:
    """What is sent through this socket, which is not bound yet, leaves from that address or by that interface.

    Raises OSError, with a sentence for people, which is this device's fault.
    """
    try:
        if not is_address(source):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, source.encode())
        elif not fits(source, ":" if made.family == socket.AF_INET6 else ""):
            raise OSError(errno.EAFNOSUPPORT, "")
        else:
            if made.type == socket.SOCK_STREAM:
                # Else a port is taken here already, which no other connection may have then, wherever it leads.
                made.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            made.bind((source, 0))
    except OSError as error:
        number = error.errno or 0
        raise OSError(number, _WHY.get(number, "{}, its source: " + os.strerror(number)).format(source)) from None


def is_address(source: str) -> bool:
    """Whether it is an address, and not an interface: that has a letter and no colon."""
    return ":" in source or source.replace(".", "").isdigit()


def fits(source: str | None, address: str) -> bool:
    """Whether an address is of the same version of IP as the source, if that is one."""
    return source is None or not is_address(source) or (":" in source) == (":" in address)
