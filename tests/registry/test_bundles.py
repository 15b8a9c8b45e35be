"""One file with a whole project: equal bytes for equal projects, byte for byte back, and every changed bit found."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import ConflictError, IntegrityError, NotFoundError
from conceptry.registry import Registry
from conceptry.registry.bundle_reading import open_bundle
from conceptry.registry.bundles import LAYOUT, make_header
from conceptry.registry.packing import pack_project, unpack_project
from conceptry.registry.workspace import Workspace
from tests.registry.folders import files_below
from tests.registry.projects import Studio, make_studio, make_workspace, write_project
from tests.registry.test_sync import contents


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """Give a remote with two concepts."""
    made = make_studio(tmp_path)
    made.publish("me/hat", "1.0.0")
    made.publish("me/imp", "1.0.0", requires=["me/hat@*"])
    return made


@pytest.fixture
def workspace(studio: Studio, tmp_path: Path) -> Workspace:
    """Give a project that is locked and not yet synced."""
    text = write_project(studio.uri, '"me/imp" = "*"', about='base = "base"')
    made = make_workspace(tmp_path / "project", tmp_path / "store", text)
    base = made.folder / "base"
    for name, data in {
        "model_index.json": b"{}",
        "unet/config.json": b'{"cross_attention_dim": 768, "_class_name": "UNet2DConditionModel"}',
        "text_encoder/config.json": b'{"hidden_size": 768}',
        "unet/model.safetensors": b"weights" * 100,
        "unet/setup.py": b"print('never taken along')",
    }.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(data)
    made.lock()
    return made


def test_restored_project_and_store_are_equal_byte_for_byte(workspace: Workspace, tmp_path: Path) -> None:
    bundled = pack_project(workspace, tmp_path / "b.tar", with_base=True)
    assert (bundled.concepts, bundled.base_files) == (2, 4)
    assert bundled.digest == Digest.of_bytes((tmp_path / "b.tar").read_bytes())
    shutil.rmtree(tmp_path / "remote")
    target = tmp_path / "island"
    target.mkdir()
    island = Registry(tmp_path / "island-store")
    restored, synced = unpack_project(island, tmp_path / "b.tar", target, base_out=target / "base")
    assert synced.concepts == len(synced.installed) == 2
    assert contents(tmp_path / "island-store") == contents(tmp_path / "store")
    assert [name for name in files_below(workspace.folder) if name not in files_below(target)] == [
        "base/unet/setup.py"
    ]
    for name in files_below(target):
        assert (target / name).read_bytes() == (workspace.folder / name).read_bytes()
    assert restored.count_in_order() == 2
    assert pack_project(restored, tmp_path / "again.tar", with_base=True).digest == bundled.digest


def test_bundle_is_an_oci_layout_that_names_no_time_and_no_owner(
    workspace: Workspace, tmp_path: Path
) -> None:
    pack_project(workspace, tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as tar:
        members = {member.name: member for member in tar}
        index = json.loads(tar.extractfile("index.json").read())  # type: ignore[union-attr]  # it is a file
        for row in index["manifests"]:
            data = tar.extractfile(f"blobs/sha256/{row['digest'][7:]}").read()  # type: ignore[union-attr]  # the same
            assert (str(Digest.of_bytes(data)), len(data)) == (row["digest"], row["size"])
            document = json.loads(data)
            assert all(f"blobs/sha256/{layer['digest'][7:]}" in members for layer in document["layers"])
    assert list(members)[:2] == ["oci-layout", "index.json"]
    assert {(one.mtime, one.uid, one.uname, one.mode) for one in members.values()} == {(0, 0, "", 0o644)}


def test_every_changed_byte_is_found_and_nothing_is_written(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    pack_project(workspace, path)
    data = path.read_bytes()
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(IntegrityError, match="the bundle"):
            open_bundle(path)
    for end in (0, 1, 511, 512, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(IntegrityError, match="the bundle"):
            unpack_project(Registry(tmp_path / "island"), path, tmp_path / "nowhere")
    path.write_bytes(data + b"\0")
    with pytest.raises(IntegrityError):
        open_bundle(path)
    assert not (tmp_path / "island").exists()


def test_damaged_file_is_named_with_its_concept(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    pack_project(workspace, path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"weights of me/imp 1.0.0", b"weights of me/xxx 1.0.0", 1))
    with pytest.raises(IntegrityError) as caught:
        open_bundle(path)
    assert str(caught.value).endswith("is damaged: the file 'lora.safetensors' of me/imp@1.0.0 is damaged")


def test_other_project_in_the_folder_is_left_as_it_is(workspace: Workspace, tmp_path: Path) -> None:
    pack_project(workspace, tmp_path / "b.tar")
    other = make_workspace(tmp_path / "other", tmp_path / "other-store", "[concepts]\n")
    with pytest.raises(ConflictError, match="has another project than the bundle"):
        unpack_project(other.registry, tmp_path / "b.tar", other.folder)
    assert files_below(other.folder) == ["concepts.toml"]


def test_damaged_blob_in_the_store_is_never_bundled(workspace: Workspace, tmp_path: Path) -> None:
    workspace.sync(workspace.check())
    locked = workspace.check().concepts[0].files[0]
    blob = tmp_path / "store" / "blobs" / "sha256" / locked.sha256.hex
    before, status = blob.read_bytes(), blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(b"x" * len(before))
    import os

    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(IntegrityError, match="is damaged in the store"):
        pack_project(workspace, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_bundle_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_bundle(tmp_path / "nothing.tar")


@pytest.mark.parametrize("data", [b"my notes", b"oci-layout", b"\0" * 4096], ids=["text", "name", "zeros"])
def test_a_file_of_somebody_else_is_not_replaced_by_a_bundle(
    workspace: Workspace, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(data)
    with pytest.raises(ConflictError, match=r"mine\.txt' is there and no bundle of a project") as caught:
        pack_project(workspace, path)
    assert caught.value.hint == "name another file, or add --force to replace it"
    assert path.read_bytes() == data
    pack_project(workspace, path, force=True)
    assert open_bundle(path).lock == workspace.lock_path.read_bytes()


def test_a_layout_that_another_program_wrote_is_not_replaced(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("oci-layout", LAYOUT), ("index.json", b'{"manifests":[]}')):
            tar.addfile(make_header(name, len(data)), io.BytesIO(data))
    before = path.read_bytes()
    with pytest.raises(ConflictError):
        pack_project(workspace, path)
    assert path.read_bytes() == before


def test_a_bundle_takes_the_place_of_an_older_one_even_if_that_is_damaged(
    workspace: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "b.tar"
    digest = pack_project(workspace, path).digest
    path.write_bytes(path.read_bytes()[:5000])
    assert pack_project(workspace, path).digest == digest


def test_a_bundle_makes_no_folder(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no folder"):
        pack_project(workspace, tmp_path / "missing" / "b.tar")
    assert not (tmp_path / "missing").exists()
    with pytest.raises(ConflictError, match="is a folder"):
        pack_project(workspace, tmp_path, force=True)


def test_a_base_that_is_taken_out_replaces_no_file_and_follows_no_link(
    workspace: Workspace, tmp_path: Path
) -> None:
    pack_project(workspace, tmp_path / "b.tar", with_base=True)
    island, target = Registry(tmp_path / "island-store"), tmp_path / "island"
    out = target / "base"
    out.mkdir(parents=True)
    (out / "model_index.json").write_bytes(b"mine")
    with pytest.raises(ConflictError, match=r"model_index\.json' is there with other contents"):
        unpack_project(island, tmp_path / "b.tar", target, base_out=out)
    assert files_below(target) == ["base/model_index.json"]
    (out / "model_index.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    (out / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConflictError, match="unet' is a link"):
        unpack_project(island, tmp_path / "b.tar", target, base_out=out)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (out / "unet").unlink()
    for _ in range(2):
        unpack_project(island, tmp_path / "b.tar", target, base_out=out)
    assert (out / "unet" / "model.safetensors").read_bytes() == b"weights" * 100
