"""The files of a planned export onto the disk: all or none, and what was there is not overwritten unasked."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import ConflictError, StoreError
from conceptry.formats.export_contract import OutputFile
from conceptry.formats.exporting import ExportPlan
from conceptry.formats.header import read_header
from conceptry.formats.sidecars import ModelFile, name_notes, name_pictures
from conceptry.formats.tensors import DATA_HASH_KEY, replace_file, write_tensors

_PRIVATE_PREFIX: Final = ".exporting-"


@dataclass(frozen=True, slots=True)
class Exported:
    """One file that was written."""

    path: Path
    size_bytes: int
    sha256: Digest


def list_paths(plan: ExportPlan) -> tuple[Path, ...]:
    """Returns every path that writing ``plan`` would make."""
    return tuple(plan.root / name for name in _list_names(plan))


def write_export(plan: ExportPlan) -> tuple[Exported, ...]:
    """Returns the files that were written; they appear together, or none does.

    Raises:
        ConflictError: if one of them exists already and ``force`` is not set.
        InvalidFileError: if a value is not finite.
        StoreError: if the disk is full or the folder cannot be written.
    """
    refuse_overwriting(plan)
    try:
        with _make_folders(plan.root), _make_private(plan.root) as private:
            for file in plan.files:
                _write_file(private / file.name, file)
            _write_beside(plan, private)
            names = _list_names(plan)
            _install(private, plan, names)
    except OSError as error:
        raise StoreError(f"cannot write {str(plan.root)!r}: {error.strerror or error}") from error
    return tuple(_describe(plan.root / name) for name in names)


def refuse_overwriting(plan: ExportPlan) -> None:
    """Raises ConflictError for the first file that exists already, unless ``force`` is set."""
    if plan.root.exists() and not plan.root.is_dir():
        raise ConflictError(f"{str(plan.root)!r} is a file, and a folder is needed", hint="name another --to")
    taken = next((path for path in list_paths(plan) if os.path.lexists(path)), None)
    if taken is not None and taken.is_dir():
        raise ConflictError(f"{str(taken)!r} is a folder", hint="name another --to")
    if taken is not None and not plan.force:
        raise ConflictError(
            f"{str(taken)!r} exists already", hint="name another --to, or add --force to replace it"
        )


def _list_names(plan: ExportPlan) -> list[str]:
    names = [file.name for file in plan.files]
    for file in plan.files:
        if file.data is None and plan.sidecars:
            stem = file.name.removesuffix(".safetensors")
            names += name_notes(plan.sidecars, stem)
            names += name_pictures(plan.sidecars, stem) if plan.preview else []
    return names


@contextlib.contextmanager
def _make_folders(root: Path) -> Iterator[None]:
    """Makes ``root`` and what is missing above it; a failure takes away again what was made."""
    missing = []
    folder = root
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


@contextlib.contextmanager
def _make_private(root: Path) -> Iterator[Path]:
    private = Path(tempfile.mkdtemp(prefix=_PRIVATE_PREFIX, dir=root))
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _write_file(path: Path, file: OutputFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.data is None:
        write_tensors(path, file.tensors, file.metadata, data_hash=True)
        return
    with replace_file(path) as output:
        output.write(file.data)


def _write_beside(plan: ExportPlan, private: Path) -> None:
    if not plan.sidecars:
        return
    for file in plan.files:
        if file.data is not None:
            continue
        path = private / file.name
        stem = path.name.removesuffix(path.suffix)
        known = ModelFile(
            stem=stem,
            suffix=path.suffix,
            size_bytes=path.stat().st_size,
            sha256=Digest.of_file(path),
            data_sha256=read_header(path).metadata[DATA_HASH_KEY].removeprefix("0x"),
            has_preview=plan.preview is not None,
        )
        for name, row in name_notes(plan.sidecars, stem).items():
            _write_file(path.with_name(name), OutputFile(name=name, data=row.to_bytes(plan.sidecar, known)))
        if plan.preview is not None:
            for name in name_pictures(plan.sidecars, stem):
                shutil.copyfile(plan.preview, path.with_name(name))


def _install(private: Path, plan: ExportPlan, names: list[str]) -> None:
    """Gives the finished files their names; where one fails, those before it are taken back."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for number, name in enumerate(names):
            target = plan.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            replaced = plan.force and os.path.lexists(target)
            kept = private / f"{number}.kept" if replaced else None
            if kept is not None:
                target.rename(kept)
                done.append((target, kept))
            _put(private / name, target)
            if kept is None:
                done.append((target, None))
    except BaseException:
        for target, kept in reversed(done):
            if kept is not None:
                kept.replace(target)
            else:
                target.unlink(missing_ok=True)
            if target.parent != plan.root:
                with contextlib.suppress(OSError):
                    target.parent.rmdir()
        raise


def _put(source: Path, target: Path) -> None:
    """Renames without replacing: a link fails where the name is taken meanwhile."""
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise ConflictError(f"{str(target)!r} exists already", hint="name another --to") from error
    except OSError:
        if os.path.lexists(target):
            raise ConflictError(f"{str(target)!r} exists already", hint="name another --to") from None
        source.rename(target)


def _describe(path: Path) -> Exported:
    return Exported(path, path.stat().st_size, Digest.of_file(path))
