"""``concepts generate``: pictures, with the composition that made them written into each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.bases import Fit
from conceptry.cli.bases import TOYBOX, choose_base, open_base
from conceptry.cli.check import FIT
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.members import fetch_composition, read_document, rename_members
from conceptry.cli.options import MEMBER, PATH, RENAME, SEED, base_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from conceptry.composer.report import Report
    from conceptry.trainer.precision import DeviceName

METADATA_KEY: Final = "conceptry"
MAX_PICTURES: Final = 10_000
_CHUNK_PICTURES: Final = 4
_USUAL_STEPS: Final = 30
_USUAL_GUIDANCE: Final = 7.5
_NUMBERED: Final = re.compile(r"(\d{3,})\.png", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How pictures are drawn, beside the concepts."""

    prompts: tuple[str, ...]
    negative: str
    seed: int
    count: int
    steps: int
    guidance: float

    def list_pictures(self) -> list[tuple[str, int]]:
        """Returns prompt and seed of each picture: the same seeds for every prompt."""
        return [(prompt, self.seed + number) for prompt in self.prompts for number in range(self.count)]


@click.command(
    "generate",
    cls=ConceptsCommand,
    examples=(
        "concepts generate --with me/imp --prompt 'a photo of <imp> on the beach' --seed 1 -n 4 --out pictures",
        "concepts generate --with me/imp --with 'me/look*0.7' --prompt '<imp> in the style of <look>' --out pictures",
        "concepts generate --composition composition.toml --prompt 'a photo of <imp>' --out pictures",
    ),
)
@click.option(
    "--with", "members", type=MEMBER, multiple=True, help="A concept, perhaps with a strength. Repeatable."
)
@click.option(
    "--composition", type=PATH, metavar="FILE", help="A file of concepts compose instead of --with."
)
@click.option("--rename", type=RENAME, multiple=True, help="Another word for a concept: NS/NAME:OLD=NEW.")
@click.option(
    "--prompt", "prompts", multiple=True, required=True, metavar="TEXT", help="What to draw. Repeatable."
)
@click.option("--negative", default="", metavar="TEXT", help="What to keep out.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Of the first picture; the next ones follow."
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, MAX_PICTURES),
    default=1,
    show_default=True,
    help="Pictures of each prompt.",
)
@click.option(
    "--out", type=PATH, required=True, metavar="DIR", help="Folder for the pictures; none is overwritten."
)
@click.option(
    "--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: 20 toybox, 30 others]"
)
@click.option("--guidance", type=float, help="Classifier-free guidance.  [default: 3 toybox, 7.5 others]")
@base_option
@click.option("--fit", type=FIT, help="How closely every concept must fit.  [default: what its kind asks]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
)
@pass_session
def generate(session: Session, /, *, out: Path, fit: str | None, device: DeviceName, **given: Any) -> None:
    """Draw pictures with concepts attached to a base.

    Each PNG carries prompt, seed and composition in its metadata. Without --with the base draws alone.
    """
    document, composition = None, None
    if given["members"] or given["composition"]:
        document = read_document(rename_members(given["members"], given["rename"]), given["composition"])
        composition = fetch_composition(session, document)
    concepts = [member.concept for member in composition.members] if composition else []
    named = given["base"] or (document.base if document else None)
    location = choose_base(session, named, concepts)
    drawing = _make_drawing(given, is_toybox=location.family == TOYBOX)
    _make_folder(out)
    pipeline = open_base(session, location, device=device)
    if composition is None:
        paths = _draw_all(session, pipeline, drawing, out=out, report=None)
    else:
        from conceptry.composer.attach import attach

        with attach(composition, pipeline, fit=None if fit is None else Fit[fit.upper()]) as report:
            _warn(session, report, drawing.prompts)
            paths = _draw_all(session, pipeline, drawing, out=out, report=report)
    _say(session, drawing, paths, out)


def _make_drawing(given: dict[str, Any], *, is_toybox: bool) -> Drawing:
    from conceptry.toybox import GUIDANCE_SCALE, INFERENCE_STEPS

    if any(not prompt.strip() for prompt in given["prompts"]):
        raise UsageError("a prompt is empty", hint="write what to draw, such as 'a photo of <imp>'")
    usual = (INFERENCE_STEPS, GUIDANCE_SCALE) if is_toybox else (_USUAL_STEPS, _USUAL_GUIDANCE)
    steps, guidance = given["steps"], given["guidance"]
    return Drawing(
        prompts=given["prompts"],
        negative=given["negative"],
        seed=given["seed"],
        count=given["count"],
        steps=usual[0] if steps is None else steps,
        guidance=usual[1] if guidance is None else guidance,
    )


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{str(out)!r} is a file", hint="name a folder")
    out.mkdir(parents=True, exist_ok=True)


def _warn(session: Session, report: Report, prompts: Sequence[str]) -> None:
    for warning in report.warnings:
        session.out.warn(warning)
    for applied in report.concepts:
        words = list(applied.words.values())
        if words and not any(word.casefold() in prompt.casefold() for word in words for prompt in prompts):
            session.out.warn(f"no prompt says {' or '.join(words)}, the word that calls {applied.label}")


def _draw_all(
    session: Session, pipeline: Any, drawing: Drawing, *, out: Path, report: Report | None
) -> list[Path]:
    from conceptry.composer.generate import generate as draw

    pictures = drawing.list_pictures()
    names = _iter_free_names(out)
    paths: list[Path] = []
    with track(session.out, "drawing") as meter:
        for start in range(0, len(pictures), _CHUNK_PICTURES):
            meter.update(start, len(pictures), f"picture {start + 1}")
            chunk = pictures[start : start + _CHUNK_PICTURES]
            drawn = draw(
                pipeline,
                [prompt for prompt, _ in chunk],
                [seed for _, seed in chunk],
                steps=drawing.steps,
                guidance=drawing.guidance,
                negative=drawing.negative,
            )
            for picture, (prompt, seed) in zip(drawn, chunk, strict=True):
                facts = _describe(drawing, prompt=prompt, seed=seed, report=report)
                paths.append(_save(picture, next(names), facts))
    return paths


def _describe(drawing: Drawing, *, prompt: str, seed: int, report: Report | None) -> dict[str, Any]:
    """Returns what is written into a picture: all that draws it again."""
    return {
        "schema": 1,
        "prompt": prompt,
        "negative": drawing.negative,
        "seed": seed,
        "steps": drawing.steps,
        "guidance": drawing.guidance,
        "composition": None if report is None else report.to_json(),
    }


def _iter_free_names(folder: Path) -> Iterator[Path]:
    found = (_NUMBERED.fullmatch(path.name) for path in folder.iterdir())
    number = max((int(match[1]) + 1 for match in found if match), default=0)
    while True:
        yield folder / f"{number:03d}.png"
        number += 1


def _save(picture: Image, path: Path, facts: dict[str, Any]) -> Path:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(facts, ensure_ascii=False, sort_keys=True))
    partial = path.with_name(f".{path.name}.partial")
    try:
        picture.save(partial, format="PNG", pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _say(session: Session, drawing: Drawing, paths: list[Path], out: Path) -> None:
    rows = [
        {"path": str(path), "prompt": prompt, "seed": seed}
        for path, (prompt, seed) in zip(paths, drawing.list_pictures(), strict=True)
    ]
    said = f"{count_things(len(paths), 'picture')} in {out}: {paths[0].name} to {paths[-1].name}"
    session.out.emit({"folder": str(out), "pictures": rows}, [said], quiet=[str(path) for path in paths])
