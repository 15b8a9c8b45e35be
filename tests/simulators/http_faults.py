"""A web server for a folder that can do everything wrong, on real sockets: one row of ``FAULTS`` a way of failing.

An ordinary answer knows ranges, entity tags and ``If-Range``. A fault plays instead of it, for some requests to one
file, and says byte by byte what goes over the wire; ``cut`` is how many bytes of the file have gone before it strikes.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Final, Literal
from urllib.parse import unquote

FOREVER: Final = 1 << 30
_RANGE: Final = re.compile(r"bytes=([0-9]+)-")
_FLOOD: Final = b"x" * 65536

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

    contents: bool = False
    """Whether other contents come, which only a digest can tell."""


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
            yield _FLOOD

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
    """Return 64 MiB of zeros, packed, without having them at once."""
    packer = zlib.compressobj(wbits=31)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush()])


def bomb(ask: Ask) -> Iterator[Action]:
    """Play a small body that unpacks to 64 MiB."""
    body = pack_zeros()
    yield head(200, f"Content-Length: {len(body)}", "Content-Encoding: gzip")
    yield body


def change(*, forever_same_length: bool = True) -> Play:
    """Return a play of other contents than before, at the place that is asked for."""

    def play(ask: Ask) -> Iterator[Action]:
        other = bytes(byte ^ 1 for byte in ask.data) if forever_same_length else ask.data + b"more"
        yield from answer_rightly(Ask(**{**_fields(ask), "data": other, "headers": _without_condition(ask)}))

    return play


def flip(ask: Ask) -> Iterator[Action]:
    """Play one wrong bit at the cut."""
    place = min(ask.cut, len(ask.data) - 1)
    wrong = ask.data[:place] + bytes([ask.data[place] ^ 1]) + ask.data[place + 1 :]
    yield from answer_rightly(Ask(**{**_fields(ask), "data": wrong, "headers": _without_condition(ask)}))


def _fields(ask: Ask) -> dict[str, object]:
    return {name: getattr(ask, name) for name in Ask.__dataclass_fields__}


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


def _rows() -> Iterator[Fault]:
    yield from _body_rows()
    yield from _length_rows()
    yield from _chunk_rows()
    yield from _range_rows()
    yield from _status_rows()
    yield from _redirect_rows()
    yield from _wire_rows()


def _body_rows() -> Iterator[Fault]:
    yield Fault(name="cut once", play=cut_body, outcome="right")
    yield Fault(name="cut always", play=cut_body, times=FOREVER, outcome="either")
    yield Fault(name="reset once", play=then(Reset()), outcome="right")
    yield Fault(name="reset always", play=then(Reset()), times=FOREVER, outcome="either")
    yield Fault(name="stall once", play=then(Pause(30)), outcome="right")
    yield Fault(name="stall always", play=then(Pause(30)), times=FOREVER, outcome="either")
    yield Fault(name="drip once", play=drip, outcome="right")
    yield Fault(name="drip always", play=drip, times=FOREVER, outcome="either")
    yield Fault(name="flipped bit once", play=flip, outcome="error", contents=True)
    yield Fault(name="flipped bit always", play=flip, times=FOREVER, outcome="error", contents=True)
    yield Fault(name="other contents", play=change(), times=FOREVER, outcome="error")
    yield Fault(
        name="changed between two requests", play=change(), times=FOREVER, outcome="error", after_cut=True
    )
    yield Fault(
        name="changed and longer between two requests",
        play=change(forever_same_length=False),
        times=FOREVER,
        outcome="error",
        after_cut=True,
    )
    yield Fault(name="gzip that was not asked for", play=encoded("gzip", gzip.compress), outcome="error")
    yield Fault(name="gzip bomb", play=bomb, outcome="error")
    yield Fault(name="deflate label", play=encoded("deflate"), outcome="error")
    yield Fault(name="unknown encoding", play=encoded("x-shrunk"), outcome="error")
    yield Fault(name="web page", play=page(), times=FOREVER, outcome="error")
    yield Fault(name="web page for the rest", play=page(), times=FOREVER, outcome="error", after_cut=True)
    yield Fault(name="web page without a length", play=page(length=False), times=FOREVER, outcome="error")


def _length_rows() -> Iterator[Fault]:
    yield Fault(
        name="length too large, then closed", play=declare("Content-Length: {more}"), outcome="either"
    )
    yield Fault(
        name="length too large, and filled",
        play=declare("Content-Length: {more}", surplus=b"y" * 100),
        outcome="error",
    )
    yield Fault(name="length too small", play=declare("Content-Length: {less}", short=True), outcome="error")
    yield Fault(
        name="surplus after the length", play=declare("Content-Length: {size}", surplus=b"y"), outcome="right"
    )
    yield Fault(name="negative length", play=declare("Content-Length: -5"), outcome="either")
    yield Fault(name="length in words", play=declare("Content-Length: many"), outcome="either")
    yield Fault(
        name="two lengths", play=declare("Content-Length: {size}\r\nContent-Length: {cut}"), outcome="either"
    )
    yield Fault(name="length zero", play=status(200, body=b""), outcome="error")
    yield Fault(name="no length, whole", play=without_length(), outcome="right")
    yield Fault(name="no length, cut", play=without_length(whole=False), outcome="either")
    yield Fault(name="no length, endless", play=without_length(endless=True), times=FOREVER, outcome="error")
    yield Fault(
        name="length and chunks",
        play=declare("Content-Length: {size}\r\nTransfer-Encoding: chunked"),
        outcome="right",
    )


def _chunk_rows() -> Iterator[Fault]:
    yield Fault(name="chunks", play=chunked(), outcome="right")
    yield Fault(name="chunks cut", play=chunked(tail=None, whole=False), outcome="right")
    yield Fault(name="chunks without an end", play=chunked(tail=None), outcome="right")
    yield Fault(
        name="chunk cut in its middle", play=chunked(tail=b"ff\r\nabc", whole=False), outcome="either"
    )
    yield Fault(name="chunk size in words", play=chunked(tail=b"many\r\n", whole=False), outcome="right")
    yield Fault(name="chunk size negative", play=chunked(tail=b"-5\r\n", whole=False), outcome="right")
    yield Fault(
        name="chunk of a petabyte", play=chunked(tail=b"4000000000000\r\n", whole=False), outcome="right"
    )
    yield Fault(
        name="chunks endless", play=chunked(tail=None, flood=chunk(_FLOOD)), times=FOREVER, outcome="error"
    )
    yield Fault(
        name="chunk extension endless",
        play=chunked(tail=b"5;", whole=False, flood=b"y" * 4096),
        times=FOREVER,
        outcome="error",
    )
    yield Fault(
        name="trailers endless", play=chunked(tail=b"0\r\n", flood=b"A: b\r\n" * 1000), outcome="either"
    )


def _range_rows() -> Iterator[Fault]:
    def row(name: str, play: Play, outcome: Outcome, times: int = FOREVER) -> Fault:
        return Fault(name=name, play=play, times=times, outcome=outcome, after_cut=True, ranges=True)

    yield row("200 to a range", ignore_ranges, "right")
    yield row("206 from another place", part("bytes {start}-{last}/{size}", shift=-1), "either", times=1)
    yield row("206 that says another place", part("bytes 1-{last}/{size}"), "right")
    yield row("206 beyond the end", part("bytes {start}-{size}/{size}"), "right")
    yield row("206 without Content-Range", part(None), "right")
    yield row("206 with a malformed Content-Range", part("bytes x-y/z"), "right")
    yield row("206 in other units", part("lines {start}-{last}/{size}"), "right")
    yield row("206 of another size", part("bytes {start}-{last}/99999999"), "either")
    yield row("206 of unknown size", part("bytes {start}-{last}/*"), "right")
    yield row("206 with fewer bytes", short_part, "either")
    yield row("206 empty", part("bytes {start}-{last}/{size}", count=0), "either")
    yield row(
        "206 with another entity tag", part("bytes {start}-{last}/{size}", tagged='"new"'), "right", times=1
    )
    yield Fault(
        name="206 to a whole request", play=part("bytes 0-{last}/{size}", count=FOREVER), outcome="right"
    )
    yield row("416 once", status(416), "right", times=1)
    yield row("416 always", status(416), "error")
    for name, text in {
        "weak": 'W/"{number}"',
        "malformed": "{number}",
        "changing": '"{number}"',
        "very long": '"' + "e" * 5000 + '"',
    }.items():
        yield Fault(name=f"entity tag {name}", play=retag(text), times=2, outcome="right")


def _status_rows() -> Iterator[Fault]:
    waits = {
        "none": (),
        "seconds": ("Retry-After: 0",),
        "date": (f"Retry-After: {in_seconds(0)}",),
        "past date": (f"Retry-After: {in_seconds(-86400)}",),
        "nonsense": ("Retry-After: soon",),
        "negative": ("Retry-After: -1",),
    }
    for number in (429, 503):
        for name, lines in waits.items():
            yield Fault(
                name=f"{number}, Retry-After {name}",
                play=status(number, *lines),
                outcome="right",
                after_cut=True,
            )
        for name, text in {
            "an hour": "3600",
            "a year as a date": in_seconds(31_536_000),
            "1e9": "999999999",
        }.items():
            yield Fault(
                name=f"{number}, Retry-After {name}",
                play=status(number, f"Retry-After: {text}"),
                times=FOREVER,
                outcome="error",
                after_cut=True,
            )
        yield Fault(
            name=f"{number} always", play=status(number), times=FOREVER, outcome="error", after_cut=True
        )
    for number in (408, 425, 500, 502, 504):
        yield Fault(name=f"{number} once", play=status(number), outcome="right", after_cut=True)
    for number in (204, 205, 300, 304, 400, 401, 403, 404, 407, 410, 413, 418, 451, 501, 507, 599):
        yield Fault(name=f"{number} always", play=status(number), times=FOREVER, outcome="error")


def _redirect_rows() -> Iterator[Fault]:
    for number in (301, 302, 303, 307, 308):
        yield Fault(
            name=f"{number} to another origin", play=redirect(number, "{other}{path}"), outcome="right"
        )
    yield Fault(name="302 within the origin", play=redirect(302, "{path}"), outcome="right")
    yield Fault(
        name="302 to another origin for the rest",
        play=redirect(302, "{other}{path}"),
        outcome="right",
        after_cut=True,
    )
    for name, location in {
        "loop": "{path}",
        "nowhere": None,
        "a file": "file:///etc/passwd",
        "another protocol": "ftp://127.0.0.1{path}",
        "an address with a password": "http://me:secret@127.0.0.1:1{path}",
        "a name inside this network": "http://localhost:1{path}",
        "the cloud's own data": "http://169.254.169.254/latest/meta-data",
        "no host": "http:///x",
        "a bad port": "http://127.0.0.1:99999/x",
        "a dead port": "http://127.0.0.1:1{path}",
    }.items():
        yield Fault(name=f"redirect to {name}", play=redirect(302, location), times=FOREVER, outcome="error")


def _wire_rows() -> Iterator[Fault]:
    good = b"HTTP/1.1 200 OK\r\n"
    once: dict[str, Play] = {
        "closed before an answer": raw(),
        "reset before an answer": raw(Reset()),
        "silence": raw(Pause(30)),
        "status line of nonsense": raw(b"\x00\xff\xfe nonsense\r\n\r\n"),
        "status that is no number": raw(b"HTTP/1.1 OK 200\r\n\r\n"),
        "answer of another protocol": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        "TLS alert": raw(b"\x15\x03\x01\x00\x02\x02\x28"),
        "head cut": raw(good + b"Content-Le"),
        "a head of 200 lines": raw(good + b"A: b\r\n" * 200 + b"\r\n"),
        "a head line of 100 kB": raw(good + b"A: " + b"b" * 100_000 + b"\r\n\r\n"),
    }
    for name, play in once.items():
        yield Fault(name=f"{name}, once", play=play, outcome="right", after_cut=True)
    always: dict[str, Play] = {
        "closed before an answer": raw(),
        "head endless": raw(good, flood=b"A: b\r\n" * 1000),
        "head line endless": raw(good + b"A: ", flood=b"b" * 4096),
        "head dripping": raw(good, flood=b"A", pause_seconds=0.1),
        "interim answers endless": raw(flood=b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        "interim answers dripping": raw(flood=b"HTTP/1.1 100 Continue\r\n\r\n", pause_seconds=0.1),
    }
    for name, play in always.items():
        yield Fault(name=f"{name}, always", play=play, times=FOREVER, outcome="error")


FAULTS: Final[tuple[Fault, ...]] = tuple(_rows())


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that arrived."""

    path: str
    headers: dict[str, str]


