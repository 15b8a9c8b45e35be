"""What may be tried again on the web, how often and how long, and in which words it is given up."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError

from conceptry.errors import ConceptryError, IntegrityError, RemoteError, UsageError
from conceptry.registry.answers import (
    RETRIED,
    UnauthorizedError,
    describe_url,
    explain_status,
    read_retry_after,
)
from conceptry.registry.wire import Limits

Headers = Mapping[str, str]


class Retry(Exception):
    """What went wrong may go right the next time."""

    def __init__(self, error: ConceptryError, wait_seconds: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_seconds = wait_seconds


class Patience:
    """How often and how long one thing is tried."""

    def __init__(self, limits: Limits, *, deadline_seconds: float) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + deadline_seconds
        self._failures = 0

    def begin_anew(self) -> None:
        """Notes progress: earlier failures count no more."""
        self._failures = 0

    def wait(self, failed: Retry) -> None:
        """Waits before the next attempt. Raises the error that was met if there is to be none."""
        self._failures += 1
        asked = failed.wait_seconds
        if asked is not None and asked > self._limits.max_wait_seconds:
            raise RemoteError(
                f"{failed.error.message} and asks to wait {asked:.0f} seconds", hint="repeat it then"
            )
        backoff = min(8.0, self._limits.backoff_seconds * 2 ** (self._failures - 1)) * random.uniform(
            0.5, 1.5
        )
        wait = max(backoff, asked or 0.0)
        if self._failures >= self._limits.attempts or time.monotonic() + wait > self._deadline:
            raise failed.error from failed
        time.sleep(wait)


def check_status(response: urllib3.BaseHTTPResponse, place: str, accept: frozenset[int]) -> None:
    """Raises what an unwanted status means: an error, or a ``Retry`` where it may pass."""
    if response.status in accept:
        return
    if response.status == 401:
        raise UnauthorizedError(place, response.headers.get("www-authenticate", ""))
    error = explain_status(place, response.status)
    if response.status in RETRIED:
        raise Retry(error, read_retry_after(lower_headers(response)))
    raise error


def check_encoding(headers: Headers, place: str) -> None:
    """Raises RemoteError if a body is packed, which nobody asked for."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RemoteError(
            f"{describe_url(place)} sends its bytes packed as {encoding[:40]!r}, which was not asked for",
            hint="whoever runs that remote should switch compression off for these files",
        )


def lower_headers(response: urllib3.BaseHTTPResponse) -> dict[str, str]:
    """Returns the headers of an answer by lower-case name."""
    return {name.lower(): value for name, value in response.headers.items()}


@contextmanager
def explain_network(url: str) -> Iterator[None]:
    """Turns what the network does into ``Retry``."""
    place = describe_url(url)
    try:
        yield
    except SSLError as error:
        raise RemoteError(
            f"{place} cannot prove who it is ({_name_reason(error)})",
            hint="is the clock right? a company's own certificate goes into SSL_CERT_FILE",
        ) from error
    except LocationParseError as error:
        raise UsageError(f"not an address on the web: {place!r}", hint="write https://host/path") from error
    except (HTTPError, OSError) as error:
        failed = RemoteError(
            f"{place} cannot be reached: {_name_reason(error)}",
            hint="is the network up, and the address right? what arrived is kept: run the same command again",
        )
        raise Retry(failed) from error


def _name_reason(error: BaseException) -> str:
    """The innermost cause, without addresses of objects, on one line."""
    inner: BaseException = error
    while isinstance(reason := getattr(inner, "reason", None) or inner.__cause__, BaseException):
        inner = reason
    text = " ".join(str(inner.args[-1] if inner.args else inner).split())
    return f"{text[:200] or type(inner).__name__}"


def wrong_size(place: str, found: str, size_bytes: int) -> IntegrityError:
    """Returns the error for a file of another size than was declared."""
    return IntegrityError(f"{describe_url(place)} has {found} bytes, {size_bytes} were declared")


def too_large(place: str, limit_bytes: int) -> IntegrityError:
    """Returns the error for a document beyond its limit."""
    return IntegrityError(f"{describe_url(place)} has more than the {limit_bytes} bytes that it may have")


def web_page(place: str) -> RemoteError:
    """Returns the error for a page where bytes were asked for."""
    return RemoteError(
        f"{describe_url(place)} answers with a web page",
        hint="is a sign-in page of this network in between? open the address in a browser",
    )
