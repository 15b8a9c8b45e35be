"""A collection that somebody has becomes known where it lies: nothing copied, nothing guessed in silence."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from conceptry.errors import InvalidFileError, NotFoundError, UsageError
from conceptry.registry import Registry
from conceptry.registry.adopted_files import AdoptedFile
from conceptry.registry.adoption import Adoption
from conceptry.registry.foreign import is_unpublished
from tests.fakes.collections import PREVIEW, write_collection, write_notes
from tests.formats.adapters import list_modules, write_kohya

ATTENTION = {
    name: shape for name, shape in list_modules("sd1").items() if "down_blocks.0" in name and "attn2" in name
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Give a folder with an adapter, an embedding and what programs keep beside them."""
    folder = tmp_path / "models"
    (folder / "loras").mkdir(parents=True)
    write_kohya(folder / "loras" / "Blue Imp.safetensors", ATTENTION)
    write_notes(folder / "loras" / "Blue Imp", "civitai_helper", 7, words=["blueimp, horns"], base="SD 1.5")
    (folder / "loras" / "Blue Imp.preview.png").write_bytes(PREVIEW)
    write_embedding(folder / "easy.safetensors")
    return folder


def write_embedding(path: Path, seed: int = 0) -> Path:
    row = np.random.default_rng(seed).standard_normal((2, 768)).astype(np.float32)
    path.write_bytes(save({"emb_params": row}))
    return path


def list_state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and time of each file below a folder but the answers."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "adopt.toml"
    }


def by_path(adoption: Adoption) -> dict[str, AdoptedFile]:
    return {file.path: file for file in adoption.collection.files}


def adopt_and_hash(registry: Registry, folder: Path) -> dict[str, AdoptedFile]:
    hashed = registry.hash_adopted(registry.adopt(folder).collection)
    return {file.path: file for file in hashed.collection.files}


def test_a_collection_is_listed_in_place_and_nothing_is_copied(registry: Registry, models: Path) -> None:
    before = list_state(models)
    adoption = registry.adopt(models)
    assert list_state(models) == before
    imp = by_path(adoption)["loras/Blue Imp.safetensors"]
    assert (imp.state, imp.name, imp.kind, imp.dialect, imp.base) == (
        "pending",
        "blue-imp",
        "lora",
        "kohya",
        "sd1",
    )
    assert imp.words == ("blueimp", "horns")
    assert (imp.title, imp.preview) == ("Model 7", "Blue Imp.preview.png")
    assert (imp.claims["model_id"], imp.claims["version_id"]) == (107, 1007)
    assert not (registry.root / "blobs").exists()


def test_a_hundred_files_of_all_rows_are_listed_and_cost_nothing_again(
    registry: Registry, tmp_path: Path
) -> None:
    paths = write_collection(tmp_path / "models", 100)
    first = registry.adopt(tmp_path / "models")
    assert (len(first.collection.files), first.failed, first.added) == (len(paths), (), 100)
    assert len({file.name for file in first.collection.files}) == 100
    held = sum(path.stat().st_size for path in registry.root.rglob("*") if path.is_file())
    assert held < 100 * 2000
    again = registry.adopt(tmp_path / "models")
    assert again.collection == first.collection
    assert (again.added, again.changed, again.moved, again.new_doubts) == (0, 0, 0, 0)


# Adopts a folder and prints the names of all files below it that were opened for it.
LOOK = """
import json, os, sys
from pathlib import Path
from conceptry.registry import Registry

home, folder = Path(sys.argv[1]), sys.argv[2]
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
Registry(home).adopt(Path(folder))
below = (os.fsdecode(path) for path in opened if isinstance(path, (str, bytes, os.PathLike)))
print(json.dumps(sorted({os.path.relpath(path, folder) for path in below if path.startswith(folder)})))
"""


def list_opened(home: Path, folder: Path) -> list[str]:
    code = [sys.executable, "-c", LOOK, str(home), str(folder)]
    done = subprocess.run(code, check=True, capture_output=True, text=True)
    opened: list[str] = json.loads(done.stdout)
    return opened


