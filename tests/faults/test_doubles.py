"""A network share seen from two machines: what one did not see yet never makes it overwrite or lose anything.

And files that Windows does not let be moved while somebody reads them.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from conceptry.digests import Digest
from conceptry.errors import ConflictError, NotFoundError, StoreError
from conceptry.names import ConceptName, Reference, RemoteName, Tag, parse_version
from conceptry.registry import Registry, files, refs
from conceptry.registry.file_reading import read_once_whole
from conceptry.registry.files import give_new_name, remove_file, replace_name
from conceptry.registry.operations import use_operations
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved, VersionRef, read_version, write_version
from conceptry.registry.tags import move_tag, read_tag
from tests.faults.doubles import NetworkShare, WindowsRules
from tests.registry.folders import write_folder

STUDIO = RemoteName("studio")
IMP = ConceptName("me", "imp")


@pytest.fixture
def slow_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets what was seen stay so for as long as a test takes, unless it waits."""
    monkeypatch.setattr(NetworkShare, "CACHE_SECONDS", 2.0)


def make_machine(folder: Path, share: Path) -> Registry:
    registry = Registry(folder)
    registry.add_remote(STUDIO, share.as_uri())
    return registry


def test_old_sizes_and_absence_are_seen_for_a_while_and_then_no_more(
    tmp_path: Path, slow_share: None
) -> None:
    mine, theirs = NetworkShare(), NetworkShare()
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        mine.status(path)
    theirs.close(theirs.create(path))
    with pytest.raises(FileNotFoundError):
        mine.status(path)
    with pytest.raises(FileNotFoundError):
        mine.open(path)
    with pytest.raises(FileExistsError):
        mine.create(path)
    assert mine.status(path).st_size == 0
    descriptor = theirs.open_for_update(path)
    theirs.write(descriptor, b"four")
    theirs.close(descriptor)
    assert (mine.status(path).st_size, theirs.status(path).st_size) == (0, 4)
    time.sleep(2.1)
    assert mine.status(path).st_size == 4


def test_version_that_was_not_there_a_moment_ago_is_never_overwritten(
    tmp_path: Path, slow_share: None
) -> None:
    mine, theirs = NetworkShare(), NetworkShare()
    share = tmp_path / "share"
    with use_operations(theirs):
        second = make_machine(tmp_path / "second", share)
        second.publish(write_folder(tmp_path / "hat", "me/hat"))
        second.push("me/hat", STUDIO)
    with use_operations(mine):
        first = make_machine(tmp_path / "first", share)
        first.publish(write_folder(tmp_path / "a", file=b"mine"))
        with pytest.raises(NotFoundError):
            first.pull("studio::me/imp@1.0.0")
    with use_operations(theirs):
        second.publish(write_folder(tmp_path / "b", file=b"theirs"))
        pushed = second.push("me/imp", STUDIO)
    with use_operations(mine):
        with pytest.raises(ConflictError):
            first.push("me/imp", STUDIO)
        assert first.push("me/imp@1.0.0", (tmp_path / "other").as_uri()).created
    with use_operations(NetworkShare()):
        third = make_machine(tmp_path / "third", share)
        assert third.pull("studio::me/imp@1.0.0").digest == pushed.digest
        assert third.verify() == ()


@pytest.mark.slow
def test_tag_that_two_machines_move_at_once_is_moved_by_one_of_them(tmp_path: Path, slow_share: None) -> None:
    mine, theirs = NetworkShare(), NetworkShare()
    share = tmp_path / "share"
    machines = []
    for name, operations in (("first", mine), ("second", theirs)):
        with use_operations(operations):
            machine = make_machine(tmp_path / name, share)
            for version in ("1.0.0", "1.1.0"):
                machine.publish(write_folder(tmp_path / f"{name}-{version}", version=version))
            machine.tag("me/imp@1.0.0", Tag("stable"))
            machines.append(machine)
    with use_operations(mine):
        machines[0].push("me/imp@1.1.0", STUDIO)
        machines[0].push("me/imp:stable", STUDIO)
        machines[0].tag("me/imp@1.1.0", Tag("stable"))
    with use_operations(theirs):
        seen = machines[1].open_remote(STUDIO).read_tag(IMP, Tag("stable"))
        assert seen is not None
    with use_operations(mine):
        machines[0].push("me/imp:stable", STUDIO)
    with use_operations(theirs):
        remote, newer = machines[1].open_remote(STUDIO), machines[1].resolve("me/imp@1.1.0")
        with pytest.raises(ConflictError):
            remote.move_tag(IMP, Tag("stable"), newer, expected=seen)


