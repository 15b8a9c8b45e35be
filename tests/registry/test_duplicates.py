"""A file that was saved again is recognised by its tensors, whatever its bytes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conceptry.digests import Digest
from conceptry.formats.tensors import RawTensor, digest_tensor_file, write_tensors
from conceptry.manifest import Manifest
from conceptry.registry import Registry
from tests.registry.folders import make_document

ARRAY = np.arange(64, dtype=np.float32).reshape(8, 8)


def write_saved(folder: Path, name: str, metadata: dict[str, str], *, claim: Digest | None = None) -> Path:
    """Return a folder with the same tensors under another name, saved with other metadata."""
    folder.mkdir()
    path = folder / "lora.safetensors"
    write_tensors(path, {"down": RawTensor.from_numpy(ARRAY)}, metadata=metadata)
    document = make_document(name, file=path.read_bytes())
    (row,) = document["builds"][0]["parts"][0]["files"]
    row["tensor_sha256"] = str(claim or digest_tensor_file(path))
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
    return folder


@pytest.fixture
def first(registry: Registry, tmp_path: Path) -> Registry:
    """Give a registry that has the tensors already."""
    assert registry.publish(write_saved(tmp_path / "first", "me/imp", {})).same_tensors == ()
    return registry


def test_file_that_was_saved_again_is_recognised(first: Registry, tmp_path: Path) -> None:
    published = first.publish(write_saved(tmp_path / "again", "you/devil", {"title": "my own work"}))
    assert published.same_tensors == ("me/imp@1.0.0",)
    blobs = list((first.root / "blobs" / "sha256").iterdir())
    assert len(blobs) == 2


def test_both_are_found_by_the_digest_of_their_tensors(first: Registry, tmp_path: Path) -> None:
    first.publish(write_saved(tmp_path / "again", "you/devil", {"title": "my own work"}))
    digest = digest_tensor_file(tmp_path / "again" / "lora.safetensors")
    for text in (str(digest), digest.hex, digest.short):
        assert [row.text for row in first.search(text)] == ["me/imp@1.0.0", "you/devil@1.0.0"]


def test_version_is_found_by_the_digest_of_its_manifest_and_of_its_file(
    first: Registry, tmp_path: Path
) -> None:
    manifest = first.resolve("me/imp").digest
    file = Digest.of_file(tmp_path / "first" / "lora.safetensors")
    for digest in (manifest, file):
        assert [row.text for row in first.search(str(digest))] == ["me/imp@1.0.0"]
    assert first.search("f" * 64) == ()


def test_claim_that_is_not_true_is_not_believed(first: Registry, tmp_path: Path) -> None:
    known = digest_tensor_file(tmp_path / "first" / "lora.safetensors")
    folder = tmp_path / "liar"
    folder.mkdir()
    path = folder / "lora.safetensors"
    write_tensors(path, {"down": RawTensor.from_numpy(ARRAY + 1)})
    document = make_document("you/liar", file=path.read_bytes())
    document["builds"][0]["parts"][0]["files"][0]["tensor_sha256"] = str(known)
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
    assert first.publish(folder).same_tensors == ()


def test_rebuilt_index_still_knows_the_tensors(first: Registry, tmp_path: Path) -> None:
    (first.root / "index.sqlite").unlink()
    first.list()
    digest = digest_tensor_file(tmp_path / "first" / "lora.safetensors")
    assert first.find_tensors([digest]) == (("me/imp@1.0.0", str(digest)),)
