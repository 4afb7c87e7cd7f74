"""The prober for `http` and `https`: a fresh connection each time, redirects followed, every hop measured."""

import base64
import time
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, unquote_plus, urlsplit

import msgspec

from agent import __version__
from agent.config.masking import MASK, Mask
from agent.config.model import Secret, Target
from agent.probers.exchange import TlsUse, exchange
from agent.probers.http1 import Response
from agent.probers.redirect import PORTS, REDIRECTS, destination, method_after, origin
from agent.probers.resolver import ResolveError, Resolver, is_address
from agent.probers.result import LONGEST_MESSAGE, Attempt, Error, Hop, Http, Peer, Phases, Result, Tls, ms
from agent.probers.tls import context_of

_LONGEST_SHOWN = 2_048  # characters of a hop's URL: a hundred of them are a record that Kafka still takes
# Headers sent only to the origin they were configured for (RFC 9110, section 15.4), as is every `Secret`.
_OWN_HEADERS = {"authorization", "cookie", "proxy-authorization", "host"}
_METHODS_WITH_CONTENT = {"POST", "PUT", "PATCH"}


class _Request(NamedTuple):
    """One hop: what to ask, and of whom, worked out once. `address`: where to connect without resolving."""

    method: str
    url: SplitResult
    host: str
    port: int
    address: str | None
    tls: TlsUse | None
    with_body: bool
    data: bytes


class _Tried(NamedTuple):
    """One hop as it went. `resolver`: the DNS server that answered, if one did."""

    phases: Phases
    error: Error | None
    resolver: str | None
    peer: Peer | None = None
    tls: Tls | None = None
    response: Response | None = None
    resent: bool = False

    @property
    def status_code(self) -> int | None:
        return None if self.response is None else self.response.status_code


