"""Pictures that a base makes of a superclass: generated once, kept as latents in the cache folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conceptry.digests import Digest, canonical_json
from conceptry.trainer.prompts import Wording, write_class_prompt
from conceptry.trainer.randomness import seed_generator

if TYPE_CHECKING:
    from conceptry.trainer.context import TrainingContext

STEPS: Final = 25
GUIDANCE: Final = 3.0
_BATCH: Final = 8
_TENSOR: Final = "latents"


@dataclass(frozen=True, slots=True)
class ClassLatents:
    """Latents of the superclass as the base draws it."""

    latents: Float[Tensor, "pictures channels height width"]

    def pick(self, count: int, generator: torch.Generator) -> Float[Tensor, "batch channels height width"]:
        """Returns ``count`` of them, drawn on the processor."""
        rows = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[rows]


def load_class_latents(context: TrainingContext, wording: Wording) -> ClassLatents:
    """Returns a superclass's pictures of this base and seed, generated now if they are not in the cache."""
    job, count = context.job.job, context.job.settings.prior_pictures
    prompt = write_class_prompt(wording)
    prints = {
        name: [str(found.layout), list(found.weights)]
        for name, found in context.identity.fingerprints.items()
    }
    key = {
        "prompt": prompt,
        "count": count,
        "seed": job.seed,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "shape": list(context.latents.mean.shape[1:]),
        "base": prints,
    }
    path = context.cache_folder / "class-pictures" / f"{Digest.of_bytes(canonical_json(key)).hex}.safetensors"
    try:
        return ClassLatents(load_file(path)[_TENSOR])
    except (OSError, SafetensorError, KeyError):
        context.announce(f"{count} pictures of {prompt!r} for the prior")
    latents = _generate(context, prompt, count)
    _write(path, latents)
    return ClassLatents(latents)


@torch.no_grad()
def _generate(context: TrainingContext, prompt: str, count: int) -> Tensor:
    pipeline = context.pipeline
    shape = context.latents.mean.shape[1:]
    height, width = (int(places) * int(pipeline.vae_scale_factor) for places in shape[-2:])
    found = []
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        noise = torch.randn(
            (size, *shape), generator=seed_generator(context.job.job.seed, "prior", -1 - start)
        )
        made = pipeline(
            prompt=[prompt] * size,
            latents=noise.to(context.device),
            height=height,
            width=width,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
        )
        found.append(made.images.float().cpu())
    return torch.cat(found)


def _write(path: Path, latents: Tensor) -> None:
    private = path.with_suffix(f".{id(latents):x}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({_TENSOR: latents.contiguous()}, private)
        private.replace(path)
    except (OSError, SafetensorError):
        private.unlink(missing_ok=True)  # made again next time
