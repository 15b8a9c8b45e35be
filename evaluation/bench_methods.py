"""The methods that are compared: the trainer's own at several settings, and those of other packages, by name.

A package enters with one entry point of the group ``conceptry.benchmark_methods`` that names a ``BenchMethod`` or a
function without arguments that returns one (docs/benchmark_method.md has an example in full).
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from conceptry.bases import FamilyId
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.digests import Digest, canonical_json
from conceptry.errors import UsageError, suggest_nearest
from conceptry.evaluation.toybench import Suite
from conceptry.manifest import Manifest
from conceptry.trainer.jobs import TrainJob, make_job, resolve
from conceptry.trainer.methods import TRAINERS, TrainerRow
from conceptry.trainer.settings import Settings, resolve_settings

ENTRY_POINTS: Final = "conceptry.benchmark_methods"
_FACTS_NAME: Final = "bench.json"
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a method is given: pictures, words, a seed, a budget, and the base, which it leaves as it was."""

    subject_id: str
    pipeline: Any
    family: FamilyId
    images: Path
    """Training pictures, with ``captions.jsonl`` beside them where captions are known."""

    superclass: str
    subject: Literal["object", "style"]
    seed: int
    sample_passes: int
    """How many pictures may go through the denoiser, those of a prior included; 0 leaves it to the method."""

    placeholder: str
    plain_word: str
    workdir: Path
    """A folder of this method and subject; what lies there from an earlier run may be used again."""

    cache: Path
    """A folder for what belongs to the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """What a method made of a lesson."""

    word: str
    """How prompts call it."""

    attach: Callable[[], AbstractContextManager[Any]]
    """Puts it into the lesson's pipeline for the time of a block."""

    size_bytes: int
    sample_passes: int
    seconds: float
    """By the clock, which another process on the machine slows."""

    processor_seconds: float | None = None
    """Of all threads of this process, which no neighbour lengthens much; None where nobody measured them."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    concept: Concept | None = None
    """The package, of methods that make one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchMethod:
    """One method of the benchmark."""

    id: str
    title: str
    teach: Callable[[Lesson], Taught]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What distinguishes it from another version of itself; part of the key of its results."""

    origin: str | None = None
    """The entry point of the package that it comes from; None for the trainer's own."""

    recipe: Callable[[FamilyId, int], Digest] | None = None
    """Gives the identity of all its numbers for a base and a budget, defaults included; None where nobody can say."""

    @property
    def digest(self) -> Digest:
        """The identity of its settings."""
        return Digest.of_bytes(canonical_json({"id": self.id, "settings": dict(self.settings)}))


def list_methods(suite: Suite) -> tuple[BenchMethod, ...]:
    """Returns every method that can be compared: of the trainer's table, its variants, then those of other packages.

    Raises:
        UsageError: if a package's method cannot be loaded, or has the id of another one.
    """
    known = {row.id: row for row in TRAINERS}
    own = [_make_own(row.id, row.title, row) for row in TRAINERS]
    own += [
        _make_own(one.id, one.id, known[one.method], settings=one.settings, gate=one.gate)
        for one in suite.variants
        if one.method in known
    ]
    others = tuple(_load_others())
    _refuse_doubles((*own, *list_studies()), others)
    return (*own, *others)


def list_table(suite: Suite) -> tuple[BenchMethod, ...]:
    """Returns those of ``list_methods`` that stand in a complete table, and the guests."""
    return tuple(method for method in list_methods(suite) if method.id not in suite.apart)


@cache
def load_studies() -> Mapping[str, Any]:
    """Returns the trainings that claims ask for and that no table ranks, and the subjects they are run on."""
    return tomllib.loads(files(__package__).joinpath("studies.toml").read_text(encoding="utf-8"))


def list_studies() -> tuple[BenchMethod, ...]:
    """Returns the methods of ``studies.toml``: a trainer with other words than the subject's own, or another start."""
    known = {row.id: row for row in TRAINERS}
    return tuple(
        _make_own(
            one["id"], one["id"], known[one["method"]], settings=one.get("settings"), words=one.get("words")
        )
        for one in load_studies()["studies"]
        if one["method"] in known
    )


