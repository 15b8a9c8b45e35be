"""What this process wrote and hashed in the store's private folder is moved into it; anything else is read again."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, InvalidFileError, StoreError
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.manifest import Manifest
from conceptry.registry import Registry
from conceptry.registry.operations import FileOperations, use_operations
from conceptry.written_files import FileStamp, remember_written_files
from tests.registry.folders import make_document, temporaries_below

FILE = "lora.safetensors"


def write_package(folder: Path) -> dict[FileStamp, Digest]:
    """Write a package, and return the stamps of the files that were hashed while they were written."""
    folder.mkdir(parents=True)
    with remember_written_files() as written:
        write_tensors(folder / FILE, {"down": RawTensor.from_numpy(np.arange(4096, dtype=np.float32))})
    document = make_document(file=(folder / FILE).read_bytes())
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
    return written


@pytest.fixture
def staged(registry: Registry) -> Iterator[tuple[Path, dict[FileStamp, Digest]]]:
    """Give a package in a folder of the store, and what was written there."""
    with registry.stage() as folder:
        yield folder / "package", write_package(folder / "package")


Staged = tuple[Path, dict[FileStamp, Digest]]


def blobs_of(registry: Registry) -> list[Path]:
    return sorted((registry.root / "blobs" / "sha256").glob("*"))


def test_written_file_becomes_the_blob_itself(registry: Registry, staged: Staged) -> None:
    folder, written = staged
    inode = (folder / FILE).stat().st_ino
    registry.publish(folder, written=written)
    (blob,) = blobs_of(registry)
    assert (blob.stat().st_ino, blob.stat().st_nlink, blob.stat().st_mode & 0o777) == (inode, 1, 0o444)
    assert not (folder / FILE).exists()
    assert registry.verify() == ()


def test_nothing_is_left_of_the_folder(registry: Registry, staged: Staged) -> None:
    with registry.stage() as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "file").write_bytes(b"x")
        (folder / "link").symlink_to(staged[0])
    assert not folder.exists()
    assert staged[0].exists()


class FullDisk(FileOperations):
    """A disk that is full and says so whenever somebody waits for it."""

    def sync_folder(self, folder: Path) -> None:
        """Refuses."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folder_is_gone_even_if_the_disk_became_full(registry: Registry) -> None:
    registry.store.prepare_for_writing()
    with contextlib.ExitStack() as staging:
        folder = staging.enter_context(registry.stage())
        written = write_package(folder / "package")
        with use_operations(FullDisk()):
            with pytest.raises(StoreError):
                registry.publish(folder / "package", written=written)
            staging.close()
    assert not folder.exists()


def test_folder_of_a_command_that_was_killed_is_gone_with_the_next_collection(registry: Registry) -> None:
    with registry.stage() as folder:
        host = folder.name.partition("-")[0]
    left = folder.with_name(f"{host}-999999999-0123456789abcdef")
    (left / "0").mkdir(parents=True)
    (left / "0" / FILE).write_bytes(b"half")
    collected = registry.collect_garbage()
    assert (collected.leftovers, collected.leftover_bytes) == (1, 4)
    assert temporaries_below(registry.root) == []
    assert not left.exists()


def overwrite(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    data = path.read_bytes()
    path.with_name("other").write_bytes(data[:-1] + b"\x01")
    path.with_name("other").replace(path)


@pytest.mark.parametrize("change", [overwrite, replace])
def test_file_that_was_changed_since_is_read_and_refused(
    registry: Registry, staged: Staged, change: Callable[[Path], None]
) -> None:
    folder, written = staged
    change(folder / FILE)
    with pytest.raises(InvalidFileError):
        registry.publish(folder, written=written)
    assert blobs_of(registry) == []
    assert registry.list() == ()


class LateChange(FileOperations):
    """Another process that writes into the file after it was looked at, and before it gets its name."""

    def link(self, source: Path, target: Path) -> None:
        """Changes a byte first."""
        if source.name == FILE:
            overwrite_late(source)
        super().link(source, target)


def overwrite_late(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"\xff")


def test_file_that_is_changed_while_it_is_moved_is_never_listed(registry: Registry, staged: Staged) -> None:
    folder, written = staged
    with use_operations(LateChange()), pytest.raises(ConceptryError):
        registry.publish(folder, written=written)
    assert blobs_of(registry) == []
    assert registry.list() == ()


def test_file_with_a_second_name_is_copied(registry: Registry, staged: Staged, tmp_path: Path) -> None:
    folder, written = staged
    os.link(folder / FILE, tmp_path / "kept")
    written = {FileStamp.of((folder / FILE).stat()): digest for digest in written.values()}
    registry.publish(folder, written=written)
    (blob,) = blobs_of(registry)
    assert blob.stat().st_ino != (tmp_path / "kept").stat().st_ino


def test_file_elsewhere_stays_where_it_is(registry: Registry, tmp_path: Path) -> None:
    written = write_package(tmp_path / "mine")
    assert len(written) == 1
    registry.publish(tmp_path / "mine", written=written)
    assert (tmp_path / "mine" / FILE).exists()
    assert registry.verify() == ()


def test_file_that_the_store_has_already_is_not_moved_over_it(registry: Registry, staged: Staged) -> None:
    folder, written = staged
    registry.publish(folder)
    (blob,) = blobs_of(registry)
    inode = blob.stat().st_ino
    document = make_document("you/imp", file=(folder / FILE).read_bytes())
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
    registry.publish(folder, written=written)
    assert [path.stat().st_ino for path in blobs_of(registry)] == [inode]
    assert [row.text for row in registry.list()] == ["me/imp@1.0.0", "you/imp@1.0.0"]


def test_damaged_blob_is_replaced_by_the_written_file(registry: Registry, staged: Staged) -> None:
    folder, written = staged
    registry.publish(folder)
    (blob,) = blobs_of(registry)
    blob.chmod(0o644)
    blob.write_bytes(b"\0" * blob.stat().st_size)
    registry.publish(folder, written=written)
    assert registry.verify() == ()
