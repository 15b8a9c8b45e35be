"""What a web server may send: a play is one answer, said byte by byte; ``cut`` is how much of a file goes first."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from time import time
from typing import Final, Literal

FOREVER: Final = 1 << 30
_RANGE: Final = re.compile(r"bytes=([0-9]+)-")
FLOOD: Final = b"x" * 65536

Outcome = Literal["right", "error", "either"]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection ends with a reset."""


Action = bytes | Pause | Reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, and what it would get."""

    method: str
    path: str
    headers: dict[str, str]
    data: bytes
    cut: int
    here: str
    other: str
    """Another origin with the same files."""

    @property
    def start(self) -> int:
        """The first byte that is asked for."""
        match = _RANGE.fullmatch(self.headers.get("range", ""))
        return min(int(match[1]), len(self.data)) if match else 0

    @property
    def ranged(self) -> bool:
        """Whether a part is asked for."""
        return "range" in self.headers

    @property
    def rest(self) -> bytes:
        """The bytes that are asked for."""
        return self.data[self.start :]

    @property
    def part(self) -> int:
        """How many bytes of the rest go before the fault strikes."""
        return max(0, min(self.cut, len(self.data)) - self.start)


Play = Callable[[Ask], Iterator[Action]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way of failing: for the first ``times`` requests, and what a good client makes of it."""

    name: str
    play: Play
    times: int = 1
    outcome: Outcome
    after_cut: bool = False
    """Whether a first connection is cut at ``cut``, so that the fault meets the request for the rest."""

    ranges: bool = False
    """Whether it is about ranges, which small documents are not asked for by."""

    documents: Outcome | None = None
    """What is made of it where a small document comes so, which is read whole; None if the same."""

    lists: Outcome | None = None
    """The same of a list of versions, which has no digest and which a pull by number can do without."""

    why: str = ""
    """Of what may end either way, or otherwise for documents: why that is right."""


def head(status: int, *lines: str, reason: str = "Whatever") -> bytes:
    """Return the head of an answer that closes its connection."""
    rows = [f"HTTP/1.1 {status} {reason}", *lines, "Connection: close", "", ""]
    return "\r\n".join(rows).encode("latin-1")


def tag(data: bytes) -> str:
    """Return the strong entity tag of some bytes."""
    return f'"{hashlib.sha256(data).hexdigest()[:16]}"'


def answer_rightly(ask: Ask) -> Iterator[Action]:
    """Play what a good server does."""
    unchanged = ask.headers.get("if-range", tag(ask.data)) == tag(ask.data)
    if ask.ranged and unchanged and ask.start >= len(ask.data):
        yield head(416, f"Content-Range: bytes */{len(ask.data)}", "Content-Length: 0")
        return
    if ask.ranged and unchanged:
        span = f"bytes {ask.start}-{len(ask.data) - 1}/{len(ask.data)}"
        yield head(
            206, f"Content-Length: {len(ask.rest)}", f"ETag: {tag(ask.data)}", f"Content-Range: {span}"
        )
        yield b"" if ask.method == "HEAD" else ask.rest
        return
    yield head(200, f"Content-Length: {len(ask.data)}", f"ETag: {tag(ask.data)}")
    yield b"" if ask.method == "HEAD" else ask.data


def begin(ask: Ask, *more: str, length: int | None = None) -> bytes:
    """Return the right head for the rest of the file, with further lines, and perhaps another length."""
    count = len(ask.rest) if length is None else length
    lines = [f"Content-Length: {count}", *more]
    if not ask.ranged:
        return head(200, *lines)
    return head(206, f"Content-Range: bytes {ask.start}-{len(ask.data) - 1}/{len(ask.data)}", *lines)


def cut_body(ask: Ask) -> Iterator[Action]:
    """Play a connection that closes in the middle."""
    yield begin(ask, f"ETag: {tag(ask.data)}")
    yield ask.rest[: ask.part]


def then(*actions: Action) -> Play:
    """Return a play of the body up to the cut, followed by ``actions``."""

    def play(ask: Ask) -> Iterator[Action]:
        yield begin(ask, f"ETag: {tag(ask.data)}")
        yield ask.rest[: ask.part]
        yield from actions

    return play


def drip(ask: Ask) -> Iterator[Action]:
    """Play a body that comes byte by byte from the cut on."""
    yield begin(ask)
    yield ask.rest[: ask.part]
    for number in range(ask.part, len(ask.rest)):
        yield ask.rest[number : number + 1]
        yield Pause(0.1)


def declare(length: str, *, surplus: bytes = b"", short: bool = False) -> Play:
    """Return a play with a Content-Length of that text."""

    def play(ask: Ask) -> Iterator[Action]:
        less = min(ask.cut, len(ask.data) - 1)
        yield head(200, length.format(size=len(ask.data), more=len(ask.data) + 100, less=less, cut=ask.cut))
        yield (ask.data[:less] if short else ask.data) + surplus

    return play


def without_length(*, whole: bool = True, endless: bool = False) -> Play:
    """Return a play of a body that ends with its connection."""

    def play(ask: Ask) -> Iterator[Action]:
        yield head(200)
        yield ask.data if whole else ask.data[: ask.cut]
        while endless:
            yield FLOOD

    return play


