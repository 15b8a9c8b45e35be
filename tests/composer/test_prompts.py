"""Prompts as people write them elsewhere: read into words, weights and names, or refused with what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptry.bases import ComponentName
from conceptry.composer.emphasis import emphasized, join_pieces
from conceptry.composer.pipelines import encode_prompts, list_text_encoders
from conceptry.composer.prompts import Piece, Tag, find_tags, parse_weights, replace_tags
from conceptry.composer.tokens import TokenPatch, TokenRows
from conceptry.errors import UsageError
from conceptry.names import Placeholder


def test_plain_words_stay_as_they_were_written() -> None:
    assert parse_weights("a  photo, of <imp>: red ") == (Piece("a  photo, of <imp>: red "),)
    assert parse_weights("") == ()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(red) [blue]", [("red", 1.1), (" ", 1), ("blue", 1 / 1.1)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("(a (red:1.5) cat:2)", [("a ", 2), ("red", 3), (" cat", 2)]),
        (r"saber \(fate\), (red:.5)", [("saber (fate), ", 1), ("red", 0.5)]),
        ("a (red cat", [("a ", 1), ("red cat", 1.1)]),
        ("smile :) (red:0)", [("smile :) ", 1), ("red", 0)]),
    ],
)
def test_brackets_weigh_words_as_in_a1111(text: str, pieces: list[tuple[str, float]]) -> None:
    found = parse_weights(text)
    assert [piece.text for piece in found] == [words for words, _ in pieces]
    assert [piece.weight for piece in found] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cat:dog:0.5]", "changes the prompt with the step"),
        ("a [cat:8]", "changes the prompt with the step"),
        ("a [cat|dog]", "changes the prompt with the step"),
        ("a cat AND a dog", "AND joins prompts"),
        ("a cat BREAK a dog", "BREAK joins prompts"),
        ("(cat:99999)", "a word is weighted by 99999"),
        ("(" * 40 + "cat", "nested deeper"),
    ],
)
def test_what_is_not_done_here_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        parse_weights(text)


@given(st.text(max_size=60) | st.text(alphabet="()[]\\:1.|a ", max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        pieces = parse_weights(text)
    except UsageError:
        return
    assert all(piece.text for piece in pieces)
    assert len("".join(piece.text for piece in pieces)) <= len(text)


def test_tags_name_concepts_and_leave_the_words() -> None:
    text = "a cat <lora:my look:0.8>, embedding:easy-bad, <lyco:ns/imp>"
    assert find_tags(text) == (
        Tag("lora", "my look", 0.8),
        Tag("lora", "ns/imp"),
        Tag("embedding", "easy-bad"),
    )
    assert replace_tags(text, {"easy-bad": "<bad>"}.__getitem__) == "a cat , <bad>,"
    assert find_tags("<lora:a:0.5:0.5>") == (Tag("lora", "a", 0.5),)
    assert find_tags("a cat <hypernet:ink:0.4>") == (Tag("hypernetwork", "ink", 0.4),)
    assert replace_tags("a cat <hypernet:ink:0.4>", str) == "a cat"
    assert [str(tag) for tag in find_tags("<hypernet:ink:0.4> <lyco:a> embedding:b")] == [
        "<hypernet:ink:0.4>",
        "<lora:a:1>",
        "embedding:b",
    ]
    assert replace_tags("a  cat <imp>", str) == "a  cat <imp>"


@pytest.mark.parametrize(
    "tag", ["<lora:a:0.8:0.5>", "<lora:a:lbw=NONE>", "<lora::1>", "<hypernet:a:1:2>", "<lora:a:99>"]
)
def test_a_tag_that_asks_for_more_is_refused_with_a_hint(tag: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_tags(tag)
    assert caught.value.hint


# --- what a text encoder says ---------------------------------------------------------------------------------------


def weigh(states: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Returns the states by A1111's rule, written down once more: times weights, then back to the old mean."""
    full = torch.ones(states.shape[0], dtype=torch.float64)
    full[1 : 1 + len(weights)] = torch.tensor(weights, dtype=torch.float64)
    wide = states.double()
    scaled = wide * full[:, None]
    if wide.mean().abs() < 1e-3 * wide.square().mean().sqrt():
        return scaled  # nothing but rounding
    return scaled * (wide.mean() / scaled.mean())


