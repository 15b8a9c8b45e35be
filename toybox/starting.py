"""Published weights as the place where a training sets out: what one recipe needs of another, and its own networks."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_TEXT = "text_encoder/model.safetensors"
_VAE = "vae/diffusion_pytorch_model.safetensors"
_FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "encoder": _TEXT,
    "vae": _VAE,
    "net": "scorer/scorer.safetensors",
}
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


def _single(path: Path) -> dict[str, Tensor]:
    return {name: value.float() for name, value in load_file(path).items()}


def unpack(weights: Path, out: Path) -> None:
    """Lay the autoencoder and text encoder of a weights folder where the recipes look, unless some are there."""
    if not (out / "autoencoder" / "vae.safetensors").is_file():
        (out / "autoencoder").mkdir(parents=True, exist_ok=True)
        save_file(_single(weights / _VAE), out / "autoencoder" / "vae.safetensors")
    if not (out / "text" / "encoder.safetensors").is_file():
        (out / "text" / "tokenizer").mkdir(parents=True, exist_ok=True)
        save_file(_single(weights / _TEXT), out / "text" / "encoder.safetensors")
        for name in _TOKENIZER:
            shutil.copyfile(weights / "tokenizer" / name, out / "text" / "tokenizer" / name)


def set_out(weights: Path | None, **modules: nn.Module) -> None:
    """Load the published weights of the named networks ("unet", "encoder", "vae", "net"), if a folder is given."""
    if weights is None:
        return
    for name, module in modules.items():
        module.load_state_dict(_single(weights / _FILES[name]))