def chunk(data: bytes) -> bytes:
    """Return one chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def chunked(*, tail: bytes | None = b"0\r\n\r\n", whole: bool = True, flood: bytes = b"") -> Play:
    """Return a play of a chunked body up to the cut, its rest if ``whole``, a tail, and a flood."""

    def play(ask: Ask) -> Iterator[Action]:
        yield head(200, "Transfer-Encoding: chunked")
        yield chunk(ask.data[: ask.cut])
        if whole:
            yield chunk(ask.data[ask.cut :])
        yield tail or b""
        while flood:
            yield flood

    return play


def encoded(name: str, pack: Callable[[bytes], bytes] = bytes) -> Play:
    """Return a play of a body that is packed, though nobody asked for it."""

    def play(ask: Ask) -> Iterator[Action]:
        body = pack(ask.data)
        yield head(200, f"Content-Length: {len(body)}", f"Content-Encoding: {name}")
        yield body

    return play


@functools.cache
def pack_zeros() -> bytes:
    """Return 16 MiB of zeros, packed, without having them at once."""
    packer = zlib.compressobj(wbits=31)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(16)), packer.flush()])


def bomb(ask: Ask) -> Iterator[Action]:
    """Play a small body that unpacks to 16 MiB."""
    body = pack_zeros()
    yield head(200, f"Content-Length: {len(body)}", "Content-Encoding: gzip")
    yield body


def change(*, forever_same_length: bool = True) -> Play:
    """Return a play of other contents than before, at the place that is asked for."""

    def play(ask: Ask) -> Iterator[Action]:
        other = bytes(byte ^ 1 for byte in ask.data) if forever_same_length else ask.data + b"more"
        yield from answer_rightly(replace(ask, data=other, headers=_without_condition(ask)))

    return play


def flip(ask: Ask) -> Iterator[Action]:
    """Play one wrong bit at the cut."""
    place = min(ask.cut, len(ask.data) - 1)
    wrong = ask.data[:place] + bytes([ask.data[place] ^ 1]) + ask.data[place + 1 :]
    yield from answer_rightly(replace(ask, data=wrong, headers=_without_condition(ask)))


def _without_condition(ask: Ask) -> dict[str, str]:
    return {name: value for name, value in ask.headers.items() if name != "if-range"}


def status(number: int, *lines: str, body: bytes = b"no") -> Play:
    """Return a play of another status."""

    def play(ask: Ask) -> Iterator[Action]:
        filled = [line.format(here=ask.here, other=ask.other, path=ask.path) for line in lines]
        yield head(number, f"Content-Length: {len(body)}", *filled)
        yield body

    return play


def page(*, length: bool = True) -> Play:
    """Return a play of a web page with status 200."""
    body = b"<!doctype html><title>Sign in</title>" * 20

    def play(ask: Ask) -> Iterator[Action]:
        yield head(200, "Content-Type: text/html", *([f"Content-Length: {len(body)}"] if length else []))
        yield body

    return play


def part(span: str | None, *, count: int | None = None, shift: int = 0, tagged: str | None = None) -> Play:
    """Return a play of a partial answer whose Content-Range is written by ``span``."""

    def play(ask: Ask) -> Iterator[Action]:
        if not ask.ranged and shift == 0 and count is None and tagged is None:
            yield from answer_rightly(ask)
            return
        body = ask.data[max(0, ask.start + shift) :][:count]
        row = (span or "").format(start=ask.start, last=len(ask.data) - 1, size=len(ask.data))
        lines = [f"Content-Range: {row}"] if span else []
        lines += [f"ETag: {tagged}"] if tagged else []
        yield head(206, f"Content-Length: {len(body)}", *lines)
        yield body

    return play


def short_part(ask: Ask) -> Iterator[Action]:
    """Play fewer bytes of a range than were asked for, and say so; allowed."""
    if not ask.ranged or ask.start >= len(ask.data):
        yield from answer_rightly(ask)
        return
    last = min(ask.start + 9, len(ask.data) - 1)
    span = f"Content-Range: bytes {ask.start}-{last}/{len(ask.data)}"
    yield head(206, f"Content-Length: {last + 1 - ask.start}", span)
    yield ask.data[ask.start : last + 1]


def retag(text: str) -> Play:
    """Return a play of the right bytes under another entity tag, each time another one."""
    numbers = itertools.count()

    def play(ask: Ask) -> Iterator[Action]:
        yield begin(ask, f"ETag: {text.format(number=next(numbers))}")
        yield ask.rest[: ask.part] if next(numbers) < 2 else ask.rest

    return play


def ignore_ranges(ask: Ask) -> Iterator[Action]:
    """Play the whole file, whatever part is asked for."""
    yield head(200, f"Content-Length: {len(ask.data)}", 'ETag: "another"')
    yield ask.data


def raw(*actions: Action, flood: bytes = b"", pause_seconds: float = 0.0) -> Play:
    """Return a play of bytes that are no answer, or the beginning of one."""

    def play(ask: Ask) -> Iterator[Action]:
        yield from actions
        while flood:
            yield flood
            if pause_seconds:
                yield Pause(pause_seconds)

    return play


def in_seconds(seconds: int) -> str:
    """Return a moment from now as HTTP writes it."""
    return formatdate(time() + seconds, usegmt=True)


def redirect(number: int, location: str | None) -> Play:
    """Return a play of a redirect; ``{other}``, ``{here}`` and ``{path}`` are filled in."""
    return status(number, *([f"Location: {location}"] if location else []), body=b"")
