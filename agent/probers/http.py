"""The prober for `http` and `https`: a fresh connection each time, redirects followed, every hop measured."""

import base64
import time
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import msgspec

from agent import __version__
from agent.config.masking import mask_url
from agent.config.model import Secret, Target
from agent.probers.exchange import Outcome, TlsUse, exchange
from agent.probers.http1 import MAX_LOCATION, Response
from agent.probers.resolver import ResolveError, Resolver
from agent.probers.result import Attempt, Error, Hop, Http, Peer, Phases, Result
from agent.probers.tls import context_of

_REDIRECTS = {301, 302, 303, 307, 308}
_PORTS = {"http": 80, "https": 443}
# Sent only to the origin they were configured for (RFC 9110, section 15.4).
_CREDENTIALS = {"authorization", "cookie", "proxy-authorization"}
_DURATION_DIGITS = 3


class _Request(NamedTuple):
    """One hop: what to ask, and of whom. `own`: it goes to the origin that the target names."""

    method: str
    url: SplitResult
    own: bool
    with_body: bool

    @property
    def host(self) -> str:
        return self.url.hostname or ""

    @property
    def port(self) -> int:
        return self.url.port or _PORTS[self.url.scheme]


class _Tried(NamedTuple):
    """One hop as it went. `resolver`: the DNS server that answered, if one did."""

    phases: Phases
    error: Error | None
    response: Response | None = None
    outcome: Outcome | None = None
    peer: Peer | None = None
    resolver: str | None = None
    attempts: tuple[Attempt, ...] = ()


