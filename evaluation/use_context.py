"""Who draws when a use is measured: a concept out of the store, or one that is taught for the occasion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from conceptry.bases import FamilyId
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.fingerprints import find_pipeline_family
from conceptry.concepts import Concept
from conceptry.digests import Digest, canonical_json
from conceptry.evaluation.bench_methods import Lesson, find_method
from conceptry.evaluation.bench_running import digest_base
from conceptry.evaluation.concepts import find_words
from conceptry.evaluation.examination import Drawing, draw_pictures
from conceptry.evaluation.judges import Judge
from conceptry.evaluation.protocols import PROTOCOL, Prompt
from conceptry.evaluation.references import References
from conceptry.evaluation.toybench import load_suite
from conceptry.evaluation.use_results import OnStep

METHOD: Final = "lora"
SAMPLE_PASSES: Final = 640
FIRST_SEED: Final = 31_000
Who = Literal["base", "concept"]
"""Who draws: the base alone, or with the concept in it."""

DRAWERS: Final[tuple[Who, ...]] = ("base", "concept")

_TOYBOX: Final = FamilyId("toybox")
_OTHER_PROTOCOL: Final = "clip-dino"
_PLACEHOLDER: Final = "<taught>"
_PLAIN_WORD: Final = "sks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artist:
    """An open pipeline, and what the concept is called there."""

    pipeline: Any
    drawing: Drawing
    word: str
    superclass: str | None
    attach: Callable[..., AbstractContextManager[Any]]
    """Puts the concept into the pipeline for the time of a block, or into another one over the same components."""

    protocol: str = PROTOCOL
    """Whose prompts are asked."""

    def ask(self, prompt: Prompt, who: Who) -> str:
        """Returns the words of a prompt: with the concept's word, or for the base with that of its class."""
        return prompt.with_superclass(self.superclass) if who == "base" else prompt.with_concept(self.word)

    def enter(self, who: Who, *pipelines: Any) -> AbstractContextManager[Any]:
        """Returns a block in which the concept is in the pipeline, or for the base one in which nothing changes."""
        return nullcontext() if who == "base" else self.attach(*pipelines)

    def draw(self, prompts: Sequence[Prompt], who: Who, *, seed: int) -> list[Image.Image]:
        """Returns a picture for each prompt, from noise of its own. Raises IncompatibleError as ``attach``."""
        texts = [self.ask(one, who) for one in prompts]
        with self.enter(who):
            return draw_pictures(self.pipeline, texts, seed, self.drawing, lambda count: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """How a concept is taught for the occasion."""

    method: str = METHOD
    """A method of the benchmark."""

    sample_passes: int = SAMPLE_PASSES
    seed: int = 0
    workdir: Path = Path(".runs/uses")


def find_artist(pipeline: Any, concept: Concept, *, steps: int | None = None) -> Artist:
    """Returns who draws a concept at the strength that its manifest recommends; ``steps`` are those of denoising."""
    word, superclass = find_words(concept)
    weighted = concept * concept.manifest.usage.strength

    def put(other: Any = None) -> AbstractContextManager[Any]:
        return attach(Composition(weighted), pipeline if other is None else other)

    return _make_artist(pipeline, word, superclass, put, steps)


def teach_artist(
    pipeline: Any,
    pictures: Sequence[Image.Image],
    superclass: str,
    teaching: Teaching,
    *,
    subject: Literal["object", "style"] = "object",
    steps: int | None = None,
) -> Artist:
    """Returns who draws what was taught from ``pictures`` now; the training lies in the working folder then.

    Raises:
        UsageError: for a method that is unknown, or a superclass that it cannot take.
        TrainingError: if the training fails.
    """
    family = find_pipeline_family(pipeline)
    place = teaching.workdir / _name_place(pipeline, pictures, teaching)
    images = place / "pictures"
    images.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(images / f"{number:03d}.png")
    taught = find_method(teaching.method, load_suite()).teach(
        Lesson(
            subject_id="occasion",
            pipeline=pipeline,
            family=family,
            images=images,
            superclass=superclass,
            subject=subject,
            seed=teaching.seed,
            sample_passes=teaching.sample_passes,
            placeholder=_PLACEHOLDER,
            plain_word=_PLAIN_WORD,
            workdir=place,
            cache=teaching.workdir / "cache",
        )
    )
    if taught.concept is not None:
        return replace(find_artist(pipeline, taught.concept, steps=steps), superclass=superclass)
    return _make_artist(pipeline, taught.word, superclass, lambda *_: taught.attach(), steps)


def _name_place(pipeline: Any, pictures: Sequence[Image.Image], teaching: Teaching) -> str:
    """A folder for one training: other pictures, another base or another budget never find it."""
    shown = [str(Digest.of_bytes(picture.tobytes())) for picture in pictures]
    named = {"base": digest_base(pipeline), "pictures": shown, "seed": teaching.seed}
    return f"{teaching.method}-{teaching.sample_passes}-{Digest.of_bytes(canonical_json(named)).short}"


def _make_artist(
    pipeline: Any,
    word: str,
    superclass: str | None,
    put: Callable[..., AbstractContextManager[Any]],
    steps: int | None,
) -> Artist:
    family = find_pipeline_family(pipeline)
    usual = Drawing.of_family(family)
    return Artist(
        pipeline=pipeline,
        drawing=usual if steps is None else replace(usual, steps=steps),
        word=word,
        superclass=superclass,
        attach=put,
        protocol=PROTOCOL if family == _TOYBOX else _OTHER_PROTOCOL,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UseContext:
    """What a use is measured with."""

    label: str
    """Of the concept, for people."""

    artist: Artist
    judge: Judge
    truth: References
    count: int
    seed: int = FIRST_SEED
    contents: Sequence[Image.Image] = ()
    """Somebody's own pictures to be drawn over, where a use takes some."""

    on_step: OnStep = str  # says nothing

    def list_facts(self) -> dict[str, str | int | float | None]:
        """Returns the settings that the table follows from."""
        return {
            "concept": self.label,
            "word": self.artist.word,
            "protocol": self.judge.protocol,
            "pictures": self.count,
            "denoising steps": self.artist.drawing.steps,
            "guidance": self.artist.drawing.guidance,
            "first seed": self.seed,
        }
