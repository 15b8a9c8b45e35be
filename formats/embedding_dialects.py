"""Textual inversion files of other programs: which encoder each row belongs to, and under which word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from conceptry.bases import ComponentName, FamilyId, find_family
from conceptry.errors import InvalidFileError, InvalidNameError, UsageError
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest
from conceptry.formats.data_files import load_table
from conceptry.formats.embedding import EmbeddingContents, check_embedding
from conceptry.formats.families import CERTAIN_WEIGHT, judge_claims
from conceptry.formats.header import Header, TensorInfo
from conceptry.formats.lora_keys import split_suffix
from conceptry.formats.tensors import FLOAT_DTYPES, RawTensor, read_tensors
from conceptry.formats.triggers import find_triggers
from conceptry.names import Placeholder, parse_placeholder

_ANONYMOUS: Final = frozenset({"*"})
_PAIR_CONFIDENCE: Final = 0.85
# A prompt has 77 tokens; a larger matrix is something else (the covariance of an encoder is 768 x 768).
_MOST_VECTORS: Final = 256


@dataclass(frozen=True, slots=True)
class _Width:
    family: FamilyId
    component: ComponentName
    confidence: float


def _list_widths() -> dict[int, _Width]:
    return {
        int(width): _Width(FamilyId(family), ComponentName(component), confidence)
        for width, (family, component, confidence) in load_table("embeddings")["widths"].items()
    }


def list_embedding_formats() -> tuple[Format, ...]:
    """Returns one row for each set of tensor names of the data file, and one for files whose name is the word."""
    named = tuple(
        Format(
            id=f"embedding_{id}",
            kind="embedding",
            title=f"textual inversion, {row['title']}",
            detect=partial(detect_named, row=row),
            read=partial(read_named, row=row),
            stored_kind="embedding",
        )
        for id, row in load_table("embeddings").items()
        if id != "widths"
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


def detect_named(header: Header, *, row: Mapping[str, Any]) -> Detection | None:
    """Returns what a file with the names of ``row`` is, or None where one is missing or has no rows of numbers."""
    names: Mapping[str, str] = row["names"]
    if not names.keys() <= header.tensors.keys() or not all(
        _are_rows(header.tensors[name]) for name in names
    ):
        return None
    vectors = {_count_rows(header.tensors[name].shape) for name in names}
    if len(vectors) != 1:
        return None
    roles = {name: _describe(header.tensors[name].shape) for name in names}
    if len(names) == 1:
        return _judge(header, roles, header.tensors[next(iter(names))].shape[-1])
    family, widths = FamilyId("sdxl"), {name: header.tensors[name].shape[-1] for name in names}
    if not _fits_family(widths, names, family):
        return None
    reason = "two encoders of 768 and 1280: those of sdxl (sd3 has them too)"
    claimed = judge_claims(header.metadata, family, _PAIR_CONFIDENCE)
    return Detection(
        roles=roles,
        confidence=claimed.confidence * len(roles) / len(header.tensors),
        family=family,
        reasons=(reason, *claimed.reasons),
        triggers=find_triggers(header.metadata),
    )


def detect_single(header: Header) -> Detection | None:
    """Returns what a file with one tensor of one or more rows is: diffusers' own form, named by its word."""
    if len(header.tensors) != 1:
        return None
    name, info = next(iter(header.tensors.items()))
    if not _are_rows(info) or info.shape[-1] not in _list_widths() or split_suffix(name) or _is_weight(name):
        return None
    return _judge(header, {name: _describe(info.shape)}, info.shape[-1], prefer=name)


def _judge(header: Header, roles: dict[str, str], width: int, prefer: str | None = None) -> Detection:
    known = _list_widths().get(width)
    claimed = judge_claims(
        header.metadata, known.family if known else None, known.confidence if known else 0.0
    )
    reasons = [f"vectors of width {width}"]
    if known:
        reasons.append(f"{width} is the width of {known.component} in {known.family}")
    if known and known.component == "text_encoder_2":
        reasons.append("this is one half of an sdxl pair; the half for text_encoder is in another file")
    if width == 768:
        reasons.append("sd1 shares this text encoder with sdxl, sd3 and flux")
    words = (prefer,) if prefer and prefer not in _ANONYMOUS else ()
    return Detection(
        roles=roles,
        confidence=(claimed.confidence or 0.2) * len(roles) / len(header.tensors),
        family=claimed.family,
        family_is_certain=known is not None and known.confidence >= CERTAIN_WEIGHT,
        reasons=(*reasons, *claimed.reasons),
        triggers=tuple(dict.fromkeys((*words, *find_triggers(header.metadata)))),
    )


