"""Files that a picture or a prompt names, found in the store and among adopted files: by hash, else by name alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

from conceptry.digests import Digest
from conceptry.errors import ConceptryError
from conceptry.formats.picture_notes import Mention
from conceptry.registry.adopted_files import AdoptedFile, Collection
from conceptry.registry.listing import Filter
from conceptry.registry.places import CollectionLayout

if TYPE_CHECKING:
    from conceptry.registry.registry import Registry

How = Literal["hash", "name"]

MIN_HASH_CHARS: Final = 8
_AUTOV1_CHARS: Final = 8
_AUTOV1_START: Final = 0x100000
_AUTOV1_BYTES: Final = 0x10000
_NO_NAME: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What is here of a file that is named elsewhere; a name alone proves nothing."""

    reference: str
    """``ns/name@1.0.0`` of a version, ``ns/name`` of an adopted file that was never used."""

    how: How
    path: str | None = None
    """Where an adopted file lies."""


class Shelf:
    """The store and the adopted folders, asked for many files; what they hold is read once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def find(self, mention: Mention) -> tuple[Match, ...]:
        """Returns what is here of a file: all that has one of its hashes, else all that is called so."""
        found = [match for digits in mention.hashes for match in self._find_hash(digits)]
        if not found and mention.name:
            found = list(self.find_name(mention.name, mention.kind))
        return tuple(dict.fromkeys(found))

    def find_name(self, name: str, kind: str | None = None) -> Iterator[Match]:
        """Returns what is called so: ``ns/name``, a bare name, or the name of a file; of another kind, only files."""
        wanted = simplify(name)
        for row in self._registry.list():
            names = {simplify(row.concept_text), simplify(row.reference.concept.name)}
            if wanted in names and (kind not in ("lora", "embedding") or kind in row.kinds):
                yield Match(reference=row.text, how="name")
        for collection, file in self._files:
            stem = file.path.rpartition("/")[2].rpartition(".")[0]
            if wanted in (simplify(stem), file.name):
                yield _describe(collection, file, "name")

    def _find_hash(self, digits: str) -> Iterator[Match]:
        if len(digits) < MIN_HASH_CHARS:
            return
        for row in self._registry.find_hash(digits, Filter(all_versions=True)).rows:
            yield Match(reference=row.text, how="hash")
        for text in self._find_source(digits):
            yield Match(reference=text, how="hash")
        for collection, file in self._files:
            is_old = len(digits) == _AUTOV1_CHARS and _read_autov1(collection, file) == digits
            if is_old or file.has_hash(digits):
                yield _describe(collection, file, "hash")

    def _find_source(self, digits: str) -> Iterator[str]:
        return (text for source, text in self._sources if source.startswith(digits))

    @cached_property
    def _files(self) -> tuple[tuple[Collection, AdoptedFile], ...]:
        return tuple((one, file) for one in self._registry.adopted() for file in one.files)

    @cached_property
    def _sources(self) -> tuple[tuple[str, str], ...]:
        """The digests of the files that versions here were imported from."""
        found = []
        for row in self._registry.list(Filter(all_versions=True)):
            try:
                manifest = self._registry.manifest(row.reference)
            except ConceptryError:
                continue  # damaged or removed meanwhile: concepts verify says so
            sources = {build.provenance.imported_from for build in manifest.builds}
            found += [(source.hex, row.text) for source in sources if source is not None]
        return tuple(found)


def simplify(name: str) -> str:
    """Returns a name as concepts are called: the same for ``My LoRA.safetensors`` and ``my-lora``."""
    stem = re.sub(r"\.(safetensors|sft|ckpt|pt|pth|bin)$", "", name.replace("\\", "/").lower())
    return "/".join(_NO_NAME.sub("-", part).strip("-") for part in stem.split("/"))


def _describe(collection: Collection, file: AdoptedFile, how: How) -> Match:
    where = str(CollectionLayout(collection.folder).entry(file.path))
    return Match(reference=str(collection.name(file)), how=how, path=where)


def _read_autov1(collection: Collection, file: AdoptedFile) -> str | None:
    """Returns the first digits of SHA-256 over 64 KiB from 1 MiB on, by which A1111 once named checkpoints."""
    try:
        with CollectionLayout(collection.folder).entry(file.path).open("rb") as opened:
            opened.seek(_AUTOV1_START)
            return Digest.of_bytes(opened.read(_AUTOV1_BYTES)).hex[:_AUTOV1_CHARS]
    except (OSError, ConceptryError):
        return None
