"""A version of a concept whose full fine-tunes are packed as byte planes, or are plain again: a folder to publish."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.bases import ComponentName, FamilyId, Fingerprint, choose_probes
from conceptry.concepts import MANIFEST_NAME, Concept
from conceptry.digests import Digest, canonical_json
from conceptry.errors import ConceptryError, IncompatibleError, StoreError, UsageError
from conceptry.formats.byte_planes import is_packed, open_planes, write_planes
from conceptry.formats.checkpoints import Model
from conceptry.formats.full import read_full, write_full
from conceptry.formats.full_files import list_base_files, open_component, unpack_values
from conceptry.formats.header import read_header
from conceptry.formats.packages import describe_file
from conceptry.manifest import Build, File, Manifest, Packing, Part, parse_manifest
from conceptry.names import Version

DEFAULT_STEP: Final = 1.0
MAX_SOURCES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """What is to be made of a concept."""

    base: Path
    """The folder or the checkpoint with the base's weights."""

    version: Version | None = None
    """Of what is made; None takes the next patch release."""

    build: str | None = None
    step: float | None = None
    """The rounding of the difference, as a share of each tensor's root mean square; None keeps every bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repacked:
    """One file that was made, beside the one that it was made of."""

    component: ComponentName
    before: File
    after: File
    packing: Packing | None
    """None where the file holds the values themselves now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackResult:
    """The new version in its folder."""

    manifest: Manifest
    rows: tuple[Repacked, ...]
    warnings: tuple[str, ...]


def pack_concept(concept: Concept, request: PackRequest, folder: Path) -> PackResult:
    """Returns the next version of a concept, with the files of its full parts packed against a base.

    Every file is unpacked again before it counts; one that would not become smaller stays as it is. Measured scores go
    along where every bit is kept, and only there.

    Raises:
        UsageError: for an unknown build, or one without a plain full part.
        IncompatibleError: if the base is not the one that the concept was made for, or packing saves nothing.
        NotFoundError, InvalidFileError, StoreError: as reading and writing files.
    """
    build = _choose_build(concept, request.build, packed=False)
    warnings: list[str] = []
    rows: list[Repacked] = []
    for _, file in _iter_files(concept, build, packed=False):
        row, warning = _pack_file(concept, build, file, request, folder)
        rows += [row] if row else []
        warnings += [warning] if warning else []
    if not rows:
        raise IncompatibleError(
            f"packing makes no file of {concept.label} smaller", hint="keep it as it is, or add --lossy"
        )
    manifest = _write_version(concept, build, request, rows, folder)
    return PackResult(manifest=manifest, rows=tuple(rows), warnings=tuple(warnings))


def unpack_concept(concept: Concept, request: PackRequest, folder: Path) -> PackResult:
    """Returns the next version of a concept, with the values themselves in the files of its full parts again.

    Raises:
        UsageError: for an unknown build, or one without a packed part.
        IncompatibleError: if the base is not, bit for bit, the one that the files were packed with.
        IntegrityError: if a file is damaged.
        NotFoundError, InvalidFileError, StoreError: as reading and writing files.
    """
    build = _choose_build(concept, request.build, packed=True)
    rows: list[Repacked] = []
    for part, file in _iter_files(concept, build, packed=True):
        source = concept.locate(file)
        with _named(concept):
            contents = unpack_values(source, part.method, request.base, FamilyId(build.base.family))
        path = _prepare(folder, file)
        written = write_full(path, contents, open_planes(source).plain_metadata)
        after = describe_file(path, name=file.path, written=written)
        rows.append(Repacked(component=contents.component, before=file, after=after, packing=None))
    manifest = _write_version(concept, build, request, rows, folder)
    return PackResult(manifest=manifest, rows=tuple(rows), warnings=())


def _pack_file(
    concept: Concept, build: Build, file: File, request: PackRequest, folder: Path
) -> tuple[Repacked | None, str | None]:
    """Returns the packed file, None where it saves nothing, and what is to be said of it."""
    source = concept.locate(file)
    contents = read_full(source)
    component = contents.component
    with _named(concept):
        base = open_component(request.base, FamilyId(build.base.family), component)
        warning = _check_fingerprint(build, component, request.base)
        path = _prepare(folder, file)
        packed = write_planes(path, contents, base, read_header(source).metadata, step=request.step)
    planes = open_planes(path)
    planes.restore(planes.check_base(base))
    if packed.written.size_bytes >= file.size:
        path.unlink()
        return None, f"{file.path} stays as it is: packed it would take {packed.written.size_bytes} bytes"
    packing = Packing(
        component=component,
        base_files=tuple(map(Digest.of_file, list_base_files(request.base, component))),
        base_tensors=planes.base,
        tensors=planes.tensors,
        lossless=request.step is None,
        relative_error=packed.relative_error,
        greatest_error=packed.greatest_error,
    )
    after = describe_file(path, name=file.path, written=packed.written)
    return Repacked(component=component, before=file, after=after, packing=packing), warning


