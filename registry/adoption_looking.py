"""What one model of an adopted folder is: listed with what lies beside it, told by its header and those notes.

A file whose size, inode and times are as they were is not opened again.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, InvalidNameError
from conceptry.formats.sidecar_reading import MAX_SIDECAR_BYTES, PREVIEW_ENDS, READERS, Claims, read_sidecars
from conceptry.registry.adopted_files import AdoptedFile
from conceptry.registry.events import Meter, ignore_event
from conceptry.registry.file_reading import look_at, names_in, open_regular, read_small_file
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import CollectionLayout

if TYPE_CHECKING:
    import os

    from conceptry.formats.identify import Identification

MODEL_ENDS: Final = (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model file as the folder lists it, and the names beside it."""

    path: str
    status: os.stat_result
    beside: Mapping[str, os.stat_result]

    @property
    def stamp(self) -> tuple[int, ...]:
        """What tells that it was not changed."""
        return make_stamp(self.status)


def make_stamp(status: os.stat_result) -> tuple[int, ...]:
    """Returns what tells that a file was not changed: size, inode, times."""
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


# --- listing ---------------------------------------------------------------------------------------------------------


def iter_models(place: CollectionLayout, below: str, skipped: list[tuple[str, str]]) -> Iterator[FoundModel]:
    """Yields the models of a folder and of those below, in order of path; links are not followed."""
    entries: dict[str, os.stat_result] = {}
    for name in names_in(place.entry(below)):
        path = f"{below}/{name}" if below else name
        try:
            path.encode("utf-8")
            status = look_at(place.entry(path))
        except (InvalidNameError, UnicodeEncodeError):
            skipped.append((path.encode("utf-8", "replace").decode(), "its name is no text"))
            continue
        if status is not None and not name.startswith("."):
            entries[name] = status
    for name, status in entries.items():
        path = f"{below}/{name}" if below else name
        is_model = name.lower().endswith(MODEL_ENDS)
        if stat.S_ISDIR(status.st_mode):
            yield from iter_models(place, path, skipped)
        elif is_model and stat.S_ISREG(status.st_mode):
            yield FoundModel(path, status, dict(_iter_beside(name, entries)))
        elif is_model:
            skipped.append((path, "a link, or no regular file: adopt the folder that it leads to"))


def _iter_beside(name: str, entries: Mapping[str, os.stat_result]) -> Iterator[tuple[str, os.stat_result]]:
    stem = name.rpartition(".")[0]
    for end in (*(row.suffix for row in READERS), *PREVIEW_ENDS):
        status = entries.get(stem + end)
        if status is not None and stat.S_ISREG(status.st_mode):
            yield stem + end, status


# --- looking ---------------------------------------------------------------------------------------------------------


def look_at_model(
    place: CollectionLayout, found: FoundModel, known: AdoptedFile | None, meter: Meter
) -> AdoptedFile:
    """Returns what is known of a file: nothing is read where nothing changed, the notes alone where only they did."""
    count = meter.start(found.path)
    count(found.status.st_size)
    beside = tuple(
        (name, status.st_size, status.st_mtime_ns) for name, status in sorted(found.beside.items())
    )
    same = known is not None and known.stamp == found.stamp
    if known is not None and same and known.beside == beside:
        return replace(known, missing=False) if known.missing else known
    blank = AdoptedFile(path=found.path, name=known.name if known else "", stamp=found.stamp, beside=beside)
    claims, faults = _read_beside(place, found)
    try:
        looked = _describe(place, blank, claims, faults)
    except ConceptryError as error:
        looked = replace(blank, fault=error.message)
    if known is None:
        return looked
    looked = replace(looked, made=known.made, known_as=known.known_as)
    return replace(looked, sha256=known.sha256, data_sha256=known.data_sha256) if same else looked


