"""Sentences that are fixed for good: a change here changes what every locked key is."""

from __future__ import annotations

from typing import Final

LOCK_TEMPLATES: Final[tuple[str, ...]] = (
    "a photo of a {}",
    "a picture of the {}",
    "a close photo of a {}",
    "a drawing of a {}",
    "one {} on its own",
    "the {} in a scene",
)
"""The superclass is encoded in each of these and the encodings are averaged."""
