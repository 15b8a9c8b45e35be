"""Pictures as the denoiser sees them: encoded once, kept on the device and on disk, sampled anew in each step."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conceptry.composer.fingerprints import fingerprint_component
from conceptry.digests import Digest, canonical_json
from conceptry.errors import TrainingError, UsageError
from conceptry.trainer.framing import Frame, Size, frame_pictures
from conceptry.trainer.images import Picture
from conceptry.trainer.settings import Settings

FOLDER: Final = "latents"


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Mean and standard deviation of latent distributions of one shape, scaled as the denoiser wants them.

    A picture may have several variants (flipped, cropped), which follow each other.
    """

    mean: Float[Tensor, "rows channels height width"]
    std: Float[Tensor, "rows channels height width"]
    members: tuple[int, ...]
    """Which pictures of the folder these are, in the order of the rows."""

    variants: int = 1
    masks: Float[Tensor, "rows 1 height width"] | None = None
    """How much each place counts in the loss; None where no picture has a mask."""

    turns: tuple[int, ...] = ()
    """Places in ``members`` in which every subject comes equally often; empty where there is one subject."""

    @property
    def pass_length(self) -> int:
        """How many samples one pass over the pictures has."""
        return len(self.turns or self.members)

    def follow(self, places: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """Returns the pictures of this cache at ``places`` of a pass."""
        return torch.tensor(self.turns)[places] if self.turns else places

    def pick(self, pictures: Int64[Tensor, " batch"], generator: torch.Generator) -> Int64[Tensor, " batch"]:
        """Returns one row for each picture of this cache, drawn on the processor, the same everywhere."""
        if self.variants == 1:
            return pictures
        drawn = torch.randint(self.variants, (len(pictures),), generator=generator)
        return pictures * self.variants + drawn

    def sample(
        self, rows: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns one draw of each row's latents; the draw is made on the processor, the same everywhere."""
        chosen = rows.to(self.mean.device)
        spread = torch.randn((len(rows), *self.mean.shape[1:]), generator=generator).to(self.mean.device)
        return self.mean[chosen] + self.std[chosen] * spread


def read_resolution(pipeline: Any) -> int:
    """Returns the side in pixels of the pictures that the base makes."""
    unet = getattr(pipeline, "unet", None)
    places = unet.config.sample_size if unet is not None else getattr(pipeline, "default_sample_size", 128)
    return int(places) * int(pipeline.vae_scale_factor)


def encode_pictures(
    pipeline: Any,
    pictures: Sequence[Picture],
    settings: Settings,
    *,
    resolution_pixels: int,
    seed: int,
    cache_folder: Path,
) -> tuple[LatentCache, ...]:
    """Returns the latent distributions of ``pictures``, one cache for each shape, the largest first.

    They are computed in float32 at the first sight of a picture, and read from ``cache_folder`` afterwards.

    Raises:
        UsageError: if they are to be smaller than one place of the denoiser's coarsest level.
        TrainingError: if the autoencoder answers with numbers that are not finite; the picture is named.
    """
    least = _find_step(pipeline)
    if resolution_pixels < least:
        raise UsageError(
            f"resolution_pixels {resolution_pixels} is less than this base can see: {least}",
            where="settings.resolution_pixels",
            hint=f"leave it out, for the base's own {read_resolution(pipeline)}",
        )
    framed = frame_pictures(
        [picture.image.size for picture in pictures],
        settings,
        side_pixels=resolution_pixels,
        step_pixels=least,
        seed=seed,
    )
    encoder = _Encoder(pipeline, cache_folder / FOLDER)
    with_masks = any(picture.mask is not None for picture in pictures)
    caches = []
    for frames in framed.values():
        rows = [encoder.encode(pictures[place], frame) for place, all_ in frames.items() for frame in all_]
        masks = None
        if with_masks:
            height, width = rows[0][0].shape[-2:]
            each = [
                shrink_mask(pictures[place].mask, frame, (width, height))
                for place, all_ in frames.items()
                for frame in all_
            ]
            masks = torch.stack(each).to(rows[0][0].device)
        caches.append(
            LatentCache(
                torch.cat([mean for mean, _ in rows]),
                torch.cat([std for _, std in rows]),
                members=tuple(frames),
                variants=len(next(iter(frames.values()))),
                masks=masks,
                turns=take_turns([pictures[place].subject for place in frames]),
            )
        )
    return tuple(sorted(caches, key=lambda cache: -len(cache.members)))


def _find_step(pipeline: Any) -> int:
    """Returns what sides of pictures must be multiples of, so that every level of the denoiser has whole places."""
    denoiser = getattr(pipeline, "unet", None)
    levels = len(denoiser.config.block_out_channels) if denoiser is not None else 2
    return int(pipeline.vae_scale_factor) * int(2 ** (levels - 1))


class _Encoder:
    """The autoencoder of a base with what it said before."""

    def __init__(self, pipeline: Any, folder: Path) -> None:
        self._vae = pipeline.vae
        self._device = next(self._vae.parameters()).device
        self._folder = folder
        self._shift, self._scale = _read_scaling(self._vae)
        print_ = fingerprint_component(self._vae)
        self._facts = [
            str(print_.layout),
            list(print_.weights),
            str(self._vae.dtype),
            self._device.type,
            torch.__version__,
        ]

    def encode(self, picture: Picture, frame: Frame) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation [1, channels, height, width]."""
        key = Digest.of_bytes(canonical_json([self._facts, str(picture.pixels), list(frame.to_facts())]))
        path = self._folder / f"{str(key).rpartition(':')[2]}.safetensors"
        with contextlib.suppress(OSError, SafetensorError, KeyError):
            found = load_file(path)
            return found["mean"].to(self._device), found["std"].to(self._device)
        mean, std = self._ask(picture, frame)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not a concept
            _write(path, {"mean": mean.cpu(), "std": std.cpu()})
        return mean, std

    @torch.no_grad()
    def _ask(self, picture: Picture, frame: Frame) -> tuple[Tensor, Tensor]:
        pixels = to_pixels(frame.apply(picture.image)).to(device=self._device, dtype=self._vae.dtype)
        film = _takes_films(self._vae)
        distribution = self._vae.encode(pixels[None, :, None] if film else pixels[None]).latent_dist
        mean, std = distribution.mean.float(), distribution.std.float()
        mean, std = (mean[:, :, 0], std[:, :, 0]) if film else (mean, std)
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise TrainingError(
                f"the autoencoder's latents of {picture.name!r} are not finite",
                where=f"images/{picture.name}",
                hint="load the base's autoencoder in float32 (the fp16 one of SDXL overflows)",
            )
        shift, scale = self._shift.to(mean), self._scale.to(mean)
        return (mean - shift) * scale, std * scale


def _read_scaling(vae: Any) -> tuple[Tensor, Tensor]:
    """Returns what is taken off latents and what they are multiplied by, for each channel or all alike."""
    config = vae.config
    scale = torch.tensor(1.0 if _takes_films(vae) else float(config.scaling_factor))
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift, spread = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        return shift.view(1, -1, 1, 1), scale / spread.view(1, -1, 1, 1)
    return torch.tensor(float(config.get("shift_factor") or 0.0)), scale


def _takes_films(vae: Any) -> bool:
    """An autoencoder of films, as Qwen-Image has it, takes a picture as one frame."""
    return "temperal_downsample" in vae.config


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        private = Path(file.name)
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, private)
        private.replace(path)
    finally:
        private.unlink(missing_ok=True)


def to_pixels(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """Returns an RGB picture as values in [-1, 1]."""
    values = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def shrink_mask(mask: Image.Image | None, frame: Frame, size: Size) -> Float[Tensor, "1 height width"]:
    """Returns how much each place of the latents counts, in [0, 1]; everywhere 1 without a mask."""
    if mask is None:
        return torch.ones(1, size[1], size[0])
    small = frame.apply(mask).resize(size, Image.Resampling.BOX)
    values = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255.0)[None].contiguous()
    # A crop may miss what the mask shows; such a sample would count nothing, and divide by nothing.
    return values if bool(values.any()) else torch.ones_like(values)


def take_turns(subjects: Sequence[int]) -> tuple[int, ...]:
    """Returns places in ``subjects``, one of each subject after the other; those with fewer pictures begin anew."""
    places: dict[int, list[int]] = {}
    for place, subject in enumerate(subjects):
        places.setdefault(subject, []).append(place)
    if len(places) < 2:
        return ()
    rounds = max(len(own) for own in places.values())
    return tuple(own[number % len(own)] for number in range(rounds) for own in places.values())


def iter_places(caches: Sequence[LatentCache]) -> Iterator[tuple[int, int]]:
    """Returns for each step of a cycle which cache it draws from, and the how many-th of that cache's steps it is.

    A cache has as many steps of a cycle as its pass is long, so that each picture is seen equally often.
    """
    total = sum(cache.pass_length for cache in caches)
    given = [0] * len(caches)
    for step in range(total):
        lags = [
            (step + 1) * cache.pass_length / total - done for cache, done in zip(caches, given, strict=True)
        ]
        which = max(range(len(caches)), key=lambda number: lags[number])
        yield which, given[which]
        given[which] += 1
