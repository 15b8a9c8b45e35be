"""The trained parts as one Stable Diffusion pipeline in the standard folder layout, half precision on disk."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from conceptry.toybox import path
from conceptry.toybox.autoencoder import load_autoencoder
from conceptry.toybox.diffusion import SCHEDULER, UNET
from conceptry.toybox.latents import scaling_factor
from conceptry.toybox.text import load_text

LARGEST_FILE_BYTES: Final = 16 * 2**20
LARGEST_TOTAL_BYTES: Final = 24 * 2**20


def _latest_latents(data: Path) -> Path:
    found = sorted(data.glob("latents-*.safetensors"), key=lambda file: file.stat().st_size)
    return found[-1]


def assemble(runs: Path) -> StableDiffusionPipeline:
    """The pipeline of a training folder's newest averaged weights, float32, on the processor."""
    device = torch.device("cpu")
    vae = load_autoencoder(runs, device)
    vae.register_to_config(
        scaling_factor=scaling_factor(load_file(_latest_latents(runs / "data"))["latents"])
    )
    tokenizer, encoder = load_text(runs, device)
    encoder.load_state_dict(load_file(runs / "unet" / "encoder.safetensors"))
    unet = UNet2DConditionModel(**UNET)
    unet.load_state_dict(load_file(runs / "unet" / "unet.safetensors"))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write ``pipeline`` in half precision, its text encoder declared float32 so that plain loading is float32."""
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    settings = folder / "text_encoder" / "config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**values, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def export(runs: Path, folder: Path, *, parts: Sequence[str]) -> None:
    """Put newly trained parts ("pipeline", "scorer") into ``folder``, replacing what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    if "pipeline" in parts:
        fresh = folder.with_name(folder.name + ".part")
        shutil.rmtree(fresh, ignore_errors=True)
        save(assemble(runs), fresh)
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(runs / "text" / "tokenizer" / name, fresh / "tokenizer" / name)
        for entry in sorted(fresh.iterdir()):
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
        fresh.rmdir()
    if "scorer" in parts:
        (folder / "scorer").mkdir(exist_ok=True)
        for name in ("scorer.safetensors", "config.json"):
            shutil.copyfile(runs / "scorer" / name, folder / "scorer" / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m conceptry.toybox.pipeline``: export the trained parts into the package."""
    parser = argparse.ArgumentParser(prog="python -m conceptry.toybox.pipeline", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path(".runs/toybox"))
    parser.add_argument("--out", type=Path, default=path())
    parser.add_argument("--parts", nargs="+", choices=("pipeline", "scorer"), default=["pipeline", "scorer"])
    options = parser.parse_args(arguments)
    export(options.runs, options.out, parts=options.parts)


if __name__ == "__main__":
    main()
