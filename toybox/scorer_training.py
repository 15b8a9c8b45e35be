"""The recipe of the scorer: attribute heads and supervised contrastive embeddings (arXiv 2004.11362, equation 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from conceptry.toybox.autoencoder import load_autoencoder, to_tensor
from conceptry.toybox.networks import GRID, OBJECT_HEADS, PICTURE_HEADS, ScorerNet, crop_objects
from conceptry.toybox.pictures import cached_pictures
from conceptry.toybox.roundtrip import restore_pictures
from conceptry.toybox.scorer_data import PACK, STYLE_PACK, UNKNOWN, Labels, instance_packs, label, style_packs
from conceptry.toybox.starting import set_out
from conceptry.toybox.training import Run, Settings, autocast, pick_device
from conceptry.toybox.vocabulary import CLASSES

INSTANCES_PER_CLASS: Final = 2000
_STYLES: Final = 1500
_TEMPERATURE: Final = 0.1
_APART: Final = 0.2
_VIEWS: Final = 4
_DEFAULT_PACKS: Final = 18


def contrast(embeddings: Tensor, ids: Tensor) -> Tensor:
    """The supervised contrastive loss of unit embeddings (n, d) whose equal ids (n,) belong together."""
    own = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    scores = (embeddings @ embeddings.T / _TEMPERATURE).masked_fill(own, -1e9)
    same = (ids[:, None] == ids[None, :]) & ~own
    likely = scores - scores.logsumexp(1, keepdim=True)
    found = same.sum(1)
    per_row = -(likely * same).sum(1) / found.clamp(min=1)
    return per_row[found > 0].mean()


def _augment(pixels: Tensor) -> Tensor:
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = 0.7 * torch.rand(len(pixels), 1, 1, 1, device=pixels.device) ** 2
    noise = 0.08 * torch.rand(len(pixels), 1, 1, 1, device=pixels.device) ** 2 * torch.randn_like(pixels)
    return pixels + amount * (soft - pixels) + noise


def _cell_targets(boxes: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Presence (n, 8, 8) and geometry (n, 3, 8, 8): offsets from the cell's centre in cells, log size."""
    count = len(boxes)
    present = torch.zeros(count, GRID, GRID, device=boxes.device)
    geometry = torch.zeros(count, 3, GRID, GRID, device=boxes.device)
    rows, slots = there.nonzero(as_tuple=True)
    x, y, half = boxes[rows, slots].unbind(1)
    column, line = (x * GRID).long().clamp(0, GRID - 1), (y * GRID).long().clamp(0, GRID - 1)
    present[rows, line, column] = 1.0
    offsets = torch.stack([x * GRID - column - 0.5, y * GRID - line - 0.5, torch.log(half / 0.25)], 1)
    geometry[rows, :, line, column] = offsets
    return present, geometry


def separate(embeddings: Tensor) -> Tensor:
    """How far packs (n, 4, d) of two views of an instance and two of its variant fall short of being told apart.

    The views of one should be more alike than any view of one and of the other, by ``_APART``; among many strangers
    the contrastive loss alone hardly sees a variant that differs by a little in its proportions.
    """
    alike = embeddings @ embeddings.transpose(1, 2)
    own = torch.stack([alike[:, 0, 1], alike[:, 2, 3]], 1)
    across = alike[:, :2, 2:].flatten(1)
    return (_APART - own[:, :, None] + across[:, None, :]).clamp(min=0.0).mean()


