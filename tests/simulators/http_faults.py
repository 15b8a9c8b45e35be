"""The ways in which a web server fails, one row each, and what a good client makes of it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Final

from tests.simulators.http_plays import (
    FLOOD,
    FOREVER,
    Fault,
    Outcome,
    Pause,
    Play,
    Reset,
    bomb,
    change,
    chunk,
    chunked,
    cut_body,
    declare,
    drip,
    encoded,
    flip,
    ignore_ranges,
    in_seconds,
    page,
    part,
    raw,
    redirect,
    retag,
    short_part,
    status,
    then,
    without_length,
)

_LAST_BYTE: Final = "the last bytes of a blob come in time, however slowly"
_NO_DIGEST: Final = "a list has no digest: a changed byte may leave it a list"
_SIZE_KNOWN: Final = "the manifest names a blob's size, and a document's end is what is announced"
_NO_END: Final = "a document that ends with its connection looks whole: its digest, or its form, refuses it"
_SURPLUS: Final = "a blob is read to its known size; more is seen only if it comes with the last piece"
_WRONG_BYTES: Final = (
    "wrong bytes of a blob are found by its digest at the end; a document is asked for again"
)
_NO_RANGE: Final = "what is asked for from the beginning has no range, and the last request may need none"
_NOT_ASKED: Final = "a blob is asked for again, a part of a document is refused"
_NO_LIST: Final = "a version that is named by its number is found without the list"


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
    yield Fault(name="cut always", play=cut_body, times=FOREVER, outcome="error")
    yield Fault(name="reset once", play=then(Reset()), outcome="right")
    yield Fault(name="reset always", play=then(Reset()), times=FOREVER, outcome="error")
    yield Fault(name="stall once", play=then(Pause(30)), outcome="right")
    yield Fault(name="stall always", play=then(Pause(30)), times=FOREVER, outcome="error")
    yield Fault(name="drip once", play=drip, outcome="right")
    yield Fault(
        name="drip always", play=drip, times=FOREVER, outcome="either", documents="error", why=_LAST_BYTE
    )
    yield Fault(name="flipped bit once", play=flip, outcome="error", lists="either", why=_NO_DIGEST)
    yield Fault(
        name="flipped bit always", play=flip, times=FOREVER, outcome="error", lists="either", why=_NO_DIGEST
    )
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
    yield Fault(
        name="gzip that was not asked for",
        play=encoded("gzip", gzip.compress),
        times=FOREVER,
        outcome="error",
    )
    yield Fault(name="gzip bomb", play=bomb, times=FOREVER, outcome="error")
    yield Fault(name="deflate label", play=encoded("deflate"), times=FOREVER, outcome="error")
    yield Fault(name="unknown encoding", play=encoded("x-shrunk"), times=FOREVER, outcome="error")
    yield Fault(name="web page", play=page(), times=FOREVER, outcome="error")
    yield Fault(name="web page for the rest", play=page(), times=FOREVER, outcome="error", after_cut=True)
    yield Fault(name="web page without a length", play=page(length=False), times=FOREVER, outcome="error")


def _length_rows() -> Iterator[Fault]:
    yield Fault(
        name="length too large, then closed",
        play=declare("Content-Length: {more}"),
        outcome="error",
        documents="right",
        why=_SIZE_KNOWN,
    )
    yield Fault(
        name="length too large, and filled",
        play=declare("Content-Length: {more}", surplus=b"y" * 100),
        times=FOREVER,
        outcome="error",
    )
    yield Fault(
        name="length too small",
        play=declare("Content-Length: {less}", short=True),
        times=FOREVER,
        outcome="error",
    )
    yield Fault(
        name="surplus after the length", play=declare("Content-Length: {size}", surplus=b"y"), outcome="right"
    )
    yield Fault(name="negative length", play=declare("Content-Length: -5"), outcome="right")
    yield Fault(name="length in words", play=declare("Content-Length: many"), outcome="right")
    yield Fault(
        name="two lengths", play=declare("Content-Length: {size}\r\nContent-Length: {cut}"), outcome="right"
    )
    yield Fault(name="length zero", play=status(200, body=b""), times=FOREVER, outcome="error")
    yield Fault(name="no length, whole", play=without_length(), outcome="right")
    yield Fault(
        name="no length, cut",
        play=without_length(whole=False),
        outcome="right",
        documents="error",
        why=_NO_END,
    )
    yield Fault(
        name="no length, endless",
        play=without_length(endless=True),
        times=FOREVER,
        outcome="either",
        documents="error",
        why=_SURPLUS,
    )
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
        name="chunk cut in its middle",
        play=chunked(tail=b"ff\r\nabc", whole=False),
        outcome="error",
        documents="right",
        why=_WRONG_BYTES,
    )
    yield Fault(name="chunk size in words", play=chunked(tail=b"many\r\n", whole=False), outcome="right")
    yield Fault(name="chunk size negative", play=chunked(tail=b"-5\r\n", whole=False), outcome="right")
    yield Fault(
        name="chunk of a petabyte", play=chunked(tail=b"4000000000000\r\n", whole=False), outcome="right"
    )
    yield Fault(
        name="chunks endless",
        play=chunked(tail=None, flood=chunk(FLOOD)),
        times=FOREVER,
        outcome="either",
        documents="error",
        why=_SURPLUS,
    )
    yield Fault(
        name="chunk extension endless",
        play=chunked(tail=b"5;", whole=False, flood=b"y" * 4096),
        times=FOREVER,
        outcome="error",
    )
    yield Fault(
        name="trailers endless",
        play=chunked(tail=b"0\r\n", flood=b"A: b\r\n" * 1000),
        times=FOREVER,
        outcome="right",
        documents="error",
        why=_SIZE_KNOWN,
    )


def _range_rows() -> Iterator[Fault]:
    def row(name: str, play: Play, outcome: Outcome, times: int = FOREVER) -> Fault:
        why = _NO_RANGE if outcome == "either" else ""
        return Fault(name=name, play=play, times=times, outcome=outcome, after_cut=True, ranges=True, why=why)

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
        name="206 to a whole request",
        play=part("bytes 0-{last}/{size}", count=FOREVER),
        outcome="right",
        documents="error",
        why=_NOT_ASKED,
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
    for number in (204, 205, 300, 304, 400, 401, 403, 407, 413, 418, 451, 501, 507, 599):
        yield Fault(name=f"{number} always", play=status(number), times=FOREVER, outcome="error")
    for number in (404, 410):
        yield Fault(
            name=f"{number} always",
            play=status(number),
            times=FOREVER,
            outcome="error",
            lists="right",
            why=_NO_LIST,
        )


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
        "a bad port": "http://127.0.0.1:99999/x",
        "a dead port": "http://127.0.0.1:1{path}",
    }.items():
        yield Fault(name=f"redirect to {name}", play=redirect(302, location), times=FOREVER, outcome="error")
    # Read as RFC 3986 says, section 5.3, an address without a host is a path of the same site, where nothing is.
    yield Fault(
        name="redirect to no host",
        play=redirect(302, "http:///x"),
        times=FOREVER,
        outcome="error",
        lists="right",
        why=_NO_LIST,
    )


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
        "a head of 200 lines": raw(good + b"A: b\r\n" * 200 + b"\r\n"),
        "a head line of 100 kB": raw(good + b"A: " + b"b" * 100_000 + b"\r\n\r\n"),
    }
    for name, play in once.items():
        yield Fault(name=f"{name}, once", play=play, outcome="right", after_cut=True)
    yield Fault(
        name="head cut, once",
        play=raw(good + b"Content-Le"),
        outcome="right",
        documents="error",
        after_cut=True,
        why=_NO_END,
    )
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
