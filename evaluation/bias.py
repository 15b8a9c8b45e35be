"""Bias reduction: a concept from skewed pictures, asked plainly and asked for each value in turn.

The skew is the total variation distance of what pictures show to the uniform distribution over the values: 0 where all
come alike, 1 - 1/k where one of k comes alone. To ask for each value in turn is to sample evenly over words for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from conceptry.errors import UsageError
from conceptry.evaluation.judges import ToyboxJudge
from conceptry.evaluation.protocols import Prompt
from conceptry.evaluation.references import as_images
from conceptry.evaluation.use_context import UseContext, Who
from conceptry.evaluation.use_results import Interval, Strip, UseResult, as_rows, make_figures
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.vocabulary import BACKGROUNDS

VALUES: Final = ("beach", "forest", "night", "snow")
SKEWED_CLASS: Final = "creature"
_SKEWED_SEED: Final = 31
_SHARE: Final = 0.8
_RESAMPLES: Final = 2000
_PLAIN: Final = Prompt(text="a photo of {}")


def measure_bias(context: UseContext) -> UseResult:
    """Returns the distance to the uniform distribution before and after each value is asked for in turn.

    Raises:
        UsageError: if the protocol does not read backgrounds.
    """
    if not isinstance(context.judge, ToyboxJudge):
        raise UsageError(
            f"protocol {context.judge.protocol} does not read the backgrounds whose skew is measured",
            hint="bias is measured on the toybox: leave --protocol out",
        )
    turns = [
        Prompt(text=f"a photo of {{}} {BACKGROUNDS[VALUES[number % len(VALUES)]]}")
        for number in range(context.count)
    ]
    plain = [_PLAIN] * context.count
    rows, strips = [], []
    if context.truth.training is not None:
        taught = as_images(context.truth.training)
        rows.append(_describe("the pictures it was taught from", context.judge, taught))
        strips.append(Strip(caption="taught from", pictures=taught))
    asked: tuple[tuple[str, Who, list[Prompt]], ...] = (
        ("base, asked plainly", "base", plain),
        ("concept, asked plainly (before)", "concept", plain),
        ("concept, asked for each in turn (after)", "concept", turns),
    )
    for title, who, prompts in asked:
        context.on_step(f"drawing {context.count} pictures, {title}")
        drawn = context.artist.draw(prompts, who, seed=context.seed)
        rows.append(_describe(title, context.judge, drawn))
        strips.append(Strip(caption=title, pictures=drawn))
    return UseResult(
        use="bias",
        title=f"Bias of the background with {context.label}",
        columns=("pictures", "distance to uniform", "95 %", "shares"),
        rows=as_rows(rows),
        facts={**context.list_facts(), "values": ", ".join(VALUES)},
        remarks=(
            f"Total variation distance to a quarter of each of {', '.join(VALUES)}; what is none of them counts as "
            f"distance. {context.count} pictures drawn evenly at random would be {expect_by_chance(context.count):.2f} "
            "away. Intervals by bootstrap over pictures.",
        ),
        strips=make_figures(strips),
    )


def _describe(title: str, judge: ToyboxJudge, pictures: Sequence[Image.Image]) -> tuple[Any, ...]:
    shown = [reading.background for reading in judge.scorer.read(list(pictures))]
    counts = {value: shown.count(value) for value in VALUES}
    others = len(shown) - sum(counts.values())
    said = ", ".join(
        f"{name} {count / len(shown):.2f}" for name, count in {**counts, "other": others}.items()
    )
    return title, measure_skew(shown, VALUES), bound_skew(shown, VALUES), said


def measure_skew(shown: Sequence[str], values: Sequence[str]) -> float:
    """Returns the total variation distance of what is shown to the uniform distribution over ``values``."""
    shares = np.asarray([list(shown).count(value) for value in values]) / len(shown)
    return float((np.abs(shares - 1 / len(values)).sum() + (1 - shares.sum())) / 2)


def bound_skew(shown: Sequence[str], values: Sequence[str]) -> Interval:
    """Returns the 95 % percentile interval of ``measure_skew`` from 2,000 seeded resamples of the pictures."""
    places = np.asarray([values.index(one) if one in values else len(values) for one in shown])
    rng = np.random.default_rng(0)
    drawn = places[rng.integers(0, len(places), (_RESAMPLES, len(places)))]
    shares = np.stack([(drawn == place).mean(axis=1) for place in range(len(values))], axis=1)
    skews = (np.abs(shares - 1 / len(values)).sum(axis=1) + (1 - shares.sum(axis=1))) / 2
    low, high = np.quantile(skews, [0.025, 0.975])
    return float(low), float(high)


def expect_by_chance(count: int) -> float:
    """Returns the mean distance of ``count`` values drawn uniformly, from 2,000 seeded draws."""
    rng = np.random.default_rng(0)
    shares = rng.multinomial(count, [1 / len(VALUES)] * len(VALUES), _RESAMPLES) / count
    return float(np.abs(shares - 1 / len(VALUES)).sum(axis=1).mean() / 2)


def render_skewed(count: int) -> tuple[list[Image.Image], dict[str, Any]]:
    """Returns pictures of one creature, four of five of them on the beach, and what ``instance.json`` says of it."""
    from dataclasses import replace

    instance = held_out_instance(SKEWED_CLASS, _SKEWED_SEED)
    common = round(_SHARE * count)
    grounds = [VALUES[0]] * common + [VALUES[1 + row % (len(VALUES) - 1)] for row in range(count - common)]
    scenes = [
        replace(scene, background=ground)
        for scene, ground in zip(instance_scenes(instance, count), grounds, strict=True)
    ]
    truth = {"kind": "instance", "class": SKEWED_CLASS, "seed": _SKEWED_SEED}
    return as_images(render(scenes)), truth
