"""Metadata of adapter files in the words of ModelSpec 1.0.1, so that other programs read ours too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conceptry.bases import find_family
from conceptry.kinds import KindId

IMPLEMENTATION: Final = "https://github.com/huggingface/diffusers"
_SUFFIXES: Final[dict[KindId, str]] = {
    "embedding": "/textual-inversion",
    "rank_one": "/rank-one",
    "lora": "/lora",
    "full": "",
    "hypernetwork": "/hypernetwork",
}


def make_metadata(
    kind: KindId,
    *,
    family: str,
    title: str,
    triggers: Sequence[str] = (),
    license_text: str | None = None,
    author: str | None = None,
    description: str | None = None,
) -> dict[str, str]:
    """Returns the ModelSpec keys of a file; nothing in them comes from the clock or the machine.

    Raises:
        NotFoundError: if there is no such base family.
    """
    base = find_family(family)
    optional = {
        "trigger_phrase": ", ".join(triggers),
        "license": license_text,
        "author": author,
        "description": description,
    }
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base.architecture}{_SUFFIXES[kind]}",
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": title,
        "modelspec.resolution": f"{base.resolution_pixels}x{base.resolution_pixels}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(base.prediction_type, base.prediction_type),
        **{f"modelspec.{key}": value for key, value in optional.items() if value},
    }
