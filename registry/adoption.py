"""Adopting a folder: what each model in it is, by its header and the notes beside it; nothing is copied or changed.

A file whose size, inode and times are as they were is not opened again. A file that is gone stays known as missing,
and is found again where it was moved to.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, InvalidNameError, NotFoundError
from conceptry.formats.sidecar_reading import MAX_SIDECAR_BYTES, PREVIEW_ENDS, READERS, Claims, read_sidecars
from conceptry.names import ConceptName, parse_namespace
from conceptry.registry.adopted_files import (
    AdoptedFile,
    Collection,
    read_collection,
    read_collections,
    write_collection,
)
from conceptry.registry.adoption_answers import Answers, add_doubts, read_answers
from conceptry.registry.events import Meter, OnEvent, ignore_event
from conceptry.registry.files import (
    explain_os_errors,
    is_folder,
    look_at,
    names_in,
    open_regular,
    read_small_file,
)
from conceptry.registry.paths import CollectionLayout, Layout
from conceptry.registry.store import Store

if TYPE_CHECKING:
    import os

    from conceptry.formats.identify import Identification

DEFAULT_NAMESPACE: Final = "adopted"
MODEL_ENDS: Final = (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt")
_MAX_NAME_CHARS: Final = 56
_SLUG: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What adopting a folder found; files in order of path."""

    collection: Collection
    added: int
    changed: int
    moved: int
    skipped: tuple[tuple[str, str], ...]
    """What has no place in a collection (links, names that are no text), and why."""

    answers: Path
    new_doubts: int

    @property
    def failed(self) -> tuple[AdoptedFile, ...]:
        """The files that are no sound models."""
        return tuple(file for file in self.collection.files if file.state == "unreadable")


@dataclass(frozen=True, slots=True)
class _Found:
    """A model file as the folder lists it, and the names beside it."""

    path: str
    status: os.stat_result
    beside: Mapping[str, os.stat_result]

    @property
    def stamp(self) -> tuple[int, ...]:
        return make_stamp(self.status)


def make_stamp(status: os.stat_result) -> tuple[int, ...]:
    """Returns what tells that a file was not changed: size, inode, times."""
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def adopt_collection(
    store: Store,
    folder: Path,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    on_event: OnEvent = ignore_event,
) -> Adoption:
    """Returns what a folder holds, which the store knows from now on; its files stay where they are.

    Raises:
        NotFoundError: if there is no such folder.
        UsageError: if its ``adopt.toml`` is malformed.
        StoreError: if the store or ``adopt.toml`` cannot be written.
    """
    place = CollectionLayout(folder.expanduser().absolute())
    if not is_folder(place.root):
        raise NotFoundError(f"no folder {str(folder)!r}", hint="name the folder that holds the models")
    known = read_collection(store.layout, place.root)
    collection = known or Collection(folder=place.root, namespace=parse_namespace(namespace))
    answers = read_answers(place)
    skipped: list[tuple[str, str]] = []
    found = list(_iter_models(place, "", skipped))
    old = {file.path: file for file in collection.files}
    meter = Meter("check", sum(one.status.st_size for one in found), on_event)
    looked = [_look(place, one, old.get(one.path), meter) for one in found]
    files, moved = _follow_moves(looked, old)
    named = _give_names(store.layout, collection, files)
    answered = [replace(file, answers=answers.find(file)) for file in named]
    result = Collection(folder=place.root, namespace=collection.namespace, files=tuple(answered))
    new_doubts, result = _settle_doubts(place, answers, result)
    write_collection(store, result)
    return Adoption(
        collection=result,
        added=sum(file.path not in old for file in looked) - moved,
        changed=sum(file.path in old and file.stamp != old[file.path].stamp for file in looked),
        moved=moved,
        skipped=tuple(skipped),
        answers=place.answers,
        new_doubts=new_doubts,
    )


def _settle_doubts(
    place: CollectionLayout, answers: Answers, collection: Collection
) -> tuple[int, Collection]:
    present = [file for file in collection.files if file.state not in ("missing", "unreadable", "recognised")]
    count = add_doubts(place, answers, present)
    if not count:
        return 0, collection
    written = read_answers(place)
    files = tuple(replace(file, answers=written.find(file)) for file in collection.files)
    return count, replace(collection, files=files)


# --- listing ---------------------------------------------------------------------------------------------------------


