"""A small real base model, the drawn world it was trained on, and the scorers that judge its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["GUIDANCE_SCALE", "INFERENCE_STEPS", "path", "render_instance", "render_style"]

GUIDANCE_SCALE: Final = 3.0
INFERENCE_STEPS: Final = 20


def path() -> Path:
    """The folder of the bundled base model, in the standard diffusers layout."""
    return Path(__file__).resolve().parent / "weights"


def render_instance(cls: str, seed: int, n: int, out_dir: Path) -> list[Path]:
    """PNG files of one held-out instance, see `conceptry.toybox.examples`. Raises NotFoundError, UsageError."""
    from conceptry.toybox import examples

    return examples.render_instance(cls, seed, n, out_dir)


def render_style(seed: int, n: int, out_dir: Path) -> list[Path]:
    """PNG files of scenes in one held-out style, see `conceptry.toybox.examples`. Raises UsageError."""
    from conceptry.toybox import examples

    return examples.render_style(seed, n, out_dir)
