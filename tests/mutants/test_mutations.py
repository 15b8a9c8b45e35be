"""The wrong changes that mutation testing makes: each is a change, and what no test should mind is left alone."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.mutations import apply_mutation, describe_change, list_mutations

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
