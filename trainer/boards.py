"""Losses and previews for TensorBoard, written by the writer that comes with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from conceptry.errors import MissingExtraError
from conceptry.trainer.curves import Point
from conceptry.trainer.jobs import TrainJob


def check_tensorboard() -> None:
    """Raises MissingExtraError if the package that writes TensorBoard's events is not installed."""
    _load_writer()


class Board:
    """The events of one run, in a folder of their own under ``folder``."""

    def __init__(self, folder: Path, job: TrainJob) -> None:
        self._folder = folder / f"{job.name.namespace}--{job.name.name}@{job.version}"
        self._writer: Any = None

    def begin(self, first_step: int) -> None:
        """Opens the file; what an interrupted run wrote beyond its checkpoint is hidden. Raises OSError."""
        self._writer = _load_writer()(
            log_dir=str(self._folder), purge_step=first_step + 1 if first_step else 0
        )

    def add(self, point: Point) -> None:
        """Adds one loss."""
        if self._writer is not None:
            self._writer.add_scalar(f"loss/{point.curve}", point.loss, point.step)

    def add_picture(self, sheet: Image.Image, step: int) -> None:
        """Adds the previews of a step."""
        if self._writer is not None:
            self._writer.add_image("previews", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is not written yet."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _load_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            f"events for TensorBoard need the package tensorboard, which cannot be imported: {error}",
            hint="pip install 'conceptry[tensorboard]', or leave --tensorboard out",
        ) from error
    return SummaryWriter