def test_weighted_words_are_multiplied_and_the_mean_stays(sd1: Any) -> None:
    pieces, negative = parse_weights("a (red:1.5) cat"), parse_weights("a dog")
    plain = encode_prompts(sd1, ["a red cat", "a dog"])
    with emphasized(sd1, pieces, negative):
        found = encode_prompts(sd1, [join_pieces(pieces), join_pieces(negative)])
    torch.testing.assert_close(found[0].double(), weigh(plain[0], [1, 1.5, 1]), rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], plain[1])
    assert torch.equal(encode_prompts(sd1, ["a red cat", "a dog"]), plain)


def test_both_encoders_of_sdxl_are_weighed_and_the_pooled_text_is_not(sdxl: Any) -> None:
    options = {
        "device": torch.device("cpu"),
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    plain = sdxl.encode_prompt(prompt="a red cat", **options)
    pieces = parse_weights("a red (cat:0.5)")
    with emphasized(sdxl, pieces):
        found = sdxl.encode_prompt(prompt=join_pieces(pieces), **options)
    expected = torch.cat([weigh(part, [1, 1, 0.5]) for part in plain[0][0].split([24, 40], dim=-1)], dim=-1)
    torch.testing.assert_close(found[0][0].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[2], plain[2])


def test_the_words_of_a_concept_are_weighed_with_all_their_vectors(sd1: Any) -> None:
    rows = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    token = TokenRows(Placeholder("<imp>"), {ComponentName("text_encoder"): rows})
    patch = TokenPatch(sd1, [token])
    patch.attach()
    try:
        plain = encode_prompts(sd1, ["a <imp> cat"])[0]
        with emphasized(sd1, parse_weights("a (<imp>:2) cat")):
            found = encode_prompts(sd1, ["a <imp> cat"])
            assert patch.log.find(found) == [frozenset({"<imp>"})]
    finally:
        patch.detach()
    torch.testing.assert_close(found[0].double(), weigh(plain, [1, 2, 2, 2, 1]), rtol=1e-5, atol=1e-6)


def test_the_same_words_with_other_weights_as_the_negative_prompt_are_refused(sd1: Any) -> None:
    with (
        pytest.raises(UsageError, match="the same words"),
        emphasized(sd1, parse_weights("a (cat:1.2)"), parse_weights("a cat")),
    ):
        pass


@pytest.mark.parametrize("is_old", [True, False], ids=["the greatest id", "the id of the end"])
def test_pooled_text_is_read_at_the_true_end_however_many_vectors_stand_before_it(
    sdxl: Any, is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {}
    for encoder in list_text_encoders(sdxl):
        tokenizer = getattr(sdxl, encoder.tokenizer_name)
        if not is_old:
            monkeypatch.setattr(encoder.inner, "eos_token_id", tokenizer.eos_token_id)
        ids = tokenizer("red cat blue", add_special_tokens=False)["input_ids"]
        rows[encoder.component] = encoder.table.weight[ids].detach().clone()
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    pooled = sdxl.encode_prompt(prompt="a red cat blue on grass", **options)[2]
    with TokenPatch(sdxl, [TokenRows(Placeholder("<x>"), rows)]):
        found = sdxl.encode_prompt(prompt="a <x> on grass", **options)[2]
        assert torch.equal(found, pooled)
        pieces = parse_weights("a (<x>:1.4) on grass")
        with emphasized(sdxl, pieces):
            assert torch.equal(sdxl.encode_prompt(prompt=join_pieces(pieces), **options)[2], pooled)
