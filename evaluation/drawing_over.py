"""Image variation and style transfer: pictures drawn over with a concept, against the base that draws over the same.

Both are SDEdit (arXiv 2108.01073): noise is added to a picture up to a strength, and taken off under a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from PIL import Image

from conceptry.composer.canvases import find_native_size
from conceptry.composer.generate import Canvas, adapt_pipeline, generate
from conceptry.evaluation.judges import Judge, ToyboxJudge, Values
from conceptry.evaluation.protocols import Prompt, load_plain_prompt
from conceptry.evaluation.references import as_images
from conceptry.evaluation.scores import bootstrap_interval
from conceptry.evaluation.use_context import DRAWERS, Artist, UseContext, Who
from conceptry.evaluation.use_results import Strip, UseResult, as_rows, make_figures
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.vocabulary import CLASSES

VARIATION_STRENGTHS: Final = (0.3, 0.5, 0.7)
STYLE_STRENGTHS: Final = (0.4, 0.6, 0.8)
_CONTENT_SEED: Final = 300
_EXPLAINED: Final = (
    "Likeness is the protocol's identity; change is the distance of a picture to what it was drawn over, as the "
    "protocol measures diversity. Intervals by bootstrap over pictures."
)


def vary_pictures(context: UseContext) -> UseResult:
    """Returns how far variations of held-out pictures stay the thing, and how far they change, at several strengths."""
    judge, sources = context.judge, as_images(context.truth.ceiling)[: context.count]
    prompt = load_plain_prompt(context.truth.subject, context.artist.protocol)
    rows, strips = _draw_rows(context, sources, [prompt] * len(sources), VARIATION_STRENGTHS)
    own = judge.measure_identity(sources)
    first = ("the pictures themselves", None, float(own.mean()), bootstrap_interval(own), 0.0, None)
    return UseResult(
        use="variation",
        title=f"Image variation with {context.label}",
        columns=("drawn by", "strength", "likeness", "95 %", "change", "95 % of change"),
        rows=as_rows([first, *(row[:-1] for row in rows)]),
        facts=context.list_facts(),
        remarks=(_EXPLAINED,),
        strips=make_figures([Strip(caption="the pictures themselves", pictures=sources), *strips]),
    )


def transfer_style(context: UseContext) -> UseResult:
    """Returns how far pictures take on a style that are drawn over, and whether they still show what they showed."""
    sources, prompts = _list_contents(context)
    rows, strips = _draw_rows(context, sources, prompts, STYLE_STRENGTHS)
    own = context.judge.measure_identity(sources)
    first = ("the pictures themselves", None, float(own.mean()), bootstrap_interval(own), 0.0, None, 1.0)
    return UseResult(
        use="style-transfer",
        title=f"Style transfer with {context.label}",
        columns=("drawn by", "strength", "likeness", "95 %", "change", "95 % of change", "content kept"),
        rows=as_rows([first, *rows]),
        facts=context.list_facts(),
        remarks=(
            _EXPLAINED,
            "Content kept is the share of pictures whose object is still read as its class; other protocols than "
            "toybox-1 do not read classes.",
        ),
        strips=make_figures([Strip(caption="the pictures themselves", pictures=sources), *strips]),
    )


def _list_contents(context: UseContext) -> tuple[list[Image.Image], list[Prompt]]:
    """The pictures that take on the style, with a prompt for each: somebody's own, or renders of every class."""
    if context.contents:
        pictures = list(context.contents[: context.count])
        return pictures, [load_plain_prompt("style", context.artist.protocol)] * len(pictures)
    kinds = [CLASSES[number % len(CLASSES)] for number in range(context.count)]
    scenes = [
        instance_scenes(held_out_instance(kind, _CONTENT_SEED + number), 1)[0]
        for number, kind in enumerate(kinds)
    ]
    prompts = [Prompt(text=f"a photo of a {kind} in the style of {{}}", kind=kind) for kind in kinds]
    return as_images(render(scenes)), prompts


def _draw_rows(
    context: UseContext,
    sources: Sequence[Image.Image],
    prompts: Sequence[Prompt],
    strengths: Sequence[float],
) -> tuple[list[tuple[Any, ...]], list[Strip]]:
    """A row and a strip for the base and the concept at each strength; the base is asked without the concept's word."""
    artist, judge = context.artist, context.judge
    rows, strips = [], []
    kinds = _read_kinds(judge, sources)
    for who in DRAWERS:
        for strength in strengths:
            context.on_step(f"drawing over {len(sources)} pictures at {strength:g}, {who}")
            drawn = draw_over(artist, sources, prompts, strength=strength, seed=context.seed, who=who)
            likeness = judge.measure_identity(drawn)
            change = measure_change(judge, sources, drawn)
            kept = _compare_kinds(kinds, _read_kinds(judge, drawn))
            spans = bootstrap_interval(likeness), bootstrap_interval(change)
            rows.append(
                (who, strength, float(likeness.mean()), spans[0], float(change.mean()), spans[1], kept)
            )
            strips.append(Strip(caption=f"{who}, strength {strength:g}", pictures=drawn))
    return rows, strips


def draw_over(
    artist: Artist,
    sources: Sequence[Image.Image],
    prompts: Sequence[Prompt],
    *,
    strength: float,
    seed: int,
    who: Who = "concept",
) -> list[Image.Image]:
    """Returns each picture drawn over, by the concept or by the base alone, from noise of its own seed.

    Raises:
        IncompatibleError: if the concept does not fit, or the kind of pipeline cannot draw over a picture.
    """
    size = find_native_size(artist.pipeline)
    canvases = [
        Canvas(width=size[0], height=size[1], image=one.convert("RGB").resize(size), strength=strength)
        for one in sources
    ]
    if not canvases:
        return []
    sibling = adapt_pipeline(artist.pipeline, canvases[0])
    pictures: list[Image.Image] = []
    # So few steps of so weak a noise would be none.
    steps = max(artist.drawing.steps, int(np.ceil(1 / strength)))
    drawing = replace(artist.drawing, steps=steps)
    with artist.enter(who, sibling):
        for number, (canvas, prompt) in enumerate(zip(canvases, prompts, strict=True)):
            pictures += generate(
                sibling,
                [artist.ask(prompt, who)],
                [seed + number],
                steps=drawing.steps,
                guidance=drawing.guidance,
                canvas=canvas,
            )
    return pictures


def measure_change(judge: Judge, sources: Sequence[Image.Image], drawn: Sequence[Image.Image]) -> Values:
    """Returns for each picture its distance to the one that it was drawn over, as the judge measures diversity."""
    pairs = [
        judge.measure_spread([source.convert("RGB").resize(one.size), one])[0]
        for source, one in zip(sources, drawn, strict=True)
    ]
    return np.asarray(pairs, np.float64)


def _read_kinds(judge: Judge, pictures: Sequence[Image.Image]) -> list[str] | None:
    """The class of the surest object of each picture, where the judge reads classes."""
    if not isinstance(judge, ToyboxJudge):
        return None
    return [reading.objects[0].kind for reading in judge.scorer.read(list(pictures))]


def _compare_kinds(before: list[str] | None, after: list[str] | None) -> float | None:
    if before is None or after is None:
        return None
    return float(np.mean([one == other for one, other in zip(before, after, strict=True)]))
