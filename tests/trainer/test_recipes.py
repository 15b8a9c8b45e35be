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
from conceptry.trainer.recipe_files import flatten, parse_file
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
    for key, _ in flatten(parse_file(folder / name)):
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


def test_what_another_program_has_off_is_off_here(folder: Path) -> None:
    off = ONETRAINER | {
        "ema": "OFF",
        "ema_decay": 0.999,
        "loss_weight_fn": "CONSTANT",
        "loss_weight_strength": 5,
    }
    recipe = read_recipe(write(folder, "off.json", json.dumps(off)))
    assert settle(recipe)[1].ema_decay == 0.0
    assert dict(recipe.unmapped)["ema_decay = 0.999"] == "ema is OFF"
    assert dict(recipe.unmapped)["loss_weight_strength = 5"] == "loss_weight_fn is CONSTANT"
    on = read_recipe(write(folder, "on.json", json.dumps(off | {"ema": "GPU"})))
    assert settle(on)[1].ema_decay == 0.999

    text = AI_TOOLKIT.replace("use_ema: true", "use_ema: false")
    assert settle(read_recipe(write(folder, "off.yaml", text)))[1].ema_decay == 0.0

    text = KOHYA.replace("min_snr_gamma = 5", "min_snr_gamma = 0\nmax_grad_norm = 0.0")
    recipe = read_recipe(write(folder, "off.toml", text))
    _, settings = settle(recipe)
    assert (settings.min_snr_gamma, settings.clip_norm) == (None, None)
    assert dict(recipe.mapped)["training.min_snr_gamma = 0"] == "settings.min_snr_gamma = off"


def test_what_counts_unsaid_in_another_program_counts_here_and_is_said(folder: Path) -> None:
    text = KOHYA.replace("network_alpha = 8.0\n", "").replace("min_snr_gamma = 5\n", "")
    recipe = read_recipe(write(folder, "short.toml", text))
    _, settings = settle(recipe)
    assert (settings.rank, settings.alpha, settings.min_snr_gamma, settings.clip_norm) == (16, 1.0, None, 1.0)
    said = dict(recipe.mapped)
    assert said["network_alpha left out"] == "settings.alpha = 1.0"
    assert said["min_snr_gamma left out"] == "settings.min_snr_gamma = off"
    assert "max_train_steps left out" not in said  # the epochs count
    assert "train_text_encoder=true" in dict(recipe.unmapped)["text_encoder_lr left out"]


def test_min_snr_and_the_rate_of_text_encoders_are_taken_over(folder: Path) -> None:
    lora = ONETRAINER | {
        "training_method": "LORA", "lora_rank": 8, "loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 4.0,
        "text_encoder": {"train": True, "learning_rate": 5e-5},
    }  # fmt: skip
    _, settings = settle(read_recipe(write(folder, "lora.json", json.dumps(lora))))
    assert (settings.min_snr_gamma, settings.train_text_encoder, settings.alpha) == (4.0, True, 1.0)
    assert settings.learning_rates == {"lora": 0.0003, "text_encoder": 5e-5}
    text = KOHYA.replace("unet_lr = 1e-4", "learning_rate = 1e-3\nunet_lr = 1e-4\ntext_encoder_lr = 0")
    _, settings = settle(read_recipe(write(folder, "unet.toml", text)))
    assert (settings.train_text_encoder, settings.learning_rates["lora"]) == (False, 1e-4)


def test_pictures_for_regularisation_are_not_what_is_learned(folder: Path) -> None:
    paint_pictures(folder / "reg", count=2)
    subsets = """
    network_dim = 4
    [[datasets]]
      [[datasets.subsets]]
      is_reg = true
      image_dir = "reg"
      class_tokens = "man"
      [[datasets.subsets]]
      image_dir = "data/10_sks dog"
      class_tokens = "sks dog"
    """
    recipe = read_recipe(write(folder, "data.toml", subsets))
    assert recipe.values["images"] == folder / "data" / "10_sks dog"
    assert (recipe.values["placeholder"], recipe.values["superclass"]) == ("sks", "dog")
    why = dict(recipe.unmapped)['datasets.0.subsets.0.image_dir = "reg"']
    assert why.startswith("pictures for regularisation")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.toml",
            KOHYA.replace('"networks.lora"', '"lycoris.kohya"\nnetwork_args = ["algo=loha", "conv_dim=4"]'),
        ),
        ("a.toml", KOHYA.replace("networks.lora", "networks.oft")),
        ("a.yaml", AI_TOOLKIT.replace("type: lora,", "type: lokr,")),
        ("a.json", json.dumps(ONETRAINER | {"training_method": "LORA", "peft_type": "LOHA"})),
    ],
)
def test_a_kind_of_network_that_is_not_trained_here_becomes_no_other(
    folder: Path, name: str, text: str
) -> None:
    recipe = read_recipe(write(folder, name, text))
    assert "method" not in recipe.values
    assert any("name a METHOD to train another way" in why for _, why in recipe.unmapped)
    lycoris = KOHYA.replace(
        '"networks.lora"', '"lycoris.kohya"\nnetwork_args = ["algo=locon", "dora_wd=True"]'
    )
    job, settings = settle(read_recipe(write(folder, "locon.toml", lycoris)))
    assert (job.method, settings.algorithm) == ("lora", "dora")


def test_a_record_itself_says_how_it_was_made_and_what_was_off_stays_off(tmp_path: Path) -> None:
    record = {
        "job": {"method": "lora", "images": "/pictures", "name": "a/b", "version": "1.0.0", "placeholder": "<imp>",
                "superclass": "creature", "seed": 5, "settings": {"min_snr_gamma": None}, "title": ""},
        "settings": {"steps": 40, "min_snr_gamma": None, "learning_rates": {"lora": 0.01}, "alpha": None},
    }  # fmt: skip
    path = tmp_path / ("0" * 64 + ".json")  # as the store keeps it
    path.write_text(json.dumps(record), encoding="utf-8")
    for recipe in (read_metadata(path), read_recipe(path)):
        job, settings = settle(recipe)
        assert (job.seed, job.steps, settings.min_snr_gamma) == (5, 40, None)
