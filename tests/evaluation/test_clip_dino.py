"""Protocol clip-dino with the real architectures, small and random: the definitions of DreamBooth, and bad folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from conceptry.errors import InvalidFileError, NotFoundError, UsageError
from conceptry.evaluation.clip_dino import ClipDinoJudge, Models, load_models, locate_model, prepare_pixels
from conceptry.evaluation.protocols import Prompt
from conceptry.evaluation.references import References
from tests.evaluation.models import save_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(folders: tuple[Path, Path]) -> Models:
    return load_models(*folders)


def make_pictures(count: int, seed: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def truth() -> References:
    return References(subject="instance", reference=make_pictures(3, 0), ceiling=make_pictures(2, 1))


def test_dino_is_the_mean_pairwise_cosine_of_class_tokens(models: Models, truth: References) -> None:
    drawn = make_pictures(2, 2)

    def read(picture: Image.Image) -> torch.Tensor:
        norms = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        pixels = prepare_pixels(picture, 32, 37, norms)[None]
        with torch.no_grad():
            row: torch.Tensor = models.dino(pixel_values=pixels).last_hidden_state[0, 0]
        return row

    expected = [
        np.mean([float(torch.cosine_similarity(read(one), read(other), dim=0)) for other in truth.reference])
        for one in drawn
    ]
    assert ClipDinoJudge(models, truth).measure_identity(drawn) == pytest.approx(expected, abs=1e-5)


def test_clip_t_compares_with_the_prompt_that_names_the_superclass(models: Models, truth: References) -> None:
    drawn, prompts = (
        make_pictures(2, 2),
        [Prompt(text="a photo of {} on the beach"), Prompt(text="{} in the grass")],
    )
    judge = ClipDinoJudge(models, truth)
    found = judge.measure_prompts(prompts, drawn, "cat")
    ids = models.tokenizer(
        ["a photo of a cat on the beach", "a cat in the grass"], padding=True, return_tensors="pt"
    )
    norms = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    pixels = torch.stack([prepare_pixels(picture, 32, 32, norms) for picture in drawn])
    with torch.no_grad():
        output = models.clip(**ids, pixel_values=pixels)
    expected = (output.image_embeds * output.text_embeds).sum(dim=1)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_same_picture_is_one_and_its_copies_have_no_spread(models: Models) -> None:
    picture = make_pictures(1, 3)
    judge = ClipDinoJudge(models, References(subject="instance", reference=picture, ceiling=picture))
    assert judge.measure_identity(picture) == pytest.approx([1.0], abs=1e-5)
    assert judge.measure_others(picture)["clip_i"] == pytest.approx([1.0], abs=1e-5)
    assert judge.measure_spread(picture * 3) == pytest.approx([0.0] * 3, abs=1e-5)
    assert judge.measure_novelty(picture) is None


def test_pixels_are_those_of_the_middle_at_any_size() -> None:
    wide = Image.new("RGB", (300, 100), (255, 0, 0))
    wide.paste((0, 255, 0), (100, 0, 200, 100))
    pixels = prepare_pixels(wide, 10, 10, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert pixels.shape == (3, 10, 10)
    assert pixels[1, :, 1:-1].min() > 0.9


def test_a_model_that_is_not_there_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model for --clip at"):
        load_models(tmp_path / "nothing", folders[1])
    with pytest.raises(NotFoundError, match="not in the local cache") as caught:
        load_models(folders[0], Path("hf://facebook/dino-vits16"))
    assert "hf download facebook/dino-vits16" in str(caught.value.hint)


def test_a_repository_is_read_from_the_local_cache_at_its_main_revision(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--me--dino"
    for commit in ("a" * 40, "b" * 40):
        (cached / "snapshots" / commit).mkdir(parents=True)
        config = (folders[1] / "config.json").read_bytes()
        (cached / "snapshots" / commit / "config.json").write_bytes(config)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("b" * 40, encoding="ascii")
    found = locate_model(Path("hf://me/dino"), "dino", ("vit",))
    assert found.name == "b" * 40


def test_a_model_of_another_kind_and_one_that_is_cut_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a model of type 'vit', --clip takes clip"):
        load_models(folders[1], folders[1])
    clip, dino = save_models(tmp_path)
    (dino / "model.safetensors").write_bytes((dino / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InvalidFileError, match="cannot be read"):
        load_models(clip, dino)
    (dino / "model.safetensors").rename(dino / "pytorch_model.bin")
    with pytest.raises(InvalidFileError, match="cannot be read"):
        load_models(clip, dino)


def test_the_architectures_are_the_real_ones(models: Models) -> None:
    assert isinstance(models.clip, CLIPModel)
    assert isinstance(models.clip.config, CLIPConfig)
    assert isinstance(models.dino, ViTModel)
    assert isinstance(models.dino.config, ViTConfig)
