"""What a view places: the programs, where each looks for what, and the files of one concept as one of them reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.bases import find_family
from conceptry.concepts import Concept
from conceptry.digests import Digest
from conceptry.errors import IncompatibleError, IntegrityError, UsageError, suggest_nearest
from conceptry.manifest import FullMethod
from conceptry.registry.copies import copy_file, link_file
from conceptry.registry.file_reading import read_chunks
from conceptry.registry.files import write_file
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import ViewLayout, draw_name_beside

if TYPE_CHECKING:
    from conceptry.formats.sidecars import ModelFile, Sidecar, SidecarFormat
    from conceptry.manifest import Build, File, Part

LINKS: Final = ("copy", "hard", "symbolic")
_SUFFIX: Final = ".safetensors"
_FILE_MODE: Final = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that reads folders: where it looks for each kind, and which writer makes files for it."""

    id: str
    title: str
    writer: Mapping[str, str]
    """Kind to the writer of ``formats/writers.py``; a kind that is missing is placed as it is stored."""

    folders: Mapping[str, str]
    """Kind to the folder below the program's folder for models."""

    beside: Mapping[str, tuple[str, ...]]
    """Kind to the rows of SIDECARS that it reads beside a file."""

    call: str
    """What a prompt says for a word, with ``{folder}`` and ``{}`` for its file's folder and name."""

    by_stem: bool = False
    """It knows a file by its name alone, so that of two in different folders one is lost."""


_NOTES_OF_A1111: Final = ("a1111", "civitai_helper")

PROGRAMS: Final[tuple[Program, ...]] = (
    Program(
        id="comfyui",
        title="ComfyUI (its folder models)",
        writer={"lora": "comfyui", "embedding": "comfyui"},
        folders={"lora": "loras", "embedding": "embeddings", "full": "diffusion_models"},
        beside={"lora": ("lora_manager",), "embedding": ("lora_manager",)},
        call="embedding:{folder}/{}",
    ),
    Program(
        id="a1111",
        title="AUTOMATIC1111, Forge and their relatives (their folder models)",
        writer={"lora": "a1111", "embedding": "a1111"},
        folders={"lora": "Lora", "embedding": "embeddings"},
        beside={"lora": _NOTES_OF_A1111, "embedding": _NOTES_OF_A1111},
        call="{}",
        by_stem=True,
    ),
    Program(
        id="invokeai",
        title="InvokeAI (a folder that it scans)",
        writer={"lora": "kohya", "embedding": "a1111"},
        folders={"lora": "lora", "embedding": "embedding"},
        beside={"lora": ("invokeai",)},
        call="<{}>",
    ),
)
PROGRAM_BY_ID: Final[dict[str, Program]] = {row.id: row for row in PROGRAMS}


def find_program(id: str) -> Program:
    """Returns the row called ``id``. Raises UsageError with the nearest one."""
    if id not in PROGRAM_BY_ID:
        hint = suggest_nearest(id, PROGRAM_BY_ID) or f"known: {', '.join(PROGRAM_BY_ID)}"
        raise UsageError(f"no view is made for {id[:80]!r}", hint=hint)
    return PROGRAM_BY_ID[id]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings:
    """What is to be made, and where."""

    program: str
    """A row of PROGRAMS."""

    folder: Path
    link: str | None = None
    """None converts to what the program reads; a row of LINKS places stored files as they are."""

    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """One file of a view: which concept it is of, how it was made, and its bytes."""

    digest: Digest
    how: str
    sha256: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Converted:
    """A part of a concept that formats writes in the program's own form."""

    concept: Concept
    how: str
    plan: Any
    names: tuple[str, ...]
    warnings: tuple[str, ...]

    def write(self, layout: ViewLayout) -> dict[str, Made]:
        """Returns the files that were written, by their names."""
        from conceptry.formats.export_files import write_export

        return {
            layout.name(one.path): Made(self.concept.digest, self.how, one.sha256, one.size_bytes)
            for one in write_export(self.plan)
        }


@dataclass(frozen=True, slots=True)
class Beside:
    """The notes and the picture beside a file that is placed as it is stored."""

    rows: tuple[str, ...]
    said: Sidecar
    picture: Path | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of a concept as it is stored, and what the program reads beside it."""

    concept: Concept
    how: str
    file: File
    name: str
    link: str
    beside: Beside | None = None
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every file that it makes."""
        return (self.name, *self._name_notes(), *self._name_pictures())

    def write(self, layout: ViewLayout) -> dict[str, Made]:
        """Returns the files that were written, by their names."""
        source, target = self.concept.locate(self.file), layout.file(self.name)
        if self.link == "copy":
            found = copy_file(source, target, temporary=draw_name_beside(target), mode=_FILE_MODE)
            if found != self.file.sha256:
                raise IntegrityError(f"{self.concept.label}: the bytes of {self.file.path!r} changed")
        else:
            symbolic = self.link == "symbolic"
            link_file(source, target, temporary=draw_name_beside(target), symbolic=symbolic)
        made = {self.name: Made(self.concept.digest, self.how, self.file.sha256, self.file.size)}
        return made | self._write_beside(layout, source)

    def _write_beside(self, layout: ViewLayout, source: Path) -> dict[str, Made]:
        if self.beside is None:
            return {}
        notes, pictures = self._name_notes(), self._name_pictures()
        known = _describe_stored(source, self.file, self.name, has_preview=bool(pictures))
        written = {name: row.to_bytes(self.beside.said, known) for name, row in notes.items()}
        if self.beside.picture is not None:
            with explain_os_errors("read", self.beside.picture):
                written |= dict.fromkeys(pictures, b"".join(read_chunks(self.beside.picture)))
        for name, data in written.items():
            target = layout.file(name)
            write_file(target, data, temporary=draw_name_beside(target), mode=_FILE_MODE, replace=True)
        return {
            name: Made(self.concept.digest, self.how, Digest.of_bytes(data), len(data))
            for name, data in written.items()
        }

    def _name_notes(self) -> dict[str, SidecarFormat]:
        from conceptry.formats.sidecars import name_notes

        return name_notes(self.beside.rows, self.name.removesuffix(_SUFFIX)) if self.beside else {}

    def _name_pictures(self) -> list[str]:
        from conceptry.formats.sidecars import name_pictures

        if self.beside is None or self.beside.picture is None:
            return []
        return name_pictures(self.beside.rows, self.name.removesuffix(_SUFFIX))


