"""Denoising steps with concepts in place beside steps without, in pairs: what a concept costs while pictures are drawn.

Each way has a pipeline of its own, whose weights are the same memory, so that nothing is put in and taken out between
two steps. Rounds take all ways in turn, in another order each; what counts is the ratio within a round, which other
programs on the machine and its clock disturb alike. The median of the ratios is given with its 95 % interval
(bootstrap). Small latents make it harder: what a concept costs beside each layer hardly shrinks with them, the layers
themselves do.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

PROMPT: Final = "a <e> and a <r>"
RESAMPLES: Final = 2000


def share_weights(pipeline: Any) -> Any:
    """Returns a pipeline with parts of its own over the same memory; what goes into one is not in the other."""
    parts = dict(pipeline.components)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        part = parts.get(name)
        if part is not None:
            own = {id(one): torch.nn.Parameter(one.data, requires_grad=False) for one in part.parameters()}
            parts[name] = copy.deepcopy(part, own)
    options = {"requires_safety_checker": False} if "safety_checker" in parts else {"add_watermarker": False}
    return type(pipeline)(**parts, **options)


@torch.no_grad()
def make_step(pipeline: Any, latent: int) -> Callable[[], Any]:
    """Returns what takes one guided step of a square picture; what is done once a prompt is done already."""
    encoded = pipeline.encode_prompt(
        PROMPT, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    options: dict[str, Any] = {"encoder_hidden_states": torch.cat([encoded[1], encoded[0]])}
    if len(encoded) > 2:
        pooled = torch.cat([encoded[3], encoded[2]])
        options["added_cond_kwargs"] = {
            "text_embeds": pooled,
            "time_ids": torch.zeros(2, 6, device=pipeline.device),
        }
    noise = torch.randn(2, 4, latent, latent, generator=torch.Generator().manual_seed(0)).to(pipeline.device)

    def step() -> Any:
        with torch.no_grad():
            return pipeline.unet(noise, 10, **options)

    step()
    return step


def run_rounds(
    steps: Mapping[str, Callable[[], Any]],
    *,
    now: Callable[[], float],
    rounds: int,
    limit_seconds: float,
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    """Returns the seconds of each way by round, told by ``now``; as many rounds as fit into ``limit_seconds``."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0).shuffle
    end = time.monotonic() + limit_seconds
    for number in range(rounds):
        if number >= 2 and time.monotonic() > end:
            break
        shuffle(order)
        for name in order:
            started = now()
            steps[name]()
            found[name].append(now() - started)
        say(f"round {number + 1} of at most {rounds}")
    return found


def weigh_pairs(
    ours: Sequence[float], peer: Sequence[float], whole_seconds: float | None = None
) -> dict[str, Any]:
    """Returns the median of ours by the peer's, round by round, with the 95 % interval of a bootstrap.

    With ``whole_seconds`` what ours takes longer is held against a step of that length instead of the peer's own.
    """
    pairs = zip(ours, peer, strict=True)
    ratios = [1 + (mine - theirs) / (whole_seconds or theirs) for mine, theirs in pairs]
    draw = random.Random(0).choices
    medians = sorted(statistics.median(draw(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return {
        "ratio": statistics.median(ratios),
        "interval": [medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975)]],
        "rounds": len(ratios),
        "added_seconds": statistics.median(mine - theirs for mine, theirs in zip(ours, peer, strict=True)),
    }
