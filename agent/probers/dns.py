"""DNS messages as far as a stub resolver and the measuring of a server need them (RFC 1035, RFC 6891), without I/O.

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
MOST_NAMES = 64 << 10  # bytes of their names: pointers make a lot of little

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_IN = 1
_TOO_LONG = f"its names are longer than {MOST_NAMES >> 10} KiB"
_RESPONSE, _OPCODE, _AUTHORITATIVE, _TRUNCATED, _RECURSION = 0x8000, 0x7800, 0x0400, 0x0200, 0x0080
RECURSE_PLEASE, AUTHENTIC = 0x0100, 0x0020  # flags of a question, the second one: tell whether it is (RFC 6840)


class DnsFormatError(Exception):
    """A name that cannot be encoded, or the answer to our question, but malformed."""


class Answer(NamedTuple):
    """`addresses` are packed (4 or 16 bytes), of the name or of what it is an alias for; empty unless NOERROR."""

    rcode: int
    truncated: bool
    addresses: tuple[bytes, ...]


class Record(NamedTuple):
    """A record of a message; its data are `length` bytes from `at` on, and may point elsewhere in the message."""

    name: bytes
    kind: int
    klass: int
    ttl: int
    at: int
    length: int


class Message(NamedTuple):
    """An answer as it is: `rcode` with EDNS's upper bits, all flags, and the three sections.

    `broken` says why the sections are not whole: cut by the server as truncated, malformed, or more than `MOST_RECORDS`
    together. `answers`: how many records the answer section is said to have.
    """

    data: bytes
    rcode: int
    flags: int
    answers: int
    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    broken: str = ""

    @property
    def truncated(self) -> bool:
        """Is the whole answer to be had over TCP only?"""
        return bool(self.flags & _TRUNCATED)


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


def query(name: bytes, kind: int, message_id: int, klass: int = _IN, flags: int = RECURSE_PLEASE) -> bytes:
    """The question for the records of type `kind` of an encoded name, recursion desired."""
    header = _HEADER.pack(message_id, flags, 1, 0, 0, 1)
    return header + name + struct.pack("!HHx", kind, klass) + _RECORD.pack(OPT, UDP_SIZE, 0, 0)


def parse(message: bytes, name: bytes, kind: int, message_id: int) -> Answer | None:
    """The answer to that question; None for a message that answers something else, to be ignored.

    Raises `DnsFormatError`, and nothing else, for an answer that is malformed after its question. A server that
    neither knows the name nor recurses has refused, whatever its rcode says.
    """
    if not _answers(message, name, kind, message_id, _IN):
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


def read(message: bytes, name: bytes, kind: int, message_id: int, klass: int) -> Message | None:
    """All of the answer to that question; None for a message that answers something else, to be ignored."""
    if not _answers(message, name, kind, message_id, klass):
        return None
    _, flags, questions, *counts = _HEADER.unpack_from(message)
    found = Message(message, flags & 0x000F, flags, counts[0])
    if found.truncated:
        return found._replace(broken="it was truncated")
    if sum(counts) > MOST_RECORDS:
        return found._replace(broken=f"it has {sum(counts):,} records, of which at most {MOST_RECORDS:,} are read")
    sections: list[tuple[Record, ...]] = []
    at, names = _HEADER.size + (len(name) + 4 if questions else 0), 0
    try:
        for count in counts:
            section, at, names = _records(message, at, count, names)
            sections.append(section)
    except DnsFormatError as error:
        return found._replace(broken=str(error))
    except (struct.error, IndexError):
        return found._replace(broken="it ends too early")
    more = next((record.ttl >> 24 for record in sections[2] if record.kind == OPT), 0)
    answer, authority, additional = sections
    return Message(message, more << 4 | found.rcode, flags, counts[0], answer, authority, additional)


def _records(message: bytes, at: int, count: int, names: int) -> tuple[tuple[Record, ...], int, int]:
    """So many records, where they end, and how many bytes of names there were, with those before."""
    records = []
    for _ in range(count):
        name, at = name_at(message, at)
        names += len(name)
        if names > MOST_NAMES:
            raise DnsFormatError(_TOO_LONG)
        kind, klass, ttl, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if at + length > len(message):
            raise DnsFormatError("a record is longer than the message")
        records.append(Record(name, kind, klass, ttl, at, length))
        at += length
    return tuple(records), at, names


def _answers(message: bytes, name: bytes, kind: int, message_id: int, klass: int) -> bool:
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
    return questions == 1 and asked.lower() == name + struct.pack("!HH", kind, klass)


def _addresses(message: bytes, at: int, records: int, name: bytes, kind: int) -> tuple[bytes, ...]:
    size = 4 if kind == A else 16
    addresses: dict[bytes, list[bytes]] = {}
    aliases: dict[bytes, bytes] = {}
    names = 0
    for _ in range(records):
        owner, at = name_at(message, at)
        names += len(owner)
        if names > MOST_NAMES:
            raise DnsFormatError(_TOO_LONG)
        found, klass, _, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if at + length > len(message):
            raise DnsFormatError("a record is longer than the message")
        if klass == _IN and found == kind:
            if length != size:
                raise DnsFormatError(f"an address of {length} bytes")
            addresses.setdefault(owner, []).append(message[at : at + size])
        elif klass == _IN and found == CNAME:
            aliases[owner] = name_at(message, at)[0]
        at += length
    for _ in range(MOST_ALIASES):
        if name in addresses or name not in aliases:
            break
        name = aliases[name]
    return tuple(dict.fromkeys(addresses.get(name, ())))


def name_at(message: bytes, at: int) -> tuple[bytes, int]:
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
