"""DNS as it is written in a configuration: the question in a URL, and the words for types, classes, rcodes and flags.

`dns://server[:port]/name?type=A&class=IN` (after RFC 4501); what has no word is written by its number, as TYPE65280
(RFC 3597), CLASS32 or RCODE12.
"""

import re
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

PORT = 53


def _words(text: str) -> dict[str, int]:
    pairs = (each.split("=") for each in text.split())
    return {word: int(number) for word, number in pairs}


# IANA, "Domain Name System (DNS) Parameters": what a question can be asked for.
TYPES = _words(
    """
    A=1 NS=2 MD=3 MF=4 CNAME=5 SOA=6 MB=7 MG=8 MR=9 NULL=10 WKS=11 PTR=12 HINFO=13 MINFO=14 MX=15 TXT=16 RP=17
    AFSDB=18 X25=19 ISDN=20 RT=21 NSAP=22 NSAP-PTR=23 SIG=24 KEY=25 PX=26 GPOS=27 AAAA=28 LOC=29 NXT=30 EID=31
    NIMLOC=32 SRV=33 ATMA=34 NAPTR=35 KX=36 CERT=37 A6=38 DNAME=39 SINK=40 APL=42 DS=43 SSHFP=44 IPSECKEY=45
    RRSIG=46 NSEC=47 DNSKEY=48 DHCID=49 NSEC3=50 NSEC3PARAM=51 TLSA=52 SMIMEA=53 HIP=55 NINFO=56 RKEY=57
    TALINK=58 CDS=59 CDNSKEY=60 OPENPGPKEY=61 CSYNC=62 ZONEMD=63 SVCB=64 HTTPS=65 SPF=99 NID=104 L32=105
    L64=106 LP=107 EUI48=108 EUI64=109 MAILB=253 MAILA=254 ANY=255 URI=256 CAA=257 AVC=258 DOA=259 AMTRELAY=260
    TA=32768 DLV=32769
    """
)
CLASSES = {"IN": 1, "CH": 3, "HS": 4, "NONE": 254, "ANY": 255}
RCODES = _words(
    """
    NOERROR=0 FORMERR=1 SERVFAIL=2 NXDOMAIN=3 NOTIMP=4 REFUSED=5 YXDOMAIN=6 YXRRSET=7 NXRRSET=8 NOTAUTH=9
    NOTZONE=10 DSOTYPENI=11 BADVERS=16 BADKEY=17 BADTIME=18 BADMODE=19 BADNAME=20 BADALG=21 BADTRUNC=22
    BADCOOKIE=23
    """
)
FLAGS = {"AA": 0x0400, "TC": 0x0200, "RD": 0x0100, "RA": 0x0080, "AD": 0x0020, "CD": 0x0010}

_NO_QUESTION = {0, 41, *range(249, 253)}  # OPT, and what is for changing and moving zones
_WORD = re.compile(r"[A-Za-z]{1,10}[0-9]{0,5}")
_LABEL = re.compile(r"[!-\-/-~]{1,63}")  # printable ASCII without the dot
_EXAMPLE = "write it as dns://192.0.2.53/example.com?type=A"
_TYPE_NAMES, _CLASS_NAMES, _RCODE_NAMES = (
    {number: name for name, number in words.items()} for words in (TYPES, CLASSES, RCODES)
)


class Question(NamedTuple):
    """Whom to ask (a name or an address), and what; the name in lower case, without the last dot unless it is root."""

    server: str
    port: int
    name: str
    kind: int
    klass: int


def question(url: str) -> Question:
    """The question in a URL of such a scheme. Raises ValueError that says what is wrong and the mend."""
    parts = urlsplit(url)
    kind, klass = TYPES["A"], CLASSES["IN"]
    seen = set()
    for parameter in filter(None, parts.query.split("&")):
        key, _, value = parameter.partition("=")
        key, value = key.lower(), unquote(value)
        # What is no word, or stands before an @, may be a secret.
        shown = f", {value}" if _WORD.fullmatch(value) and "@" not in parts.query else ""
        if key not in ("type", "class"):
            raise ValueError("has something other than type and class in its query; remove that")
        if key in seen:
            raise ValueError(f"has a {key} twice in its query; write one target for each")
        seen.add(key)
        if key == "type":
            told = f"has an unknown type{shown}; write A, AAAA, MX, TXT, TYPE65280 or the like"
            kind = _number(value, TYPES, "TYPE", told)
        else:
            klass = _number(value, CLASSES, "CLASS", f"has an unknown class{shown}; write IN, CH or HS")
    if kind in _NO_QUESTION:
        raise ValueError("has a type that is no question for records; write a type such as A, AAAA, MX or TXT")
    return Question(parts.hostname or "", parts.port or PORT, _name(unquote(parts.path[1:])), kind, klass)


def canonical(parts: SplitResult) -> str:
    """The URL of a question in its one form. Raises ValueError that says what is wrong and the mend."""
    asked = question(parts.geturl())
    # What quoting was for is not in a name; but these would end it, or be taken for quoting.
    name = re.sub(r"[%?#]", lambda found: f"%{ord(found[0]):02X}", asked.name)
    query = f"type={type_name(asked.kind)}"
    if asked.klass != CLASSES["IN"]:
        query += f"&class={class_name(asked.klass)}"
    return SplitResult(parts.scheme, parts.netloc, f"/{name}", query, "").geturl()


def type_name(number: int) -> str:
    """The word for a type."""
    return _TYPE_NAMES.get(number) or f"TYPE{number}"


def class_name(number: int) -> str:
    """The word for a class."""
    return _CLASS_NAMES.get(number) or f"CLASS{number}"


def rcode_name(number: int) -> str:
    """The word for an rcode, of four bits or with EDNS's more."""
    return _RCODE_NAMES.get(number) or f"RCODE{number}"


def rcode(text: str) -> str:
    """The word for an rcode, however it is written. Raises ValueError."""
    return rcode_name(
        _number(text, RCODES, "RCODE", "is not an rcode; write NOERROR, NXDOMAIN, RCODE12 or the like", 4_095)
    )


def flag(text: str) -> str:
    """The word for a flag. Raises ValueError."""
    if text.upper() not in FLAGS:
        raise ValueError(f"is not a flag of a DNS message; write one of {', '.join(FLAGS)}")
    return text.upper()


def _number(text: str, words: dict[str, int], prefix: str, told: str, most: int = 65_535) -> int:
    text = text.upper()
    if text in words:
        return words[text]
    number = text.removeprefix(prefix)
    if number == text or not re.fullmatch(r"\d{1,5}", number, re.ASCII) or int(number) > most:
        raise ValueError(told)
    return int(number)


def _name(text: str) -> str:
    if not text:
        raise ValueError(f"has no name to ask for; {_EXAMPLE}")
    if text == ".":
        return text
    if not text.isascii():
        try:
            mend = f"write {text.encode('idna').decode()}"
        except UnicodeError:
            mend = "correct it"
        raise ValueError(f"asks for a name that is not ASCII; {mend}")
    name = text.removesuffix(".").lower()
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError("asks for what is no name; write at most 63 characters between two dots, and 253 in all")
    return name
