"""``concepts compose --export``: compositions as files of other programs, or a refusal that leaves nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from conceptry.cli.compose_export import COMPOSED_TARGETS
from conceptry.formats.header import read_header
from conceptry.formats.writers import WRITER_BY_ID
from tests.cli.conftest import Run
from tests.cli.packages import TO_Q, write_package
from tests.cli.test_json_page import PAGE
from tests.fakes.concepts import make_embedding, make_rank_one
from tests.fakes.pipelines import make_pipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet

FILE = "both.safetensors"
DELTA = 0.25
"""Of every entry of the one layer that packages of tests/cli/packages.py change."""


@pytest.fixture
def words(run: Run, base: Path, tmp_path: Path) -> str:
    """Give a word with rows of its own."""
    made = make_embedding(tmp_path / "words", make_pipeline("sd1"), "<e>", name="me/words")
    run("publish", str(tmp_path / "words"))
    return made.label


def test_every_program_that_is_written_for_is_offered() -> None:
    assert set(COMPOSED_TARGETS) == {*WRITER_BY_ID, "pipeline", "checkpoint"}


@pytest.mark.parametrize("target", ["kohya", "comfyui", "a1111"])
def test_two_adapters_become_one_file_that_holds_their_weighted_sum(
    run: Run, imp: str, look: str, target: str
) -> None:
    document = run("compose", "me/imp", "me/look*0.7", "--export", FILE, "--for", target, "--json").document
    (file,) = document["export"]["files"]
    assert (file["path"], file["size_bytes"]) == (FILE, Path(FILE).stat().st_size)
    tensors = load_file(FILE)
    up, down, alpha = (
        next(value.astype(np.float64) for name, value in tensors.items() if name.endswith(ending))
        for ending in ("lora_up.weight", "lora_down.weight", "alpha")
    )
    np.testing.assert_allclose(up @ down * alpha / len(down), np.full((8, 8), DELTA * 1.7), rtol=1e-6)
    rows = json.loads(read_header(Path(FILE)).metadata["conceptry.composition"])
    assert [(row["reference"], row["strength"]) for row in rows] == [(imp, 1.0), (look, 0.7)]
    # No composition file was asked for.
    assert (document["path"], [path.name for path in Path().iterdir()]) == (None, [FILE])


def test_the_composition_file_is_written_beside_it_where_it_is_named(run: Run, imp: str, look: str) -> None:
    run("compose", imp, look, "--export", FILE, "--out", "two.toml")
    assert sorted(path.name for path in Path().iterdir()) == [FILE, "two.toml"]
    again = run("compose", "--file", "two.toml", "--export", "again.safetensors", "--json").document
    assert Path("again.safetensors").read_bytes() == Path(FILE).read_bytes()
    assert (again["path"], again["export"]["target"]) == ("two.toml", "diffusers")


def test_words_lie_beside_the_adapter_in_a_folder(run: Run, imp: str, words: str, base: Path) -> None:
    refused = run("compose", imp, words, "--export", FILE, code=2)
    assert "needs 2 files" in refused.err
    assert "hint: name a folder: both\n" in refused.err
    assert list(Path().iterdir()) == []
    said = run("compose", imp, f"{words}*0.5", "--base", str(base), "--export", "both").out
    names = sorted(path.name for path in Path("both").iterdir())
    assert names == ["learned_embeds.safetensors", "pytorch_lora_weights.safetensors"]
    assert all(f"wrote both/{name}" in said for name in names)


def test_a_whole_folder_is_the_base_with_the_concepts_inside_its_weights(
    run: Run, imp: str, words: str, base: Path
) -> None:
    to = ("--base", str(base), "--export", "whole", "--for", "pipeline")
    document = run("compose", f"{imp}*0.5", words, *to, "--json").document
    assert document["export"]["target"] == "pipeline"
    assert {"whole/model_index.json", "whole/composition.json"} <= {
        file["path"] for file in document["export"]["files"]
    }
    weights = Path("unet", "diffusion_pytorch_model.safetensors")
    before, after = load_file(base / weights), load_file("whole" / weights)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"{TO_Q.removeprefix('unet.')}.weight"}
    (name,) = changed
    np.testing.assert_allclose(after[name] - before[name], np.full((8, 8), DELTA / 2), atol=1e-6)
    saved = Path("whole", "tokenizer").iterdir()
    assert any('"<e>"' in path.read_text(encoding="utf-8") for path in saved)


@pytest.mark.parametrize("target", ["kohya", "pipeline", None])
def test_gates_are_refused_with_what_to_do_and_leave_nothing(
    run: Run, base: Path, tmp_path: Path, target: str | None
) -> None:
    make_rank_one(tmp_path / "gated", make_pipeline("sd1"), name="me/gated")
    run("publish", str(tmp_path / "gated"))
    wanted = () if target is None else ("--for", target)
    refused = run("compose", "me/gated", "--base", str(base), "--export", "out", *wanted, code=6)
    assert refused.out == ""
    assert "error: me/gated@1.0.0 " in refused.err
    assert "concepts compose --out" in refused.err
    assert list(Path().iterdir()) == []


def test_what_lies_there_already_is_never_replaced(run: Run, imp: str) -> None:
    Path(FILE).write_bytes(b"somebody's")
    Path("folder").mkdir()
    for place in (FILE, "folder"):
        refused = run("compose", imp, "--export", place, "--force", code=8)
        assert refused.err.startswith(f"error: '{place}' exists already\nhint: name another --export")
    assert Path(FILE).read_bytes() == b"somebody's"
    assert list(Path("folder").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--for", "kohya"), "--for and --lossy say what --export writes"),
        (("--export", "x.ckpt"), "only safetensors are written"),
        (("--export", "x.safetensors", "--for", "peft"), "peft reads a folder"),
        (("--export", "x.safetensors", "--for", "pipeline"), "whole diffusers folder"),
        (("--export", "x", "--for", "checkpoint"), "a checkpoint is one file"),
    ],
)
def test_what_does_not_go_together_is_refused(
    run: Run, imp: str, options: tuple[str, ...], said: str
) -> None:
    assert said in run("compose", imp, *options, code=2).err
    assert list(Path().iterdir()) == []


def test_a_base_that_is_needed_and_not_named_is_asked_for(run: Run, words: str) -> None:
    refused = run("compose", f"{words}*0.5", "--export", FILE, code=2)
    assert refused.err.endswith(
        "hint: add --base with a folder, a checkpoint or a name; concepts base list shows the names\n"
    )
    assert list(Path().iterdir()) == []


def test_a_licence_that_allows_no_derivatives_forbids_one_file_for_several(
    run: Run, imp: str, tmp_path: Path
) -> None:
    deed = {"spdx": "CC-BY-ND-4.0"}
    run("publish", str(write_package(tmp_path / "kept", "me/kept", license=deed)))
    refused = run("compose", imp, "me/kept", "--export", FILE, code=6)
    assert "me/kept@1.0.0 allows no derivatives" in refused.err
    run("compose", "me/kept", "--export", FILE)


def test_the_keys_of_an_export_are_the_documented_ones(run: Run, imp: str) -> None:
    exported = run("compose", imp, "--export", FILE, "--json").document["export"]
    inside = PAGE.partition("- `compose`: `export`")[2].partition("\n- ")[0]
    keys = {*exported, *exported["files"][0]}
    assert keys <= set(re.findall(r"`(\w+)`", inside))