@dataclass(slots=True)
class _State:
    fault: Fault | None = None
    target: str = ""
    cut: int = 0
    left: int = 0
    cuts_left: int = 0
    seen: list[Seen] = field(default_factory=list)


class FaultServer:
    """A running server for a folder; ``with FaultServer(folder) as server``."""

    def __init__(self, folder: Path, *, other: str = "http://127.0.0.1:1") -> None:
        self._folder = folder
        self._other = other
        self._state = _State()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._healed = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._healed.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # closing alone wakes nobody who waits in accept
        self._socket.close()
        self._thread.join(timeout=5)

    @property
    def seen(self) -> list[Seen]:
        """The requests that arrived since the last fault was set."""
        with self._lock:
            return list(self._state.seen)

    def set_fault(self, fault: Fault, target: str, *, cut: int) -> None:
        """Let a fault play for requests whose path ends with ``target``, after ``cut`` bytes."""
        self._healed.clear()
        first = 1 if fault.after_cut else 0
        with self._lock:
            self._state = _State(fault, target, cut, fault.times, first)

    def heal(self) -> None:
        """Serve everything rightly from now on, and end what still plays."""
        with self._lock:
            self._state = _State()
        self._healed.set()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(10)
                ask = self._read(connection)
                if ask is not None:
                    self._play(connection, self._choose(ask), ask)
            except OSError:
                return

    def _read(self, connection: socket.socket) -> Ask | None:
        received = b""
        while b"\r\n\r\n" not in received:
            piece = connection.recv(65536)
            if not piece or len(received) > 65536:
                return None
            received += piece
        first, *lines = received.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        with self._lock:
            self._state.seen.append(Seen(path, headers))
            cut = self._state.cut
        place = self._folder / unquote(path).lstrip("/")
        data = place.read_bytes() if place.is_file() else None
        if data is None:
            connection.sendall(head(404, "Content-Length: 0"))
            return None
        return Ask(
            method=method, path=path, headers=headers, data=data, cut=cut, here=self.uri, other=self._other
        )

    def _choose(self, ask: Ask) -> Play:
        with self._lock:
            state = self._state
            if state.fault is None or not ask.path.endswith(state.target):
                return answer_rightly
            if state.cuts_left:
                state.cuts_left -= 1
                return cut_body
            if state.left:
                state.left -= 1
                return state.fault.play
            return answer_rightly

    def _play(self, connection: socket.socket, play: Play, ask: Ask) -> None:
        for action in play(ask):
            if self._stopped.is_set():
                return
            if isinstance(action, Pause):
                if self._healed.wait(action.seconds):
                    return
            elif isinstance(action, Reset):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            else:
                connection.sendall(action)
        connection.shutdown(socket.SHUT_WR)
