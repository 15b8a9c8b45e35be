"""Textual inversion files of other programs as rows of FORMATS: what they are, and their canonical form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from conceptry.bases import FamilyId
from conceptry.errors import InvalidFileError
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest
from conceptry.formats.embedding_rows import (
    RowNames,
    WordRows,
    Words,
    are_rows,
    describe_rows,
    find_rows,
    gather_rows,
    list_row_names,
    list_widths,
    name_rows,
)
from conceptry.formats.families import CERTAIN_WEIGHT, judge_claims
from conceptry.formats.header import Header
from conceptry.formats.suffixes import split_suffix
from conceptry.formats.tensors import read_tensors
from conceptry.formats.triggers import find_own_name, find_phrase, find_triggers
from conceptry.names import parse_placeholder

_NAMED_CONFIDENCE: Final = 0.95
_SHARED_CONFIDENCE: Final = 0.85
_UNKNOWN_CONFIDENCE: Final = 0.2
_SINGLE: Final = RowNames("diffusers", "", (), (), None, (), False, None, single=True)


def list_embedding_formats() -> tuple[Format, ...]:
    """Returns one row for each set of tensor names of the data file, and one for files whose tensor is the word."""
    named = tuple(
        Format(
            id=f"embedding_{names.id}",
            kind="embedding",
            title=f"textual inversion, {names.title}",
            detect=partial(detect_named, names=names),
            read=partial(read_named, names=names),
            stored_kind="embedding",
        )
        for names in list_row_names("dialects")
    )
    single = Format(
        id="embedding_diffusers",
        kind="embedding",
        title="textual inversion, diffusers (one tensor, named by its word)",
        detect=detect_single,
        read=read_single,
        stored_kind="embedding",
    )
    return (*named, single)


# --- what is it? ---------------------------------------------------------------------------------------------------


def detect_named(header: Header, *, names: RowNames) -> Detection | None:
    """Returns what a file with the names of a row is, or None where one is missing or has no rows of numbers."""
    rows = find_rows(header.tensors, names)
    if not rows:
        return None
    others = {
        name: role
        for name in header.tensors
        for pattern, role in names.others
        if pattern.search(name) and name not in {row.tensor for row in rows}
    }
    return _judge(header, rows, names, others)


def detect_single(header: Header) -> Detection | None:
    """Returns what a file with one tensor of one or more rows is: diffusers' own form, named by its word."""
    if len(header.tensors) != 1:
        return None
    name, info = next(iter(header.tensors.items()))
    is_weight = name.rpartition(".")[2] in ("weight", "bias")
    if not are_rows(info) or info.shape[-1] not in list_widths() or split_suffix(name) or is_weight:
        return None
    return _judge(header, (name_rows(name, name),), _SINGLE, {})


def _judge(header: Header, rows: Sequence[WordRows], names: RowNames, others: Mapping[str, str]) -> Detection:
    widths = sorted({header.tensors[row.tensor].shape[-1] for row in rows})
    family, confidence, reasons, also = _find_family(names, widths)
    claimed = judge_claims(header.metadata, family, confidence, also)
    roles = {row.tensor: describe_rows(header.tensors[row.tensor].shape) for row in rows} | dict(others)
    words = [row.word for row in rows if row.word]
    return Detection(
        roles=roles,
        confidence=(claimed.confidence or _UNKNOWN_CONFIDENCE) * len(roles) / len(header.tensors),
        family=claimed.family,
        family_is_certain=family is not None and confidence >= CERTAIN_WEIGHT,
        reasons=(*reasons, *claimed.reasons),
        triggers=tuple(dict.fromkeys((*words, *find_triggers(header.metadata)))),
    )


