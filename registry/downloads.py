"""A blob of known size from the web: one connection after another, each asked for the rest of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

import urllib3

from conceptry.errors import RemoteError
from conceptry.registry.answers import (
    describe_url,
    explain_status,
    is_web_page,
    read_content_range,
    read_length,
    read_strong_etag,
)
from conceptry.registry.attempts import (
    Headers,
    Patience,
    Retry,
    check_encoding,
    check_status,
    lower_headers,
    web_page,
    wrong_size,
)
from conceptry.registry.wire import Limits

CHUNK_BYTES: Final = 1 << 18
_PROGRESS_BYTES: Final = 1 << 20  # less than this is no reason to believe in a connection again
_SLOWEST_BYTES_PER_SECOND: Final = 1024

Found: TypeAlias = tuple[urllib3.BaseHTTPResponse, str]
"""An answer that is no redirect, and where it came from."""


class Download:
    """One blob on its way, over as many connections as it takes."""

    def __init__(
        self,
        ask: Callable[[Headers], AbstractContextManager[Found]],
        limits: Limits,
        size_bytes: int,
        offset_bytes: int,
    ) -> None:
        self._ask = ask
        self._limits = limits
        self._size_bytes = size_bytes
        self._position = offset_bytes
        self._etag: str | None = None
        self._ranges = True

    def iter_pieces(self) -> Generator[bytes, None, None]:
        """Yields the bytes from the position to the end."""
        deadline_seconds = self._limits.deadline_seconds + self._size_bytes // _SLOWEST_BYTES_PER_SECOND
        patience = Patience(self._limits, deadline_seconds=deadline_seconds)
        while self._position < self._size_bytes:
            start = self._position
            try:
                yield from self._iter_connection()
            except Retry as failed:
                if self._position - start >= _PROGRESS_BYTES:
                    patience.begin_anew()
                patience.wait(failed)

    def _iter_connection(self) -> Iterator[bytes]:
        condition: dict[str, str] = {}
        if self._position and self._ranges:
            condition["Range"] = f"bytes={self._position}-"
            if self._etag:
                condition["If-Range"] = self._etag
        with self._ask(condition) as (response, place):
            skip = self._check_answer(response, place)
            for piece in iter_body(response):
                fresh = piece[skip:] if skip else piece
                skip = max(0, skip - len(piece))
                if not fresh:
                    continue
                if self._position + len(fresh) > self._size_bytes:
                    raise wrong_size(place, f"more than {self._size_bytes}", self._size_bytes)
                self._position += len(fresh)
                yield fresh
                if self._position == self._size_bytes:
                    return
        if self._position < self._size_bytes:
            raise Retry(web_page(place) if is_web_page(lower_headers(response)) else self._cut(place))

    def _check_answer(self, response: urllib3.BaseHTTPResponse, place: str) -> int:
        """Returns how many bytes of this answer are known already. Raises if it cannot be the blob's rest."""
        headers = lower_headers(response)
        check_encoding(headers, place)
        if response.status == 206 and "range" not in self._asked_for():
            raise Retry(RemoteError(f"{describe_url(place)} sent a part of what was asked for"))
        if response.status == 206:
            found = read_content_range(headers)
            if found is None or found.first != self._position or found.last >= self._size_bytes:
                self._ranges = False
                raise Retry(RemoteError(f"{describe_url(place)} sent another part than was asked for"))
            if found.total not in (None, self._size_bytes):
                raise wrong_size(place, str(found.total), self._size_bytes)
            self._etag = self._etag or read_strong_etag(headers)
            return 0
        if response.status == 416:
            if not self._ranges:
                raise explain_status(place, response.status)
            self._ranges = False
            raise Retry(explain_status(place, response.status))
        check_status(response, place, frozenset({200}))
        length = read_length(headers)
        if length not in (None, self._size_bytes):
            if is_web_page(headers):
                raise web_page(place)
            raise wrong_size(place, str(length), self._size_bytes)
        self._etag = read_strong_etag(headers)
        return self._position

    def _cut(self, place: str) -> RemoteError:
        return RemoteError(
            f"{describe_url(place)} ended after {self._position} of {self._size_bytes} bytes",
            hint="what arrived is kept: run the same command again",
        )

    def _asked_for(self) -> frozenset[str]:
        return frozenset({"range"}) if self._position and self._ranges else frozenset()


def iter_body(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yields the bytes of an answer as they come, unpacked by nobody."""
    while piece := response.read1(CHUNK_BYTES, decode_content=False):
        yield piece
