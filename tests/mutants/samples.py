"""The sample of mutants: drawn once, kept in ``sample.jsonl``, and found again in sources that have changed since.

A draw over a list of all mutants gives others as soon as a line changes, and every result and every test that was
written for a survivor would be one of another sample. So each mutant is told by what it changes and not by where: its
module, its function, the text before, what is done to it, and which of equals it is. One whose code has gone is
replaced by a further draw, in an order that depends on the seed and the mutant alone.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.mutants.mutations import Mutation, list_mutations

SAMPLE: Final = Path(__file__).parent / "sample.jsonl"
SEED: Final = 20261121
MAX_CHARS: Final = 120


class Identity(NamedTuple):
    """What tells a mutant from all others, whatever stands around it."""

    module: str
    function: str
    before: str
    what: str
    nth: int


Points = Mapping[Identity, Mutation]


def list_points(sources: Mapping[str, str]) -> dict[Identity, Mutation]:
    """Return every mutant of the modules, by its identity."""
    found: dict[Identity, Mutation] = {}
    for module, source in sorted(sources.items()):
        nodes, count = list(ast.walk(ast.parse(source))), Counter[tuple[str, str, str]]()
        for one in list_mutations(source):
            equal = (one.function, ast.unparse(nodes[one.place])[:MAX_CHARS], one.what)
            found[Identity(module, *equal, count[equal])] = one
            count[equal] += 1
    return found


def choose_sample(kept: Sequence[Identity], points: Points, count: int) -> list[tuple[str, Mutation]]:
    """Return the first ``count`` mutants of the sample, in the order in which they were drawn.

    One whose function was moved to another module is found there, if in one only.
    """
    moved: dict[tuple[str, str, str, int], list[Identity]] = {}
    for point in points:
        moved.setdefault(point[1:], []).append(point)
    drawn: dict[Identity, Mutation] = {}
    for one in kept[:count]:
        places = [one] if one in points else moved.get(one[1:], [])
        if len(places) == 1 and places[0] not in drawn:
            drawn[places[0]] = points[places[0]]
    rest = sorted(points.keys() - drawn.keys() - set(kept), key=_draw)
    drawn.update((one, points[one]) for one in rest[: count - len(drawn)])
    return [(one.module, mutation) for one, mutation in drawn.items()]


def read_sample() -> list[Identity]:
    """Return the mutants that were drawn."""
    return [Identity(**json.loads(line)) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def _draw(one: Identity) -> str:
    return hashlib.sha256(json.dumps([SEED, *one]).encode()).hexdigest()
