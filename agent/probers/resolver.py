"""A small stub resolver: hosts file, resolv.conf, A and AAAA apart, TCP when truncated. It caches nothing.

A cache would hide an outage, a thread in getaddrinfo would be held by a resolver that is dead, and both would hide
who is to blame. `search`, `domain` and `ndots` of resolv.conf(5) are left out on purpose: the names in URLs are
absolute, and a search list would measure another site than the one that was written down.
"""

import asyncio
import ipaddress
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from agent.config.model import Ip
from agent.device.source import leave_by
from agent.device.uplink import leaves
from agent.probers import dns
from agent.probers.faults import LOCAL_RESOURCE, is_local_network
from agent.probers.result import Attribution, ErrorCode

RESOLUTION_DELAY = 0.05  # seconds that addresses of one family wait for the other's (RFC 8305, section 3)
FIRST_RETRY = 1.0  # seconds without an answer until a question is sent again; doubled each time, up to
LONGEST_RETRY = 4.0  # also the limit of one exchange over TCP
MOST_SENT = 12  # times that one question is sent
MOST_SERVERS = 3  # of resolv.conf, as many as the C library uses
LARGEST_FILE = 1 << 20  # bytes read of the hosts file and of resolv.conf

_NUMBER = re.compile(r"[0-9]{1,9}")
_LARGEST_DATAGRAM = 1 << 16
_KINDS = {"auto": (dns.A, dns.AAAA), "4": (dns.A,), "6": (dns.AAAA,)}
_RCODES = {1: "FORMERR", dns.SERVFAIL: "SERVFAIL", 4: "NOTIMP", dns.REFUSED: "REFUSED"}

Server = tuple[str, int]
"""The numeric address and the port of a DNS server."""


class Resolved(NamedTuple):
    """Numeric addresses, the preferred family first. `server`: who answered; None when nobody was asked."""

    addresses: tuple[str, ...]
    server: str | None


class ResolveError(Exception):
    """A name without an address. `server`: who said so (no such name, no address), else None."""

    def __init__(self, code: ErrorCode, attribution: Attribution, message: str, server: str | None = None) -> None:
        super().__init__(message)
        self.code, self.attribution, self.message, self.server = code, attribution, message, server


class Servers(NamedTuple):
    """What resolv.conf(5) says. `sends`: how often one question is sent at most."""

    addresses: tuple[Server, ...]
    first_retry: float = FIRST_RETRY
    sends: int = MOST_SENT


class Resolver:
    """Resolves by the host's own files, read again whenever they changed. `port` is that of resolv.conf's servers."""

    def __init__(
        self, hosts: Path = Path("/etc/hosts"), resolv_conf: Path = Path("/etc/resolv.conf"), port: int = 53
    ) -> None:
        self._hosts, self._resolv_conf, self._port = _File(hosts), _File(resolv_conf), port
        self._names: dict[str, list[str]] = {}
        self._servers = Servers(())

    async def resolve(
        self,
        name: str,
        *,
        ip: Ip,
        deadline: float,
        server: str | None = None,
        source: str | None = None,
    ) -> Resolved:
        """The addresses of `name` until `deadline` (seconds of `time.monotonic`); an address is returned as it is.

        `server`, an `address[:port]` or `[address]:port`, is asked instead of the host's files; ValueError if it is
        none. `source`: from where the addresses are to be reached, and that server is asked: see `asked_from`. Raises
        `ResolveError`.
        """
        if is_address(name):
            return Resolved((name,), None)
        if known := self._known(name.lower().removesuffix("."), ip, by_files=server is None):
            return Resolved(_preferred_first(known, source), None)
        try:
            wire = dns.encode_name(name)
        except dns.DnsFormatError as error:
            raise ResolveError("dns_nxdomain", "target", f"{name!r} is not a valid DNS name: {error}") from None
        servers = self._nameservers() if server is None else Servers((parse_server(server),))
        found = await _Lookup(name, wire, _KINDS[ip], servers, asked_from(server, source)).run(deadline)
        if not found.addresses:
            family = "" if ip == "auto" else f"IPv{ip} "
            message = f"{name} has no {family}address, says resolver {found.server}"
            raise ResolveError("dns_no_address", "target", message, found.server)
        return Resolved(_preferred_first(found.addresses, source), found.server)

    def _known(self, name: str, ip: str, *, by_files: bool) -> list[str]:
        """What needs no question: localhost (RFC 6761, section 6.3) and the hosts file's addresses of that family."""
        if name == "localhost" or name.endswith(".localhost"):
            known = ["127.0.0.1", "::1"]
        elif by_files:
            if self._hosts.changed():
                self._names = _hosts(self._hosts.text)
            known = self._names.get(name, [])
        else:
            return []
        return known if ip == "auto" else [address for address in known if (":" in address) == (ip == "6")]

    def _nameservers(self) -> Servers:
        if self._resolv_conf.changed():
            self._servers = _resolv_conf(self._resolv_conf.text, self._port)
        return self._servers


