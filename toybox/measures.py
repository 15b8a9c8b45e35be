"""How good the scorer, the autoencoder and the base model are, as fractions on held-out seeds."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from numpy.typing import NDArray

from conceptry.toybox import GUIDANCE_SCALE, INFERENCE_STEPS
from conceptry.toybox.captions import describe
from conceptry.toybox.examples import instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.sampling import (
    ATTRIBUTES,
    change_attribute,
    make_instance,
    make_scene,
)
from conceptry.toybox.scene import Instance, Placed, Scene
from conceptry.toybox.scorer import Detection, Reading, Scorer
from conceptry.toybox.vocabulary import CLASSES, COLORS

_FIRST_SCENE: Final = 400_000
_FIRST_INSTANCE: Final = 600_000
_REFERENCES: Final = 32
Tally = dict[str, list[bool]]


def held_out_scenes(count: int, *, named_styles: bool = False, most_objects: int = 3) -> list[Scene]:
    """The first ``count`` held-out scenes that fit."""
    scenes: list[Scene] = []
    seed = _FIRST_SCENE
    while len(scenes) < count:
        scene = make_scene(seed)
        seed += 1
        if len(scene.objects) <= most_objects and (scene.style.name or not named_styles):
            scenes.append(scene)
    return scenes


def shares(tally: Tally) -> dict[str, float]:
    """The share of right answers for each key."""
    return {name: round(float(np.mean(right)), 4) for name, right in sorted(tally.items()) if right}


def _nearest(placed: Placed, reading: Reading) -> Detection:
    return min(reading.objects, key=lambda found: np.hypot(found.x - placed.x, found.y - placed.y))


def measure_scorer(scorer: Scorer, count: int) -> dict[str, float]:
    """Right answers on held-out renders; objects are matched by place, ``objects`` is the right number of them."""
    scenes, tally = held_out_scenes(count), defaultdict[str, list[bool]](list)
    for scene, reading in zip(scenes, scorer.read(render(scenes)), strict=True):
        tally["background"].append(reading.background == scene.background)
        tally["style"].append(reading.style == (scene.style.name or "unusual"))
        tally["objects"].append(len(reading.objects) == len(scene.objects))
        if scene.position:
            tally["position"].append(reading.position == scene.position)
        for placed in scene.objects:
            found, thing = _nearest(placed, reading), placed.instance
            tally["class"].append(found.kind == thing.kind)
            tally["color"].append(found.color == thing.color)
            tally["second"].append(found.second == thing.second)
            tally["pattern"].append(found.pattern == thing.pattern)
    return shares(tally)


def _alike(kind: str, color: str, count: int, rng: np.random.Generator) -> list[Instance]:
    found: list[Instance] = []
    while len(found) < count:
        instance = make_instance(kind, int(rng.integers(_FIRST_INSTANCE, 1_000_000)))
        if instance.color == color:
            found.append(instance)
    return found


def equal_error_rate(own: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The rate at which as many own scores fall below a threshold as other scores reach it."""
    thresholds = np.sort(np.concatenate([own, other]))
    missed = np.searchsorted(np.sort(own), thresholds, side="left") / len(own)
    let_in = 1.0 - np.searchsorted(np.sort(other), thresholds, side="left") / len(other)
    best = int(np.argmin(np.abs(missed - let_in)))
    return float((missed[best] + let_in[best]) / 2)


def measure_identity(scorer: Scorer, *, groups: int, alike: int = 6, views: int = 4) -> dict[str, float]:
    """Equal-error rate among instances of one class and main colour, each against the mean of 32 renders."""
    rng = np.random.default_rng(17)
    own: list[float] = []
    other: list[float] = []
    for group in range(groups):
        kind, color = CLASSES[group % len(CLASSES)], str(rng.choice(list(COLORS)))
        instances = _alike(kind, color, alike, rng)
        prototypes = [scorer.prototype(render(instance_scenes(i, _REFERENCES, part=1))) for i in instances]
        readings = [scorer.read(render(instance_scenes(i, views, part=2))) for i in instances]
        for row, prototype in enumerate(prototypes):
            for column, group_readings in enumerate(readings):
                scores = [float(reading.objects[0].embedding @ prototype) for reading in group_readings]
                (own if row == column else other).extend(scores)
    rate = equal_error_rate(np.asarray(own, np.float32), np.asarray(other, np.float32))
    return {"identity_eer": round(rate, 4), "identity_own": round(float(np.mean(own)), 4),
            "identity_other": round(float(np.mean(other)), 4)}  # fmt: skip


