"""How much memory a run needs, from names and shapes alone: works on the meta device, before weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from conceptry.composer.pipelines import iter_cross_attention, list_components, list_text_encoders
from conceptry.errors import UsageError
from conceptry.trainer.dreambooth import find_weights
from conceptry.trainer.lora import iter_layers, pick_size
from conceptry.trainer.optimizers import OPTIMIZER_BY_ID
from conceptry.trainer.quantization import count_packed_bytes
from conceptry.trainer.settings import Settings

FLOAT_BYTES: Final = 4


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
        base_bytes=base - count_packed_bytes(pipeline, settings),
        trained_bytes=trained * FLOAT_BYTES,
        gradient_bytes=trained * FLOAT_BYTES,
        optimizer_bytes=trained * (OPTIMIZER_BY_ID[settings.optimizer].state_bytes + FLOAT_BYTES * averages),
    )


def _count_rows(pipeline: Any, settings: Settings) -> int:
    return settings.vectors * sum(encoder.table.embedding_dim for encoder in list_text_encoders(pipeline))


def _count_layered_rows(pipeline: Any, settings: Settings) -> int:
    return _count_rows(pipeline, settings) * sum(1 for _ in iter_cross_attention(pipeline.unet))


def _count_perfusion(pipeline: Any, settings: Settings) -> int:
    values = sum(int(layer.to_v.weight.shape[0]) for _, layer in iter_cross_attention(pipeline.unet))
    return values + sum(encoder.table.embedding_dim for encoder in list_text_encoders(pipeline))


def _count_lora(pipeline: Any, settings: Settings) -> int:
    total = 0
    for _, layers in iter_layers(pipeline, settings):
        for path, layer in layers.items():
            rank, _ = pick_size(path, settings)
            outputs, inputs = layer.weight.shape[0], layer.weight.numel() // layer.weight.shape[0]
            if settings.algorithm == "lidb":
                outputs, inputs = min(outputs, settings.frozen_outputs), min(inputs, settings.frozen_inputs)
            total += rank * (inputs + outputs) + (outputs if settings.algorithm == "dora" else 0)
    return total


def _count_weights(pipeline: Any, settings: Settings) -> int:
    return sum(weight.numel() for weight in find_weights(pipeline.unet, settings.targets).values())


_Counter = Callable[[Any, Settings], int]


def _count_all(*counters: _Counter) -> _Counter:
    return lambda pipeline, settings: sum(count(pipeline, settings) for count in counters)


_COUNTERS: Final[Mapping[str, _Counter]] = {
    "textual_inversion": _count_rows,
    "xti": _count_layered_rows,
    "perfusion": _count_perfusion,
    "lora": _count_lora,
    "dreambooth_lora": _count_lora,
    "pivotal": _count_all(_count_rows, _count_lora),
    "textual_inversion_dreambooth_lora": _count_all(_count_rows, _count_lora),
    "lidb": _count_lora,
    "custom_diffusion": _count_all(_count_rows, _count_weights),
    "textual_inversion_dreambooth": _count_all(_count_rows, _count_weights),
    "dreambooth": _count_weights,
}
