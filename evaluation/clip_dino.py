"""Protocol ``clip-dino``: DINO, CLIP-I and CLIP-T as DreamBooth defines them (arXiv 2208.12242, section 4.1).

DINO and CLIP-I are the mean pairwise cosine of features of generated and real pictures, CLIP-T the cosine of a
picture's and its prompt's features, with the superclass in the concept's place. Models are read from folders in the
layout of transformers, from safetensors only; nothing is fetched and no code of a folder is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from conceptry.base_locations import find_hub_cache, read_config
from conceptry.errors import InvalidFileError, NotFoundError, UsageError
from conceptry.evaluation.judges import Values, mean_distances
from conceptry.evaluation.protocols import Prompt
from conceptry.evaluation.references import Pictures, References, as_images

_BATCH: Final = 32
_HUB: Final = "hf://"
_CLIP_TYPES: Final = ("clip",)
_DINO_TYPES: Final = ("vit", "dinov2", "dinov2_with_registers")
# Of a DINO picture the middle 224 of 256 pixels are read, of a CLIP picture all of its shorter side.
_DINO_MARGIN: Final = 256 / 224
_NORMS: Final[Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models that read pictures and prompts."""

    clip: Any
    tokenizer: Any
    dino: Any


@cache
def load_models(clip: Path, dino: Path) -> Models:
    """Returns the models in two folders, or in the snapshots of ``hf://ns/repo`` in the local cache.

    Raises:
        NotFoundError: if a folder is not there.
        UsageError: if a folder holds another kind of model.
        InvalidFileError: if a model cannot be read.
    """
    from transformers import AutoModel, CLIPModel, CLIPTokenizer

    clip_folder = locate_model(clip, "clip", _CLIP_TYPES)
    dino_folder = locate_model(dino, "dino", _DINO_TYPES)
    options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    with _explained(clip_folder):
        model = CLIPModel.from_pretrained(clip_folder, **options)
        tokenizer = CLIPTokenizer.from_pretrained(clip_folder, local_files_only=True)
    bare = {"add_pooling_layer": False} if _read_type(dino_folder) == "vit" else {}
    with _explained(dino_folder):
        features = AutoModel.from_pretrained(dino_folder, trust_remote_code=False, **options, **bare)
    return Models(clip=model.eval(), tokenizer=tokenizer, dino=features.eval())


@cache
def digest_models(clip: Path, dino: Path) -> str:
    """Returns twelve digits that tell these models from others: of their settings and weights, byte by byte.

    Raises:
        NotFoundError: if a folder is not there.
        UsageError: if a folder holds another kind of model.
    """
    whole = hashlib.sha256()
    for folder in (locate_model(clip, "clip", _CLIP_TYPES), locate_model(dino, "dino", _DINO_TYPES)):
        for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12]


def locate_model(path: Path, name: str, kinds: Sequence[str]) -> Path:
    """Returns the folder of a model, which must be one of ``kinds``. Raises NotFoundError, UsageError."""
    text = str(path).replace("hf:/", _HUB, 1) if str(path).startswith("hf:/") else str(path)
    folder = _find_snapshot(text) if text.startswith(_HUB) else path.expanduser()
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"no model for --{name} at {text[:200]!r}",
            hint="name a folder as save_pretrained writes it, or hf://namespace/repo in the local cache",
        )
    found = _read_type(folder)
    if found not in kinds:
        raise UsageError(
            f"{text[:200]!r} is a model of type {found[:40]!r}, --{name} takes {' or '.join(kinds)}"
        )
    return folder


def _read_type(folder: Path) -> str:
    return str(read_config(folder / "config.json").get("model_type"))


def _find_snapshot(text: str) -> Path:
    namespace, _, repo = text.removeprefix(_HUB).partition("/")
    folder = find_hub_cache() / f"models--{namespace}--{repo}"
    main = folder / "refs" / "main"
    named = [folder / "snapshots" / main.read_text(encoding="ascii").strip()] if main.is_file() else []
    found = [*named, *sorted((folder / "snapshots").glob("*"))] if ".." not in text else []
    snapshots = [path for path in found if path.is_dir()]
    if not snapshots:
        raise NotFoundError(
            f"{text[:200]!r} is not in the local cache",
            hint=f"hf download {text.removeprefix(_HUB)} --include '*.json' '*.safetensors' '*.txt'",
        )
    return snapshots[0]


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InvalidFileError(
            f"the model in {str(folder)!r} cannot be read: {first}",
            hint="it must be complete and in safetensors; save_pretrained writes it so",
        ) from error


