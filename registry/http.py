"""The one way to the web: verified ranges, patience with an end, and credentials that stay with their origin.

A ``Transport`` belongs to one remote. ``read`` brings a small document whole; ``stream`` brings a blob of known size
from any offset on, and goes on by itself where a connection ended; ``send`` does the rest. Whose bytes they are is
the caller's to check, by digest: nothing here believes a header that says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

import urllib3

from conceptry.errors import RemoteError
from conceptry.registry.answers import (
    REDIRECTS,
    Answer,
    describe_url,
    find_host,
    find_origin,
    follow_redirect,
    is_web_page,
    read_length,
)
from conceptry.registry.attempts import (
    Headers,
    Patience,
    Retry,
    check_encoding,
    check_status,
    explain_network,
    lower_headers,
    too_large,
    web_page,
)
from conceptry.registry.downloads import Download, Found, iter_body
from conceptry.registry.proxies import Pools, is_inner
from conceptry.registry.wire import WATCH, Limits, Watch, inner_address, make_pool

if TYPE_CHECKING:
    from _typeshed import SupportsRead

Body: TypeAlias = "bytes | SupportsRead[bytes] | None"

OFFLINE_VARIABLES: Final = ("HF_HUB_OFFLINE", "CONCEPTRY_OFFLINE")
_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO_HEADERS: Final[Headers] = MappingProxyType({})
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


def is_offline() -> bool:
    """Returns whether the user forbade the network (``--offline``, ``HF_HUB_OFFLINE``)."""
    return any(os.environ.get(name, "").strip().lower() in _YES for name in OFFLINE_VARIABLES)


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret for one origin. It is sent nowhere else, and over plain http only within this machine."""

    origin: str
    """``scheme://host:port``, as ``find_origin`` writes it."""

    value: str = field(repr=False)
    """What the header ``Authorization`` says."""

    def fits(self, url: str) -> bool:
        """Returns whether the secret may be sent with a request for ``url``."""
        private = url.startswith("https:") or find_host(url) in ("localhost", "127.0.0.1", "::1")
        return private and find_origin(url) == self.origin


