"""A concept -> the files that another program reads: planned and checked first, then written whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from conceptry.bases import FamilyId
from conceptry.concepts import Concept
from conceptry.errors import ConceptryError, IncompatibleError, UsageError
from conceptry.formats.contract import Contents
from conceptry.formats.embedding import read_embedding
from conceptry.formats.export_contract import (
    BY_WORD,
    Loss,
    OutputFile,
    WordFiles,
    Writer,
    WriteRequest,
    Written,
)
from conceptry.formats.export_metadata import describe_export
from conceptry.formats.lora import read_lora
from conceptry.formats.sidecars import Sidecar, describe_sidecar
from conceptry.formats.writers import WRITERS, find_writer
from conceptry.kinds import KIND_BY_ID, KindId
from conceptry.manifest import Build, Part

SUFFIX: Final = ".safetensors"
_LISTED_LOSSES: Final = 3
_READERS: Final[Mapping[KindId, Callable[[Path], Contents]]] = {
    "lora": read_lora,
    "embedding": read_embedding,
}
_UNREADABLE: Final[Mapping[KindId, str]] = {
    "rank_one": "its edit depends on each input through a gate (arXiv 2305.01644), and no other program has the gate",
    "hypernetwork": "programs read one from a pickle alone, and none is ever written here",
    "composition": "it names other concepts; concepts compose REF --export writes them added up",
    "full": "it holds whole tensors of the base, and adapters hold differences",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What the caller wants written, and where."""

    target: str
    """A row of WRITERS."""

    path: Path
    """A new file where its name ends in ``.safetensors``, else a folder."""

    build: str | None = None
    lossy: bool = False
    force: bool = False
    sidecars: bool | tuple[str, ...] = True
    """Whether the files get what the program reads beside them; or rows of SIDECARS in place of the program's own."""

    kind: KindId | None = None
    """Only the parts of this kind, where programs look for each in a folder of its own."""

    words: WordFiles = BY_WORD


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """All that will be written, in memory; nothing is on the disk yet."""

    label: str
    target: str
    build: str
    family: FamilyId
    root: Path
    """The folder that the names of the files are in."""

    files: tuple[OutputFile, ...]
    sidecars: tuple[str, ...]
    """Rows of SIDECARS that each weights file gets."""

    sidecar: Sidecar
    preview: Path | None
    warnings: tuple[str, ...]
    losses: tuple[Loss, ...]
    force: bool


def plan_export(concept: Concept, settings: ExportSettings) -> ExportPlan:
    """Returns what exporting ``concept`` would write; nothing is written.

    Raises:
        UsageError: for an unknown target or build, or a path that the target cannot have.
        IncompatibleError: if the program cannot read the concept, or would lose something and ``lossy`` is not set.
        InvalidFileError: if a stored file is malformed.
    """
    writer = find_writer(settings.target)
    build = _choose_build(concept, settings.build)
    root, stem = _choose_place(writer, settings.path)
    parts = [part for part in build.parts if settings.kind in (None, part.kind)]
    written = [_write_part(concept, part, writer, settings, build=build, stem=stem) for part in parts]
    files = tuple(file for one in written for file in one.files)
    weights = [file for file in files if file.data is None]
    if stem is not None and len(weights) > 1:
        raise UsageError(
            f"{writer.id} needs {len(weights)} files for {concept.label}: {', '.join(f.name for f in weights)}",
            hint=f"name a folder: --to {settings.path.with_suffix('')}",
        )
    _refuse_equal_names(files)
    losses = sorted((loss for one in written for loss in one.losses), key=lambda loss: -loss.relative_error)
    warnings = dict.fromkeys(warning for one in written for warning in one.warnings)
    return ExportPlan(
        label=concept.label,
        target=writer.id,
        build=build.id,
        family=FamilyId(build.base.family),
        root=root,
        files=files,
        sidecars=writer.sidecars if settings.sidecars is True else settings.sidecars or (),
        sidecar=describe_sidecar(concept.manifest, build, settings.kind),
        preview=find_preview(concept, build),
        warnings=tuple(warnings),
        losses=tuple(losses),
        force=settings.force,
    )


def _refuse_equal_names(files: tuple[OutputFile, ...]) -> None:
    # Two file systems of three do not tell capital letters from small ones.
    counts = Counter(file.name.casefold() for file in files)
    twice = next((file.name for file in files if counts[file.name.casefold()] > 1), None)
    if twice is not None:
        raise UsageError(
            f"two files would be called {twice!r}, as two words of the concept are there",
            hint="import it with other words, or share it as it is: concepts push",
        )


