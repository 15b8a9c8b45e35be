"""The training loop that the field copies, written anew from its description (research/trainers.md, sections 2 and 3).

One concept at a time; every step opens and resizes its pictures, encodes them with the autoencoder and encodes each
prompt of the batch; the loss is read back at every step. Textual inversion makes the whole token table a parameter and
copies all other rows back after each update; LoRA is PEFT's. It is given the same optimiser, rate, attention and
thread as ours.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRun:
    """What the loop is to do. ``marks`` are the numbers of samples after which the values are looked at."""

    pictures: Sequence[Path]
    prompts: Sequence[str]
    batch_size: int
    learning_rate: float
    marks: Sequence[int]
    side_pixels: int
    seed: int = 0


@dataclass(slots=True)
class Marked:
    """The learned values and the seconds of training at one mark."""

    samples: int
    seconds: float
    values: dict[str, Tensor] = field(default_factory=dict)


def open_pixels(path: Path, side_pixels: int) -> Tensor:
    """Returns a picture as the autoencoder reads it, decoded and resized at every call."""
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((side_pixels, side_pixels), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)


def train_plainly(
    pipeline: Any, run: PlainRun, parameters: Sequence[nn.Parameter], hooks: tuple[Any, Any]
) -> list[Marked]:
    """Returns the values at each mark. ``hooks`` are what is done after an update, and what reads the values."""
    after_step, read_values = hooks
    torch.manual_seed(run.seed)
    chance = random.Random(run.seed)
    noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimizer = torch.optim.AdamW(parameters, lr=run.learning_rate, weight_decay=0.0)
    marked: list[Marked] = []
    samples, spent, started = 0, 0.0, time.perf_counter()
    for mark in run.marks:
        while samples < mark:
            _make_step(pipeline, run, noise_schedule, (optimizer, chance))
            after_step()
            samples += run.batch_size
        spent += time.perf_counter() - started
        marked.append(Marked(samples, spent, read_values()))
        started = time.perf_counter()
    return marked


def _make_step(pipeline: Any, run: PlainRun, schedule: Any, state: tuple[Any, random.Random]) -> float:
    optimizer, chance = state
    chosen = [chance.choice(run.pictures) for _ in range(run.batch_size)]
    pixels = torch.stack([open_pixels(path, run.side_pixels) for path in chosen])
    with torch.no_grad():
        clean = pipeline.vae.encode(pixels).latent_dist.sample() * pipeline.vae.config.scaling_factor
    noise = torch.randn_like(clean)
    timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(clean),))
    noisy = schedule.add_noise(clean, noise, timesteps)
    texts = [chance.choice(run.prompts) for _ in range(run.batch_size)]
    ids = pipeline.tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=pipeline.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    states = pipeline.text_encoder(ids)[0]
    answer = pipeline.unet(noisy, timesteps, encoder_hidden_states=states).sample
    is_velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(clean, noise, timesteps) if is_velocity else noise
    loss = F.mse_loss(answer.float(), target.float())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


# --- the two methods -----------------------------------------------------------------------------------------------


def invert_plainly(
    pipeline: Any, run: PlainRun, *, placeholder: str, word: str, vectors: int
) -> list[Marked]:
    """Returns the rows of ``placeholder`` under ``rows`` at each mark."""
    names = [placeholder] + [f"{placeholder[:-1]}_{number}>" for number in range(1, vectors)]
    pipeline.tokenizer.add_tokens(names)
    encoder = pipeline.text_encoder
    encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    ids = pipeline.tokenizer.convert_tokens_to_ids(names)
    start = pipeline.tokenizer(word, add_special_tokens=False).input_ids[0]
    generator = torch.Generator().manual_seed(run.seed)
    with torch.no_grad():
        for place, number in enumerate(ids):
            spread = 0.1 * table.std() * torch.randn(table.shape[1], generator=generator)
            table[number] = table[start] + (spread if place else 0)
    table.requires_grad_(True)
    original = table.detach().clone()
    kept = torch.ones(len(table), dtype=torch.bool)
    kept[ids] = False

    def restore() -> None:
        with torch.no_grad():
            table[kept] = original[kept]

    called = tuple(prompt.replace(placeholder, " ".join(names)) for prompt in run.prompts)
    spoken = PlainRun(**{**{name: getattr(run, name) for name in run.__slots__}, "prompts": called})
    return train_plainly(pipeline, spoken, [table], (restore, lambda: {"rows": table[ids].detach().clone()}))


def adapt_plainly(pipeline: Any, run: PlainRun, *, rank: int, paths: Sequence[str]) -> list[Marked]:
    """Returns PEFT's factors by ``PATH/down`` and ``PATH/up`` at each mark."""
    from peft import LoraConfig

    unet = pipeline.unet
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=list(paths)))
    named = {name: value for name, value in unet.named_parameters() if "lora_" in name}
    for value in named.values():
        value.requires_grad_(True)

    def read() -> dict[str, Tensor]:
        return {_rename(name): value.detach().clone() for name, value in named.items()}

    nothing: Callable[[], None] = lambda: None  # noqa: E731
    return train_plainly(pipeline, run, list(named.values()), (nothing, read))


def _rename(name: str) -> str:
    path, _, rest = name.partition(".lora_")
    return f"{path}/{'down' if rest.startswith('A') else 'up'}"
