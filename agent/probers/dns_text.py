"""Records of DNS messages as they stand in a zone file (RFC 1035, section 5.1), without I/O.

`www.example.com. 300 IN A 192.0.2.1`: one space between the parts, names in lower case and with their last dot, all of
it printable ASCII. A type that is not known here is written as RFC 3597 has it: `\\# 4 C0000201`.
"""

import base64
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agent.config.dns import CLASSES, TYPES, class_name, type_name
from agent.probers.dns import DnsFormatError, Record, name_at

LONGEST_TEXT = 512 << 10  # characters of the records of a section; those that names are among are
NAMES_COUNT = 4  # times the work, and pointers make much of little

# What the data of a type consists of, by the letters of `_PARTS`, in their order.
_LAYOUTS = """
    A=4 AAAA=6 NS=n CNAME=n PTR=n DNAME=n MB=n MG=n MR=n SOA=nnLLLLL MX=Sn TXT=q SPF=q SRV=SSSn NAPTR=SSsssn
    HINFO=ss RP=nn AFSDB=Sn KX=Sn RT=Sn MINFO=nn CAA=Buv URI=SSv DS=SBBx CDS=SBBx DLV=SBBx DNSKEY=SBBb
    CDNSKEY=SBBb KEY=SBBb RRSIG=tBBLddSnb NSEC=nm NSEC3=BBSzhm NSEC3PARAM=BBSz DHCID=b OPENPGPKEY=b SSHFP=BBx
    TLSA=BBBx SMIMEA=BBBx ZONEMD=LBBx SVCB=Snp HTTPS=Snp
"""
_BY_NUMBER = {TYPES[name]: layout for name, layout in (each.split("=") for each in _LAYOUTS.split())}
_ANY_CLASS = set("nqsLSB")  # what is laid out alike in all classes
_PARAMETERS = ("mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint")  # RFC 9460


def texts(message: bytes, records: Iterable[Record]) -> tuple[str, ...]:
    """The records of a section; see `text`. Raises `DnsFormatError` also for more than `LONGEST_TEXT`."""
    found, length = [], 0
    for record in records:
        one = text(message, record)
        length += len(one) * (NAMES_COUNT if "n" in _BY_NUMBER.get(record.kind, "") else 1)
        if length > LONGEST_TEXT:
            raise DnsFormatError(f"its records are longer than {LONGEST_TEXT >> 10} KiB")
        found.append(one)
    return tuple(found)


def text(message: bytes, record: Record) -> str:
    """A record as it stands in a zone file. Raises `DnsFormatError` for data that its type cannot have."""
    owner, kind, klass = name_text(record.name), type_name(record.kind), class_name(record.klass)
    return f"{owner} {record.ttl} {klass} {kind} {_data(message, record)}".rstrip(" ")


def name_text(name: bytes) -> str:
    """A name of length-prefixed labels as text."""
    at, labels = 0, []
    while length := name[at]:
        labels.append(name[at + 1 : at + 1 + length].decode("latin-1").translate(_IN_NAMES))
        at += 1 + length
    return ".".join(labels) + "."


class _Left(NamedTuple):
    """The part of a message that is still to be read, from `at` to `end`."""

    message: bytes
    at: int
    end: int

    def take(self, length: int) -> tuple[bytes, "_Left"]:
        if self.at + length > self.end:
            raise DnsFormatError("a record's data ends too early")
        end = self.at + length
        return self.message[self.at : end], _Left(self.message, end, self.end)

    def rest(self) -> tuple[bytes, "_Left"]:
        return self.take(self.end - self.at)


def _data(message: bytes, record: Record) -> str:
    layout = _BY_NUMBER.get(record.kind, "")
    if record.klass != CLASSES["IN"] and not _ANY_CLASS.issuperset(layout):
        layout = ""
    left = _Left(message, record.at, record.at + record.length)
    if not layout:
        data, _ = left.rest()
        return f"\\# {len(data)} {data.hex().upper()}"
    parts = []
    try:
        for letter in layout:
            part, left = _PARTS[letter](left)
            parts.append(part)
    except (struct.error, IndexError, UnicodeError):
        raise DnsFormatError("a record's data ends too early") from None
    if left.at != left.end:
        raise DnsFormatError("a record's data is longer than its type has")
    return " ".join(parts).rstrip(" ")


def _escapes(special: str, first: str) -> dict[int, str]:
    """What stands for each byte: itself from `first` on, as far as it is printable, with a backslash if `special`."""
    plain = range(ord(first), 127)
    return {
        each: "\\" * (chr(each) in special) + chr(each) if each in plain else f"\\{each:03d}" for each in range(256)
    }


_IN_NAMES, _IN_TAGS, _IN_QUOTES = _escapes('."();@$\\', "!"), _escapes('"();\\', "!"), _escapes('"\\', " ")


def _quoted(data: bytes) -> str:
    return '"' + data.decode("latin-1").translate(_IN_QUOTES) + '"'


def _name(left: _Left) -> tuple[str, _Left]:
    name, end = name_at(left.message, left.at)
    if end > left.end:
        raise DnsFormatError("a record's data ends too early")
    return name_text(name), _Left(left.message, end, left.end)


