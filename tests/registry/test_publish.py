"""Publishing turns a folder into a version that never changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conceptry.digests import Digest, canonical_json
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IntegrityError,
    InvalidFileError,
    InvalidManifestError,
    NotFoundError,
)
from conceptry.registry import Filter, Registry
from tests.registry.folders import CONTENTS, files_below, make_document, temporaries_below, write_folder


def test_published_concept_can_be_used_and_is_listed(registry: Registry, imp: Path) -> None:
    published = registry.publish(imp)
    concept = registry.get("me/imp")
    assert published.created
    assert str(published.reference) == "me/imp@1.0.0"
    assert concept.digest == published.digest == Digest.of_file(imp / "concept.json")
    (file,) = concept.manifest.iter_files()
    assert concept.locate(file).read_bytes() == CONTENTS
    assert [row.reference for row in registry.list()] == [published.reference]
    assert registry.list()[0].origin == "published"


def test_publishing_the_same_bytes_again_changes_nothing(registry: Registry, imp: Path) -> None:
    first = registry.publish(imp)
    before = files_below(registry.root)
    again = registry.publish(imp)
    assert (again.digest, again.created) == (first.digest, False)
    assert files_below(registry.root) == before


def test_other_bytes_under_an_existing_version_are_a_conflict(
    registry: Registry, imp: Path, tmp_path: Path
) -> None:
    first = registry.publish(imp)
    other = write_folder(tmp_path / "other", file=b"another imp")
    with pytest.raises(ConflictError, match=r"me/imp@1\.0\.0 exists already") as caught:
        registry.publish(other)
    assert caught.value.exit_code == 8
    assert caught.value.hint is not None
    assert registry.resolve("me/imp").digest == first.digest
    assert not (registry.root / "blobs" / "sha256" / Digest.of_bytes(b"another imp").hex).exists()


def test_another_title_under_an_existing_version_is_a_conflict(
    registry: Registry, imp: Path, tmp_path: Path
) -> None:
    registry.publish(imp)
    with pytest.raises(ConflictError):
        registry.publish(write_folder(tmp_path / "other", title="renamed"))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda path: path.write_bytes(b"X" + CONTENTS[1:]), "builds[0].parts[0].files[0].sha256"),
        (lambda path: path.write_bytes(CONTENTS[:-1]), "builds[0].parts[0].files[0].size"),
        (lambda path: path.write_bytes(CONTENTS + b"!"), "builds[0].parts[0].files[0].size"),
        (lambda path: path.write_bytes(b""), "builds[0].parts[0].files[0].size"),
        (lambda path: path.unlink(), "builds[0].parts[0].files[0].path"),
    ],
    ids=["changed", "truncated", "longer", "emptied", "missing"],
)
def test_file_that_is_not_what_the_manifest_says_is_named(
    registry: Registry, imp: Path, change: Callable[[Path], object], place: str
) -> None:
    change(imp / "lora.safetensors")
    with pytest.raises(InvalidFileError, match=r"'lora.safetensors'") as caught:
        registry.publish(imp)
    assert caught.value.exit_code == 4
    assert caught.value.where == place
    assert registry.list() == ()
    assert temporaries_below(registry.root) == []


def test_link_in_the_place_of_a_file_is_not_followed(registry: Registry, imp: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENTS)
    (imp / "lora.safetensors").unlink()
    (imp / "lora.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidFileError, match="no regular file"):
        registry.publish(imp)


def test_link_to_a_folder_on_the_way_to_a_file_is_not_followed(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lora.safetensors").write_bytes(CONTENTS)
    (folder / "unet").symlink_to(elsewhere)
    document = make_document()
    document["builds"][0]["parts"][0]["files"][0]["path"] = "unet/lora.safetensors"
    (folder / "concept.json").write_bytes(canonical_json(document))
    with pytest.raises(InvalidFileError, match="no regular file"):
        registry.publish(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on Windows")
def test_named_pipe_in_the_place_of_a_manifest_is_refused_at_once(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(folder / "concept.json")
    with pytest.raises(ConceptryError, match="regular file"):
        registry.publish(folder)


def test_folder_without_a_manifest_is_not_found(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no concept\.json") as caught:
        registry.publish(tmp_path)
    assert caught.value.exit_code == 3
    assert not registry.root.exists()


def test_manifest_with_an_escaping_file_name_writes_nothing(registry: Registry, imp: Path) -> None:
    document = make_document()
    document["builds"][0]["parts"][0]["files"][0]["path"] = "../../../escaped"
    (imp / "concept.json").write_bytes(canonical_json(document))
    with pytest.raises(InvalidManifestError, match="safe everywhere") as caught:
        registry.publish(imp)
    assert caught.value.where == "builds[0].parts[0].files[0].path"
    assert not registry.root.exists()


def test_manifest_over_one_mebibyte_is_refused_unread(registry: Registry, imp: Path) -> None:
    with (imp / "concept.json").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(InvalidManifestError, match="at most 1048576"):
        registry.publish(imp)


def test_manifest_written_by_hand_is_stored_in_canonical_form(registry: Registry, imp: Path) -> None:
    document = make_document()
    (imp / "concept.json").write_text(json.dumps(document, indent=4), encoding="utf-8")
    published = registry.publish(imp)
    assert published.digest == Digest.of_bytes(canonical_json(document))
    assert registry.get("me/imp").digest == published.digest


def test_training_record_is_kept_beside_and_changes_no_digest(registry: Registry, imp: Path) -> None:
    digest = Registry(registry.root.parent / "without").publish(imp).digest
    (imp / "train.json").write_text('{"seconds": 12.5}', encoding="utf-8")
    assert registry.publish(imp).digest == digest
    record = registry.show("me/imp").record
    assert record is not None
    assert json.loads(record.read_bytes()) == {"seconds": 12.5}


def test_publishing_again_puts_a_damaged_blob_right(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    (file,) = registry.manifest("me/imp").iter_files()
    blob = registry.root / "blobs" / "sha256" / file.sha256.hex
    blob.chmod(0o644)
    blob.write_bytes(b"X" * len(CONTENTS))
    with pytest.raises(IntegrityError):
        registry.get("me/imp")
    assert not registry.publish(imp).created
    assert registry.get("me/imp").locate(file).read_bytes() == CONTENTS
    assert registry.verify() == ()


def test_file_shared_by_two_versions_is_stored_once(registry: Registry, imp: Path, tmp_path: Path) -> None:
    registry.publish(imp)
    registry.publish(write_folder(tmp_path / "next", version="1.1.0"))
    blobs = [name for name in files_below(registry.root) if name.startswith("blobs/")]
    assert len(blobs) == 1
    assert [str(row.reference.version) for row in registry.list(Filter(all_versions=True))] == [
        "1.0.0",
        "1.1.0",
    ]


def test_stored_files_cannot_be_written_by_accident(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    modes = {name: (registry.root / name).stat().st_mode & 0o777 for name in files_below(registry.root)}
    frozen = [name for name in modes if name.startswith(("blobs/", "manifests/", "refs/"))]
    assert len(frozen) == 3
    assert {modes[name] for name in frozen} == {0o444}
    assert registry.root.stat().st_mode & 0o777 == 0o700


def test_versions_that_differ_in_case_only_are_two_files_on_any_disk(
    registry: Registry, tmp_path: Path
) -> None:
    registry.publish(write_folder(tmp_path / "a", version="1.0.0-RC.1", title="upper"))
    registry.publish(write_folder(tmp_path / "b", version="1.0.0-rc.1", title="lower"))
    names = [name.rsplit("/", 1)[1] for name in files_below(registry.root) if name.startswith("refs/")]
    assert len({name.casefold() for name in names}) == 2
    assert registry.manifest("me/imp@1.0.0-RC.1").title == "upper"
    assert registry.manifest("me/imp@1.0.0-rc.1").title == "lower"
