from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from conceptry.digests import Digest
from conceptry.errors import TrainingError, UsageError
from conceptry.trainer.checkpoints import MARKER, Checkpoint, CheckpointFolder

JOB = Digest.of_bytes(b"a job")


def make_checkpoint(step: int) -> Checkpoint:
    tensors = {"parameters/x": torch.full((3,), float(step)), "optimizer/0/step": torch.tensor(float(step))}
    return Checkpoint(step=step, fixed_loss_before=1 / 3, tensors=tensors, numbers={"optimizer/0/n": 0.1})


def test_the_newest_whole_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", JOB)
    folder.write(make_checkpoint(5))
    folder.write(make_checkpoint(10))
    found = folder.read_newest()
    assert (found.step, found.fixed_loss_before, found.numbers) == (10, 1 / 3, {"optimizer/0/n": 0.1})
    assert torch.equal(found.tensors["parameters/x"], torch.full((3,), 10.0))


def test_two_checkpoints_are_kept_and_nothing_else(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, JOB)
    for step in (5, 10, 15, 20):
        folder.write(make_checkpoint(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]


def test_a_checkpoint_without_its_marker_was_not_finished_and_is_passed_over(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, JOB)
    folder.write(make_checkpoint(5))
    (folder.write(make_checkpoint(10)) / MARKER).unlink()
    assert folder.read_newest().step == 5


def test_a_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, JOB).write(make_checkpoint(5))
    with pytest.raises(UsageError, match="another job"):
        CheckpointFolder(tmp_path, Digest.of_bytes(b"another job")).read_newest()


def test_resuming_from_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        CheckpointFolder(tmp_path / "none", JOB).read_newest()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    folder = CheckpointFolder(tmp_path, JOB)
    path = folder.write(make_checkpoint(5)) / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrainingError, match="step-00000005 cannot be read"):
        folder.read_newest()


def test_nothing_in_a_checkpoint_can_run_code(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path, JOB).write(make_checkpoint(5))
    assert sorted(file.name for file in path.iterdir()) == [MARKER, "state.json", "state.safetensors"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_whole_one_before_it(
    tmp_path: Path, name: str
) -> None:
    folder = CheckpointFolder(tmp_path, JOB)
    folder.write(make_checkpoint(5))
    (folder.write(make_checkpoint(10)) / name).write_bytes(b"")
    found = folder.read_newest()
    assert found.step == 5
    (said,) = found.passed_over
    assert "step-00000010 cannot be read" in said
    assert torch.equal(found.tensors["parameters/x"], torch.full((3,), 5.0))


def test_all_of_a_checkpoint_is_on_the_disk_before_it_is_marked_as_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, any(tmp_path.glob(f"step-*/{MARKER}"))))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("only Linux says which file a descriptor is of")
    monkeypatch.setattr(os, "fsync", fsync)
    CheckpointFolder(tmp_path, JOB).write(make_checkpoint(5))
    before = [name for name, marked in synced if not marked]
    assert {"state.safetensors", "state.json", tmp_path.name} <= set(before)
    assert [name for name, marked in synced if marked] == [MARKER, "step-00000005"]
