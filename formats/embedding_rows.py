"""Rows of the token embedding inside files of other programs: whose word, which encoder, which layer each tensor is."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from conceptry.bases import ComponentName, FamilyId, find_family
from conceptry.errors import InvalidFileError, InvalidNameError, MissingAnswerError, UsageError
from conceptry.formats.data_files import load_table
from conceptry.formats.embedding import EmbeddingContents, check_embedding
from conceptry.formats.header import TensorInfo
from conceptry.formats.tensors import FLOAT_DTYPES, RawTensor
from conceptry.names import Placeholder, parse_placeholder

Layering = Literal["names", "numbers", "stacked"]
# What stands where a file names no word: A1111 writes a star, a bare tensor of a pickle has no name at all.
_ANONYMOUS: Final = frozenset({"*", "tensor"})
_BY_WIDTH: Final = "width"
# A prompt has 77 tokens; a larger matrix is something else (the covariance of an encoder is 768 x 768).
_MOST_VECTORS: Final = 256


@dataclass(frozen=True, slots=True)
class RowNames:
    """One row of data/embeddings.toml: the names of tensors that hold rows."""

    id: str
    title: str
    names: tuple[tuple[re.Pattern[str], str], ...]
    others: tuple[tuple[re.Pattern[str], str], ...]
    family: FamilyId | None
    also: tuple[str, ...]
    n_tokens: bool
    layers: Layering | None
    single: bool = False
    several: bool = False


@dataclass(frozen=True, slots=True)
class WordRows:
    """One tensor of rows: its word (None where the file does not say), its encoder or ``width``, its layer."""

    tensor: str
    word: str | None
    component: str
    layer: int | None = None


@functools.cache
def list_row_names(section: Literal["dialects", "inside"]) -> tuple[RowNames, ...]:
    """Returns the rows of a section of the data file, in its order."""
    return tuple(_make(id, row) for id, row in load_table("embeddings")[section].items())


def _make(id: str, row: Mapping[str, Any]) -> RowNames:
    def compile_(key: str) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple((re.compile(pattern, re.ASCII), word) for pattern, word in row.get(key, ()))

    return RowNames(
        id=id,
        title=row["title"],
        names=compile_("names"),
        others=compile_("others"),
        family=FamilyId(row["family"]) if "family" in row else None,
        also=tuple(row.get("also", ())),
        n_tokens=row.get("rows") == "n_tokens",
        layers=row.get("layers"),
        single=row.get("single", False),
        several=row.get("several", False),
    )


@functools.cache
def list_layers() -> tuple[str, ...]:
    """Returns the modules of SD1's sixteen cross-attention layers, in the order in which a picture passes them."""
    return tuple(module for _, module in load_table("embeddings")["layers"]["order"])


@functools.cache
def _number_layers() -> Mapping[str, int]:
    return {name: number for number, (name, _) in enumerate(load_table("embeddings")["layers"]["order"])}


@dataclass(frozen=True, slots=True)
class Width:
    """The encoder that rows of some width most often belong to."""

    family: FamilyId
    component: ComponentName
    confidence: float


@functools.cache
def list_widths() -> Mapping[int, Width]:
    """Returns the widths of the text encoders that are known."""
    return {
        int(width): Width(FamilyId(family), ComponentName(component), confidence)
        for width, (family, component, confidence) in load_table("embeddings")["widths"].items()
    }


# --- which tensors are rows? ---------------------------------------------------------------------------------------


def find_rows(tensors: Mapping[str, TensorInfo], names: RowNames) -> tuple[WordRows, ...]:
    """Returns the tensors that hold rows by these names; none where a name that must be there is not."""
    found: list[WordRows] = []
    for pattern, component in names.names:
        matches = [
            (name, match)
            for name, info in tensors.items()
            if (match := pattern.search(name)) and are_rows(info)
        ]
        if not matches:
            return ()
        found += (_describe(match, name, component, names) for name, match in matches)
    rows = tuple(found)
    return rows if _fits(rows, tensors, names) else ()