class ClipDinoJudge:
    """DINO is the identity, CLIP-I comes beside it, CLIP-T is the agreement with the prompt."""

    protocol = "clip-dino"

    def __init__(self, models: Models, truth: References) -> None:
        self.models, self.truth = models, truth
        reference = as_images(truth.reference)
        self._dino = self._read_dino(reference)
        self._clip = self._read_clip(reference)

    def measure_identity(self, pictures: Pictures) -> Values:
        """Returns DINO: for each picture its mean cosine with the real ones."""
        return _compare(self._read_dino(as_images(pictures)), self._dino)

    def measure_others(self, pictures: Pictures) -> Mapping[str, Values]:
        """Returns CLIP-I: for each picture its mean cosine with the real ones."""
        return {"clip_i": _compare(self._read_clip(as_images(pictures)), self._clip)}

    def measure_prompts(
        self, prompts: Sequence[Prompt], pictures: Pictures, superclass: str | None
    ) -> Values:
        """Returns CLIP-T: for each picture its cosine with the prompt that names the superclass."""
        texts = self._read_texts([prompt.with_superclass(superclass) for prompt in prompts])
        return _as_values((self._read_clip(as_images(pictures)) * texts).sum(dim=1))

    def measure_spread(self, pictures: Pictures) -> Values:
        """Returns mean distances 1 - DINO; DreamBooth takes LPIPS, whose network is none of the models here."""
        rows = [row.numpy().astype(np.float64) for row in self._read_dino(as_images(pictures))]
        return mean_distances(rows, lambda one, other: float(1.0 - one @ other))

    def measure_novelty(self, pictures: Pictures) -> Values | None:
        """Returns None: neither model says what a background is."""
        return None

    def find_ceiling(self, vae: Any) -> tuple[Pictures, Pictures]:
        """Returns the real pictures of the other half, twice: no autoencoder is between them."""
        return self.truth.ceiling, self.truth.ceiling

    @torch.inference_mode()
    def _read_dino(self, pictures: Sequence[Image.Image]) -> Tensor:
        size = int(self.models.dino.config.image_size)
        rows = [
            self.models.dino(pixel_values=batch).last_hidden_state[:, 0]
            for batch in _iter_pixels(pictures, size, round(size * _DINO_MARGIN), _NORMS["dino"])
        ]
        return F.normalize(torch.cat(rows), dim=1)

    @torch.inference_mode()
    def _read_clip(self, pictures: Sequence[Image.Image]) -> Tensor:
        clip = self.models.clip
        size = int(clip.config.vision_config.image_size)
        rows = [
            clip.visual_projection(clip.vision_model(pixel_values=batch).pooler_output)
            for batch in _iter_pixels(pictures, size, size, _NORMS["clip"])
        ]
        return F.normalize(torch.cat(rows), dim=1)

    @torch.inference_mode()
    def _read_texts(self, texts: Sequence[str]) -> Tensor:
        clip = self.models.clip
        limit = int(clip.config.text_config.max_position_embeddings)
        ids = self.models.tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        pooled = clip.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
        return F.normalize(clip.text_projection(pooled), dim=1)


def prepare_pixels(
    picture: Image.Image, size: int, shorter: int, norms: tuple[tuple[float, ...], tuple[float, ...]]
) -> Tensor:
    """Returns (3, size, size): resized until the shorter side has ``shorter`` pixels, cut in the middle, normalised."""
    scale = shorter / min(picture.size)
    width, height = (max(shorter, round(side * scale)) for side in picture.size)
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    cut = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / 255.0
    mean, std = (np.asarray(row, np.float32) for row in norms)
    return torch.from_numpy((cut - mean) / std).permute(2, 0, 1)


def _iter_pixels(
    pictures: Sequence[Image.Image],
    size: int,
    shorter: int,
    norms: tuple[tuple[float, ...], tuple[float, ...]],
) -> Iterator[Tensor]:
    for start in range(0, len(pictures), _BATCH):
        yield torch.stack([prepare_pixels(one, size, shorter, norms) for one in pictures[start:][:_BATCH]])


def _compare(rows: Tensor, references: Tensor) -> Values:
    return _as_values((rows @ references.T).mean(dim=1))


def _as_values(rows: Tensor) -> Values:
    return rows.numpy().astype(np.float64)
