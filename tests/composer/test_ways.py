"""Every pair of kinds in every way of working together: against the same passes made by hand."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conceptry.composer import Composition, attach
from conceptry.composer.emphasis import emphasized, join_pieces
from conceptry.composer.generate import BLANK, Canvas, adapt_pipeline, generate
from conceptry.composer.prompts import parse_weights
from conceptry.composition import Region, Use, Way
from conceptry.concepts import Concept
from tests.fakes.forwards import make_calm_pipeline
from tests.fakes.kinds import KINDS, find_word, make_kind
from tests.fakes.pipelines import Shape, assert_same, snapshot

PAIRS: Final = tuple(itertools.combinations_with_replacement([row.id for row in KINDS], 2))
SHAPES: Final = ("sd1", "sdxl")
DIAGONAL: Final = (("sd1", ("xti", "perfusion")), ("sdxl", ("lora", "perfusion_global")))
TOLERANCE: Final = 1e-4
"""Of the largest value: a share is a fourth power of a quotient of differences of float32."""

Encoded = tuple[Tensor, Tensor | None]
OFF: Final = {"text_encoder": 0.0, "text_encoder_2": 0.0, "unet": 0.0}
QUIET: Final = {"text_encoder": 0.0, "text_encoder_2": 0.0}
"""Text encoders are steered by nobody: a concept by itself is one whose words alone are read."""


@functools.cache
def lend_calm(shape: Shape) -> Any:
    """Every test leaves it as it was, to the bit."""
    return make_calm_pipeline(shape)


@torch.no_grad()
def encode(pipeline: Any, prompts: list[str]) -> Encoded:
    found = pipeline.encode_prompt(
        prompt=prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return found[0], found[2] if len(found) > 2 else None


@torch.no_grad()
def predict(pipeline: Any, encoded: Encoded, *, time: int = 5) -> Tensor:
    """What the denoiser answers to the same noise in each row."""
    rows = len(encoded[0])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).expand(rows, -1, -1, -1)
    added = None if encoded[1] is None else {"text_embeds": encoded[1], "time_ids": torch.ones(rows, 6)}
    answer: Tensor = pipeline.unet(
        noise, time, encoder_hidden_states=encoded[0], added_cond_kwargs=added
    ).sample
    return answer


def lead_away(pipeline: Any, prompts: list[str]) -> Encoded:
    """Rows as guidance has them: those that it leads away from, then those of the prompts."""
    negative, encoded = encode(pipeline, ["a dog", "a house"]), encode(pipeline, prompts)
    pooled = None
    if encoded[1] is not None and negative[1] is not None:
        pooled = torch.cat([negative[1], encoded[1]])
    return torch.cat([negative[0], encoded[0]]), pooled


def name_of(concept: Concept) -> str:
    return str(concept.manifest.name)


def write_prompt(*words: str) -> str:
    return "a photo of " + " and ".join(word for word in words if word)


def near(found: Tensor, expected: Tensor, plain: Tensor, what: Any) -> None:
    assert (expected - plain).abs().max() > 1e-3 * expected.abs().max(), (
        what
    )  # the test would see nothing done
    error = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    assert error <= TOLERANCE, (*what, error)


# --- the same by hand ------------------------------------------------------------------------------------------------


def focus_by_hand(pipeline: Any, pair: tuple[Concept, Concept]) -> Tensor:
    """The base with superclasses, then each alone in a pipeline of its own; two prompts, the second of one word."""
    words = [find_word(one) for one in pair]
    supers = [(one.manifest.tokens[0].superclass or "") if one.manifest.tokens else "" for one in pair]
    plain_rows = [write_prompt(*supers), write_prompt(supers[0])]
    plain = predict(pipeline, lead_away(pipeline, plain_rows))
    changes, called = [], []
    for place, concept in enumerate(pair):
        said = [word if place == number else supers[number] for number, word in enumerate(words)]
        with attach(Composition(concept, use={name_of(concept): Use(parts=QUIET)}), pipeline):
            rows = encode(pipeline, [write_prompt(*said), write_prompt(said[0])])
            changes.append(predict(pipeline, rows).double() - plain[2:].double())
        # What has no word is called by every prompt.
        called.append(torch.tensor([1.0, float(place == 0 or not words[place])], dtype=torch.float64))
    found = []
    for change, rows_called in zip(changes, called, strict=True):
        sizes = change.square().sum(dim=1, keepdim=True).sqrt()
        mean = sizes.mean(dim=(2, 3), keepdim=True).clamp(min=1e-30)
        found.append(sizes / mean * rows_called[:, None, None, None])
    greatest = torch.stack(found).amax(dim=0)
    total = plain.double()
    for change, place_found in zip(changes, found, strict=True):
        total[2:] += (place_found / greatest) ** 4 * change
    return total


def run_alone(pipeline: Any, pair: tuple[Concept, Concept], kept: set[int]) -> Tensor:
    """Both concepts' words are there, of the denoiser only what ``kept`` names is changed."""
    use = {name_of(one): Use(parts=QUIET if place in kept else OFF) for place, one in enumerate(pair)}
    with attach(Composition(*pair, use=use), pipeline):
        return predict(pipeline, lead_away(pipeline, list_prompts(pair)))


def list_prompts(pair: tuple[Concept, Concept]) -> list[str]:
    words = [find_word(one) for one in pair]
    return [write_prompt(*words), write_prompt(words[0])]


