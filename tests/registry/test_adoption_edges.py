"""What is kept and said of a collection where it is looked at again: found missing by mutants (docs/mutants.md)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from conceptry.errors import IntegrityError
from conceptry.formats.picture_notes import Mention
from conceptry.registry import Registry
from conceptry.registry.adopted_files import AdoptedFile
from conceptry.registry.adoption import Adoption
from conceptry.registry.adoption_previews import pack_preview
from conceptry.registry.mentions import Shelf
from conceptry.registry.places import CollectionLayout
from tests.fakes.collections import PREVIEW
from tests.registry.folders import make_manifest
from tests.registry.projects import make_workspace

EASY = "easy.safetensors"
MOST_PREVIEW_BYTES = 8 << 20


def write_embedding(path: Path, seed: int = 0) -> Path:
    row = np.random.default_rng(seed).standard_normal((2, 768)).astype(np.float32)
    path.write_bytes(save({"emb_params": row}))
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Give a folder with two embeddings."""
    folder = tmp_path / "models"
    folder.mkdir()
    write_embedding(folder / EASY)
    write_embedding(folder / "other.safetensors", seed=1)
    return folder


def by_path(adoption: Adoption) -> dict[str, AdoptedFile]:
    return {file.path: file for file in adoption.collection.files}


def test_only_files_that_changed_are_counted_as_changed(registry: Registry, models: Path) -> None:
    registry.adopt(models)
    assert registry.adopt(models).changed == 0
    write_embedding(models / EASY, seed=2)
    assert registry.adopt(models).changed == 1


def test_document_of_a_collection_from_a_newer_version_is_refused(registry: Registry, models: Path) -> None:
    registry.adopt(models)
    (kept,) = (registry.root / "adopted").iterdir()
    document = json.loads(kept.read_bytes())
    kept.write_text(json.dumps({**document, "schema": document["schema"] + 1}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="schema"):
        registry.adopted()


def test_file_that_lies_elsewhere_now_is_known_by_its_digest_and_no_other_is(
    registry: Registry, models: Path
) -> None:
    registry.hash_adopted(registry.adopt(models).collection)
    shutil.copy(models / EASY, models / "copied.safetensors")
    (models / EASY).unlink()
    hashed = registry.hash_adopted(registry.adopt(models).collection)
    assert hashed.found_again == 1
    assert {file.path: file.name for file in hashed.collection.files} == {
        "copied.safetensors": "easy",
        "other.safetensors": "other",
    }


def test_file_that_was_copied_elsewhere_before_it_was_hashed_keeps_its_name(
    registry: Registry, models: Path
) -> None:
    (models / EASY).write_bytes(save({"emb_params": np.zeros((3, 768), np.float32)}))
    registry.adopt(models)
    (models / "sub").mkdir()
    shutil.copy(models / EASY, models / "sub" / "simple.safetensors")
    (models / EASY).unlink()
    again = registry.adopt(models)
    assert (again.moved, by_path(again)["sub/simple.safetensors"].name) == (1, "easy")


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_name_that_is_no_text_hides_no_other_file(registry: Registry, models: Path) -> None:
    odd = os.fsencode(models) + b"/odd\xff.safetensors"
    try:
        shutil.copy(os.fsencode(models / EASY), odd)
    except OSError:
        pytest.skip("this disk takes text alone")
    write_embedding(models / "odd\N{GRINNING FACE}.safetensors", seed=3)
    adoption = registry.adopt(models)
    assert [reason for _, reason in adoption.skipped] == ["its name is no text"]
    assert by_path(adoption).keys() >= {EASY, "other.safetensors", "odd\N{GRINNING FACE}.safetensors"}


def test_picture_is_still_beside_a_file_that_changed_before_it_is_used(
    registry: Registry, models: Path
) -> None:
    (models / "easy.preview.png").write_bytes(PREVIEW)
    registry.hash_adopted(registry.adopt(models).collection)
    write_embedding(models / EASY, seed=4)
    files = registry.get("adopted/easy").manifest.iter_files()
    assert [file.path for file in files if file.role == "preview"] == ["preview.png"]


@pytest.mark.parametrize(("more_bytes", "kept"), [(0, True), (1, False)])
def test_picture_of_eight_mebibytes_is_kept_and_a_larger_one_is_not(
    tmp_path: Path, more_bytes: int, kept: bool
) -> None:
    picture = tmp_path / "easy.preview.png"
    picture.write_bytes(PREVIEW.ljust(MOST_PREVIEW_BYTES + more_bytes, b"\0"))
    (tmp_path / "package").mkdir()
    file = AdoptedFile(path=EASY, name="easy", stamp=(1, 1, 1, 1), preview=picture.name)
    packed = pack_preview(make_manifest(), tmp_path / "package", CollectionLayout(tmp_path), file)
    assert [one.role for one in packed.iter_files()].count("preview") == kept
    assert packed.name == make_manifest().name


def test_answers_say_what_a_word_stands_for(registry: Registry, models: Path) -> None:
    (models / "adopt.toml").write_text(
        f'[[file]]\npath = "{EASY}"\nplaceholder = "<easy>"\nsuperclass = "creature"\n', encoding="utf-8"
    )
    registry.hash_adopted(registry.adopt(models).collection)
    (token,) = registry.manifest("adopted/easy").tokens
    assert (token.placeholder, token.superclass) == ("<easy>", "creature")


def test_adopted_file_that_a_project_requires_becomes_a_version_when_it_is_locked(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    registry.hash_adopted(registry.adopt(models).collection)
    text = '[project]\nbase = "sd1"\n\n[concepts]\n"adopted/easy" = "*"\n'
    locked = make_workspace(tmp_path / "project", registry.root, text).lock()
    assert [str(one.name) for one in locked.lock.concepts] == ["adopted/easy"]


def test_eight_digits_of_a_digest_name_a_file_and_seven_do_not(registry: Registry, models: Path) -> None:
    registry.hash_adopted(registry.adopt(models).collection)
    digits = hashlib.sha256((models / EASY).read_bytes()).hexdigest()
    shelf = Shelf(registry)
    found = [shelf.find(Mention(kind="embedding", hashes=(digits[:count],))) for count in (8, 7)]
    assert [[match.path for match in matches] for matches in found] == [[str(models / EASY)], []]
