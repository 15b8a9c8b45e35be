"""What the denoiser is trained to predict, and how much each timestep counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from conceptry.errors import IncompatibleError

Latents = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """``alphas_cumprod`` of a base's own scheduler and what its denoiser predicts.

    ``signal`` and ``noise`` are sqrt(alpha_bar) and sqrt(1 - alpha_bar) (arXiv 2006.11239, eq. 4), of a flow 1 - sigma
    and sigma.
    """

    prediction_type: str
    signal: Float[Tensor, " timesteps"]
    noise: Float[Tensor, " timesteps"]

    @property
    def timesteps(self) -> int:
        """How many timesteps the base was trained on."""
        return len(self.signal)

    def add_noise(self, clean: Latents, noise: Latents, timesteps: Int64[Tensor, " batch"]) -> Latents:
        """Returns signal_t x + noise_t eps."""
        return self._at(self.signal, timesteps) * clean + self._at(self.noise, timesteps) * noise

    def tell(self, timesteps: Int64[Tensor, " batch"]) -> Shaped[Tensor, " batch"]:
        """Returns what the denoiser is told of the time: the timestep, or a flow's sigma."""
        return self.noise[timesteps] if self.prediction_type == "flow" else timesteps

    def make_target(self, clean: Latents, noise: Latents, timesteps: Int64[Tensor, " batch"]) -> Latents:
        """Returns what a perfect denoiser would answer."""
        return _TARGETS[self.prediction_type](self, clean, noise, timesteps)

    def weigh(self, timesteps: Int64[Tensor, " batch"], gamma: float | None) -> Float[Tensor, " batch"]:
        """Returns the weight of each sample's squared error: 1, or min-SNR-gamma (arXiv 2303.09556, eq. 9).

        A flow's timesteps are drawn by their weight, so that all count the same.
        """
        if gamma is None or self.prediction_type == "flow":
            return torch.ones(len(timesteps), device=timesteps.device)
        snr = (self.signal[timesteps] / self.noise[timesteps]) ** 2
        capped = snr.clamp(max=gamma)
        if self.prediction_type == "epsilon":
            # Where no signal is left both are 0, and their ratio is that of all that is below gamma.
            return torch.where(snr > 0, capped / snr, torch.ones_like(snr))
        return capped / (snr + 1) if self.prediction_type == "v_prediction" else capped

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
    "flow": lambda schedule, clean, noise, timesteps: noise - clean,  # arXiv 2209.03003, eq. 1
}


def read_schedule(pipeline: Any, device: torch.device) -> NoiseSchedule:
    """Returns the schedule that the pipeline's base was trained with.

    Raises:
        IncompatibleError: if its denoiser predicts something that no method here trains.
    """
    from diffusers import DDPMScheduler

    config = dict(pipeline.scheduler.config)
    if "FlowMatch" in type(pipeline.scheduler).__name__:
        return _read_flow(config, device)
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in _TARGETS or "num_train_timesteps" not in config or "beta_start" not in config:
        raise IncompatibleError(
            f"{type(pipeline.scheduler).__name__} with prediction type {prediction!r} cannot be trained on",
            hint="use a base that predicts epsilon, v, the sample or a flow",
        )
    alphas = DDPMScheduler.from_config(config).alphas_cumprod.to(device=device, dtype=torch.float32)
    return NoiseSchedule(prediction, alphas.sqrt(), (1 - alphas).clamp(min=1e-8).sqrt())


def _read_flow(config: Mapping[str, Any], device: torch.device) -> NoiseSchedule:
    """Returns sigmas at equal steps of the logit-normal distribution (arXiv 2403.03206, section 3.1), then shifted.

    A timestep that is drawn evenly has thus the density that the paper found best. The shift is the scheduler's own
    (eq. 23); one that depends on the resolution of each picture is left to use, as in the recipes of its authors.
    """
    count = int(config.get("num_train_timesteps", 1000))
    even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    sigma = torch.special.ndtri(even).sigmoid()
    if not config.get("use_dynamic_shifting"):
        shift = float(config.get("shift") or 1.0)
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
    sigma = sigma.to(device=device, dtype=torch.float32)
    return NoiseSchedule("flow", 1 - sigma, sigma)


def weighted_error(
    prediction: Latents,
    target: Latents,
    weights: Float[Tensor, " batch"],
    mask: Float[Tensor, "batch 1 height width"] | None = None,
) -> Float[Tensor, ""]:
    """Returns the mean over the batch of each sample's weighted mean squared error, at least in float32.

    With a mask, the mean of a sample is over what its mask shows.
    """
    wide = torch.promote_types(prediction.dtype, torch.float32)
    squares = (prediction.to(wide) - target.to(wide)).square()
    if mask is None:
        errors = squares.mean(dim=(1, 2, 3))
    else:
        errors = (squares.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))
    return (errors * weights).mean()