# --- which files ---------------------------------------------------------------------------------------------------


def _choose_build(concept: Concept, id: str | None, *, packed: bool) -> Build:
    builds = {build.id: build for build in concept.manifest.builds if id in (None, build.id)}
    if not builds:
        known = ", ".join(build.id for build in concept.manifest.builds)
        raise UsageError(f"{concept.label} has no build {id!r}", where="--build", hint=f"it has {known}")
    fitting = [build for build in builds.values() if any(_iter_files(concept, build, packed=packed))]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(build.id for build in fitting)
        raise UsageError(
            f"{concept.label} has {len(fitting)} builds that could be meant",
            hint=f"add --build with one of: {names}",
        )
    has_full = any("full" in build.kinds for build in builds.values())
    said = "plain" if packed else "packed already"
    kinds = " and ".join(concept.manifest.kinds)
    raise UsageError(
        f"{concept.label} is {said}"
        if has_full
        else f"{concept.label} is of kind {kinds}: only a full fine-tune is stored as a difference to its base",
        hint=f"concepts show {concept.label}",
    )


def _iter_files(concept: Concept, build: Build, *, packed: bool) -> Iterator[tuple[Part, File]]:
    """Returns the weights of the full parts that are packed, or those that are plain."""
    for part in build.parts:
        for file in part.files if part.kind == "full" else ():
            if file.role == "weights" and is_packed(read_header(concept.locate(file)).metadata) == packed:
                yield part, file


def _check_fingerprint(build: Build, component: ComponentName, base: Path) -> str | None:
    """Returns a warning where nobody can tell whether this is the concept's base.

    Raises:
        IncompatibleError: if it is another one: what is packed against it would not be read on the right one.
    """
    declared = build.base.fingerprints.get(component)
    if declared is None:
        return f"nothing tells whether this is the base that {component} was trained from: it carries no fingerprint"
    model = Model(base, FamilyId(build.base.family))
    shapes = {
        name: read.shape for name in model.list_names(component) if (read := model.read(component, name))
    }
    values = []
    for probe in choose_probes(shapes):
        tensor = model.read(component, probe.tensor)
        values += [] if tensor is None else [float(tensor.to_numpy().reshape(-1)[probe.index])]
    stated = Fingerprint(declared.layout, declared.weights)
    if not stated.matches(Fingerprint(declared.layout, tuple(values))):
        raise IncompatibleError(
            f"the {component} of {str(base)!r} is not the one that the concept was trained from",
            hint=f"name that base: --base {build.base.repo or build.base.family}",
        )
    return None


@contextmanager
def _named(concept: Concept) -> Iterator[None]:
    try:
        yield
    except ConceptryError as error:
        error.inside(concept.label)
        raise


# --- the new version -----------------------------------------------------------------------------------------------


def _prepare(folder: Path, file: File) -> Path:
    path = folder / file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror}") from error
    return path


def _write_version(
    concept: Concept, build: Build, request: PackRequest, rows: Sequence[Repacked], folder: Path
) -> Manifest:
    """Returns the manifest that lies in the folder then, with all files that it names."""
    new = {row.before.path: row for row in rows}
    document: dict[str, Any] = concept.manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    document["version"] = str(request.version or concept.manifest.version.bump_patch())
    changed = next(one for one in document["builds"] if one["id"] == build.id)
    for part in changed["parts"]:
        if part["kind"] == "full":
            part["files"] = [
                new[file["path"]].after.model_dump(mode="json", exclude_none=True)
                if file["path"] in new
                else file
                for file in part["files"]
            ]
            part["method"] = _describe_method(part["method"], rows)
    if any(row.packing is not None and not row.packing.lossless for row in rows):
        changed["metrics"] = []
    derived = changed["provenance"].get("derived_from", [])
    changed["provenance"]["derived_from"] = [*derived, str(concept.digest)][-MAX_SOURCES:]
    data = canonical_json(document)
    manifest = parse_manifest(data)
    try:
        for file in manifest.iter_files():
            if not (folder / file.path).exists():
                shutil.copyfile(concept.locate(file), _prepare(folder, file))
        (folder / MANIFEST_NAME).write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {str(folder)!r}: {error.strerror}") from error
    return manifest


def _describe_method(method: dict[str, Any], rows: Sequence[Repacked]) -> dict[str, Any]:
    changed = {row.component for row in rows}
    kept = [one for one in method.get("packing", []) if one["component"] not in changed]
    kept += [row.packing.model_dump(mode="json") for row in rows if row.packing is not None]
    plain = {key: value for key, value in method.items() if key != "packing"}
    return {**plain, "packing": sorted(kept, key=lambda one: str(one["component"]))} if kept else plain