def _are_rows(info: TensorInfo) -> bool:
    is_table = len(info.shape) in (1, 2) and min(info.shape) > 0 and _count_rows(info.shape) <= _MOST_VECTORS
    return is_table and info.dtype in FLOAT_DTYPES


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] in ("weight", "bias")


def _count_rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 2 else 1


def _describe(shape: tuple[int, ...]) -> str:
    return f"{_count_rows(shape)} token vectors of width {shape[-1]}"


def _fits_family(widths: Mapping[str, int], names: Mapping[str, str], family: FamilyId) -> bool:
    encoders = dict(find_family(family).text_encoders)
    return all(encoders.get(ComponentName(names[name])) == width for name, width in widths.items())


# --- what does it hold? --------------------------------------------------------------------------------------------


def read_named(request: ReadRequest, *, row: Mapping[str, Any]) -> Reading:
    """Returns the rows under the caller's placeholder, or the word that metadata names.

    Raises:
        UsageError: if nobody says the placeholder; it is never guessed from the name of the file.
        InvalidFileError: if further tensors would be lost, or a rule is broken.
    """
    names: Mapping[str, str] = row["names"]
    word = _choose_word(request, find_triggers(request.header.metadata))
    return _read_rows(request, names, word)


def read_single(request: ReadRequest) -> Reading:
    """Returns the rows under the caller's placeholder, or the word that names the tensor.

    Raises:
        UsageError, InvalidFileError: as ``read_named``.
    """
    name = next(iter(request.header.tensors))
    word = _choose_word(request, () if name in _ANONYMOUS else (name,))
    return _read_rows(request, {name: "width"}, word)


def _choose_word(request: ReadRequest, found: tuple[str, ...]) -> Placeholder:
    if request.placeholder is not None:
        return request.placeholder
    if len(found) == 1:
        try:
            return parse_placeholder(found[0])
        except InvalidNameError as error:
            raise UsageError(
                f"the word of the file is no placeholder: {error.message}", hint=error.hint
            ) from error
    raise UsageError(
        f"{request.path.name!r} does not say which word calls the concept", hint="add --placeholder '<word>'"
    )


def _read_rows(request: ReadRequest, names: Mapping[str, str], word: Placeholder) -> Reading:
    further = sorted(request.header.tensors.keys() - names.keys())
    if further:
        raise InvalidFileError(
            f"{len(further)} of {len(request.header.tensors)} tensors of {request.path.name!r} would be lost: "
            f"{further[0]!r} has a role that is not known",
            hint=f"concepts identify {request.path.name} lists them",
        )
    tensors = read_tensors(request.path)
    rows = {
        (_place(component, tensors[name], request.family), word): _as_matrix(tensors[name])
        for name, component in names.items()
    }
    contents = EmbeddingContents(rows=rows)
    check_embedding(contents)
    return Reading(contents=(contents,), notes=(f"all rows belong to the one word {word}",))


def _place(component: str, tensor: RawTensor, family: FamilyId | None) -> ComponentName:
    """Returns the text encoder that rows of this width belong to. Raises InvalidFileError where none has it."""
    if component != "width":
        return ComponentName(component)
    width = tensor.shape[-1]
    if family is not None:
        encoders = find_family(family).text_encoders
        match = next((name for name, size in encoders if size == width), None)
    else:
        known = _list_widths().get(width)
        match = known.component if known else None
    if match is None:
        raise InvalidFileError(f"no text encoder{f' of {family}' if family else ''} has the width {width}")
    return match


def _as_matrix(tensor: RawTensor) -> RawTensor:
    if len(tensor.shape) == 2:
        return tensor
    return RawTensor(tensor.dtype, (1, *tensor.shape), tensor.data)
