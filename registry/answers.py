"""What the headers of an answer mean: ranges, entity tags, waiting times, redirects. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from conceptry.errors import NotFoundError, RemoteError, UsageError

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
MISSING: Final = frozenset({404, 410})
_SNIPPET_CHARS: Final = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer to one request."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""

    body: bytes
    url: str
    """Where it came from in the end."""


class UnauthorizedError(RemoteError):
    """Raised when a remote asks who is there; ``challenge`` says how it wants to be told."""

    def __init__(self, url: str, challenge: str) -> None:
        super().__init__(
            f"{describe_url(url)} asks who you are (401)", hint="log in to that remote, then repeat"
        )
        self.challenge = challenge


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The bytes that a partial answer says it has; ``total`` is None where it does not know."""

    first: int
    last: int
    total: int | None


def find_origin(url: str) -> str:
    """Returns ``scheme://host:port``, by which credentials are bound.

    Raises:
        UsageError: if the text is no http or https address, or carries a user name.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in _PORTS or not host or "@" in parts.netloc:
        raise UsageError(
            f"not an address on the web: {describe_url(url)!r}",
            hint="write https://host/path, without a user name",
        )
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}:{port or _PORTS[parts.scheme]}"


def check_address(uri: str) -> str:
    """Returns a site's address without a slash at its end. Raises UsageError if it cannot be one."""
    find_origin(uri)
    if "?" in uri or "#" in uri:
        raise UsageError(
            f"the address {describe_url(uri)!r} has a question or a fragment after it",
            hint="write where the folder is served: https://host/folder",
        )
    return uri.rstrip("/")


def find_host(url: str) -> str:
    """Returns the host of an address, as connections call it. Raises UsageError."""
    return urlsplit(find_origin(url)).hostname or ""


def describe_url(url: str) -> str:
    """Returns an address for messages: without user name, query and fragment, where secrets may stand."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "?"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[:200]


def follow_redirect(url: str, location: str | None) -> str:
    """Returns where an answer sends us. Raises RemoteError if that is nowhere, or less safe than ``url``."""
    if not location:
        raise RemoteError(f"{describe_url(url)} redirects to nowhere", hint="tell who runs that remote")
    target = urljoin(url, location)
    try:
        find_origin(target)
    except UsageError as error:
        raise RemoteError(
            f"{describe_url(url)} redirects to no web address ({describe_url(target)!r})",
            hint="tell who runs that remote",
        ) from error
    if url.startswith("https:") and not target.startswith("https:"):
        raise RemoteError(
            f"{describe_url(url)} redirects to {describe_url(target)}, which is not encrypted",
            hint="tell who runs that remote; nothing was sent there",
        )
    return target


def read_content_range(headers: Mapping[str, str]) -> ContentRange | None:
    """Returns the bytes that an answer has, None where its header is missing or malformed."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    total = None if match[3] == "*" else int(match[3])
    if last < first or (total is not None and last >= total):
        return None
    return ContentRange(first, last, total)


def read_length(headers: Mapping[str, str]) -> int | None:
    """Returns the declared length in bytes, None where there is none that can be read."""
    text = headers.get("content-length", "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def read_strong_etag(headers: Mapping[str, str]) -> str | None:
    """Returns the entity tag if it promises equal bytes (RFC 9110, 8.8.1), None otherwise."""
    tag = headers.get("etag", "").strip()
    return tag if re.fullmatch(r'"[\x21\x23-\x7e]{0,256}"', tag) else None


def read_retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Returns the seconds that an answer asks to wait, None where it does not say (RFC 9110, 10.2.3: both forms)."""
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except OverflowError:
        return None


def is_web_page(headers: Mapping[str, str]) -> bool:
    """Returns whether an answer is meant for a person's browser."""
    return headers.get("content-type", "").strip().lower().startswith(("text/html", "application/xhtml"))


def explain_status(url: str, status: int) -> NotFoundError | RemoteError:
    """Returns the error for an answer that is not what was asked for."""
    place = describe_url(url)
    if status in MISSING:
        return NotFoundError(f"{place} is not there", hint="check the name and the remote's address")
    if status == 403:
        return RemoteError(
            f"{place} refuses access (403)",
            hint="log in as somebody who may, or ask who runs that remote for the right",
        )
    if status in {413, 507}:
        return RemoteError(
            f"{place} has no room for it ({status})", hint="ask who runs that remote for space"
        )
    if status == 429:
        return RemoteError(f"{place} allows no more requests for now (429)", hint="repeat it later")
    if status >= 500:
        return RemoteError(f"{place} fails ({status})", hint="repeat it later; nothing that arrived is lost")
    return RemoteError(f"{place} answered with status {status}", hint="check the remote's address")