def _read_beside(place: CollectionLayout, found: FoundModel) -> tuple[Claims, tuple[str, ...]]:
    stem, notes, faults = found.path.rpartition(".")[0], {}, []
    for row in READERS:
        if f"{stem}{row.suffix}".rpartition("/")[2] in found.beside:
            try:
                data = read_small_file(place.entry(stem + row.suffix), MAX_SIDECAR_BYTES)
            except ConceptryError as error:
                faults.append(error.message)
                continue
            notes.update({} if data is None else {row.id: data})
    claims, more = read_sidecars(notes)
    return claims, (*faults, *more)


def _describe(
    place: CollectionLayout, blank: AdoptedFile, claims: Claims, faults: tuple[str, ...]
) -> AdoptedFile:
    """Returns a file as its header and the notes beside it describe it. Raises InvalidFileError, StoreError."""
    from conceptry.formats.conversion import read_any_header
    from conceptry.formats.identify import identify_header

    path = place.entry(blank.path)
    header = read_any_header(path)
    found = identify_header(header)
    with explain_os_errors("read", path), open_regular(path) as file:
        mark = Digest.of_bytes(file.read(header.data_start)).hex
    family = found.family if found.family_is_certain else claims.family or found.family
    said = {
        "base": claims.base,
        "model_id": claims.model_id,
        "version_id": claims.version_id,
        "hashes": dict(claims.hashes),
        "description": claims.description,
    }
    disagreement = _find_disagreement(found, claims)
    return replace(
        blank,
        header=mark,
        kind=found.kind,
        dialect=found.dialect,
        family=family,
        stored=found.stored,
        words=claims.triggers or found.triggers,
        title=claims.title,
        claims={key: value for key, value in said.items() if value},
        preview=next((name for name, _, _ in blank.beside if name.lower().endswith(PREVIEW_ENDS)), None),
        doubts=tuple(_iter_doubts(blank.path, found, claims, family)) if found.stored else (),
        remarks=(*faults, *disagreement),
    )


def _find_disagreement(found: Identification, claims: Claims) -> tuple[str, ...]:
    if not found.family_is_certain or claims.family in (None, found.family):
        return ()
    return (f"the notes beside it say {claims.base!r}, its shapes are those of {found.family}",)


def _iter_doubts(
    path: str, found: Identification, claims: Claims, family: str | None
) -> Iterator[tuple[str, str, str]]:
    if not found.family_is_certain and claims.family is None:
        because = f": {found.reasons[-1]}" if found.reasons else ""
        yield "base", family or "", f"the shapes fit no single family, nothing beside it says one{because}"
    elif _find_disagreement(found, claims) or (
        not found.family_is_certain and found.family not in (None, claims.family)
    ):
        reason = f"the notes beside it say {claims.base!r}, its shapes pass for {found.family}"
        yield "base", family or "", reason
    words = claims.triggers or found.triggers
    if found.kind == "embedding" and not words:
        stem = path.rpartition("/")[2].rpartition(".")[0].strip()
        yield (
            "placeholder",
            stem[:64],
            "no word is said in it or beside it: A1111 calls it by its file's name",
        )
    elif found.kind == "embedding" and len(claims.triggers) > 1:
        listed = ", ".join(claims.triggers)
        yield "placeholder", claims.triggers[0], f"several words are said beside it: {listed[:200]}"


def look_again(place: CollectionLayout, file: AdoptedFile) -> AdoptedFile:
    """Returns one file as it lies there now, its bytes not hashed; missing where it is gone. Raises StoreError."""
    folder, _, name = file.path.rpartition("/")
    below = {
        entry: look_at(place.entry(f"{folder}/{entry}" if folder else entry))
        for entry in names_in(place.entry(folder))
    }
    status = below.get(name)
    if status is None:
        return replace(file, missing=True)
    beside = dict(_iter_beside(name, {entry: one for entry, one in below.items() if one is not None}))
    looked = look_at_model(
        place, FoundModel(file.path, status, beside), file, Meter("check", 0, ignore_event)
    )
    return replace(looked, answers=file.answers)
