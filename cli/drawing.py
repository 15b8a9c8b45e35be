"""From what is to be drawn to PNG files: shared by ``concepts generate`` and ``concepts reproduce``."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.bases import Fit
from conceptry.cli.session import Session
from conceptry.errors import ConflictError, StoreError, UsageError

if TYPE_CHECKING:
    from conceptry.base_locations import BaseLocation
    from conceptry.composer.compositions import Composition
    from conceptry.composer.report import Report
    from conceptry.composition import CompositionDocument
    from conceptry.formats.picture_records import LockedComposition

_NUMBERED: Final = re.compile(r"(\d{3,})\.png", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt as it was written, the concepts that it is drawn with, and which of them its tags call."""

    prompt: str
    negative: str
    document: CompositionDocument | None
    called: Mapping[str, str]
    """The concept's name by what stands after ``embedding:``."""


@contextmanager
def attached(pipeline: Any, composition: Composition | None, fit: str | None) -> Iterator[Report | None]:
    """Has a composition in the pipeline while the block runs, and gives its report; None where there is none."""
    if composition is None:
        yield None
        return
    from conceptry.composer.attach import attach

    with attach(composition, pipeline, fit=None if fit is None else Fit[fit.upper()]) as report:
        yield report


def lock_composition(document: CompositionDocument, report: Report) -> LockedComposition:
    """Returns the composition with the digest of each concept that is attached, and the words that call it."""
    from conceptry.formats.picture_records import LockedComposition, LockedMember
    from conceptry.names import Reference

    members = [
        LockedMember(
            **{name: value for name, value in member if name not in ("reference", "digest")},
            reference=Reference.parse(applied.label),
            digest=applied.digest,
            build=applied.build,
            words=dict(applied.words),
        )
        for member, applied in zip(document.concepts, report.concepts, strict=True)
    ]
    rest = {
        name: getattr(document, name)
        for name in type(document).model_fields
        if name not in ("schema_version", "base", "concepts")
    }
    return LockedComposition(concepts=tuple(members), **rest)


def name_base(session: Session, location: BaseLocation, named: str | None) -> str | None:
    """Returns the base's name for others: never a path of this machine."""
    if location.kind == "toybox":
        return "toybox"
    if location.repo is not None:
        return f"hf://{location.repo}" + (f"@{location.revision}" if location.revision else "")
    return named if named in session.registry.bases() else None


@contextmanager
def made_folder(out: Path | None) -> Iterator[None]:
    """Has a folder at ``out`` while the block runs and after; what was made for it is gone again if it stays empty.

    Raises:
        UsageError: if something else is there.
        StoreError: if it cannot be made.
    """
    if out is None:
        yield
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"{str(out)!r} is a file", hint="name a folder")
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {str(out)!r}: {error.strerror}") from error
        yield
    except BaseException:
        with suppress(OSError):  # one that something was put into stays
            for folder in missing:
                folder.rmdir()
        raise


def iter_free_names(folder: Path) -> Iterator[Path]:
    """Returns places for pictures, numbered after those that are there."""
    found = (_NUMBERED.fullmatch(path.name) for path in folder.iterdir())
    number = max((int(match[1]) + 1 for match in found if match), default=0)
    while True:
        yield folder / f"{number:03d}.png"
        number += 1


def write_picture(path: Path, data: bytes) -> None:
    """Writes a picture whole or not at all. Raises ConflictError if something is there, StoreError."""
    if path.exists():
        raise ConflictError(f"{str(path)!r} exists already", hint="name another --out")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
