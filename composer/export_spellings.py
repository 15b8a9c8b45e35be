"""The tensors of a pipeline's components under the names that Stable Diffusion was published with.

``from_single_file`` of diffusers translates them back; tests hold every name against its converters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from conceptry.errors import IncompatibleError

Named = Iterator[tuple[str, Tensor]]

# --- the denoiser --------------------------------------------------------------------------------------------------

_UNET_ENDS: Final = (
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_in.", "input_blocks.0.0."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
)
_RESNET: Final = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
)
_UNET_BLOCK: Final = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
_UNET_MIDDLE: Final = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def spell_unet(unet: Any) -> Named:
    """Returns the tensors of a denoiser under their first names. Raises IncompatibleError."""
    layers = unet.config.layers_per_block
    if not isinstance(layers, int):
        raise IncompatibleError("this denoiser has blocks of different lengths, which such files do not know")
    state = unet.state_dict()
    attended = {
        found[2]
        for name in state
        if (found := _UNET_BLOCK.match(name)) is not None and found[1] == "up" and found[3] == "attentions"
    }
    for name, value in state.items():
        yield _name_unet(name, layers, attended), value


def _name_unet(name: str, layers: int, attended: set[str]) -> str:
    middle = _UNET_MIDDLE.fullmatch(name)
    if middle is not None:
        is_resnet = middle[1] == "resnets"
        rest = _exchange_begin(middle[3], _RESNET) if is_resnet else middle[3]
        return f"middle_block.{2 * int(middle[2]) + (not is_resnet)}.{rest}"
    found = _UNET_BLOCK.fullmatch(name)
    if found is None:
        return _exchange_begin(name, _UNET_ENDS)
    way, block, sort, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    first = block * (layers + 1)
    if sort == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv.', 'op.', 1)}"
    if sort == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if found[2] in attended else 1}.{rest}"
    outer = f"input_blocks.{first + layer + 1}" if way == "down" else f"output_blocks.{first + layer}"
    return f"{outer}.1.{rest}" if sort == "attentions" else f"{outer}.0.{_exchange_begin(rest, _RESNET)}"


def _exchange_begin(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for begin, other in table:
        if name.startswith(begin):
            return other + name.removeprefix(begin)
    raise IncompatibleError(f"the base's {name!r} has no name in a checkpoint of one file")


def _exchange_all(name: str, table: tuple[tuple[str, str], ...]) -> str:
    found = name
    for pattern, replacement in table:
        found = re.sub(pattern, replacement, found)
    return found


# --- the autoencoder -----------------------------------------------------------------------------------------------

_VAE_ATTENTION: Final = (
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
)
_VAE_NAMES: Final = (
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
_VAE_BLOCK: Final = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(.+)")


def spell_vae(vae: Any) -> Named:
    """Returns the tensors of an autoencoder under their first names; matrices of its attention are 1 x 1 kernels."""
    last = len(vae.config.up_block_types) - 1
    for name, value in vae.state_dict().items():
        side, _, inner = name.partition(".mid_block.attentions.0.")
        if inner:
            spelled = f"{side}.mid.attn_1.{_exchange_begin(inner, _VAE_ATTENTION)}"
            yield spelled, value[:, :, None, None] if value.ndim == 2 else value
        else:
            yield _name_vae(name, last), value


def _name_vae(name: str, last: int) -> str:
    spelled = name
    block = _VAE_BLOCK.fullmatch(name)
    if block is not None:
        place = f"down.{block[2]}" if block[1] == "encoder" else f"up.{last - int(block[2])}"
        spelled = f"{block[1]}.{place}.{block[3]}"
    spelled = re.sub(
        r"\.mid_block\.resnets\.(\d+)\.", lambda match: f".mid.block_{int(match[1]) + 1}.", spelled
    )
    return _exchange_all(spelled, _VAE_NAMES)


# --- text encoders -------------------------------------------------------------------------------------------------

_TEXT_LEVEL: Final = "text_model."
_OPEN_CLIP: Final = (
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
)
_QUERY: Final = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)")


def spell_clip(encoder: Any) -> Named:
    """Returns the tensors of OpenAI's CLIP under the names of transformers' first versions."""
    for name, value in encoder.state_dict().items():
        yield _TEXT_LEVEL + name.removeprefix(_TEXT_LEVEL), value


def spell_open_clip(encoder: Any) -> Named:
    """Returns the tensors of an OpenCLIP text encoder under its own names: q, k and v in one, the projection turned."""
    state = {name.removeprefix(_TEXT_LEVEL): value for name, value in encoder.state_dict().items()}
    for name, value in state.items():
        query = _QUERY.fullmatch(name)
        if query is not None:
            begin, end = name.split(".q_proj.")
            both = torch.cat([value, *(state[f"{begin}.{other}_proj.{end}"] for other in "kv")])
            yield f"transformer.resblocks.{query[1]}.attn.in_proj_{end}", both
        elif name == "text_projection.weight":
            yield "text_projection", value.T
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            yield _exchange_all(name, _OPEN_CLIP), value
