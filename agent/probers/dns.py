"""DNS messages as far as a stub resolver needs them (RFC 1035, RFC 6891), without I/O.

Names travel as `encode_name` makes them: length-prefixed labels, ending in a zero byte, not compressed.
"""

import struct
from typing import NamedTuple

A, CNAME, AAAA, OPT = 1, 5, 28, 41
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
UDP_SIZE = 1232  # asked for by EDNS: what fits one packet on any path (DNS flag day 2020)
MOST_ALIASES = 16  # CNAMEs followed
MOST_POINTERS = 10  # followed within one name, as many as Go's resolver does
MOST_RECORDS = 2_000  # read of one answer; the others are left unread

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_IN = 1
_RESPONSE, _OPCODE, _AUTHORITATIVE, _TRUNCATED, _RECURSION = 0x8000, 0x7800, 0x0400, 0x0200, 0x0080
_RECURSE_PLEASE = 0x0100


class DnsFormatError(Exception):
    """A name that cannot be encoded, or the answer to our question, but malformed."""


class Answer(NamedTuple):
    """`addresses` are packed (4 or 16 bytes), of the name or of what it is an alias for; empty unless NOERROR."""

    rcode: int
    truncated: bool
    addresses: tuple[bytes, ...]


def encode_name(name: str) -> bytes:
    """A name on the wire, in lower case. Raises `DnsFormatError` when it cannot be one (RFC 1035, section 2.3.4)."""
    try:
        labels = name.removesuffix(".").encode("ascii").lower().split(b".")
    except UnicodeEncodeError:
        raise DnsFormatError("it is not ASCII") from None
    if not all(1 <= len(label) <= 63 for label in labels):
        raise DnsFormatError("a label is empty or longer than 63 characters")
    wire = b"".join([bytes((len(label),)) + label for label in labels]) + b"\0"
    if len(wire) > 255:
        raise DnsFormatError("it is longer than 253 characters")
    return wire


def query(name: bytes, kind: int, message_id: int) -> bytes:
    """The question for the records of type `kind` of an encoded name, recursion desired."""
    header = _HEADER.pack(message_id, _RECURSE_PLEASE, 1, 0, 0, 1)
    return header + name + struct.pack("!HHx", kind, _IN) + _RECORD.pack(OPT, UDP_SIZE, 0, 0)


def parse(message: bytes, name: bytes, kind: int, message_id: int) -> Answer | None:
    """The answer to that question; None for a message that answers something else, to be ignored.

    Raises `DnsFormatError`, and nothing else, for an answer that is malformed after its question. A server that
    neither knows the name nor recurses has refused, whatever its rcode says.
    """
    if not _answers(message, name, kind, message_id):
        return None
    _, flags, _, records, _, _ = _HEADER.unpack_from(message)
    rcode = flags & 0x000F
    if flags & _TRUNCATED or rcode:
        return Answer(rcode, bool(flags & _TRUNCATED), ())
    if not records and not flags & (_AUTHORITATIVE | _RECURSION):
        return Answer(REFUSED, False, ())
    try:
        addresses = _addresses(message, _HEADER.size + len(name) + 4, min(records, MOST_RECORDS), name, kind)
    except (struct.error, IndexError):
        raise DnsFormatError("it ends too early") from None
    return Answer(rcode, False, addresses)


def _answers(message: bytes, name: bytes, kind: int, message_id: int) -> bool:
    if len(message) < _HEADER.size:
        return False
    found_id, flags, questions, _, _, _ = _HEADER.unpack_from(message)
    if found_id != message_id or flags & (_RESPONSE | _OPCODE) != _RESPONSE:
        return False
    if questions == 0:
        # A server that did not understand, or does not want to, may leave the question out.
        return flags & 0x000F not in (NOERROR, NXDOMAIN)
    # The first name of a message has nothing before it that it could point to.
    asked = message[_HEADER.size : _HEADER.size + len(name) + 4]
    return questions == 1 and asked.lower() == name + struct.pack("!HH", kind, _IN)


def _addresses(message: bytes, at: int, records: int, name: bytes, kind: int) -> tuple[bytes, ...]:
    size = 4 if kind == A else 16
    addresses: dict[bytes, list[bytes]] = {}
    aliases: dict[bytes, bytes] = {}
    for _ in range(records):
        owner, at = _name(message, at)
        found, klass, _, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if at + length > len(message):
            raise DnsFormatError("a record is longer than the message")
        if klass == _IN and found == kind:
            if length != size:
                raise DnsFormatError(f"an address of {length} bytes")
            addresses.setdefault(owner, []).append(message[at : at + size])
        elif klass == _IN and found == CNAME:
            aliases[owner] = _name(message, at)[0]
        at += length
    for _ in range(MOST_ALIASES):
        if name in addresses or name not in aliases:
            break
        name = aliases[name]
    return tuple(dict.fromkeys(addresses.get(name, ())))


def _name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name at `at`, uncompressed, in lower case, and where it ends. Pointers lead backwards only, so it ends."""
    labels = b""
    end: int | None = None
    limit, pointers = at, 0
    while length := message[at]:
        if length < 64:
            label = message[at : at + 1 + length]
            if len(label) != 1 + length or len(labels) + len(label) > 254:
                raise DnsFormatError("a name is too long")
            labels += label
            at += 1 + length
        elif length >= 0xC0:
            if end is None:
                end = at + 2
            at = (length & 0x3F) << 8 | message[at + 1]
            pointers += 1
            if at >= limit or pointers > MOST_POINTERS:
                raise DnsFormatError("a name that points forward or in a circle")
            limit = at
        else:
            raise DnsFormatError("an unknown kind of label")
    return labels.lower() + b"\0", at + 1 if end is None else end
