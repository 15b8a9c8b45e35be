"""From rows to a table: methods ranked by what they do on the same subjects, with intervals by bootstrap over subjects.

Rank is by balance, the harmonic mean of normalised identity and normalised prompt agreement: a method that copies its
training pictures and one that ignores its word both end low. Each resample of the subjects ranks all methods anew.
Methods that lack subjects which the others have are shown without a rank: they would take those from everybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from conceptry.evaluation.bench_conditions import choose_rows
from conceptry.evaluation.bench_results import ResultFile, ResultRow
from conceptry.evaluation.scores import bootstrap_interval, correlate_ranks, mean_interval
from conceptry.evaluation.toybench import load_suite
from conceptry.trainer.methods import TRAINER_BY_ID

RESAMPLES: Final = 2000
FEWEST_SUBJECTS: Final = 6
"""Of fewer, even the span from the smallest to the largest covers the median in less than 95 of 100 draws."""

_LEVEL: Final = 0.95
Values = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One line of the table: means over subjects, all normalised to 0 at the floor and 1 at the ceiling."""

    method: str
    title: str
    subjects: int
    identity: float
    interval: Interval | None
    """Of identity, over subjects; None for so few that nothing can be said."""

    prompt: float
    prompt_interval: Interval | None
    balance: float
    preservation: float | None
    diversity: float | None
    leakage: float | None
    others: Mapping[str, float]
    """Further likenesses of the protocol: what a second scorer says."""

    categories: Mapping[str, float]
    """Agreement with the prompts of each category, as a share of the base's own."""

    size_bytes: int
    seconds: float
    processor_seconds: float | None
    """Medians of what training took; the first by the clock, the second of all threads together."""

    sample_passes: int
    rank: int | None = None
    """None where the method lacks subjects that the ranked ones have."""

    rank_interval: tuple[int, int] | None = None
    ranked_on: int = 0
    """How many subjects ranks and front stand on: all ranked methods have them."""

    is_front: bool = False
    """Whether no other ranked method is better in both identity and prompt, on those subjects."""


def summarise(results: ResultFile, kind: Literal["instance", "style"]) -> tuple[MethodSummary, ...]:
    """Returns the methods, best first, then those without a rank; means are over each one's own subjects."""
    rows: dict[str, list[ResultRow]] = defaultdict(list)
    for row in choose_rows(results.rows)[0]:
        if row.kind == kind:
            rows[row.method].append(row)
    ranks = rank_methods(rows)
    common = find_common({method: {row.subject for row in own} for method, own in rows.items()})
    fronts = _find_fronts({method: rows[method] for method in ranks}, common)
    found = [_summarise_one(own) for own in rows.values()]
    ranked = sorted(
        (one for one in found if one.method in ranks),
        key=lambda one: (ranks[one.method][0], -one.balance, one.method),
    )
    others = sorted(
        (one for one in found if one.method not in ranks),
        key=lambda one: (-one.subjects, -one.balance, one.method),
    )
    placed = [
        replace(
            one,
            rank=number,
            rank_interval=ranks[one.method][1],
            ranked_on=len(common),
            is_front=one.method in fronts,
        )
        for number, one in enumerate(ranked, 1)
    ]
    return (*placed, *(replace(one, ranked_on=len(common)) for one in others))


