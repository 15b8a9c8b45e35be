"""Whether the benchmark orders methods as papers do: pairs that somebody published, beside our own numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from conceptry.evaluation.bench_summary import MethodSummary

_SMALLER_IS_AHEAD: Final = frozenset({"size_bytes", "seconds"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A published order of two methods in one measure."""

    better: str
    worse: str
    measure: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A pair with our numbers, and whether they are ordered the same way."""

    pair: Pair
    ours_better: float
    ours_worse: float
    agrees: bool


@cache
def load_pairs() -> tuple[Pair, ...]:
    """Returns the published pairs."""
    document = tomllib.loads(files(__package__).joinpath("concordance.toml").read_text(encoding="utf-8"))
    return tuple(Pair(**row) for row in document["pairs"])


def judge_pairs(rows: Sequence[MethodSummary], pairs: Sequence[Pair] | None = None) -> tuple[Verdict, ...]:
    """Returns the pairs of which both methods were measured; equal numbers do not agree."""
    by_name = {row.method: row for row in rows}
    verdicts = []
    for pair in load_pairs() if pairs is None else pairs:
        values = [
            getattr(by_name[name], pair.measure) for name in (pair.better, pair.worse) if name in by_name
        ]
        if len(values) < 2 or None in values:
            continue
        ahead, behind = (float(value) for value in values)
        agrees = ahead < behind if pair.measure in _SMALLER_IS_AHEAD else ahead > behind
        verdicts.append(Verdict(pair=pair, ours_better=ahead, ours_worse=behind, agrees=agrees))
    return tuple(verdicts)


def write_concordance(rows: Sequence[MethodSummary]) -> list[str]:
    """Returns the section of the Markdown page, nothing where no pair was measured."""
    verdicts = judge_pairs(rows)
    if not verdicts:
        return []
    same = sum(one.agrees for one in verdicts)
    lines = [
        "",
        "## What papers publish",
        "",
        f"{same} of {len(verdicts)} published pairs are ordered the same way here ({same / len(verdicts):.0%}).",
        "",
        "| measure | published as better | than | here | same | source |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(verdicts, key=lambda one: one.agrees):
        pair = one.pair
        lines.append(
            f"| {pair.measure} | {pair.better} | {pair.worse} | {one.ours_better:.3g} and {one.ours_worse:.3g} | "
            f"{'yes' if one.agrees else '**no**'} | {pair.source} |"
        )
    return lines
