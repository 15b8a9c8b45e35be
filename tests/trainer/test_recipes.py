from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from conceptry.bases import FamilyId
from conceptry.errors import UsageError
from conceptry.trainer.jobs import make_job
from conceptry.trainer.recipes import ForeignRecipe, read_metadata, read_recipe
from conceptry.trainer.settings import resolve_settings
from tests.trainer.runs import paint_pictures

KOHYA = """
[model]
pretrained_model_name_or_path = "/models/v1-5.safetensors"
[network]
network_module = "networks.lora"
network_dim = 16
network_alpha = 8.0
[dataset]
train_data_dir = "data"
resolution = "512,512"
enable_bucket = true
flip_aug = false
[training]
train_batch_size = 2
gradient_accumulation_steps = 4
max_train_epochs = 3
unet_lr = 1e-4
lr_scheduler = "cosine_with_restarts"
optimizer_type = "adamw8bit"
mixed_precision = "bf16"
min_snr_gamma = 5
seed = 42
noise_offset = 0.05
cache_latents = true
"""

ONETRAINER: dict[str, Any] = {
    "training_method": "EMBEDDING",
    "model_type": "STABLE_DIFFUSION_15",
    "base_model_name": "somebody/some-model",
    "learning_rate": 0.0003,
    "batch_size": 4,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 20,
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01, "beta1": 0.9},
    "embedding": {"placeholder": "<embedding>", "token_count": 2, "initial_embedding_text": "creature"},
    "concepts": [{"path": "data/10_sks dog", "image": {"enable_random_flip": True}}],
    "gradient_checkpointing": "ON",
    "train_dtype": "BFLOAT_16",
    "epochs": 2,
}

