"""Concepts in the folders that other programs read: converted, or as they are stored; made again, only ours changes.

What a view wrote stands in ``.conceptry-view.json`` in its folder. A file that is not in there, or was changed since,
belongs to somebody else and is never replaced or removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.concepts import Concept
from conceptry.digests import Digest
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    UsageError,
    suggest_nearest,
)
from conceptry.manifest import FullMethod
from conceptry.registry.copies import copy_file, link_file
from conceptry.registry.files import (
    digest_file,
    explain_os_errors,
    is_file,
    look_at,
    read_small_file,
    remove_empty_folder,
    remove_file,
    write_file,
)
from conceptry.registry.places import ViewLayout

if TYPE_CHECKING:
    from conceptry.manifest import Build, File

LINKS: Final = ("copy", "hard", "symbolic")
_LIMIT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that reads folders: where it looks for each kind, and which writer makes files for it."""

    id: str
    title: str
    writer: Mapping[str, str]
    """Kind to the writer of ``formats/writers.py``; a kind that is missing is placed as it is stored."""

    folders: Mapping[str, str]
    """Kind to the folder below the program's folder for models."""


_COMFYUI: Final = {"lora": "loras", "embedding": "embeddings", "full": "diffusion_models"}
_A1111: Final = {"lora": "Lora", "embedding": "embeddings"}
_INVOKEAI: Final = {"lora": "lora", "embedding": "embedding"}

