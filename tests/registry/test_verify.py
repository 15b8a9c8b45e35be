"""A changed byte is found, and what it belongs to is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conceptry.errors import IntegrityError
from conceptry.names import Reference, Tag
from conceptry.registry import Registry
from conceptry.registry.events import Progress
from conceptry.registry.verify import raise_first
from tests.registry.folders import CONTENTS, write_folder

Damage = Callable[[Path], object]


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "one byte flipped": (lambda path: overwrite(path, CONTENTS[:50] + b"X" + CONTENTS[51:]), "bytes"),
    "first byte flipped": (lambda path: overwrite(path, b"X" + CONTENTS[1:]), "bytes"),
    "truncated": (lambda path: overwrite(path, CONTENTS[:-1]), "size"),
    "one byte more": (lambda path: overwrite(path, CONTENTS + b"X"), "size"),
    "emptied": (lambda path: overwrite(path, b""), "size"),
    "zeros of the same length": (lambda path: overwrite(path, bytes(len(CONTENTS))), "bytes"),
    "missing": (lambda path: path.unlink(), "missing"),
}


def blob_of(registry: Registry, reference: str) -> Path:
    (file,) = registry.manifest(reference).iter_files()
    return registry.root / "blobs" / "sha256" / file.sha256.hex


def test_store_without_damage_has_no_findings(registry: Registry, imp: Path) -> None:
    assert registry.verify() == ()
    registry.publish(imp)
    assert registry.verify() == ()
    assert registry.verify("me/imp") == ()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_blob_is_named_with_its_concept_file_and_place(
    registry: Registry, imp: Path, damage: str
) -> None:
    registry.publish(imp)
    change, fault = DAMAGES[damage]
    path = blob_of(registry, "me/imp")
    change(path)
    (finding,) = registry.verify()
    assert finding.fault == fault
    assert finding.reference == Reference.parse("me/imp@1.0.0")
    assert finding.file == "lora.safetensors"
    assert finding.place == "builds[0].parts[0].files[0]"
    assert finding.path == path.relative_to(registry.root).as_posix()
    with pytest.raises(IntegrityError, match=r"lora\.safetensors") as caught:
        raise_first(registry.verify())
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_blob_is_never_handed_out(registry: Registry, imp: Path, damage: str) -> None:
    registry.publish(imp)
    registry.get("me/imp")
    DAMAGES[damage][0](blob_of(registry, "me/imp"))
    with pytest.raises(IntegrityError, match=r"me/imp@1\.0\.0: .*lora\.safetensors") as caught:
        registry.get("me/imp")
    assert caught.value.exit_code == 4
    assert caught.value.where is not None
    assert caught.value.where.startswith("builds[0].parts[0].files[0].")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_version_is_not_pushed(registry: Registry, imp: Path, tmp_path: Path, damage: str) -> None:
    registry.publish(imp)
    DAMAGES[damage][0](blob_of(registry, "me/imp"))
    with pytest.raises(IntegrityError):
        registry.push("me/imp", (tmp_path / "studio").as_uri())
    assert not (tmp_path / "studio").exists()


def test_each_changed_byte_of_a_manifest_is_found(registry: Registry, imp: Path) -> None:
    digest = registry.publish(imp).digest
    path = registry.root / "manifests" / "sha256" / digest.hex
    data = path.read_bytes()
    path.chmod(0o644)
    for place in range(0, len(data), 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        (finding,) = registry.verify("me/imp")
        assert finding.fault == "manifest"
        assert finding.reference == Reference.parse("me/imp@1.0.0")
        with pytest.raises(IntegrityError):
            registry.get("me/imp")


def test_damaged_reference_is_found_and_does_not_hide_the_others(
    registry: Registry, imp: Path, tmp_path: Path
) -> None:
    registry.publish(imp)
    registry.publish(write_folder(tmp_path / "ukiyo", name="bob/ukiyo"))
    path = registry.root / "refs" / "me" / "imp" / "versions" / "1.0.0"
    path.chmod(0o644)
    path.write_bytes(b"")
    (finding,) = registry.verify()
    assert (finding.fault, finding.path) == ("reference", "refs/me/imp/versions/1.0.0")
    assert [str(row.reference) for row in registry.list()] == ["bob/ukiyo@1.0.0"]
    with pytest.raises(IntegrityError, match="damaged"):
        registry.get("me/imp@1.0.0")


def test_tag_to_a_removed_version_is_found(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    registry.tag("me/imp", Tag("stable"))
    registry.remove("me/imp@1.0.0")
    registry.publish(write_folder(imp.parent / "next", version="2.0.0"))
    (finding,) = registry.verify()
    assert finding.fault == "tag"
    assert "1.0.0" in finding.message


def test_damaged_blob_of_no_version_is_found(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    path = blob_of(registry, "me/imp")
    registry.remove("me/imp")
    assert registry.verify() == ()
    overwrite(path, b"X")
    assert [finding.fault for finding in registry.verify()] == ["stray"]


def test_one_damaged_blob_is_reported_for_each_concept_that_needs_it(
    registry: Registry, imp: Path, tmp_path: Path
) -> None:
    registry.publish(imp)
    registry.publish(write_folder(tmp_path / "copy", name="bob/copy"))
    overwrite(blob_of(registry, "me/imp"), b"X" * len(CONTENTS))
    assert [str(finding.reference) for finding in registry.verify()] == ["bob/copy@1.0.0", "me/imp@1.0.0"]
    assert [str(finding.reference) for finding in registry.verify("me/imp")] == ["me/imp@1.0.0"]


def test_progress_ends_at_the_size_of_all_blobs(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    events: list[Progress] = []
    registry.verify(on_event=events.append)
    assert (events[-1].done_bytes, events[-1].total_bytes) == (len(CONTENTS), len(CONTENTS))
