"""What another command does in the middle of one takes nothing from either, although no lock keeps it out."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conceptry.registry import Registry
from conceptry.registry.blobs import add_blob_from_file, is_intact
from conceptry.registry.index import is_index_equal, rebuild_index
from conceptry.registry.manifests import add_manifest
from conceptry.registry.operations import use_operations
from conceptry.registry.refs import list_names
from conceptry.registry.trash import Item, recall_item, take_away
from tests.faults.children import copy_fresh, run_child
from tests.faults.meanwhile import at_number, before
from tests.faults.pairs import (
    FIRST,
    PARTS,
    Command,
    collect,
    iter_wrong,
    look,
    prepare,
    publish_another,
    sweep_pair,
)
from tests.faults.strikes import kill_at
from tests.registry.folders import CONTENTS

IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Give a folder in memory, since every write waits for the disk on purpose."""
    if not IN_MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="meanwhile-", dir=IN_MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def filled(tmp_path: Path) -> Registry:
    """Give a registry with two versions and an index of them."""
    return prepare(tmp_path)


@pytest.mark.parametrize("part", PARTS)
def test_whatever_another_command_does_meanwhile_both_succeed(tmp_path: Path, part: str) -> None:
    counts = sweep_pair(part, tmp_path, step=23)
    assert counts.violations == []
    assert counts.points["both ok"] >= 2


@pytest.mark.skipif(os.name != "posix", reason="no fork on this system")
@pytest.mark.parametrize("command", ["index rebuild", "publish"])
def test_version_whose_command_was_killed_meanwhile_is_listed_once_it_is_there(
    filled: Registry, tmp_path: Path, command: str
) -> None:
    home = tmp_path / "home"
    listed = []
    for death in range(5, 60, 5):
        copy_fresh(filled.root, home)
        registry = Registry(home)

        def die(registry: Registry = registry, death: int = death) -> None:
            def work() -> None:
                with use_operations(kill_at(death)):
                    publish_another(registry, tmp_path)

            run_child(work)

        with use_operations(at_number(30, die)):
            FIRST[command](registry, tmp_path)
        there = [str(name) for name in list_names(registry.store.layout)]
        assert [row.concept_text for row in registry.list()] == there
        assert is_index_equal(registry.store)
        listed.append(len(there))
    assert (listed[0], listed[-1]) == (1, 2)


def test_index_that_others_make_anew_again_and_again_is_made(filled: Registry) -> None:
    """Each of them took the file away that the others were filling, until one had no further try."""
    place = filled.store.layout.manifest(filled.resolve("me/imp@1.1.0").digest)
    with use_operations(before("open", place, lambda: rebuild_index(filled.store), times=4)):
        rebuild_index(filled.store)
    assert list(iter_wrong(filled)) == []


def test_index_that_somebody_reads_is_made_anew_at_once(filled: Registry) -> None:
    with closing(sqlite3.connect(filled.root / "index.sqlite")) as connection:
        rows = connection.execute("SELECT version FROM versions ORDER BY version")
        assert rows.fetchone() == ("1.0.0",)
        rebuild_index(filled.store)
        assert rows.fetchone() == ("1.1.0",)
    assert is_index_equal(filled.store)


# --- a collection that takes what somebody is about to need, and somebody else who brings it back -------------------


def put_into_trash(registry: Registry) -> tuple[Item, ...]:
    """Return the blob and the manifest of a version, which an outdated collection has just taken away."""
    version = registry.resolve("me/imp@1.1.0")
    (file,) = registry.manifest("me/imp@1.1.0").iter_files()
    items = (Item("manifest", version.digest, 1), Item("blob", file.sha256, file.size))
    take_away(registry.store.layout, items, time_ns=1)
    return items


@pytest.mark.parametrize("name", ["status", "rename"])
@pytest.mark.parametrize("kind", ["manifest", "blob"])
@pytest.mark.parametrize("command", [look, collect], ids=["get", "gc"])
def test_what_somebody_else_brings_back_first_is_not_called_missing_or_wrong(
    filled: Registry, command: Command, kind: str, name: str
) -> None:
    layout = filled.store.layout
    (item,) = (item for item in put_into_trash(filled) if item.kind == kind)
    act = lambda: recall_item(layout, item.kind, item.digest)  # noqa: E731
    with use_operations(before(name, layout.trashed_item(item.kind, item.digest), act)):
        command(filled, filled.root)
    filled.get("me/imp@1.1.0")
    assert list(iter_wrong(filled)) == []


def test_blob_that_goes_between_a_look_and_its_bytes_is_not_there(filled: Registry, tmp_path: Path) -> None:
    layout = filled.store.layout
    (file,) = filled.manifest("me/imp@1.1.0").iter_files()
    path = layout.blob(file.sha256)
    with use_operations(before("open", path, lambda: put_into_trash(filled))):
        assert not is_intact(layout, file.sha256, file.size)
    filled.get("me/imp@1.1.0")
    with use_operations(before("open", path, lambda: put_into_trash(filled))):
        filled.publish(tmp_path / "1.1.0")
    assert list(iter_wrong(filled)) == []


def test_blob_that_somebody_else_wrote_first_stays(filled: Registry, tmp_path: Path) -> None:
    layout = filled.store.layout
    (file,) = filled.manifest("me/imp@1.1.0").iter_files()
    put_into_trash(filled)
    source, path = tmp_path / "1.1.0" / "lora.safetensors", layout.blob(file.sha256)
    with use_operations(before("open", path, path.unlink)):
        shutil.copyfile(source, path)
        add_blob_from_file(layout, source, file.sha256, file.size)
    assert is_intact(layout, file.sha256, file.size)
    assert not layout.damaged.exists()


def test_manifest_that_somebody_else_wrote_first_stays(filled: Registry, tmp_path: Path) -> None:
    """It was moved away as damaged for a moment, in which whoever looked for it was told that it is missing."""
    layout, data = filled.store.layout, CONTENTS
    renamed: list[Path] = []
    operations = before("create", layout.root, lambda: None)
    real = operations.link

    def link(source: Path, target: Path) -> None:
        if not target.exists():
            target.write_bytes(data)
        real(source, target)

    operations.link = link  # type: ignore[method-assign]
    operations.rename = lambda source, target: renamed.append(source)  # type: ignore[method-assign]
    with use_operations(operations):
        digest = add_manifest(layout, data)
    assert renamed == []
    assert layout.manifest(digest).read_bytes() == data
