"""The recipe of the text encoder: it learns what captions say before the diffusion model ever listens to it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from conceptry.toybox.captions import Caption, describe, slots
from conceptry.toybox.sampling import (
    draw_scenes,
)
from conceptry.toybox.tokenizer import MAX_TOKENS, build_tokenizer
from conceptry.toybox.training import Run, Settings, autocast, pick_device

_DEFAULT_BATCH: Final = 128
_POOL: Final = 40_000


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The text encoder's shape: four layers of 128 channels."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode_captions(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (n, 32), padded as the pipeline pads them."""
    ids = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return ids["input_ids"]  # type: ignore[no-any-return]


class Listener(nn.Module):
    """Reads what a caption says from its final state: one classifier a slot, class 0 being "unmentioned"."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slots = slots()
        self.sizes = [len(values) for values in self.slots.values()]
        self.head = nn.Linear(width, sum(self.sizes))

    def targets(self, captions: list[Caption]) -> Tensor:
        """Slot values (n, slots) as class indices."""
        rows = [
            [
                values.index(caption.says[slot]) if slot in caption.says else 0
                for slot, values in self.slots.items()
            ]
            for caption in captions
        ]
        return torch.tensor(rows)

    def loss(self, states: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Mean cross-entropy over the slots, and the share of slots read right where something is said."""
        parts = self.head(states).float().split(self.sizes, dim=1)
        losses = [F.cross_entropy(part, targets[:, index]) for index, part in enumerate(parts)]
        right = torch.stack([part.argmax(1) == targets[:, index] for index, part in enumerate(parts)], 1)
        said = targets > 0
        return torch.stack(losses).sum(), float((right & said).sum() / said.sum())


def train_text(settings: Settings) -> None:
    """Train the encoder; tokenizer and averaged weights end in ``OUT/text``."""
    torch.manual_seed(settings.seed)
    device = pick_device(settings.device)
    tokenizer = build_tokenizer(settings.out / "text" / "tokenizer")
    encoder = CLIPTextModel(text_config(tokenizer)).to(device)
    listener = Listener(128).to(device)
    run = Run("text", settings, {"encoder": encoder, "listener": listener}, peak_lr=1.5e-3)
    generator = np.random.default_rng((settings.seed, run.step))
    scenes = draw_scenes(settings.seed + 1, settings.pictures or _POOL)
    batch = settings.batch or _DEFAULT_BATCH
    while run.running():
        rows = generator.integers(len(scenes), size=batch)
        captions = [describe(scenes[int(row)], generator) for row in rows]
        ids = encode_captions(tokenizer, [caption.text for caption in captions]).to(device)
        with autocast(device):
            states = encoder(input_ids=ids).pooler_output
        loss, right = listener.loss(states.float(), listener.targets(captions).to(device))
        run.update(loss, right=right)
    run.finish()


def load_text(folder: Path, device: torch.device) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer and trained text encoder of a run's output folder."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "text" / "tokenizer")
    encoder = CLIPTextModel(text_config(tokenizer))
    encoder.load_state_dict(load_file(folder / "text" / "encoder.safetensors"))
    return tokenizer, encoder.to(device)
