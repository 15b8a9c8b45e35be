"""Contact sheets: rows of pictures under one head line, so that a person can judge with one look."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

_MARGIN_PIXELS: Final = 10
_LABEL_PIXELS: Final = 190
_HEAD_PIXELS: Final = 76
_FONT_PIXELS: Final = 15
_INK: Final = (30, 32, 38)
_FAINT: Final = (120, 124, 132)
_PAPER: Final = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One row: what it is called, a second line in grey, its pictures."""

    title: str
    note: str
    pictures: tuple[Image.Image, ...]


def draw_sheet(columns: Sequence[str], rows: Sequence[SheetRow], *, cell_pixels: int = 128) -> Image.Image:
    """Returns one picture with a column head over each column and a label before each row.

    Rows may be shorter than ``columns``; small pictures are enlarged without smoothing, as their pixels are.
    """
    step = cell_pixels + _MARGIN_PIXELS
    size = (
        _LABEL_PIXELS + step * len(columns) + _MARGIN_PIXELS,
        _HEAD_PIXELS + step * len(rows) + _MARGIN_PIXELS,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_PIXELS)
    for index, head in enumerate(columns):
        _write(draw, (_LABEL_PIXELS + step * index, _MARGIN_PIXELS), head, font, _INK, cell_pixels)
    for line, row in enumerate(rows):
        top = _HEAD_PIXELS + step * line
        _write(draw, (_MARGIN_PIXELS, top + 8), row.title, font, _INK, _LABEL_PIXELS - 2 * _MARGIN_PIXELS)
        _write(draw, (_MARGIN_PIXELS, top + 52), row.note, font, _FAINT, _LABEL_PIXELS - 2 * _MARGIN_PIXELS)
        for index, picture in enumerate(row.pictures[: len(columns)]):
            sheet.paste(_fit(picture, cell_pixels), (_LABEL_PIXELS + step * index, top))
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes ``sheet`` as a PNG beside its final name and renames it, so that no half picture is ever seen."""
    partial = path.with_name(f".{path.name}.partial")
    sheet.save(partial, format="PNG")
    partial.replace(path)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    color: tuple[int, int, int],
    width_pixels: int,
) -> None:
    characters = max(8, int(width_pixels / (0.53 * _FONT_PIXELS)))
    draw.multiline_text(
        place, "\n".join(textwrap.wrap(text, characters)[:3]), fill=color, font=font, spacing=3
    )


def _fit(picture: Image.Image, cell_pixels: int) -> Image.Image:
    enlarging = picture.width <= cell_pixels
    method = Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((cell_pixels, cell_pixels), method)
