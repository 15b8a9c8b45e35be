"""What importing a file of another program would make of it: read, checked, every doubt said, nothing written."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from conceptry.bases import FamilyId, find_family
from conceptry.digests import Digest
from conceptry.errors import IncompatibleError, InvalidNameError, MissingAnswerError, UsageError
from conceptry.formats.contract import Contents, Reading, ReadRequest
from conceptry.formats.embedding import EmbeddingContents
from conceptry.formats.hashing import PendingDigest
from conceptry.formats.header import Header
from conceptry.formats.identify import Identification
from conceptry.formats.import_bases import declare_base, settle_base
from conceptry.formats.import_sources import ImportSource, open_sources
from conceptry.formats.merging import merge_readings, split_contents
from conceptry.formats.rank_one import RankOneContents
from conceptry.manifest import Base, License, Token
from conceptry.names import ConceptName, Placeholder, Version, parse_placeholder

__all__ = ["ImportPlan", "ImportSettings", "declare_base", "plan_import", "refuse_invalid", "split_plan"]

_LICENSE_KEY: Final = "modelspec.license"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What the caller says about a file; what it does not say is taken from the file, or asked for by an error."""

    name: ConceptName
    version: Version
    placeholder: Placeholder | None = None
    row_placeholders: tuple[Placeholder, ...] = ()
    """A word for each row of an embedding, where each row is a token of its own (pivotal tuning)."""

    superclass: str | None = None
    base: Base | None = None
    """The base that it is for; ``declare_base(family)`` where only the family is known."""

    base_path: Path | None = None
    """Where its weights lie on this machine; only a whole model is compared with them."""

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
    pending_source: PendingDigest
    """The digest of the file, which is computed while the rest goes on."""

    notes: tuple[str, ...]
    """What had to be decided, in words, for the person who imports."""

    further_sources: tuple[Digest, ...] = ()
    """The other files, where one concept came in several."""

    @property
    def source(self) -> Digest:
        """The digest of the file that is imported. Raises StoreError if it could not be read to its end."""
        return self.pending_source.result()


@contextlib.contextmanager
def refuse_invalid() -> Iterator[None]:
    """Turns a value that no manifest may hold into UsageError."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{first['msg']} (got {str(first.get('input'))[:80]!r})", where=where) from error


def plan_import(paths: Path | Sequence[Path], settings: ImportSettings) -> ImportPlan:
    """Returns what importing a file (or the files of one concept) would make, read and checked; nothing is written.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: if one is not sound, of no kind that is stored, or a tensor would be lost (it is named).
        IncompatibleError: if one is for another family than the caller declares, or several are no one concept.
        UsageError: if the word or the base can neither be known nor was said.
    """
    with open_sources((paths,) if isinstance(paths, Path) else tuple(paths)) as sources:
        pending = PendingDigest(sources[0].digest)
        base, base_notes = settle_base(sources, settings.base)
        family = FamilyId(base.family)
        readings = [(source.path.name, _read(source, settings, family)) for source in sources]
        reading = merge_readings(readings)
        _check_widths(reading, family)
        first = sources[0]
        _require_superclass(reading, settings, sources[0].path.name)
        with refuse_invalid():
            license, license_notes = _settle_license(first.header, settings.license)
            tokens = _list_tokens(reading, first.identification, settings)
        return ImportPlan(
            settings=settings,
            identification=first.identification,
            reading=reading,
            base=base,
            tokens=tokens,
            license=license,
            pending_source=pending,
            further_sources=tuple(source.digest() for source in sources[1:]),
            notes=(*base_notes, *reading.notes, *license_notes),
        )


def split_plan(plan: ImportPlan) -> tuple[ImportPlan, ...]:
    """Returns a plan for each concept of a file: its adapter by the given name, each word by that name and its own.

    Raises:
        UsageError: if a word makes no name.
    """
    groups = split_contents(plan.reading.contents)
    if len(groups) < 2:
        return (plan,)
    return tuple(_take_group(plan, word, contents) for word, contents in groups)


def _take_group(plan: ImportPlan, word: Placeholder | None, contents: tuple[Contents, ...]) -> ImportPlan:
    name = plan.settings.name
    if word is not None:
        slug = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
        name = ConceptName.parse(f"{name}-{slug}")
    parts = plan.reading.contents
    embedded = {one for part in parts if isinstance(part, EmbeddingContents) for _, one in part.rows}
    tokens = tuple(
        token
        for token in plan.tokens
        if token.placeholder == word or (word is None and token.placeholder not in embedded)
    )
    return dataclasses.replace(
        plan,
        settings=dataclasses.replace(plan.settings, name=name),
        reading=dataclasses.replace(plan.reading, contents=contents),
        tokens=tokens,
    )


def _read(source: ImportSource, settings: ImportSettings, family: FamilyId) -> Reading:
    request = ReadRequest(
        path=source.readable,
        header=source.header,
        origin=source.path,
        placeholder=settings.placeholder,
        row_placeholders=settings.row_placeholders,
        family=family,
        base=settings.base_path,
    )
    return source.row.read(request) if source.row.read else Reading(contents=())


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
        if not isinstance(contents, (EmbeddingContents, RankOneContents)):
            continue
        for (component, word), tensor in contents.rows.items():
            width = encoders.get(component)
            if width != tensor.shape[-1]:
                raise IncompatibleError(
                    f"the rows of {word} are {tensor.shape[-1]} wide, {component} of {family} is {width}",
                    hint="name the family the file was made for",
                )


def _require_superclass(reading: Reading, settings: ImportSettings, name: str) -> None:
    if settings.superclass is None and any(isinstance(one, RankOneContents) for one in reading.contents):
        raise MissingAnswerError(
            f"{name!r} does not say which ordinary word the keys of its edit are locked to",
            option="superclass",
            hint="add --superclass WORD, such as creature",
        )


def _list_tokens(
    reading: Reading, identification: Identification, settings: ImportSettings
) -> tuple[Token, ...]:
    tokens: dict[str, Token] = {}
    for contents in reading.contents:
        if isinstance(contents, (EmbeddingContents, RankOneContents)):
            for (_, word), tensor in contents.rows.items():
                vectors = tensor.shape[-2]
                tokens[word] = Token(placeholder=word, vectors=vectors, superclass=settings.superclass)
    plain = [one for one in reading.contents if not isinstance(one, EmbeddingContents)]
    said = settings.placeholder
    if tokens:
        if plain and said is not None and said not in tokens:
            tokens[said] = Token(placeholder=said, superclass=settings.superclass)
        return tuple(tokens.values())
    if settings.row_placeholders:
        raise UsageError(
            "several words are given, and the file has no rows for them", hint="give one --placeholder"
        )
    if said is not None:
        return (Token(placeholder=said, superclass=settings.superclass),)
    return tuple(Token(placeholder=word, role="optional") for word in _parse_words(identification.triggers))


def _parse_words(words: tuple[str, ...]) -> Iterator[Placeholder]:
    for word in words:
        try:
            yield parse_placeholder(word)
        except InvalidNameError:
            continue