class HttpProber:
    """Measures one HTTP or HTTPS target. All that stays the same from probe to probe is made here, once."""

    type = "http"

    def __init__(self, target: Target, resolver: Resolver) -> None:
        self._target, self._resolver = target, resolver
        url = urlsplit(target.url)
        self._origin = origin(url)
        self._body = b"" if target.body is None else target.body.encode()
        self._headers = _headers(target, own=True)
        self._foreign_headers = _headers(target, own=False)
        if url.scheme == "https" or target.redirects:
            # Here, because making one takes longer than many a measurement. A client certificate is a credential, too.
            self._context = context_of(target.tls)
            anonymous = msgspec.structs.replace(target.tls, client_certificate=None, client_key=None)
            self._foreign_context = context_of(anonymous)
        self._first = self._request(target.method, url, with_body=target.body is not None)
        unseen = [target, Secret(self._headers.get("authorization", ("", ""))[1].partition(" ")[2])]
        if target.shown_url == MASK:
            unseen.append(Secret(self._first.host))
        self._mask = Mask(tuple(unseen))

    async def probe(self, deadline: float) -> Result:
        """Measures until `deadline` (seconds of `time.monotonic`); see `Prober`."""
        begun = time.monotonic()
        request, visited = self._first, {(self._first.method, self._first.url)}
        hops: list[Hop] = []
        attempts: list[Attempt] = []
        resolver: str | None = None
        named: list[tuple[str, str]] = []
        while True:
            tried = await self._try(request, deadline, attempts)
            resolver = tried.resolver or resolver
            if tried.resolver is not None and tried.peer is not None:
                named.append((request.host, tried.peer.address))
            following = self._judge(request, tried, visited)
            if not isinstance(following, _Request):
                break
            hops.append(Hop(self._shown(request.url), tried.status_code or 0, tried.phases))
            request = following
        # For a single exchange the phases are all of it, to the digit.
        duration = ms(time.monotonic() - begun) if hops or attempts else tried.phases.whole
        return Result(
            duration_ms=duration,
            phases_ms=tried.phases,
            error=self._masked(following),
            peer=tried.peer,
            http=_http(tried, hops),
            tls=tried.tls,
            attempts=tuple(attempts),
            resolver=resolver,
            named=tuple(named),
            resent=tried.resent,
        )

    async def _try(self, request: _Request, deadline: float, attempts: list[Attempt]) -> _Tried:
        """Resolves and exchanges. When the first of two families does not connect, it is added to `attempts`."""
        started = time.monotonic()
        try:
            addresses, resolver = await self._addresses(request, deadline)
        except ResolveError as failed:
            error = Error("resolve", failed.code, failed.attribution, failed.message)
            return _Tried(Phases(resolve=ms(time.monotonic() - started)), error, failed.server)
        resolve: float | None = None
        if request.address is None:
            resolved = time.monotonic()
            resolve, started = ms(resolved - started), resolved
        before: _Tried | None = None  # the first of two
        while True:
            address, *others = addresses
            response = Response(request.method, self._target.body_limit)
            outcome = await exchange(
                address,
                request.port,
                request.tls,
                request.data,
                response,
                started=started,
                # The first of two has half of the time that is left.
                connect_deadline=(started + deadline) / 2 if others else deadline,
                deadline=deadline,
                source=self._target.source,
            )
            outcome.phases.resolve = resolve
            peer = Peer(address, request.port, "ipv6" if ":" in address else "ipv4")
            tried = _Tried(outcome.phases, outcome.error, resolver, peer, outcome.tls, response, outcome.resent)
            if outcome.error is None or outcome.error.phase != "connect":
                return tried
            if before is not None and before.error is not None and outcome.error.attribution == "local":
                # That this device has no way to the second family says nothing about the target; what came of the
                # first does.
                attempts[-1] = Attempt(address, outcome.phases, outcome.error)
                return before
            if not others:
                return tried
            attempts.append(Attempt(address, outcome.phases, outcome.error))
            addresses, started, before = others, time.monotonic(), tried

    async def _addresses(self, request: _Request, deadline: float) -> tuple[list[str], str | None]:
        """The addresses to try in turn, at most one of each family, and the DNS server that named them."""
        if request.address is not None:
            return [request.address], None
        target = self._target
        found = await self._resolver.resolve(
            request.host, ip=target.ip, deadline=deadline, server=target.resolver, source=target.source
        )
        first, *others = found.addresses
        return [first, *[each for each in others if (":" in each) != (":" in first)][:1]], found.server

    def _judge(
        self, request: _Request, tried: _Tried, visited: set[tuple[str, SplitResult]]
    ) -> _Request | Error | None:
        """What is to be asked next, or why the measurement is not up, or None when it is."""
        status, response, target = tried.status_code, tried.response, self._target
        if tried.error is not None or response is None or status is None:
            return tried.error
        if status in REDIRECTS and target.redirects:
            return self._redirected(request, status, response.location, visited)
        if any(low <= status <= high for low, high in target.expect.status):
            return None
        expected = ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in target.expect.status)
        return Error("receive", "status_mismatch", "target", f"HTTP {status}, expected {expected}")

    def _redirected(
        self, request: _Request, status: int, location: bytes | None, visited: set[tuple[str, SplitResult]]
    ) -> _Request | Error:
        """Where a redirect leads, or why it is not followed."""
        try:
            url = destination(request.url.geturl(), location)
        except ValueError as error:
            return Error("receive", "redirect_refused", "target", f"HTTP {status} {error}")
        method = method_after(status, request.method)
        if (method, url) in visited:
            told = f"HTTP {status} in a circle, to {self._shown(url)}"
            return Error("receive", "redirect_loop", "target", told)
        if len(visited) > self._target.redirects:
            told = f"more than {self._target.redirects} redirects, the next to {self._shown(url)}"
            return Error("receive", "redirect_loop", "target", told)
        with_body = request.with_body and method == request.method
        if with_body and isinstance(self._target.body, Secret) and origin(url) != self._origin:
            told = f"HTTP {status} would take the body, a secret, to another origin: {self._shown(url)}"
            return Error("receive", "redirect_refused", "target", told)
        visited.add((method, url))
        return self._request(method, url, with_body=with_body)

    def _request(self, method: str, url: SplitResult, *, with_body: bool) -> _Request:
        """A hop with its bytes as they are sent (RFC 9112, section 3)."""
        target, host = self._target, url.hostname or ""
        own = origin(url) == self._origin
        port = url.port or PORTS[url.scheme]
        authority = f"[{host}]" if ":" in host else host
        if port != PORTS[url.scheme]:
            authority += f":{port}"
        headers = {"host": ("Host", authority)} | (self._headers if own else self._foreign_headers)
        if with_body or method in _METHODS_WITH_CONTENT:
            headers["content-length"] = ("Content-Length", str(len(self._body) if with_body else 0))
        elif target.body is not None:  # what describes the body that a redirect took away goes with it
            headers = {name: header for name, header in headers.items() if not name.startswith("content-")}
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        lines = [f"{name}: {value}\r\n" for name, value in headers.values()]
        head = f"{method} {path} HTTP/1.1\r\n{''.join(lines)}Connection: close\r\n\r\n"
        address = target.connect_to if own else None
        if address is None and is_address(host):
            address = host
        tls = None
        if url.scheme == "https":
            name = (target.tls.server_name if own else None) or host.removesuffix(".")
            tls = TlsUse(self._context if own else self._foreign_context, name, target.tls.verify)
        data = head.encode("latin-1") + (self._body if with_body else b"")
        return _Request(method, url, host, port, address, tls, with_body, data)

    def _shown(self, url: SplitResult) -> str:
        """A hop's URL without secrets, also where a server sent one back in another quoting."""
        if self._target.shown_url == MASK:
            return MASK
        if url == self._first.url:
            return self._target.shown_url
        shown = self._mask.url(url.geturl())
        if any(self._mask.text(plain) != plain for plain in (unquote(shown), unquote_plus(shown))):
            return MASK
        return shown[:_LONGEST_SHOWN]

    def _masked(self, error: Error | None) -> Error | None:
        """Messages may hold a name that a server chose."""
        if error is None:
            return None
        return msgspec.structs.replace(error, message=self._mask.text(error.message)[:LONGEST_MESSAGE])


def _headers(target: Target, *, own: bool) -> dict[str, tuple[str, str]]:
    """What is sent to the origin that the target names, or to others: by name in lower case, name and value."""
    headers = {"user-agent": ("User-Agent", f"uptime-agent/{__version__}"), "accept": ("Accept", "*/*")}
    if own and target.basic_auth is not None:
        pair = f"{target.basic_auth.username}:{target.basic_auth.password}".encode()
        headers["authorization"] = ("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    for name, value in target.headers.items():
        if own or not (name.lower() in _OWN_HEADERS or isinstance(value, Secret)):
            headers[name.lower()] = (name, value)
    return headers


def _http(tried: _Tried, hops: list[Hop]) -> Http | None:
    """What a record says of the last exchange; nothing when no request was ever sent."""
    if tried.phases.send is None and not hops:
        return None
    response, told = tried.response, tuple(hops) or msgspec.UNSET
    if response is None:
        return Http(None, None, 0, len(hops), told)
    return Http(response.status_code, response.version, response.body_bytes, len(hops), told)
