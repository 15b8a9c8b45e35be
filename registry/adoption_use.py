"""From an adopted file to a version that can be used: made of its bytes when it is first needed, and recorded.

The version is the canonical form under a generated manifest that is marked unpublished, as that of any foreign file.
The file stays where it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptry.digests import Digest, canonical_json
from conceptry.errors import (
    ConceptryError,
    IncompatibleError,
    IntegrityError,
    InvalidFileError,
    NotFoundError,
    UsageError,
)
from conceptry.names import LATEST, ConceptName, Reference, Version, parse_version
from conceptry.registry.adopted_files import (
    AdoptedFile,
    Collection,
    find_adopted,
    read_collection,
    replace_files,
    write_collection,
)
from conceptry.registry.blobs import ignore_bytes
from conceptry.registry.foreign import mark_unpublished, number_foreign
from conceptry.registry.operations import make_scratch
from conceptry.registry.paths import Layout
from conceptry.registry.places import CollectionLayout, locate_package, read_place
from conceptry.registry.refs import find_version, list_versions
from conceptry.registry.store import Store

if TYPE_CHECKING:
    from conceptry.formats.import_plans import ImportPlan, ImportSettings


def settle_adopted(store: Store, reference: Reference) -> Reference:
    """Returns the reference; that of an adopted file at the version of its bytes, which is made where it is not yet.

    Raises:
        UsageError: if the file is pending, or nothing tells its base or its word.
        NotFoundError: if the file is missing and was never used.
        InvalidFileError, IncompatibleError: if it is no model, or of a kind that is not stored.
    """
    if isinstance(reference.selector, Version | Digest) or reference.selector != LATEST:
        return reference
    found = find_adopted(store.layout, reference.concept)
    if found is None or found[1].state == "left_out":
        return reference
    collection, file = found
    version = _find_made(store.layout, collection, file)
    if version is None or (not file.missing and _has_changed(collection, file)):
        file = _refresh(store, collection, file)
        version = _find_made(store.layout, collection, file) or _make(store, collection, file)
    return reference.at(version)


def _find_made(layout: Layout, collection: Collection, file: AdoptedFile) -> Version | None:
    """Returns the version that was made of the file as it is described now, None where it is not in the store."""
    if file.made is None or file.made[0] != _sum_up(file):
        return None
    version = parse_version(file.made[1])
    return None if find_version(layout, collection.name(file), version) is None else version


def _has_changed(collection: Collection, file: AdoptedFile) -> bool:
    from conceptry.registry.adoption_hashing import is_unchanged

    return not is_unchanged(CollectionLayout(collection.folder), file)


def _refresh(store: Store, collection: Collection, file: AdoptedFile) -> AdoptedFile:
    """Returns the file as it lies there now, hashed again if it changed. Raises what says why it cannot be used."""
    from conceptry.registry.adoption_hashing import hash_file
    from conceptry.registry.adoption_looking import look_again

    name, layout = collection.name(file), CollectionLayout(collection.folder)
    _refuse_unusable(collection, file)
    if not _has_changed(collection, file):
        return file
    looked = look_again(layout, file)
    if looked.missing or looked.fault is not None:
        _refuse_unusable(collection, looked)
    fresh = hash_file(layout, looked, on_bytes=ignore_bytes)
    write_collection(store, replace_files(collection, [fresh]))
    if not fresh.stored:
        raise IncompatibleError(f"{name} is of kind {fresh.kind!r} now, which is not stored")
    return fresh


def _refuse_unusable(collection: Collection, file: AdoptedFile) -> None:
    name, again = collection.name(file), f"concepts adopt {collection.folder}"
    if file.missing:
        raise NotFoundError(
            f"{name} is missing: {file.path!r} does not lie in {str(collection.folder)!r} any more",
            hint=f"{again} finds it where it was moved to",
        )
    if file.fault is not None:
        raise InvalidFileError(f"{name} cannot be used: {file.fault}", hint="download it again")
    if not file.stored:
        raise IncompatibleError(
            f"{name} is of kind {file.kind!r}, which is not stored",
            hint="use it with the program that it was made for",
        )
    if file.sha256 is None:
        raise UsageError(f"{name} is pending: its bytes were never hashed", hint="concepts adopt --hash")


# --- making ----------------------------------------------------------------------------------------------------------


def _make(store: Store, collection: Collection, file: AdoptedFile) -> Version:
    """Returns the new version in the store."""
    from conceptry.formats.import_plans import plan_import
    from conceptry.formats.importing import write_import
    from conceptry.registry.adoption_previews import pack_preview
    from conceptry.registry.publish import publish_folder

    name, digest = collection.name(file), Digest(file.sha256 or "")
    version = _number(store.layout, name, digest)
    try:
        plan = plan_import(
            CollectionLayout(collection.folder).entry(file.path), _make_settings(name, version, file)
        )
        if plan.source != digest:
            raise IntegrityError(f"{file.path!r} changed while it was read", hint="try again")
        with make_scratch() as scratch:
            folder = locate_package(read_place(scratch))
            manifest = write_import(_add_words(plan, file), folder)
            manifest = pack_preview(manifest, folder, CollectionLayout(collection.folder), file)
            mark_unpublished(manifest, digest, folder)
            publish_folder(store, folder)
    except ConceptryError as error:
        raise _explain(error, collection, file) from error
    _remember(store, collection.folder, replace(file, made=(_sum_up(file), str(version))))
    return version


def _number(layout: Layout, name: ConceptName, digest: Digest) -> Version:
    """A file that changed is a later version, so that ranges and listings choose the present one."""
    known = [version.patch for version in list_versions(layout, name)]
    first = parse_version(number_foreign(digest))
    return first.replace(patch=max(known) + 1) if known else first


def _make_settings(name: ConceptName, version: Version, file: AdoptedFile) -> ImportSettings:
    from conceptry.formats.import_plans import ImportSettings, declare_base
    from conceptry.names import parse_placeholder

    said = file.answers
    word = said.get("placeholder") or (file.words[0] if len(file.words) == 1 else None)
    return ImportSettings(
        name=name,
        version=version,
        placeholder=parse_placeholder(word) if word else None,
        superclass=said.get("superclass") or None,
        base=declare_base(file.base) if file.base else None,
        license=said.get("license") or None,
        title=said.get("title") or file.title,
    )


def _add_words(plan: ImportPlan, file: AdoptedFile) -> ImportPlan:
    """Returns the plan with the words that are said beside an adapter, where the file has none of its own."""
    from conceptry.manifest import Token
    from conceptry.names import parse_placeholder

    own = plan.tokens and plan.identification.kind == "embedding"
    if own or file.answers.get("placeholder") or len(file.words) < 2:
        return plan
    tokens = tuple(Token(placeholder=parse_placeholder(word), role="optional") for word in file.words)
    return replace(plan, tokens=tokens)


def _sum_up(file: AdoptedFile) -> str:
    """Returns what tells whether a version was made of the same bytes and the same words."""
    said: dict[str, Any] = {key: value for key, value in file.answers.items() if value}
    return Digest.of_bytes(canonical_json([file.sha256, file.base, list(file.words), file.title, said])).short


def _remember(store: Store, folder: Path, file: AdoptedFile) -> None:
    current = read_collection(store.layout, folder)
    if current is not None:
        write_collection(store, replace_files(current, [file]))


def _explain(error: ConceptryError, collection: Collection, file: AdoptedFile) -> ConceptryError:
    """An answer that is missing has its place in ``adopt.toml``, not in an option of a command."""
    option = getattr(error, "option", None)
    if option is None:
        return error.inside(str(collection.name(file)))
    place = CollectionLayout(collection.folder).answers
    return UsageError(
        f"{collection.name(file)} cannot be used yet: {error.message}",
        hint=f"write {option} = ... for {file.path!r} into {place}, then: concepts adopt {collection.folder}",
    )
