"""A small classifier of pictures, trained from nothing: what a person with a few pictures of each class would train."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from conceptry.toybox.scorer import Pictures, as_pixels

SIDE_PIXELS: Final = 32
_WIDTHS: Final = (24, 48, 96)
_BATCH: Final = 96
_MOST_SHIFT_PIXELS: Final = 3
_LEARNING_RATE: Final = 1e-2
_WEIGHT_DECAY: Final = 1e-3
Values = NDArray[np.float64]


def prepare(pictures: Pictures) -> Tensor:
    """Returns pictures of any size as floats (n, 3, 32, 32) in [-1, 1]."""
    return F.avg_pool2d(as_pixels(pictures), 64 // SIDE_PIXELS)


class SmallNet(nn.Module):
    """Three convolutions of stride 2, the mean and the largest value of each channel, and one linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            convolution = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * before, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns a number for each class (n, classes)."""
        found = self.body(pixels)
        answer: Tensor = self.head(torch.cat([found.mean((2, 3)), found.amax((2, 3))], dim=1))
        return answer


def fit(
    pictures: Tensor, labels: Tensor, classes: int, *, seed: int, steps: int, balanced: bool = False
) -> SmallNet:
    """Returns a classifier that was trained on ``pictures``; equal seeds give equal ones on one machine.

    Args:
        pictures: (n, 3, 32, 32), as ``prepare`` makes them.
        labels: (n,) the class of each.
        classes: how many there are.
        seed: of the first weights, the batches, and how their pictures are mirrored and shifted.
        steps: of AdamW, with batches of 96, or of as many as there are.
        balanced: whether each class is drawn as often as any other, however few its pictures.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SmallNet(classes)
    rng = torch.Generator().manual_seed(seed)
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    weights = 1.0 / counts[labels] if balanced else torch.ones(len(labels))
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=max(steps, 2))
    size = min(_BATCH, len(labels))
    for _ in range(steps):
        rows = torch.multinomial(weights.float(), size, replacement=True, generator=rng)
        loss = F.cross_entropy(net(_vary(pictures[rows], rng)), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()


def _vary(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrors half of the pictures and shifts all of them together by a few pixels."""
    mirrored = torch.rand(len(pixels), generator=rng) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    down, across = torch.randint(0, 2 * _MOST_SHIFT_PIXELS + 1, (2,), generator=rng).tolist()
    side = pixels.shape[-1]
    padded = F.pad(pixels, [_MOST_SHIFT_PIXELS] * 4, mode="replicate")
    return padded[:, :, down : down + side, across : across + side]


@torch.inference_mode()
def measure_recalls(net: SmallNet, pictures: Tensor, labels: Tensor, classes: int) -> Values:
    """Returns for each class the share of its pictures that are told; their mean is the balanced accuracy."""
    answers = net(pictures).argmax(1)
    return np.asarray([float((answers[labels == one] == one).float().mean()) for one in range(classes)])
