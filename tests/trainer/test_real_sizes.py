from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.bases import FamilyId
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention
from conceptry.formats.tensors import read_tensors
from conceptry.trainer.layers import find_layers
from conceptry.trainer.memory import estimate_memory
from conceptry.trainer.settings import resolve_settings
from conceptry.trainer.training import TrainResult, train
from tests.fakes.pipelines import assert_same, snapshot
from tests.trainer.real_shapes import make_meta_sdxl, make_narrow_sdxl, make_sd15
from tests.trainer.runs import METHODS, some_slowly, write_job

GIB = 2**30


def run(method: str, folder: Path, pipeline: Any, **settings: Any) -> TrainResult:
    changes = {"resolution_pixels": 64, "batch_size": 1, "targets": _targets(method), **settings}
    job = write_job(method, folder, steps=2, settings={key: value for key, value in changes.items() if value})
    return train(job, base=pipeline, workdir=folder / "work", cache_folder=folder / "cache")


def _targets(method: str) -> list[str] | None:
    return {"lora": ["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"]}.get(method)


@pytest.fixture(scope="module")
def narrow_sdxl() -> Any:
    pipeline = make_narrow_sdxl()
    encode_prompts(
        pipeline, ["a"]
    )  # at their first use transformers puts hooks of its own into encoders, for good
    return pipeline


@pytest.mark.parametrize("method", some_slowly("perfusion", "dreambooth"))
def test_all_methods_train_on_sdxl_with_every_block_layer_and_head(
    method: str, narrow_sdxl: Any, tmp_path: Path
) -> None:
    assert len(list(iter_cross_attention(narrow_sdxl.unet))) == 70
    before = snapshot(narrow_sdxl)
    result = run(method, tmp_path, narrow_sdxl, batch_size=8)
    assert result.concept.manifest.builds[0].base.family == "sdxl"
    assert_same(before, snapshot(narrow_sdxl))


def test_real_sdxl_has_the_layers_and_needs_the_memory_that_are_published() -> None:
    pipeline = make_meta_sdxl()
    layers = dict(iter_cross_attention(pipeline.unet))
    assert len(layers) == 70
    assert sum(layer.to_v.weight.shape[0] for layer in layers.values()) == 83_200
    assert {layer.to_k.weight.shape[1] for layer in layers.values()} == {2048}
    assert "down_blocks.2.attentions.1.transformer_blocks.9.attn2" in layers
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) == 2_567_463_684

    lora = resolve_settings("lora", FamilyId("sdxl"), {})
    shapes = {path: layer.weight.shape for path, layer in find_layers(pipeline.unet, lora.targets).items()}
    assert len(shapes) == 8 * 70
    trained = {
        method: estimate_memory(
            pipeline, method, resolve_settings(method, FamilyId("sdxl"), {})
        ).trained_bytes
        for method in METHODS
    }
    assert trained["lora"] == 1_451_520 * lora.rank * 4
    assert trained["textual_inversion"] == (768 + 1280) * 4
    assert trained["perfusion"] == (83_200 + 768 + 1280) * 4
    assert trained["dreambooth"] == 2_567_463_684 * 4


def test_predicted_memory_counts_weights_gradients_and_moments() -> None:
    pipeline = make_meta_sdxl()
    found = estimate_memory(pipeline, "dreambooth", resolve_settings("dreambooth", FamilyId("sdxl"), {}))
    assert found.optimizer_bytes == 2 * found.trained_bytes == 2 * found.gradient_bytes
    assert 50 * GIB < found.total_bytes < 54 * GIB
    frugal = {"optimizer": "adafactor"}
    less = estimate_memory(pipeline, "dreambooth", resolve_settings("dreambooth", FamilyId("sdxl"), frugal))
    assert less.optimizer_bytes == 0
    small = estimate_memory(pipeline, "perfusion", resolve_settings("perfusion", FamilyId("sdxl"), {}))
    assert small.total_bytes - small.base_bytes < 2 * 2**20


@pytest.mark.slow
def test_embedding_methods_and_lora_train_on_real_sd15_within_their_sizes(tmp_path: Path) -> None:
    pipeline = make_sd15()
    sizes = {}
    for method in ("textual_inversion", "perfusion", "lora"):
        settings: dict[str, Any] = {"vectors": 1} if method == "textual_inversion" else {}
        result = run(method, tmp_path / method, pipeline, **settings)
        (file,) = result.concept.manifest.iter_files()
        sizes[method] = file.size
        assert all(tensor.is_finite() for tensor in read_tensors(result.folder / file.path).values())
    assert sizes["textual_inversion"] <= 8_000
    assert sizes["perfusion"] <= 64 * 1024


@pytest.mark.slow
def test_dreambooth_trains_on_real_sd15(tmp_path: Path) -> None:
    pipeline = make_sd15()
    result = run("dreambooth", tmp_path, pipeline, optimizer="adafactor")
    (file,) = result.concept.manifest.iter_files()
    assert file.size > 3 * 10**9
    assert torch.isfinite(torch.tensor(result.fixed_loss_after))
