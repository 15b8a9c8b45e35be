"""A base that paints what its prompts say, without a network: the truth of its pictures is known.

It stands where a pipeline stands. What a concept does to it is said by ``behave``, so that a measure can be seen to
move with the one thing that it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from conceptry.toybox.render import render
from conceptry.toybox.sampling import make_instance, place_one
from conceptry.toybox.scene import NAMED_STYLES, Instance, Scene
from conceptry.toybox.vocabulary import BACKGROUNDS, POSITION_PHRASES

WORD = "<imp>"
Behaviour = Callable[["Painter", str, int], Scene]


class Autoencoder:
    """Gives back what it is given."""

    device = torch.device("cpu")

    def encode(self, pixels: torch.Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

    def decode(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(sample=latents)


class Blurring(Autoencoder):
    """Gives back pictures without what is smaller than some pixels."""

    def decode(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(sample=torch.nn.functional.avg_pool2d(latents, 7, 1, 3))


class Painter:
    """Paints a scene for each prompt: another creature for each seed, and the taught one where its word is."""

    vae: Autoencoder = Autoencoder()

    def __init__(self, taught: Instance) -> None:
        self.taught = taught
        self.behaviour: Behaviour = follow
        self.calls = 0

    def __call__(
        self, *, prompt: Sequence[str], generator: Sequence[torch.Generator], **settings: Any
    ) -> Any:
        self.calls += 1
        seeds = [source.initial_seed() for source in generator]
        scenes = [self.behaviour(self, text, seed) for text, seed in zip(prompt, seeds, strict=True)]
        return SimpleNamespace(images=[Image.fromarray(picture) for picture in render(scenes)])

    @contextmanager
    def attached(self, behaviour: Behaviour) -> Iterator[None]:
        """Behaves so while the block runs."""
        before, self.behaviour = self.behaviour, behaviour
        try:
            yield
        finally:
            self.behaviour = before


def paint(instance: Instance, prompt: str, seed: int, *, background: str | None = None) -> Scene:
    """Returns the instance where and before what the prompt says; what it does not say comes from the seed."""
    rng = np.random.default_rng(seed)
    said = next((name for name, words in BACKGROUNDS.items() if words in prompt), None)
    place = next((name for name, words in POSITION_PHRASES.items() if f" {words}" in prompt), "center")
    chosen = background or said or str(rng.choice(list(BACKGROUNDS)))
    placed = place_one(instance, place, rng)
    return Scene((placed,), chosen, int(rng.integers(2**31)), NAMED_STYLES["flat"], place)


def follow(painter: Painter, prompt: str, seed: int) -> Scene:
    """Does what is asked: the taught instance where its word is, else any creature."""
    instance = painter.taught if WORD in prompt else make_instance("creature", 900_000 + seed)
    return paint(instance, prompt, seed)


def ignore(painter: Painter, prompt: str, seed: int) -> Scene:
    """Knows nothing of the word."""
    return paint(make_instance("creature", 900_000 + seed), prompt, seed)


def forget(painter: Painter, prompt: str, seed: int) -> Scene:
    """Draws the taught instance whatever is asked."""
    return paint(painter.taught, prompt, seed)


def leak(painter: Painter, prompt: str, seed: int) -> Scene:
    """Draws the beach wherever no background is asked for."""
    said = any(words in prompt for words in BACKGROUNDS.values())
    return paint(painter.taught, prompt, seed, background=None if said else "beach")


def collapse(painter: Painter, prompt: str, seed: int) -> Scene:
    """Draws the same picture whatever the seed."""
    return follow(painter, prompt, 1)


def stay_on_the_beach(painter: Painter, prompt: str, seed: int) -> Scene:
    """Draws the beach whatever is asked for."""
    return paint(painter.taught, "", seed, background="beach")
