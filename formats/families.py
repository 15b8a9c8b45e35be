"""Which base family a file is for: shapes first, then what its metadata claims; disagreement is said."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from conceptry.bases import FamilyId
from conceptry.formats.data_files import load_table

CLAIM_CONFIDENCE: Final = 0.5
CERTAIN_WEIGHT: Final = 0.9
_DISPUTED: Final = 0.9
# No name holds a line break, so that all paths of a file are searched at once, one a line.
_BY_LINE: Final = re.ASCII | re.MULTILINE


@dataclass(frozen=True, slots=True)
class Verdict:
    """The family, how sure that is, and why."""

    family: FamilyId | None
    confidence: float
    reasons: tuple[str, ...]
    certain: bool = False
    """The shapes fit no other family."""


class Seen(NamedTuple):
    """A module of a file: ``{component}.{path}``, the width of what it reads (None where unknown), its dimensions."""

    path: str
    width: int | None
    dims: int = 2


_Groups = Mapping[tuple[int | None, int], str]
"""Width and dimensions -> the paths of the modules that have them, one a line."""


@dataclass(frozen=True, slots=True)
class _Rule:
    weight: float
    what: str
    pattern: re.Pattern[str]
    sizes: Mapping[int, str]
    family: str | None
    also: tuple[str, ...]
    dims: int | None
    needs: re.Pattern[str] | None
    unless: re.Pattern[str] | None

    def applies(self, paths: str) -> bool:
        """Returns whether the modules of the file have what the rule needs, and nothing that rules it out."""
        needed = self.needs is None or self.needs.search(paths) is not None
        return needed and not (self.unless and self.unless.search(paths))

    def vote(self, groups: _Groups) -> dict[str, str]:
        """Returns family -> the module that speaks for it."""
        votes: dict[str, str] = {}
        for (width, dims), paths in groups.items():
            family = self.family or self.sizes.get(width or 0)
            if family is None or family in votes or (self.dims and dims != self.dims):
                continue
            found = self.pattern.search(paths)
            if found:
                path = paths[paths.rfind("\n", 0, found.end()) + 1 :].partition("\n")[0]
                votes[family] = path if self.family else f"{width} in {path}"
        return votes


@functools.cache
def _list_rules() -> tuple[_Rule, ...]:
    rules = (_make_rule(row) for row in load_table("families")["rule"])
    return tuple(sorted(rules, key=lambda rule: -rule.weight))


def _make_rule(row: Mapping[str, Any]) -> _Rule:
    def compile_(key: str) -> re.Pattern[str] | None:
        return re.compile(row[key], _BY_LINE) if key in row else None

    return _Rule(
        weight=row["weight"],
        what=row["what"],
        pattern=re.compile(row["pattern"], _BY_LINE),
        sizes={int(size): family for size, family in row.get("sizes", {}).items()},
        family=row.get("family"),
        also=tuple(row.get("also", ())),
        dims=row.get("dims"),
        needs=compile_("needs"),
        unless=compile_("unless"),
    )


def judge_family(modules: Iterable[Seen], metadata: Mapping[str, str]) -> Verdict:
    """Returns the family that the modules of a file and its metadata speak for, with the reasons in words."""
    groups = _group(modules)
    paths = "\n".join(groups.values())
    shaped: tuple[_Rule, str, str] | None = None
    for rule in _list_rules():
        if shaped is not None and rule.weight < shaped[0].weight:
            break
        votes = rule.vote(groups)
        if not votes or not rule.applies(paths):
            continue
        if len(votes) > 1 or (shaped is not None and votes.keys() != {shaped[1]}):
            names = ", ".join(sorted(votes.keys() | ({shaped[1]} if shaped else set())))
            return Verdict(None, 0.0, (f"shapes speak for several families: {names}",))
        if shaped is None:
            shaped = (rule, *next(iter(votes.items())))
    if shaped is None:
        return judge_claims(metadata, None, 0.0)
    rule, family, example = shaped
    claimed = judge_claims(metadata, FamilyId(family), rule.weight, rule.also)
    reasons = (f"{rule.what}: {example}, so {family}", *claimed.reasons, *_list_doubts(family, rule))
    return Verdict(claimed.family, claimed.confidence, reasons, certain=rule.weight >= CERTAIN_WEIGHT)


def _group(modules: Iterable[Seen]) -> _Groups:
    groups: dict[tuple[int | None, int], list[str]] = {}
    for path, width, dims in modules:
        groups.setdefault((width, dims), []).append(path)
    return {key: "\n".join(paths) for key, paths in groups.items()}


def _list_doubts(family: str, rule: _Rule) -> tuple[str, ...]:
    shared = load_table("families")["shared"].get(family)
    unsure = (
        () if rule.weight >= CERTAIN_WEIGHT else (f"unsure: nothing in the file rules out all but {family}",)
    )
    return (*unsure, *((shared,) if shared else ()))


def judge_claims(
    metadata: Mapping[str, str], shaped: FamilyId | None, confidence: float, also: Sequence[str] = ()
) -> Verdict:
    """Returns ``shaped`` with what metadata adds or disputes; without it, what metadata claims.

    ``also`` are families of the same shapes: a claim for one of them is no dispute, and is believed.
    """
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
    shared = next((key for key, claim in claims.items() if claim in also), None)
    if shared is not None:
        reason = f"{claims[shared]} shares these shapes, and {shared} = {metadata[shared][:80]}"
        return Verdict(claims[shared], max(confidence, CLAIM_CONFIDENCE), (reason,))
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