def check_pair(pipeline: Any, pair: tuple[Concept, Concept], *, only_focus: bool = False) -> None:
    """Holds focus, composite, switch and regions of two concepts against the same passes by hand."""
    kinds = tuple(name_of(one) for one in pair)
    plain = predict(pipeline, lead_away(pipeline, list_prompts(pair)))
    before = snapshot(pipeline, with_settings=False)
    quiet = {name_of(one): Use(parts=QUIET) for one in pair}

    def put(way: Way, use: Mapping[str, Use] = quiet, *, progress: int = 0) -> Tensor:
        with attach(Composition(*pair, use=use, way=way, period=1), pipeline):
            encoded = lead_away(pipeline, list_prompts(pair))
            pipeline.scheduler.set_timesteps(2)
            time = pipeline.scheduler.timesteps[progress]
            pipeline.scheduler.scale_model_input(encoded[0], time)
            return predict(pipeline, encoded)

    near(put("focus"), focus_by_hand(pipeline, pair), plain, ("focus", *kinds))
    if only_focus:
        return
    alone = {kept: run_alone(pipeline, pair, set(kept)) for kept in ((), (0,), (1,), (0, 1))}
    with attach(Composition(*pair, use=quiet), pipeline) as report:
        patches = [is_steered(applied.kinds) for applied in report.concepts]
    steered = [place for place, changes in enumerate(patches) if changes]
    mean = sum(alone[(place,)] for place in steered) / max(1, len(steered)) if steered else alone[()]
    near(put("composite"), torch.as_tensor(mean), plain, ("composite", *kinds))
    for step in (0, 1):
        turn = (steered[step % len(steered)],) if steered else ()
        near(put("switch", progress=step), alone[turn], plain, ("switch", step, *kinds))
    left, right = Region(box=(0.0, 0.0, 0.5, 1.0)), Region(box=(0.5, 0.5, 1.0, 1.0))
    use = {name_of(one): Use(parts=QUIET, region=box) for one, box in zip(pair, (left, right), strict=True)}
    expected = alone[()].clone()
    expected[..., :4] = alone[(0,)][..., :4]
    expected[..., 4:, 4:] = alone[(1,)][..., 4:, 4:]
    near(put("sum", use), expected, plain, ("regions", *kinds))
    assert_same(before, snapshot(pipeline, with_settings=False))


def is_steered(kinds: tuple[str, ...]) -> bool:
    """Words are read in all passes; the rest of a concept is in effect in its own."""
    return any(kind != "embedding" for kind in kinds)


def make_pair(folder: Path, pipeline: Any, kinds: tuple[str, str]) -> tuple[Concept, Concept]:
    first = make_kind(folder, pipeline, kinds[0], label=f"1{kinds[0]}", seed=31)
    return first, make_kind(folder, pipeline, kinds[1], label=f"2{kinds[1]}", seed=62)


@pytest.mark.parametrize(("shape", "kinds"), DIAGONAL)
def test_kinds_work_together_in_every_way_as_passes_by_hand(
    tmp_path: Path, shape: Shape, kinds: tuple[str, str]
) -> None:
    pipeline = lend_calm(shape)
    check_pair(pipeline, make_pair(tmp_path, pipeline, kinds), only_focus=shape == "sdxl")


@pytest.mark.slow
@pytest.mark.parametrize("kinds", PAIRS, ids=" ".join)
@pytest.mark.parametrize("shape", SHAPES)
def test_all_kinds_work_together_in_every_way_as_passes_by_hand(
    tmp_path: Path, shape: Shape, kinds: tuple[str, str]
) -> None:
    check_pair(lend_calm(shape), make_pair(tmp_path, lend_calm(shape), kinds))


# --- a whole drawing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "over",
    [
        pytest.param("nothing", marks=pytest.mark.slow),
        pytest.param("a picture", marks=pytest.mark.slow),
        pytest.param("a mask", marks=pytest.mark.slow),
    ],
)
def test_several_pictures_of_locked_keys_and_an_adapter_are_drawn_together_as_alone(
    tmp_path: Path, over: str
) -> None:
    """The default of ``concepts generate`` for two concepts that the prompt calls, with --image, --mask and --batch."""
    base = lend_calm("sd1")
    pair = make_pair(tmp_path, base, ("lora", "perfusion"))
    room = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    mask = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    canvas = {"nothing": BLANK, "a picture": Canvas(image=room), "a mask": Canvas(image=room, mask=mask)}[
        over
    ]
    pipeline, pieces = adapt_pipeline(base, canvas), parse_weights("a (<2pe>:1.3) and 1lo")

    def paint(*seeds: int) -> list[np.ndarray[Any, Any]]:
        with emphasized(pipeline, pieces):
            prompts = [join_pieces(pieces)] * len(seeds)
            drawn = generate(pipeline, prompts, seeds, steps=3, guidance=3.0, negative="a dog", canvas=canvas)
        return [np.asarray(picture, int) for picture in drawn]

    plain = paint(1)
    with attach(Composition(*pair, way="focus"), pipeline):
        together, alone = paint(1, 2, 3), [paint(seed)[0] for seed in (1, 2, 3)]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one - other).max() <= 2
    assert np.abs(plain[0] - alone[0]).max() > 2
