"""The wrong changes that mutation testing makes: each is a change, and what no test should mind is left alone."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.mutations import Mutation, apply_mutation, describe_change, list_mutations
from tests.mutants.samples import Identity, Points, choose_sample, list_points, read_sample

CASES = {
    "a == b": "a != b",
    "a <= b": "a < b",
    "a in b": "a not in b",
    "a and b": "a or b",
    "a + 1": "a - 1",
    "not a": "a",
    "x = True": "x = False",
    "x = 3": "x = 4",
    "a if b else c": "a if not b else c",
    "f(a)": "pass",
}
UNMINDED = {
    "types": "def f(a: int | None = None) -> int | str: ...",
    "unions of types": "x = isinstance(a, Version | Digest)",
    "words of errors": "try:\n    pass\nexcept X:\n    raise",
    "docstrings": '"""Text."""',
    "types alone": "if TYPE_CHECKING:\n    x = 1 + 2",
    "decorators": "@dataclass(frozen=True)\nclass A:\n    a: int",
    "formatted text": "x = f'{a + 1}'",
}


@pytest.mark.parametrize(("before", "after"), CASES.items())
def test_wrong_change_is_made(before: str, after: str) -> None:
    changed = {ast.unparse(apply_mutation(before, one)) for one in list_mutations(before)}
    assert after in changed


@pytest.mark.parametrize("source", UNMINDED.values(), ids=UNMINDED)
def test_what_no_test_should_mind_is_left_alone(source: str) -> None:
    assert [one.what for one in list_mutations(source)] == []


def test_only_the_error_itself_is_dropped_and_not_its_words() -> None:
    source = "def f():\n    raise ValueError(f(1 + 2), hint=3)"
    assert [one.what for one in list_mutations(source)] == ["drop-raise"]


def test_mutations_are_told_apart_and_described() -> None:
    source = "def f(a):\n    if a == 1:\n        return a\n    return a + 1"
    found = list_mutations(source)
    assert len({one.key for one in found}) == len(found) == 7
    assert {one.function for one in found} == {"f()"}
    assert ("a == 1", "a != 1") in [describe_change(source, one) for one in found]
    assert all(ast.unparse(apply_mutation(source, one)) != ast.unparse(ast.parse(source)) for one in found)


KEPT = "def f(a):\n    return a + 1\n\n\ndef g(a):\n    if a == 1:\n        stop()\n    return a + 1\n"


def test_sample_stays_when_the_sources_change_around_it() -> None:
    kept = list(list_points({"core/a.py": KEPT}))
    changed = f'"""Text."""\nlimit = 3\n\n\ndef before(a):\n    return a + 1\n\n\n{KEPT}'
    points = list_points({"core/a.py": changed, "core/b.py": "x = 1"})
    chosen = choose_sample(kept, points, len(kept))
    assert [points[one] for one in kept] == [mutation for _, mutation in chosen]
    assert [describe_change(changed, one) for _, one in chosen] == [
        describe_change(KEPT, one) for one in list_points({"core/a.py": KEPT}).values()
    ]
    assert [one.line for one in points.values()] != [one.line for one in list_points({"a": KEPT}).values()]


def test_mutants_follow_a_function_into_another_module() -> None:
    kept = list(list_points({"core/a.py": KEPT}))
    first, _, second = KEPT.partition("\n\n\n")
    chosen = choose_sample(kept, list_points({"core/a.py": first, "core/b.py": second}), len(kept))
    assert [module for module, _ in chosen] == [
        f"core/{'a' if one.function == 'f()' else 'b'}.py" for one in kept
    ]


def test_only_what_has_gone_is_replaced_and_always_by_the_same() -> None:
    many = "".join(f"def h{one}(a):\n    return a * {one}\n\n\n" for one in range(20))
    kept = list(list_points({"core/a.py": KEPT}))
    less = KEPT.replace("        stop()\n", "        pass\n")
    points = list_points({"core/a.py": less, "core/b.py": many})
    chosen = _identify(choose_sample(kept, points, len(kept)), points)
    gone = set(kept) - points.keys()
    assert {one.what for one in gone} == {"drop-call", "negate-condition"}
    assert chosen[: -len(gone)] == [one for one in kept if one not in gone]
    moved = list_points({"core/a.py": f"def e(a): ...\n\n\n{less}", "core/b.py": f"\n\n{many}"})
    assert moved.keys() == points.keys()
    assert chosen == _identify(choose_sample(kept, moved, len(kept)), moved)


def test_mutants_that_were_drawn_are_of_the_modules_of_today() -> None:
    assert len(read_sample()) == len(set(read_sample())) >= 400


def _identify(chosen: list[tuple[str, Mutation]], points: Points) -> list[Identity]:
    names = {(one.module, mutation): one for one, mutation in points.items()}
    return [names[pair] for pair in chosen]