class HttpProber:
    """Measures one HTTP or HTTPS target. All that stays the same from probe to probe is made here, once."""

    type = "http"

    def __init__(self, target: Target, resolver: Resolver) -> None:
        self._target, self._resolver = target, resolver
        self._first = _Request(target.method, urlsplit(target.url), True, target.body is not None)
        self._first_bytes = self._bytes_of(self._first)
        if self._first.url.scheme == "https":
            context_of(target.tls)

    async def probe(self, deadline: float) -> Result:
        """Measures until `deadline` (seconds of `time.monotonic`); see `Prober`."""
        begun = time.monotonic()
        request, hops, seen = self._first, [], {(self._first.method, self._first.url.geturl())}
        attempts: tuple[Attempt, ...] = ()
        resolver: str | None = None
        while True:
            tried = await self._try(request, deadline)
            attempts += tried.attempts
            resolver = tried.resolver or resolver
            error, response = tried.error, tried.response
            if error is None and response is not None:
                follow = self._target.redirects > 0 and response.status_code in _REDIRECTS
                next_request = self._redirected(request, response, len(hops), seen) if follow else None
                if isinstance(next_request, _Request):
                    hops.append(Hop(mask_url(request.url.geturl()), response.status_code or 0, tried.phases))
                    request = next_request
                    continue
                error = next_request if isinstance(next_request, Error) else self._status_error(response)
            return self._result(begun, tried, error, tuple(hops), attempts, resolver)

    def _result(
        self,
        begun: float,
        tried: _Tried,
        error: Error | None,
        hops: tuple[Hop, ...],
        attempts: tuple[Attempt, ...],
        resolver: str | None,
    ) -> Result:
        response, outcome = tried.response, tried.outcome
        http = None
        if response is not None and (tried.phases.send is not None or hops):
            http = Http(response.status_code, response.version, response.body_bytes, len(hops), hops or msgspec.UNSET)
        elif hops:
            http = Http(None, None, 0, len(hops), hops)
        if hops or attempts:
            duration = (time.monotonic() - begun) * 1000
        else:
            # For a single exchange the phases are all of it, to the digit.
            duration = sum(getattr(tried.phases, phase) or 0.0 for phase in Phases.__struct_fields__)
        return Result(
            duration_ms=round(duration, _DURATION_DIGITS),
            phases_ms=tried.phases,
            error=error,
            peer=tried.peer,
            http=http,
            tls=outcome.tls if outcome is not None else None,
            attempts=attempts,
            resolver=resolver,
        )

    async def _try(self, request: _Request, deadline: float) -> _Tried:
        """Resolves and exchanges; with two families, the second has its turn when the first does not connect."""
        started = time.monotonic()
        try:
            addresses, resolver = await self._resolve(request, deadline)
        except ResolveError as failed:
            phases = Phases(resolve=_ms(time.monotonic() - started))
            error = Error("resolve", failed.code, failed.attribution, failed.message[:500])
            return _Tried(phases, error, resolver=failed.server)
        resolved = time.monotonic()
        literal = resolver is None and addresses[0] == (self._target.connect_to or request.host)
        resolve = None if literal else _ms(resolved - started)
        data = self._first_bytes if request is self._first else self._bytes_of(request)
        attempts: tuple[Attempt, ...] = ()
        for number, address in enumerate(addresses, 1):
            last = number == len(addresses)
            begins = resolved if number == 1 else time.monotonic()
            response = Response(request.method, self._target.body_limit)
            until = deadline if last else begins + (deadline - begins) / 2
            outcome = await self._exchange(request, address, data, response, begins, until, deadline)
            phases, error = outcome.phases, outcome.error
            phases.resolve = resolve
            family = "ipv6" if ":" in address else "ipv4"
            peer = Peer(address, request.port, family)  # type: ignore[arg-type]
            if not last and error is not None and error.phase == "connect":
                attempts += (Attempt(address, phases, error),)
                continue
            break
        return _Tried(phases, error, response, outcome, peer, resolver, attempts)

    async def _exchange(
        self,
        request: _Request,
        address: str,
        data: bytes,
        response: Response,
        begins: float,
        connect_until: float,
        deadline: float,
    ) -> Outcome:
        tls = None
        if request.url.scheme == "https":
            options = self._target.tls
            name = (options.server_name if request.own else None) or request.host
            tls = TlsUse(context_of(options), name, options.verify)
        return await exchange(address, request.port, data, response, tls, begins, connect_until, deadline)

    async def _resolve(self, request: _Request, deadline: float) -> tuple[tuple[str, ...], str | None]:
        """The addresses to try in turn, at most one of each family, and the DNS server that named them."""
        target = self._target
        if target.connect_to is not None and request.own:
            return (target.connect_to,), None
        resolved = await self._resolver.resolve(request.host, ip=target.ip, deadline=deadline, server=target.resolver)
        first = resolved.addresses[0]
        other = next((each for each in resolved.addresses if (":" in each) != (":" in first)), None)
        return (first,) if other is None else (first, other), resolved.server

    def _redirected(
        self, request: _Request, response: Response, followed: int, seen: set[tuple[str, str]]
    ) -> _Request | Error:
        """Where a redirect leads, or why it is not followed."""
        url = _located(request.url, response.location)
        if isinstance(url, str):
            return Error("receive", "redirect_refused", "target", f"HTTP {response.status_code} {url}"[:500])
        keep = response.status_code in (307, 308) or request.method in ("GET", "HEAD")
        method = request.method if keep and response.status_code != 303 else _after_see_other(request.method)
        own = _origin(url) == _origin(self._first.url)
        with_body = request.with_body and method == request.method and own
        following = _Request(method, url, own, with_body)
        shown = mask_url(url.geturl())
        if (method, url.geturl()) in seen:
            return Error("receive", "redirect_loop", "target", f"redirected in a circle, to {shown}"[:500])
        if followed >= self._target.redirects:
            told = f"more than {self._target.redirects} redirects, the next to {shown}"
            return Error("receive", "redirect_loop", "target", told[:500])
        seen.add((method, url.geturl()))
        return following

    def _status_error(self, response: Response) -> Error | None:
        status = response.status_code
        assert status is not None
        ranges = self._target.expect.status
        if any(low <= status <= high for low, high in ranges):
            return None
        expected = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
        return Error("wait", "status_mismatch", "target", f"HTTP {status}, expected {expected}"[:500])

    def _bytes_of(self, request: _Request) -> bytes:
        """The request as it is sent (RFC 9112, section 3)."""
        target, url = self._target, request.url
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers = {
            "host": ("Host", url.netloc.rpartition("@")[2]),
            "user-agent": ("User-Agent", f"uptime-agent/{__version__}"),
            "accept": ("Accept", "*/*"),
        }
        if request.own and target.basic_auth is not None:
            pair = f"{target.basic_auth.username}:{target.basic_auth.password}".encode()
            headers["authorization"] = ("Authorization", f"Basic {base64.b64encode(pair).decode()}")
        for name, value in target.headers.items():
            bound = name.lower() in _CREDENTIALS or name.lower() == "host" or isinstance(value, Secret)
            if request.own or not bound:
                headers[name.lower()] = (name, value)
        body = b""
        if request.with_body and target.body is not None:
            body = target.body.encode()
            headers["content-length"] = ("Content-Length", str(len(body)))
        headers["connection"] = ("Connection", "close")
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.values())
        return f"{request.method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def _located(base: SplitResult, location: bytes | None) -> SplitResult | str:
    """The absolute URL that a Location leads to, or what is wrong with it."""
    if location is None:
        return "without a Location"
    if len(location) > MAX_LOCATION:
        return f"with a Location of more than {MAX_LOCATION} bytes"
    try:
        text = quote(location, safe="!#$%&'()*+,/:;=?@[]~-._")
        url = urlsplit(urljoin(base.geturl(), text))._replace(fragment="")
        host = (url.hostname or "").encode("ascii").decode()
        if url.scheme not in _PORTS:
            return f"leads to {url.scheme or 'no'} URL, not to http or https"
        if not host or url.port == 0 or "%" in host:
            return "with a Location that is no URL"
    except ValueError:
        return "with a Location that is no URL"
    return url


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, url.hostname or "", url.port or _PORTS[url.scheme]


def _after_see_other(method: str) -> str:
    return "HEAD" if method == "HEAD" else "GET"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
