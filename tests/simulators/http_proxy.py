"""A forward proxy on real sockets: whole addresses are asked for in its place, ``CONNECT`` opens a tunnel.

Every name leads to one ``target``, as if the proxy alone could look names up.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE = 65536


@dataclass(slots=True)
class Proxy:
    """What the proxy was asked, and what it does."""

    target: tuple[str, int]
    """Where every name leads."""

    password: str | None = None
    """What ``Proxy-Authorization`` must say, if anything."""

    asked: list[str] = field(default_factory=list)
    """The first line of each request."""

    heads: list[str] = field(default_factory=list)
    """The whole head of each request."""

    address: str = ""

    def serve(self, connection: socket.socket) -> None:
        """Answer one connection."""
        with connection, suppress(OSError):
            connection.settimeout(20)
            head, rest = _read_head(connection)
            method, place, _ = head.split("\r\n", 1)[0].split(" ", 2)
            self.asked.append(f"{method} {place}")
            self.heads.append(head)
            if (
                self.password is not None
                and f"Proxy-Authorization: {self.password}".lower() not in head.lower()
            ):
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(self.target, timeout=20) as upstream:
                if method == "CONNECT":
                    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    upstream.sendall(_forward(head) + rest)
                _join(connection, upstream)


def _read_head(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(_PIECE)
        if not piece:
            raise ConnectionError
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def _forward(head: str) -> bytes:
    """Return the request as its server wants it, without what was for the proxy alone; one on a connection."""
    first, *lines = head.split("\r\n")
    method, place, version = first.split(" ", 2)
    parts = urlsplit(place)
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
    return "\r\n".join([f"{method} {path} {version}", *kept, "Connection: close", "", ""]).encode("latin-1")


def _join(first: socket.socket, second: socket.socket) -> None:
    def copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=copy, args=(first, second), daemon=True)
    back.start()
    copy(second, first)
    with suppress(OSError):
        first.shutdown(socket.SHUT_RDWR)
    back.join(20)


@contextmanager
def run_proxy(target: tuple[str, int], *, password: str | None = None) -> Iterator[Proxy]:
    """Give a running proxy whose every name leads to ``target``."""
    proxy = Proxy(target=target, password=password)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy.address = f"127.0.0.1:{listening.getsockname()[1]}"

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=proxy.serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield proxy
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