class Interrupted(NetworkShare):
    """Lets another act between the moment in which the name of a version is made, or moved, and what comes after."""

    def __init__(self, act: Callable[[], object], *, before: Literal["write", "move"]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act
        self._before = before

    def create(self, path: Path) -> int:
        """Opens a new file; the other comes before anything is in it."""
        descriptor = super().create(path)
        if path.parent.name == "versions" and self._before == "write":
            self._let_act()
        return descriptor

    def rename(self, source: Path, target: Path) -> None:
        """Renames; the other comes right before."""
        if source.parent.name == "versions" and self._before == "move":
            self._let_act()
        super().rename(source, target)

    def _let_act(self) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes what is not whole for cut short after a moment."""
    monkeypatch.setattr(refs, "_WRITING_SECONDS", 0.05)


def test_version_that_two_write_at_once_without_second_names_is_one_of_them(
    tmp_path: Path, short_wait: None
) -> None:
    layout, version = Layout(tmp_path / "share"), parse_version("1.0.0")
    first, second = (VersionRef(Digest.of_bytes(data), "published") for data in (b"first", b"second"))
    told: list[bool] = []

    def write_second() -> None:
        told.append(write_version(layout, IMP, version, second))

    with use_operations(Interrupted(write_second, before="write")):
        with pytest.raises(ConflictError):
            write_version(layout, IMP, version, first)
        assert told == [True]
        assert read_version(layout, IMP, version) == second
        assert not list((tmp_path / "share" / "trash").rglob("*-*"))


def test_version_that_another_is_still_writing_is_waited_for(tmp_path: Path) -> None:
    layout, version = Layout(tmp_path / "share"), parse_version("1.0.0")
    first, second = (VersionRef(Digest.of_bytes(data), "published") for data in (b"first", b"second"))
    begun = threading.Event()

    def dawdle() -> None:
        begun.set()
        time.sleep(0.1)

    with use_operations(Interrupted(dawdle, before="write")), ThreadPoolExecutor() as pool:
        told = pool.submit(write_version, layout, IMP, version, first)
        assert begun.wait(10)
        assert read_version(layout, IMP, version) == first
        assert told.result()
    begun.clear()
    with use_operations(Interrupted(dawdle, before="write")), ThreadPoolExecutor() as pool:
        later = parse_version("1.1.0")
        told = pool.submit(write_version, layout, IMP, later, first)
        assert begun.wait(10)
        with pytest.raises(ConflictError):
            write_version(layout, IMP, later, second)
        assert told.result()


def test_version_that_is_completed_while_another_takes_it_for_cut_short_stays(
    tmp_path: Path, short_wait: None
) -> None:
    layout, version = Layout(tmp_path / "share"), parse_version("1.0.0")
    first, second = (VersionRef(Digest.of_bytes(data), "published") for data in (b"first", b"second"))
    path = layout.version(IMP, version)
    path.parent.mkdir(parents=True)
    path.touch()

    def complete_first() -> None:
        path.write_text(f"{first.digest} published\n")

    with use_operations(Interrupted(complete_first, before="move")):
        with pytest.raises(ConflictError):
            write_version(layout, IMP, version, second)
        assert read_version(layout, IMP, version) == first
        assert not list((tmp_path / "share" / "trash").rglob("*-*"))


def test_version_that_fails_without_second_names_does_not_take_the_one_of_another_away(
    tmp_path: Path, short_wait: None
) -> None:
    layout, version = Layout(tmp_path / "share"), parse_version("1.0.0")
    first, second = (VersionRef(Digest.of_bytes(data), "published") for data in (b"first", b"second"))

    class Failing(Interrupted):
        def write(self, descriptor: int, data: bytes | memoryview) -> int:
            if self._written.get(descriptor, Path()).parent.name == "versions" and told != [True]:
                write_second()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(descriptor, data)

    told: list[bool] = []

    def write_second() -> None:
        with use_operations(NetworkShare()):
            told.append(write_version(layout, IMP, version, second))

    with use_operations(Failing(lambda: None, before="move")):
        with pytest.raises(StoreError):
            write_version(layout, IMP, version, first)
        assert told == [True]
    assert read_version(layout, IMP, version) == second


@pytest.mark.parametrize("is_new", [True, False])
def test_file_that_others_keep_from_being_moved_by_reading_it_is_moved_once_they_are_done(
    tmp_path: Path, is_new: bool
) -> None:
    path, temporary = tmp_path / "catalog.json", tmp_path / "temporary"
    with use_operations(WindowsRules()) as rules:
        if not is_new:
            path.write_bytes(b"old")
        temporary.write_bytes(b"new")
        descriptor = rules.open(temporary if is_new else path)
        reader = threading.Timer(0.1, rules.close, [descriptor])
        reader.start()
        if is_new:
            assert give_new_name(temporary, path)
        else:
            replace_name(temporary, path)
        reader.join()
    assert path.read_bytes() == b"new"


def test_file_that_others_never_stop_reading_is_said_to_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PAUSES_SECONDS", (0.01,))
    path = tmp_path / "file"
    path.touch()
    with use_operations(WindowsRules()) as rules:
        descriptor = rules.open(path)
        with pytest.raises(StoreError, match="used by another process"):
            remove_file(path)
        rules.close(descriptor)
        assert remove_file(path)


def test_move_of_a_tag_that_another_is_still_writing_is_waited_for(tmp_path: Path) -> None:
    layout, version, tag = Layout(tmp_path / "share"), parse_version("1.0.0"), Tag("stable")
    to = Resolved(Reference(IMP, version), Digest.of_bytes(b"first"))
    begun = threading.Event()

    class Dawdling(NetworkShare):
        def create(self, path: Path) -> int:
            descriptor = super().create(path)
            if path.parent.name == tag:
                begun.set()
                time.sleep(0.1)
            return descriptor

    with use_operations(Dawdling()), ThreadPoolExecutor() as pool:
        told = pool.submit(move_tag, layout, IMP, tag, to, expected=None)
        assert begun.wait(10)
        assert read_tag(layout, IMP, tag) == told.result()


def test_line_that_is_finished_between_two_looks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "line"
    path.touch()

    class Finishing(NetworkShare):
        def status(self, path: Path | str) -> os.stat_result:
            Path(path).write_bytes(b"whole\n")
            Path(path).chmod(0o444)
            return super().status(path)

    with use_operations(Finishing()):
        found = read_once_whole(path, 99, is_whole=lambda data: data.endswith(b"\n"), patience_seconds=10)
    assert found == b"whole\n"