def _describe(match: re.Match[str], name: str, component: str, names: RowNames) -> WordRows:
    groups = match.groupdict()
    word, layer = groups.get("word"), groups.get("layer")
    number = None
    if layer is not None:
        number = int(layer) if layer.isdigit() else _number_layers()[layer]
    return name_rows(name, word, component, number)


def name_rows(
    tensor: str, word: str | None, component: str = _BY_WIDTH, layer: int | None = None
) -> WordRows:
    """Returns a tensor's rows under their word; a star is no word."""
    return WordRows(tensor, None if word in _ANONYMOUS else word, component, layer)


def _fits(rows: Sequence[WordRows], tensors: Mapping[str, TensorInfo], names: RowNames) -> bool:
    if (names.single and len(rows) != 1) or (names.several and len(rows) < 2):
        return False
    if names.family is not None and not _have_widths(rows, tensors, names.family):
        return False
    count = len(list_layers())
    if names.layers == "stacked":
        return all(tensors[row.tensor].shape[0] == count for row in rows)
    if names.layers is not None:
        words: dict[str | None, set[int | None]] = {}
        for row in rows:
            words.setdefault(row.word, set()).add(row.layer)
        return all(layers == set(range(count)) for layers in words.values())
    by_word: dict[str | None, set[int]] = {}
    for row in rows:
        by_word.setdefault(row.word, set()).add(count_rows(tensors[row.tensor].shape))
    return all(len(counts) == 1 for counts in by_word.values())


def _have_widths(rows: Sequence[WordRows], tensors: Mapping[str, TensorInfo], family: FamilyId) -> bool:
    widths = dict(find_family(family).text_encoders)
    return all(tensors[row.tensor].shape[-1] == widths.get(ComponentName(row.component)) for row in rows)


def are_rows(info: TensorInfo) -> bool:
    """Returns whether a tensor has the shape of one or more rows of numbers."""
    is_table = len(info.shape) in (1, 2) and min(info.shape) > 0 and count_rows(info.shape) <= _MOST_VECTORS
    return is_table and info.dtype in FLOAT_DTYPES


def count_rows(shape: tuple[int, ...]) -> int:
    """Returns how many rows a tensor of this shape holds."""
    return shape[0] if len(shape) == 2 else 1


def describe_rows(shape: tuple[int, ...]) -> str:
    """Returns the role of a tensor of rows in words."""
    return f"{count_rows(shape)} token vectors of width {shape[-1]}"


# --- what do they hold? --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What the caller says about words: one for the file, or one for each row."""

    placeholder: Placeholder | None = None
    row_placeholders: tuple[Placeholder, ...] = ()
    file_name: str
    family: FamilyId | None = None
    own_name: str | None = None
    """What the file calls itself; a hint, as A1111 listens to the file's name."""


def gather_rows(
    tensors: Mapping[str, RawTensor], rows: Sequence[WordRows], names: RowNames, words: Words
) -> EmbeddingContents:
    """Returns the canonical rows that tensors hold, under the words of the file or those that the caller gives.

    Raises:
        UsageError: if the file does not say which word calls it and the caller does not either.
        InvalidFileError: if no text encoder has the width of the rows, or a value is not finite.
    """
    renamed = _choose_words(rows, words, names, tensors)
    gathered: dict[tuple[ComponentName, Placeholder], RawTensor] = {}
    for group in _group(rows, tensors, words.family).items():
        (component, word), members = group
        matrix = _join(members, tensors, names)
        for placeholder, part in _cut(matrix, renamed[word], names):
            key = (component, placeholder)
            if key in gathered:
                raise InvalidFileError(f"two tensors hold rows of {placeholder} for {component}")
            gathered[key] = part
    contents = EmbeddingContents(rows=gathered, layers=list_layers() if names.layers else None)
    check_embedding(contents)
    return contents


def _group(
    rows: Iterable[WordRows], tensors: Mapping[str, RawTensor], family: FamilyId | None
) -> dict[tuple[ComponentName, str | None], list[WordRows]]:
    groups: dict[tuple[ComponentName, str | None], list[WordRows]] = {}
    for row in rows:
        component = _place(row.component, tensors[row.tensor].shape[-1], family)
        groups.setdefault((component, row.word), []).append(row)
    return groups


