"""Which base family a file is for: shapes first, then what its metadata claims; disagreement is said."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from conceptry.bases import FamilyId
from conceptry.formats.data_files import load_table

CLAIM_CONFIDENCE: Final = 0.5
CERTAIN_WEIGHT: Final = 0.9
_DISPUTED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Verdict:
    """The family, how sure that is, and why."""

    family: FamilyId | None
    confidence: float
    reasons: tuple[str, ...]
    certain: bool = False
    """The shapes fit no other family."""


@dataclass(frozen=True, slots=True)
class _Rule:
    weight: float
    what: str
    pattern: re.Pattern[str]
    sizes: Mapping[int, str]
    family: str | None


@functools.cache
def _list_rules() -> tuple[_Rule, ...]:
    return tuple(_make_rule(row) for row in load_table("families")["rule"])


def _make_rule(row: Mapping[str, Any]) -> _Rule:
    sizes = {int(size): family for size, family in row.get("sizes", {}).items()}
    return _Rule(row["weight"], row["what"], re.compile(row["pattern"], re.ASCII), sizes, row.get("family"))


def judge_family(modules: Iterable[tuple[str, int]], metadata: Mapping[str, str]) -> Verdict:
    """Returns the family that modules, each ``{component}.{path}`` with its input width, and metadata speak for."""
    seen = list(modules)
    shaped = None
    for rule in _list_rules():
        if shaped is not None and rule.weight < shaped[0].weight:
            break
        votes = _collect_votes(rule, seen)
        if len(votes) > 1 or (shaped is not None and votes and votes.keys() != {shaped[1]}):
            names = ", ".join(sorted(votes.keys() | ({shaped[1]} if shaped else set())))
            return Verdict(None, 0.0, (f"shapes speak for several families: {names}",))
        if votes and shaped is None:
            shaped = (rule, *next(iter(votes.items())))
    if shaped is None:
        return judge_claims(metadata, None, 0.0)
    rule, family, example = shaped
    claimed = judge_claims(metadata, FamilyId(family), rule.weight)
    reasons = (f"{rule.what}: {example}, so {family}", *claimed.reasons)
    return Verdict(claimed.family, claimed.confidence, reasons, certain=rule.weight >= CERTAIN_WEIGHT)


def _collect_votes(rule: _Rule, modules: Iterable[tuple[str, int]]) -> dict[str, str]:
    votes: dict[str, str] = {}
    for path, width in modules:
        family = rule.family or rule.sizes.get(width)
        if family is not None and family not in votes and rule.pattern.search(path):
            votes[family] = path if rule.family else f"{width} in {path}"
    return votes


def judge_claims(metadata: Mapping[str, str], shaped: FamilyId | None, confidence: float) -> Verdict:
    """Returns ``shaped`` with what metadata adds or disputes; without it, what metadata claims."""
    claims = {
        key: FamilyId(family)
        for key, rows in load_table("families")["claims"].items()
        for family in [_match_claim(metadata.get(key, ""), rows)]
        if family
    }
    if shaped is None:
        key = next(iter(claims), None)
        if key is None:
            return Verdict(None, 0.0, ("nothing tells the base family",))
        return Verdict(
            claims[key], CLAIM_CONFIDENCE, (f"only metadata tells the family: {key} = {metadata[key][:80]}",)
        )
    disputes = tuple(
        f"{key} claims {claim}, the shapes are those of {shaped}; shapes are believed"
        for key, claim in claims.items()
        if claim != shaped
    )
    agreed = bool(claims) and not disputes
    sure = max(confidence, _DISPUTED) if agreed else confidence * (_DISPUTED if disputes else 1.0)
    return Verdict(shaped, sure, disputes)


def _match_claim(value: str, rows: Iterable[tuple[str, str]]) -> str | None:
    return next((family for start, family in rows if value.lower().startswith(start)), None)