AI_TOOLKIT = """
job: extension
config:
  name: my_lora
  process:
    - type: sd_trainer
      trigger_word: "p3r5on"
      network: {type: lora, linear: 32, linear_alpha: 16}
      datasets:
        - folder_path: "data/10_sks dog"
          caption_ext: txt
          caption_dropout_rate: 0.05
          resolution: [512, 768]
      train:
        batch_size: 1
        steps: 2000
        gradient_accumulation_steps: 1
        lr: 1e-4
        optimizer: adamw8bit
        dtype: bf16
        ema_config: {use_ema: true, ema_decay: 0.99}
        noise_scheduler: flowmatch
      model: {name_or_path: somebody/some-model}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint_pictures(tmp_path / "data" / "10_sks dog", count=4)
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def settle(recipe: ForeignRecipe, **more: Any) -> Any:
    """The recipe is a whole job once a name and what no program knows are added, and its settings resolve."""
    values = {"name": "tests/imp", "placeholder": "<imp>", "superclass": "dog", **recipe.values, **more}
    job = make_job(values)
    return job, resolve_settings(job.method, FamilyId("sd1"), job.settings)


def test_a_configuration_of_sd_scripts_becomes_a_job(folder: Path) -> None:
    recipe = read_recipe(write(folder, "lora.toml", KOHYA))
    job, settings = settle(recipe)
    assert (job.method, job.images, job.seed) == ("lora", folder / "data" / "10_sks dog", 42)
    assert (job.placeholder, job.superclass, job.precision) == ("sks", "dog", "bfloat16")
    assert (settings.rank, settings.alpha, settings.optimizer) == (16, 8.0, "adamw_8bit")
    assert settings.learning_rates["lora"] == 1e-4
    assert (settings.batch_size, settings.accumulation_steps) == (8, 4)
    assert job.steps == 4 * 10 * 3 / 8
    assert (settings.buckets, settings.flip, settings.resolution_pixels) == (3, False, 512)
    reasons = dict(recipe.unmapped)
    assert "known values: constant" in reasons['training.lr_scheduler = "cosine_with_restarts"']
    assert reasons["training.noise_offset = 0.05"] == "there is no such key here"
    assert reasons["training.cache_latents = true"] == "latents are always kept"
    assert "give --base" in reasons['model.pretrained_model_name_or_path = "/models/v1-5.safetensors"']


def test_a_configuration_of_onetrainer_becomes_a_job(folder: Path) -> None:
    recipe = read_recipe(write(folder, "embedding.json", json.dumps(ONETRAINER)))
    job, settings = settle(recipe)
    assert (job.method, job.placeholder, job.superclass) == ("textual_inversion", "<embedding>", "creature")
    assert (settings.vectors, settings.schedule, settings.warmup_steps) == (2, "cosine", 20)
    assert (settings.learning_rates, settings.weight_decay) == ({"embedding": 0.0003}, 0.01)
    assert (settings.flip, settings.gradient_checkpointing) == (True, True)
    assert job.steps == 4 * 10 * 2 / 4
    assert ("optimizer.beta1 = 0.9", "there is no such key here") in recipe.unmapped


def test_a_configuration_of_ai_toolkit_becomes_a_job(folder: Path) -> None:
    recipe = read_recipe(write(folder, "lora.yaml", AI_TOOLKIT))
    job, settings = settle(recipe)
    assert (job.method, job.placeholder, job.superclass) == ("lora", "p3r5on", "dog")
    assert (settings.rank, settings.alpha, job.steps, settings.ema_decay) == (32, 16.0, 2000, 0.99)
    assert settings.learning_rates["lora"] == 1e-4
    assert settings.resolution_pixels == 512
    assert any("caption_dropout_rate" in theirs for theirs, _ in recipe.unmapped)


@pytest.mark.parametrize("name", ["lora.toml", "embedding.json", "lora.yaml"])
def test_every_key_is_either_taken_over_or_named_with_a_reason(folder: Path, name: str) -> None:
    text = {"lora.toml": KOHYA, "embedding.json": json.dumps(ONETRAINER), "lora.yaml": AI_TOOLKIT}[name]
    recipe = read_recipe(write(folder, name, text))
    told = [row[0].partition(" = ")[0] for row in (*recipe.mapped, *recipe.unmapped)]
    from conceptry.trainer.recipes import _flatten, _parse

    for key, _ in _flatten(_parse(folder / name)):
        assert key in told, key


def test_a_folder_named_as_sd_scripts_wants_it_says_words_and_pictures(folder: Path) -> None:
    for path in (folder / "data", folder / "data" / "10_sks dog"):
        recipe = read_recipe(path)
        assert recipe.values == {
            "images": folder / "data" / "10_sks dog",
            "placeholder": "sks",
            "superclass": "dog",
        }
        assert recipe.unmapped[0][0] == "10 repeats"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "this is = = no toml"),
        ("a.json", "{"),
        ("a.yaml", "a: [1"),
        ("a.yaml", "!!python/object/apply:os.system ['true']"),
        ("a.toml", "answer = 42"),
        ("a.json", "[]"),
        ("a.txt", "train_data_dir = 'x'"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_sentence(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe(write(tmp_path, name, text))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_file_of_sd_scripts_is_made_again_from_its_metadata(tmp_path: Path) -> None:
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_learning_rate": "0.0001",
        "ss_max_train_steps": "1600",
        "ss_batch_size_per_device": "2",
        "ss_seed": "7",
        "ss_lr_scheduler": "cosine",
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit",
        "ss_resolution": "(512, 512)",
        "ss_min_snr_gamma": "None",
        "ss_tag_frequency": '{"10_sks dog": {"dog": 3}}',
    }
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "their.safetensors", metadata)
    recipe = read_metadata(tmp_path / "their.safetensors")
    job, settings = settle(recipe, images=tmp_path)
    assert (job.method, job.steps, job.seed) == ("lora", 1600, 7)
    assert (settings.rank, settings.alpha, settings.batch_size, settings.schedule) == (8, 4.0, 2, "cosine")
    assert settings.resolution_pixels == 512


def test_a_file_that_says_nothing_of_its_making_is_refused(tmp_path: Path) -> None:
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "their.safetensors")
    with pytest.raises(UsageError, match="says nothing of how it was made"):
        read_metadata(tmp_path / "their.safetensors")
    with pytest.raises(UsageError, match="cannot be read"):
        read_metadata(tmp_path / "nowhere.safetensors")


def test_a_concept_of_ours_is_made_again_from_its_record(tmp_path: Path) -> None:
    record = {
        "job": {"method": "lora", "images": "/pictures", "name": "a/b", "version": "1.0.0", "placeholder": "<imp>",
                "superclass": "creature", "seed": 5, "settings": {"rank": 3}, "title": ""},
        "settings": {"rank": 3, "steps": 40, "batch_size": 2, "learning_rates": {"lora": 0.01}, "alpha": None},
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(record), encoding="utf-8")
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "lora.safetensors")
    recipe = read_metadata(tmp_path / "lora.safetensors")
    job, settings = settle(recipe)
    assert (str(job.name), job.images, job.seed, job.steps) == ("tests/imp", Path("/pictures"), 5, 40)
    assert (settings.rank, settings.batch_size, settings.learning_rates["lora"]) == (3, 2, 0.01)
