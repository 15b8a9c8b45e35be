"""What a row was measured under beside its key, and with it whether it is as good as one that is measured today.

Rows of before these fields state none of them and count as what they are: full ones, which nothing makes old.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Protocol

from conceptry.bases import FamilyId
from conceptry.digests import Digest, canonical_json
from conceptry.evaluation.bench_results import ResultRow
from conceptry.evaluation.protocols import PROTOCOL, SUBJECTS, load_plain_prompt, load_prompts
from conceptry.evaluation.toybench import load_suite
from conceptry.toybox import path as base_path

SCORE_VERSION: Final = 1
"""Goes up where the code that scores gives other numbers for the same pictures."""

Recipe = Callable[[FamilyId, int], Digest]
_EQUAL: Final = ("recipe", "scorer", "score_version")
_ENOUGH: Final = ("prompts", "more_pictures", "drawing_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a row that is measured now would state; None is not known."""

    recipe: str | None = None
    scorer: str | None = None
    score_version: int | None = SCORE_VERSION
    prompts: int | None = None
    more_pictures: int | None = None
    drawing_steps: int | None = None

    def stamp(self, row: ResultRow) -> ResultRow:
        """Returns the row with these conditions."""
        return row.model_copy(update=asdict(self))


class Listed(Protocol):
    """What a listing asks of a method."""

    @property
    def digest(self) -> Digest: ...  # noqa: D102

    @property
    def recipe(self) -> Recipe | None: ...  # noqa: D102


def state_conditions(
    recipe: Recipe | None,
    *,
    family: FamilyId,
    sample_passes: int,
    protocol: str,
    prompts: int,
    more_pictures: int | None = None,
    drawing_steps: int | None = None,
) -> Conditions:
    """Returns the conditions of a row of today; ``recipe`` is that of the method, None where nobody can say."""
    return Conditions(
        recipe=None if recipe is None else str(recipe(family, sample_passes)),
        scorer=str(digest_scorer(protocol)),
        prompts=prompts,
        more_pictures=more_pictures,
        drawing_steps=drawing_steps,
    )


@cache
def digest_scorer(protocol: str) -> Digest:
    """Returns the identity of what scores: weights of the bundled scorer, and prompts that stand in no suite."""
    facts: dict[str, Any] = {"plain": [asdict(load_plain_prompt(one, protocol)) for one in SUBJECTS]}
    if protocol == PROTOCOL:
        file = base_path() / "scorer" / "scorer.safetensors"
        facts["weights"] = str(Digest.of_bytes(file.read_bytes())) if file.is_file() else None
    else:
        facts["prompts"] = [[asdict(prompt) for prompt in load_prompts(one, protocol)] for one in SUBJECTS]
    return Digest.of_bytes(canonical_json(facts))


def is_as_good(known: ResultRow, wanted: Conditions | ResultRow) -> bool:
    """Returns whether a row needs no other: of what both state it has the same recipe and scorer, and no less drawn."""

    def both(name: str) -> tuple[Any, Any] | None:
        pair = getattr(known, name), getattr(wanted, name)
        return None if None in pair else pair

    equal, enough = ([pair for name in names if (pair := both(name))] for names in (_EQUAL, _ENOUGH))
    return all(one == other for one, other in equal) and all(one >= other for one, other in enough)


def list_done(
    method: Listed,
    rows: Sequence[ResultRow],
    *,
    family: FamilyId | None,
    sample_passes: int,
    prompts: int | None = None,
) -> frozenset[str]:
    """Returns the subjects of which a row is there that a run would not measure again.

    Args:
        method: what is listed.
        rows: those of its file.
        family: of the base; None where no base was opened, so that no recipe is compared.
        sample_passes: the budget.
        prompts: the most that are asked of each subject; None for all.
    """
    recipe = None if method.recipe is None or family is None else str(method.recipe(family, sample_passes))
    done = set()
    for row in rows:
        usual = len(load_suite().prompts[row.kind])
        wanted = Conditions(recipe=recipe, prompts=usual if prompts is None else min(prompts, usual))
        if row.settings == str(method.digest) and is_as_good(row, wanted):
            done.add(row.subject)
    return frozenset(done)


def put_row(rows: Sequence[ResultRow], row: ResultRow) -> tuple[ResultRow, ...]:
    """Returns rows of one file with a further one in the place of an older one of its subject.

    One of the same key that is as good stays.
    """
    if any(known.key == row.key and is_as_good(known, row) for known in rows):
        return tuple(rows)
    place = (row.method, row.subject, row.seed)
    return (*(known for known in rows if (known.method, known.subject, known.seed) != place), row)


def choose_rows(rows: Sequence[ResultRow]) -> tuple[tuple[ResultRow, ...], tuple[str, ...]]:
    """Returns the rows that stand in one table, and what was left out and why.

    A sample stands for no full row; one scorer scored all; and a method has one settings digest and one recipe, those
    of most subjects (of equally many the later ones), so that no subject counts twice.
    """
    full = _leave_samples(rows)
    for name in ("scorer", "score_version"):
        full = _keep_most(full, lambda row: (), name)
    for name in ("settings", "recipe"):
        full = _keep_most(full, lambda row: (row.method, row.kind), name)
    kept = tuple({(row.method, row.subject): row for row in reversed(full)}.values())[::-1]
    left: dict[str, int] = defaultdict(int)
    chosen = set(map(id, kept))
    for row in rows:
        left[row.method] += id(row) not in chosen
    remarks = (
        f"{count} rows of {method} are left out: a sample, or measured with other settings or another scorer"
        for method, count in left.items()
        if count
    )
    return kept, tuple(remarks)


def _leave_samples(rows: Sequence[ResultRow]) -> list[ResultRow]:
    full: dict[tuple[str, str], int] = {}
    for row in rows:
        for name in _ENOUGH:
            stated = getattr(row, name)
            if stated is None and name == "prompts":
                stated = len(load_suite().prompts[row.kind])
            full[row.kind, name] = max(full.get((row.kind, name), 0), stated or 0)
    return [
        row
        for row in rows
        if all((stated := getattr(row, name)) is None or stated >= full[row.kind, name] for name in _ENOUGH)
    ]


def _keep_most(
    rows: Sequence[ResultRow], group: Callable[[ResultRow], Hashable], name: str
) -> list[ResultRow]:
    """Returns rows that state, within each group, the value of most rows or none."""
    counts: dict[Hashable, dict[Any, int]] = defaultdict(dict)
    for row in rows:
        stated = getattr(row, name)
        if stated is not None:
            own = counts[group(row)]
            own[stated] = own.pop(stated, 0) + 1  # the value that came last stands last
    best = {key: max(reversed(list(own)), key=own.__getitem__) for key, own in counts.items()}
    return [row for row in rows if getattr(row, name) in (None, best.get(group(row)))]
