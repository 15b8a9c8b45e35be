"""The blocks of a network, by which strengths are set and conflicts are shown: ``unet.down_blocks.1``."""

from __future__ import annotations

import re
from typing import Final

# A list of blocks and a number, or a block that there is one of.
_BLOCK: Final = re.compile(
    r"(?P<component>[a-z0-9_]+)\.(?:text_model\.)?(?:encoder\.|decoder\.)?"
    r"(?P<block>[a-z_]*(?:blocks|layers|resnets|attentions)\.\d+|mid_block|[a-z0-9_]+)",
    re.ASCII,
)


def name_block(module: str) -> str:
    """Returns the block that ``component.module`` lies in; the component where nothing tells.

    A UNet has ``unet.down_blocks.1``, ``unet.mid_block`` and ``unet.up_blocks.2``; a text encoder
    ``text_encoder.layers.3``; a transformer ``transformer.transformer_blocks.12``.
    """
    match = _BLOCK.match(module)
    return module.partition(".")[0] if match is None else f"{match['component']}.{match['block']}"