def _find_family(
    names: RowNames, widths: Sequence[int]
) -> tuple[FamilyId | None, float, list[str], tuple[str, ...]]:
    listed = " and ".join(map(str, widths))
    if names.family is not None:
        reasons = [f"vectors of width {listed} under names of {names.family}"]
        reasons += [f"{other} has these encoders too" for other in names.also]
        confidence = _SHARED_CONFIDENCE if names.also else _NAMED_CONFIDENCE
        return names.family, confidence, reasons, names.also
    known = list_widths().get(widths[-1])
    if known is None:
        return None, 0.0, [f"vectors of width {listed}"], ()
    reasons = [
        f"vectors of width {listed}",
        f"{widths[-1]} is the width of {known.component} in {known.family}",
    ]
    if known.component == "text_encoder_2" and len(widths) == 1:
        reasons.append(
            f"this is one half of a {known.family} pair; the half for text_encoder is in another file"
        )
    if widths == [768]:
        reasons.append("unsure: sd1 shares this text encoder with sdxl, sd3 and flux")
        return known.family, known.confidence, reasons, ("sdxl", "sd3", "flux")
    also = {4096: ("sd3", "wan"), 1280: ("sd3", "sdxl_refiner")}.get(widths[-1], ())
    reasons += [f"unsure: {other} has an encoder of this width too" for other in also]
    return known.family, known.confidence, reasons, also


# --- what does it hold? --------------------------------------------------------------------------------------------


def read_named(request: ReadRequest, *, names: RowNames) -> Reading:
    """Returns the rows under the words of the file, or under those that the caller gives.

    Raises:
        UsageError: if neither the file nor the caller says which word calls the concept.
        InvalidFileError: if a tensor would be lost, or no text encoder has the width of the rows.
    """
    return _read(request, find_rows(request.header.tensors, names), names)


def read_single(request: ReadRequest) -> Reading:
    """Returns the rows under the caller's placeholder, or the word that names the tensor.

    Raises:
        UsageError, InvalidFileError: as ``read_named``.
    """
    name = next(iter(request.header.tensors))
    return _read(request, (name_rows(name, name),), _SINGLE)


def _read(request: ReadRequest, rows: Sequence[WordRows], names: RowNames) -> Reading:
    refuse_others(request, {row.tensor for row in rows}, names)
    tensors = read_tensors(request.path, [row.tensor for row in rows])
    words, noted = _take_phrase(words_of(request), rows, request.header.metadata)
    contents = gather_rows(tensors, rows, names, words)
    listed = ", ".join(dict.fromkeys(word for _, word in contents.rows))
    several = any(tensor.shape[-2] > 1 for tensor in contents.rows.values())
    note = f"all rows belong to the one word {listed}" if several else f"one row for each of: {listed}"
    spelled = tuple(dict.fromkeys(row.word for row in rows if row.word))
    return Reading(contents=(contents,), notes=(*noted, note), words=spelled)


def _take_phrase(
    words: Words, rows: Sequence[WordRows], metadata: Mapping[str, str]
) -> tuple[Words, tuple[str, ...]]:
    """Returns ``words`` with what metadata calls the concept, where neither the names nor the caller say it."""
    phrase = find_phrase(metadata)
    said = words.placeholder or words.row_placeholders or any(row.word for row in rows)
    if said or phrase is None:
        return dataclasses.replace(words, own_name=find_own_name(metadata)), ()
    return (
        dataclasses.replace(words, placeholder=parse_placeholder(phrase)),
        (f"the word is {phrase}, the trigger phrase of the file's metadata",),
    )


def words_of(request: ReadRequest) -> Words:
    """Returns what the caller of a request says about words."""
    return Words(
        placeholder=request.placeholder,
        row_placeholders=request.row_placeholders,
        file_name=request.name,
        family=request.family,
    )


def refuse_others(request: ReadRequest, kept: set[str], names: RowNames) -> None:
    """Raises InvalidFileError for the first tensor that would be lost, with its role."""
    further = sorted(request.header.tensors.keys() - kept)
    if not further:
        return
    role = next((role for pattern, role in names.others if pattern.search(further[0])), None)
    what = f"holds {role}, which no stored kind has" if role else "has a role that is not known"
    raise InvalidFileError(
        f"{len(further)} of {len(request.header.tensors)} tensors of {request.name!r} would be lost: "
        f"{further[0]!r} {what}",
        hint=f"concepts identify {request.name} lists them",
    )