Placement = Converted | Stored


def _describe_stored(source: Path, file: File, name: str, *, has_preview: bool) -> ModelFile:
    from conceptry.formats.header import read_header
    from conceptry.formats.sidecars import ModelFile

    with explain_os_errors("read", source):
        data = Digest.of_chunks(read_chunks(source, read_header(source).data_start))
    return ModelFile(
        stem=name.rpartition("/")[2].removesuffix(_SUFFIX),
        suffix=_SUFFIX,
        size_bytes=file.size,
        sha256=file.sha256,
        data_sha256=data.hex,
        has_preview=has_preview,
    )


# --- what a concept needs ------------------------------------------------------------------------------------------


def place_concept(
    concept: Concept, program: Program, settings: ViewSettings, layout: ViewLayout
) -> list[Placement]:
    """Returns the files of a concept for a program, each kind in the folder where it is looked for.

    Raises:
        UsageError, IncompatibleError: if the program cannot read one of its parts.
    """
    build = concept.manifest.builds[0]
    placed: list[Placement] = []
    for part in build.parts:
        if settings.link is None and part.kind in program.writer:
            placed.append(
                _place_converted(concept, build, part, program=program, settings=settings, layout=layout)
            )
        else:
            _refuse_unreadable(concept, build, part, program)
            link = settings.link or "copy"
            placed += _place_stored(concept, build, part, program=program, link=link, layout=layout)
    return placed


def _place_converted(
    concept: Concept,
    build: Build,
    part: Part,
    *,
    program: Program,
    settings: ViewSettings,
    layout: ViewLayout,
) -> Converted:
    from conceptry.formats.export_contract import WordFiles
    from conceptry.formats.export_files import list_paths
    from conceptry.formats.exporting import ExportSettings, plan_export

    writer = program.writer[part.kind]
    call = program.call.replace("{folder}", concept.manifest.name.namespace)
    plan = plan_export(
        concept,
        ExportSettings(
            target=writer,
            path=layout.concept_folder(program.folders[part.kind], concept.manifest.name),
            build=build.id,
            lossy=settings.lossy,
            force=True,
            sidecars=program.beside.get(part.kind, ()),
            kind=part.kind,
            words=WordFiles(qualified=True, call=call),
        ),
    )
    names = tuple(layout.name(path) for path in list_paths(plan))
    how = f"{writer}{' lossy' if settings.lossy else ''}"
    return Converted(concept, how, plan, names, (*_warn_of_builds(concept), *plan.warnings))


def _place_stored(
    concept: Concept, build: Build, part: Part, *, program: Program, link: str, layout: ViewLayout
) -> list[Stored]:
    from conceptry.formats.exporting import find_preview
    from conceptry.formats.sidecars import describe_sidecar

    folder = layout.concept_folder(program.folders[part.kind], concept.manifest.name)
    weights = [file for file in part.files if file.role == "weights"]
    rows = program.beside.get(part.kind, ())
    beside = Beside(rows, describe_sidecar(concept.manifest, build, part.kind), find_preview(concept, build))
    placed = []
    for file in weights:
        path = layout.stored_file(folder, concept.manifest.name, file, alone=len(weights) == 1)
        has_notes = rows and path.suffix == _SUFFIX
        placed.append(
            Stored(
                concept,
                f"stored {link}",
                file,
                layout.name(path),
                link,
                beside if has_notes else None,
                _warn_of_builds(concept),
            )
        )
    return placed


def _warn_of_builds(concept: Concept) -> tuple[str, ...]:
    ids = [build.id for build in concept.manifest.builds]
    if len(ids) == 1:
        return ()
    return (f"{concept.label} has the builds {', '.join(ids)}: {ids[0]} is placed",)


def _refuse_unreadable(concept: Concept, build: Build, part: Part, program: Program) -> None:
    label, method = concept.label, part.method
    if isinstance(method, FullMethod):
        if method.packing:
            raise UsageError(
                f"{label} is packed as its difference to a base, which {program.id} does not read",
                hint=f"concepts unpack {label}",
            )
        if method.changed_tensors < method.total_tensors or method.components != (
            find_family(build.base.family).denoiser,
        ):
            what = f"{method.changed_tensors} of the base's {method.total_tensors} tensors"
            raise IncompatibleError(
                f"{program.id} cannot hold a full fine-tune: {label} has {what}, in {', '.join(method.components)}",
                hint=f"concepts compose {label} --export {concept.manifest.name.name}.safetensors --for checkpoint "
                "writes a whole model",
            )
    if part.kind not in program.folders:
        raise UsageError(
            f"{program.id} reads no {part.kind} such as {label}",
            hint=f"it reads {', '.join(program.folders)}; concepts push shares {label} as it is",
        )
