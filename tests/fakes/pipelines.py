"""Pipelines of the real classes in the shape of SD1.5, SD2 and SDXL, with widths of a few dozen and random weights."""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Shape = Literal["sd1", "sd2", "sdxl"]

WORDS = (
    "a", "an", "the", "of", "in", "on", "and", "with", "one", "its", "own", "photo", "picture", "close", "drawing",
    "scene", "style", "cat", "dog", "creature", "house", "red", "blue", "grass", "beach", "painting",
)  # fmt: skip
MAX_TOKENS = 24


def make_tokenizer(max_tokens: int = MAX_TOKENS, *, pads_with_eos: bool = True) -> CLIPTokenizer:
    """Returns a CLIP tokenizer that knows every byte and a few words."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            parts = ["".join(pair), *parts[2:]]
            if pair not in merges:
                merges.append(pair)
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    pad = tokens[-1] if pads_with_eos else "!"
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens, pad_token=pad)


def make_text_config(
    vocab_size: int, width: int, *, eos_token_id: int = 2, layers: int = 2
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        eos_token_id=eos_token_id,
        bos_token_id=0,
        pad_token_id=1,
    )


def make_unet(shape: Shape, context: int, pooled: int = 0) -> UNet2DConditionModel:
    common: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": context,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    if shape == "sd1":
        return UNet2DConditionModel(**common, attention_head_dim=2)
    if shape == "sd2":
        return UNet2DConditionModel(**common, attention_head_dim=(2, 4), use_linear_projection=True)
    return UNet2DConditionModel(
        **common,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled,
    )


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )


def make_pipeline(shape: Shape = "sd1", *, seed: int = 0) -> Any:
    """Returns a pipeline that makes 16-pixel pictures on a processor in milliseconds."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = _make_sdxl() if shape == "sdxl" else _make_sd(shape)
        for part in (pipeline.unet, *_text_encoders(pipeline)):
            _amplify(part)
    pipeline.set_progress_bar_config(disable=True)
    render(pipeline, "a", steps=1)  # at its first use transformers puts in hooks of its own, for good
    return pipeline


def _make_sd(shape: Shape) -> Any:
    tokenizer = make_tokenizer()
    width = 24 if shape == "sd1" else 32
    eos = 2 if shape == "sd1" else tokenizer.eos_token_id
    scheduler = DDIMScheduler(
        prediction_type="epsilon" if shape == "sd1" else "v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(make_text_config(len(tokenizer), width, eos_token_id=eos)).eval(),
        tokenizer=tokenizer,
        unet=make_unet(shape, width).eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _make_sdxl() -> Any:
    tokenizer = make_tokenizer()
    tokenizer_2 = make_tokenizer(pads_with_eos=False)
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(make_text_config(len(tokenizer), 24, layers=3)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(make_text_config(len(tokenizer), 40, layers=3)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=make_unet("sdxl", 64, pooled=40).eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        add_watermarker=False,
    )


def _text_encoders(pipeline: Any) -> list[torch.nn.Module]:
    names = ("text_encoder", "text_encoder_2")
    return [getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None]


@torch.no_grad()
def _amplify(part: torch.nn.Module) -> None:
    """Makes the random weights of attention large enough that the prompt changes the picture."""
    for name, parameter in part.named_parameters():
        if "attn" in name or "embedding" in name:
            parameter.mul_(4.0)


def render(
    pipeline: Any, prompt: str | list[str], *, seed: int = 0, steps: int = 2, guidance: float = 3.0
) -> torch.Tensor:
    """Returns latents [pictures, 4, 8, 8] for the prompt: what a change anywhere would change."""
    count = 1 if isinstance(prompt, str) else len(prompt)
    generator = [torch.Generator().manual_seed(seed + index) for index in range(count)]
    result = pipeline(
        prompt,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generator,
        output_type="latent",
    )
    images: torch.Tensor = result.images
    return images


def snapshot(pipeline: Any, *, with_settings: bool = True) -> dict[str, Any]:
    """Returns all that detaching must give back: each tensor's bytes, the tokenizers, processors and hooks.

    The padding and truncation of a tokenizer's last call are part of its state; a test that calls it leaves them out.
    """
    state: dict[str, Any] = {}
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            for key, value in [*part.named_parameters(), *part.named_buffers()]:
                identity = (value.dtype, value.requires_grad, id(value), value.data_ptr())
                state[f"{name}.{key}"] = (*identity, value.detach().clone())
            state[f"{name}#hooks"] = _count_hooks(part)
            state[f"{name}#processors"] = {k: id(v) for k, v in getattr(part, "attn_processors", {}).items()}
        elif name.startswith("tokenizer") and part is not None:
            backend = json.loads(part.backend_tokenizer.to_str())
            for setting in () if with_settings else ("padding", "truncation"):
                del backend[setting]
            state[name] = (id(part), backend, dict(part.get_vocab()), sorted(vars(part)))
    state["config"] = {name: pipeline.config[name] for name in pipeline.components}
    return state


def _count_hooks(part: torch.nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._forward_hooks_with_kwargs)
        for module in part.modules()
    )


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    for key, old in before.items():
        new = after[key]
        if isinstance(old, tuple) and isinstance(old[-1], torch.Tensor):
            assert old[:-1] == new[:-1], key
            assert torch.equal(old[-1], new[-1]), key
        else:
            assert old == new, key
