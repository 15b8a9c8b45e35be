"""What the denoiser is trained to predict, and how much each timestep counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from conceptry.errors import IncompatibleError

Latents = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """``alphas_cumprod`` of a base's own scheduler and what its denoiser predicts.

    ``signal`` and ``noise`` are sqrt(alpha_bar) and sqrt(1 - alpha_bar) (arXiv 2006.11239, eq. 4).
    """

    prediction_type: str
    signal: Float[Tensor, " timesteps"]
    noise: Float[Tensor, " timesteps"]

    @property
    def timesteps(self) -> int:
        """How many timesteps the base was trained on."""
        return len(self.signal)

    def add_noise(self, clean: Latents, noise: Latents, timesteps: Int64[Tensor, " batch"]) -> Latents:
        """Returns sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps."""
        return self._at(self.signal, timesteps) * clean + self._at(self.noise, timesteps) * noise

    def make_target(self, clean: Latents, noise: Latents, timesteps: Int64[Tensor, " batch"]) -> Latents:
        """Returns what a perfect denoiser would answer."""
        return _TARGETS[self.prediction_type](self, clean, noise, timesteps)

    def weigh(self, timesteps: Int64[Tensor, " batch"], gamma: float | None) -> Float[Tensor, " batch"]:
        """Returns the weight of each sample's squared error: 1, or min-SNR-gamma (arXiv 2303.09556, eq. 9)."""
        if gamma is None:
            return torch.ones(len(timesteps), device=timesteps.device)
        snr = (self.signal[timesteps] / self.noise[timesteps]) ** 2
        capped = snr.clamp(max=gamma)
        return {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[
            self.prediction_type
        ]

    @staticmethod
    def _at(values: Float[Tensor, " timesteps"], timesteps: Int64[Tensor, " batch"]) -> Tensor:
        return values[timesteps].view(-1, 1, 1, 1)


_Target = Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]


def _velocity(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    signal, level = schedule._at(schedule.signal, timesteps), schedule._at(schedule.noise, timesteps)
    return signal * noise - level * clean  # arXiv 2202.00512, section 4


_TARGETS: Final[Mapping[str, _Target]] = {
    "epsilon": lambda schedule, clean, noise, timesteps: noise,
    "v_prediction": _velocity,
    "sample": lambda schedule, clean, noise, timesteps: clean,
}


def read_schedule(pipeline: Any, device: torch.device) -> NoiseSchedule:
    """Returns the schedule that the pipeline's base was trained with.

    Raises:
        IncompatibleError: if its denoiser predicts something that no method here trains yet (flow matching).
    """
    from diffusers import DDPMScheduler

    config = dict(pipeline.scheduler.config)
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in _TARGETS or "num_train_timesteps" not in config or "beta_start" not in config:
        raise IncompatibleError(
            f"{type(pipeline.scheduler).__name__} with prediction type {prediction!r} cannot be trained on yet",
            hint="use a base that predicts epsilon, v or the sample",
        )
    alphas = DDPMScheduler.from_config(config).alphas_cumprod.to(device=device, dtype=torch.float32)
    return NoiseSchedule(prediction, alphas.sqrt(), (1 - alphas).clamp(min=1e-8).sqrt())


def weighted_error(
    prediction: Latents, target: Latents, weights: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Returns the mean over the batch of each sample's weighted mean squared error, in float32."""
    errors = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
    return (errors * weights).mean()