def _choose_build(concept: Concept, id: str | None) -> Build:
    builds = {build.id: build for build in concept.manifest.builds}
    if id is None and len(builds) == 1:
        return next(iter(builds.values()))
    if id in builds:
        return builds[id]
    what = f"no build {id!r}" if id else f"{len(builds)} builds"
    raise UsageError(
        f"{concept.label} has {what}", where="--build", hint=f"add --build with one of: {', '.join(builds)}"
    )


def _choose_place(writer: Writer, path: Path) -> tuple[Path, str | None]:
    """Returns the folder, and the stem of the one file where ``path`` names a file."""
    if path.suffix.lower() != SUFFIX:
        return path, None
    if writer.folder:
        raise UsageError(
            f"{writer.id} reads a folder, not the file {path.name!r}", hint=f"--to {path.with_suffix('')}"
        )
    return path.parent, path.name.removesuffix(path.suffix)


def _write_part(
    concept: Concept, part: Part, writer: Writer, settings: ExportSettings, *, build: Build, stem: str | None
) -> Written:
    kind = part.kind
    several = settings.kind is None and len(build.parts) > 1
    read = _READERS.get(kind)
    if read is None:
        raise IncompatibleError(
            f"{writer.id} cannot hold a {KIND_BY_ID[kind].title}: {_UNREADABLE[kind]}",
            hint=f"share it as it is: concepts push {concept.label} REMOTE",
        )
    name = concept.manifest.name.name
    paths = [concept.locate(file) for file in part.files if file.role == "weights"]
    written = []
    for path in paths:
        request = WriteRequest(
            contents=read(path),
            family=FamilyId(build.base.family),
            stem=stem or (f"{name}-{kind}" if several else name),
            named=stem is not None,
            metadata=describe_export(concept, build, kind),
            lossy=settings.lossy,
            words=settings.words,
        )
        written.append(write_for(writer, kind, request))
    return _join(written)


def write_for(writer: Writer, kind: KindId, request: WriteRequest) -> Written:
    """Returns the files of one part for one program.

    Raises:
        IncompatibleError: with the nearest program that can read it, or what would be lost without ``lossy``.
    """
    write = writer.write.get(kind)
    if write is None:
        error = IncompatibleError(f"{writer.id} reads no {KIND_BY_ID[kind].title}")
        raise _suggest(error, writer, kind, request)
    try:
        written = write(request)
    except IncompatibleError as error:
        raise _suggest(error, writer, kind, request) from error
    if written.losses and not request.lossy:
        raise _suggest(_explain_losses(writer, written.losses), writer, kind, request)
    return written


def _explain_losses(writer: Writer, losses: tuple[Loss, ...]) -> IncompatibleError:
    worst = sorted(losses, key=lambda loss: -loss.relative_error)[:_LISTED_LOSSES]
    listed = "; ".join(f"{loss.module} by {loss.relative_error:.2%}" for loss in worst)
    return IncompatibleError(
        f"{writer.id} would change {len(losses)} modules ({worst[0].why}), the worst: {listed}",
        hint="add --lossy to take the approximation",
    )


def _suggest(error: IncompatibleError, writer: Writer, kind: KindId, request: WriteRequest) -> ConceptryError:
    """Returns the error with the first other program that reads all of it in its hint."""
    nearest = next((row.id for row in WRITERS if row is not writer and _is_exact(row, kind, request)), None)
    if nearest is not None:
        error.hint = (
            f"{error.hint}, or use --for {nearest}, which loses nothing"
            if error.hint
            else (f"--for {nearest} holds all of it")
        )
    elif error.hint is None:
        error.hint = "no other program reads it: share it as it is with concepts push"
    return error


def _is_exact(writer: Writer, kind: KindId, request: WriteRequest) -> bool:
    write = writer.write.get(kind)
    try:
        return write is not None and not write(replace(request, lossy=False)).losses
    except ConceptryError:
        return False


def _join(written: list[Written]) -> Written:
    return Written(
        files=tuple(file for one in written for file in one.files),
        warnings=tuple(warning for one in written for warning in one.warnings),
        losses=tuple(loss for one in written for loss in one.losses),
    )


def find_preview(concept: Concept, build: Build) -> Path | None:
    """Returns the picture of a build that programs can show beside its file, None where it has none."""
    pictures = (file for part in build.parts for file in part.files if file.role == "preview")
    found = next((file for file in pictures if file.media_type == "image/png"), None)
    return None if found is None else concept.locate(found)
