"""A picture of what concepts do to one another: a row for each pair, a column for each block of the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from conceptry.composer.blocks import name_block
from conceptry.composer.conflicts import STRONG, Conflict, LayerConflict
from conceptry.evaluation.sheets import save_sheet

_CELL: Final = (74, 34)
_LABEL_PIXELS: Final = 330
_HEAD_PIXELS: Final = 118
_MARGIN_PIXELS: Final = 14
_FOOT_PIXELS: Final = 30
_INK: Final = (30, 32, 38)
_FAINT: Final = (140, 144, 152)
_PAPER: Final = (255, 255, 255)
_NOTHING: Final = (240, 241, 243)
# Reinforcing and cancelling, told apart by the color-blind too (orange and blue of the palette of Okabe and Ito).
_REINFORCING: Final = (213, 94, 0)
_CANCELLING: Final = (0, 114, 178)
_MOST_PAIRS: Final = 60
_LEGEND: Final = (
    "overlap in units of chance; orange: the concepts reinforce one another there, blue: they cancel"
)


def draw_conflicts(conflicts: Sequence[Conflict]) -> Image.Image:
    """Returns the sheet; the worst pairs come first, and of very many only these."""
    worst = sorted(conflicts, key=lambda one: -one.overlap)[:_MOST_PAIRS]
    blocks = sorted({name_block(layer.module) for one in worst for layer in one.layers}, key=_order)
    width = _LABEL_PIXELS + _CELL[0] * max(1, len(blocks)) + 2 * _MARGIN_PIXELS
    height = _HEAD_PIXELS + _CELL[1] * len(worst) + _FOOT_PIXELS + _MARGIN_PIXELS
    sheet = Image.new("RGB", (max(width, 760), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    for column, block in enumerate(blocks):
        place = (_MARGIN_PIXELS + _LABEL_PIXELS + column * _CELL[0], _HEAD_PIXELS - 70)
        draw.multiline_text(place, _fold(block), fill=_INK, font=small, spacing=2)
    for line, conflict in enumerate(worst):
        top = _HEAD_PIXELS + line * _CELL[1]
        label = f"{conflict.first}  +  {conflict.second}"
        draw.text((_MARGIN_PIXELS, top + 8), label[:48], fill=_INK, font=font)
        by_block: dict[str, list[LayerConflict]] = {}
        for layer in conflict.layers:
            by_block.setdefault(name_block(layer.module), []).append(layer)
        for column, block in enumerate(blocks):
            left = _MARGIN_PIXELS + _LABEL_PIXELS + column * _CELL[0]
            _draw_cell(draw, (left, top), by_block.get(block, []), small)
    draw.text((_MARGIN_PIXELS, height - _FOOT_PIXELS), _LEGEND, fill=_FAINT, font=small)
    return sheet


def save_conflicts(conflicts: Sequence[Conflict], path: Path) -> None:
    """Writes the sheet as a PNG; no half of it is ever seen."""
    save_sheet(draw_conflicts(conflicts), path)


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    layers: Sequence[LayerConflict],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    box = (place[0], place[1], place[0] + _CELL[0] - 3, place[1] + _CELL[1] - 3)
    if not layers:
        draw.rectangle(box, fill=_NOTHING)
        return
    overlap = _mean(max(layer.input_overlap, layer.output_overlap) for layer in layers)
    cosine = _mean(layer.cosine for layer in layers)
    draw.rectangle(box, fill=choose_color(overlap, cosine))
    draw.text((place[0] + 6, place[1] + 9), f"{overlap:.1f}  {cosine:+.2f}", fill=_INK, font=font)


def choose_color(overlap: float, cosine: float) -> tuple[int, int, int]:
    """Returns white at chance and full color at a strong overlap, on a scale of ratios; its hue tells the sign."""
    depth = min(1.0, max(0.0, math.log(max(overlap, 1e-9)) / math.log(STRONG)))
    hue = _REINFORCING if cosine >= 0 else _CANCELLING
    red, green, blue = (round(255 + depth * (part - 255) * 0.8) for part in hue)
    return red, green, blue


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def _fold(block: str) -> str:
    component, _, rest = block.partition(".")
    return f"{component}\n{rest.replace('_blocks.', ' ').replace('_block', '')}"


def _order(block: str) -> tuple[int, str]:
    """Returns a key that puts text encoders first, then the way down, the middle, and the way up."""
    ranks = ("text_encoder", "unet.conv_in", "unet.time", "unet.down", "unet.mid", "unet.up")
    return next((place for place, begin in enumerate(ranks) if block.startswith(begin)), len(ranks)), block
