"""The bundled base model: a Stable Diffusion pipeline that anyone can load, small enough to ship."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from conceptry.toybox import path
from conceptry.toybox.captions import grammar_words
from conceptry.toybox.pipeline import LARGEST_FILE_BYTES, LARGEST_TOTAL_BYTES
from conceptry.toybox.tokenizer import MAX_MERGES, MAX_TOKENS


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(path())
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_plain_loading_without_arguments_makes_a_picture(pipeline: StableDiffusionPipeline) -> None:
    source = torch.Generator().manual_seed(0)
    picture = pipeline("a photo of a creature in a meadow", num_inference_steps=4, generator=source).images[0]
    assert picture.size == (64, 64)
    assert np.asarray(picture).std() > 10


def test_equal_seeds_make_equal_pictures(pipeline: StableDiffusionPipeline) -> None:
    first, second = (
        np.asarray(
            pipeline("a cup", num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
        )
        for _ in range(2)
    )
    assert np.array_equal(first, second)


def test_all_parts_load_in_one_precision(pipeline: StableDiffusionPipeline) -> None:
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    settings = json.loads((path() / "text_encoder" / "config.json").read_text())
    assert settings["dtype"] == "float32"


def test_the_background_follows_the_caption(pipeline: StableDiffusionPipeline) -> None:
    prompts = ["a photo of a ball in the snow", "a photo of a ball in space"]
    sources = [torch.Generator().manual_seed(1) for _ in prompts]
    snow, space = pipeline(
        prompts, num_inference_steps=8, guidance_scale=3.0, generator=sources, output_type="np"
    ).images
    assert snow.mean() > space.mean() + 0.3


def test_weights_stay_within_their_limits() -> None:
    sizes = [
        file.stat().st_size for file in Path(path()).rglob("*") if file.is_file() and file.suffix != ".png"
    ]
    assert max(sizes) <= LARGEST_FILE_BYTES
    assert sum(sizes) <= LARGEST_TOTAL_BYTES


def test_every_word_of_the_grammar_is_one_token() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(path() / "tokenizer")
    assert [word for word in set(grammar_words()) if len(tokenizer.tokenize(word)) != 1] == []
    assert tokenizer.model_max_length == MAX_TOKENS


def test_the_tokenizer_spells_any_text_in_bytes_and_reads_it_back() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(path() / "tokenizer")
    for text in ("zürich", "日本 の 猫", "<sks-7>", "naïve 🦊"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_the_tokenizer_has_few_merges_and_the_files_of_its_kind() -> None:
    folder = path() / "tokenizer"
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(merges) <= MAX_MERGES
    assert CLIPTokenizer.from_pretrained(folder).get_vocab() == vocabulary