def test_a_second_look_opens_no_model_and_a_changed_one_alone(tmp_path: Path, models: Path) -> None:
    notes = "loras/Blue Imp.civitai.info"
    first = list_opened(tmp_path / "home", models)
    assert {"loras/Blue Imp.safetensors", "easy.safetensors", notes} <= set(first)
    assert not {name for name in list_opened(tmp_path / "home", models) if name != "adopt.toml"}
    write_embedding(models / "easy.safetensors", seed=1)
    third = set(list_opened(tmp_path / "home", models)) - {"adopt.toml"}
    assert third == {"easy.safetensors"}


@pytest.mark.parametrize(
    ("data", "name"),
    [(PREVIEW, "preview.png"), (b"\xff\xd8\xff\xe0" + bytes(64), "preview.jpg"), (b"<html>", None)],
    ids=["a picture", "a JPEG that is called PNG", "no picture"],
)
def test_the_picture_beside_a_file_is_kept_with_its_version(
    registry: Registry, models: Path, data: bytes, name: str | None
) -> None:
    (models / "loras" / "Blue Imp.preview.png").write_bytes(data)
    adopt_and_hash(registry, models)
    concept = registry.get("adopted/blue-imp")
    pictures = [file for file in concept.manifest.iter_files() if file.role == "preview"]
    assert [file.path for file in pictures] == ([name] if name else [])
    assert [concept.locate(file).read_bytes() for file in pictures] == ([data] if name else [])


def test_doubts_are_written_once_and_the_answers_count(registry: Registry, models: Path) -> None:
    adoption = registry.adopt(models)
    text = adoption.answers.read_text(encoding="utf-8")
    assert adoption.new_doubts == text.count("[[file]]") == 1 + text.count("\nbase = ")
    assert '\nplaceholder = "easy"\n' in text
    adoption.answers.write_text(text.replace('"easy"', '"<easy>"'), encoding="utf-8")
    again = registry.adopt(models)
    assert again.new_doubts == 0
    assert adoption.answers.read_text(encoding="utf-8").count("<easy>") == 1
    assert by_path(again)["easy.safetensors"].answers["placeholder"] == "<easy>"
    registry.hash_adopted(again.collection)
    assert registry.manifest("adopted/easy").tokens[0].placeholder == "<easy>"


