"""Resolving, tagging, removing and bringing back."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.errors import ConflictError, NotFoundError, UsageError
from conceptry.names import LATEST, ConceptName, Tag
from conceptry.registry import Filter, Registry
from conceptry.registry.tags import move_tag, read_tag, read_tag_history
from tests.registry.folders import write_folder

IMP, STABLE = ConceptName("me", "imp"), Tag("stable")


@pytest.fixture
def versions(registry: Registry, tmp_path: Path) -> Registry:
    """Give a registry with three versions of one concept, the last one a pre-release."""
    for version in ("1.9.0", "1.10.0", "2.0.0-rc.1"):
        registry.publish(write_folder(tmp_path / version, version=version, title=f"imp {version}"))
    return registry


def test_latest_is_the_greatest_version_that_is_no_prerelease(versions: Registry) -> None:
    assert str(versions.resolve("me/imp").reference) == "me/imp@1.10.0"
    assert str(versions.resolve("me/imp:latest").reference) == "me/imp@1.10.0"
    assert [str(row.reference) for row in versions.list()] == ["me/imp@1.10.0"]


def test_prerelease_is_the_latest_where_there_is_nothing_else(registry: Registry, tmp_path: Path) -> None:
    registry.publish(write_folder(tmp_path / "rc", version="1.0.0-rc.1"))
    assert str(registry.resolve("me/imp").reference) == "me/imp@1.0.0-rc.1"
    assert len(registry.list()) == 1


def test_version_is_found_by_its_digest(versions: Registry) -> None:
    digest = versions.resolve("me/imp@1.9.0").digest
    assert str(versions.resolve(f"me/imp@{digest}").reference) == "me/imp@1.9.0"


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("me/imq", "did you mean 'me/imp'?"),
        ("me/imp@3.0.0", "its versions: 1.9.0, 1.10.0, 2.0.0-rc.1"),
        ("me/imp:stabel", "did you mean 'stable'?"),
        (f"me/imp@sha256:{'0' * 64}", "its versions: 1.9.0, 1.10.0, 2.0.0-rc.1"),
        ("nobody/nothing", "concepts list shows what is here"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(versions: Registry, reference: str, hint: str) -> None:
    versions.tag("me/imp", STABLE)
    with pytest.raises(NotFoundError) as caught:
        versions.get(reference)
    assert caught.value.hint == hint
    assert caught.value.exit_code == 3


def test_reference_into_a_remote_is_not_looked_up_here(versions: Registry) -> None:
    with pytest.raises(UsageError, match="is on a remote"):
        versions.get("studio::me/imp")


def test_tag_moves_and_its_history_stays(versions: Registry) -> None:
    versions.tag("me/imp@1.9.0", STABLE)
    versions.tag("me/imp@1.10.0", STABLE)
    versions.tag("me/imp@1.9.0", STABLE)
    assert str(versions.resolve("me/imp:stable").reference) == "me/imp@1.9.0"
    history = read_tag_history(versions.store.layout, IMP, STABLE)
    assert [str(move.version) for move in history] == ["1.9.0", "1.10.0", "1.9.0"]
    assert versions.show("me/imp@1.9.0").tags == (STABLE,)
    assert versions.show("me/imp@1.10.0").tags == ()


def test_tag_that_points_there_already_makes_no_move(versions: Registry) -> None:
    versions.tag("me/imp", STABLE)
    versions.tag("me/imp", STABLE)
    assert len(read_tag_history(versions.store.layout, IMP, STABLE)) == 1


def test_tag_that_somebody_moved_meanwhile_is_a_conflict(versions: Registry) -> None:
    layout = versions.store.layout
    seen = read_tag(layout, IMP, STABLE)
    versions.tag("me/imp@1.9.0", STABLE)
    with pytest.raises(ConflictError, match=r"moved by somebody else to 1\.9\.0"):
        move_tag(layout, IMP, STABLE, versions.resolve("me/imp@1.10.0"), expected=seen)
    assert str(versions.resolve("me/imp:stable").reference) == "me/imp@1.9.0"


def test_latest_cannot_be_moved(versions: Registry) -> None:
    with pytest.raises(ConflictError, match="latest"):
        versions.tag("me/imp@1.9.0", LATEST)


def test_removed_version_is_gone_from_the_listing_and_comes_back_whole(versions: Registry) -> None:
    digest = versions.resolve("me/imp@1.10.0").digest
    versions.remove("me/imp@1.10.0")
    assert str(versions.resolve("me/imp").reference) == "me/imp@1.9.0"
    assert [str(row.reference.version) for row in versions.list(Filter(all_versions=True))] == [
        "1.9.0",
        "2.0.0-rc.1",
    ]
    with pytest.raises(NotFoundError):
        versions.get("me/imp@1.10.0")
    assert versions.restore("me/imp@1.10.0").digest == digest
    assert versions.get("me/imp").digest == digest
    with pytest.raises(NotFoundError, match="trash"):
        versions.restore("me/imp@1.10.0")


def test_remove_does_not_choose_among_several_versions(versions: Registry) -> None:
    versions.tag("me/imp@1.9.0", STABLE)
    for reference in ("me/imp", "me/imp:stable"):
        with pytest.raises(UsageError, match="does not say which"):
            versions.remove(reference)
    assert len(versions.list(Filter(all_versions=True))) == 3


def test_removed_version_does_not_replace_one_published_since(registry: Registry, tmp_path: Path) -> None:
    registry.publish(write_folder(tmp_path / "a", title="first"))
    registry.remove("me/imp")
    registry.publish(write_folder(tmp_path / "b", title="second"))
    with pytest.raises(ConflictError):
        registry.restore("me/imp@1.0.0")
    assert registry.manifest("me/imp").title == "second"


def test_version_removed_twice_comes_back_as_it_was_last(registry: Registry, tmp_path: Path) -> None:
    for title in ("first", "second"):
        registry.publish(write_folder(tmp_path / title, title=title))
        registry.remove("me/imp")
    registry.restore("me/imp@1.0.0")
    assert registry.manifest("me/imp").title == "second"


def test_removing_what_is_not_there_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFoundError):
        registry.remove("me/imp@1.0.0")
    assert not registry.root.exists()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(namespace="bob"), ["bob/ukiyo@1.0.0"]),
        (Filter(kind="lora"), ["bob/ukiyo@1.0.0", "me/imp@1.10.0"]),
        (Filter(kind="full"), []),
        (Filter(family="sd1", namespace="me"), ["me/imp@1.10.0"]),
        (Filter(family="sdxl"), []),
        (Filter(name=IMP, all_versions=True), ["me/imp@1.9.0", "me/imp@1.10.0", "me/imp@2.0.0-rc.1"]),
    ],
)
def test_listing_shows_what_was_asked_for(
    versions: Registry, tmp_path: Path, wanted: Filter, found: list[str]
) -> None:
    versions.publish(write_folder(tmp_path / "u", name="bob/ukiyo"))
    assert [str(row.reference) for row in versions.list(wanted)] == found


@pytest.mark.parametrize(
    "words", ["porcelain", "PORC", "blue cup", "cup blue", "carol", "glazed", "café", "cafe", "<cup>"]
)
def test_search_finds_names_titles_tags_and_descriptions(
    registry: Registry, tmp_path: Path, words: str
) -> None:
    registry.publish(write_folder(tmp_path / "other", name="bob/ukiyo", title="Waves"))
    folder = write_folder(
        tmp_path / "cup",
        name="carol/cup",
        title="Blue cup",
        tags=("glazed",),
        description="Porcelain from a café",
    )
    registry.publish(folder)
    assert [str(row.reference) for row in registry.search(words)] == ["carol/cup@1.0.0"]


@pytest.mark.parametrize(
    "words", ["nothing", '"', "'; DROP TABLE versions; --", "cup AND", "NEAR(", "\ud800 x", "x" * 5000]
)
def test_search_for_anything_at_all_is_only_a_search(registry: Registry, imp: Path, words: str) -> None:
    registry.publish(imp)
    assert registry.search(words) in ((), registry.list())
    assert len(registry.list()) == 1
