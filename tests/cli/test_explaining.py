"""What pictures of other programs used is looked up by hash, and what is missing is named; nothing else happens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conceptry.cli.session import Session
from conceptry.cli.tags import TagReader
from conceptry.formats.header import read_header
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.registry import Registry
from tests.cli.conftest import Run

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def write_picture(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def write_kohya(path: Path, fill: float) -> tuple[str, str]:
    """Returns AutoV2 and AutoV3 of a LoRA as kohya's trainer writes it, which is at ``path`` now."""
    tensors = {
        f"{UNET}.lora_down.weight": np.full((2, 768), fill, np.float32),
        f"{UNET}.lora_up.weight": np.full((320, 2), fill, np.float32),
        f"{UNET}.alpha": np.float32(2),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {name: RawTensor.from_numpy(np.asarray(value)) for name, value in tensors.items()})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert read_header(path).size_bytes == len(data)
    return hashlib.sha256(data).hexdigest()[:10], hashlib.sha256(data[start:]).hexdigest()[:12]


def explain(run: Run, *paths: Path) -> dict[str, Any]:
    return run("reproduce", *map(str, paths), "--explain", "--json").document


def test_files_are_found_by_their_hashes_in_the_store_and_among_adopted_files(
    run: Run, tmp_path: Path
) -> None:
    _, adopted = write_kohya(tmp_path / "models" / "Renamed By Me.safetensors", 0.5)
    run("adopt", str(tmp_path / "models"), "--hash")
    imported, _ = write_kohya(tmp_path / "ink.safetensors", 0.25)
    options = ("--name", "me/brush", "--version", "1.0.0", "--base", "sd1", "--license", "CC0-1.0", "--yes")
    run("import", str(tmp_path / "ink.safetensors"), "--placeholder", "<ink>", *options)
    text = (
        "a cat <lora:glow:0.7>\nSteps: 2, Model hash: aabbccddee, Model: some_model, "
        f'Lora hashes: "glow: {adopted}, ink: {imported}, gone: 0123456789ab"'
    )
    document = explain(run, write_picture(tmp_path / "theirs.png", parameters=text))
    (row,) = document["pictures"]
    found = {file["name"]: [(one["reference"], one["how"]) for one in file["found"]] for file in row["files"]}
    assert found == {
        "some_model": [],
        "glow": [("adopted/renamed-by-me", "hash")],
        "ink": [("me/brush@1.0.0", "hash")],
        "gone": [],
    }
    assert document["missing"] == ["some_model", "gone"]
    assert (row["program"], row["prompt"]) == ("a1111", "a cat <lora:glow:0.7>")


def test_what_has_no_hash_is_found_by_its_name_only_and_this_is_said(
    run: Run, imp: str, tmp_path: Path
) -> None:
    graph = {
        "1": {
            "class_type": "LoraLoader",
            "inputs": {"lora_name": "x/IMP.safetensors", "strength_model": 0.5},
        },
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "vae.pt"}},
    }
    path = write_picture(tmp_path / "graph.png", prompt=json.dumps(graph))
    said = run("reproduce", str(path), "--explain").out.splitlines()
    assert said == [
        "graph.png, by comfyui: ",
        f"  lora IMP.safetensors at 0.5: {imp}, by its name only",
        "  vae vae.pt: missing, and its notes have no hash of it",
    ]


def test_a_picture_by_another_program_is_explained_without_being_asked(run: Run, tmp_path: Path) -> None:
    text = "a cat\nSteps: 2, Model hash: aabbccddee, Model: some_model"
    path = write_picture(tmp_path / "theirs.png", parameters=text)
    asked, unasked = run("reproduce", str(path), "--explain"), run("reproduce", str(path), "--out", "again")
    assert unasked.out == asked.out
    assert "some_model: missing, known by aabbccddee" in unasked.out
    assert "nothing was drawn again" in unasked.err
    assert not Path("again").exists()
    document = run("reproduce", str(path), "--json").document
    assert document == explain(run, path)
    assert document["missing"] == ["some_model"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "carries no notes of a program that is known here"),
        ({"prompt": "[" * 100_000}, "the prompt of ComfyUI in it is no JSON"),
        ({"conceptry": '{"schema": 1}'}, "describes itself by schema 1"),
        ({"conceptry": '{"schema": 2, "prompt": "a"}'}, "malformed"),
        ({"conceptry": "[" * 5000}, "damaged"),
        ({"conceptry": "7"}, "describes itself by schema None"),
    ],
)
def test_a_picture_that_says_nothing_or_nonsense_is_refused(
    run: Run, tmp_path: Path, texts: dict[str, str], said: str
) -> None:
    path = write_picture(tmp_path / "bad.png", **texts)
    finished = run("reproduce", str(path), "--explain", code=4)
    assert (finished.out, said in finished.err) == ("", True)
    assert run("reproduce", str(path), code=4).out == ""


def test_a_prompt_names_an_adopted_file_as_its_program_does(run: Run, tmp_path: Path) -> None:
    write_kohya(tmp_path / "models" / "Old Ink.safetensors", 0.5)
    run("adopt", str(tmp_path / "models"), "--hash")
    for _ in range(2):  # a version of it is made at its first use, and is no second one of that name
        document, called = TagReader(Session()).add_members(None, "a cat <lora:Old Ink:0.5>", "")
        assert document is not None
        assert [(str(one.reference.concept), one.strength) for one in document.concepts] == [
            ("adopted/old-ink", 0.5)
        ]
        assert called == {}
        Registry().get(document.concepts[0].reference)