def find_method(id: str, suite: Suite) -> BenchMethod:
    """Returns the method or study called ``id``. Raises UsageError with the nearest."""
    methods = {method.id: method for method in (*list_methods(suite), *list_studies())}
    if id not in methods:
        raise UsageError(
            f"the benchmark has no method {id[:80]!r}",
            hint=suggest_nearest(id, methods) or f"methods: {', '.join(methods)}",
        )
    return methods[id]


def _refuse_doubles(own: Sequence[BenchMethod], others: Sequence[BenchMethod]) -> None:
    """Raises UsageError for an id that is taken, or that names no file."""
    taken = {method.id: "the benchmark itself" for method in own}
    for method in others:
        if not _ID.fullmatch(method.id):
            raise UsageError(
                f"the entry point {method.origin!r} names its method {method.id[:80]!r}",
                hint="an id is a file's name: letters, digits, '.', '_' and '-', 64 at most",
            )
        if method.id in taken:
            raise UsageError(
                f"the entry point {method.origin!r} calls its method {method.id!r}, as does {taken[method.id]}",
                hint="uninstall one of the packages, or give its method another id",
            )
        taken[method.id] = f"the entry point {method.origin!r}"


def _load_others() -> Iterator[BenchMethod]:
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            found = point.load()
            method = found if isinstance(found, BenchMethod) else found()
        except Exception as error:
            raise UsageError(
                f"the method {point.name!r} of another package cannot be loaded: {error}",
                hint=f"uninstall the package that has the entry point {point.value!r}, or repair it",
            ) from error
        if not isinstance(method, BenchMethod):
            raise UsageError(f"the entry point {point.name!r} of {ENTRY_POINTS} gives no BenchMethod")
        yield replace(method, origin=f"{point.name} = {point.value}")


# --- the trainer's own ---------------------------------------------------------------------------------------------


def _make_own(
    id: str,
    title: str,
    row: TrainerRow,
    *,
    settings: Mapping[str, Any] | None = None,
    gate: Mapping[str, float] | None = None,
    words: Mapping[str, str] | None = None,
) -> BenchMethod:
    changed, said = dict(settings or {}), dict(words or {})
    more = {**({"gate": dict(gate)} if gate else {}), **({"words": said} if said else {})}
    named = {"method": row.id, "settings": changed, **more}
    return BenchMethod(
        id=id,
        title=title,
        settings=named,
        teach=lambda lesson: _teach_own(_reword(lesson, said), row, changed, gate),
        recipe=lambda family, passes: digest_recipe(resolve_settings(row.id, family, changed), passes),
    )


def _reword(lesson: Lesson, words: Mapping[str, str]) -> Lesson:
    return replace(
        lesson,
        superclass=words.get("superclass", lesson.superclass),
        plain_word=words.get("plain_word", lesson.plain_word),
    )


def _teach_own(
    lesson: Lesson, row: TrainerRow, settings: Mapping[str, Any], gate: Mapping[str, float] | None
) -> Taught:
    job = plan_job(lesson, row, settings)
    resolved = resolve(job, lesson.family)
    folder = lesson.workdir / "trainings" / f"{row.id}-{resolved.recipe.short}"
    concept, facts = _train_once(lesson, job, folder)
    used = concept if gate is None else use_gate(concept, gate)
    passes = count_passes(resolved.settings)
    return Taught(
        word=resolved.word,
        attach=lambda: attach(Composition(used), lesson.pipeline),
        size_bytes=concept.manifest.size_bytes,
        sample_passes=int(facts["steps"]) * passes,
        seconds=float(facts["seconds"]),
        processor_seconds=facts.get("processor_seconds"),
        facts=facts,
        concept=used,
    )


