"""Compositions as files: plain diffusers computes with them what the attached composition computes here."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from conceptry.composer import Composition, Destination, attach, export
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composition import Region, Schedule, Use
from conceptry.concepts import Concept
from conceptry.errors import ConflictError, IncompatibleError, UsageError
from conceptry.formats.header import read_header
from conceptry.formats.lora_modules import LoraModule
from tests.composer.test_fusing import FUSABLE, PROMPT, compose, make_algorithm
from tests.composer.test_lora_algorithms import pick_layers
from tests.fakes.concepts import make_embedding, make_full, make_lora, make_rank_one
from tests.fakes.forwards import TOLERANCE, make_calm_pipeline, measure_difference, run_components
from tests.fakes.modules import FORMS, make_module
from tests.fakes.pipelines import assert_same, snapshot


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def calm(request: pytest.FixtureRequest) -> Any:
    return make_calm_pipeline(request.param)


@pytest.fixture(scope="module")
def calm_sd1() -> Any:
    return make_calm_pipeline("sd1")


def open_folder(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(str(path), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_lora(shape: str, path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = make_calm_pipeline(shape)  # type: ignore[arg-type]
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return pipeline


def make_loha(folder: Path, pipeline: Any) -> Concept:
    """Return a LoHa without a core on a linear layer and a convolution: its factors are flat."""
    _, row, form = next(found for found in FORMS if found[0].startswith("loha "))
    modules = {
        f"unet.{path}": drop_bias(make_module(row, form, tuple(layer.weight.shape), seed=9))
        for path, layer in pick_layers(pipeline.unet).items()
        if path.endswith(("to_q", "conv1"))
    }
    return make_lora(folder, pipeline, modules=modules, name="test/c", placeholder="clonk")


def drop_bias(module: LoraModule) -> LoraModule:
    """Return the module without what diffusers does not read."""
    return replace(module, parts={part: raw for part, raw in module.parts.items() if part != "diff_b"})


def attach_and_run(composition: Composition, pipeline: Any, prompt: str = PROMPT) -> dict[str, torch.Tensor]:
    with attach(composition, pipeline):
        return run_components(pipeline, prompt)


def test_adapters_are_exported_as_one_lora_that_diffusers_computes_alike(calm: Any, tmp_path: Path) -> None:
    shape = "sd1" if calm.unet.config.cross_attention_dim == 24 else "sdxl"
    concepts = [
        make_lora(tmp_path / "a", calm, name="test/a") * 0.7,
        make_lora(tmp_path / "b", calm, name="test/b", seed=5, placeholder="bork") * -0.4,
        make_loha(tmp_path / "c", calm) * 0.5,
    ]
    composition = Composition(*concepts)
    (file,) = export(composition, calm, tmp_path / "together.safetensors")
    found = run_components(load_lora(shape, file.path), PROMPT)
    assert measure_difference(found, attach_and_run(composition, calm)) <= TOLERANCE
    rows = json.loads(read_header(file.path).metadata["conceptry.composition"])
    assert [(row["reference"], row["strength"]) for row in rows] == [
        ("test/a@1.0.0", 0.7),
        ("test/b@1.0.0", -0.4),
        ("test/c@1.0.0", 0.5),
    ]


def test_shares_of_parts_are_in_the_files_as_they_are_attached(calm_sd1: Any, tmp_path: Path) -> None:
    parts = {"unet": 0.5, "unet.mid_block": 0.0, "unet.down_blocks.0": -1.5}
    composition = Composition(make_lora(tmp_path / "a", calm_sd1) * 0.7, use={"test/lora": Use(parts=parts)})
    expected = attach_and_run(composition, calm_sd1)
    (file,) = export(composition, calm_sd1, tmp_path / "together.safetensors")
    found = run_components(load_lora("sd1", file.path), PROMPT)
    assert measure_difference(found, expected) <= TOLERANCE
    export(composition, calm_sd1, Destination(path=tmp_path / "whole", target="pipeline"))
    assert measure_difference(run_components(open_folder(tmp_path / "whole"), PROMPT), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use": {"test/lora": Use(schedule=Schedule(stop=0.5))}}, "schedule of test/lora@1.0.0"),
        ({"use": {"test/lora": Use(region=Region(box=(0, 0, 0.5, 1)))}}, "region of test/lora@1.0.0"),
        ({"way": "switch"}, "the way 'switch'"),
    ],
)
def test_what_is_of_the_drawing_is_in_no_file(
    calm_sd1: Any, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    concepts = [make_lora(tmp_path / "a", calm_sd1), make_embedding(tmp_path / "e", calm_sd1)]
    for target in ("diffusers", "pipeline"):
        place = Destination(path=tmp_path / "out", target=target)
        with pytest.raises(IncompatibleError, match=said):
            export(Composition(*concepts, **settings), calm_sd1, place)
    assert not (tmp_path / "out").exists()


def test_plain_adapters_are_exported_without_the_base(calm_sd1: Any, tmp_path: Path) -> None:
    composition = Composition(make_lora(tmp_path / "a", calm_sd1) * 0.7)
    open_way, closed_way = tmp_path / "open.safetensors", tmp_path / "closed.safetensors"
    export(composition, calm_sd1, open_way)
    export(composition, identify_pipeline(calm_sd1), closed_way)
    assert open_way.read_bytes() == closed_way.read_bytes()
    dora = make_algorithm(tmp_path / "d", calm_sd1, "dora")
    with pytest.raises(IncompatibleError, match="depends on the base's weight"):
        export(Composition(dora * 0.5), identify_pipeline(calm_sd1), tmp_path / "d.safetensors")


def test_what_is_no_product_of_factors_is_exported_as_differences_for_programs_that_read_them(
    calm_sd1: Any, tmp_path: Path
) -> None:
    composition = Composition(make_algorithm(tmp_path / "d", calm_sd1, "dora") * 0.5)
    with pytest.raises(IncompatibleError) as caught:
        export(composition, calm_sd1, tmp_path / "d.safetensors")
    assert "kohya" in str(caught.value.hint) or "comfyui" in str(caught.value.hint)
    (file,) = export(composition, calm_sd1, Destination(path=tmp_path / "d.safetensors", target="kohya"))
    assert any(name.endswith(".diff") for name in read_header(file.path).tensors)


def test_words_lie_beside_the_adapter(calm_sd1: Any, tmp_path: Path) -> None:
    composition = compose([make_embedding(tmp_path / "e", calm_sd1), make_lora(tmp_path / "l", calm_sd1)])
    files = export(composition, calm_sd1, tmp_path / "both")
    assert {file.path.name for file in files} == {
        "pytorch_lora_weights.safetensors",
        "learned_embeds.safetensors",
    }
    pipeline = load_lora("sd1", tmp_path / "both" / "pytorch_lora_weights.safetensors")
    pipeline.load_textual_inversion(str(tmp_path / "both" / "learned_embeds.safetensors"))
    found = run_components(pipeline, PROMPT)
    assert measure_difference(found, attach_and_run(composition, calm_sd1)) <= TOLERANCE
    with pytest.raises(UsageError, match="2 files"):
        export(composition, calm_sd1, tmp_path / "one.safetensors")


def test_all_that_weights_hold_is_exported_as_a_folder_that_diffusers_opens(
    calm: Any, tmp_path: Path
) -> None:
    made = {kind: make(tmp_path / kind, calm) for kind, make in FUSABLE.items()}
    is_small = calm.unet.config.cross_attention_dim == 24
    sets = [("embedding",), ("full",), ("lora", "dora")] if is_small else []
    before = snapshot(calm, with_settings=False)
    for kinds in [*sets, tuple(made)]:
        composition = compose([made[kind] for kind in kinds])
        folder = tmp_path / "-".join(("out", *kinds))
        export(composition, calm, Destination(path=folder, target="pipeline"))
        assert_same(before, snapshot(calm, with_settings=False))
        found = run_components(open_folder(folder), PROMPT)
        assert measure_difference(found, attach_and_run(composition, calm)) <= TOLERANCE, kinds
        note = json.loads((folder / "composition.json").read_text())
        assert len(note["concepts"]) == len(kinds)


def test_a_word_of_several_vectors_works_in_the_folder_as_diffusers_spells_it(
    calm_sd1: Any, tmp_path: Path
) -> None:
    concept = make_embedding(tmp_path / "e", calm_sd1, vectors=3)
    export(Composition(concept), calm_sd1, Destination(path=tmp_path / "out", target="pipeline"))
    tokenizer = open_folder(tmp_path / "out").tokenizer
    assert tokenizer.tokenize("a <e> <e>_1 <e>_2") == ["a</w>", "<e>", "<e>_1", "<e>_2"]


def refuse(concept: Concept, pipeline: Any, destination: Destination, match: str) -> str:
    with pytest.raises((IncompatibleError, UsageError), match=match) as caught:
        export(Composition(concept), pipeline, destination)
    assert not destination.path.exists()
    return str(caught.value.hint)


def test_what_cannot_be_written_is_refused_with_what_can_be_done(calm_sd1: Any, tmp_path: Path) -> None:
    rank_one, full = make_rank_one(tmp_path / "r", calm_sd1), make_full(tmp_path / "f", calm_sd1)
    out = tmp_path / "out"
    assert "attach it" in refuse(rank_one, calm_sd1, Destination(path=out), "cannot be put into weights")
    refuse(rank_one, calm_sd1, Destination(path=out, target="kohya"), "no adapter holds")
    refuse(full, calm_sd1, Destination(path=out, target="kohya"), "no adapter holds")
    refuse(full, calm_sd1, Destination(path=tmp_path / "x.safetensors"), "whole diffusers folder")
    refuse(full, identify_pipeline(calm_sd1), Destination(path=out), "only its identity")


def test_nothing_is_overwritten_unasked_and_nothing_half_written_stays(
    calm_sd1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Composition(make_full(tmp_path / "f", calm_sd1))
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConflictError):
        export(full, calm_sd1, out)
    with monkeypatch.context() as patched:
        patched.setattr(type(calm_sd1.scheduler), "save_pretrained", _fail)
        with pytest.raises(KeyboardInterrupt):
            export(full, calm_sd1, Destination(path=out, force=True))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (out / "mine.txt").read_text() == "mine"
    export(full, calm_sd1, Destination(path=out, force=True))
    assert not (out / "mine.txt").exists()
    assert (out / "model_index.json").is_file()


def _fail(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
