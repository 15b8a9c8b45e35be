"""Several concepts in one picture: subjects beside each other and in a style, in each way of putting them together."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from conceptry.concepts import Concept
from conceptry.digests import Digest, canonical_json
from conceptry.errors import ConflictError, IncompatibleError, UsageError
from conceptry.evaluation.bench_methods import BenchMethod
from conceptry.evaluation.bench_results import GROUPS_NAME, Row, locate_groups, read_groups, write_json
from conceptry.evaluation.bench_running import Bench, OnStep, digest_base, make_strip
from conceptry.evaluation.combining import find_combination
from conceptry.evaluation.examination import draw_pictures
from conceptry.evaluation.presence import Identity, Presence, find_members, score_presences
from conceptry.evaluation.references import References
from conceptry.evaluation.toybench import BenchSubject
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.scorer import Scorer

_FILE_NAME: Final = "together.toml"
_FIRST_SEED: Final = 9_000
_UNCALLED: Final = ("a photo of a {} in the forest", "a picture of a {} at sunset")


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiSuite:
    """Who is put together, how, and what is asked."""

    name: str
    digest: Digest
    """Of what decides a row: prompts, and how often each is drawn."""

    methods: tuple[str, ...]
    ways: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    pictures_per_prompt: int
    prompts: tuple[Mapping[str, Any], ...]

    def list_prompts(self, subjects: int) -> list[tuple[str, str | None]]:
        """Returns the prompts of so many subjects, each as often as it is drawn, and the side that they ask for."""
        return [
            (row["text"], row.get("side"))
            for row in self.prompts
            if row["subjects"] == subjects
            for _ in range(self.pictures_per_prompt)
        ]


@cache
def load_multi_suite() -> MultiSuite:
    """Returns the part of the benchmark that is about several concepts."""
    table = tomllib.loads(files(__package__).joinpath(_FILE_NAME).read_text(encoding="utf-8"))
    asked = {name: table[name] for name in ("pictures_per_prompt", "prompts")}
    return MultiSuite(
        name=table["name"],
        digest=Digest.of_bytes(canonical_json(asked)),
        methods=tuple(table["methods"]),
        ways=tuple(table["ways"]),
        groups=tuple(tuple(group) for group in table["groups"]),
        pictures_per_prompt=table["pictures_per_prompt"],
        prompts=tuple(table["prompts"]),
    )


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class MultiBench:
    """The multi-concept part on one open pipeline."""

    bench: Bench
    scorer: Scorer = field(default_factory=Scorer.load)
    identities: dict[str, Identity] = field(default_factory=dict)
    styles: dict[str, tuple[Any, float, float]] = field(default_factory=dict)

    def run(
        self,
        method: BenchMethod,
        groups: Sequence[Sequence[str]],
        ways: Sequence[str],
        known: Sequence[Row] = (),
    ) -> Iterator[Row]:
        """Gives a row for each group and way that is not known; a way that cannot carry a group says why."""
        done = {_key(row) for row in known}
        for group in groups:
            left = [way for way in ways if (method.id, way, tuple(group)) not in done]
            subjects = [self.bench.suite.find_subject(id) for id in group]
            taught = [self.teach(method, subject) for subject in subjects] if left else []
            for way in left:
                head = {"method": method.id, "way": way, "members": list(group)}
                try:
                    yield {**head, **self._measure(way, subjects, taught, method)}
                except IncompatibleError as error:
                    yield {**head, "impossible": error.message}

    def teach(self, method: BenchMethod, subject: BenchSubject) -> tuple[Concept, str]:
        """Returns the concept that a method makes of a subject and its word; an earlier training is used again."""
        truth = self.bench.prepare(subject)
        taught = method.teach(self.bench.make_lesson(subject))
        if taught.concept is None:
            raise UsageError(f"{method.id} makes no package, so nothing can be composed with it")
        self._know(subject, truth)
        return taught.concept, taught.word

    def _know(self, subject: BenchSubject, truth: References) -> None:
        if subject.subject == "style":
            if subject.id not in self.styles:
                prototype = self.scorer.style_prototype(truth.reference)
                own = self.scorer.style(
                    round_trip(self.bench.pipeline.vae, _as_bytes(truth.ceiling)), prototype
                )
                other = self.scorer.style(self._draw_plain("creature"), prototype)
                self.styles[subject.id] = (prototype, float(other.mean()), float(own.mean()))
        elif subject.id not in self.identities:
            self.identities[subject.id] = self._make_identity(subject, truth)

    def _make_identity(self, subject: BenchSubject, truth: References) -> Identity:
        prototype = self.scorer.prototype(truth.reference)
        own = self.scorer.identity(round_trip(self.bench.pipeline.vae, _as_bytes(truth.ceiling)), prototype)
        other = self.scorer.identity(self._draw_plain(subject.superclass), prototype)
        colors = [reading.objects[0].color for reading in self.scorer.read(truth.reference)]
        return Identity(
            prototype=prototype,
            threshold=float(own.mean() + other.mean()) / 2,
            kind=subject.superclass,
            color=max(set(colors), key=colors.count),
        )

    def _draw_plain(self, superclass: str) -> list[Any]:
        texts = [text.format(superclass) for text in _UNCALLED] * 2
        return self.bench.base.draw(self.bench.pipeline, texts, _FIRST_SEED, lambda count: None)

    def _measure(
        self,
        way: str,
        subjects: Sequence[BenchSubject],
        taught: Sequence[tuple[Concept, str]],
        method: BenchMethod,
    ) -> dict[str, Any]:
        things = [subject for subject in subjects if subject.subject == "instance"]
        style = next((subject for subject in subjects if subject.subject == "style"), None)
        asked = load_multi_suite().list_prompts(len(things))
        combine, began = find_combination(way).combine, time.process_time()
        with combine([concept for concept, _ in taught], self.bench.pipeline) as renamed:
            words = [_rename(concept, word, renamed) for concept, word in taught]
            texts = [fill(text, words, has_style=style is not None) for text, _ in asked]
            drawn = draw_pictures(
                self.bench.pipeline, texts, _FIRST_SEED, self.bench.base.drawing, lambda count: None
            )
            seconds = time.process_time() - began
            plain = [_UNCALLED[0].format(thing.superclass) for thing in things]
            uncalled = draw_pictures(
                self.bench.pipeline, plain, _FIRST_SEED, self.bench.base.drawing, lambda count: None
            )
        members = [self.identities[thing.id] for thing in things]
        presences = [
            find_members(reading, members, side)
            for reading, (_, side) in zip(self.scorer.read(drawn), asked, strict=True)
        ]
        silent: list[Presence] = [find_members(reading, members) for reading in self.scorer.read(uncalled)]
        row = asdict(score_presences(presences, silent))
        row["processor_seconds"] = round(seconds / len(drawn), 3)
        if style is not None:
            prototype, floor, ceiling = self.styles[style.id]
            found = float(self.scorer.style(drawn, prototype).mean())
            row["style"] = (found - floor) / (ceiling - floor) if ceiling > floor else None
        row["pictures_file"] = self._keep(drawn, way, subjects, method)
        return row

    def _keep(
        self, drawn: Sequence[Any], way: str, subjects: Sequence[BenchSubject], method: BenchMethod
    ) -> str:
        name = f"pictures/{GROUPS_NAME}/{method.id}-{way}-{'-'.join(subject.id for subject in subjects)}.webp"
        path = self.bench.options.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_strip(drawn).save(path, format="WEBP", quality=80)
        return name


def fill(text: str, words: Sequence[str], *, has_style: bool) -> str:
    """Returns a prompt with an article before each subject's word; the last word is the style's."""
    things = words[:-1] if has_style else words
    filled = text.format(*(f"a {word}" for word in things))
    return f"{filled} in the style of {words[-1]}" if has_style else filled


def _rename(concept: Concept, word: str, renamed: Mapping[str, Mapping[str, str]]) -> str:
    """Returns the word as it is written while the composition is attached: placeholders that collide were renamed."""
    for old, new in renamed.get(concept.label, {}).items():
        word = word.replace(old, new)
    return word


def _as_bytes(pictures: Any) -> Any:
    return np.asarray(pictures)


def run_all(bench: Bench, methods: Sequence[BenchMethod], on_step: OnStep) -> list[Row]:
    """Returns all rows, those of earlier runs and the new ones, each kept as soon as it is there."""
    suite, multi, path = load_multi_suite(), MultiBench(bench), locate_groups(bench.options.out)
    rows = _read_known(path, bench)
    for method in methods:
        for row in multi.run(method, suite.groups, suite.ways, rows):
            on_step(f"{method.id}, {row['way']}: {' + '.join(row['members'])}")
            rows.append(_clean(row))
            write_json(path, {**_describe(bench), "rows": rows})
    return rows


def _read_known(path: Path, bench: Bench) -> list[Row]:
    """Returns the rows of an earlier run. Raises InvalidFileError, or ConflictError if it measured otherwise."""
    rows, document = read_groups(path)
    if rows and {key: document.get(key) for key in _describe(bench)} != _describe(bench):
        raise ConflictError(
            f"{str(path)!r} was measured with another suite, base or budget",
            hint="name another folder with --out",
        )
    return rows


def _describe(bench: Bench) -> dict[str, Any]:
    return {
        "schema": 1,
        "suite": bench.suite.name,
        "suite_digest": str(bench.suite.digest),
        "base": digest_base(bench.pipeline),
        "sample_passes": bench.sample_passes,
        "together": load_multi_suite().name,
        "together_digest": str(load_multi_suite().digest),
    }


def _key(row: Row) -> tuple[str, str, tuple[str, ...]]:
    return (str(row["method"]), str(row["way"]), tuple(row["members"]))


def _clean(row: Row) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in row.items()
    }