def _iter_models(place: CollectionLayout, below: str, skipped: list[tuple[str, str]]) -> Iterator[_Found]:
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
            yield from _iter_models(place, path, skipped)
        elif is_model and stat.S_ISREG(status.st_mode):
            yield _Found(path, status, dict(_iter_beside(name, entries)))
        elif is_model:
            skipped.append((path, "a link, or no regular file: adopt the folder that it leads to"))


def _iter_beside(name: str, entries: Mapping[str, os.stat_result]) -> Iterator[tuple[str, os.stat_result]]:
    stem = name.rpartition(".")[0]
    for end in (*(row.suffix for row in READERS), *PREVIEW_ENDS):
        status = entries.get(stem + end)
        if status is not None and stat.S_ISREG(status.st_mode):
            yield stem + end, status


# --- looking ---------------------------------------------------------------------------------------------------------


def _look(place: CollectionLayout, found: _Found, known: AdoptedFile | None, meter: Meter) -> AdoptedFile:
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


def _read_beside(place: CollectionLayout, found: _Found) -> tuple[Claims, tuple[str, ...]]:
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
    looked = _look(place, _Found(file.path, status, beside), file, Meter("check", 0, ignore_event))
    return replace(looked, answers=file.answers)


# --- moves and names -------------------------------------------------------------------------------------------------


def _follow_moves(looked: list[AdoptedFile], old: Mapping[str, AdoptedFile]) -> tuple[list[AdoptedFile], int]:
    """Returns the files with what was known of those that moved, the missing ones among them, and how many moved."""
    present = {file.path for file in looked}
    gone = [file for path, file in old.items() if path not in present]
    new = [file for file in looked if file.path not in old]
    moved: dict[str, AdoptedFile] = {}
    for key in (_key_by_inode, _key_by_header):
        left = [file for file in new if file.path not in {one.path for one in moved.values()}]
        sources = _unique(key, [file for file in gone if file.path not in moved])
        for mark, target in _unique(key, left).items():
            source = sources.get(mark)
            # Bytes that were hashed are the same where the file itself moved; elsewhere they are hashed again.
            if source is not None and (key is _key_by_inode or source.sha256 is None):
                moved[source.path] = replace(
                    target,
                    name=source.name,
                    known_as=source.known_as or source.path,
                    sha256=source.sha256,
                    data_sha256=source.data_sha256,
                    made=source.made,
                )
    by_path = {file.path: file for file in moved.values()}
    missing = [replace(file, missing=True) for file in gone if file.path not in moved]
    return [*(by_path.get(file.path, file) for file in looked), *missing], len(moved)


def _unique(
    key: Callable[[AdoptedFile], tuple[object, ...]], files: list[AdoptedFile]
) -> dict[tuple[object, ...], AdoptedFile]:
    """Returns the files by their keys, without those that share one."""
    found: dict[tuple[object, ...], list[AdoptedFile]] = {}
    for file in files:
        found.setdefault(key(file), []).append(file)
    return {mark: same[0] for mark, same in found.items() if len(same) == 1}


def _key_by_inode(file: AdoptedFile) -> tuple[object, ...]:
    return file.stamp[:3]


def _key_by_header(file: AdoptedFile) -> tuple[object, ...]:
    return file.size_bytes, file.header or file.path


def _give_names(layout: Layout, collection: Collection, files: list[AdoptedFile]) -> list[AdoptedFile]:
    """Returns the files, each with the name it had, else one made of its file's name that nothing has."""
    others = [one for one in read_collections(layout) if one.folder != collection.folder]
    taken = {file.name for one in others if one.namespace == collection.namespace for file in one.files}
    taken |= {file.name for file in files}
    named = []
    for file in sorted(files, key=lambda file: file.path):
        name = file.name or _draw_name(layout, collection.namespace, file, taken)
        taken.add(name)
        named.append(replace(file, name=name))
    return named


def _draw_name(layout: Layout, namespace: str, file: AdoptedFile, taken: set[str]) -> str:
    stem = file.path.rpartition("/")[2].rpartition(".")[0]
    slug = _SLUG.sub("-", stem.lower())[:_MAX_NAME_CHARS].strip("-") or "file"
    number = 1
    while True:
        text = slug if number == 1 else f"{slug}-{number}"
        number += 1
        try:
            name = ConceptName(namespace, text)
        except InvalidNameError:  # a device name on Windows
            slug = f"file-{slug}"
            continue
        if text not in taken and not is_folder(layout.versions(name)):
            return text
