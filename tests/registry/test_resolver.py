"""One version of each concept, or a sentence that says who needs what and why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from conceptry.digests import Digest
from conceptry.errors import IncompatibleError, NotFoundError
from conceptry.names import ConceptName, Requirement, Version, VersionRange, parse_version
from conceptry.registry.resolver import Candidate, Option, Universe, resolve

DIGEST = Digest("0" * 64)


@dataclass(frozen=True, slots=True)
class Shelf(Universe):
    """Versions in memory: ``{"a/x@1.0.0": ["b/y@^1"]}``; conflicts begin with an exclamation mark."""

    versions: Mapping[str, list[str]]
    yanked: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def list_options(self, name: ConceptName) -> list[Option]:
        found = [text.partition("@")[2] for text in self.versions if text.startswith(f"{name}@")]
        return [
            Option(version, self.yanked.get(f"{name}@{version}"))
            for version in sorted(map(parse_version, found))
        ]

    def load(self, name: ConceptName, version: Version) -> Candidate:
        label = f"{name}@{version}"
        self.opened.append(label)
        asked = self.versions[label]
        return Candidate(
            version=version,
            digest=DIGEST,
            requires=tuple(Requirement.parse(text) for text in asked if not text.startswith("!")),
            conflicts=tuple(Requirement.parse(text[1:]) for text in asked if text.startswith("!")),
            refusal=self.refused.get(label),
        )

    def explain_missing(self, name: ConceptName) -> NotFoundError:
        return NotFoundError(f"nobody has {name}")


def solve(shelf: Shelf, locked: Mapping[str, str] | None = None, /, **wanted: str) -> dict[str, str]:
    """Returns versions by the last part of their names; ``x="^1"`` requires ``a/x``."""
    roots = {ConceptName("a", name): VersionRange(text) for name, text in wanted.items()}
    preferred = {ConceptName("a", name): parse_version(text) for name, text in (locked or {}).items()}
    solution = resolve(roots, shelf, preferred=preferred)
    return {name.name: str(candidate.version) for name, candidate in solution.items()}


def test_newest_version_in_the_range_is_chosen_with_all_that_it_requires() -> None:
    shelf = Shelf(
        {"a/x@1.0.0": [], "a/x@1.4.0": ["a/y@^2"], "a/x@2.0.0": [], "a/y@2.1.0": [], "a/y@3.0.0": []}
    )
    assert solve(shelf, x="^1") == {"x": "1.4.0", "y": "2.1.0"}


def test_only_what_is_needed_is_chosen_and_read() -> None:
    shelf = Shelf({"a/x@1.0.0": [], "a/x@1.1.0": [], "a/y@1.0.0": []})
    assert solve(shelf, x="*") == {"x": "1.1.0"}
    assert shelf.opened == ["a/x@1.1.0"]


def test_locked_version_is_kept_although_a_newer_one_exists() -> None:
    shelf = Shelf({"a/x@1.0.0": [], "a/x@1.1.0": []})
    assert solve(shelf, {"x": "1.0.0"}, x="^1") == {"x": "1.0.0"}


def test_locked_version_outside_the_range_is_left() -> None:
    shelf = Shelf({"a/x@1.0.0": [], "a/x@2.0.0": []})
    assert solve(shelf, {"x": "1.0.0"}, x="^2") == {"x": "2.0.0"}


def test_yanked_version_is_skipped_unless_it_is_locked() -> None:
    shelf = Shelf({"a/x@1.0.0": [], "a/x@1.1.0": []}, yanked={"a/x@1.1.0": "wrong pictures"})
    assert solve(shelf, x="^1") == {"x": "1.0.0"}
    assert solve(shelf, {"x": "1.1.0"}, x="^1") == {"x": "1.1.0"}


def test_prerelease_is_chosen_only_where_the_range_names_one() -> None:
    shelf = Shelf({"a/x@1.0.0": [], "a/x@1.1.0-rc.1": []})
    assert solve(shelf, x="*") == {"x": "1.0.0"}
    assert solve(shelf, x=">=1.1.0-rc.1") == {"x": "1.1.0-rc.1"}


def test_older_version_is_taken_where_the_newest_does_not_agree_with_another_concept() -> None:
    shelf = Shelf(
        {
            "a/x@1.0.0": ["a/z@^1"],
            "a/y@1.0.0": ["a/z@^1"],
            "a/y@2.0.0": ["a/z@^2"],
            "a/z@1.0.0": [],
            "a/z@2.0.0": [],
        }
    )
    assert solve(shelf, x="*", y="*") == {"x": "1.0.0", "y": "1.0.0", "z": "1.0.0"}


def test_declared_conflict_is_kept_from_either_side() -> None:
    shelf = Shelf({"a/x@1.0.0": [], "a/x@2.0.0": ["!a/y@*"], "a/y@1.0.0": [], "a/y@2.0.0": ["!a/x@^1"]})
    assert solve(shelf, x="*", y="*") == {"x": "1.0.0", "y": "1.0.0"}


def test_concepts_may_require_each_other() -> None:
    shelf = Shelf({"a/x@1.0.0": ["a/y@^1"], "a/y@1.0.0": ["a/x@^1"]})
    assert solve(shelf, x="*") == {"x": "1.0.0", "y": "1.0.0"}


def test_version_that_does_not_fit_the_base_gives_way_to_one_that_does() -> None:
    shelf = Shelf({"a/x@1.0.0": [], "a/x@1.1.0": []}, refused={"a/x@1.1.0": "has no build for sd1"})
    assert solve(shelf, x="*") == {"x": "1.0.0"}


def test_unrelated_concepts_are_not_tried_in_all_their_combinations() -> None:
    versions: dict[str, list[str]] = {f"a/m{n:02}@1.0.{patch}": [] for n in range(20) for patch in range(10)}
    versions |= {"a/b@1.0.0": ["a/z@^1"], "a/b@1.1.0": ["a/z@^2"], "a/z@1.0.0": [], "a/z@2.0.0": ["a/q@^1"]}
    versions |= {"a/q@1.0.0": ["a/b@1.0.0"]}
    roots = {f"m{n:02}": "*" for n in range(20)}
    shelf = Shelf(versions)
    assert solve(shelf, **roots, b="*")["z"] == "1.0.0"
    assert len(shelf.opened) < 100


FAILURES: dict[str, tuple[Shelf, dict[str, str], type[Exception], str]] = {
    "a range that nothing satisfies": (
        Shelf({"a/x@1.0.0": [], "a/x@1.2.0": []}),
        {"x": "^3.0"},
        NotFoundError,
        "no version of a/x will do: concepts.toml needs a/x ^3.0; a/x exists as 1.0.0, 1.2.0",
    ),
    "a range of which all was yanked": (
        Shelf({"a/x@1.0.0": [], "a/x@2.0.0": []}, yanked={"a/x@2.0.0": "not mine"}),
        {"x": "^2"},
        NotFoundError,
        "no version of a/x will do: concepts.toml needs a/x ^2; a/x exists as 1.0.0, 2.0.0 (yanked: not mine)",
    ),
    "a concept that nobody has": (Shelf({}), {"x": "*"}, NotFoundError, "nobody has a/x"),
    "a requirement that nobody has": (
        Shelf({"a/x@1.0.0": ["a/y@*"]}),
        {"x": "*"},
        IncompatibleError,
        "no version of a/x will do: concepts.toml needs a/x *; a/x exists as 1.0.0; "
        "1.0.0 needs a/y * and a/y does not exist",
    ),
    "two concepts that need different versions of a third": (
        Shelf({"a/x@1.0.0": ["a/z@^1"], "a/y@1.0.0": ["a/z@^2"], "a/z@1.0.0": [], "a/z@2.0.0": []}),
        {"x": "*", "y": "*"},
        IncompatibleError,
        "no version of a/y will do: concepts.toml needs a/y *; a/y exists as 1.0.0; "
        "1.0.0 needs a/z ^2, a/x 1.0.0 needs a/z ^1 and a/z exists as 1.0.0, 2.0.0",
    ),
    "a requirement against the project's own range": (
        Shelf({"a/x@1.0.0": ["a/w@^2"], "a/w@1.0.0": [], "a/w@2.0.0": []}),
        {"x": "*", "w": "^1"},
        IncompatibleError,
        "no version of a/x will do: concepts.toml needs a/x *; a/x exists as 1.0.0; 1.0.0 needs a/w ^2, not 1.0.0",
    ),
    "concepts that exclude each other": (
        Shelf({"a/x@1.0.0": ["!a/y@*"], "a/y@1.0.0": []}),
        {"x": "*", "y": "*"},
        IncompatibleError,
        "no version of a/y will do: concepts.toml needs a/y *; a/y exists as 1.0.0; 1.0.0 conflicts with a/x 1.0.0",
    ),
    "no build for the base": (
        Shelf({"a/x@1.0.0": []}, refused={"a/x@1.0.0": "has no build for sd1, only for sdxl"}),
        {"x": "*"},
        IncompatibleError,
        "no version of a/x will do: concepts.toml needs a/x *; a/x exists as 1.0.0; "
        "1.0.0 has no build for sd1, only for sdxl",
    ),
}


@pytest.mark.parametrize(("shelf", "wanted", "kind", "said"), FAILURES.values(), ids=FAILURES.keys())
def test_what_cannot_be_is_explained(
    shelf: Shelf, wanted: dict[str, str], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        solve(shelf, **wanted)
    assert str(caught.value) == said


def test_what_is_suggested_instead_was_not_yanked() -> None:
    yanked = {"a/x@2.0.0": "not mine"}
    for versions, hint in (
        (("1.4.0", "2.0.0"), "concepts add a/x@^1.4"),
        (("2.0.0",), "all of it was yanked: ask who publishes a/x"),
    ):
        shelf = Shelf({f"a/x@{version}": [] for version in versions}, yanked=yanked)
        with pytest.raises(NotFoundError) as caught:
            solve(shelf, x="^2")
        assert str(caught.value.hint).startswith(hint)
