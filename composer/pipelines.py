"""What the composer needs to know of a diffusers pipeline: its parts, their names, how it encodes text.

Names are those of the published files. transformers 5 dropped the ``text_model.`` level from CLIPTextModel, so names
are looked up with and without it, and written with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.compiled import unwrap_compiled
from conceptry.composer.loading import load_pipeline  # noqa: F401  # opening is asked for here
from conceptry.errors import IncompatibleError, InvalidPlaceholderError

Pipeline = Any
"""A diffusers pipeline: the library is not typed, its objects are checked where they are used."""

UNET: Final = ComponentName("unet")
_ENCODERS: Final = (
    ("text_encoder", "tokenizer"),
    ("text_encoder_2", "tokenizer_2"),
    ("text_encoder_3", "tokenizer_3"),
)
_TEXT_LEVEL: Final = "text_model."
_UNET_STAGES: Final = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """A text encoder of a pipeline and the attribute that holds its tokenizer."""

    component: ComponentName
    module: nn.Module
    tokenizer_name: str

    @property
    def inner(self) -> nn.Module:
        """The module that reads token ids and picks the pooled position from them."""
        inner = getattr(self.module, "text_model", None)
        return inner if isinstance(inner, nn.Module) else self.module

    @property
    def table(self) -> nn.Embedding:
        """The token embedding."""
        table = self.module.get_input_embeddings()  # type: ignore[operator]  # of transformers
        if not isinstance(table, nn.Embedding):
            raise IncompatibleError(f"{self.component} has no token embedding")
        return table


def list_text_encoders(pipeline: Pipeline) -> tuple[TextEncoder, ...]:
    """Returns the text encoders that are loaded, in the order in which their encodings are joined."""
    found = []
    for component, tokenizer_name in _ENCODERS:
        module = getattr(pipeline, component, None)
        if isinstance(module, nn.Module) and getattr(pipeline, tokenizer_name, None) is not None:
            found.append(TextEncoder(ComponentName(component), unwrap_compiled(module), tokenizer_name))
    return tuple(found)


def list_components(pipeline: Pipeline) -> dict[ComponentName, nn.Module]:
    """Returns the denoiser and the text encoders by name: the parts that concepts change."""
    parts: dict[ComponentName, nn.Module] = {}
    for name in ("unet", "transformer"):
        module = getattr(pipeline, name, None)
        if isinstance(module, nn.Module):
            parts[ComponentName(name)] = unwrap_compiled(module)
    for encoder in list_text_encoders(pipeline):
        parts[encoder.component] = encoder.module
    return parts


def get_component(pipeline: Pipeline, name: str) -> nn.Module:
    """Returns the denoiser or text encoder called ``name``. Raises IncompatibleError."""
    parts = list_components(pipeline)
    module = parts.get(ComponentName(name))
    if module is None:
        raise IncompatibleError(f"the pipeline has no component {name!r}", hint=f"it has {', '.join(parts)}")
    return module


# --- names inside a component --------------------------------------------------------------------------------------


def find_module(root: nn.Module, path: str) -> nn.Module | None:
    """Returns the module at ``path``, written as published files write it, or None."""
    for candidate in spell_paths(path):
        module: nn.Module | None = root
        for part in candidate.split("."):
            # Past getattr, which looks at parameters and buffers first: this is asked thousands of times.
            module = module._modules.get(part) if module is not None else None
        if module is not None:
            return module
    return None


def unwrap_layer(layer: nn.Module) -> Any:
    """Returns the layer itself: peft puts its own adapters around a layer and keeps the layer inside."""
    inner = layer._modules.get("base_layer")
    return layer if inner is None else inner


def find_place(root: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    """Returns the module that holds ``name`` as published files write it, and the name of the tensor there.

    A bias that the layer could have and lacks has a place too.
    """
    path, _, leaf = name.rpartition(".")
    found = find_module(root, path) if path else root
    module = None if found is None else unwrap_layer(found)
    if module is None or not (leaf in module._parameters or leaf in module._buffers):
        return None
    return module, leaf


def read_place(module: nn.Module, leaf: str) -> Tensor | None:
    """Returns the tensor that ``module`` holds as ``leaf`` now."""
    value = module._parameters.get(leaf)
    return module._buffers.get(leaf) if value is None else value


def find_tensor(root: nn.Module, name: str) -> Tensor | None:
    """Returns the parameter or buffer called ``name`` as published files write it, or None."""
    place = find_place(root, name)
    return None if place is None else read_place(*place)


def spell_paths(path: str) -> tuple[str, ...]:
    """Returns how ``path`` may be spelled in memory, the likelier way first."""
    if path.startswith(_TEXT_LEVEL):
        return (path, path.removeprefix(_TEXT_LEVEL))
    return (path, _TEXT_LEVEL + path)


def spell_published(root: nn.Module, name: str) -> str:
    """Returns ``name`` (of a module or tensor inside ``root``) as published files write it."""
    name = name.replace(".base_layer.", ".")
    is_clip = type(root).__name__.startswith("CLIPText")
    if is_clip and not name.startswith((_TEXT_LEVEL, "text_projection")):
        return _TEXT_LEVEL + name
    return name


def iter_state(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Returns the tensors of the component's state dict as they are called in memory, adapters of others left out."""
    for name, tensor in root.state_dict(keep_vars=True).items():
        if ".lora_" not in name and isinstance(tensor, Tensor):
            yield name, tensor


