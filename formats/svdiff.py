"""SVDiff (arXiv 2303.11305): shifts of the singular values of weights, made into new weights beside their base.

A module's weight W, seen as a matrix with one row for each output, is U diag(s) V^T; a file holds ``{module}.delta``,
one number for each singular value, and means U diag(relu(s + delta)) V^T (mkshing/svdiff-pytorch). The sign of a pair
of singular vectors does not matter, and their order is that of falling s; only where two values are nearly equal does
the outcome depend on the library, which is measured and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from conceptry.bases import ComponentName
from conceptry.errors import IncompatibleError, InvalidFileError, UsageError
from conceptry.formats.checkpoints import Model
from conceptry.formats.companions import find_companions
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.families import Seen, judge_family
from conceptry.formats.full import FullContents, check_full
from conceptry.formats.header import Header
from conceptry.formats.module_names import find_layout
from conceptry.formats.tensors import RawTensor, read_tensors
from conceptry.formats.triggers import find_triggers

if TYPE_CHECKING:
    import numpy as np

_SHIFT: Final = re.compile(r"^(?:(?:unet|text_encoder)\.)?(.+?)(?:\.weight)?\.delta$", re.ASCII)
_SINGLE: Final = 2.0**-24
_WORTH_SAYING: Final = 1e-3

_Shifts = Mapping[str, tuple[ComponentName, str]]
"""Tensor -> component and module."""


def list_svdiff_formats() -> tuple[Format, ...]:
    """Returns the one row for spectral shifts."""
    row = Format(
        id="full_svdiff",
        kind="full",
        title="SVDiff, shifts of singular values",
        detect=detect_svdiff,
        read=read_svdiff,
        stored_kind="full",
    )
    return (row,)


def detect_svdiff(header: Header) -> Detection | None:
    """Returns what a file of spectral shifts is, or None where it has none."""
    shifts = dict(_find_shifts(header))
    if not shifts:
        return None
    verdict = judge_family(
        (Seen(f"{component}.{module}", None) for component, module in shifts.values()), header.metadata
    )
    companions = find_companions(header, shifts.keys())
    roles = {
        tensor: f"shift of the singular values of {component}.{module}"
        for tensor, (component, module) in shifts.items()
    } | dict(companions.describe(header))
    return Detection(
        roles=roles,
        confidence=share_of(roles, len(header.tensors)) * (verdict.confidence or 0.5),
        family=verdict.family,
        family_is_certain=verdict.certain,
        reasons=(
            f"{len(shifts)} names are of SVDiff; it is kept as new weights, for which the base is needed",
            *verdict.reasons,
        ),
        triggers=tuple(dict.fromkeys((*companions.words, *find_triggers(header.metadata)))),
    )


def _find_shifts(header: Header) -> Iterator[tuple[str, tuple[ComponentName, str]]]:
    for tensor, info in header.tensors.items():
        match = _SHIFT.match(tensor) if len(info.shape) == 1 else None
        layout = find_layout(match.group(1)) if match else None
        if match and layout and layout.names == "diffusers":
            yield tensor, (layout.component, match.group(1))


def read_svdiff(request: ReadRequest) -> Reading:
    """Returns the new weights, one part a component, computed in float64 from those of the base, and words beside them.

    Raises:
        UsageError: if no base is given whose weights lie on this machine.
        IncompatibleError: if the base has no such weight, or one with another number of singular values.
        InvalidFileError: if a tensor would be lost or a value is not finite.
    """
    shifts = dict(_find_shifts(request.header))
    companions = find_companions(request.header, shifts.keys())
    lost = sorted(request.header.tensors.keys() - shifts.keys() - companions.tensors)
    if lost:
        raise InvalidFileError(
            f"{len(lost)} of {len(request.header.tensors)} tensors of {request.name!r} would be lost: {lost[0]!r}",
            hint=f"concepts identify {request.name} lists them",
        )
    if request.base is None:
        raise UsageError(
            f"{request.name!r} holds shifts of singular values, which mean something only beside their base",
            hint="add --base PATH, the folder or the checkpoint that it was trained on",
        )
    base, tensors = Model(request.base, request.family), read_tensors(request.path, shifts)
    changed: dict[ComponentName, dict[str, RawTensor]] = {}
    doubt = 0.0
    for tensor, (component, module) in shifts.items():
        weight = base.read(component, f"{module}.weight")
        shift = tensors[tensor].to_numpy()
        if weight is None or _count_values(weight.shape) != len(shift):
            found = "no such weight" if weight is None else f"{_count_values(weight.shape)} of them"
            raise IncompatibleError(
                f"{tensor!r} shifts {len(shift)} singular values, the base has {found}",
                hint="name the base it was trained on",
            )
        moved, unsure = shift_spectrum(weight.to_numpy(), shift)
        changed.setdefault(component, {})[f"{module}.weight"] = RawTensor.from_numpy(moved)
        doubt = max(doubt, unsure)
    parts = tuple(FullContents(component=one, tensors=changed[one]) for one in sorted(changed))
    for part in parts:
        check_full(part)
    return Reading(
        contents=(*parts, *companions.read(request)),
        notes=tuple(_list_notes(len(shifts), doubt)),
        total_tensors=sum(len(base.list_names(component)) for component in changed),
    )


def _list_notes(count: int, doubt: float) -> Iterator[str]:
    yield f"{count} weights were made of the base's singular vectors and the shifted values"
    if doubt > _WORTH_SAYING:
        yield f"of nearly equal singular values, up to {doubt:.1%} of a weight's change hangs on the trainer's library"


def _count_values(shape: tuple[int, ...]) -> int:
    rows, columns = _flatten(shape)
    return min(rows, columns)


def _flatten(shape: tuple[int, ...]) -> tuple[int, int]:
    """The weight of a norm is one row."""
    if len(shape) < 2:
        return 1, *shape, *(() if shape else (1,))
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def shift_spectrum(
    weight: np.ndarray[Any, Any], shift: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], float]:
    """Returns U diag(relu(s + shift)) V^T in float32, and how much of its change hangs on the library's vectors.

    Of two neighbouring values s_i, s_j single precision mixes the vectors by about eps s_0 / (s_i - s_j), and the
    outcome by that times the difference of their changes; the second value is relative to the norm of the change.
    """
    import numpy as np

    matrix = weight.astype(np.float64).reshape(_flatten(weight.shape))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    change = np.maximum(values + shift.astype(np.float64), 0.0) - values
    moved = matrix + (left * change) @ right
    gaps = np.maximum(values[:-1] - values[1:], np.finfo(np.float64).tiny)
    mixed = np.diff(change) * np.minimum(1.0, _SINGLE * values[:1] / gaps)
    size = float(np.linalg.norm(change))
    doubt = float(np.linalg.norm(mixed)) / size if size else 0.0
    return moved.astype(np.float32).reshape(weight.shape), doubt
