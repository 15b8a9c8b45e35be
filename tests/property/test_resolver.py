"""The resolver against brute force: every combination of a small world is tried, and the answers must agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conceptry.errors import IncompatibleError, NotFoundError
from conceptry.names import ConceptName, Requirement, VersionRange, parse_version
from conceptry.registry.resolver import resolve
from tests.registry.test_resolver import Shelf

NAMES = ["v", "w", "x", "y", "z"]
VERSIONS = ["1.0.0", "1.1.0", "2.0.0"]
RANGES = ["*", "^1", "^1.1", "^2", "<2.0.0", "1.0.0"]
Choice = dict[str, str]


def ask(name: str, text: str) -> str:
    return f"a/{name}@{text}"


asked = st.builds(ask, st.sampled_from(NAMES), st.sampled_from(RANGES))
rows = st.lists(asked | asked.map(lambda text: f"!{text}"), max_size=2)
labels = [ask(name, version) for name in NAMES for version in VERSIONS]
worlds = st.dictionaries(st.sampled_from(labels), rows, min_size=2, max_size=len(labels))
roots = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(RANGES), min_size=1, max_size=3)
yanks = st.sets(st.sampled_from(labels), max_size=3)
locks = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VERSIONS), max_size=2)


def accepts(text: str, choice: Choice) -> bool:
    requirement = Requirement.parse(text)
    version = choice.get(requirement.concept.name)
    return version is not None and parse_version(version) in requirement.versions


def is_valid(shelf: Shelf, wanted: Choice, choice: Choice) -> bool:
    """Whether all that is required is there, nothing excluded is, and nothing that nobody asked for."""
    if not all(accepts(ask(name, text), choice) for name, text in wanted.items()):
        return False
    reached: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for text in shelf.versions[ask(name, choice[name])]:
            if text.startswith("!"):
                if accepts(text[1:], choice):
                    return False
            elif not accepts(text, choice):
                return False
            else:
                waiting.append(Requirement.parse(text).concept.name)
    return reached == set(choice)


def iter_choices(shelf: Shelf, locked: Choice) -> Iterator[Choice]:
    usable: list[list[str | None]] = []
    for name in NAMES:
        there = [version for version in VERSIONS if ask(name, version) in shelf.versions]
        free = [one for one in there if ask(name, one) not in shelf.yanked or locked.get(name) == one]
        usable.append([None, *free])
    for versions in itertools.product(*usable):
        yield {name: version for name, version in zip(NAMES, versions, strict=True) if version is not None}


def rank(name: str, version: str, locked: Choice) -> tuple[bool, int]:
    """Less is better: the locked version, then the newest."""
    return (locked.get(name) != version, -VERSIONS.index(version))


@given(versions=worlds, wanted=roots, yanked=yanks, locked=locks)
@example(versions={"a/v@1.0.0": [], "a/v@1.1.0": ["!a/v@*"]}, wanted={"v": "*"}, yanked=set(), locked={})
def test_resolver_finds_the_best_of_all_solutions_or_none_exists(
    versions: dict[str, list[str]], wanted: Choice, yanked: set[str], locked: Choice
) -> None:
    shelf = Shelf(versions, yanked=dict.fromkeys(yanked, "no"))
    solutions = [choice for choice in iter_choices(shelf, locked) if is_valid(shelf, wanted, choice)]
    names = {ConceptName("a", name): VersionRange(text) for name, text in wanted.items()}
    preferred = {ConceptName("a", name): parse_version(text) for name, text in locked.items()}
    if not solutions:
        with pytest.raises((IncompatibleError, NotFoundError)):
            resolve(names, shelf, preferred=preferred)
        return
    found = resolve(names, shelf, preferred=preferred)
    choice = {name.name: str(candidate.version) for name, candidate in found.items()}
    assert choice in solutions
    best = min(tuple(rank(name, one[name], locked) for name in sorted(wanted)) for one in solutions)
    assert tuple(rank(name, choice[name], locked) for name in sorted(wanted)) == best


@given(versions=worlds, wanted=roots)
def test_equal_worlds_have_equal_answers_whatever_the_order(
    versions: dict[str, list[str]], wanted: Choice
) -> None:
    answers = []
    for turned in (False, True):
        items = list(versions.items())[:: -1 if turned else 1]
        names = list(wanted.items())[:: -1 if turned else 1]
        try:
            found = resolve(
                {ConceptName("a", name): VersionRange(text) for name, text in names}, Shelf(dict(items))
            )
            answers.append(str(sorted((str(name), str(one.version)) for name, one in found.items())))
        except (IncompatibleError, NotFoundError) as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