class Transport:
    """Requests to one remote, whose address the user wrote: ``address`` decides what else may be contacted.

    An http address is the user's wish; from an https address nothing leads back to http. Hosts inside this network
    are reached only if the user named them (``address``, or ``hosts``).

    Raises:
        UsageError: if ``address`` is no http or https address.
    """

    def __init__(
        self,
        address: str,
        *,
        credential: Credential | None = None,
        limits: Limits | None = None,
        hosts: frozenset[str] = frozenset(),
        connections: int = 8,
    ) -> None:
        self.origin: Final = find_origin(address)
        self.limits: Final = limits or Limits()
        self._credential = credential
        self._hosts = hosts | {find_host(address)}
        self._pools = Pools(
            lambda proxy, secret: make_pool(self.limits, connections=connections, proxy=proxy, secret=secret)
        )

    def close(self) -> None:
        """Gives the open connections back."""
        self._pools.clear()

    # --- whole documents ---------------------------------------------------------------------------------------

    def read(
        self,
        url: str,
        *,
        limit_bytes: int,
        headers: Headers = _NO_HEADERS,
        credential: Credential | None = None,
    ) -> Answer:
        """Returns the document at ``url``, whole, read again where the way there failed.

        Raises:
            NotFoundError: if it is not there.
            IntegrityError: if it is larger than ``limit_bytes``.
            RemoteError: if the remote cannot be reached, is too slow, or answers something else.
        """
        answer = self.send("GET", url, limit_bytes=limit_bytes, headers=headers, credential=credential)
        if is_web_page(answer.headers):
            raise web_page(answer.url)
        return answer

    def send(
        self,
        method: str,
        url: str,
        *,
        body: Body = None,
        headers: Headers = _NO_HEADERS,
        credential: Credential | None = None,
        accept: frozenset[int] = frozenset({200}),
        limit_bytes: int = 1 << 20,
    ) -> Answer:
        """Returns the answer to one request; its status is among ``accept``.

        A request with a body that is read from a file is made once, any other again where the way there failed.

        Raises:
            NotFoundError, IntegrityError, RemoteError: as ``read``.
        """
        once = not (body is None or isinstance(body, bytes))
        patience = Patience(self.limits, deadline_seconds=self.limits.deadline_seconds)
        while True:
            try:
                with self._exchange(
                    method, url, body=body, headers=headers, credential=credential, body_bytes=limit_bytes
                ) as (response, place):
                    return _read_whole(response, place, accept=accept, limit_bytes=limit_bytes, method=method)
            except Retry as failed:
                if once:
                    raise failed.error from failed
                patience.wait(failed)

    # --- blobs -------------------------------------------------------------------------------------------------

    @contextmanager
    def stream(
        self,
        url: str,
        *,
        size_bytes: int,
        offset_bytes: int = 0,
        headers: Headers = _NO_HEADERS,
        credential: Credential | None = None,
    ) -> Iterator[Iterator[bytes]]:
        """Opens the bytes of ``url`` from an offset on: exactly up to ``size_bytes``, or an error.

        Where a connection ends early the rest is asked for, with the first answer's entity tag as a condition. The
        bytes are as they come: the caller compares their digest.

        Raises:
            NotFoundError: if it is not there.
            IntegrityError: if the remote has another number of bytes.
            RemoteError: if the remote cannot be reached, is too slow, or answers something else.
        """

        def ask(condition: Headers) -> AbstractContextManager[Found]:
            return self._exchange(
                "GET", url, headers={**headers, **condition}, credential=credential, body_bytes=size_bytes
            )

        pieces = Download(ask, self.limits, size_bytes, offset_bytes).iter_pieces()
        if offset_bytes >= size_bytes:
            yield iter(())
            return
        first = next(pieces)  # what is missing is told when it is opened

        def chain() -> Iterator[bytes]:
            yield first
            yield from pieces

        try:
            yield chain()
        finally:
            pieces.close()

    # --- one request -------------------------------------------------------------------------------------------

    @contextmanager
    def _exchange(
        self,
        method: str,
        url: str,
        *,
        body: Body = None,
        headers: Headers = _NO_HEADERS,
        credential: Credential | None = None,
        body_bytes: int,
    ) -> Iterator[Found]:
        """Yields the answer that is no redirect, and where it came from."""
        with explain_network(url):
            place = url
            for _ in range(self.limits.max_redirects + 1):
                response = self._request(
                    method, place, body=body, headers=headers, credential=credential, body_bytes=body_bytes
                )
                if response.status not in REDIRECTS:
                    try:
                        yield response, place
                    finally:
                        _finish(response)
                    return
                response.close()
                if method not in ("GET", "HEAD"):
                    raise RemoteError(
                        f"{describe_url(place)} sends uploads somewhere else",
                        hint="write the address that it redirects to into the remote",
                    )
                place = follow_redirect(place, response.headers.get("location"))
        raise RemoteError(
            f"{describe_url(url)} redirects more than {self.limits.max_redirects} times",
            hint="tell who runs that remote",
        )

    def _request(
        self,
        method: str,
        url: str,
        *,
        body: Body,
        headers: Headers,
        credential: Credential | None,
        body_bytes: int,
    ) -> urllib3.BaseHTTPResponse:
        if is_offline():
            raise RemoteError(
                f"{describe_url(url)} was not asked: the network is forbidden",
                hint="leave out --offline, or unset HF_HUB_OFFLINE",
            )
        pool, proxied = self._pools.choose(url)
        if proxied and (host := find_host(url)) not in self._hosts and is_inner(host):
            raise inner_address(host)
        watch = Watch(self.limits, body_bytes=body_bytes, hosts=self._hosts)
        token = WATCH.set(watch)
        try:
            response = pool.request(
                method,
                url,
                body=body,  # type: ignore[arg-type]  # of a file it calls read alone, its stub wants all of IO
                headers=self._choose_headers(url, headers, credential or self._credential),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        finally:
            WATCH.reset(token)
        watch.begin_body()
        return response

    def _choose_headers(self, url: str, headers: Headers, credential: Credential | None) -> dict[str, str]:
        """Secrets go to their own origin; nobody is asked to compress, so that bytes are counted as they are."""
        here = find_origin(url) == self.origin
        chosen = {k: v for k, v in headers.items() if here or k.lower() not in _SECRET_HEADERS}
        chosen |= {"User-Agent": "conceptry", "Accept-Encoding": "identity"}
        if credential is not None and credential.fits(url):
            chosen["Authorization"] = credential.value
        return chosen


def _read_whole(
    response: urllib3.BaseHTTPResponse, place: str, *, accept: frozenset[int], limit_bytes: int, method: str
) -> Answer:
    check_status(response, place, accept)
    headers = lower_headers(response)
    check_encoding(headers, place)
    length = read_length(headers)
    if method == "HEAD":
        return Answer(response.status, headers, b"", place)
    if length is not None and length > limit_bytes:
        raise too_large(place, limit_bytes)
    pieces: list[bytes] = []
    count_bytes = 0
    for piece in iter_body(response):
        pieces.append(piece)
        count_bytes += len(piece)
        if count_bytes > limit_bytes:
            raise too_large(place, limit_bytes)
    if length is not None and count_bytes != length:
        raise Retry(RemoteError(f"{describe_url(place)} ended after {count_bytes} of {length} bytes"))
    return Answer(response.status, headers, b"".join(pieces), place)


def _finish(response: urllib3.BaseHTTPResponse) -> None:
    """A connection that was read to its end is used again, any other is closed."""
    remaining = getattr(response, "length_remaining", None)
    if remaining == 0:
        response.drain_conn()  # nothing is left, but only this tells the connection so
        response.release_conn()
    else:
        response.close()


__all__ = ["Answer", "Credential", "Limits", "Transport", "is_offline"]
