"""Full fine-tunes and the bases that they were made from, as folders; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conceptry.bases import ComponentName
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.formats.full import FullContents, write_full
from conceptry.formats.packages import describe_file
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors
from conceptry.manifest import Manifest

UNET = ComponentName("unet")
PROMISE = {"name": "identity/score", "value": 0.5, "protocol": "toybox-1"}
NAMES = {"mid.weight": (96, 64), "mid.bias": (96,), "out.weight": (4, 96, 3, 3)}
FILE = "unet.safetensors"
BASE_FILE = "unet/diffusion_pytorch_model.safetensors"


def write_base(folder: Path, dtype: Any = np.float32, *, seed: int = 1) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {
        name: RawTensor.from_numpy(rng.normal(scale=0.03, size=shape).astype(dtype))
        for name, shape in NAMES.items()
    }
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    write_tensors(folder / BASE_FILE, tensors)
    return folder


def write_tune(folder: Path, base: Path, dtype: Any = np.float32, **method: Any) -> Concept:
    """Return a version in a folder: values near the base's, a preview beside them, a score."""
    rng = np.random.default_rng(7)
    old = read_tensors(base / BASE_FILE)
    tensors = {
        name: RawTensor.from_numpy((one.to_numpy() + rng.normal(scale=1e-4, size=one.shape)).astype(dtype))
        for name, one in old.items()
    }
    folder.mkdir()
    write_full(folder / FILE, FullContents(component=UNET, tensors=tensors), {"note": "mine"})
    (folder / "preview.png").write_bytes(b"a picture")
    files = [describe_file(folder / "preview.png", "preview"), describe_file(folder / FILE)]
    described = {"kind": "full", "components": ["unet"], "changed_tensors": 3, "total_tensors": 3, **method}
    build = {
        "id": "sd1-full",
        "base": {"family": "sd1", "architecture": "stable-diffusion-v1", "prediction_type": "epsilon"},
        "parts": [
            {"kind": "full", "method": described, "files": [file.model_dump(mode="json") for file in files]}
        ],
        "metrics": [PROMISE],
    }
    manifest = Manifest.model_validate({"schema": 1, "name": "me/imp", "version": "1.2.3", "builds": [build]})
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return open_concept(folder)
