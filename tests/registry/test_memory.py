"""What a remote said before is remembered, and an answer that contradicts it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import IdentityChangedError
from conceptry.names import LATEST, ConceptName, Reference, RemoteName, Tag, Version
from conceptry.registry import Registry
from conceptry.registry.memory import check_answer, forget_remote, recall, remember_answer
from conceptry.registry.protocol import RemoteVersion
from tests.registry.folders import write_folder

URI = "hf://studio"
IMP = ConceptName("me", "imp")
FIRST = RemoteVersion(reference=Reference(IMP, Version(1)), digest=Digest("1" * 64), identity="repo 17")
SECOND = replace(FIRST, reference=Reference(IMP, Version(2)), digest=Digest("2" * 64))


@pytest.fixture
def known(registry: Registry) -> Registry:
    """Give a store that has seen version 2 as the latest of a repository."""
    remember_answer(registry.store, URI, FIRST)
    remember_answer(registry.store, URI, SECOND, tag=LATEST)
    return registry


def test_what_was_seen_is_recalled(known: Registry) -> None:
    memory = recall(known.store.layout, URI, IMP)
    assert memory.identity == "repo 17"
    assert memory.versions == {Version(1): FIRST.digest, Version(2): SECOND.digest}
    assert memory.tags == {LATEST: Version(2)}


def test_the_same_answers_pass(known: Registry) -> None:
    check_answer(known.store.layout, URI, FIRST)
    check_answer(known.store.layout, URI, SECOND, tag=LATEST)
    check_answer(known.store.layout, URI, replace(FIRST, identity=None))


def test_another_repository_under_the_name_is_refused(known: Registry) -> None:
    with pytest.raises(IdentityChangedError, match="another repository than before") as caught:
        check_answer(known.store.layout, URI, replace(FIRST, identity="repo 99"))
    assert caught.value.exit_code == 9


def test_version_with_other_contents_is_refused(known: Registry) -> None:
    with pytest.raises(IdentityChangedError, match="has other contents than before"):
        check_answer(known.store.layout, URI, replace(FIRST, digest=Digest("9" * 64)))


def test_latest_that_went_back_needs_a_word(known: Registry) -> None:
    with pytest.raises(IdentityChangedError, match=r"is 1\.0\.0, but 2\.0\.0 was there before"):
        check_answer(known.store.layout, URI, FIRST, tag=LATEST)
    check_answer(known.store.layout, URI, FIRST, tag=LATEST, allow_downgrade=True)


def test_tags_that_people_move_may_go_back(known: Registry) -> None:
    remember_answer(known.store, URI, SECOND, tag=Tag("stable"))
    check_answer(known.store.layout, URI, FIRST, tag=Tag("stable"))


def test_tag_that_shows_an_earlier_move_or_another_place_by_the_same_one_needs_a_word(
    known: Registry,
) -> None:
    stable, layout = Tag("stable"), known.store.layout
    remember_answer(known.store, URI, replace(FIRST, move=2), tag=stable)
    check_answer(layout, URI, replace(FIRST, move=2), tag=stable)
    check_answer(layout, URI, replace(SECOND, move=3), tag=stable)
    check_answer(layout, URI, replace(SECOND, move=1), tag=Tag("other"))
    with pytest.raises(IdentityChangedError, match="an earlier move") as caught:
        check_answer(layout, URI, replace(SECOND, move=1), tag=stable)
    assert caught.value.exit_code == 9
    with pytest.raises(IdentityChangedError, match="another place by the same move"):
        check_answer(layout, URI, replace(SECOND, move=2), tag=stable)
    check_answer(layout, URI, replace(SECOND, move=1), tag=stable, allow_downgrade=True)


def test_remote_that_forgot_the_last_move_of_a_tag_is_noticed(
    registry: Registry, imp: Path, tmp_path: Path
) -> None:
    studio, second = tmp_path / "studio", Registry(tmp_path / "second")
    registry.publish(imp)
    registry.publish(write_folder(tmp_path / "next", version="1.1.0"))
    for version in ("1.0.0", "1.1.0"):
        registry.tag(f"me/imp@{version}", Tag("stable"))
        registry.push("me/imp:stable", studio.as_uri())
    second.add_remote(RemoteName("studio"), studio.as_uri())
    assert str(second.pull("studio::me/imp:stable").reference) == "me/imp@1.1.0"
    last = sorted((studio / "refs" / "me" / "imp" / "tags" / "stable").iterdir())[-1]
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(IdentityChangedError, match="an earlier move"):
        second.pull("studio::me/imp:stable")
    last.write_bytes(kept)
    assert not second.pull("studio::me/imp:stable").created


def test_remotes_and_concepts_are_kept_apart(known: Registry) -> None:
    other = replace(FIRST, reference=Reference(ConceptName("me", "cup"), Version(1)), identity="repo 99")
    check_answer(known.store.layout, URI, other)
    check_answer(known.store.layout, "hf://elsewhere", replace(FIRST, identity="repo 99"))


def test_what_was_forgotten_is_believed_anew(known: Registry) -> None:
    forget_remote(known.store, URI, IMP)
    check_answer(known.store.layout, URI, replace(FIRST, identity="repo 99"))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"versions": {"x": "y"}}', '{"versions": [1]}', "\xff"])
def test_damaged_memory_is_no_memory(known: Registry, text: str) -> None:
    (path,) = (known.root / "remotes").iterdir()
    path.write_bytes(text.encode("latin-1"))
    check_answer(known.store.layout, URI, replace(FIRST, identity="repo 99"))
