"""How much memory a run needs, from names and shapes alone: works on the meta device, before weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from conceptry.composer.pipelines import iter_cross_attention, list_components, list_text_encoders
from conceptry.errors import UsageError
from conceptry.trainer.dreambooth import find_weights
from conceptry.trainer.lora import find_layers
from conceptry.trainer.settings import Settings

FLOAT_BYTES: Final = 4
_MOMENTS: Final = {"adamw": 2, "adafactor": 0}
"""Values that the optimiser keeps for each trained one; Adafactor's row and column sums are too few to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes of what stays for the whole run. Activations come on top; they grow with batch and resolution."""

    base_bytes: int
    trained_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.base_bytes + self.trained_bytes + self.gradient_bytes + self.optimizer_bytes


def estimate_memory(pipeline: Any, method: str, settings: Settings) -> MemoryEstimate:
    """Returns what training ``method`` with ``settings`` on ``pipeline`` keeps in memory. Raises UsageError."""
    count = _COUNTERS.get(method)
    if count is None:
        raise UsageError(f"no training method is called {method!r}", where="method")
    trained = count(pipeline, settings)
    parts = [*list_components(pipeline).values()]
    vae = getattr(pipeline, "vae", None)
    if isinstance(vae, nn.Module):
        parts.append(vae)
    base = sum(
        parameter.numel() * parameter.element_size() for part in parts for parameter in part.parameters()
    )
    averages = 1 if settings.ema_decay else 0
    return MemoryEstimate(
        base_bytes=base,
        trained_bytes=trained * FLOAT_BYTES,
        gradient_bytes=trained * FLOAT_BYTES,
        optimizer_bytes=trained * FLOAT_BYTES * (_MOMENTS[settings.optimizer] + averages),
    )


def _count_rows(pipeline: Any, settings: Settings) -> int:
    return settings.vectors * sum(encoder.table.embedding_dim for encoder in list_text_encoders(pipeline))


def _count_perfusion(pipeline: Any, settings: Settings) -> int:
    values = sum(int(layer.to_v.weight.shape[0]) for _, layer in iter_cross_attention(pipeline.unet))
    return values + sum(encoder.table.embedding_dim for encoder in list_text_encoders(pipeline))


def _count_lora(pipeline: Any, settings: Settings) -> int:
    shapes = [layer.weight.shape for layer in find_layers(pipeline.unet, settings.targets).values()]
    return sum(settings.rank * (shape.numel() // shape[0] + shape[0]) for shape in shapes)


def _count_weights(pipeline: Any, settings: Settings) -> int:
    return sum(weight.numel() for weight in find_weights(pipeline.unet, settings.targets).values())


_COUNTERS: Final[Mapping[str, Callable[[Any, Settings], int]]] = {
    "textual_inversion": _count_rows,
    "perfusion": _count_perfusion,
    "lora": _count_lora,
    "dreambooth": _count_weights,
}
