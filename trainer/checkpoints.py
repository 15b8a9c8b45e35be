"""The state of a run on disk: safetensors and JSON, written whole or not at all, the two newest kept."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conceptry.digests import Digest
from conceptry.errors import StoreError, TrainingError, UsageError

KEPT: Final = 2
MARKER: Final = "COMPLETE"
_STATE: Final = "state.safetensors"
_FACTS: Final = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on after ``step`` updates."""

    step: int
    fixed_loss_before: float
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    passed_over: tuple[str, ...] = ()
    """What is said of newer ones that cannot be read."""


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Checkpoints of one job. ``job`` is the digest of recipe, data, base and seed: another job's are refused."""

    folder: Path
    job: Digest

    def write(self, checkpoint: Checkpoint) -> Path:
        """Writes ``checkpoint`` and removes all but the newest two. Raises StoreError when the disk refuses."""
        final = self.folder / f"step-{checkpoint.step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            private = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
            try:
                self._fill(private, checkpoint)
                if final.exists():
                    shutil.rmtree(final)
                private.rename(final)
                _sync(self.folder)
            finally:
                shutil.rmtree(private, ignore_errors=True)
            _write_synced(final / MARKER, b"")
            _sync(final)
        except OSError as error:
            raise StoreError(
                f"the checkpoint of step {checkpoint.step} cannot be written: {error}",
                hint="make room on the disk, or name another folder with --workdir",
            ) from error
        self._remove_old()
        return final

    def _fill(self, private: Path, checkpoint: Checkpoint) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
        save_file(tensors, private / _STATE)
        _sync(private / _STATE)
        facts = {
            "schema": 1,
            "job": str(self.job),
            "step": checkpoint.step,
            "fixed_loss_before": repr(checkpoint.fixed_loss_before),
            "numbers": dict(checkpoint.numbers),
        }
        _write_synced(private / _FACTS, json.dumps(facts, sort_keys=True).encode())
        _sync(private)

    def find_complete(self) -> list[Path]:
        """Returns the folders of whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.glob("step-*") if (path / MARKER).is_file())

    def read_newest(self) -> Checkpoint:
        """Returns the newest whole checkpoint that can be read.

        Raises:
            UsageError: if there is none, or it belongs to another job.
            TrainingError: if the files of none can be read.
        """
        found = self.find_complete()
        if not found:
            raise UsageError(f"no checkpoint in {str(self.folder)!r}", hint="train without --resume")
        damaged: list[TrainingError] = []
        for path in reversed(found):
            try:
                checkpoint = self._read(path)
            except TrainingError as error:
                damaged.append(error)
            else:
                return replace(checkpoint, passed_over=tuple(error.message for error in damaged))
        raise damaged[0]

    def _read(self, path: Path) -> Checkpoint:
        try:
            facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
            tensors = load_file(path / _STATE)
            checkpoint = Checkpoint(
                step=int(facts["step"]),
                fixed_loss_before=float(facts["fixed_loss_before"]),
                tensors=tensors,
                numbers={str(key): float(value) for key, value in facts["numbers"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            message = f"the checkpoint {path.name} cannot be read: {error}"
            raise TrainingError(message, hint="train again without --resume") from error
        if facts.get("job") != str(self.job):
            raise UsageError(
                f"{path.name} belongs to another job: method, settings, pictures, base or seed differ",
                hint="repeat the command that was stopped with --resume, or train without --resume",
            )
        return checkpoint

    def clear(self) -> None:
        """Removes all checkpoints; called when the concept is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_old(self) -> None:
        for path in self.find_complete()[:-KEPT]:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Has the system bring a file, or the names in a folder, to the disk; Windows opens no folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
