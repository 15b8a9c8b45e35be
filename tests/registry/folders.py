"""Folders that can be published, and the stores that tests put them into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conceptry.digests import Digest
from conceptry.manifest import Manifest, parse_manifest

CONTENTS = b"weights of a blue imp" * 100


def make_document(
    name: str = "me/imp", version: str = "1.0.0", *, file: bytes = CONTENTS, **more: Any
) -> dict[str, Any]:
    """Return a manifest of one LoRA file as a document; ``more`` are further fields."""
    row = {"path": "lora.safetensors", "size": len(file), "sha256": str(Digest.of_bytes(file))}
    part = {"kind": "lora", "method": {"kind": "lora", "rank": 4, "modules": 1, "scale": 1.0}, "files": [row]}
    base = {"family": "sd1", "architecture": "stable-diffusion-v1", "prediction_type": "epsilon"}
    build = {"id": "sd1-lora", "base": base, "parts": [part]}
    return {"schema": 1, "name": name, "version": version, "builds": [build], **more}


def make_manifest(
    name: str = "me/imp", version: str = "1.0.0", *, file: bytes = CONTENTS, **more: Any
) -> Manifest:
    """Return the manifest of ``make_document``."""
    return Manifest.model_validate(make_document(name, version, file=file, **more))


def write_folder(
    folder: Path, name: str = "me/imp", version: str = "1.0.0", *, file: bytes = CONTENTS, **more: Any
) -> Path:
    """Return ``folder``, which can be published as one LoRA file of the given bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    data = make_manifest(name, version, file=file, **more).to_bytes()
    parse_manifest(data)
    (folder / "concept.json").write_bytes(data)
    (folder / "lora.safetensors").write_bytes(file)
    return folder


def files_below(root: Path) -> list[str]:
    """Return the names of all regular files below ``root``."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def temporaries_below(root: Path) -> list[str]:
    """Return what a command left behind although it had ended."""
    return [name for name in files_below(root) if name.startswith(("tmp/", "partial/"))]
