"""A thousand files of all rows: names and shapes as programs write them, with what they are, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.formats import adapter_shapes as spelled
from tests.formats.adapters import list_modules
from tests.formats.networks import Shape, list_layers, list_weights

Make = Callable[[Shape, int], Mapping[str, Shape]]


@dataclass(frozen=True)
class Case:
    """One file: its tensors, and what it is; ``family`` is the base that it was made for."""

    shapes: Mapping[str, Shape]
    kind: str
    dialects: tuple[str | None, ...]
    family: str | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tellable: bool = True
    """Whether names and shapes fit no other family."""


def draw_cases(count: int, seed: int = 0) -> Iterator[Case]:
    """Returns ``count`` cases, each row of files as often as every other."""
    chance = random.Random(seed)
    for number in range(count):
        yield _DRAWS[number % len(_DRAWS)](chance)


# --- adapters ------------------------------------------------------------------------------------------------------

_UNETS = ("sd1", "sd2", "sdxl", "sdxl_refiner")
_TRANSFORMERS = ("flux", "sd3", "qwen_image", "wan", "z_image", "krea2", "flux2")
_RANKS = (1, 4, 8, 16, 32, 64, 128, 256)
_SUBSETS: Mapping[str, tuple[str, ...]] = {
    "everything": ("",),
    "attention": (".attn", ".self_attn", ".attention."),
    "cross-attention": ("attn2",),
    "linear layers": ("attn", "ff", "mlp", "feed_forward"),
}


def _choose(chance: random.Random, modules: Mapping[str, Shape]) -> dict[str, Shape]:
    return spelled.pick(modules, *chance.choice(list(_SUBSETS.values()))) or dict(modules)


def _can_tell(modules: Mapping[str, Shape], family: str) -> bool:
    """Whether a person could: cross-attention, a feed-forward block or ten blocks in one module tell, text does not."""
    if family in _UNETS:
        return any("attn2.to_k" in name or "attn2_to_k" in name for name in modules)
    return family in ("wan", "z_image", "krea2", "flux2", "sd3") or any(
        "img_mlp.net" in name or "single_transformer_blocks" in name for name in modules
    )


def _draw_kohya(chance: random.Random) -> Case:
    family = chance.choice(_UNETS)
    prefixes = spelled.KOHYA_ONE if family in ("sd1", "sd2") else spelled.KOHYA_TWO
    if family == "sdxl" and chance.random() < 0.7:
        modules = _choose(chance, list_modules("sdxl"))
    else:
        modules = _choose(chance, list_layers(family))
    algorithm = chance.choice(list(spelled.ALGORITHMS))
    shapes = spelled.write(
        modules, spelled.flatten(prefixes), spelled.ALGORITHMS[algorithm], chance.choice(_RANKS)
    )
    tellable = _can_tell(modules, family) and algorithm not in ("oft", "boft", "ia3")
    return Case(shapes, "lora", ("kohya",), family, tellable=tellable)


def _draw_dotted(dialect: str, prefixes: Mapping[str, str], make: Make) -> Callable[[random.Random], Case]:
    def draw(chance: random.Random) -> Case:
        family = chance.choice((*_UNETS, *_TRANSFORMERS))
        modules = list_layers(family)
        if dialect in ("peft", "ai_toolkit"):
            modules = spelled.of(modules, ["unet", "transformer"])
        chosen = _choose(chance, modules)
        shapes = spelled.write(chosen, spelled.replace(prefixes), make, chance.choice(_RANKS))
        return Case(shapes, "lora", (dialect,), family, tellable=_can_tell(chosen, family))

    return draw


def _draw_flat(
    dialect: str, prefixes: Mapping[str, str], make: Make, **metadata: str
) -> Callable[[random.Random], Case]:
    def draw(chance: random.Random) -> Case:
        family = chance.choice(_UNETS if dialect == "lycoris" else (*_UNETS, *_TRANSFORMERS))
        modules = list_layers(family)
        if dialect == "lycoris":
            modules = spelled.of(modules, ["unet"])
        chosen = _choose(chance, modules)
        shapes = spelled.write(chosen, spelled.flatten(prefixes), make, chance.choice(_RANKS))
        return Case(shapes, "lora", (dialect,), family, metadata, _can_tell(chosen, family))

    return draw


def _draw_old(chance: random.Random) -> Case:
    family = chance.choice(_UNETS)
    attention = spelled.pick(spelled.of(list_layers(family), ["unet"]), ".attn1", ".attn2")
    shapes = spelled.write(attention, spelled.spell_processors, spelled.old_processors, chance.choice(_RANKS))
    if chance.random() < 0.5:
        bare = {name.removeprefix("unet."): shape for name, shape in shapes.items()}
        return Case(bare, "lora", ("diffusers_bare",), family)
    return Case(shapes, "lora", ("diffusers_old",), family)


def _draw_xlabs(chance: random.Random) -> Case:
    rank = chance.choice(_RANKS)
    shapes: dict[str, Shape] = {}
    for block in range(chance.randint(2, 19)):
        for layer, outputs in (("qkv", 9216), ("proj", 3072)):
            for stream in (1, 2):
                stem = f"double_blocks.{block}.processor.{layer}_lora{stream}"
                shapes |= {f"{stem}.down.weight": (rank, 3072), f"{stem}.up.weight": (outputs, rank)}
    return Case(shapes, "lora", ("xlabs",), "flux", tellable=False)


# --- embeddings ----------------------------------------------------------------------------------------------------

_WORDS = ("<imp>", "<cat-toy>", "style-x", "*")


def _draw_embedding(chance: random.Random) -> Case:
    vectors = chance.randint(1, 75)
    narrow, wide, t5 = (vectors, 768), (vectors, 1280), (vectors, 4096)
    width, family = chance.choice([(768, "sd1"), (1024, "sd2")])
    one = (vectors, width)
    rows: list[tuple[Mapping[str, Shape], str, str, bool]] = [
        ({"emb_params": one}, "kohya_emb_params", family, width != 768),
        ({"emp_params": one}, "onetrainer_emp_params", family, width != 768),
        ({"string_to_param.*": one}, "a1111", family, width != 768),
        ({chance.choice(_WORDS): one}, "diffusers", family, width != 768),
        ({"clip_l": narrow, "clip_g": wide}, "sdxl_pair", "sdxl", False),
        (
            {"clip_l": narrow, "clip_g": wide, "clip_l_out": narrow, "clip_g_out": wide},
            "sdxl_pair",
            "sdxl",
            False,
        ),
        ({"clip_l": narrow, "clip_g": wide, "t5xxl": t5}, "sd3_triple", "sd3", True),
        ({"clip_l": narrow, "t5": t5}, "flux_pair", "flux", True),
        ({"clip_l": narrow}, "encoder_named", "flux", False),
        ({"text_encoders_0": narrow, "text_encoders_1": wide}, "pivotal", "sdxl", True),
        ({f"<imp>-{layer}": (768,) for layer in range(16)}, "p_plus", "sd1", True),
        ({"params.new_concept_embedding.<imp>": (16, 768)}, "ed_embedding", "sd1", True),
        ({"<s0>": (768,), "<s1>": (768,)}, "several", "sd1", False),
        ({"bundle_emb.imp.emb_params": one}, "bundle", family, width != 768),
    ]
    shapes, dialect, family, tellable = chance.choice(rows)
    return Case(shapes, "embedding", (dialect,), family, tellable=tellable)


def _draw_bundle(chance: random.Random) -> Case:
    family = chance.choice(("sd1", "sdxl"))
    modules = spelled.pick(list_layers(family), "attn2")
    prefixes = spelled.KOHYA_ONE if family == "sd1" else spelled.KOHYA_TWO
    shapes = spelled.write(modules, spelled.flatten(prefixes), spelled.with_alpha)
    if family == "sd1":
        return Case({**shapes, "bundle_emb.imp.string_to_param.*": (4, 768)}, "lora", ("kohya",), family)
    pair = {"bundle_emb.imp.clip_l": (4, 768), "bundle_emb.imp.clip_g": (4, 1280)}
    return Case({**shapes, **pair}, "lora", ("kohya",), family)


# --- what is no adapter --------------------------------------------------------------------------------------------


def _draw_custom_diffusion(chance: random.Random) -> Case:
    family = chance.choice(("sd1", "sd2", "sdxl"))
    layers = spelled.pick(spelled.of(list_layers(family), ["unet"]), "attn2.to_k", "attn2.to_v")
    shapes = {
        f"{stem.removeprefix('unet.')}.processor.{layer}_custom_diffusion.weight": shape
        for name, shape in layers.items()
        for stem, _, layer in [name.rpartition(".")]
    }
    return Case(shapes, "full", ("custom_diffusion",), family)


def _draw_compressed_difference(chance: random.Random) -> Case:
    family, rank = chance.choice(("sd1", "sd2")), chance.choice((3, 40))
    layers = spelled.pick(spelled.of(list_layers(family), ["unet"]), "attn2.to_k", "attn2.to_v")
    shapes: dict[str, Shape] = {"modifier_token.<new1>": (768 if family == "sd1" else 1024,)}
    for name, (outputs, inputs) in layers.items():
        shapes |= {f"{name}.weight.u": (outputs, rank), f"{name}.weight.v": (rank, inputs)}
    return Case(shapes, "lora", ("custom_diffusion_compressed",), family)


def _draw_model(chance: random.Random) -> Case:
    family = chance.choice(("sd1", "sdxl"))
    text = "cond_stage_model.transformer." if family == "sd1" else "conditioner.embedders.0.transformer."
    shapes: dict[str, Shape] = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
    for name, shape in list_modules("sdxl").items() if family == "sdxl" else list_weights("sd1").items():
        component, _, path = name.partition(".")
        if component == "unet" and family == "sdxl":
            shapes[f"model.diffusion_model.{path}.weight"] = shape
        elif component in ("te1", "text_encoder"):
            shapes[f"{text}{path}.weight"] = shape
    if family == "sd1":
        to_k = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        shapes |= {to_k: (320, 768), "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
    return Case(shapes, "full", ("checkpoint",), family)


def control_of_flux(rank: int = 128, doubles: int = 1, singles: int = 1) -> Mapping[str, Shape]:
    """Returns what the control adapters of Black Forest Labs hold: every layer, its bias, new norms, a wider input.

    The published ones have rank 128, 19 double and 38 single blocks.
    """
    hidden, wide = 3072, 12288
    layers: dict[str, tuple[int, int]] = {"img_in": (128, hidden), "txt_in": (4096, hidden)}
    for place, inputs in {"time_in": 256, "vector_in": 768, "guidance_in": 256}.items():
        layers |= {f"{place}.in_layer": (inputs, hidden), f"{place}.out_layer": (hidden, hidden)}
    layers |= {"final_layer.linear": (hidden, 64), "final_layer.adaLN_modulation.1": (hidden, 2 * hidden)}
    norms = []
    for stem in (
        f"double_blocks.{number}.{stream}" for number in range(doubles) for stream in ("img", "txt")
    ):
        layers |= {f"{stem}_attn.qkv": (hidden, 3 * hidden), f"{stem}_attn.proj": (hidden, hidden)}
        layers |= {f"{stem}_mlp.0": (hidden, wide), f"{stem}_mlp.2": (wide, hidden)}
        layers[f"{stem}_mod.lin"] = (hidden, 6 * hidden)
        norms.append(f"{stem}_attn")
    for stem in (f"single_blocks.{number}" for number in range(singles)):
        layers |= {f"{stem}.linear1": (hidden, 3 * hidden + wide), f"{stem}.linear2": (hidden + wide, hidden)}
        layers[f"{stem}.modulation.lin"] = (hidden, 3 * hidden)
        norms.append(stem)
    shapes: dict[str, Shape] = {}
    for path, (inputs, outputs) in layers.items():
        shapes |= {f"{path}.lora_A.weight": (rank, inputs), f"{path}.lora_B.weight": (outputs, rank)}
        shapes[f"{path}.lora_B.bias"] = (outputs,)
    return shapes | {f"{stem}.norm.{one}_norm.scale": (128,) for stem in norms for one in ("query", "key")}


def _draw_stranger(chance: random.Random) -> Case:
    width, family = chance.choice([(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    rows: list[tuple[str, str | None, str | None, Mapping[str, Shape]]] = [
        (
            "ip_adapter",
            None,
            family,
            {f"ip_adapter.{2 * n + 1}.to_{one}_ip.weight": (640, width) for n in range(16) for one in "kv"}
            | {"image_proj.proj.weight": (4 * width, 1024)},
        ),
        (
            "ip_adapter",
            None,
            family,
            {f"ip_adapter.{n}.to_{one}_ip.weight": (640, width) for n in range(16) for one in "kv"}
            | {f"ip_adapter.{n}.to_q_lora.down.weight": (128, 640) for n in range(16)},
        ),
        (
            "ip_adapter",
            "xlabs",
            "flux",
            {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (3072, 4096)},
        ),
        (
            "controlnet",
            None,
            family,
            {
                "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
                f"{block}.to_k.weight": (640, width),
                "controlnet_down_blocks.0.weight": (320, 320, 1, 1),
            },
        ),
        ("lora", "bfl_control", "flux", control_of_flux()),
        ("controlnet", None, None, {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}),
        ("control_lora", None, None, {"lora_controlnet": (), "input_blocks.1.0.in_layers.2.down": (64, 320)}),
        (
            "controlnet_lllite",
            None,
            None,
            {"lllite_unet_input_blocks_4_1_conditioning1.0.weight": (16, 3, 4, 4)},
        ),
        ("t2i_adapter", None, None, {"adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3)}),
        ("t2i_adapter", None, None, {"body.0.in_conv.weight": (320, 64, 1, 1)}),
        (
            "full",
            "svdiff",
            None,
            {f"{block}.to_k.weight.delta": (640,), f"{block}.to_v.weight.delta": (640,)},
        ),
        (
            "hypernetwork",
            "a1111",
            "sd1",
            {f"768.{n}.linear.{k}.weight": (768, 768) for n in (0, 1) for k in (0, 1)},
        ),
        (
            "rank_one",
            "lucidrains",
            "sd1",
            {
                "key_value_params.0.0": (1, 768),
                "key_value_params.0.1": (1, 320),
                "C_inv": (768, 768),
                "embed_params": (1, 768),
            },
        ),
        (
            "rank_one",
            "chendaryen",
            "sd1",
            {
                f"target_output.{block}.to_k.target_output": (77, 320),
                "target_input": (768,),
                "C_inv": (768, 768),
                "embedding.string_to_param.*": (1, 768),
            },
        ),
        (
            "lora",
            "lidb",
            family if width != 2048 else "sd1",
            {
                f"unet.{block}.{one}.lora.{part}": shape
                for one in ("to_k", "to_v")
                for part, shape in {
                    "weight_embedding": (240,),
                    "down_aux": (160, width if width != 2048 else 768),
                    "up_aux": (640, 80),
                    "aux_seed": (1,),
                }.items()
            },
        ),
        (
            "lidb",
            None,
            None,
            {"hypernetwork.encoder.weight": (9, 9), "down_aux_0": (160, 320), "up_aux_0": (320, 80)},
        ),
        ("component", None, family, {"conv_in.weight": (320, 4, 3, 3), f"{block}.to_k.weight": (640, width)}),
        ("unknown", None, None, {"covariance": (width, width)}),
        ("unknown", None, None, {f"some.network.{n}.weight": (64, 64) for n in range(50)}),
        ("unknown", None, None, {"lora_unet_of_nobody_7.lora_down.weight": (4, 999)}),
    ]
    kind, dialect, base, shapes = chance.choice(rows)
    return Case(shapes, kind, (dialect,), base)


_DRAWS: tuple[Callable[[random.Random], Case], ...] = (
    _draw_kohya,
    _draw_dotted("diffusers", spelled.DIFFUSERS, spelled.peft),
    _draw_dotted("peft", spelled.PEFT, spelled.peft),
    _draw_dotted("ai_toolkit", spelled.COMFYUI, spelled.peft),
    _draw_dotted("comfyui", spelled.COMFYUI, spelled.with_alpha),
    _draw_flat("lycoris", spelled.LYCORIS, spelled.loha),
    _draw_flat("onetrainer", spelled.ONETRAINER, spelled.dora_in, ot_branch="master"),
    _draw_old,
    _draw_xlabs,
    _draw_embedding,
    _draw_embedding,
    _draw_bundle,
    _draw_custom_diffusion,
    _draw_compressed_difference,
    _draw_model,
    _draw_stranger,
    _draw_stranger,
)


# --- the verdict ---------------------------------------------------------------------------------------------------


def judge_family(case: Case, family: str | None, reasons: tuple[str, ...], certain: bool) -> str:
    """Returns how an answer about the family stands: right, unsure (and said so), not told, or wrong."""
    unsure = any("unsure" in reason or "too" in reason.split() for reason in reasons)
    if family == case.family:
        return "right"
    if family is None:
        return "not told" if not case.tellable or case.family is None else "wrong"
    return "unsure" if unsure and not certain and not case.tellable else "wrong"
