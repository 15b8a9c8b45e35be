"""Connections that cannot be held open for ever: every byte of an answer passes a watch on time, pace and amount.

The timeouts of a socket only see a silence. Headers, chunk sizes and trailers that drip in one byte at a time, or never
end, are read inside the standard library; so the watch sits below it, where the bytes come out of the socket.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from conceptry.errors import RemoteError

_OVERHEAD_BYTES: Final = 1 << 18  # for headers, chunk sizes and trailers


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long, how slow and how often; all times in seconds."""

    connect_seconds: float = 10.0
    stall_seconds: float = 30.0
    """The longest silence while an answer is awaited or arriving."""

    answer_seconds: float = 60.0
    """The longest time from a request to the end of its headers."""

    min_bytes_per_second: float = 1024.0
    """The slowest pace, averaged over ``pace_seconds``."""

    pace_seconds: float = 30.0
    deadline_seconds: float = 300.0
    """The longest time for a small document with all its attempts; a blob may take its slowest pace longer."""

    attempts: int = 5
    """How often in a row something may fail without getting further."""

    backoff_seconds: float = 0.5
    max_wait_seconds: float = 60.0
    """The longest Retry-After that is waited for; a longer one is reported at once."""

    max_redirects: int = 5


class Watch:
    """The time, pace and amount of one exchange."""

    def __init__(self, limits: Limits, *, body_bytes: int, hosts: frozenset[str]) -> None:
        self.hosts = hosts
        self._limits = limits
        self._max_bytes = _OVERHEAD_BYTES + 2 * body_bytes
        self._answer_by = time.monotonic() + limits.answer_seconds
        self._bytes = 0
        self._window_start = time.monotonic()
        self._window_bytes = 0
        self._answered = False

    def begin_body(self) -> None:
        """Notes that the headers are complete: from now on only the pace counts."""
        self._answered = True
        self._window_start, self._window_bytes = time.monotonic(), 0

    def count(self, count_bytes: int) -> None:
        """Takes the number of bytes that came out of the socket.

        Raises:
            TimeoutError: if the answer took too long, or its body is too slow.
            RemoteError: if more came than the answer can need.
        """
        self._bytes += count_bytes
        self._window_bytes += count_bytes
        if self._bytes > self._max_bytes:
            raise RemoteError(
                f"an answer does not end: more than {self._max_bytes} bytes came for it",
                hint="tell who runs that remote",
            )
        now = time.monotonic()
        if not self._answered:
            if now > self._answer_by:
                raise TimeoutError(f"no complete answer within {self._limits.answer_seconds:g} seconds")
            return
        elapsed = now - self._window_start
        if elapsed >= self._limits.pace_seconds:
            if self._window_bytes < self._limits.min_bytes_per_second * elapsed:
                raise TimeoutError(f"only {self._window_bytes} bytes came in {elapsed:.0f} seconds")
            self._window_start, self._window_bytes = now, 0


WATCH: ContextVar[Watch] = ContextVar("WATCH")
"""The watch of the exchange that is beginning in this thread."""


class _WatchedSocket(io.RawIOBase):
    """The reading end of a socket, with a watch on it."""

    def __init__(self, raw: io.RawIOBase, watch: Watch) -> None:
        super().__init__()
        self._raw = raw
        self._watch = watch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        count = self._raw.readinto(buffer)
        self._watch.count(count or 0)
        return int(count or 0)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _WatchedResponse(http.client.HTTPResponse):
    """An answer that is read through the watch of the exchange in which it was opened."""

    def __init__(self, sock: Any, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        raw: Any = self.fp
        self.fp = io.BufferedReader(_WatchedSocket(raw.detach(), WATCH.get()))


def _refuse_inner_address(connection: HTTPConnection) -> None:
    """A redirect must not lead into the network behind this machine, unless the user named the host."""
    watch = WATCH.get()
    if connection.proxy is not None or connection.host in watch.hosts or connection.sock is None:
        return
    address = connection.sock.getpeername()[0]
    if not ipaddress.ip_address(address.split("%")[0]).is_global:
        connection.close()
        raise inner_address(f"{connection.host}, {address}")


def inner_address(host: str) -> RemoteError:
    """Returns the error for a redirect into this network."""
    return RemoteError(
        f"a redirect leads to {host!r}, which is inside this network",
        hint="the remote is set up wrongly, or means harm; name that host yourself if it is meant",
    )


class _Connection(HTTPConnection):
    response_class = _WatchedResponse

    def connect(self) -> None:
        super().connect()
        _refuse_inner_address(self)


class _SecureConnection(HTTPSConnection):
    response_class = _WatchedResponse

    def connect(self) -> None:
        super().connect()
        _refuse_inner_address(self)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def make_pool(
    limits: Limits, *, connections: int, proxy: str | None = None, secret: dict[str, str] | None = None
) -> urllib3.PoolManager:
    """Returns a pool of watched connections; servers are checked against the system's certificates.

    Through a proxy, ``secret`` is what it alone is told.
    """
    timeout = urllib3.Timeout(connect=limits.connect_seconds, read=limits.stall_seconds)
    pool = (
        urllib3.PoolManager(num_pools=8, maxsize=connections, retries=False, timeout=timeout)
        if proxy is None
        else urllib3.ProxyManager(
            proxy, num_pools=8, proxy_headers=secret, maxsize=connections, retries=False, timeout=timeout
        )
    )
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pool
