"""The pictures of a row as a strip that says what it shows: each picture's prompt, and the true thing beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from conceptry.evaluation.bench_results import ResultRow
from conceptry.evaluation.pages import make_captioned_strip
from conceptry.evaluation.protocols import PROTOCOL, Prompt, load_prompts
from conceptry.evaluation.toybench import load_suite

SHOWN_PICTURES: Final = 10
SHOWN_PIXELS: Final = 128
REFERENCES_SHOWN: Final = 2
WORD: Final = "[word]"
_REFERENCE_PART: Final = 1
_LINE: Final = (200, 40, 40)
_Item = TypeVar("_Item")


def pick_shown(items: Sequence[_Item]) -> Sequence[_Item]:
    """Returns ten of many, or all of few: the same of pictures and of their prompts."""
    return items[:: max(1, len(items) // SHOWN_PICTURES)][:SHOWN_PICTURES]


def thin_prompts(prompts: tuple[Prompt, ...], most: int | None) -> tuple[Prompt, ...]:
    """Returns at most ``most`` prompts, from all categories alike."""
    if most is None or most >= len(prompts):
        return prompts
    places = np.linspace(0, len(prompts) - 1, most).round().astype(int)
    return tuple(prompts[place] for place in places)


def make_strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns pictures side by side, none larger than 128 pixels."""
    side = min(SHOWN_PIXELS, max(picture.width for picture in pictures))
    strip = Image.new("RGB", (side * len(pictures), side), (255, 255, 255))
    for index, picture in enumerate(pictures):
        strip.paste(picture.convert("RGB").resize((side, side)), (side * index, 0))
    return strip


def locate_reference(subject_id: str) -> str:
    """Returns the name of the file, beside results, that shows a subject of own pictures."""
    return f"pictures/reference/{subject_id}.webp"


def list_prompts(row: ResultRow, protocol: str, tiles: int) -> list[str]:
    """Returns the prompts of the pictures that a row's strip shows; nothing where they do not fit it."""
    name = protocol.partition(" ")[0]
    all_ = load_suite().prompts[row.kind] if name == PROTOCOL else load_prompts(row.kind, name)
    asked = thin_prompts(all_, row.prompts or (tiles if tiles < SHOWN_PICTURES else None))
    shown = pick_shown(asked)
    return [prompt.with_concept(WORD) for prompt in shown] if len(shown) == tiles else []


@cache
def render_truth(subject_id: str) -> Image.Image | None:
    """Returns the subject of the suite in renders that no method was taught; None for others."""
    from conceptry.toybox.examples import held_out_instance, held_out_style, instance_scenes, style_scenes
    from conceptry.toybox.render import render

    subject = next((one for one in load_suite().subjects if one.id == subject_id), None)
    if subject is None or subject.seed is None:
        return None
    if subject.cls is None:
        scenes = style_scenes(held_out_style(subject.seed), REFERENCES_SHOWN, part=_REFERENCE_PART)
    else:
        instance = held_out_instance(subject.cls, subject.seed)
        scenes = instance_scenes(instance, REFERENCES_SHOWN, part=_REFERENCE_PART)
    return make_strip([Image.fromarray(picture) for picture in render(scenes)])


def show_row(
    row: ResultRow, strip: Image.Image, protocol: str, *, caption: str, reference: Image.Image | None
) -> str:
    """Returns the strip of a row as HTML, with a reference before it and a line of words under each picture.

    Args:
        row: whose pictures they are.
        strip: the pictures, square, side by side.
        protocol: of the results.
        caption: what is said of the row.
        reference: pictures of the true thing; None renders it if it is one of the suite's.
    """
    truth = reference or render_truth(row.subject)
    tiles = max(1, round(strip.width / strip.height))
    prompts = list_prompts(row, protocol, tiles) or [""] * tiles
    cells = [(1, prompt) for prompt in prompts]
    if truth is not None:
        strip, count = _join(truth, strip)
        cells.insert(0, (count, f"the true {row.subject}, never taught so"))
    return make_captioned_strip(strip, caption, cells)


def _join(truth: Image.Image, strip: Image.Image) -> tuple[Image.Image, int]:
    """Returns the true thing and the strip in one picture with a line between them, and how many tiles come first."""
    side, count = strip.height, max(1, round(truth.width / truth.height))
    whole = Image.new("RGB", (side * count + strip.width, side), (255, 255, 255))
    whole.paste(truth.convert("RGB").resize((side * count, side)), (0, 0))
    whole.paste(strip.convert("RGB"), (side * count, 0))
    ImageDraw.Draw(whole).line([(side * count - 1, 0), (side * count - 1, side)], fill=_LINE, width=2)
    return whole, count
