"""The scorer's two small networks: one reads a whole picture, one reads a crop around an object."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES, COLORS, PATTERNS, POSITIONS, STYLES

GRID: Final = 8
CROP: Final = 40
CROP_MARGIN: Final = 1.12
MAX_CHOICES: Final = 5
PICTURE_HEADS: Final = {"background": len(BACKGROUNDS), "position": len(POSITIONS), "style": len(STYLES) + 1}
OBJECT_HEADS: Final = {
    "class": len(CLASSES), "color": len(COLORS), "second": len(COLORS), "pattern": len(PATTERNS),
    "detail0": MAX_CHOICES, "detail1": MAX_CHOICES, "detail2": MAX_CHOICES,
}  # fmt: skip


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(8, outer)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(8, outer)
        same = inner == outer and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.first_norm(self.first(x)))
        return F.silu(self.skip(x) + self.second_norm(self.second(y)))


class PictureOutput(NamedTuple):
    """``cells`` (n, 4, 8, 8): presence logit, offsets, log size; head logits; unit style embeddings (n, 32)."""

    cells: Tensor
    heads: dict[str, Tensor]
    style: Tensor


class PictureNet(nn.Module):
    """Reads pictures (n, 3, 64, 64) in [-1, 1]: where objects are, background, position, style."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 5, 2, 2)
        self.early = _Block(32, 64, 2)
        self.late = nn.Sequential(_Block(64, 96, 2), _Block(96, 128), _Block(128, 128))
        self.cells = nn.Conv2d(128, 4, 1)
        self.place = nn.Linear(256 + 32 * 16, 256)
        self.squeeze = nn.Conv2d(128, 32, 1)
        self.heads = nn.ModuleDict({name: nn.Linear(256, size) for name, size in PICTURE_HEADS.items()})
        self.style = nn.Sequential(nn.Linear(2 * (32 + 64 + 128), 128), nn.SiLU(), nn.Linear(128, 32))

    def forward(self, pixels: Tensor) -> PictureOutput:
        """Everything that is read from pictures (n, 3, 64, 64)."""
        low = F.silu(self.stem(pixels))
        early = self.early(low)
        late = self.late(early)
        layout = F.avg_pool2d(self.squeeze(late), 2).flatten(1)
        joined = F.silu(self.place(torch.cat([late.mean((2, 3)), late.amax((2, 3)), layout], 1)))
        levels = [level.float().flatten(2) for level in (low, early, late)]
        statistics = [part for level in levels for part in (level.mean(2), level.std(2))]
        style = F.normalize(self.style(torch.cat(statistics, 1)).float(), dim=1)
        return PictureOutput(
            self.cells(late).float(), {k: h(joined).float() for k, h in self.heads.items()}, style
        )


class ObjectNet(nn.Module):
    """Reads crops (n, 3, 40, 40): attribute logits and unit identity embeddings (n, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 5, 2, 2)
        self.body = nn.Sequential(_Block(48, 96, 2), _Block(96, 160, 2), _Block(160, 160))
        self.squeeze = nn.Conv2d(160, 32, 1)
        self.joined = nn.Linear(32 * 25 + 160, 256)
        self.heads = nn.ModuleDict({name: nn.Linear(256, size) for name, size in OBJECT_HEADS.items()})
        self.identity = nn.Linear(256, 64)

    def forward(self, crops: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits by head, and unit embeddings (n, 64), of crops (n, 3, 40, 40)."""
        features = self.body(F.silu(self.stem(crops)))
        flat = torch.cat([self.squeeze(features).flatten(1), features.mean((2, 3))], 1)
        joined = F.silu(self.joined(flat))
        embedding = F.normalize(self.identity(joined).float(), dim=1)
        return {name: head(joined).float() for name, head in self.heads.items()}, embedding


class ScorerNet(nn.Module):
    """Both networks under one name, as they are kept in one file."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = PictureNet()
        self.object = ObjectNet()


def crop_objects(pixels: Tensor, boxes: Tensor) -> Tensor:
    """Crops (n, 3, 40, 40) of pictures (n, 3, h, w) around boxes (n, 3): centre x, y and half size as shares."""
    half = boxes[:, 2] * CROP_MARGIN * 2.0
    zero = torch.zeros_like(half)
    rows = [
        torch.stack([half, zero, 2 * boxes[:, 0] - 1], 1),
        torch.stack([zero, half, 2 * boxes[:, 1] - 1], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [len(pixels), 3, CROP, CROP], align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
