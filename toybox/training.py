"""What every recipe of the toybox shares: budget, learning rate, moving average, checkpoints and curves.

Checkpoints are safetensors and JSON, written to a private name and renamed, so that a run can be stopped at any
moment and taken up again by the same command.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WARMUP_STEPS: Final = 200
FLOOR_SHARE: Final = 0.02
CHECKPOINT_SECONDS: Final = 60.0


def pick_device(name: str) -> torch.device:
    """The named device; for ``auto`` CUDA where there is one, else the processor."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may say to a recipe: where, how long (seconds, steps, or both), how, and the seed.

    ``start`` is a folder of published weights, from which the networks set out instead of from random numbers.
    """

    out: Path
    seconds: float | None = None
    steps: int | None = None
    device: str = "auto"
    seed: int = 0
    batch: int | None = None
    pictures: int | None = None
    compiled: bool = False
    start: Path | None = None


class MovingAverage:
    """The exponential moving average of parameters, kept in float32; its memory grows with the step count."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.999) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self.values = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take one step towards the present values."""
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self._parameters], 1.0 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Put the averages in the parameters' place."""
        for parameter, value in zip(self._parameters, self.values, strict=True):
            parameter.copy_(value)


@dataclass(slots=True)
class Run:
    """One resumable training run: modules, optimiser, average, progress, and where they are kept."""

    name: str
    settings: Settings
    modules: dict[str, nn.Module]
    peak_lr: float
    weight_decay: float = 0.01
    step: int = 0
    elapsed: float = 0.0
    groups: list[dict[str, Any]] | None = None
    _last: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _rows: list[dict[str, float]] = field(default_factory=list)
    optimizer: torch.optim.AdamW = field(init=False)
    average: MovingAverage = field(init=False)

    def __post_init__(self) -> None:
        parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        groups = self.groups or [{"params": parameters, "share": 1.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.peak_lr, weight_decay=self.weight_decay, betas=(0.9, 0.99), fused=True
        )
        self.average = MovingAverage(parameters)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def folder(self) -> Path:
        """Where this run keeps its checkpoint and curve."""
        return self.settings.out / self.name

    def progress(self) -> float:
        """The share of the budget that is used, 1 at the end."""
        shares = [0.0]
        if self.settings.seconds:
            shares.append(self.elapsed / self.settings.seconds)
        if self.settings.steps:
            shares.append(self.step / self.settings.steps)
        return min(max(shares), 1.0)

    def running(self) -> bool:
        """Whether budget is left; also sets the learning rate for the next step (warm-up, then cosine)."""
        done = self.progress()
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        rate = self.peak_lr * warm * (FLOOR_SHARE + (1 - FLOOR_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        return done < 1.0

    def update(self, loss: Tensor, **values: float) -> None:
        """One optimiser step on ``loss``, then the average, the clock and the curve."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        now = time.monotonic()
        self.elapsed += now - self._last
        self._last = now
        self._record({"loss": float(loss.detach()), **values})
        if now - self._saved > CHECKPOINT_SECONDS:
            self.save()
            self.export()
            self._saved = now

    def _record(self, values: dict[str, float]) -> None:
        self._rows.append(values)
        if len(self._rows) < 25:
            return
        mean = {key: sum(row[key] for row in self._rows) / len(self._rows) for key in values}
        self._rows.clear()
        line = {
            "step": self.step,
            "seconds": round(self.elapsed, 1),
            **{k: round(v, 6) for k, v in mean.items()},
        }
        path = self.folder / "curve.csv"
        new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(line))
            if new:
                writer.writeheader()
            writer.writerow(line)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {
            f"{row}.{key}": value.detach().cpu().contiguous()
            for row, part in state.items()
            for key, value in part.items()
        }

    def save(self) -> None:
        """Write the checkpoint: modules, optimiser state, average and progress."""
        tensors = {
            f"{name}.{key}": value.detach().cpu().contiguous().clone()
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        average = {
            str(i): value.detach().cpu().contiguous().clone() for i, value in enumerate(self.average.values)
        }
        for file, content in (
            ("modules", tensors),
            ("optimizer", self._optimizer_tensors()),
            ("average", average),
        ):
            save_file(content, self.folder / f"{file}.part")
            os.replace(self.folder / f"{file}.part", self.folder / f"{file}.safetensors")
        state = {"step": self.step, "seconds": self.elapsed, "seed": self.settings.seed}
        (self.folder / "state.part").write_text(json.dumps(state))
        os.replace(self.folder / "state.part", self.folder / "state.json")

    def _resume(self) -> None:
        path = self.folder / "state.json"
        if not path.is_file():
            return
        state = json.loads(path.read_text())
        tensors = load_file(self.folder / "modules.safetensors")
        for name, module in self.modules.items():
            prefix = f"{name}."
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        rows: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(self.folder / "optimizer.safetensors").items():
            row, name = key.split(".", 1)
            rows.setdefault(int(row), {})[name] = _laid_out_like(parameters[int(row)], value)
        self.optimizer.load_state_dict(
            {"state": rows, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        averages = load_file(self.folder / "average.safetensors")
        for index, value in enumerate(self.average.values):
            value.copy_(averages[str(index)])
        self.step, self.elapsed = int(state["step"]), float(state["seconds"])

    def finish(self) -> None:
        """Save, then write the averaged weights of each module as ``NAME.safetensors`` in the run's folder."""
        self.save()
        self.export()

    def export(self) -> None:
        """Write the averaged weights of each module; the run itself goes on unchanged."""
        parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        kept = [p.detach().clone() for p in parameters]
        self.average.copy_to_parameters()
        for name, module in self.modules.items():
            tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            save_file(tensors, self.folder / f"{name}.part")
            os.replace(self.folder / f"{name}.part", self.folder / f"{name}.safetensors")
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def _laid_out_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """``value`` in the memory order of ``parameter``: the fused optimiser walks through both side by side."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` computes in bfloat16; processors that only imitate it are two to three times slower so."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic for the forward pass, where the device has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))
