"""Which part of a pipeline denoises."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from conceptry.bases import ComponentName
from conceptry.composer.pipelines import Pipeline
from conceptry.errors import IncompatibleError

_DENOISERS: Final = (ComponentName("unet"), ComponentName("transformer"))


def name_denoiser(pipeline: Pipeline) -> ComponentName:
    """Returns ``unet`` or ``transformer``. Raises IncompatibleError if the pipeline has neither."""
    for name in _DENOISERS:
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return name
    raise IncompatibleError(f"{type(pipeline).__name__} has no denoiser that is known here")


def get_denoiser(pipeline: Pipeline) -> Any:
    """Returns the network that is trained through. Raises IncompatibleError if the pipeline has none."""
    return getattr(pipeline, name_denoiser(pipeline))
