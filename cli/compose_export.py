"""``concepts compose --export``: a composition as files that need none of this program."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.check import find_identity
from conceptry.cli.export import TARGETS, describe_losses, file_to_json, losses_to_json
from conceptry.cli.progress import track
from conceptry.cli.session import Session
from conceptry.cli.text import format_bytes
from conceptry.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from conceptry.base_locations import BaseLocation
    from conceptry.bases import BaseIdentity
    from conceptry.composer.compositions import Composition
    from conceptry.composer.exports import ClosedBase, PreparedExport
    from conceptry.composer.pipelines import Pipeline
    from conceptry.formats.export_files import Exported

COMPOSED_TARGETS: Final = (*TARGETS, "pipeline", "checkpoint")
_OTHER_WEIGHTS: Final = frozenset({".bin", ".ckpt", ".pt", ".pth"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What ``--export``, ``--for`` and ``--lossy`` ask for."""

    path: Path
    target: str | None
    lossy: bool


def read_request(path: Path | None, target: str | None, *, lossy: bool) -> Request | None:
    """Returns what is to be written where, None where nothing is.

    Raises:
        UsageError: if ``--for`` or ``--lossy`` say something of no export, or the file is of a kind never written.
        ConflictError: if something is at the path already.
    """
    if path is None:
        if target is not None or lossy:
            raise UsageError("--for and --lossy say what --export writes", hint="add --export PATH")
        return None
    if path.suffix.lower() in _OTHER_WEIGHTS:
        raise UsageError(
            f"{path.name!r} would be read by unpickling it, and only safetensors are written",
            hint=f"--export {path.with_suffix('.safetensors')}",
        )
    if os.path.lexists(path):
        raise ConflictError(f"{str(path)!r} exists already", hint="name another --export; none is replaced")
    return Request(path=path, target=target, lossy=lossy)


class ExportBase:
    """The base that a composition is exported on: opened at once where it is named, else only if it is needed."""

    def __init__(self, session: Session, named: str | None, composition: Composition) -> None:
        self._session, self._named = session, named
        self._concepts = [member.concept for member in composition.members]
        location = None if named is None else self._choose()
        if location is None or location.path is None:
            self.identity: BaseIdentity = find_identity(session, named, composition)
            self._pipeline: Pipeline | None = None
            return
        self._pipeline = open_base(session, location)
        from conceptry.composer.fingerprints import identify_pipeline

        self.identity = identify_pipeline(self._pipeline)

    def _choose(self) -> BaseLocation:
        return choose_base(self._session, self._named, self._concepts)

    @property
    def base(self) -> Pipeline | ClosedBase:
        """What ``prepare_export`` takes."""
        from conceptry.composer.exports import ClosedBase

        if self._pipeline is not None:
            return self._pipeline
        return ClosedBase(identity=self.identity, open=self._open)

    def _open(self) -> Pipeline:
        """Returns the base, without a bar of its own: one that says what it is for is there already."""
        from conceptry.composer.loading import load_pipeline
        from conceptry.trainer.precision import choose_device

        return load_pipeline(self._choose(), device=choose_device("auto"))


def export_composition(
    session: Session, composition: Composition, base: Pipeline | ClosedBase, request: Request
) -> tuple[PreparedExport, tuple[Exported, ...]]:
    """Returns what was prepared and the files that were written; they appear together or not at all.

    Raises:
        UsageError, IncompatibleError, ConflictError, StoreError: as ``conceptry.composer.export``.
    """
    from conceptry.composer.exports import Destination, prepare_export

    place = Destination(path=request.path, target=request.target, lossy=request.lossy)
    with track(session.out, "adding up"):
        prepared = prepare_export(composition, base, place)
    for warning in (*prepared.warnings, *describe_losses(prepared.losses)):
        session.out.warn(warning)
    with track(session.out, "writing"):
        return prepared, prepared.write()


def export_to_json(prepared: PreparedExport, files: Sequence[Exported]) -> dict[str, Any]:
    """Returns ``export`` of what ``concepts compose --json`` prints."""
    return {
        "target": prepared.target,
        "files": [file_to_json(one) for one in files],
        "warnings": list(prepared.warnings),
        "losses": losses_to_json(prepared.losses),
    }


def describe_export(request: Request, prepared: PreparedExport, files: Sequence[Exported]) -> Iterator[str]:
    """Returns what was written in lines for people; of a whole folder, only the folder."""
    if prepared.target == "pipeline":
        size = format_bytes(sum(one.size_bytes for one in files))
        yield f"wrote {request.path}, a whole diffusers folder ({size})"
        return
    yield from (f"wrote {one.path} ({format_bytes(one.size_bytes)}), for {prepared.target}" for one in files)
