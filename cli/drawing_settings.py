"""How pictures are drawn, beside words and concepts: steps, guidance, size, as options or the base say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from conceptry.cli.bases import TOYBOX
from conceptry.errors import UsageError

_USUAL: Final = (30, 7.5)
# As their pipelines in diffusers have it.
_USUAL_BY_FAMILY: Final = {"sd3": (28, 7.0), "flux": (28, 3.5), "qwen_image": (50, 4.0), "z_image": (50, 5.0)}
_USUAL_STRENGTH: Final = 0.75
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How pictures are drawn, beside words and concepts."""

    base: str | None
    """As it was named, None where the toybox is taken."""

    seed: int
    count: int
    batch: int
    steps: int
    guidance: float
    sampler: str | None
    strength: float
    size: tuple[int, int] | None


def make_settings(given: dict[str, Any], named: str | None, family: str | None) -> Settings:
    """Returns what the options say, and what is usual for the base where they say nothing. Raises UsageError."""
    from conceptry.toybox import GUIDANCE_SCALE, INFERENCE_STEPS

    if given["image"] is None and (given["mask"] or given["strength"]):
        raise UsageError("--mask and --strength say how --image is drawn over", hint="add --image FILE")
    known = {TOYBOX: (INFERENCE_STEPS, GUIDANCE_SCALE), **_USUAL_BY_FAMILY}
    usual = known.get(family or "", _USUAL)
    steps, guidance, strength = given["steps"], given["guidance"], given["strength"]
    steps = usual[0] if steps is None else steps
    strength = _USUAL_STRENGTH if strength is None else strength
    if given["image"] is not None and int(steps * strength) < 1:
        raise UsageError(
            f"{steps} steps at strength {strength:g} are none", hint=f"--steps {int(1 / strength) + 1}"
        )
    return Settings(
        base=named,
        seed=given["seed"],
        count=given["count"],
        batch=given["batch"],
        steps=steps,
        guidance=usual[1] if guidance is None else guidance,
        sampler=given["sampler"],
        strength=strength,
        size=_parse_size(given["size"]),
    )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"not a size: {text[:40]!r}", hint="--size 512x768")
    return int(match[1]), int(match[2])