def measure_sensitivity(scorer: Scorer, *, instances: int, views: int = 8) -> dict[str, float]:
    """For each attribute: how often the mean identity score falls when only that attribute is changed."""
    rng, tally = np.random.default_rng(23), defaultdict[str, list[bool]](list)
    for index in range(instances):
        instance = make_instance(CLASSES[index % len(CLASSES)], _FIRST_INSTANCE + index)
        prototype = scorer.prototype(render(instance_scenes(instance, _REFERENCES, part=1)))
        own = float(np.mean(scorer.identity(render(instance_scenes(instance, views, part=2)), prototype)))
        for attribute in ATTRIBUTES:
            changed = change_attribute(instance, attribute, rng)
            scores = scorer.identity(render(instance_scenes(changed, views, part=2)), prototype)
            tally[attribute].append(float(np.mean(scores)) < own)
    return shares(tally)


def measure_autoencoder(vae: AutoencoderKL, count: int) -> dict[str, float]:
    """Mean PSNR in dB of held-out renders passed through the autoencoder."""
    images = render(held_out_scenes(count))
    errors = (round_trip(vae, images).astype(np.float64) - images) ** 2
    return {"psnr": round(float(np.mean(-10.0 * np.log10(errors.mean((1, 2, 3)) / 255.0**2))), 2)}


def draw(
    pipeline: StableDiffusionPipeline, captions: list[str], *, batch: int = 32, seed: int = 0
) -> NDArray[np.uint8]:
    """One picture (64, 64, 3) a caption, each from its own noise, with the toybox's guidance and step count."""
    parts = []
    for start in range(0, len(captions), batch):
        words = captions[start : start + batch]
        sources = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(words))]
        images = pipeline(words, num_inference_steps=INFERENCE_STEPS, guidance_scale=GUIDANCE_SCALE,
                          generator=sources, output_type="np").images  # fmt: skip
        parts.append((images * 255.0).round().astype(np.uint8))
    return np.concatenate(parts)


def _judge(scene: Scene, reading: Reading, tally: Tally) -> None:
    tally["background"].append(reading.background == scene.background)
    tally["style"].append(reading.style == scene.style.name)
    if len(scene.objects) == 1:
        thing, found = scene.objects[0].instance, reading.objects[0]
        tally["class"].append(found.kind == thing.kind)
        tally["color"].append(found.color == thing.color)
        tally["position"].append(reading.position == scene.position)
        return
    wanted = [placed.instance for placed in scene.objects]
    near = [_nearest(placed, reading) for placed in scene.objects]
    kinds = sorted(found.kind for found in reading.objects)
    tally["two_objects"].append(kinds == sorted(thing.kind for thing in wanted))
    in_place = all(found.kind == thing.kind for found, thing in zip(near, wanted, strict=True))
    tally["relation"].append(in_place and len(reading.objects) == 2)
    tally["two_colors"].append(
        in_place and all(f.color == t.color for f, t in zip(near, wanted, strict=True))
    )


def measure_base(pipeline: StableDiffusionPipeline, scorer: Scorer, count: int) -> dict[str, Any]:
    """Whether the scorer finds in generated pictures what ``count`` held-out captions asked for."""
    rng = np.random.default_rng(29)
    scenes = held_out_scenes(count, named_styles=True, most_objects=2)
    captions = [describe(scene, rng, full=True).text for scene in scenes]
    tally = defaultdict[str, list[bool]](list)
    for scene, reading in zip(scenes, scorer.read(draw(pipeline, captions)), strict=True):
        _judge(scene, reading, tally)
    return shares(tally)