def _place(component: str, width: int, family: FamilyId | None) -> ComponentName:
    """Returns the text encoder that rows of this width belong to. Raises InvalidFileError where none has it."""
    if component != _BY_WIDTH:
        return ComponentName(component)
    if family is not None:
        encoders = find_family(family).text_encoders
        match = next((name for name, size in encoders if size == width), None)
    else:
        known = list_widths().get(width)
        match = known.component if known else None
    if match is None:
        raise InvalidFileError(f"no text encoder{f' of {family}' if family else ''} has the width {width}")
    return match


def _choose_words(
    rows: Sequence[WordRows], words: Words, names: RowNames, tensors: Mapping[str, RawTensor]
) -> dict[str | None, tuple[Placeholder, ...]]:
    found = tuple(dict.fromkeys(row.word for row in rows))
    if words.row_placeholders:
        return {found[0]: _match_rows(rows, words, tensors)}
    if words.placeholder is not None and len(found) == 1 and not names.n_tokens:
        return {found[0]: (words.placeholder,)}
    if names.n_tokens:
        count = count_rows(tensors[rows[0].tensor].shape)
        stem = words.placeholder
        numbered = tuple(Placeholder(f"<s{number}>") for number in range(count))
        return {found[0]: numbered if stem is None or count > 1 else (stem,)}
    return {word: (_parse_word(word, words),) for word in found}


def _match_rows(
    rows: Sequence[WordRows], words: Words, tensors: Mapping[str, RawTensor]
) -> tuple[Placeholder, ...]:
    counts = {count_rows(tensors[row.tensor].shape) for row in rows}
    if len({row.word for row in rows}) > 1 or counts != {len(words.row_placeholders)}:
        raise UsageError(
            f"{len(words.row_placeholders)} words are given, {words.file_name!r} has {max(counts)} rows",
            hint="give one --placeholder for all rows, or one for each row",
        )
    return words.row_placeholders


def _parse_word(word: str | None, words: Words) -> Placeholder:
    if word is None:
        hint = f" ({words.own_name!r} is the name in the file)" if words.own_name else ""
        raise MissingAnswerError(
            f"{words.file_name!r} does not say which word calls the concept",
            option="placeholder",
            hint=f"add --placeholder '<word>'{hint}",
        )
    try:
        return parse_placeholder(word)
    except InvalidNameError as error:
        raise UsageError(
            f"the word of the file is no placeholder: {error.message}", hint=error.hint
        ) from error


def _join(members: Sequence[WordRows], tensors: Mapping[str, RawTensor], names: RowNames) -> RawTensor:
    """Returns [vectors, width], or [layers, vectors, width] of the per-layer forms."""
    first = tensors[members[0].tensor]
    if names.layers is None:
        return first.reshape((count_rows(first.shape), first.shape[-1]))
    if names.layers == "stacked":
        return first.reshape((first.shape[0], 1, first.shape[-1]))
    ordered = [tensors[row.tensor] for row in sorted(members, key=lambda row: row.layer or 0)]
    if len({(one.dtype, one.shape) for one in ordered}) != 1:
        raise InvalidFileError(f"the layers of {members[0].word or 'the word'} differ in shape or precision")
    data = b"".join(bytes(one.data) for one in ordered)
    return RawTensor(first.dtype, (len(ordered), count_rows(first.shape), first.shape[-1]), data)


def _cut(
    matrix: RawTensor, words: tuple[Placeholder, ...], names: RowNames
) -> Iterable[tuple[Placeholder, RawTensor]]:
    if len(words) == 1 and not (names.n_tokens and matrix.shape[0] > 1):
        return [(words[0], matrix)]
    size = len(matrix.data) // matrix.shape[0]
    data = bytes(matrix.data)
    shape = (1, *matrix.shape[1:])
    return [
        (word, RawTensor(matrix.dtype, shape, data[at * size : (at + 1) * size]))
        for at, word in enumerate(words)
    ]
