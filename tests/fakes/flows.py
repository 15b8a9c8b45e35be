"""SD3, Flux, Qwen-Image, Wan and Z-Image in their published configurations: two blocks, narrow, random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.fakes.pipelines import make_text_config, make_tokenizer

WIDTH: Final = 32
_TOKENS: Final = 64


def _make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _make_sd3() -> Any:
    """Without the third text encoder, as it is often run."""
    tokenizer = make_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=48,
            out_channels=16,
            pos_embed_max_size=192,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_make_vae(),
        text_encoder=CLIPTextModelWithProjection(make_text_config(len(tokenizer), 24)).eval(),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(make_text_config(len(tokenizer), 24)).eval(),
        tokenizer_2=make_tokenizer(pads_with_eos=False),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _make_flux() -> Any:
    tokenizer = make_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=1
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_make_vae(),
        text_encoder=CLIPTextModel(make_text_config(len(tokenizer), 24)).eval(),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(config).eval(),
        tokenizer_2=make_tokenizer(_TOKENS),
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=24,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
    )


def _make_qwen_image() -> Any:
    tokenizer = make_tokenizer(_TOKENS)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=16, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False]
        ).eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
    )


def _make_wan() -> Any:
    tokenizer = make_tokenizer(_TOKENS)
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=1
    )
    return WanPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKLWan(
            base_dim=8, z_dim=16, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False]
        ).eval(),
        text_encoder=UMT5EncoderModel(config).eval(),
        tokenizer=tokenizer,
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=64,
            num_layers=2,
        ).eval(),
    )


def _make_z_image() -> Any:
    tokenizer = make_tokenizer(_TOKENS)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_make_vae(),
        text_encoder=Qwen3Model(config).eval(),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=16,
            dim=64,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=4,
            n_kv_heads=4,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[1536, 512, 512],
        ).eval(),
    )


_MAKERS: Final[Mapping[str, Callable[[], Any]]] = {
    "sd3": _make_sd3,
    "flux": _make_flux,
    "qwen_image": _make_qwen_image,
    "wan": _make_wan,
    "z_image": _make_z_image,
}
FAMILIES: Final = ("sd3", "flux", "qwen_image", "z_image")
"""Those that are trained here."""


def make_flow_pipeline(family: str, *, seed: int = 0) -> Any:
    """Returns a pipeline of ``family`` whose latents are half as wide and high as its pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = _MAKERS[family]()
        with torch.no_grad():
            for parameter in pipeline.transformer.parameters():
                if not bool(parameter.any()):  # published transformers begin with zeros where a flow is shut
                    torch.nn.init.normal_(parameter, std=0.02)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_PUBLISHED: Final[Mapping[str, Callable[[], Any]]] = {
    # Where nothing is said, the defaults of diffusers are the published numbers: FLUX.1-dev, SD3 medium, Qwen-Image,
    # Wan 2.1 14B, Z-Image.
    "flux": lambda: FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True),
    "sd3": lambda: SD3Transformer2DModel(
        num_layers=2,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=192,
    ),
    "qwen_image": lambda: QwenImageTransformer2DModel(num_layers=2),
    "wan": lambda: WanTransformer3DModel(num_layers=2),
    "z_image": lambda: ZImageTransformer2DModel(n_layers=2),
}


def make_published_pipeline(family: str, *, seed: int = 0) -> Any:
    """Returns a pipeline whose transformer has two blocks of the published size; its other parts stay narrow."""
    pipeline = make_flow_pipeline(family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = _PUBLISHED[family]().eval()
        with torch.no_grad():
            for parameter in transformer.parameters():
                if not bool(parameter.any()):
                    torch.nn.init.normal_(parameter, std=0.02)
    pipeline.register_modules(transformer=transformer)
    return pipeline
