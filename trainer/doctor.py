"""What a run will need, said before it begins: memory from shapes, time from two short probes on this device.

A job that cannot fit is refused with what to change, before hours are lost and before the system ends the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from conceptry.composer.pipelines import list_components
from conceptry.errors import TrainingError
from conceptry.trainer.conditioning import Conditioning
from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.exhaustion import suggest_remedies
from conceptry.trainer.learners import Learner
from conceptry.trainer.memory import FLOAT_BYTES, MemoryEstimate
from conceptry.trainer.optimizers import OPTIMIZER_BY_ID
from conceptry.trainer.preparation import checkpointed_gradients, plain_attention
from conceptry.trainer.quantization import count_packed_bytes, packed_base

# Below this share of the memory at hand a run is not examined closer: it fits, and looking costs seconds.
CAREFREE_SHARE: Final = 0.25
_PROBES: Final = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """What a job will do and need on this device."""

    pictures: int
    steps: int
    image_steps: int
    resident: MemoryEstimate
    sample_bytes: int
    """What is kept for the backward pass, for each sample that is computed at once."""

    samples_at_once: int
    free_bytes: int | None
    """What this device can give to this process, with what it holds already; None where nobody knows."""

    seconds: float | None = None

    @property
    def peak_bytes(self) -> int:
        """The predicted peak of memory."""
        return self.resident.total_bytes + self.sample_bytes * self.samples_at_once

    @property
    def fits(self) -> bool:
        """Whether the peak is within what the device can give."""
        return self.free_bytes is None or self.peak_bytes <= self.free_bytes


def plan_run(context: TrainingContext, learner: Learner, *, with_time: bool = True) -> TrainPlan:
    """Returns what the run will need. With ``with_time`` two samples are really computed, to time them."""
    settings = context.job.settings
    largest = max(1, -(-settings.batch_size // settings.accumulation_steps))
    plan = TrainPlan(
        pictures=sum(len(bucket.members) for bucket in context.buckets),
        steps=settings.steps,
        image_steps=settings.steps * settings.batch_size,
        resident=measure_resident(context, learner),
        sample_bytes=measure_sample(context, learner),
        samples_at_once=largest,
        free_bytes=find_free_bytes(context.device, context.pipeline),
    )
    if not with_time or not plan.fits:
        return plan
    one, two = (time_samples(context, learner, count) for count in _PROBES)
    pieces = min(settings.batch_size, settings.accumulation_steps)
    each = one + max(0.0, two - one) * (settings.batch_size / pieces - 1)
    return replace(plan, seconds=settings.steps * pieces * each)


def check_fit(context: TrainingContext, learner: Learner) -> None:
    """Raises TrainingError if the run cannot fit into the device's memory; a small one is not examined closer."""
    free = find_free_bytes(context.device, context.pipeline)
    resident = measure_resident(context, learner)
    if free is None or resident.total_bytes <= CAREFREE_SHARE * free:
        return
    plan = plan_run(context, learner, with_time=False)
    if not plan.fits:
        raise TrainingError(
            f"this run needs {_to_gib(plan.peak_bytes)} of memory and {context.device.type} has {_to_gib(free)}: "
            f"{_to_gib(resident.base_bytes)} for the base, {_to_gib(plan.sample_bytes)} for each of "
            f"{plan.samples_at_once} samples at once, "
            f"{_to_gib(resident.total_bytes - resident.base_bytes)} for what is trained",
            hint=suggest_remedies(context.job.settings, limit=3),
        )


