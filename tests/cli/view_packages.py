"""Concepts of each kind that a view must place: words, words with an adapter, and fine-tunes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from conceptry.bases import ComponentName
from conceptry.formats.embedding import EMBEDDING_NAME, EmbeddingContents, write_embedding
from conceptry.formats.full import FullContents, write_full
from conceptry.formats.lora import LORA_NAME
from conceptry.formats.packages import describe_file
from conceptry.formats.tensors import RawTensor
from conceptry.manifest import Manifest
from conceptry.names import Placeholder
from tests.cli.packages import write_package

TUNE_NAME = "unet.safetensors"
PICTURE = b"\x89PNG\r\n\x1a\n and a picture"


def write_words(folder: Path, name: str, *words: str, with_lora: bool = False, seed: float = 1.0) -> Path:
    """Return a folder of a concept with these words, and the adapter that was trained with them if wanted."""
    write_package(folder, name)
    rows = {
        (ComponentName("text_encoder"), Placeholder(word)): RawTensor.from_numpy(
            np.full((1, 768), seed + number, np.float32)
        )
        for number, word in enumerate(words)
    }
    write_embedding(folder / EMBEDDING_NAME, EmbeddingContents(rows=rows))
    method = {"kind": "embedding", "components": ["text_encoder"]}
    file = describe_file(folder / EMBEDDING_NAME).model_dump(mode="json")
    document = json.loads((folder / "concept.json").read_bytes())
    document["tokens"] = [{"placeholder": word} for word in words]
    part = {"kind": "embedding", "method": method, "files": [file]}
    document["builds"][0]["parts"] = [*document["builds"][0]["parts"], part] if with_lora else [part]
    if not with_lora:
        (folder / LORA_NAME).unlink()
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
    return folder


def write_fine_tune(folder: Path, name: str, *, changed: int, total: int) -> Path:
    """Return a folder of a fine-tune that holds ``changed`` tensors of ``total``."""
    write_package(folder, name)
    (folder / LORA_NAME).unlink()
    tensors = {
        f"mid.{number}.weight": RawTensor.from_numpy(np.full((2, 2), 1.0, np.float32))
        for number in range(changed)
    }
    write_full(folder / TUNE_NAME, FullContents(component=ComponentName("unet"), tensors=tensors))
    document = json.loads((folder / "concept.json").read_bytes())
    method = {"kind": "full", "components": ["unet"], "changed_tensors": changed, "total_tensors": total}
    file = describe_file(folder / TUNE_NAME).model_dump(mode="json")
    document["builds"][0]["parts"] = [{"kind": "full", "method": method, "files": [file]}]
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
    return folder


def add_picture(folder: Path) -> None:
    """Give the concept in ``folder`` a picture."""
    (folder / "blue.png").write_bytes(PICTURE)
    document = json.loads((folder / "concept.json").read_bytes())
    picture = describe_file(folder / "blue.png", "preview").model_dump(mode="json")
    document["builds"][0]["parts"][0]["files"].insert(0, picture)
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
