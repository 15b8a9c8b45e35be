"""Reading everything again: each reference, manifest and blob, and what is wrong with it, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IntegrityError, InvalidDigestError, StoreError
from conceptry.manifest import File, Manifest
from conceptry.names import ConceptName, Reference, Tag
from conceptry.registry.blobs import has_blob, is_intact
from conceptry.registry.checks import forget_check
from conceptry.registry.events import Meter, OnEvent, ignore_event
from conceptry.registry.file_reading import digest_file, look_at, names_in
from conceptry.registry.index import rebuild_index
from conceptry.registry.manifests import iter_places, read_manifest
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved, list_names, list_versions, read_version
from conceptry.registry.store import Store
from conceptry.registry.tags import list_tags, read_tag

Fault = Literal["reference", "manifest", "missing", "size", "bytes", "tag", "stray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong: what, where in the store, and which file of which concept it is."""

    fault: Fault
    path: str
    """Where in the store, as seen from its root."""

    message: str
    reference: Reference | None = None
    file: str | None = None
    place: str | None = None
    """Where in the manifest (``builds[0].parts[0].files[2]``)."""

    digest: Digest | None = None
    """What the bytes of the blob should have."""

    tag: tuple[ConceptName, Tag] | None = None
    """The tag whose last move is damaged, or leads nowhere."""


def verify_store(
    store: Store,
    only: Reference | None = None,
    *,
    repair_index: bool = True,
    on_event: OnEvent = ignore_event,
) -> tuple[Finding, ...]:
    """Returns everything that is wrong, in order of name; see ``Registry.verify``. Only the index is repaired."""
    layout = store.layout
    findings: list[Finding] = []
    manifests: dict[Reference, Manifest] = {}
    for reference in [only] if only else _list_references(layout):
        finding = _check_reference(layout, reference, manifests)
        findings += [finding] if finding else []
    findings += _check_members(layout, manifests, on_event)
    if only is None:
        findings += _check_tags(layout)
        findings += _check_strays(layout, manifests)
        with contextlib.suppress(StoreError):
            if store.exists and repair_index:
                rebuild_index(store)
    return tuple(findings)


def raise_first(findings: tuple[Finding, ...]) -> None:
    """Raises IntegrityError for the first finding, with the number of all."""
    if findings:
        first = findings[0]
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise IntegrityError(
            f"{first.message}{more}",
            where=first.place or first.path,
            hint="publish or pull it again, which puts the right bytes back",
        )


def _list_references(layout: Layout) -> Iterator[Reference]:
    for name in list_names(layout):
        for version in list_versions(layout, name):
            yield Reference(name, version)


def _check_reference(
    layout: Layout, reference: Reference, manifests: dict[Reference, Manifest]
) -> Finding | None:
    name, version = reference.concept, reference.version
    if version is None:
        return None
    path = layout.describe(layout.version(name, version))
    try:
        ref = read_version(layout, name, version)
    except IntegrityError as error:
        return Finding(fault="reference", path=path, message=error.message, reference=reference)
    if ref is None:
        return None
    try:
        manifests[reference] = read_manifest(layout, Resolved(reference, ref.digest))
    except ConceptryError as error:
        path = layout.describe(layout.manifest(ref.digest))
        return Finding(
            fault="manifest", path=path, message=error.message, reference=reference, place=error.where
        )
    return None


def _check_members(
    layout: Layout, manifests: dict[Reference, Manifest], on_event: OnEvent
) -> Iterator[Finding]:
    sizes = {file.sha256: file.size for manifest in manifests.values() for file in manifest.iter_files()}
    meter = Meter("check", sum(sizes.values()), on_event)
    faults: dict[Digest, Fault | None] = {}
    for reference, manifest in manifests.items():
        for place, file in iter_places(manifest):
            if file.sha256 not in faults:
                faults[file.sha256] = _check_blob(layout, file)
                meter.start(f"{reference} {file.path}")(file.size)
            fault = faults[file.sha256]
            if fault is not None:
                yield _describe_member(layout, reference, place, file, fault)


def _check_blob(layout: Layout, file: File) -> Fault | None:
    if look_at(layout.blob(file.sha256)) is None:
        return "missing"
    if not has_blob(layout, file.sha256, file.size):
        return "size"
    try:
        if is_intact(layout, file.sha256, file.size):
            return None
    except StoreError:
        pass  # what cannot be read is not there for anybody who needs it
    forget_check(layout, file.sha256)
    return "bytes"


def _describe_member(layout: Layout, reference: Reference, place: str, file: File, fault: Fault) -> Finding:
    reasons: dict[Fault, str] = {
        "missing": "is missing",
        "size": f"does not have its {file.size} bytes",
        "bytes": "has other bytes than when it was published",
    }
    return Finding(
        fault=fault,
        path=layout.describe(layout.blob(file.sha256)),
        message=f"{reference}: the file {file.path!r} {reasons[fault]}",
        reference=reference,
        file=file.path,
        place=place,
        digest=file.sha256,
    )


def _check_tags(layout: Layout) -> Iterator[Finding]:
    for name in list_names(layout):
        for tag in list_tags(layout, name):
            finding = _check_tag(layout, name, tag)
            if finding is not None:
                yield finding


def _check_tag(layout: Layout, name: ConceptName, tag: Tag) -> Finding | None:
    path = layout.describe(layout.tag(name, tag))
    try:
        move = read_tag(layout, name, tag)
    except IntegrityError as error:
        return Finding(fault="tag", path=path, message=error.message, tag=(name, tag))
    if move is None or read_version(layout, name, move.version) is not None:
        return None
    message = f"the tag {name}:{tag} points to {move.version}, which is not here"
    return Finding(fault="tag", path=path, message=message, tag=(name, tag))


def _check_strays(layout: Layout, manifests: dict[Reference, Manifest]) -> Iterator[Finding]:
    """Blobs that no version names are nobody's loss, but their bytes must be right too: somebody may pull them next."""
    known = {file.sha256.hex for manifest in manifests.values() for file in manifest.iter_files()}
    for name in names_in(layout.blobs):
        if name in known:
            continue
        try:
            digest = Digest(name)
        except InvalidDigestError:
            yield Finding(
                fault="stray", path=layout.describe(layout.blobs), message=f"{name[:80]!r} is no blob's name"
            )
            continue
        with explain_os_errors("read", layout.blob(digest)):
            found, _ = digest_file(layout.blob(digest))
        if found != digest:
            path = layout.describe(layout.blob(digest))
            yield Finding(
                fault="stray",
                path=path,
                message=f"a blob that no version names has digest {found}",
                digest=digest,
            )