def _train_once(lesson: Lesson, job: TrainJob, folder: Path) -> tuple[Concept, dict[str, Any]]:
    """Returns what an earlier run left in ``folder``, or trains it; variants of one training share it."""
    kept, facts_file = folder / "concept", folder / _FACTS_NAME
    if (kept / MANIFEST_NAME).is_file() and facts_file.is_file():
        facts: dict[str, Any] = json.loads(facts_file.read_text(encoding="utf-8"))
        return open_concept(kept), facts
    from conceptry.trainer.training import train

    started, began = time.perf_counter(), time.process_time()
    result = train(job, workdir=folder, cache_folder=lesson.cache, base=lesson.pipeline)
    facts = {
        "steps": result.steps,
        "seconds": round(time.perf_counter() - started, 3),
        "processor_seconds": round(time.process_time() - began, 3),
        "fixed_loss_before": result.fixed_loss_before,
        "fixed_loss_after": result.fixed_loss_after,
    }
    facts_file.write_text(json.dumps(facts), encoding="utf-8")
    return result.concept, facts


def plan_job(lesson: Lesson, row: TrainerRow, settings: Mapping[str, Any]) -> TrainJob:
    """Returns the job that spends the lesson's budget at the method's own defaults for everything else."""
    defaults = resolve_settings(row.id, lesson.family, settings)
    steps = count_steps(defaults, lesson.sample_passes)
    return make_job(
        {
            "method": row.id,
            "images": lesson.images,
            "name": f"toybench/{name_concept(row.id, lesson.subject_id)}",
            "placeholder": lesson.placeholder if row.expands_placeholder else lesson.plain_word,
            "superclass": lesson.superclass,
            "subject": lesson.subject,
            "seed": lesson.seed,
            "steps": steps,
            "settings": {**settings, "warmup_steps": min(defaults.warmup_steps, steps // 10)},
        }
    )


def count_steps(settings: Settings, sample_passes: int) -> int:
    """Returns how many steps spend a budget; 0 leaves a method its own."""
    return max(1, sample_passes // count_passes(settings)) if sample_passes else settings.steps


def digest_recipe(settings: Settings, sample_passes: int) -> Digest:
    """Returns the identity of all numbers of a training with this budget, whatever is taught."""
    steps = count_steps(settings, sample_passes)
    spent = {"steps": steps, "warmup_steps": min(settings.warmup_steps, steps // 10)}
    return Digest.of_bytes(canonical_json(settings.model_copy(update=spent).to_recipe()))


def name_concept(method: str, subject_id: str) -> str:
    """Returns a name for what a method learns of a subject: lower-case letters, digits and hyphens, 64 at most."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{subject_id}-{method}".lower()).strip("-")
    return words[:60].rstrip("-")


def count_passes(settings: Settings) -> int:
    """Returns how many pictures go through the denoiser in one step; a prior takes as many again."""
    own = settings.batch_size * settings.accumulation_steps
    return own if settings.prior == "none" or settings.prior_weight == 0 else 2 * own


def use_gate(concept: Concept, gate: Mapping[str, float]) -> Concept:
    """Returns a rank-one concept that is used with another gate; what was trained stays as it is."""
    builds = []
    for build in concept.manifest.builds:
        parts = tuple(
            part.model_copy(update={"method": part.method.model_copy(update={"gate": _read_gate(gate)})})
            if part.method.kind == "rank_one"
            else part
            for part in build.parts
        )
        builds.append(build.model_copy(update={"parts": parts}))
    manifest: Manifest = concept.manifest.model_copy(update={"builds": tuple(builds)})
    return Concept(manifest=manifest, digest=manifest.digest, blobs=concept.blobs)


def _read_gate(gate: Mapping[str, float]) -> Any:
    from conceptry.manifest import Gate

    return Gate(bias=gate["bias"], temperature=gate["temperature"])


def choose_methods(suite: Suite, ids: Sequence[str]) -> tuple[BenchMethod, ...]:
    """Returns the methods called so, those of the table for no name. Raises UsageError."""
    return tuple(find_method(id, suite) for id in ids) if ids else list_table(suite)


__all__ = [
    "BenchMethod",
    "Lesson",
    "Taught",
    "choose_methods",
    "count_passes",
    "find_method",
    "list_methods",
    "list_studies",
    "list_table",
    "load_studies",
    "plan_job",
    "use_gate",
]