class _File:
    """A file that is read when its stat changed. One that cannot be read is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = (0, 0, 0)
        self.text = ""

    def changed(self) -> bool:
        """Reads the file if it changed. Raises `ResolveError` when this device has no file descriptor left for it."""
        before = self._seen
        try:
            stat = self._path.stat()
            if before == (seen := (stat.st_mtime_ns, stat.st_size, stat.st_ino)):
                return False
            with self._path.open("rb") as file:
                self.text = file.read(LARGEST_FILE).decode("utf-8", "replace")
        except OSError as error:
            if error.errno in LOCAL_RESOURCE:
                raise ResolveError("local_resource", "local", f"{self._path}: {error.strerror}") from None
            self._seen, self.text = None, ""
            return before is not None
        self._seen = seen
        return True


def parse_server(text: str, port: int = 53) -> Server:
    """The server named by `address`, `address:port`, `[address]` or `[address]:port`. Raises ValueError."""
    address, rest = text, ""
    if text.startswith("[") and "]" in text:
        address, _, rest = text[1:].partition("]")
    elif text.count(":") == 1:
        address, _, rest = text.partition(":")
        rest = ":" + rest
    number = int(rest.removeprefix(":")) if rest.startswith(":") else port
    if not is_address(address) or not 0 < number < 65_536 or (rest and not rest.startswith(":")):
        raise ValueError(f"{text!r} is not the address of a DNS server")
    return address, number


def asked_from(server: str | None, source: str | None) -> str | None:
    """From where a target's resolver is asked: its source, but for the host's own and one on this device. These are
    asked as the host asks them, which may be by another interface alone.
    """
    if source is None or server is None or ipaddress.ip_address(parse_server(server)[0]).is_loopback:
        return None
    return source


def _hosts(text: str) -> dict[str, list[str]]:
    """hosts(5): by lower-case name, its addresses in the file's order."""
    names: dict[str, list[str]] = {}
    for line in text.splitlines():
        address, *aliases = line.partition("#")[0].split() or [""]
        if is_address(address):
            for alias in aliases:
                known = names.setdefault(alias.lower().removesuffix("."), [])
                if address not in known:
                    known.append(address)
    return names


def _resolv_conf(text: str, port: int) -> Servers:
    """resolv.conf(5): the servers (without any, the one on this host), and the options `timeout` and `attempts`."""
    addresses: list[Server] = []
    options: dict[str, int] = {}
    for line in text.splitlines():
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values and is_address(values[0]):
            addresses.append((values[0], port))
        elif keyword == "options":
            named = (value.partition(":") for value in values)
            options |= {name: int(number) for name, _, number in named if _NUMBER.fullmatch(number)}
    addresses = addresses[:MOST_SERVERS] or [("127.0.0.1", port)]
    # The bounds are those of resolv.conf(5).
    first_retry = min(max(options["timeout"], 1), 30) if "timeout" in options else FIRST_RETRY
    sends = min(max(options["attempts"], 1), 5) * len(addresses) if "attempts" in options else MOST_SENT
    return Servers(tuple(addresses), first_retry, sends)


def is_address(text: str) -> bool:
    """Is it an IPv4 or IPv6 address, and not a name?"""
    # Most names are told from addresses by their end, which spares them ipaddress and its two exceptions.
    if (":" not in text and not text[-1:].isdigit()) or not text.isascii() or "\0" in text:
        return False  # the last two: a scope may be anything for ipaddress, but not for a socket
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _preferred_first(addresses: Iterable[str], source: str | None) -> tuple[str, ...]:
    """IPv6 first if this host has a route to the first such address, else IPv4 first."""
    six: list[str] = []
    four: list[str] = []
    for address in addresses:
        (six if ":" in address else four).append(address)
    return tuple(six + four if six and four and _has_route(six[0], source) else four + six)


def _has_route(address: str, source: str | None) -> bool:
    """A link-local source leads nowhere."""
    if address == "::1":
        return False  # of `localhost`, where servers that listen on IPv4 alone are the rule
    route, leaves_from = leaves(address, source)
    return route is True and not ipaddress.ip_address(leaves_from).is_link_local


