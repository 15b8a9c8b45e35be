"""``concepts gc``: what it takes, what it keeps, and how it is taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.names import ConceptName
from conceptry.registry import Registry
from conceptry.registry.roots import keep_root
from tests.cli.conftest import Run
from tests.cli.packages import TO_Q, write_package


@pytest.fixture
def removed(run: Run, imp: str, tmp_path: Path) -> str:
    """Give the reference of a version that was removed; another one stays."""
    run(
        "publish",
        str(write_package(tmp_path / "cup", name="me/cup", modules=(TO_Q, TO_Q.replace("to_q", "to_k")))),
    )
    run("remove", "me/cup@1.0.0", "--yes")
    return "me/cup@1.0.0"


def test_dry_run_shows_sizes_and_takes_nothing(run: Run, removed: str) -> None:
    said = run("gc", "--dry-run", "--grace", "0")
    assert "2 things would go to the trash: " in said.out
    assert run("gc", "--dry-run", "--grace", "0").out == said.out


def test_nothing_young_is_taken(run: Run, removed: str) -> None:
    assert run("gc").out == "0 things went to the trash: 0 bytes\n"


def test_a_collection_is_undone(run: Run, removed: str) -> None:
    taken = run("gc", "--grace", "0", "--json").document
    assert {item["kind"] for item in taken["items"]} == {"blob", "manifest"}
    assert taken["size_bytes"] == sum(item["size_bytes"] for item in taken["items"])
    assert run("gc", "--undo", "--json").document["restored"] != []
    assert run("gc", "--undo", code=3).err.startswith("error: no collection is left to be undone\nhint: ")


def test_emptying_the_trash_asks_and_then_frees(run: Run, removed: str) -> None:
    run("gc", "--grace", "0")
    assert run("gc", "--empty-trash", code=2).err.endswith("hint: add --yes to agree beforehand\n")
    said = run("gc", "--empty-trash", "--dry-run", "--json").document
    assert said["deleted"] == 3
    assert run("gc", "--empty-trash", "--yes", "--json").document == {**said, "dry_run": False}
    run("remove", removed, "--restore", code=3)
    assert run("verify").out == "the store: every byte is right\n"


def test_the_lock_of_a_project_that_is_away_keeps_its_versions(
    run: Run, removed: str, tmp_path: Path
) -> None:
    registry = Registry()
    digest = registry.restore(removed).digest
    registry.remove(removed)
    keep_root(registry.store, "lock", tmp_path / "away" / "concepts.lock", [digest])
    found = run("gc", "--grace", "0", "--json").document
    assert (found["items"], found["kept_for"]) == (
        [],
        [{"kind": "lock", "path": f"{tmp_path}/away/concepts.lock"}],
    )
    assert run("gc", "--forget", str(tmp_path / "away"), "--yes").out == (
        f"forgot what {tmp_path}/away/concepts.lock needs\n"
    )
    assert len(run("gc", "--grace", "0", "--json").document["items"]) == 2
    assert ConceptName("me", "imp") in {row.reference.concept for row in registry.list()}


@pytest.mark.parametrize("time", ["soon", "-1d", "1w", "", "1.5d"])
def test_a_time_that_is_none_is_a_usage_error(run: Run, time: str) -> None:
    assert "not a duration" in run("gc", "--grace", time, code=2).err


def test_only_one_thing_is_done_at_once(run: Run) -> None:
    run("gc", "--undo", "--empty-trash", code=2)


def test_an_empty_store_has_nothing_to_collect_and_is_not_made(run: Run, tmp_path: Path) -> None:
    run("gc")
    run("gc", "--empty-trash", "--yes")
    assert not Registry().root.exists()
