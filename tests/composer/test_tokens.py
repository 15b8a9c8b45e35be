"""Placeholders: what a prompt with them becomes, and that nothing of the user's is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conceptry.composer.pipelines import encode_prompts, list_text_encoders
from conceptry.composer.tokens import TokenPatch, blend_rows
from conceptry.errors import IncompatibleError, InvalidPlaceholderError
from tests.fakes.edits import make_rows
from tests.fakes.pipelines import MAX_TOKENS, make_tokenizer, render


def list_ids(tokenizer: Any, prompt: str) -> list[int]:
    return list(tokenizer(prompt)["input_ids"])


def test_a_placeholder_of_three_vectors_takes_three_positions(pipeline: Any) -> None:
    plain = list_ids(pipeline.tokenizer, "a photo of cat on grass")
    with TokenPatch(pipeline, [make_rows(pipeline, "<x>", vectors=3)]):
        ids = list_ids(pipeline.tokenizer, "a photo of <x> on grass")
    assert ids[:4] == plain[:4]
    assert ids[7:] == plain[5:]
    assert ids[4:7] == [ids[4], ids[4] + 1, ids[4] + 2]


def test_the_pipelines_tokenizer_is_the_same_object_again_and_the_copy_is_made_once(sd1: Any) -> None:
    own = sd1.tokenizer
    copies = []
    for _ in range(2):
        with TokenPatch(sd1, [make_rows(sd1, "<x>")]):
            copies.append(sd1.tokenizer)
            assert sd1.tokenizer is not own
        assert sd1.tokenizer is own
    assert copies[0] is copies[1]
    assert isinstance(copies[0], type(own))


def test_the_rows_are_read_where_the_placeholder_stands(sd1: Any) -> None:
    rows = make_rows(sd1, "<x>", vectors=2)
    seen = []
    with TokenPatch(sd1, [rows]):
        layer = sd1.text_encoder.get_input_embeddings()
        handle = layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
        encode_prompts(sd1, ["a <x> cat", "a cat"])
        handle.remove()
    (embedded,) = seen
    assert torch.equal(embedded[0, 2:4], next(iter(rows.rows.values())))
    table = sd1.text_encoder.get_input_embeddings().weight
    assert torch.equal(embedded[1], table[sd1.tokenizer(["a cat"], padding="max_length")["input_ids"][0]])


def test_a_row_that_equals_a_words_own_gives_the_picture_of_that_word(pipeline: Any) -> None:
    rows = make_rows(pipeline, "<x>")
    (number,) = pipeline.tokenizer("cat", add_special_tokens=False)["input_ids"]
    for encoder in list_text_encoders(pipeline):
        rows.rows[encoder.component][0] = encoder.table.weight[number].detach()
    expected = render(pipeline, "a photo of a cat, on grass")
    with TokenPatch(pipeline, [rows]):
        assert torch.equal(render(pipeline, "a photo of a <x>, on grass"), expected)


def test_pooled_outputs_are_read_at_the_true_end_of_the_prompt(sdxl: Any) -> None:
    # Both encoders carry the old eos_token_id 2, with which CLIP takes the position of the greatest id.
    rows = make_rows(sdxl, "<x>")
    (number,) = sdxl.tokenizer("cat", add_special_tokens=False)["input_ids"]
    for encoder in list_text_encoders(sdxl):
        rows.rows[encoder.component][0] = encoder.table.weight[number].detach()
    arguments = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    pooled = sdxl.encode_prompt(prompt=["a cat on grass"], **arguments)[2]
    with TokenPatch(sdxl, [rows]):
        assert torch.equal(sdxl.encode_prompt(prompt=["a <x> on grass"], **arguments)[2], pooled)


def test_a_long_prompt_is_cut_at_the_models_length_and_still_ends(sd1: Any) -> None:
    with TokenPatch(sd1, [make_rows(sd1, "<x>", vectors=4)]):
        encoded = sd1.tokenizer(
            "a cat " * 10 + "<x> dog",
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        assert encoded["input_ids"].shape == (1, MAX_TOKENS)
        assert encoded["input_ids"][0, -1] == sd1.tokenizer.eos_token_id
        assert int((encoded["input_ids"] >= 1 << 24).sum()) == 2
        assert bool(encode_prompts(sd1, ["a cat " * 10 + "<x> dog"]).isfinite().all())


def test_each_tokenizer_pads_with_its_own_word(sdxl: Any) -> None:
    with TokenPatch(sdxl, [make_rows(sdxl, "<x>")]):
        for tokenizer in (sdxl.tokenizer, sdxl.tokenizer_2):
            ids = tokenizer(["a <x>", "a <x> cat"], padding=True)["input_ids"]
            assert ids[0][-1] == tokenizer.pad_token_id
            assert len(ids[0]) == len(ids[1])


def test_one_placeholder_that_begins_like_another_is_kept_apart(sd1: Any) -> None:
    tokens = [make_rows(sd1, "<x>"), make_rows(sd1, "<x>_1", seed=9), make_rows(sd1, "zork", seed=10)]
    plain = list_ids(sd1.tokenizer, "zorkish")
    with TokenPatch(sd1, tokens):
        first, second, third = (list_ids(sd1.tokenizer, text)[1:-1] for text in ("<x>", "<x>_1", "ZORK,"))
        assert len(first) == len(second) == 1
        assert first != second
        assert len(third) == 2
        assert list_ids(sd1.tokenizer, "zorkish") == plain
        assert sd1.maybe_convert_prompt("a <x> and <x>_1", sd1.tokenizer) == "a <x> and <x>_1"


def test_prompts_without_a_placeholder_are_tokenized_as_before(sd1: Any) -> None:
    prompts = ["a cat", "naïve  Café, 42!", ""]
    expected = [list_ids(make_tokenizer(), prompt) for prompt in prompts]
    with TokenPatch(sd1, [make_rows(sd1, "<x>")]):
        assert [list_ids(sd1.tokenizer, prompt) for prompt in prompts] == expected
        assert sd1.tokenizer.decode(expected[0][1:-1]) == "a cat"


def test_gradients_reach_rows_under_training(sd1: Any) -> None:
    rows = make_rows(sd1, "<x>", vectors=2)
    parameter = next(iter(rows.rows.values())).requires_grad_()
    with TokenPatch(sd1, [rows]):
        (gradient,) = torch.autograd.grad(encode_prompts(sd1, ["a <x> cat"]).square().sum(), [parameter])
    assert bool((gradient.abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize("word", ["cat", "Cat", "a", "x"])
def test_a_word_of_the_vocabulary_is_refused_as_a_placeholder(sd1: Any, word: str) -> None:
    with pytest.raises(InvalidPlaceholderError) as caught:
        TokenPatch(sd1, [make_rows(sd1, word)]).attach()
    assert word in caught.value.message
    assert caught.value.hint is not None


def test_a_placeholder_is_attached_once_and_freed_when_it_leaves(sd1: Any) -> None:
    with TokenPatch(sd1, [make_rows(sd1, "<x>")]):
        with pytest.raises(IncompatibleError, match="attached"):
            TokenPatch(sd1, [make_rows(sd1, "<X>")]).attach()
        assert len(list_ids(sd1.tokenizer, "<x>")) == 3
    with TokenPatch(sd1, [make_rows(sd1, "<x>")]):
        assert len(list_ids(sd1.tokenizer, "<x>")) == 3


def test_two_patches_come_out_in_any_order(sd1: Any) -> None:
    own = sd1.tokenizer
    first = TokenPatch(sd1, [make_rows(sd1, "<x>")]).attach()
    second = TokenPatch(sd1, [make_rows(sd1, "<y>", seed=8)]).attach()
    both = render(sd1, "a <x> and a <y>")
    first.detach()
    assert sd1.tokenizer is not own
    assert len(list_ids(sd1.tokenizer, "<y>")) == 3
    assert not torch.equal(render(sd1, "a <x> and a <y>"), both)
    second.detach()
    assert sd1.tokenizer is own


def test_rows_of_another_width_are_refused(sd1: Any, sdxl: Any) -> None:
    rows = make_rows(sdxl, "<x>")
    narrow = {name: values[:, :-1] for name, values in rows.rows.items()}
    with pytest.raises(IncompatibleError, match="takes"):
        TokenPatch(sd1, [type(rows)(rows.placeholder, narrow)]).attach()
    assert "placeholder_ids" not in vars(sd1.tokenizer)


def test_strength_moves_a_row_from_its_superclass_to_itself_and_beyond() -> None:
    rows, anchor = torch.tensor([[1.0, 3.0]]), torch.tensor([1.0, 1.0])
    assert blend_rows(rows, anchor, 0.0).tolist() == [[1.0, 1.0]]
    assert blend_rows(rows, anchor, 1.0).tolist() == [[1.0, 3.0]]
    assert blend_rows(rows, anchor, 1.5).tolist() == [[1.0, 4.0]]
    assert blend_rows(rows, None, 0.5).tolist() == [[0.5, 1.5]]
