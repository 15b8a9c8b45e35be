"""Several concepts in one picture: subjects beside each other and in a style, in each way of putting them together."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from conceptry.concepts import Concept
from conceptry.digests import Digest, canonical_json
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IncompatibleError,
    InterruptedByUserError,
    UsageError,
)
from conceptry.evaluation.bench_files import locked
from conceptry.evaluation.bench_methods import BenchMethod
from conceptry.evaluation.bench_results import GROUPS_NAME, Row, locate_groups, read_groups, write_json
from conceptry.evaluation.bench_running import Bench, OnStep, digest_base
from conceptry.evaluation.bench_strips import make_strip
from conceptry.evaluation.combining import find_combination
from conceptry.evaluation.examination import draw_pictures
from conceptry.evaluation.identity_thresholds import EARLIER_RULE, RULE, Thresholds
from conceptry.evaluation.presence import Identity, Presence, find_members, score_presences
from conceptry.evaluation.references import References
from conceptry.evaluation.toybench import BenchSubject
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.scorer import Scorer

_FILE_NAME: Final = "together.toml"
_FIRST_SEED: Final = 9_000
_TAUGHT_NAMES: Final = ("seed", "training_pictures", "placeholder", "plain_word")
# What files were measured with that have the digest of a suite in the place of these.
TAUGHT_WITH: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "sha256:bc4231adbfdd2dd5e69ad2cd3f9f25ac6d5eb4c1b1ed5a81f0ced7b24220041a": MappingProxyType(
            {"seed": 11, "training_pictures": 6, "placeholder": "<toy>", "plain_word": "sks"}
        )
    }
)
_UNCALLED: Final = ("a photo of a {} in the forest", "a picture of a {} at sunset")


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiSuite:
    """Who is put together, how, and what is asked."""

    name: str
    digest: Digest
    """Of what decides a row: prompts, and how often each is drawn."""

    methods: tuple[str, ...]
    ways: tuple[str, ...]
    merges: tuple[str, ...]
    """Further ways of two subjects."""

    ways_of_three: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    pictures_per_prompt: int
    prompts: tuple[Mapping[str, Any], ...]

    def list_ways(self, subjects: int, *, has_style: bool) -> tuple[str, ...]:
        """Returns the ways in which so many subjects are put together."""
        if subjects > 2:
            return self.ways_of_three
        return self.ways + (self.merges if subjects == 2 and not has_style else ())

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
        merges=tuple(table["merges"]),
        ways_of_three=tuple(table["ways_of_three"]),
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
    thresholds: Thresholds = field(default_factory=Thresholds)

    def run(
        self,
        method: BenchMethod,
        groups: Sequence[Sequence[str]],
        ways: Sequence[str] | None = None,
        known: Sequence[Row] = (),
    ) -> Iterator[Row]:
        """Gives a row for each group and way that is not known; a way that cannot carry a group says why.

        Ends early where the time is up. ``ways`` of None are those of the suite for groups of that size.
        """
        done = {_key(row) for row in known}
        for group in groups:
            subjects = [self.bench.suite.find_subject(id) for id in group]
            things = sum(subject.subject == "instance" for subject in subjects)
            asked = ways or load_multi_suite().list_ways(things, has_style=things < len(group))
            left = [way for way in asked if (method.id, way, tuple(group), RULE) not in done]
            if left and self.bench.is_late(count=len(left)):
                return
            with self.bench.timed(count=len(left)):
                taught = [self.teach(method, subject) for subject in subjects] if left else []
                for way in left:
                    head = {"method": method.id, "way": way, "members": list(group), "found_by": RULE}
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
        colors = [reading.objects[0].color for reading in self.scorer.read(truth.reference)]
        return Identity(
            prototype=prototype,
            threshold=self.thresholds.find(prototype, subject.superclass),
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


def measure_groups(bench: Bench, methods: Sequence[BenchMethod], on_step: OnStep) -> Iterator[Row]:
    """Gives each new row once it is kept; ends early where the time is up, and keeps what failed in the bench.

    Raises:
        ConflictError: if the rows that are there were not measured alike.
        InterruptedByUserError: after Ctrl-C; what is kept stays.
    """
    suite, multi, path = load_multi_suite(), MultiBench(bench), locate_groups(bench.options.out)
    for method in methods:
        try:
            for row in multi.run(method, suite.groups, known=read_known(path, bench)):
                on_step(f"{method.id}, {row['way']}: {' + '.join(row['members'])}")
                keep_row(path, _clean(row), bench)
                yield row
        except (InterruptedByUserError, ConflictError):
            raise
        except ConceptryError as error:  # one method that fails does not keep the others from their rows
            bench.failures.append(error.inside(f"{method.id} of several concepts"))


def keep_row(path: Path, row: Row, bench: Bench) -> list[Row]:
    """Writes a row to those that are there by now, in the place of one that was judged by an earlier rule."""
    with locked(path.parent):
        rows = [known for known in read_known(path, bench) if _key(known)[:3] != _key(row)[:3]]
        rows.append(row)
        write_json(path, {**describe(bench), "rows": rows})
    return rows


def read_known(path: Path, bench: Bench) -> list[Row]:
    """Returns the rows of an earlier run. Raises InvalidFileError, or ConflictError if it measured otherwise."""
    rows, document = read_groups(path)
    head = {**TAUGHT_WITH.get(str(document.get("suite_digest")), {}), **document}
    different = [name for name, value in describe(bench).items() if rows and head.get(name) != value]
    if different:
        raise ConflictError(
            f"{str(path)!r} was measured otherwise: {', '.join(different)}",
            hint="name another folder with --out",
        )
    return rows


def describe(bench: Bench) -> dict[str, Any]:
    """Returns what decides the rows of a file; what is put together, and how, stands in each row."""
    return {
        "schema": 1,
        "base": digest_base(bench.pipeline),
        "sample_passes": bench.sample_passes,
        "together": load_multi_suite().name,
        "together_digest": str(load_multi_suite().digest),
        **{name: getattr(bench.suite, name) for name in _TAUGHT_NAMES},
    }


def _key(row: Row) -> tuple[str, str, tuple[str, ...], str]:
    rule = str(row.get("found_by", EARLIER_RULE))
    return (str(row["method"]), str(row["way"]), tuple(row["members"]), rule)


def _clean(row: Row) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in row.items()
    }