PROGRAMS: Final[tuple[Program, ...]] = (
    Program(
        id="comfyui",
        title="ComfyUI (its folder models)",
        writer={"lora": "comfyui", "embedding": "comfyui"},
        folders=_COMFYUI,
    ),
    Program(
        id="a1111",
        title="AUTOMATIC1111, Forge and their relatives (their folder models)",
        writer={"lora": "a1111", "embedding": "a1111"},
        folders=_A1111,
    ),
    Program(
        id="invokeai",
        title="InvokeAI (a folder that it scans)",
        writer={"lora": "kohya", "embedding": "a1111"},
        folders=_INVOKEAI,
    ),
)
PROGRAM_BY_ID: Final[dict[str, Program]] = {row.id: row for row in PROGRAMS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """What is to be made, and where."""

    program: str
    """A row of PROGRAMS."""

    folder: Path
    link: str | None = None
    """None converts to what the program reads; a row of LINKS places stored files as they are."""

    lossy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a view changed in its folder; names as seen from there."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    """Files that a view made once and somebody changed since."""

    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """One file of a view: which concept it is of, how it was made, and its bytes."""

    digest: Digest
    how: str
    sha256: Digest
    size_bytes: int


def make_view(concepts: Iterable[Concept], settings: ViewSettings) -> View:
    """Returns what changed in a folder that has exactly these concepts of ours now.

    Raises:
        UsageError: for an unknown program.
        IncompatibleError: if the program cannot read a concept; nothing was changed then.
        ConflictError: if a file of somebody else has the name of one of ours.
        StoreError: if the folder cannot be written.
    """
    program = find_program(settings.program)
    layout = ViewLayout(settings.folder.absolute())
    known = _read_state(layout)
    now: dict[str, _Made] = {}
    warnings: list[str] = []
    jobs = [job for concept in concepts for job in _plan(concept, program, settings, layout)]
    for job in jobs:
        _refuse_strangers(layout, job.names, known)
    written: list[str] = []
    unchanged: list[str] = []
    for job in jobs:
        made = {name: known[name] for name in job.names if _is_made(layout, name, known, job)}
        if len(made) == len(job.names):
            unchanged += job.names
        else:
            made = job.write(layout)
            written += made
            _write_state(layout, {**known, **now, **made})
        now |= made
        warnings += job.warnings
    removed, kept = _remove_others(layout, known, now)
    _write_state(layout, now)
    return View(
        written=tuple(written),
        unchanged=tuple(unchanged),
        removed=tuple(removed),
        kept=tuple(kept),
        warnings=tuple(warnings),
    )


def find_program(id: str) -> Program:
    """Returns the row called ``id``. Raises UsageError with the nearest one."""
    if id not in PROGRAM_BY_ID:
        hint = suggest_nearest(id, PROGRAM_BY_ID) or f"known: {', '.join(PROGRAM_BY_ID)}"
        raise UsageError(f"no view is made for {id[:80]!r}", hint=hint)
    return PROGRAM_BY_ID[id]


# --- what is to be written -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Converted:
    """A concept that formats writes in the program's own form."""

    concept: Concept
    how: str
    plan: Any
    names: tuple[str, ...]
    warnings: tuple[str, ...]

    def write(self, layout: ViewLayout) -> dict[str, _Made]:
        from conceptry.formats.export_files import write_export

        return {
            layout.name(one.path): _Made(self.concept.digest, self.how, one.sha256, one.size_bytes)
            for one in write_export(self.plan)
        }


@dataclass(frozen=True, slots=True)
class _Stored:
    """A file of a concept as it is stored."""

    concept: Concept
    how: str
    file: File
    names: tuple[str, ...]
    link: str
    warnings: tuple[str, ...] = ()

    def write(self, layout: ViewLayout) -> dict[str, _Made]:
        (name,) = self.names
        source, target = self.concept.locate(self.file), layout.file(name)
        if self.link == "copy":
            found = copy_file(source, target, temporary=layout.temporary(), mode=0o644)
            if found != self.file.sha256:
                raise IntegrityError(f"{self.concept.label}: the bytes of {self.file.path!r} changed")
        else:
            link_file(source, target, temporary=layout.temporary(), symbolic=self.link == "symbolic")
        return {name: _Made(self.concept.digest, self.how, self.file.sha256, self.file.size)}


_Job = _Converted | _Stored


def _plan(concept: Concept, program: Program, settings: ViewSettings, layout: ViewLayout) -> list[_Job]:
    build = concept.manifest.builds[0]
    if settings.link is None and all(kind in program.writer for kind in build.kinds):
        return [_plan_conversion(concept, build, program, settings, layout)]
    link = settings.link or "copy"
    jobs: list[_Job] = []
    for part in build.parts:
        if part.kind not in program.folders:
            raise UsageError(
                f"{program.id} reads no {part.kind} such as {concept.label}",
                hint=f"it reads {', '.join(program.folders)}; concepts push shares {concept.label} as it is",
            )
        if isinstance(part.method, FullMethod) and part.method.packing:
            raise UsageError(
                f"{concept.label} is packed as its difference to a base, which {program.id} does not read",
                hint=f"concepts unpack {concept.label}",
            )
        folder = layout.concept_folder(program.folders[part.kind], concept.manifest.name)
        for file in part.files:
            if file.role == "weights":
                name = layout.name(
                    layout.stored_file(folder, concept.manifest.name, file, alone=len(part.files) == 1)
                )
                jobs.append(_Stored(concept, f"stored {link}", file, (name,), link))
    return jobs


def _plan_conversion(
    concept: Concept, build: Build, program: Program, settings: ViewSettings, layout: ViewLayout
) -> _Converted:
    from conceptry.formats.export_files import list_paths
    from conceptry.formats.exporting import ExportSettings, plan_export

    kind = build.kinds[0]
    plan = plan_export(
        concept,
        ExportSettings(
            target=program.writer[kind],
            path=layout.concept_folder(program.folders[kind], concept.manifest.name),
            lossy=settings.lossy,
            force=True,
        ),
    )
    names = tuple(layout.name(path) for path in list_paths(plan))
    how = f"{program.writer[kind]}{' lossy' if settings.lossy else ''}"
    return _Converted(concept, how, plan, names, plan.warnings)


# --- what is there -------------------------------------------------------------------------------------------------


def _refuse_strangers(layout: ViewLayout, names: Iterable[str], known: Mapping[str, _Made]) -> None:
    for name in names:
        path = layout.file(name)
        if look_at(path) is None:
            continue
        if name not in known or _was_changed(layout, name, known[name]):
            whose = "was changed since" if name in known else "was not made by concepts view"
            raise ConflictError(
                f"{str(path)!r} exists and {whose}", hint="move it away, then run the same command again"
            )


def _is_made(layout: ViewLayout, name: str, known: Mapping[str, _Made], job: _Job) -> bool:
    made = known.get(name)
    same = made is not None and (made.digest, made.how) == (job.concept.digest, job.how)
    return same and look_at(layout.file(name)) is not None


def _was_changed(layout: ViewLayout, name: str, made: _Made) -> bool:
    path = layout.file(name)
    if not is_file(path):  # a symbolic link of ours leads to a blob that verify reads
        return made.how != "stored symbolic"
    with explain_os_errors("read", path):
        return digest_file(path) != (made.sha256, made.size_bytes)


def _remove_others(
    layout: ViewLayout, known: Mapping[str, _Made], now: Mapping[str, _Made]
) -> tuple[list[str], list[str]]:
    removed: list[str] = []
    kept: list[str] = []
    for name in sorted(known.keys() - now.keys()):
        path = layout.file(name)
        if look_at(path) is None:
            continue
        if _was_changed(layout, name, known[name]):
            kept.append(name)
        elif remove_file(path):
            removed.append(name)
            remove_empty_folder(path.parent)
    return removed, kept


def _read_state(layout: ViewLayout) -> dict[str, _Made]:
    data = read_small_file(layout.state, _LIMIT_BYTES)
    if data is None:
        return {}
    try:
        rows = json.loads(data)["files"]
        found = {
            name: _Made(
                Digest.parse(row["concept"]),
                str(row["how"]),
                Digest.parse(row["sha256"]),
                int(row["size_bytes"]),
            )
            for name, row in rows.items()
        }
        for name in found:
            layout.file(name)
    except (ValueError, KeyError, TypeError, AttributeError, ConceptryError) as error:
        raise NotFoundError(
            f"{str(layout.state)!r} does not say what a view made here",
            hint="remove that file; what it named stays and must be removed by hand",
        ) from error
    return found


def _write_state(layout: ViewLayout, made: Mapping[str, _Made]) -> None:
    rows = {
        name: {
            "concept": str(row.digest),
            "how": row.how,
            "sha256": str(row.sha256),
            "size_bytes": row.size_bytes,
        }
        for name, row in sorted(made.items())
    }
    data = (json.dumps({"schema": 1, "files": rows}, indent=1) + "\n").encode("ascii")
    if read_small_file(layout.state, _LIMIT_BYTES) != data:
        write_file(layout.state, data, temporary=layout.temporary(), replace=True)
