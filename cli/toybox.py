"""``concepts toybox ...``: the bundled world, its base model and its scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from conceptry.cli.groups import ConceptsGroup
from conceptry.cli.options import PATH
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things
from conceptry.errors import UsageError


@click.group(cls=ConceptsGroup)
def toybox() -> None:
    """Render the bundled world; find and measure its base model."""


@toybox.command(
    "render",
    examples=(
        "concepts toybox render --class creature --instance 7 -n 6 --out imp",
        "concepts toybox render --style 3 -n 6 --out look",
    ),
)
@click.option(
    "--class", "cls", metavar="CLASS", help="What the instance is: creature, house, flower, cup, ..."
)
@click.option("--instance", type=int, metavar="SEED", help="Which instance of the class.")
@click.option("--style", type=int, metavar="SEED", help="Which style; the scenes show many things in it.")
@click.option("-n", "count", type=int, default=6, show_default=True, help="How many pictures.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder for pictures and captions.")
@pass_session
def render(session: Session, /, *, out: Path, count: int, **chosen: Any) -> None:
    """Draw pictures of one particular thing, or in one style.

    The base model and the scorer have never seen it. The folder also gets captions.jsonl, and instance.json with the
    true attributes; it can be trained on as it is.
    """
    with track(session.out, "rendering"):
        paths = _render(chosen["cls"], chosen["instance"], chosen["style"], count=count, out=out)
    session.out.emit(
        {"folder": str(out), "pictures": [str(path) for path in paths]},
        [f"{count_things(len(paths), 'picture')} in {out}"],
        quiet=[str(path) for path in paths],
    )


def _render(cls: str | None, instance: int | None, style: int | None, *, count: int, out: Path) -> list[Path]:
    from conceptry import toybox as room

    if style is not None and (cls is not None or instance is not None):
        raise UsageError(
            "an instance and a style are two things", hint="give --class and --instance, or --style"
        )
    if style is not None:
        return room.render_style(style, count, out)
    if cls is None or instance is None:
        raise UsageError(
            "nothing says what to draw", hint="concepts toybox render --class creature --instance 7 --out imp"
        )
    return room.render_instance(cls, instance, count, out)


@toybox.command("path", examples=("concepts toybox path",))
@pass_session
def path(session: Session, /) -> None:
    """Print the folder of the bundled base model.

    It is in the diffusers layout: StableDiffusionPipeline.from_pretrained takes it.
    """
    from conceptry.toybox import path as find_path

    folder = str(find_path())
    session.out.emit({"path": folder}, [folder], quiet=[folder])


@toybox.command(
    "evaluate",
    examples=("concepts toybox evaluate --captions 64", "concepts toybox evaluate --json"),
)
@click.option(
    "--captions", type=click.IntRange(1), default=512, show_default=True, help="How many held-out captions."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@pass_session
def evaluate(session: Session, /, *, captions: int, device: str) -> None:
    """Measure the bundled base model and its scorer on held-out seeds.

    The same figures as python -m conceptry.toybox.evaluate; minutes on a processor.
    """
    with track(session.out, f"measuring on {captions} captions"):
        from conceptry.toybox import path as find_path
        from conceptry.toybox.evaluate import evaluate as measure

        figures = measure(find_path(), captions=captions, device=device)
    lines = [
        f"{part + '.' + name:<32}{value}"
        for part, values in figures.items()
        for name, value in values.items()
    ]
    session.out.emit(figures, lines)
