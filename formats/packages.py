"""Files of a package as the manifest describes them: size, digest of the bytes, digest of the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from conceptry.digests import Digest
from conceptry.errors import NotFoundError
from conceptry.formats.tensors import Written, digest_tensor_file
from conceptry.manifest import File

SAFETENSORS_TYPE: Final = "application/vnd.safetensors"
_MEDIA_TYPES: Final = {
    ".safetensors": SAFETENSORS_TYPE,
    ".json": "application/json",
    ".toml": "application/toml",
    ".md": "text/markdown",
    ".txt": "text/plain",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}


def describe_file(
    path: Path,
    role: Literal["weights", "preview", "document"] = "weights",
    *,
    name: str | None = None,
    written: Written | None = None,
) -> File:
    """Returns the manifest's entry for the file at ``path``, called ``name`` in the package (else its own name).

    ``written`` is what writing it returned; without it the file is read.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: if it is called ``.safetensors`` and is not sound.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {str(path)!r}")
    media_type = _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    tensors: Digest | None
    if written is not None:
        size_bytes, whole, tensors = written.size_bytes, written.sha256, written.tensor_sha256
    else:
        tensors = digest_tensor_file(path) if media_type == SAFETENSORS_TYPE else None
        size_bytes, whole = path.stat().st_size, Digest.of_file(path)
    return File(
        path=name or path.name,
        role=role,
        media_type=media_type,
        size=size_bytes,
        sha256=whole,
        tensor_sha256=tensors,
    )
