"""What differs between two versions: fields of their manifests, tensors, and measured scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.bases import FamilyId
from conceptry.concepts import Concept
from conceptry.digests import Digest
from conceptry.errors import InvalidFileError, UsageError
from conceptry.formats.byte_planes import is_packed, open_planes
from conceptry.formats.full_files import unpack_values
from conceptry.formats.header import read_header
from conceptry.formats.packages import SAFETENSORS_TYPE
from conceptry.formats.tensors import FLOAT_DTYPES, RawTensor, read_tensors
from conceptry.manifest import File, Manifest, Part

if TYPE_CHECKING:
    import numpy as np

_CHUNK_VALUES: Final = 1 << 18
_LEFT_OUT: Final = frozenset({"files", "metrics"})
"""What a field of the manifest is not: files differ by their tensors, metrics by their values."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of the manifest; None on the side that does not have it."""

    place: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """One tensor that both have, with other values."""

    file: str
    tensor: str
    before: str
    """dtype and shape: ``F16 [4, 320]``."""

    after: str
    relative_change: float | None
    """Norm of the difference over the norm of the first, in float64; None where shapes differ or it is no number."""


@dataclass(frozen=True, slots=True)
class MetricChange:
    """One score; None on the side that does not have it."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """All that differs between two versions."""

    fields: tuple[FieldChange, ...]
    added_tensors: tuple[str, ...]
    """``build/path: name``, of the second alone."""

    removed_tensors: tuple[str, ...]
    changed_tensors: tuple[TensorChange, ...]
    equal_tensors: int
    files: tuple[FieldChange, ...]
    """Files that are no tensors, by digest."""

    unread: tuple[str, ...]
    """Why a file that is said to hold tensors was compared by its bytes."""

    metrics: tuple[MetricChange, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs but bytes that mean nothing (a file written in another order)."""
        tensors = self.added_tensors or self.removed_tensors or self.changed_tensors
        return not (self.fields or tensors or self.files or self.metrics)


def compare_concepts(
    first: Concept, second: Concept, find_base: Callable[[], Path | None] = lambda: None
) -> Difference:
    """Returns what differs from the first to the second.

    Args:
        first: a version.
        second: another one.
        find_base: is asked where the base's weights lie, if values are packed as differences to them and are not equal.

    Raises:
        UsageError: if the base is needed and is not there.
        IncompatibleError: if it is another one than the values were packed with.
    """
    before, after = _list_files(first), _list_files(second)
    added: list[str] = []
    removed: list[str] = []
    changed: list[TensorChange] = []
    others: list[FieldChange] = []
    unread: list[str] = []
    equal = 0
    for place in sorted({*before, *after}):
        one, two = before.get(place), after.get(place)
        if any(stored is not None and stored.file.media_type != SAFETENSORS_TYPE for stored in (one, two)):
            others += _compare_bytes(place, one, two)
            continue
        faults = [fault for stored in (one, two) if stored is not None and (fault := _find_fault(stored))]
        if faults:
            unread += faults
            others += _compare_bytes(place, one, two)
            continue
        values_one, values_two = _describe_values(one), _describe_values(two)
        removed += [f"{place}: {name}" for name in sorted(values_one.names - values_two.names)]
        added += [f"{place}: {name}" for name in sorted(values_two.names - values_one.names)]
        common = sorted(values_one.names & values_two.names)
        if one is None or two is None:
            continue
        if one.file.sha256 == two.file.sha256 or values_one.are(values_two):
            equal += len(common)
            continue
        pair = (
            _read_values(one, values_one, find_base, common),
            _read_values(two, values_two, find_base, common),
        )
        rows = list(_compare_tensors(place, *pair))
        changed += rows
        equal += len(common) - len(rows)
    return Difference(
        fields=tuple(_compare_fields(_flatten(first.manifest), _flatten(second.manifest))),
        added_tensors=tuple(added),
        removed_tensors=tuple(removed),
        changed_tensors=tuple(sorted(changed, key=_by_size_of_change)),
        equal_tensors=equal,
        files=tuple(others),
        unread=tuple(unread),
        metrics=tuple(_compare_metrics(_list_metrics(first.manifest), _list_metrics(second.manifest))),
    )


def measure_change(before: RawTensor, after: RawTensor) -> float | None:
    """Returns the norm of the difference over the norm of ``before``, in float64, in pieces; None if it is none.

    A tensor that was zero and is not has no relative change.
    """
    import numpy as np

    if before.shape != after.shape or not {before.dtype, after.dtype} <= FLOAT_DTYPES:
        return None
    difference = norm = 0.0
    for one, two in zip(_iter_values(before), _iter_values(after), strict=True):
        wide = one.astype(np.float64)
        difference += float(np.square(two.astype(np.float64) - wide).sum())
        norm += float(np.square(wide).sum())
    if difference == 0:
        return 0.0
    return math.sqrt(np.divide(difference, norm)) if norm > 0 and math.isfinite(difference) else None


