"""The demonstration as a document: what is taught, what is composed, which prompts every row answers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

import numpy as np
from PIL import Image

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.generate import generate
from conceptry.concepts import Concept
from conceptry.evaluation.concepts import find_words
from conceptry.evaluation.references import find_references
from conceptry.toybox import GUIDANCE_SCALE, INFERENCE_STEPS
from conceptry.toybox.scorer import Scorer

STYLE_SUBJECT: Final = "style"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSubject:
    """A held-out instance of a class, or (class "style") a held-out style."""

    id: str
    cls: str
    seed: int

    @property
    def is_style(self) -> bool:
        """Whether the pictures share a style rather than a thing."""
        return self.cls == STYLE_SUBJECT


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConcept:
    """One concept to be trained."""

    name: str
    method: str
    subject: str
    placeholder: str
    superclass: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoComposition:
    """Concepts to be used together: which is drawn, in whose style, beside which other."""

    title: str
    concepts: Mapping[str, float]
    subject: str
    style: str | None = None
    second: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """The whole plan."""

    pictures: int
    seed: int
    prompts: tuple[str, ...]
    subjects: tuple[DemoSubject, ...]
    concepts: tuple[DemoConcept, ...]
    compositions: tuple[DemoComposition, ...]

    def find_subject(self, concept: DemoConcept) -> DemoSubject:
        """Returns what a concept is taught."""
        return next(subject for subject in self.subjects if subject.id == concept.subject)


@cache
def load_demonstration() -> Demonstration:
    """Returns the demonstration that ships with the package."""
    document = tomllib.loads(files(__package__).joinpath("demo.toml").read_text(encoding="utf-8"))
    return Demonstration(
        pictures=document["pictures"],
        seed=document["seed"],
        prompts=tuple(document["prompts"]),
        subjects=tuple(
            DemoSubject(id=row["id"], cls=row["class"], seed=row["seed"]) for row in document["subjects"]
        ),
        concepts=tuple(DemoConcept(**row) for row in document["concepts"]),
        compositions=tuple(DemoComposition(**row) for row in document["compositions"]),
    )


# --- prompts -------------------------------------------------------------------------------------------------------

DEFAULT_SUBJECT: Final = "a creature"


def word_subject(concept: Concept) -> str:
    """Returns how a prompt names the thing: "a <imp>", "a mug cup"."""
    word, _ = find_words(concept)
    return f"a {word}"


def word_style(concept: Concept) -> str:
    """Returns how a prompt asks for the style: " in the style of <look>"."""
    word, _ = find_words(concept)
    return f" in the style of {word}"


def fill_prompts(prompts: Sequence[str], *, subject: str = DEFAULT_SUBJECT, style: str = "") -> list[str]:
    """Returns the row's prompts: every row answers the same ones, with its own subject and style."""
    return [prompt.format(subject=subject, style=style) for prompt in prompts]


# --- pictures and scores ---------------------------------------------------------------------------------------------


def draw_row(pipeline: Any, prompts: Sequence[str], seed: int) -> list[Image.Image]:
    """Returns one picture a prompt, from the same noise in every row."""
    seeds = [seed + index for index in range(len(prompts))]
    return generate(pipeline, list(prompts), seeds, steps=INFERENCE_STEPS, guidance=GUIDANCE_SCALE)


def draw_composed(
    pipeline: Any, weighted: Sequence[tuple[Concept, float]], prompts: Sequence[str], seed: int
) -> list[Image.Image]:
    """Returns the pictures of a row while the concepts are attached; the pipeline is as before afterwards."""
    with attach(Composition(*(concept * strength for concept, strength in weighted)), pipeline):
        return draw_row(pipeline, prompts, seed)


def score_members(
    scorer: Scorer, concepts: Sequence[Concept], pictures: Sequence[Image.Image]
) -> dict[str, dict[Literal["score"], float]]:
    """Returns each concept's mean identity in composed pictures, by its name."""
    scores: dict[str, dict[Literal["score"], float]] = {}
    for concept in concepts:
        truth = find_references(concept.manifest, None)
        if truth.subject == "instance":
            values = scorer.identity(list(pictures), scorer.prototype(truth.reference))
        else:
            values = scorer.style(list(pictures), scorer.style_prototype(truth.reference))
        scores[str(concept.manifest.name)] = {"score": float(np.mean(values))}
    return scores