def _number(size: int) -> Callable[[_Left], tuple[str, _Left]]:
    def read(left: _Left) -> tuple[str, _Left]:
        data, left = left.take(size)
        return str(int.from_bytes(data, "big")), left

    return read


def _address(family: int, size: int) -> Callable[[_Left], tuple[str, _Left]]:
    def read(left: _Left) -> tuple[str, _Left]:
        data, left = left.take(size)
        return socket.inet_ntop(family, data), left

    return read


def _counted(left: _Left) -> tuple[bytes, _Left]:
    """Bytes that their number stands before."""
    length, left = left.take(1)
    return left.take(length[0])


def _string(left: _Left) -> tuple[str, _Left]:
    data, left = _counted(left)
    return _quoted(data), left


def _all_counted(left: _Left) -> list[bytes]:
    """The same again and again, to the end."""
    found, at = [], left.at
    while at < left.end:
        after = at + 1 + left.message[at]
        if after > left.end:
            raise DnsFormatError("a record's data ends too early")
        found.append(left.message[at + 1 : after])
        at = after
    return found


def _strings(left: _Left) -> tuple[str, _Left]:
    return " ".join(map(_quoted, _all_counted(left))), _Left(left.message, left.end, left.end)


def _tag(left: _Left) -> tuple[str, _Left]:
    data, left = _counted(left)
    return data.decode("latin-1").translate(_IN_TAGS), left


def _value(left: _Left) -> tuple[str, _Left]:
    data, left = left.rest()
    return _quoted(data), left


def _hexadecimal(left: _Left) -> tuple[str, _Left]:
    data, left = left.rest()
    return data.hex().upper(), left


def _base64(left: _Left) -> tuple[str, _Left]:
    data, left = left.rest()
    return base64.b64encode(data).decode(), left


def _salt(left: _Left) -> tuple[str, _Left]:
    data, left = _counted(left)
    return data.hex().upper() or "-", left


def _hash(left: _Left) -> tuple[str, _Left]:
    data, left = _counted(left)
    return base64.b32hexencode(data).decode().rstrip("="), left


def _covered(left: _Left) -> tuple[str, _Left]:
    data, left = left.take(2)
    return type_name(int.from_bytes(data, "big")), left


def _date(left: _Left) -> tuple[str, _Left]:
    """Seconds since 1970 as YYYYMMDDHHmmSS (RFC 4034, section 3.2)."""
    data, left = left.take(4)
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(int.from_bytes(data, "big"))), left


def _bitmap(left: _Left) -> tuple[str, _Left]:
    """Types that are there (RFC 4034, section 4.1.2)."""
    found, before = [], -1
    while left.at < left.end:
        window, left = left.take(1)
        bits, left = _counted(left)
        if not 1 <= len(bits) <= 32 or window[0] <= before:
            raise DnsFormatError("a malformed list of types")
        before = window[0]
        for at, byte in enumerate(bits):
            found += [type_name(window[0] * 256 + at * 8 + bit) for bit in range(8) if byte & 0x80 >> bit]
    return " ".join(found), left


def _parameters(left: _Left) -> tuple[str, _Left]:
    """Of SVCB and HTTPS (RFC 9460, section 2.1)."""
    found = []
    while left.at < left.end:
        head, left = left.take(4)
        key, length = struct.unpack("!HH", head)
        data, left = left.take(length)
        name = _PARAMETERS[key] if key < len(_PARAMETERS) else f"key{key}"
        value = _parameter(name, data)
        found.append(f"{name}={value}" if value else name)
    return " ".join(found), left


def _parameter(name: str, data: bytes) -> str:
    if name == "port" and len(data) == 2:
        return str(int.from_bytes(data, "big"))
    if name in ("ipv4hint", "ipv6hint"):
        family, size = (socket.AF_INET, 4) if name == "ipv4hint" else (socket.AF_INET6, 16)
        if data and len(data) % size == 0:
            return ",".join(socket.inet_ntop(family, data[at : at + size]) for at in range(0, len(data), size))
    if name == "alpn":
        return _quoted(b",".join(_all_counted(_Left(data, 0, len(data)))))
    if name == "mandatory" and len(data) % 2 == 0:
        keys = struct.unpack(f"!{len(data) // 2}H", data)
        return ",".join(_PARAMETERS[key] if key < len(_PARAMETERS) else f"key{key}" for key in keys)
    if name == "ech":
        return base64.b64encode(data).decode()
    return _quoted(data) if data else ""


_PARTS: dict[str, Callable[[_Left], tuple[str, _Left]]] = {
    "n": _name,
    "B": _number(1),
    "S": _number(2),
    "L": _number(4),
    "4": _address(socket.AF_INET, 4),
    "6": _address(socket.AF_INET6, 16),
    "s": _string,
    "q": _strings,
    "u": _tag,
    "v": _value,
    "x": _hexadecimal,
    "b": _base64,
    "z": _salt,
    "h": _hash,
    "t": _covered,
    "d": _date,
    "m": _bitmap,
    "p": _parameters,
}