class _Batches:
    """Draws rows: packs of few classes, so that most strangers are of the same class, and groups of a style."""

    def __init__(self, packs: int, size: int, rng: np.random.Generator) -> None:
        self._packs, self._size, self._rng = packs, size, rng

    def rows(self) -> NDArray[np.int64]:
        kinds = self._rng.choice(len(CLASSES), 3, replace=False)
        per_class = self._packs // len(CLASSES)
        chosen = self._rng.integers(per_class, size=self._size) * len(CLASSES) + self._rng.choice(
            kinds, self._size
        )
        rows = (chosen[:, None] * PACK + np.arange(PACK)).ravel()
        groups = self._rng.choice(_STYLES, self._size // 3, replace=False)
        styled = (groups[:, None] * STYLE_PACK + np.arange(STYLE_PACK)).ravel() + self._packs * PACK
        return np.concatenate([rows, styled])


class _Judge:
    """All losses of the scorer on a batch."""

    def __init__(self, net: ScorerNet, labels: Labels, device: torch.device) -> None:
        self.net, self.device = net, device
        self.heads, self.style_id = torch.from_numpy(labels.heads), torch.from_numpy(labels.style_id)
        self.boxes, self.things = torch.from_numpy(labels.boxes), torch.from_numpy(labels.things)
        self.identity = torch.from_numpy(labels.identity)

    def picture(self, pixels: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Losses of the picture network and the share of right answers."""
        with autocast(self.device):
            output = self.net.picture(pixels)
        heads = self.heads[rows].to(self.device)
        boxes, there = self.boxes[rows].to(self.device), self.identity[rows].to(self.device) != UNKNOWN
        present, geometry = _cell_targets(boxes, there)
        weight = 1.0 + 9.0 * present
        loss = 4.0 * F.binary_cross_entropy_with_logits(output.cells[:, 0], present, weight=weight)
        errors = F.smooth_l1_loss(output.cells[:, 1:], geometry, reduction="none", beta=0.1).sum(1)
        loss = loss + 2.0 * (errors * present).sum() / present.sum()
        right: dict[str, float] = {}
        for index, name in enumerate(PICTURE_HEADS):
            target = heads[:, index]
            loss = loss + F.cross_entropy(output.heads[name], target, ignore_index=UNKNOWN)
            known = target != UNKNOWN
            right[name] = float((output.heads[name].argmax(1) == target)[known].float().mean())
        return loss + contrast(output.style, self.style_id[rows].to(self.device)), right

    def objects(self, pixels: Tensor, rows: Tensor, *, packs: int) -> tuple[Tensor, dict[str, float]]:
        """Losses of the object network on crops around the true, slightly shaken boxes; ``packs`` come first."""
        identity = self.identity[rows]
        which, slots = (identity != UNKNOWN).nonzero(as_tuple=True)
        boxes = self.boxes[rows][which, slots].to(self.device)
        shake = torch.randn(len(boxes), 3, device=self.device) * 0.05
        moved = torch.cat([boxes[:, :2] + boxes[:, 2:] * shake[:, :2], boxes[:, 2:] * (1 + shake[:, 2:])], 1)
        with autocast(self.device):
            heads, embedding = self.net.object(crop_objects(pixels[which], moved))
        targets = self.things[rows][which, slots].to(self.device)
        loss, right = 2.0 * contrast(embedding, identity[which, slots].to(self.device)), {}
        firsts = torch.searchsorted(which, torch.arange(packs)[:, None] * PACK + torch.arange(_VIEWS))
        loss = loss + 4.0 * separate(embedding[firsts.to(self.device)])
        for index, name in enumerate(OBJECT_HEADS):
            loss = loss + F.cross_entropy(heads[name], targets[:, index])
            right[name] = float((heads[name].argmax(1) == targets[:, index]).float().mean())
        return loss, right


def train_scorer(settings: Settings) -> None:
    """Train the scorer; averaged weights end in ``OUT/scorer/net.safetensors``."""
    torch.manual_seed(settings.seed)
    device = pick_device(settings.device)
    packs = INSTANCES_PER_CLASS * len(CLASSES)
    scenes = instance_packs(settings.seed, INSTANCES_PER_CLASS) + style_packs(settings.seed, _STYLES)
    images = cached_pictures(settings.out / "data" / f"scorer-{settings.seed}.npy", scenes)
    restored = restore_pictures(settings.out / "data" / f"restored-{settings.seed}.npy",
                                load_autoencoder(settings.out, device), images[::PACK])  # fmt: skip
    net = ScorerNet().to(device)
    set_out(settings.start, net=net)
    judge = _Judge(net, label(scenes), device)
    run = Run("scorer", settings, {"net": net}, peak_lr=2e-3)
    rng = np.random.default_rng((settings.seed, run.step))
    size = settings.batch or _DEFAULT_PACKS
    batches = _Batches(packs, size, rng)
    while run.running():
        rows = batches.rows()
        chosen = np.ascontiguousarray(images[rows])
        seen = rows % PACK == 0
        chosen[seen] = restored[rows[seen] // PACK]
        pixels = _augment(to_tensor(chosen, device))
        index = torch.from_numpy(rows)
        picture_loss, picture_right = judge.picture(pixels, index)
        object_loss, object_right = judge.objects(pixels, index, packs=size)
        run.update(picture_loss + object_loss, **picture_right, **object_right)
    run.finish()
    write_scorer(run)


def write_scorer(run: Run) -> None:
    """Write the averaged weights in half precision, and a small description, as the package carries them."""
    run.export()
    values = {name: value.half() for name, value in load_file(run.folder / "net.safetensors").items()}
    save_file(values, run.folder / "scorer.safetensors")
    _describe(run.folder / "config.json", run.step)


def _describe(path: Path, step: int) -> None:
    path.write_text(json.dumps({"schema": 1, "steps": step}, indent=2) + "\n")
