"""Which base imported files are for: what the caller declares, what the files tell, and every doubt in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conceptry.bases import FAMILIES, FamilyId, find_family
from conceptry.errors import IncompatibleError, MissingAnswerError
from conceptry.formats.import_sources import ImportSource
from conceptry.manifest import Base

_PREDICTION_KEY: Final = "modelspec.prediction_type"
_PREDICTIONS: Final = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}


def declare_base(family: str, *, prediction_type: str | None = None) -> Base:
    """Returns the base of a file of which only the family is known: no fingerprints. Raises NotFoundError."""
    row = find_family(family)
    return Base.model_validate(
        {
            "family": row.id,
            "architecture": row.architecture,
            "prediction_type": prediction_type or row.prediction_type,
        }
    )


def settle_base(sources: Sequence[ImportSource], declared: Base | None) -> tuple[Base, tuple[str, ...]]:
    """Returns the base that all files are for, and what had to be decided.

    Raises:
        IncompatibleError: if a file is for another family than the caller declares, or than another file.
        MissingAnswerError: if the caller declares none and the files do not tell.
    """
    if declared is not None:
        notes = [note for source in sources for note in _check_declared(source, declared)]
        return declared, tuple(notes)
    family = _find_common(sources)
    first = sources[0]
    prediction = _PREDICTIONS.get(first.header.metadata.get(_PREDICTION_KEY, "").lower())
    known = min(source.identification.confidence for source in sources)
    reasons = "; ".join(first.identification.reasons)
    note = f"taken for {family} (confidence {known:.2f}): {reasons}"
    return declare_base(family, prediction_type=prediction), (note,)


def _check_declared(source: ImportSource, declared: Base) -> tuple[str, ...]:
    seen = source.identification.family
    if seen is None or seen == declared.family:
        return ()
    if source.identification.family_is_certain:
        raise IncompatibleError(
            f"{source.path.name!r} is for {seen}, not for {declared.family}: {source.identification.reasons[-1]}",
            hint=f"add --base {seen}",
        )
    return (f"declared for {declared.family}; by itself the file would pass for {seen}",)


def _find_common(sources: Sequence[ImportSource]) -> FamilyId:
    """Returns the family that all files fit: the one that is certain, else the one whose encoders have all widths."""
    known = {source.identification.family for source in sources} - {None}
    certain = {source.identification.family for source in sources if source.identification.family_is_certain}
    if len(certain) > 1:
        names = ", ".join(f"{source.path.name} for {source.identification.family}" for source in sources)
        raise IncompatibleError(f"the files are no one concept: {names}", hint="import each by itself")
    for found in (certain, known):
        if len(found) == 1:
            (family,) = found
            return FamilyId(str(family))
    if not known:
        raise MissingAnswerError(
            f"{sources[0].path.name!r} does not tell which base it is for",
            option="base",
            hint="add --base FAMILY, such as sd1",
        )
    widths = {info.shape[-1] for source in sources for info in source.header.tensors.values() if info.shape}
    fitting = [row.id for row in FAMILIES if widths <= {width for _, width in row.text_encoders}]
    if fitting:
        return fitting[0]
    raise MissingAnswerError(
        f"the files pass for {', '.join(sorted(map(str, known)))}",
        option="base",
        hint="add --base FAMILY, such as sdxl",
    )