class _Question:
    """One question, put to the servers in turn until one answers, all fail, or it was sent often enough."""

    def __init__(self, wire: bytes, kind: int, servers: Servers) -> None:
        self.kind = kind
        self.id = secrets.randbits(16)
        self.message = dns.query(wire, kind, self.id)
        self.waiting = deque(servers.addresses)  # servers that have not failed, the next one first
        self.failures: dict[Server, ResolveError] = {}
        self.sends = servers.sends  # that are left
        self.retry = servers.first_retry
        self.asked: Server | None = None  # the server whose turn it is
        self.by_tcp: set[Server] = set()  # servers that are or were asked over TCP
        self.timer: asyncio.TimerHandle | None = None
        self.answer: dns.Answer | None = None
        self.server: str | None = None
        self.open = True

    def close(self) -> None:
        self.open = False
        if self.timer is not None:
            self.timer.cancel()


class _Lookup:
    """The questions about one name. Every server asked keeps its socket to the end, so that a late answer counts.

    Connected sockets: answers from elsewhere never reach us, and a closed port is told by ICMP. They are plain ones
    because datagram transports cost twice as much.
    """

    def __init__(
        self, name: str, wire: bytes, kinds: tuple[int, ...], servers: Servers, source: str | None = None
    ) -> None:
        self._name, self._wire, self._source = name, wire, source
        self._questions = [_Question(wire, kind, servers) for kind in kinds]
        self._sockets: dict[Server, socket.socket] = {}
        self._exchanges: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def run(self, deadline: float) -> Resolved:
        """Every address found until `deadline`; none if the name has none. Raises `ResolveError`."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise ResolveError("dns_timeout", "local", f"no time was left to resolve {self._name}")
        self._timers.append(self._loop.call_later(left, self._time_out))
        try:
            for question in self._questions:
                self._ask(question)
            await self._ended
        finally:
            for timer in self._timers:
                timer.cancel()
            for question in self._questions:
                question.close()
            for sock in self._sockets.values():
                self._loop.remove_reader(sock)
                sock.close()
            for exchange in self._exchanges:
                exchange.cancel()
            if self._exchanges:
                await asyncio.wait(self._exchanges)
        for exchange in self._exchanges:
            if not exchange.cancelled():
                exchange.result()  # raises what no server can cause: an error of ours
        return self._result()

    def _ask(self, question: _Question) -> None:
        """Sends the question to the server whose turn it is."""
        if not question.waiting or not question.sends:
            self._close(question)
            return
        question.asked = server = question.waiting[0]
        question.waiting.rotate(-1)
        question.sends -= 1
        try:
            self._socket(server).send(question.message)
        except BlockingIOError:
            pass  # the send buffer is full: the same as a lost datagram
        except OSError as error:
            self._server_failed(server, error)
            return
        question.timer = self._loop.call_later(question.retry, self._ask_again, question)

    def _ask_again(self, question: _Question) -> None:
        question.retry = max(min(question.retry * 2, LONGEST_RETRY), question.retry)
        self._ask(question)

    def _socket(self, server: Server) -> socket.socket:
        if server not in self._sockets:
            family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                if self._source is not None:
                    leave_by(sock, self._source)
                sock.connect(server)
            except OSError:
                sock.close()
                raise
            self._sockets[server] = sock
            self._loop.add_reader(sock, self._readable, server, sock)
        return self._sockets[server]

    def _readable(self, server: Server, sock: socket.socket) -> None:
        try:
            message = sock.recv(_LARGEST_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            self._server_failed(server, error)
            return
        for question in self._questions:
            if question.open:
                try:
                    answer = dns.parse(message, self._wire, question.kind, question.id)
                except dns.DnsFormatError as error:
                    self._fail(question, server, _malformed(self._name, server, error))
                else:
                    if answer is not None:
                        self._take(question, server, answer)

    def _take(self, question: _Question, server: Server, answer: dns.Answer) -> None:
        if not question.open:
            return
        if answer.truncated:
            if server not in question.by_tcp:
                if question.timer is not None:
                    question.timer.cancel()
                question.asked = server
                question.by_tcp.add(server)
                self._exchanges.add(self._loop.create_task(self._exchange_by_tcp(question, server)))
        elif answer.rcode in (dns.NOERROR, dns.NXDOMAIN):
            question.answer, question.server = answer, server[0]
            self._close(question)
        else:
            self._fail(question, server, _bad_rcode(self._name, server, answer.rcode))

    def _server_failed(self, server: Server, error: OSError) -> None:
        # The error of one socket is told once, and concerns every question that was sent there.
        for question in self._questions:
            if question.open and server not in question.failures:
                self._fail(question, server, _unreachable(self._name, server, error, self._source))

    def _fail(self, question: _Question, server: Server, error: ResolveError) -> None:
        """Never asks that server again, and goes on at once if it was its turn."""
        if not question.open:
            return
        question.failures[server] = error
        if server in question.waiting:
            question.waiting.remove(server)
        if question.asked == server:
            if question.timer is not None:
                question.timer.cancel()
            self._ask(question)

    def _close(self, question: _Question) -> None:
        question.close()
        if not any(question.open for question in self._questions):
            self._end()
        elif question.answer is not None and question.answer.addresses:
            self._timers.append(self._loop.call_later(RESOLUTION_DELAY, self._end))

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _time_out(self) -> None:
        # After a stall of the loop the answers may lie here unread: they came in time.
        for server, sock in list(self._sockets.items()):
            for _ in self._questions:
                self._readable(server, sock)
        self._end()

    async def _exchange_by_tcp(self, question: _Question, server: Server) -> None:
        """The same question over TCP, where the answer may be 64 KiB long (RFC 7766)."""
        try:
            async with asyncio.timeout(LONGEST_RETRY):
                message = await _ask_by_tcp(server, question.message, self._source)
            answer = dns.parse(message, self._wire, question.kind, question.id)
            if answer is None or answer.truncated:
                raise dns.DnsFormatError("it is no answer to the question")
        except (dns.DnsFormatError, asyncio.IncompleteReadError) as error:
            self._fail(question, server, _malformed(self._name, server, error))
        except OSError as error:
            self._fail(question, server, _unreachable(self._name, server, error, self._source))
        else:
            self._take(question, server, answer)

    def _result(self) -> Resolved:
        answers = [question for question in self._questions if question.answer is not None]
        found: list[str] = []
        for question in answers:
            assert question.answer is not None
            found += [_text(address) for address in question.answer.addresses]
        if found:
            return Resolved(tuple(found), next(q.server for q in answers if q.answer and q.answer.addresses))
        for question in answers:
            if question.answer is not None and question.answer.rcode == dns.NXDOMAIN:
                message = f"{self._name} does not exist, says resolver {question.server}"
                raise ResolveError("dns_nxdomain", "target", message, question.server)
        # That one family has no address says nothing while the resolver failed for the other.
        for question in self._questions:
            if question.answer is None:
                raise self._failure(question)
        return Resolved((), answers[0].server)

    def _failure(self, question: _Question) -> ResolveError:
        """Why nobody answered: the last error when every server gave one, else the silence of the others."""
        failures = list(question.failures.values())
        if not question.waiting:
            # A second server without a route (IPv6 on an IPv4 host) does not excuse what the first one said.
            return next((each for each in reversed(failures) if each.attribution == "resolver"), failures[-1])
        silent = ", ".join(sorted(server[0] for server in question.waiting if server in self._sockets))
        told = "".join(f"; {failure.message}" for failure in failures)
        return ResolveError("dns_timeout", "resolver", f"no answer for {self._name} from resolver {silent}{told}")


async def _ask_by_tcp(server: Server, message: bytes, source: str | None) -> bytes:
    sock = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if source is not None:
            leave_by(sock, source)
        await asyncio.get_running_loop().sock_connect(sock, server)
        reader, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        writer.write(len(message).to_bytes(2, "big") + message)
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    finally:
        writer.transport.abort()


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _bad_rcode(name: str, server: Server, rcode: int) -> ResolveError:
    code: ErrorCode = "dns_refused" if rcode == dns.REFUSED else "dns_servfail"
    told = _RCODES.get(rcode, f"rcode {rcode}")
    return ResolveError(code, "resolver", f"resolver {server[0]} answered {told} for {name}")


def _malformed(name: str, server: Server, error: Exception) -> ResolveError:
    message = f"resolver {server[0]} gave a malformed answer for {name}: {error}"
    return ResolveError("dns_servfail", "resolver", message)


def _unreachable(name: str, server: Server, error: OSError, source: str | None) -> ResolveError:
    if isinstance(error, TimeoutError):
        return ResolveError("dns_timeout", "resolver", f"no answer for {name} over TCP from resolver {server[0]}")
    why = error.strerror or str(error)
    if error.errno in LOCAL_RESOURCE:
        return ResolveError("local_resource", "local", f"resolving {name}: {why}")
    if is_local_network(error.errno or 0, server[0], source):
        return ResolveError("local_network", "local", f"resolver {server[0]} cannot be reached from here: {why}")
    return ResolveError("dns_unreachable", "resolver", f"resolver {server[0]} does not serve: {why}")
