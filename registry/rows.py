"""Rows of the index: what a listing shows of a version, read as text and parsed only where somebody asks.

Each row carries a checksum of itself, so that a damaged index is noticed where it is read and built anew.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from conceptry.digests import Digest
from conceptry.names import ConceptName, Reference, Version, parse_version
from conceptry.units import format_bytes

COLUMNS: Final = (
    "namespace",
    "name",
    "version",
    "digest",
    "title",
    "kinds",
    "families",
    "placeholders",
    "tags",
    "license",
    "size_bytes",
    "origin",
    "yanked",
    "latest",
    "checksum",
)
"""What a listing reads of a row, in this order."""

CELL_BREAK: Final = "\x1f"
"""What stands between the cells of a line."""

_NUMBER_DIGITS: Final = 2
_SUM_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """One line of a listing: a version and what people look for. Values are parsed when they are asked for."""

    row: tuple[Any, ...]
    """The values of ``COLUMNS``."""

    @property
    def text(self) -> str:
        """``namespace/name@version``."""
        return f"{self.row[0]}/{self.row[1]}@{self.row[2]}"

    @property
    def concept_text(self) -> str:
        """``namespace/name``."""
        return f"{self.row[0]}/{self.row[1]}"

    @property
    def reference(self) -> Reference:
        """The version."""
        return Reference(ConceptName(self.row[0], self.row[1]), self.version)

    @property
    def version(self) -> Version:
        """Its number."""
        return parse_version(self.row[2])

    @property
    def digest(self) -> Digest:
        """Its identity."""
        return Digest.parse(self.row[3])

    @property
    def title(self) -> str:
        """Its title, perhaps empty."""
        return str(self.row[4])

    @property
    def kinds(self) -> tuple[str, ...]:
        """How it is stored."""
        return _read_list(self.row[5])

    @property
    def families(self) -> tuple[str, ...]:
        """Which bases it is for."""
        return _read_list(self.row[6])

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The words that call it."""
        return _read_list(self.row[7])

    @property
    def tags(self) -> tuple[str, ...]:
        """The labels of its manifest."""
        return _read_list(self.row[8])

    @property
    def license(self) -> str | None:
        """Its licence, None if it states none."""
        return None if self.row[9] is None else str(self.row[9])

    @property
    def size_bytes(self) -> int:
        """The sum of its distinct files."""
        return int(self.row[10])

    @property
    def origin(self) -> str:
        """``published`` here, or ``pulled`` from a remote."""
        return str(self.row[11])

    @property
    def yanked(self) -> str | None:
        """Why nobody should choose it anew, None if nothing speaks against it."""
        return None if self.row[12] is None else str(self.row[12])


@lru_cache(maxsize=4096)  # most rows have the same few kinds and bases
def _read_list(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def is_sound(row: Sequence[Any]) -> bool:
    """Returns whether the values of ``COLUMNS`` are those that were written."""
    return bool(row[-1] == sum_row(row[:-1]))


def sum_row(values: Sequence[Any]) -> int:
    """Returns the checksum of the values of ``COLUMNS`` before it."""
    return _sum_text("\x1f".join(map(str, values)))


def _sum_text(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def seal_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the index with the checksum and the line that belong to it."""
    values = [row[column] for column in COLUMNS[:-1]]
    cells = describe_row(ListedVersion(tuple(values)))
    line = "\x1f".join(cells)
    if line.count(CELL_BREAK) != len(cells) - 1:
        line = "\x1f".join(cell.replace(CELL_BREAK, "\\x1f") for cell in cells)
    return {**row, "checksum": sum_row(values), "line": f"{_sum_text(line):0{_SUM_DIGITS}x}{line}"}


def describe_row(row: ListedVersion) -> tuple[str, ...]:
    """Returns what people are shown of a version: reference, kinds, bases, words, size, licence, title."""
    return (
        row.text,
        "+".join(row.kinds),
        ", ".join(row.families),
        " ".join(row.placeholders),
        format_bytes(row.size_bytes),
        row.license or "unknown",
        row.title if row.yanked is None else f"{row.title} (yanked: {row.yanked})".lstrip(),
    )


def read_line(sealed: str) -> str | None:
    """Returns a line of the index as it was written, its cells joined by ``CELL_BREAK``; None if it is damaged."""
    line = sealed[_SUM_DIGITS:]
    try:
        return line if int(sealed[:_SUM_DIGITS], 16) == _sum_text(line) else None
    except ValueError:
        return None


@lru_cache(maxsize=4096)  # as the names of their files
def make_sort_key(version: Version) -> str:
    """Returns text that sorts as versions do (semver.org, section 11): numbers by value, finals after pre-releases."""
    numbers = ".".join(_write_number(number) for number in (version.major, version.minor, version.patch))
    if not version.prerelease:
        return f"{numbers}~{version.build or ''}"
    parts = [
        f"0{_write_number(int(part))}" if part.isdigit() else f"1{part}"
        for part in version.prerelease.split(".")
    ]
    return f"{numbers}-{' '.join(parts)} {version.build or ''}"


def _write_number(number: int) -> str:
    text = str(number)
    return f"{len(text):0{_NUMBER_DIGITS}d}{text}"