def count_samples(context: TrainingContext, learner: Learner) -> int | None:
    """Returns how many samples fit into memory at once; None where the base is small or nobody knows."""
    free = find_free_bytes(context.device, context.pipeline)
    resident = measure_resident(context, learner).total_bytes
    if free is None or resident <= CAREFREE_SHARE / 4 * free:
        return None
    return max(1, (free - resident) // max(1, measure_sample(context, learner)))


def _to_gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def measure_resident(context: TrainingContext, learner: Learner) -> MemoryEstimate:
    """Returns the bytes of what stays for the whole run."""
    settings = context.job.settings
    trained = sum(parameter.numel() for parameter in learner.parameters.values())
    copies = int(settings.ema_decay > 0) + int(settings.keep == "best" and context.device.type == "cpu")
    return MemoryEstimate(
        base_bytes=_count_base(context.pipeline) - count_packed_bytes(context.pipeline, settings),
        trained_bytes=trained * FLOAT_BYTES,
        gradient_bytes=trained * FLOAT_BYTES,
        optimizer_bytes=trained * (OPTIMIZER_BY_ID[settings.optimizer].state_bytes + FLOAT_BYTES * copies),
    )


def measure_sample(context: TrainingContext, learner: Learner) -> int:
    """Returns how many bytes one more sample keeps for the backward pass, by shapes alone: nothing is computed.

    Only for a learner that looks at values (the gates of Perfusion) a forward pass is made. With activations computed
    twice it is what one would keep without: an upper bound.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException

    try:
        one, two = (_measure_saved(context, learner, count, by_shape=True) for count in _PROBES)
    except DataDependentOutputException:
        one, two = (_measure_saved(context, learner, count, by_shape=False) for count in _PROBES)
    return max(0, two - one)


def _measure_saved(context: TrainingContext, learner: Learner, count: int, *, by_shape: bool) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch = _take(context.draw_fixed_batch(max(_PROBES)), count)
    saved: dict[int, Any] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        saved[storage._cdata] = storage
        return value

    positions = batch.noisy.shape[-1] * batch.noisy.shape[-2]
    with ExitStack() as stack:
        stack.enter_context(learner.attached())
        stack.enter_context(plain_attention(context.pipeline, positions=positions))
        conditioning = learner.condition([pair.concept for pair in batch.prompts])
        values = [conditioning.states.detach().requires_grad_(), *_list_further(conditioning)]
        inputs: list[Any] = [batch.noisy, batch.timesteps, *values]
        if by_shape:
            fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            inputs = [_to_fake(fake, value) for value in inputs]
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda value: value))
        noisy, timesteps, *read = inputs
        with context.autocast():
            answer = context.denoise(noisy, timesteps, Conditioning(*read))
        answer.float().square().mean()
    return sum(int(storage.nbytes()) for storage in saved.values())


def _list_further(conditioning: Conditioning) -> list[Any]:
    return [getattr(conditioning, field.name) for field in fields(conditioning)[1:]]


def _to_fake(mode: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if isinstance(value, Mapping):
        return {key: _to_fake(mode, one) for key, one in value.items()}
    return value


def time_samples(context: TrainingContext, learner: Learner, count: int) -> float:
    """Returns the seconds of one forward and backward pass of ``count`` samples; nothing is changed by them."""
    batch = _take(context.draw_fixed_batch(max(_PROBES)), count)
    positions = batch.noisy.shape[-1] * batch.noisy.shape[-2]
    with (
        learner.attached(),
        plain_attention(context.pipeline, positions=positions),
        checkpointed_gradients(context),
        packed_base(context.pipeline, context.job.settings, [learner]),
    ):
        seconds = []
        for _ in range(2):  # the first finds and compiles what it needs
            started = time.perf_counter()
            learner.compute_loss(batch, 0).backward()  # type: ignore[no-untyped-call]
            if context.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            for parameter in learner.parameters.values():
                parameter.grad = None
    return min(seconds)


def _take(batch: Batch, count: int) -> Batch:
    return batch if len(batch.prompts) == count else batch.split(len(batch.prompts))[0]


def find_free_bytes(device: torch.device, pipeline: Any) -> int | None:
    """Returns what the device can give to this process, with what the base holds already; None where unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    if device.type != "cpu":
        return None
    available = _read_available()
    return None if available is None else available + _count_base(pipeline)


def _count_base(pipeline: Any) -> int:
    parts = [*list_components(pipeline).values(), pipeline.vae]
    values = [value for part in parts for value in (*part.parameters(), *part.buffers())]
    return sum(value.numel() * value.element_size() for value in values)


def _read_available() -> int | None:
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        found.append(limit - int((folder / "memory.current").read_text(encoding="ascii")))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
