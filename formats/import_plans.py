"""What importing a file of another program would make of it: read, checked, every doubt said, nothing written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from conceptry.bases import FamilyId, find_family
from conceptry.digests import Digest
from conceptry.errors import IncompatibleError, InvalidFileError, InvalidNameError, UsageError
from conceptry.formats.contract import Format, Reading, ReadRequest
from conceptry.formats.conversion import as_safetensors
from conceptry.formats.embedding import EmbeddingContents
from conceptry.formats.header import Header, read_header
from conceptry.formats.identify import Identification, find_format, identify_header
from conceptry.kinds import KindId
from conceptry.manifest import Base, License, Token
from conceptry.names import ConceptName, Placeholder, Version, parse_placeholder

IMPORTED_KINDS: Final[frozenset[KindId]] = frozenset({"embedding", "lora"})
_LICENSE_KEY: Final = "modelspec.license"
_PREDICTION_KEY: Final = "modelspec.prediction_type"
_PREDICTIONS: Final = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What the caller says about a file; what it does not say is taken from the file, or asked for by an error."""

    name: ConceptName
    version: Version
    placeholder: Placeholder | None = None
    superclass: str | None = None
    base: Base | None = None
    """The base that it is for; ``declare_base(family)`` where only the family is known."""

    license: str | None = None
    """SPDX id."""

    title: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPlan:
    """All that a file holds, read and checked; nothing is written yet."""

    settings: ImportSettings
    identification: Identification
    reading: Reading
    base: Base
    tokens: tuple[Token, ...]
    license: License
    source: Digest
    notes: tuple[str, ...]
    """What had to be decided, in words, for the person who imports."""


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


@contextlib.contextmanager
def refuse_invalid() -> Iterator[None]:
    """Turns a value that no manifest may hold into UsageError."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{first['msg']} (got {str(first.get('input'))[:80]!r})", where=where) from error


def plan_import(path: Path, settings: ImportSettings) -> ImportPlan:
    """Returns what importing ``path`` would make, read and checked; nothing is written.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: if it is not sound, of no kind that is stored, or a tensor would be lost (it is named).
        IncompatibleError: if it is for another family than the caller declares.
        UsageError: if the word or the base can neither be known nor was said.
    """
    with as_safetensors(path) as readable:
        return _plan(path, readable, settings)


def _plan(path: Path, readable: Path, settings: ImportSettings) -> ImportPlan:
    """Returns the plan for the file at ``path``, whose tensors are read from ``readable``."""
    header = read_header(readable)
    identification = identify_header(header)
    row = _choose_row(path, header, identification)
    base, base_notes = _settle_base(path, header, identification, settings.base)
    family = FamilyId(base.family)
    request = ReadRequest(path=readable, header=header, placeholder=settings.placeholder, family=family)
    reading = row.read(request) if row.read else Reading(contents=())
    _check_widths(reading, family)
    with refuse_invalid():
        license, license_notes = _settle_license(header, settings.license)
        tokens = _list_tokens(reading, identification, settings)
    return ImportPlan(
        settings=settings,
        identification=identification,
        reading=reading,
        base=base,
        tokens=tokens,
        license=license,
        source=Digest.of_file(path),
        notes=(*base_notes, *reading.notes, *license_notes),
    )


def _choose_row(path: Path, header: Header, identification: Identification) -> Format:
    found = find_format(header)
    if found is None or found[0].read is None:
        raise InvalidFileError(
            f"{path.name!r} is {identification.title}; {identification.reasons[0]}",
            hint=f"concepts identify {path.name} says what is known of it",
        )
    if found[0].stored_kind not in IMPORTED_KINDS:
        raise UsageError(
            f"{path.name!r} is a file of kind {identification.kind!r}, which means nothing without its concept.json",
            hint="concepts publish FOLDER takes the folder that holds both",
        )
    return found[0]


def _settle_base(
    path: Path, header: Header, identification: Identification, declared: Base | None
) -> tuple[Base, tuple[str, ...]]:
    seen = identification.family
    if declared is not None:
        if seen is None or seen == declared.family:
            return declared, ()
        if identification.family_is_certain:
            raise IncompatibleError(
                f"{path.name!r} is for {seen}, not for {declared.family}: {identification.reasons[-1]}",
                hint=f"add --base {seen}",
            )
        return declared, (f"declared for {declared.family}; by itself the file would pass for {seen}",)
    if seen is None:
        raise UsageError(
            f"{path.name!r} does not tell which base it is for", hint="add --base FAMILY, such as sd1"
        )
    prediction = _PREDICTIONS.get(header.metadata.get(_PREDICTION_KEY, "").lower())
    note = (
        f"taken for {seen} (confidence {identification.confidence:.2f}): {'; '.join(identification.reasons)}"
    )
    return declare_base(seen, prediction_type=prediction), (note,)


def _settle_license(header: Header, given: str | None) -> tuple[License, tuple[str, ...]]:
    if given is not None:
        return License(spdx=given, source="said at import"), ()
    stated = header.metadata.get(_LICENSE_KEY, "").strip()
    if stated:
        return License(name=stated[:200], source=f"{_LICENSE_KEY} in the file"), ()
    return License(), ("the file states no licence",)


def _check_widths(reading: Reading, family: FamilyId) -> None:
    encoders = dict(find_family(family).text_encoders)
    for contents in reading.contents:
        if not isinstance(contents, EmbeddingContents):
            continue
        for (component, word), tensor in contents.rows.items():
            width = encoders.get(component)
            if width != tensor.shape[-1]:
                raise IncompatibleError(
                    f"the rows of {word} are {tensor.shape[-1]} wide, {component} of {family} is {width}",
                    hint="name the family the file was made for",
                )


def _list_tokens(
    reading: Reading, identification: Identification, settings: ImportSettings
) -> tuple[Token, ...]:
    tokens: dict[str, Token] = {}
    for contents in reading.contents:
        if isinstance(contents, EmbeddingContents):
            for (_, word), tensor in contents.rows.items():
                vectors = tensor.shape[-2]
                tokens[word] = Token(placeholder=word, vectors=vectors, superclass=settings.superclass)
    if tokens:
        return tuple(tokens.values())
    if settings.placeholder is not None:
        return (Token(placeholder=settings.placeholder, superclass=settings.superclass),)
    return tuple(Token(placeholder=word, role="optional") for word in _parse_words(identification.triggers))


def _parse_words(words: tuple[str, ...]) -> Iterator[Placeholder]:
    for word in words:
        try:
            yield parse_placeholder(word)
        except InvalidNameError:
            continue
