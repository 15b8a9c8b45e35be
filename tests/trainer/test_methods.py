"""Methods made of others' parts: each is run once to its end and once with a stop in the middle, and judged twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from conceptry import toybox
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.pipelines import iter_cross_attention
from conceptry.errors import InterruptedByUserError, UsageError
from conceptry.formats.tensors import read_tensors
from conceptry.trainer.events import TrainEvent, ignore
from conceptry.trainer.images import scan_pictures
from conceptry.trainer.memory import FLOAT_BYTES, estimate_memory
from conceptry.trainer.preparation import prepared
from conceptry.trainer.staging import OpenBase, prepare_run
from conceptry.trainer.training import TrainResult, train
from tests.fakes.pipelines import Shape, assert_same, make_pipeline, render, snapshot
from tests.trainer.runs import FAST, write_job

CASES: dict[str, tuple[str, Shape, dict[str, Any]]] = {
    "xti": ("xti", "sd1", {}),
    "xti of two encoders": ("xti", "sdxl", {}),
    "dora with text encoders": (
        "lora",
        "sd1",
        {
            "algorithm": "dora",
            "train_text_encoder": True,
            "learning_rates": {"lora": 1e-2, "text_encoder": 1e-2},
        },
    ),
    "lidb": ("lidb", "sd1", {}),
    "pivotal": ("pivotal", "sd1", {}),
    "pivotal of two encoders": ("pivotal", "sdxl", {}),
    "custom_diffusion": ("custom_diffusion", "sd2", {}),
    "dreambooth_lora": ("dreambooth_lora", "sd2", {}),
    "textual_inversion_dreambooth_lora": ("textual_inversion_dreambooth_lora", "sd1", {}),
    "textual_inversion_dreambooth": ("textual_inversion_dreambooth", "sd1", {}),
}
QUICK = ("xti", "lidb", "pivotal")
_LISTED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]


@dataclass(frozen=True)
class Runs:
    """One job to its end, and the same stopped after two of four steps and resumed."""

    whole: TrainResult
    resumed: TrainResult
    pipeline: Any
    before: dict[str, Any]


@pytest.fixture(scope="module", params=_LISTED)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    method, shape, settings = CASES[request.param]
    folder = tmp_path_factory.mktemp(method)
    pipeline = make_pipeline(shape)
    before = snapshot(pipeline)

    def go(work: str, **options: Any) -> TrainResult:
        job = write_job(method, folder, steps=4, settings={"batch_size": 2, **settings})
        return train(job, base=pipeline, workdir=folder / work, cache_folder=folder / "cache", **options)

    def stop_after_two(event: TrainEvent) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    whole = go("whole")
    with pytest.raises(InterruptedByUserError):
        go("stopped", on_event=stop_after_two)
    return Runs(whole, go("stopped", resume=True), pipeline, before)


def run(
    method: str, folder: Path, *, shape: Shape = "sd1", base: Any = None, steps: int = 4, **settings: Any
) -> TrainResult:
    pipeline = make_pipeline(shape) if base is None else base
    job = write_job(method, folder, steps=steps, settings={"batch_size": 2, **settings})
    return train(job, base=pipeline, workdir=folder / "work", cache_folder=folder / "cache")


def test_a_stopped_and_resumed_run_gives_the_same_bytes_as_one_that_was_not(runs: Runs) -> None:
    assert runs.resumed.concept.digest == runs.whole.concept.digest
    for file in runs.whole.concept.manifest.iter_files():
        assert (runs.resumed.folder / file.path).read_bytes() == (runs.whole.folder / file.path).read_bytes()


def test_the_saved_package_changes_pictures_with_its_word_and_leaves_the_base_alone(runs: Runs) -> None:
    assert_same(runs.before, snapshot(runs.pipeline))
    (prompt,) = runs.whole.concept.manifest.usage.prompts
    plain = render(runs.pipeline, prompt)
    with attach(Composition(runs.whole.concept), runs.pipeline):
        changed = render(runs.pipeline, prompt)
    assert torch.isfinite(changed).all()
    assert not torch.equal(plain, changed)
    assert_same(runs.before, snapshot(runs.pipeline))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if "two" not in name])
def test_the_loss_on_fixed_samples_falls(name: str, tmp_path: Path) -> None:
    method, _, settings = CASES[name]
    pipeline = StableDiffusionPipeline.from_pretrained(toybox.path())
    settings = {**settings, "keep": "last", "words_until": 1.0, "weights_from": 0.0}
    result = run(method, tmp_path, base=pipeline, steps=8, **settings)
    assert result.fixed_loss_after < result.fixed_loss_before


def read_files(result: TrainResult) -> Mapping[str, Any]:
    return {
        file.path: read_tensors(result.folder / file.path) for file in result.concept.manifest.iter_files()
    }


# --- LoRA ----------------------------------------------------------------------------------------------------------


def test_ranks_and_alphas_follow_their_patterns_and_the_file_says_them(tmp_path: Path) -> None:
    result = run(
        "lora",
        tmp_path,
        targets=["attention", "convolution"],
        rank=3,
        rank_pattern={"*.mid_block.*": 5, "cross_attention": 1},
        alpha_pattern={"convolution": 1.0},
    )
    tensors = read_files(result)["lora.safetensors"]
    ranks = {
        name.removesuffix(".lora_A.weight"): t.shape[0] for name, t in tensors.items() if "lora_A" in name
    }
    assert {rank for name, rank in ranks.items() if ".attn2." in name} == {1}
    assert {rank for name, rank in ranks.items() if ".attn1." in name} == {3}
    alphas = {name: float(tensors[f"{name}.alpha"].to_numpy()) for name in ranks}
    assert {alpha for name, alpha in alphas.items() if ".conv" in name} == {1.0}
    assert {alpha for name, alpha in alphas.items() if ".attn1." in name} == {3.0}
    (part,) = result.concept.manifest.builds[0].parts
    assert part.method.kind == "lora"
    assert part.method.variant in {"locon", "mixed"}
    assert part.method.ranks


def test_groups_of_layers_can_be_named_and_a_wrong_name_is_told(tmp_path: Path) -> None:
    result = run("lora", tmp_path, targets="cross_attention,feed_forward")
    names = {name for name in read_files(result)["lora.safetensors"] if "lora_A" in name}
    assert names
    assert all(".attn2.to_" in name or ".ff.net." in name for name in names)
    with pytest.raises(UsageError) as caught:
        run("lora", tmp_path, targets="atention")
    assert caught.value.hint == "did you mean 'attention'?"


def test_adapters_of_the_text_encoders_are_stored_under_their_published_names(tmp_path: Path) -> None:
    rates = {"lora": 1e-2, "text_encoder": 1e-2}
    result = run("lora", tmp_path, shape="sdxl", train_text_encoder=True, learning_rates=rates)
    names = {name for name in read_files(result)["lora.safetensors"] if "lora_B" in name}
    for encoder in ("text_encoder", "text_encoder_2"):
        assert f"{encoder}.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight" in names
    assert any(name.startswith("unet.") for name in names)


# --- rows for each layer -------------------------------------------------------------------------------------------


def test_xti_stores_a_row_for_every_cross_attention_layer_and_names_the_layers(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    result = run("xti", tmp_path, base=pipeline, vectors=2)
    layers = [path for path, _ in iter_cross_attention(pipeline.unet)]
    (part,) = result.concept.manifest.builds[0].parts
    assert part.method.kind == "embedding"
    assert part.method.layers == tuple(layers)
    (rows,) = read_files(result)["embedding.safetensors"].values()
    assert rows.shape == (len(layers), 2, 24)
    assert len({row.tobytes() for row in rows.to_numpy()}) == len(layers)


# --- words and weights ---------------------------------------------------------------------------------------------


def test_pivotal_tuning_moves_the_rows_first_and_the_weights_after_them(tmp_path: Path) -> None:
    first = run("pivotal", tmp_path / "rows", words_until=1.0, weights_from=0.99, keep="last")
    both = run("pivotal", tmp_path / "both", words_until=0.5, weights_from=0.5, keep="last")
    ups = [t for name, t in read_files(first)["lora.safetensors"].items() if "lora_B" in name]
    assert not any(t.to_numpy().any() for t in ups)
    assert any(
        t.to_numpy().any() for name, t in read_files(both)["lora.safetensors"].items() if "lora_B" in name
    )
    (token,) = both.concept.manifest.tokens
    assert (token.vectors, token.placeholder) == (2, "<imp>")
    assert both.concept.manifest.builds[0].kinds == ("embedding", "lora")
    assert both.concept.manifest.usage.prompts == ("a photo of a <imp>",)


@pytest.mark.slow
def test_rows_stay_as_they_are_once_their_share_of_the_steps_is_over(tmp_path: Path) -> None:
    rows = []
    for steps in (4, 8):
        job = write_job(
            "pivotal",
            tmp_path,
            steps=steps,
            settings={"words_until": 2 / steps, "weights_from": 2 / steps, "keep": "last"},
        )
        work = tmp_path / str(steps)
        result = train(job, base=make_pipeline(), workdir=work, cache_folder=tmp_path / "cache")
        rows.append(read_files(result)["embedding.safetensors"]["text_encoder/<imp>"].data)
    assert rows[0] == rows[1]


def test_custom_diffusion_changes_keys_and_values_of_cross_attention_and_no_other_weight(
    tmp_path: Path,
) -> None:
    result = run("custom_diffusion", tmp_path)
    tensors = read_files(result)
    assert set(tensors["embedding.safetensors"]) == {"text_encoder/<imp>"}
    assert tensors["unet.safetensors"]
    assert all(
        name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in tensors["unet.safetensors"]
    )
    assert result.concept.manifest.usage.prompts == ("a photo of a <imp> creature",)
    (token,) = result.concept.manifest.tokens
    assert (token.vectors, token.superclass) == (1, "creature")


def test_the_predicted_count_of_trained_numbers_is_right_for_every_method(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    rates = {"lora": 1e-2, "text_encoder": 1e-2}
    variants: dict[str, dict[str, Any]] = {
        "lora": {"algorithm": "dora", "train_text_encoder": True, "learning_rates": rates}
    }
    for method in FAST:
        settings = {**variants.get(method, {}), "prior": "none"}
        job = write_job(method, tmp_path, settings=settings)
        with prepared(pipeline):
            stage = prepare_run(
                job,
                scan_pictures(job.images),
                OpenBase(pipeline=pipeline),
                folder=tmp_path / "work",
                cache_folder=tmp_path / "cache",
                on_event=ignore,
            )
            trained = sum(parameter.numel() for parameter in stage.learner.parameters.values())
            predicted = estimate_memory(pipeline, method, stage.context.job.settings).trained_bytes
        assert predicted == trained * FLOAT_BYTES, method
