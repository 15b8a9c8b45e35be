"""Rows of the token embedding that lie in a file of another kind: bundles, and words stored beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from conceptry.formats.contract import ReadRequest
from conceptry.formats.embedding import EmbeddingContents
from conceptry.formats.embedding_rows import (
    RowNames,
    WordRows,
    Words,
    describe_rows,
    find_rows,
    gather_rows,
    list_row_names,
)
from conceptry.formats.header import Header
from conceptry.formats.tensors import read_tensors


@dataclass(frozen=True, slots=True)
class Companions:
    """Tensors of words beside those of another kind, by the row of the data file that names them."""

    found: tuple[tuple[RowNames, tuple[WordRows, ...]], ...] = ()

    @property
    def tensors(self) -> frozenset[str]:
        """The names of all of them."""
        return frozenset(row.tensor for _, rows in self.found for row in rows)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the file names, without repeats."""
        return tuple(dict.fromkeys(row.word for _, rows in self.found for row in rows if row.word))

    def describe(self, header: Header) -> Mapping[str, str]:
        """Returns the role of each tensor."""
        return {
            row.tensor: f"{names.title}: {describe_rows(header.tensors[row.tensor].shape)}"
            for names, rows in self.found
            for row in rows
        }

    def read(self, request: ReadRequest) -> Iterator[EmbeddingContents]:
        """Returns their rows in canonical form, under the words of the file, or the caller's where it has none.

        Raises:
            InvalidFileError: if they are no sound rows.
            UsageError: if neither says a word.
        """
        named = Words(file_name=request.name, family=request.family)
        given = replace(named, placeholder=request.placeholder, row_placeholders=request.row_placeholders)
        for names, rows in self.found:
            words = named if all(row.word for row in rows) else given
            tensors = read_tensors(request.path, [row.tensor for row in rows])
            yield gather_rows(tensors, rows, names, words)


def can_be_companion(name: str) -> bool:
    """Returns whether a tensor of this name can be one of words; its shape may still say otherwise."""
    return any(pattern.search(name) for row in list_row_names("inside") for pattern, _ in row.names)


def find_companions(header: Header, explained: AbstractSet[str]) -> Companions:
    """Returns the tensors of words among those that ``explained`` leaves open."""
    left = {name: info for name, info in header.tensors.items() if name not in explained}
    found = []
    for names in list_row_names("inside"):
        rows = find_rows(left, names) if left else ()
        if rows:
            found.append((names, rows))
            left = {name: info for name, info in left.items() if name not in {row.tensor for row in rows}}
    return Companions(tuple(found))
