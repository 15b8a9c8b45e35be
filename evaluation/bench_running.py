"""One piece of the benchmark after the other: teach, draw, measure, keep. What is kept already is not done again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from conceptry.bases import FamilyId
from conceptry.composer.fingerprints import find_pipeline_family, identify_pipeline
from conceptry.digests import Digest, canonical_json
from conceptry.errors import ConceptryError, InterruptedByUserError
from conceptry.evaluation.bench_conditions import Conditions, is_as_good, state_conditions
from conceptry.evaluation.bench_files import add_row, open_results
from conceptry.evaluation.bench_guests import (
    count_passes_through,
    digest_weights,
    explain_change,
    explain_failure,
    refuse_overspending,
)
from conceptry.evaluation.bench_methods import BenchMethod, Lesson, Taught
from conceptry.evaluation.bench_results import (
    BaseModelId,
    CategoryModel,
    ResultFile,
    ResultRow,
    ScoreModel,
    describe_machine,
    find_commit,
)
from conceptry.evaluation.bench_strips import (
    REFERENCES_SHOWN,
    locate_reference,
    make_strip,
    pick_shown,
    thin_prompts,
)
from conceptry.evaluation.examination import BasePictures, Candidate, Drawing, Examination, Plan, examine
from conceptry.evaluation.judges import Judge, make_judge
from conceptry.evaluation.protocols import (
    PROTOCOL,
    Prompt,
    Subject,
    find_protocol,
    load_plain_prompt,
    load_prompts,
)
from conceptry.evaluation.references import References, as_images
from conceptry.evaluation.toybench import BenchSubject, Suite, prepare_pictures
from conceptry.trainer.preparation import plain_attention

OnStep = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How and where the benchmark runs."""

    out: Path
    """Where results go, one file for each method, and ``pictures/``."""

    workdir: Path
    """Where trainings and what belongs to the base are kept between runs."""

    protocol: str = PROTOCOL
    models: Mapping[str, str] = field(default_factory=dict)
    sample_passes: int | None = None
    """None takes the suite's budget, 0 leaves each method its own."""

    seconds: float | None = None
    """No new subject is begun when it would probably end later than this."""

    plain_pictures: int = 6
    superclass_pictures: int = 4
    most_prompts: int | None = None
    """Of each subject; for a sample."""

    steps: int | None = None
    """Denoising steps; None takes what is usual for the base. For a sample too."""