def _iter_values(tensor: RawTensor) -> Iterator[np.ndarray[Any, Any]]:
    """The values in pieces of one number, so that tensors of other dtypes go along."""
    width = tensor.size_bytes // tensor.elements if tensor.elements else 1
    rest = b""
    for chunk in tensor.iter_chunks():
        rest += bytes(chunk)
        while len(rest) >= _CHUNK_VALUES * width:
            piece, rest = rest[: _CHUNK_VALUES * width], rest[_CHUNK_VALUES * width :]
            yield RawTensor(tensor.dtype, (_CHUNK_VALUES,), piece).to_numpy()
    if rest:
        yield RawTensor(tensor.dtype, (len(rest) // width,), rest).to_numpy()


def _compare_tensors(
    place: str, first: Mapping[str, RawTensor], second: Mapping[str, RawTensor]
) -> Iterator[TensorChange]:
    for name, before in sorted(first.items()):
        after = second[name]
        same_form = (before.dtype, before.shape) == (after.dtype, after.shape)
        if same_form and _have_same_bytes(before, after):
            continue
        yield TensorChange(
            file=place,
            tensor=name,
            before=f"{before.dtype} {list(before.shape)}",
            after=f"{after.dtype} {list(after.shape)}",
            relative_change=measure_change(before, after),
        )


def _have_same_bytes(one: RawTensor, two: RawTensor) -> bool:
    return all(bytes(a) == bytes(b) for a, b in zip(one.iter_chunks(), two.iter_chunks(), strict=True))


def _by_size_of_change(row: TensorChange) -> tuple[float, str, str]:
    change = math.inf if row.relative_change is None else row.relative_change
    return -change, row.file, row.tensor


# --- what is stored ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    """A file of a version."""

    path: Path
    file: File
    part: Part
    family: str
    concept: str


@dataclass(frozen=True, slots=True)
class _Values:
    """The tensors of a file by name; of a packed one, those that come out of it."""

    names: frozenset[str]
    packed: bool = False
    digest: Digest | None = None

    def are(self, other: _Values) -> bool:
        """Returns whether both are known to be the same values, of which one is stored as something else."""
        return (self.packed or other.packed) and self.digest is not None and self.digest == other.digest


def _list_files(concept: Concept) -> dict[str, _Stored]:
    return {
        f"{build.id}/{file.path}": _Stored(concept.locate(file), file, part, build.base.family, concept.label)
        for build in concept.manifest.builds
        for part in build.parts
        for file in part.files
    }


def _find_fault(stored: _Stored) -> str | None:
    """Returns why the tensors of a file cannot be named, None if they can."""
    try:
        read_header(stored.path)
    except InvalidFileError as error:
        said = error.message.replace(repr(stored.path.name), f"{stored.file.path!r} of {stored.concept}")
        return f"{said}: it is compared by its bytes"
    return None


def _describe_values(stored: _Stored | None) -> _Values:
    if stored is None:
        return _Values(frozenset())
    header = read_header(stored.path)
    if is_packed(header.metadata):
        planes = open_planes(stored.path)
        return _Values(frozenset(planes.rows), packed=True, digest=planes.tensors)
    return _Values(frozenset(header.tensors), digest=stored.file.tensor_sha256)


def _read_values(
    stored: _Stored, values: _Values, find_base: Callable[[], Path | None], names: list[str]
) -> Mapping[str, RawTensor]:
    if not values.packed:
        return read_tensors(stored.path, names)
    base = find_base()
    if base is None:
        raise UsageError(
            f"{stored.file.path!r} holds its values as a difference to a base that is not here",
            hint="add --base with the folder or the checkpoint that it was packed with",
        )
    contents = unpack_values(stored.path, stored.part.method, base, FamilyId(stored.family))
    return {name: contents.tensors[name] for name in names}


def _compare_bytes(place: str, one: _Stored | None, two: _Stored | None) -> list[FieldChange]:
    before, after = (None if stored is None else str(stored.file.sha256) for stored in (one, two))
    return [] if before == after else [FieldChange(place, before, after)]


def _flatten(manifest: Manifest) -> dict[str, Any]:
    document = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    builds = {build["id"]: build for build in document.pop("builds")}
    return dict(_iter_leaves({**document, "builds": builds}, ""))


def _iter_leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not (place.startswith("builds.") and key in _LEFT_OUT):
                yield from _iter_leaves(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _iter_leaves(item, f"{place}[{index}]")
    else:
        yield place, value


def _compare_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
    for place in sorted({*before, *after}):
        if before.get(place) != after.get(place):
            yield FieldChange(place, before.get(place), after.get(place))


def _list_metrics(manifest: Manifest) -> dict[str, float]:
    return {
        f"{build.id}: {metric.name} ({metric.protocol})": metric.value
        for build in manifest.builds
        for metric in build.metrics
    }


def _compare_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[MetricChange]:
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield MetricChange(name, before.get(name), after.get(name))