def iter_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Returns the same tensors under their published names."""
    for name, tensor in iter_state(root):
        yield spell_published(root, name), tensor


def iter_cross_attention(denoiser: nn.Module) -> Iterator[tuple[str, Any]]:
    """Returns (path, attention) of each cross-attention layer in the order of the forward pass."""
    found = [
        (name, module)
        for name, module in denoiser.named_modules()
        if name.endswith("attn2") and hasattr(module, "to_k") and hasattr(module, "to_v")
    ]
    order = {stage: position for position, stage in enumerate(_UNET_STAGES)}
    return iter(sorted(found, key=lambda row: order.get(row[0].split(".")[0], len(order))))


# --- text ----------------------------------------------------------------------------------------------------------


def get_device(pipeline: Pipeline) -> torch.device:
    """Returns where the pipeline computes."""
    device = getattr(pipeline, "_execution_device", None) or pipeline.device
    return torch.device(device)


def encode_prompts(pipeline: Pipeline, prompts: Sequence[str]) -> Float[Tensor, "prompts positions context"]:
    """Returns what cross-attention reads for each prompt, as the pipeline itself computes it."""
    encoded = pipeline.encode_prompt(
        prompt=list(prompts),
        device=get_device(pipeline),
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    context: Tensor = encoded[0]
    return context


def split_word(pipeline: Pipeline, word: str, tokenizer_name: str = "tokenizer") -> list[int]:
    """Returns the ids of ``word`` without the special tokens around it."""
    tokenizer = getattr(pipeline, tokenizer_name)
    return list(tokenizer(word, add_special_tokens=False)["input_ids"])


def find_last_token(pipeline: Pipeline, prompt: str, word: str) -> int:
    """Returns the position, in the encoded prompt, of the last token of ``word``'s last occurrence.

    Raises:
        InvalidPlaceholderError: if the word is not in the prompt, or beyond where it is cut off.
    """
    name = list_text_encoders(pipeline)[0].tokenizer_name  # SDXL's refiner has the second one alone
    tokenizer = getattr(pipeline, name)
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
    wanted = split_word(pipeline, word, name)
    for start in range(len(ids) - len(wanted), -1, -1):
        if wanted and ids[start : start + len(wanted)] == wanted:
            return start + len(wanted) - 1
    raise InvalidPlaceholderError(f"{word!r} is not among the tokens of {prompt[:80]!r}")
