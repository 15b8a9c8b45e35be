"""The tensors that each algorithm of the LoRA family writes for a weight, and how each program calls the module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from tests.formats.networks import Shape

Shapes = Mapping[str, Shape]
"""What stands behind the module's name -> shape."""


def lora(shape: Shape, rank: int, ends: tuple[str, str] = (".lora_down.weight", ".lora_up.weight")) -> Shapes:
    ones = (1,) * len(shape[2:])
    return {ends[0]: (rank, *shape[1:]), ends[1]: (shape[0], rank, *ones)}


def with_alpha(shape: Shape, rank: int) -> Shapes:
    return {**lora(shape, rank), ".alpha": ()}


def peft(shape: Shape, rank: int) -> Shapes:
    return lora(shape, rank, (".lora_A.weight", ".lora_B.weight"))


def tucker(shape: Shape, rank: int) -> Shapes:
    if len(shape) == 2 or shape[2:] == (1, 1):
        return with_alpha(shape, rank)
    return {
        ".lora_down.weight": (rank, shape[1], 1, 1),
        ".lora_up.weight": (shape[0], rank, 1, 1),
        ".lora_mid.weight": (rank, rank, *shape[2:]),
        ".alpha": (),
    }


def loha(shape: Shape, rank: int) -> Shapes:
    inputs = math.prod(shape[1:])
    halves = {f".hada_w{n}_a": (shape[0], rank) for n in (1, 2)} | {
        f".hada_w{n}_b": (rank, inputs) for n in (1, 2)
    }
    return {**halves, ".alpha": ()}


def lokr(shape: Shape, rank: int) -> Shapes:
    a, b = (next(n for n in (4, 2, 1) if size % n == 0) for size in shape[:2])
    c, d = shape[0] // a, shape[1] // b
    return {
        ".lokr_w1": (a, b),
        ".lokr_w2_a": (c, rank),
        ".lokr_w2_b": (rank, d * math.prod(shape[2:])),
        ".alpha": (),
    }


def dora_out(shape: Shape, rank: int) -> Shapes:
    return {**with_alpha(shape, rank), ".dora_scale": (shape[0], *(1,) * (len(shape) - 1))}


def dora_in(shape: Shape, rank: int) -> Shapes:
    return {**with_alpha(shape, rank), ".dora_scale": (1, shape[1], *(1,) * (len(shape) - 2))}


def full(shape: Shape, rank: int) -> Shapes:
    return {".diff": shape, ".diff_b": (shape[0],)}


def norm(shape: Shape, rank: int) -> Shapes:
    return {".w_norm": shape, ".b_norm": shape}


def glora(shape: Shape, rank: int) -> Shapes:
    ones = (1,) * len(shape[2:])
    return {
        ".a1.weight": (shape[1], rank, *ones),
        ".a2.weight": (rank, shape[1], *ones),
        ".b1.weight": (shape[0], rank, *ones),
        ".b2.weight": (rank, shape[1], *shape[2:]),
        ".alpha": (),
    }


def ia3(shape: Shape, rank: int) -> Shapes:
    return {
        ".weight": (1, shape[0], *(1,) * len(shape[2:])) if len(shape) == 4 else (shape[0],),
        ".on_input": (),
    }


def oft(shape: Shape, rank: int) -> Shapes:
    block = next(n for n in (32, 16, 8, 4, 2, 1) if shape[0] % n == 0)
    return {".oft_blocks": (shape[0] // block, block, block), ".alpha": ()}


def boft(shape: Shape, rank: int) -> Shapes:
    block = next(n for n in (8, 4, 2, 1) if shape[0] % n == 0)
    return {".oft_blocks": (2, shape[0] // block, block, block), ".alpha": ()}


def old_processors(shape: Shape, rank: int) -> Shapes:
    return lora(shape, rank, ("_lora.down.weight", "_lora.up.weight"))


def old_text(shape: Shape, rank: int) -> Shapes:
    return lora(shape, rank, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"))


ALGORITHMS: Mapping[str, Callable[[Shape, int], Shapes]] = {
    "lora": with_alpha,
    "tucker": tucker,
    "loha": loha,
    "lokr": lokr,
    "dora_out": dora_out,
    "dora_in": dora_in,
    "full": full,
    "glora": glora,
    "ia3": ia3,
    "oft": oft,
    "boft": boft,
}


def write(
    modules: Mapping[str, Shape],
    spell: Callable[[str], str],
    make: Callable[[Shape, int], Shapes],
    rank: int = 4,
) -> dict[str, Shape]:
    """Returns the tensors of an adapter for ``modules``: names and shapes."""
    return {
        spell(name) + end: size for name, shape in modules.items() for end, size in make(shape, rank).items()
    }


# --- names ---------------------------------------------------------------------------------------------------------


def flatten(prefixes: Mapping[str, str]) -> Callable[[str], str]:
    """Returns what writes the dots of a path as underscores behind a prefix for its component."""

    def spell(name: str) -> str:
        component, _, path = name.partition(".")
        return prefixes[component] + path.replace(".", "_")

    return spell


def replace(prefixes: Mapping[str, str]) -> Callable[[str], str]:
    """Returns what writes a path as it is behind a prefix for its component."""

    def spell(name: str) -> str:
        component, _, path = name.partition(".")
        return prefixes[component] + path

    return spell


KOHYA_ONE: Mapping[str, str] = {"unet": "lora_unet_", "text_encoder": "lora_te_", "te": "lora_te_"}
KOHYA_TWO: Mapping[str, str] = {
    "unet": "lora_unet_",
    "transformer": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "te1": "lora_te1_",
    "te2": "lora_te2_",
}
ONETRAINER: Mapping[str, str] = {**KOHYA_TWO, "transformer": "lora_transformer_"}
LYCORIS: Mapping[str, str] = dict.fromkeys(("unet", "transformer", "text_encoder"), "lycoris_")
DIFFUSERS: Mapping[str, str] = {
    name: f"{name}." for name in ("unet", "transformer", "text_encoder", "text_encoder_2")
}
PEFT: Mapping[str, str] = dict.fromkeys(DIFFUSERS, "base_model.model.")
COMFYUI: Mapping[str, str] = {
    "unet": "diffusion_model.",
    "transformer": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "te1": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "te2": "text_encoders.clip_g.transformer.",
}


def spell_processors(name: str) -> str:
    """Returns ``unet.….attn1.processor.to_out`` for ``unet.….attn1.to_out.0``, as diffusers had it first."""
    path = name.removesuffix(".0")
    stem, _, layer = path.rpartition(".")
    return f"{stem}.processor.{layer}"


def pick(modules: Mapping[str, Shape], *parts: str) -> dict[str, Shape]:
    """Returns the modules whose names hold one of ``parts``."""
    return {name: shape for name, shape in modules.items() if any(part in name for part in parts)}


def of(modules: Mapping[str, Shape], components: Iterable[str]) -> dict[str, Shape]:
    """Returns the modules of some components."""
    wanted = tuple(f"{component}." for component in components)
    return {name: shape for name, shape in modules.items() if name.startswith(wanted)}
