"""The picture of conflicts, read back pixel by pixel."""

from __future__ import annotations

import pytest

from conceptry.composer.blocks import name_block
from conceptry.composer.conflicts import Conflict, LayerConflict
from conceptry.evaluation.conflict_sheets import choose_color, draw_conflicts


def make_conflict(second: str, overlap: float, cosine: float) -> Conflict:
    layer = LayerConflict(
        module="unet.mid_block.attentions.0.to_q",
        cosine=cosine,
        energy_ratio=1.0,
        input_overlap=overlap,
        output_overlap=1.0,
        balance=1.0,
    )
    return Conflict(
        first="me/imp@1.0.0",
        second=second,
        layers=(layer,),
        cosine=cosine,
        energy_ratio=1.0,
        input_overlap=overlap,
        output_overlap=1.0,
        balance=1.0,
        gates=(),
        words=(),
        advice=(),
    )


def test_each_pair_has_a_row_the_worst_first_in_the_color_of_its_overlap() -> None:
    sheet = draw_conflicts([make_conflict("me/a@1.0.0", 2.0, 0.1), make_conflict("me/b@1.0.0", 20.0, -0.5)])
    rows = {
        overlap: [y for y in range(sheet.height) if sheet.getpixel((347, y)) == choose_color(overlap, cosine)]
        for overlap, cosine in ((2.0, 0.1), (20.0, -0.5))
    }
    assert rows[20.0]
    assert rows[2.0]
    assert rows[20.0][-1] < rows[2.0][0]


def test_color_is_white_at_chance_and_tells_reinforcing_from_cancelling() -> None:
    assert choose_color(1.0, 0.5) == (255, 255, 255)
    red, _, blue = choose_color(8.0, 0.5)
    assert red > blue
    red, _, blue = choose_color(8.0, -0.5)
    assert red < blue


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "unet.down_blocks.1"),
        ("unet.mid_block.attentions.0.proj_in", "unet.mid_block"),
        ("unet.conv_in", "unet.conv_in"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder.layers.3"),
        ("transformer.single_transformer_blocks.12.attn.to_q", "transformer.single_transformer_blocks.12"),
        ("transformer.transformer_blocks.2.attn.to_q", "transformer.transformer_blocks.2"),
    ],
)
def test_a_module_lies_in_its_block(module: str, block: str) -> None:
    assert name_block(module) == block
