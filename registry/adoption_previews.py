"""The picture beside an adopted file: kept with the version that is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from conceptry.errors import ConceptryError
from conceptry.registry.adopted_files import AdoptedFile
from conceptry.registry.file_reading import read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.places import CollectionLayout, draw_name_beside, locate_preview

if TYPE_CHECKING:
    from conceptry.manifest import Manifest

MAX_PREVIEW_BYTES: Final = 8 << 20
# By what they begin with: programs call any picture .png.
_BEGINNINGS: Final = ((b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"))
_RIFF, _WEBP = b"RIFF", b"WEBP"


def pack_preview(manifest: Manifest, package: Path, place: CollectionLayout, file: AdoptedFile) -> Manifest:
    """Returns the manifest with the picture beside an adopted file, copied into the package.

    It is as it was where there is no picture, or one that cannot be read, is larger than 8 MiB or is none.

    Raises:
        StoreError: if the package cannot be written.
    """
    from conceptry.formats.packages import describe_file

    data = _read_preview(place, file)
    suffix = None if data is None else _recognise(data)
    if data is None or suffix is None:
        return manifest
    target = locate_preview(package, suffix)
    write_file(target, data, temporary=draw_name_beside(target))
    build = manifest.builds[0]
    files = sorted((*build.parts[0].files, describe_file(target, "preview")), key=lambda one: one.path)
    part = build.parts[0].model_copy(update={"files": tuple(files)})
    build = build.model_copy(update={"parts": (part, *build.parts[1:])})
    return manifest.model_copy(update={"builds": (build, *manifest.builds[1:])})


def _read_preview(place: CollectionLayout, file: AdoptedFile) -> bytes | None:
    if file.preview is None:
        return None
    below = file.path.rpartition("/")[0]
    try:
        data = read_small_file(
            place.entry(f"{below}/{file.preview}" if below else file.preview), MAX_PREVIEW_BYTES
        )
    except ConceptryError:
        return None
    return data if data is not None and len(data) <= MAX_PREVIEW_BYTES else None


def _recognise(data: bytes) -> str | None:
    if data.startswith(_RIFF) and data[8:12] == _WEBP:
        return ".webp"
    return next((suffix for start, suffix in _BEGINNINGS if data.startswith(start)), None)