def test_the_same_folder_gives_the_same_document(tmp_path: Path, models: Path) -> None:
    first = Registry(tmp_path / "one").adopt(models).answers.read_bytes()
    (models / "adopt.toml").unlink()
    assert Registry(tmp_path / "two").adopt(models).answers.read_bytes() == first


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ('base = "sd9"', "base"),
        ('placeholder = " x "', "placeholder"),
        ('colour = "blue"', "file[0]"),
        ("skip = 1", "file[0]"),
    ],
)
def test_an_answer_that_cannot_be_is_named_with_its_place(
    registry: Registry, models: Path, line: str, where: str
) -> None:
    (models / "adopt.toml").write_text(f'[[file]]\npath = "easy.safetensors"\n{line}\n', encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        registry.adopt(models)
    assert where in (caught.value.where or "")
    assert registry.adopted() == ()


def test_a_pending_file_cannot_be_used(registry: Registry, models: Path) -> None:
    registry.adopt(models)
    with pytest.raises(UsageError, match="adopted/blue-imp is pending") as caught:
        registry.get("adopted/blue-imp")
    assert caught.value.hint == "concepts adopt --hash"


def test_a_hashed_file_is_a_version_once_it_is_used(registry: Registry, models: Path) -> None:
    original = (models / "loras" / "Blue Imp.safetensors").read_bytes()
    files = adopt_and_hash(registry, models)
    assert files["loras/Blue Imp.safetensors"].state == "hashed"
    assert not (registry.root / "blobs").exists()
    concept = registry.get("adopted/blue-imp")
    assert is_unpublished(concept.manifest)
    assert [token.placeholder for token in concept.manifest.tokens] == ["blueimp", "horns"]
    provenance = concept.manifest.builds[0].provenance
    assert provenance is not None
    assert provenance.imported_from is not None
    assert provenance.imported_from.hex == hashlib.sha256(original).hexdigest()
    assert (models / "loras" / "Blue Imp.safetensors").read_bytes() == original
    assert [row.text for row in registry.list()] == [concept.label]
    assert registry.get("adopted/blue-imp").digest == concept.digest


def test_hashing_goes_on_where_it_was_stopped(registry: Registry, models: Path) -> None:
    collection = registry.adopt(models).collection
    seen: list[str] = []

    def stop(event: Any) -> None:
        if event.item not in seen:
            seen.append(event.item)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.hash_adopted(collection, on_event=stop)
    states = [file.state for file in registry.adopted()[0].files]
    assert sorted(states) == ["hashed", "pending"]
    assert registry.hash_adopted(registry.adopted()[0]).count == 1


def test_a_changed_file_is_hashed_again_and_is_a_later_version(registry: Registry, models: Path) -> None:
    adopt_and_hash(registry, models)
    first = registry.get("adopted/easy")
    write_embedding(models / "easy.safetensors", seed=1)
    assert by_path(registry.adopt(models))["easy.safetensors"].state == "pending"
    adopt_and_hash(registry, models)
    second = registry.get("adopted/easy")
    assert second.manifest.version > first.manifest.version
    assert registry.get(first.label).digest == first.digest


def test_a_file_that_changed_since_it_was_adopted_is_hashed_again_when_it_is_used(
    registry: Registry, models: Path
) -> None:
    adopt_and_hash(registry, models)
    write_embedding(models / "easy.safetensors", seed=1)
    digest = hashlib.sha256((models / "easy.safetensors").read_bytes()).hexdigest()
    assert registry.manifest("adopted/easy").builds[0].provenance.imported_from.hex == digest  # type: ignore[union-attr]


def test_a_missing_file_is_a_state_and_comes_back(registry: Registry, models: Path, tmp_path: Path) -> None:
    adopt_and_hash(registry, models)
    shutil.move(models / "easy.safetensors", tmp_path / "away")
    assert by_path(registry.adopt(models))["easy.safetensors"].state == "missing"
    with pytest.raises(NotFoundError, match="adopted/easy is missing"):
        registry.get("adopted/easy")
    shutil.move(tmp_path / "away", models / "easy.safetensors")
    assert by_path(registry.adopt(models))["easy.safetensors"].name == "easy"


@pytest.mark.parametrize("hashed", [True, False])
def test_a_file_that_moved_keeps_its_name_and_its_hash(
    registry: Registry, models: Path, hashed: bool
) -> None:
    adoption = registry.adopt(models)
    if hashed:
        registry.hash_adopted(adoption.collection)
    (models / "old").mkdir()
    (models / "easy.safetensors").rename(models / "old" / "simple.safetensors")
    again = registry.adopt(models)
    moved = by_path(again)["old/simple.safetensors"]
    assert (again.moved, moved.name, moved.state) == (1, "easy", "hashed" if hashed else "pending")
    assert "easy.safetensors" not in by_path(again)


def test_a_file_that_was_copied_elsewhere_is_found_by_its_digest(registry: Registry, models: Path) -> None:
    adopt_and_hash(registry, models)
    label = registry.get("adopted/easy").label
    shutil.copy(models / "easy.safetensors", models / "copied.safetensors")
    (models / "easy.safetensors").unlink()
    adoption = registry.adopt(models)
    assert by_path(adoption)["copied.safetensors"].name == "copied"
    hashed = registry.hash_adopted(adoption.collection)
    assert hashed.found_again == 1
    assert [file.name for file in hashed.collection.files if file.kind == "embedding"] == ["easy"]
    assert registry.get("adopted/easy").label == label


def test_bad_files_are_named_and_stop_nothing(registry: Registry, models: Path) -> None:
    (models / "page.safetensors").write_text("<!doctype html><html></html>", encoding="utf-8")
    (models / "note.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid x", encoding="utf-8"
    )
    (models / "empty.pt").touch()
    (models / "cut.safetensors").write_bytes((models / "easy.safetensors").read_bytes()[:-9])
    (models / "link.safetensors").symlink_to(models / "easy.safetensors")
    adoption = registry.adopt(models)
    faults = {file.path: file.fault or "" for file in adoption.failed}
    assert set(faults) == {"page.safetensors", "note.safetensors", "empty.pt", "cut.safetensors"}
    assert "an HTML page" in faults["page.safetensors"]
    assert "a Git LFS pointer" in faults["note.safetensors"]
    assert "an empty file" in faults["empty.pt"]
    assert "cut off" in faults["cut.safetensors"]
    assert [path for path, _ in adoption.skipped] == ["link.safetensors"]
    assert [file.state for file in adoption.collection.files].count("pending") == 2
    with pytest.raises(InvalidFileError, match="adopted/page cannot be used"):
        registry.get("adopted/page")


@pytest.mark.parametrize(
    "note",
    [
        "not json",
        "[" * 100_000,
        json.dumps([1]),
        json.dumps({"activation text": 7, "sd version": ["SD1"], "description": {}}),
        json.dumps({"activation text": "\u202e, " + "x" * 500, "sd version": "../../etc/passwd"}),
    ],
    ids=["text", "deep", "list", "types", "characters"],
)
def test_a_note_that_is_malformed_is_no_reason_to_stop(registry: Registry, models: Path, note: str) -> None:
    (models / "easy.json").write_text(note, encoding="utf-8")
    easy = by_path(registry.adopt(models))["easy.safetensors"]
    assert (easy.state, easy.words, easy.fault) == ("pending", (), None)


def test_nothing_in_a_note_becomes_a_path_or_an_address(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(PREVIEW)
    evil = {
        "file_path": str(outside),
        "preview_url": str(outside),
        "model_name": "../../../evil",
        "civitai": {"downloadUrl": "file:///etc/passwd", "images": [{"url": str(outside)}]},
    }
    (models / "easy.metadata.json").write_text(json.dumps(evil), encoding="utf-8")
    easy = by_path(registry.adopt(models))["easy.safetensors"]
    assert (easy.path, easy.name, easy.preview) == ("easy.safetensors", "easy", None)
    kept = next(iter((registry.root / "adopted").iterdir())).read_text(encoding="utf-8")
    assert "secret" not in kept
    assert "passwd" not in kept


def test_shapes_overrule_a_note_and_that_is_said(registry: Registry, models: Path) -> None:
    write_notes(models / "loras" / "Blue Imp", "a1111", 1, words=["imp"], base="SDXL")
    imp = by_path(registry.adopt(models))["loras/Blue Imp.safetensors"]
    assert imp.base == "sd1"
    assert any("'SDXL'" in remark for remark in imp.remarks)


def test_a_file_is_found_by_sha256_autov2_and_autov3(registry: Registry, models: Path) -> None:
    data = (models / "easy.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    whole, rest = hashlib.sha256(data).hexdigest(), hashlib.sha256(data[start:]).hexdigest()
    adopt_and_hash(registry, models)
    (collection,) = registry.adopted()
    for digits in (whole, whole[:10], rest[:12]):
        assert [file.name for file in collection.files if file.has_hash(digits)] == ["easy"]
    assert [file.name for file in collection.files if file.has_hash(f"{7:010x}")] == ["blue-imp"]


def test_a_file_that_somebody_leaves_out_is_left_alone(registry: Registry, models: Path) -> None:
    (models / "adopt.toml").write_text('[[file]]\npath = "easy.safetensors"\nskip = true\n', encoding="utf-8")
    files = adopt_and_hash(registry, models)
    assert (files["easy.safetensors"].state, files["easy.safetensors"].sha256) == ("left_out", None)


def test_a_folder_that_is_forgotten_stays_as_it_is(registry: Registry, models: Path) -> None:
    registry.adopt(models)
    before = list_state(models)
    assert registry.forget_adopted(models)
    assert (registry.adopted(), list_state(models)) == ((), before)
