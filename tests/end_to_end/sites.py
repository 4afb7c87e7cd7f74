"""Sites on loopback for the agent to measure. They keep a log of what was asked: the witness of what was measured."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme


class Site(ThreadingHTTPServer):
    """Answers `/N` with status N, `/slow` after half a second, `/to/URL` with a redirect, `/echo` with one
    that has the header X-Own in it, `/numbered/NAME` with as many bytes as there were requests
    of that name, all else with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []  # path and headers, as they came
        self.served: dict[str, list[float]] = {}  # boot times of the numbered requests, by name
        self.numbering = threading.Lock()
        self.port: int = self.server_address[1]

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, as one does whose certificate was refused, is no error of a test."""


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        status, location, body = 200, "", b"hello"
        if self.path.startswith("/numbered/"):
            with self.server.numbering:
                moments = self.server.served.setdefault(self.path.removeprefix("/numbered/"), [])
                moments.append(time.clock_gettime(time.CLOCK_BOOTTIME))
                body = b"x" * len(moments)
        elif self.path[1:4].isdigit():
            status = int(self.path[1:4])
        elif self.path.startswith("/slow"):
            time.sleep(0.5)
        elif self.path.startswith("/to/"):
            status, location = 302, self.path[4:]
        elif self.path == "/echo":
            status, location = 302, f"/echoed?x={self.headers['X-Own']}"
        self.send_response(status)
        if status == 302:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Not on the terminal."""


@contextlib.contextmanager
def site(certificate: trustme.LeafCert | None = None) -> Iterator[Site]:
    """A running site, with TLS if there is a certificate."""
    server = Site()
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
