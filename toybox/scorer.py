"""The scorer in use: what a picture shows, object by object, and whether it shows one particular thing or style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from conceptry.errors import NotFoundError
from conceptry.toybox import path as base_path
from conceptry.toybox.networks import GRID, ScorerNet, crop_objects
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES, COLORS, DETAILS, PATTERNS, POSITIONS, STYLES

PRESENCE: Final = 0.5
_APART: Final = 0.22
_MOST_OBJECTS: Final = 3
Pictures = NDArray[np.uint8] | Sequence[Image.Image]


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: centre and half size as shares of the picture, attributes, unit identity embedding (64,)."""

    x: float
    y: float
    half: float
    confidence: float
    kind: str
    color: str
    second: str
    pattern: str
    details: tuple[str, ...]
    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """One picture: objects (surest first), background, position, style ("unusual" if none), its embedding (32,)."""

    objects: tuple[Detection, ...]
    background: str
    position: str
    style: str
    style_embedding: NDArray[np.float32]


def as_pixels(pictures: Pictures) -> Tensor:
    """Pictures of any size as floats (n, 3, 64, 64) in [-1, 1]."""
    if isinstance(pictures, np.ndarray):
        values = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
        if values.shape[-1] != 64:
            values = F.interpolate(values, (64, 64), mode="area")
        return values / 127.5 - 1.0
    parts = [as_pixels(np.asarray(picture.convert("RGB"), np.uint8)[None]) for picture in pictures]
    return torch.cat(parts) if parts else torch.zeros(0, 3, 64, 64)


def _find(cells: Tensor) -> list[tuple[float, float, float, float]]:
    """Boxes (confidence, x, y, half) of one picture's cells (4, 8, 8), surest first; at least one."""
    presence = torch.sigmoid(cells[0])
    found: list[tuple[float, float, float, float]] = []
    for index in presence.flatten().argsort(descending=True).tolist()[:12]:
        line, column = divmod(index, GRID)
        confidence = float(presence[line, column])
        if found and confidence < PRESENCE:
            break
        dx, dy, size = cells[1:, line, column].tolist()
        x, y = (column + 0.5 + dx) / GRID, (line + 0.5 + dy) / GRID
        if all(np.hypot(x - other[1], y - other[2]) > _APART for other in found):
            found.append((confidence, x, y, float(np.clip(0.25 * np.exp(size), 0.08, 0.6))))
    return found[:_MOST_OBJECTS]


class Scorer:
    """Reads pictures of the toy world. ``Scorer.load()`` is the bundled one."""

    def __init__(self, net: ScorerNet, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.net = net.to(self.device).eval()

    @classmethod
    def load(cls, folder: Path | None = None, device: torch.device | None = None) -> Scorer:
        """The scorer kept in ``folder`` (the package's own). Raises NotFoundError."""
        file = (folder or base_path() / "scorer") / "scorer.safetensors"
        if not file.is_file():
            raise NotFoundError(f"no scorer at {file}", hint="python -m conceptry.toybox.train scorer")
        net = ScorerNet()
        net.load_state_dict({name: value.float() for name, value in load_file(file).items()})
        return cls(net, device)

    @torch.inference_mode()
    def read(self, pictures: Pictures, *, batch: int = 64) -> list[Reading]:
        """One reading for each picture (n, h, w, 3) bytes, or for each PIL image."""
        pixels = as_pixels(pictures).to(self.device)
        return [
            reading
            for start in range(0, len(pixels), batch)
            for reading in self._read(pixels[start:][:batch])
        ]

    def _read(self, pixels: Tensor) -> list[Reading]:
        output = self.net.picture(pixels)
        cells, styles = output.cells.cpu(), output.style.cpu().numpy()
        answer = {name: values.argmax(1).tolist() for name, values in output.heads.items()}
        boxes = [_find(cells[row]) for row in range(len(pixels))]
        objects = self._objects(pixels, boxes)
        return [
            Reading(
                objects=tuple(objects[row]),
                background=list(BACKGROUNDS)[answer["background"][row]],
                position=POSITIONS[answer["position"][row]],
                style=(*STYLES, "unusual")[answer["style"][row]],
                style_embedding=styles[row],
            )
            for row in range(len(pixels))
        ]

    def _objects(
        self, pixels: Tensor, boxes: list[list[tuple[float, float, float, float]]]
    ) -> list[list[Detection]]:
        rows = [row for row, found in enumerate(boxes) for _ in found]
        flat = [box for found in boxes for box in found]
        places = torch.tensor([box[1:] for box in flat], device=self.device)
        heads, embeddings = self.net.object(crop_objects(pixels[rows], places))
        answer = {name: values.argmax(1).tolist() for name, values in heads.items()}
        vectors = embeddings.cpu().numpy()
        result: list[list[Detection]] = [[] for _ in boxes]
        for index, (row, (confidence, x, y, half)) in enumerate(zip(rows, flat, strict=True)):
            kind = CLASSES[answer["class"][index]]
            choices = [answer[f"detail{slot}"][index] for slot in range(3)]
            details = tuple(
                detail.choices[min(choice, len(detail.choices) - 1)]
                for detail, choice in zip(DETAILS[kind], choices, strict=True)
            )
            result[row].append(
                Detection(
                    x=x,
                    y=y,
                    half=half,
                    confidence=confidence,
                    kind=kind,
                    color=list(COLORS)[answer["color"][index]],
                    second=list(COLORS)[answer["second"][index]],
                    pattern=PATTERNS[answer["pattern"][index]],
                    details=details,
                    embedding=vectors[index],
                )
            )
        return result

    def prototype(self, pictures: Pictures) -> NDArray[np.float32]:
        """The unit mean (64,) of the surest object's embedding over pictures of one instance."""
        return _unit_mean([reading.objects[0].embedding for reading in self.read(pictures)])

    def style_prototype(self, pictures: Pictures) -> NDArray[np.float32]:
        """The unit mean (32,) of the style embeddings of pictures in one style."""
        return _unit_mean([reading.style_embedding for reading in self.read(pictures)])

    def identity(self, pictures: Pictures, prototype: NDArray[np.float32]) -> NDArray[np.float32]:
        """For each picture the best object's cosine with ``prototype`` (n,)."""
        return np.asarray(
            [max(float(o.embedding @ prototype) for o in reading.objects) for reading in self.read(pictures)],
            np.float32,
        )

    def style(self, pictures: Pictures, prototype: NDArray[np.float32]) -> NDArray[np.float32]:
        """For each picture the cosine of its style embedding with ``prototype`` (n,)."""
        return np.asarray([float(r.style_embedding @ prototype) for r in self.read(pictures)], np.float32)


def _unit_mean(vectors: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    mean = np.mean(vectors, axis=0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)
