"""Folders that can be published: real canonical files with the manifest that describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conceptry.formats.lora import LORA_NAME, LoraContents, LoraModule, write_lora
from conceptry.formats.packages import describe_file
from conceptry.formats.tensors import RawTensor
from conceptry.manifest import Manifest

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def write_package(
    folder: Path,
    name: str = "me/imp",
    version: str = "1.0.0",
    *,
    family: str = "sd1",
    modules: tuple[str, ...] = (TO_Q,),
    **fields: Any,
) -> Path:
    """Returns ``folder`` with a small LoRA in it."""
    folder.mkdir(parents=True)
    factor = {
        module: LoraModule.of_factors(
            down=RawTensor.from_numpy(np.full((2, 8), 0.5, np.float32)),
            up=RawTensor.from_numpy(np.full((8, 2), 0.25, np.float32)),
            alpha=2.0,
        )
        for module in modules
    }
    write_lora(folder / LORA_NAME, LoraContents(modules=factor))
    file = describe_file(folder / LORA_NAME).model_dump(mode="json")
    method = {"kind": "lora", "rank": 2, "modules": len(modules), "scale": 1.0}
    architecture = {"sd1": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}[family]
    base = {"family": family, "architecture": architecture, "prediction_type": "epsilon"}
    manifest = Manifest.model_validate(
        {
            "schema": 1,
            "name": name,
            "version": version,
            "title": "A small imp",
            "license": {"spdx": "CC0-1.0"},
            "tokens": [{"placeholder": "<imp>", "superclass": "creature"}],
            "builds": [
                {
                    "id": f"{family}-lora",
                    "base": base,
                    "parts": [{"kind": "lora", "method": method, "files": [file]}],
                }
            ],
            **fields,
        }
    )
    (folder / "concept.json").write_bytes(manifest.to_bytes())
    return folder
