"""A concept that can be used: its manifest, its identity, and where its bytes lie on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conceptry.digests import Digest
from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.manifest import File, Manifest, parse_manifest

MANIFEST_NAME = "concept.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A version whose files are present: what the registry hands out and the trainer returns.

    ``concept * 0.7`` is the concept at another strength.
    """

    manifest: Manifest
    digest: Digest
    blobs: Mapping[Digest, Path]

    @property
    def label(self) -> str:
        """``namespace/name@version``."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def locate(self, file: File) -> Path:
        """Returns where the bytes of ``file`` lie. Raises NotFoundError."""
        path = self.blobs.get(file.sha256)
        if path is None:
            raise NotFoundError(
                f"{self.label} lacks the file {file.path!r}", hint=f"concepts pull {self.label}"
            )
        return path

    def __mul__(self, strength: float) -> WeightedConcept:
        return WeightedConcept(self, float(strength))

    __rmul__ = __mul__


@dataclass(frozen=True, slots=True)
class WeightedConcept:
    """A concept and the strength it is used at."""

    concept: Concept
    strength: float


def open_concept(folder: Path) -> Concept:
    """Returns the concept in a folder with a ``concept.json`` and its files, sizes and digests checked.

    Raises:
        NotFoundError: if there is no ``concept.json``.
        InvalidManifestError: if it breaks the schema.
        InvalidFileError: if a file is missing or its bytes differ; the place is named (``files[2].sha256``).
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise NotFoundError(f"no {MANIFEST_NAME} in {str(folder)!r}", hint="name a folder that holds one")
    data = path.read_bytes()
    manifest = parse_manifest(data)
    blobs: dict[Digest, Path] = {}
    for index, file in enumerate(manifest.iter_files()):
        blobs[file.sha256] = _check_file(folder, file, index)
    return Concept(manifest=manifest, digest=Digest.of_bytes(data), blobs=blobs)


def _check_file(folder: Path, file: File, index: int) -> Path:
    path = folder / file.path
    if path.is_symlink() or not path.is_file():
        raise InvalidFileError(f"{file.path!r} is missing or no regular file", where=f"files[{index}].path")
    size = path.stat().st_size
    if size != file.size:
        raise InvalidFileError(
            f"{file.path!r} has {size} bytes, not {file.size}", where=f"files[{index}].size"
        )
    found = Digest.of_file(path)
    if found != file.sha256:
        raise InvalidFileError(
            f"{file.path!r} has digest {found}, not {file.sha256}", where=f"files[{index}].sha256"
        )
    return path