@dataclass(slots=True)
class Bench:
    """The benchmark on one open pipeline, which it leaves as it was."""

    suite: Suite
    pipeline: Any
    options: BenchOptions
    family: FamilyId = field(init=False)
    base: BasePictures = field(init=False)
    truths: dict[str, References] = field(default_factory=dict)
    judges: dict[str, Judge] = field(default_factory=dict)
    failures: list[ConceptryError] = field(default_factory=list)
    """What methods raised; their rows are missing and are tried again by the next run."""

    _started: float = field(default_factory=time.monotonic)
    _longest_seconds: float = 0.0
    _weights: str = ""

    def __post_init__(self) -> None:
        self.family = find_pipeline_family(self.pipeline)
        usual = Drawing.of_family(self.family)
        self.base = BasePictures(replace(usual, steps=self.options.steps or usual.steps))

    @property
    def sample_passes(self) -> int:
        """The budget of every method."""
        given = self.options.sample_passes
        return self.suite.sample_passes if given is None else given

    @property
    def protocol(self) -> str:
        """How pictures are measured, and of ``clip-dino`` with which models: others give other numbers."""
        models = [self.options.models.get(name) for name in find_protocol(self.options.protocol).needs]
        named = [Path(model) for model in models if model]
        if not named or len(named) < len(models):
            return self.options.protocol
        from conceptry.evaluation.clip_dino import digest_models

        return f"{self.options.protocol} {digest_models(*named)}"

    def run(
        self, methods: Sequence[BenchMethod], subjects: Sequence[BenchSubject], on_step: OnStep
    ) -> Generator[ResultRow, None, None]:
        """Gives each new row once it is kept; ends early where the time is up, and keeps what failed in ``failures``.

        Raises:
            ConflictError: if the results that are there were not measured alike.
            InterruptedByUserError: after Ctrl-C; what is kept stays.
        """
        for method in methods:
            for subject in subjects:
                if self._is_known(method, subject):
                    continue
                if self.is_late():
                    return
                on_step(f"{method.id} on {subject.id}")
                row = self._try(method, subject)
                if method.origin is not None and digest_weights(self.pipeline) != self._weights:
                    self.failures.append(explain_change(method).inside(f"{method.id} on {subject.id}"))
                    return
                if row is not None:
                    common = self._describe()
                    stated = self._state(method, subject).stamp(row).at(common.commit, common.machine)
                    add_row(self._locate_results(method), stated, common)
                    yield stated

    def _is_known(self, method: BenchMethod, subject: BenchSubject) -> bool:
        """Returns whether a row as good as today's is there, of whichever process. Raises ConflictError."""
        key = (method.id, str(method.digest), subject.id, self.suite.seed)
        known = open_results(self._locate_results(method), self._describe()).rows
        wanted = self._state(method, subject)
        return any(row.key == key and is_as_good(row, wanted) for row in known)

    def _state(self, method: BenchMethod, subject: BenchSubject) -> Conditions:
        plan = self._plan(subject.subject)
        return state_conditions(
            method.recipe,
            family=self.family,
            sample_passes=self.sample_passes,
            protocol=self.options.protocol,
            prompts=len(plan.prompts),
            more_pictures=plan.plain_pictures + plan.superclass_pictures,
            drawing_steps=plan.drawing.steps,
        )

    def _try(self, method: BenchMethod, subject: BenchSubject) -> ResultRow | None:
        """Returns a row; None where the method failed, which keeps the others from nothing and is kept itself."""
        if method.origin is not None and not self._weights:
            self._weights = digest_weights(self.pipeline)
        try:
            with self.timed():
                return self._measure(method, subject)
        except InterruptedByUserError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever another package's method raises
            self.failures.append(explain_failure(method, error).inside(f"{method.id} on {subject.id}"))
            return None

    def is_late(self, *, count: int = 1) -> bool:
        """Returns whether so many more pieces of work like those before would probably end too late."""
        limit = self.options.seconds
        return limit is not None and time.monotonic() - self._started + count * self._longest_seconds > limit

    @contextmanager
    def changed(self, **options: Any) -> Iterator[None]:
        """Runs with other options for the time of a block: elsewhere, or with another budget."""
        before, self.options = self.options, replace(self.options, **options)
        try:
            yield
        finally:
            self.options = before

    @contextmanager
    def timed(self, *, count: int = 1) -> Iterator[None]:
        """Remembers how long each of ``count`` pieces of work in the block took, for ``is_late``."""
        began = time.monotonic()
        try:
            yield
        finally:
            taken = (time.monotonic() - began) / max(1, count)
            self._longest_seconds = max(self._longest_seconds, taken)

    def _locate_results(self, method: BenchMethod) -> Path:
        return self.options.out / f"{method.id}.json"

    def _describe(self) -> ResultFile:
        """Returns a file without rows: what all rows of this run have in common."""
        device = str(next(iter(self.pipeline.unet.parameters())).device)
        return ResultFile(
            suite=self.suite.name,
            suite_digest=str(self.suite.digest),
            protocol=self.protocol,
            base=BaseModelId(family=str(self.family), digest=digest_base(self.pipeline)),
            sample_passes=self.sample_passes,
            commit=find_commit(),
            machine=describe_machine(device, torch.get_num_threads()),
        )

    def _measure(self, method: BenchMethod, subject: BenchSubject) -> ResultRow:
        truth = self.prepare(subject)
        if subject.id not in self.judges:
            self.judges[subject.id] = make_judge(
                find_protocol(self.options.protocol), truth, family=self.family, models=self.options.models
            )
        with count_passes_through(self.pipeline.unet) as counted:
            taught = method.teach(self.make_lesson(subject))
        refuse_overspending(method, taught, counted, self.sample_passes)
        drawing = time.monotonic()
        plan = self._plan(subject.subject)
        with plain_attention(self.pipeline, positions=int(self.pipeline.unet.config.sample_size) ** 2):
            found = examine(
                Candidate(word=taught.word, superclass=subject.superclass, attach=taught.attach),
                self.pipeline,
                self.judges[subject.id],
                plan,
                base=self.base,
            )
        shown = self._keep_pictures(method, subject, found)
        seconds = time.monotonic() - drawing
        return self._make_row(method, subject, taught, found, plan=plan, seconds=seconds, shown=shown)

    def prepare(self, subject: BenchSubject) -> References:
        """Returns what a subject is compared with; its training pictures lie in the working folder then."""
        if subject.id not in self.truths:
            folder = self._locate(subject) / "pictures"
            self.truths[subject.id] = prepare_pictures(subject, self.suite.training_pictures, folder)
        return self.truths[subject.id]

    def make_lesson(self, subject: BenchSubject) -> Lesson:
        """Returns what a method is given to learn a subject that was prepared."""
        place = self._locate(subject)
        return Lesson(
            subject_id=subject.id,
            pipeline=self.pipeline,
            family=self.family,
            images=place / "pictures",
            superclass=subject.superclass,
            subject="style" if subject.subject == "style" else "object",
            seed=self.suite.seed,
            sample_passes=self.sample_passes,
            placeholder=self.suite.placeholder,
            plain_word=self.suite.plain_word,
            workdir=place / f"passes-{self.sample_passes}",
            cache=self.options.workdir / "cache",
        )

    def _locate(self, subject: BenchSubject) -> Path:
        """Returns the folder of a subject: what was drawn for another base, and taught to it, is never found there."""
        return self.options.workdir / Digest.parse(digest_base(self.pipeline)).short / subject.id

    def _plan(self, subject: Subject) -> Plan:
        toybox = find_protocol(self.options.protocol).id == PROTOCOL
        prompts = self.suite.prompts[subject] if toybox else load_prompts(subject, self.options.protocol)
        return Plan(
            prompts=thin_prompts(prompts, self.options.most_prompts),
            plain=load_plain_prompt(subject, self.options.protocol),
            drawing=self.base.drawing,
            plain_pictures=self.options.plain_pictures,
            superclass_pictures=self.options.superclass_pictures,
        )

    def _make_row(
        self,
        method: BenchMethod,
        subject: BenchSubject,
        taught: Taught,
        found: Examination,
        *,
        plan: Plan,
        seconds: float,
        shown: str,
    ) -> ResultRow:
        kept = {name: ScoreModel.of(measure) for name, measure in found.scores.list_measures().items()}
        named = ("identity", "prompt", "preservation", "diversity", "leakage")
        return ResultRow(
            method=method.id,
            title=method.title,
            settings=str(method.digest),
            subject=subject.id,
            kind=subject.subject,
            superclass=subject.superclass,
            seed=self.suite.seed,
            sample_passes=taught.sample_passes,
            size_bytes=taught.size_bytes,
            training_seconds=round(taught.seconds, 3),
            training_processor_seconds=taught.processor_seconds,
            drawing_seconds=round(seconds, 3),
            identity=kept["identity"],
            prompt=kept["prompt"],
            preservation=kept.get("preservation"),
            diversity=kept.get("diversity"),
            leakage=kept.get("leakage"),
            others={name: model for name, model in kept.items() if name not in named},
            categories=_judge_categories(plan.prompts, found),
            pictures=shown,
        )

    def _keep_pictures(self, method: BenchMethod, subject: BenchSubject, found: Examination) -> str:
        pictures = [one.picture for one in found.drawn if one.role == "concept"]
        strip = make_strip(pick_shown(pictures))
        name = f"pictures/{method.id}/{subject.id}.webp"
        path = self.options.out / name
        _save(strip, path)
        reference = self.options.out / locate_reference(subject.id)
        if subject.folder is not None and not reference.is_file():
            _save(make_strip(as_images(self.truths[subject.id].ceiling)[:REFERENCES_SHOWN]), reference)
        return name


def _save(strip: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path, format="WEBP", quality=80)


def digest_base(pipeline: Any) -> str:
    """Returns a digest of the fingerprints of an open pipeline: the same for all copies in one precision."""
    prints = {
        str(name): [str(found.layout), list(found.weights)]
        for name, found in identify_pipeline(pipeline).fingerprints.items()
    }
    return str(Digest.of_bytes(canonical_json(prints)))


def _judge_categories(prompts: Sequence[Prompt], found: Examination) -> dict[str, CategoryModel]:
    tally: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for prompt, own, base in zip(prompts, found.agreements, found.base_agreements, strict=True):
        if prompt.category is not None:
            tally[prompt.category].append((own, base))
    return {
        name: CategoryModel(
            score=round(float(np.mean([own for own, _ in rows])), 6),
            base=round(float(np.mean([base for _, base in rows])), 6),
        )
        for name, rows in sorted(tally.items())
    }