def find_common(measured: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Returns the subjects on which most rows can be compared: how many methods have them all, times how many they are.

    So a guest who was measured on one subject takes nothing from the others, and while a table grows the subjects that
    all have count until some have so many more that comparing fewer methods says more. Empty where there is nothing.
    """
    sets = sorted(
        {frozenset(own) for own in measured.values() if own}, key=lambda one: (len(one), sorted(one))
    )
    candidates: list[frozenset[str]] = [
        one & other for one, other in combinations_with_replacement(sets, 2) if one & other
    ]

    def weigh(subjects: frozenset[str]) -> tuple[int, int, list[str]]:
        holders = sum(1 for own in measured.values() if subjects <= set(own))
        return (holders * len(subjects), len(subjects), sorted(subjects))

    best = max(candidates, key=weigh, default=frozenset[str]())
    return tuple(sorted(best))


def _find_fronts(rows: Mapping[str, Sequence[ResultRow]], subjects: Sequence[str]) -> set[str]:
    """Returns the methods that no other is better than in both scores, by their means over these subjects."""
    means = {
        method: tuple(float(_column(_choose(own, subjects), name).mean()) for name in ("identity", "prompt"))
        for method, own in rows.items()
    }
    return {
        method
        for method, (identity, prompt) in means.items()
        if not any(
            one >= identity and other >= prompt and (one, other) != (identity, prompt)
            for one, other in means.values()
        )
    }


def _summarise_one(rows: Sequence[ResultRow]) -> MethodSummary:
    first = rows[0]
    identity, prompt = _column(rows, "identity"), _column(rows, "prompt")
    return MethodSummary(
        method=first.method,
        title=first.title,
        subjects=len(rows),
        identity=float(np.mean(identity)),
        interval=_find_interval(identity),
        prompt=float(np.mean(prompt)),
        prompt_interval=_find_interval(prompt),
        balance=float(np.mean(balance(identity, prompt))),
        preservation=_mean_of(rows, "preservation"),
        diversity=_mean_of(rows, "diversity"),
        leakage=_mean_of(rows, "leakage"),
        others=_mean_others(rows),
        categories=_mean_categories(rows),
        size_bytes=round(float(np.median([row.size_bytes for row in rows]))),
        seconds=float(np.median([row.training_seconds for row in rows])),
        processor_seconds=_find_processor_seconds(rows),
        sample_passes=round(float(np.mean([row.sample_passes for row in rows]))),
    )


def _find_processor_seconds(rows: Sequence[ResultRow]) -> float | None:
    known = [row.training_processor_seconds for row in rows if row.training_processor_seconds is not None]
    return float(np.median(known)) if len(known) == len(rows) else None


def _find_interval(values: Values) -> Interval | None:
    return bootstrap_interval(values) if values.size >= FEWEST_SUBJECTS else None


def find_paired_interval(differences: Values) -> Interval | None:
    """Returns the 95 % interval of the mean of differences paired by subject; None of fewer than two.

    By bootstrap, of a few by Student's t, which is wide there.
    """
    if differences.size >= FEWEST_SUBJECTS:
        return bootstrap_interval(differences)
    return mean_interval(differences) if differences.size > 1 else None


def balance(identity: Values, prompt: Values) -> Values:
    """Returns the harmonic mean of two normalised scores, each first brought into [0, 1]."""
    one, other = np.clip(identity, 0.0, 1.0), np.clip(prompt, 0.0, 1.0)
    total = one + other
    return np.asarray(np.divide(2 * one * other, total, out=np.zeros_like(total), where=total > 0))


def rank_methods(rows: Mapping[str, Sequence[ResultRow]]) -> dict[str, tuple[float, tuple[int, int]]]:
    """Returns the mean rank (1 is best) over resamples of the common subjects, and its 95 % interval.

    Only of the methods that have all of these subjects. Of a few it is the plain order, and every rank is open.
    """
    common = find_common({name: {row.subject for row in own} for name, own in rows.items()})
    names = sorted(
        name for name, own in rows.items() if common and {row.subject for row in own} >= set(common)
    )
    if not names:
        return {}
    chosen = [_choose(rows[name], common) for name in names]
    table = np.asarray([balance(_column(own, "identity"), _column(own, "prompt")) for own in chosen])
    if len(common) < FEWEST_SUBJECTS:
        means = table.mean(axis=1)
        return {
            name: (1.0 + float((means > mean).sum()), (1, len(names)))
            for name, mean in zip(names, means, strict=True)
        }
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(common), (RESAMPLES, len(common)))
    means = table[:, drawn].mean(axis=2)
    ranks = 1 + (means[None, :, :] > means[:, None, :]).sum(axis=1)
    low, high = np.quantile(ranks, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=1)
    return {
        name: (float(ranks[place].mean()), (int(low[place]), int(np.ceil(high[place]))))
        for place, name in enumerate(names)
    }


def _choose(rows: Sequence[ResultRow], subjects: Sequence[str]) -> list[ResultRow]:
    """Returns the row of each of these subjects."""
    by_subject = {row.subject: row for row in rows}
    return [by_subject[subject] for subject in subjects]


def _column(rows: Sequence[ResultRow], name: str) -> Values:
    """Normalised scores; a row whose span is empty says nothing and counts as its floor."""
    return np.asarray([getattr(row, name).normalised or 0.0 for row in rows], np.float64)


def _mean_of(rows: Sequence[ResultRow], name: str) -> float | None:
    found = [getattr(row, name) for row in rows]
    values = [one.normalised for one in found if one is not None and one.normalised is not None]
    return float(np.mean(values)) if values else None


def _mean_others(rows: Sequence[ResultRow]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row.others})
    found = {name: [row.others[name].normalised for row in rows if name in row.others] for name in names}
    means = {name: [value for value in values if value is not None] for name, values in found.items()}
    return {name: float(np.mean(values)) for name, values in means.items() if values}


def compare_scorers(rows: Sequence[MethodSummary]) -> dict[str, float]:
    """Returns for each further likeness the rank correlation of its order of ranked methods with that of identity."""
    rows = [row for row in rows if row.rank is not None]
    names = sorted(set.intersection(*({*row.others} for row in rows))) if len(rows) > 2 else []
    return {
        name: correlate_ranks([row.identity for row in rows], [row.others[name] for row in rows])
        for name in names
    }


def _mean_categories(rows: Sequence[ResultRow]) -> dict[str, float]:
    tally: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for name, model in row.categories.items():
            tally[name].append((model.score, model.base))
    shares = {}
    for name, pairs in tally.items():
        base = float(np.mean([pair[1] for pair in pairs]))
        if base > 0:
            shares[name] = float(np.mean([pair[0] for pair in pairs])) / base
    return shares


def to_json(results: ResultFile) -> dict[str, Any]:
    """Returns ``docs/toybench.json``: one row a method on instances, and one a method on styles."""
    return {
        "schema": 1,
        "suite": results.suite,
        "suite_digest": results.suite_digest,
        "protocol": results.protocol,
        "base": results.base.model_dump(),
        "sample_passes": results.sample_passes,
        "commit": ", ".join(list_commits(results)),
        "machine": results.machine,
        "machines": list_machines(results),
        "complete": is_complete(results),
        "left_out": list(choose_rows(results.rows)[1]),
        "rows": [{"instances": one.subjects, **_describe(one)} for one in summarise(results, "instance")],
        "styles": [{"styles": one.subjects, **_describe(one)} for one in summarise(results, "style")],
        "scorer_agreement": {
            name: round(value, 4) for name, value in compare_scorers(summarise(results, "instance")).items()
        },
    }


def list_commits(results: ResultFile) -> list[str]:
    """Returns every commit that measured one of the rows, once."""
    return sorted({row.commit or results.commit for row in results.rows} or {results.commit})


def is_complete(results: ResultFile) -> bool:
    """Returns whether each of the project's own methods of the table has a full row of every subject of the suite."""
    suite = load_suite()
    done = {(row.method, row.subject) for row in choose_rows(results.rows)[0]}
    named = {*TRAINER_BY_ID, *(variant.id for variant in suite.variants)} - suite.apart
    return all((method, subject.id) in done for method in named for subject in suite.subjects)


def list_machines(results: ResultFile) -> list[Mapping[str, Any]]:
    """Returns every machine that measured one of the rows, once."""
    found: list[Mapping[str, Any]] = []
    for row in results.rows:
        machine = row.machine or results.machine
        if machine not in found:
            found.append(machine)
    return found or [results.machine]


def _describe(one: MethodSummary) -> dict[str, Any]:
    def shorten(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "method": one.method,
        "title": one.title,
        "identity": shorten(one.identity),
        "interval": None if one.interval is None else [shorten(value) for value in one.interval],
        "prompt": shorten(one.prompt),
        "prompt_interval": None
        if one.prompt_interval is None
        else [shorten(value) for value in one.prompt_interval],
        "balance": shorten(one.balance),
        "preservation": shorten(one.preservation),
        "diversity": shorten(one.diversity),
        "leakage": shorten(one.leakage),
        "others": {name: shorten(value) for name, value in one.others.items()},
        "categories": {name: shorten(value) for name, value in sorted(one.categories.items())},
        "size_bytes": one.size_bytes,
        "seconds": shorten(one.seconds),
        "processor_seconds": shorten(one.processor_seconds),
        "sample_passes": one.sample_passes,
        "rank": one.rank,
        "rank_interval": None if one.rank_interval is None else list(one.rank_interval),
        "ranked_on": one.ranked_on,
        "front": one.is_front,
    }
