from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.errors import InterruptedByUserError, MissingExtraError, TrainingError
from conceptry.formats.tensors import read_tensors
from conceptry.trainer import fixed_loss, loop
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.stopping import BestValues, is_flat
from conceptry.trainer.training import TrainResult, train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import write_job

FLAT = {"early_stop": {"window_steps": 4, "ratio": 0.9, "samples": 2}}


def slowly(method: str) -> Any:
    return pytest.param(method, marks=pytest.mark.slow)


def run(folder: Path, method: str = "textual_inversion", **changes: Any) -> TrainResult:
    options = {key: changes.pop(key) for key in ("on_event", "resume") if key in changes}
    job = write_job(method, folder, **changes)
    work = folder / changes.get("title", "work")
    return train(job, base=make_pipeline(), workdir=work, cache_folder=folder / "cache", **options)


def spoil_losses(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """The n-th measure of the loss on held-out noise answers what ``values`` say."""
    counts = iter(range(1000))
    real = fixed_loss.measure_fixed_loss

    def measure(*args: Any) -> float:
        return values.get(next(counts), real(*args))

    monkeypatch.setattr(loop, "measure_fixed_loss", measure)


def test_a_curve_that_falls_and_flattens_is_flat_only_in_its_flat_part() -> None:
    random = np.random.default_rng(0)
    curve = [float(np.exp(-step / 20) + 0.01 * random.standard_normal()) for step in range(300)]
    stops = [step for step in range(300) if is_flat(curve[:step], window=50, ratio=0.15)]
    expected = [
        step
        for step in range(51, 300)
        if statistics.pvariance(curve[step - 50 : step]) / statistics.pvariance(curve[:step]) < 0.15
    ]
    assert stops == expected
    assert curve[stops[0]] < 0.1 < curve[20]
    assert not is_flat([1.0] * 40, window=50, ratio=0.15)
    assert not is_flat([float(step) for step in range(300)], window=50, ratio=0.01)


def test_a_flat_loss_ends_the_run_and_the_record_says_at_which_step(tmp_path: Path) -> None:
    result = run(tmp_path, steps=60, settings=FLAT)
    assert 4 < result.steps < 60
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert record["last_step"] == result.steps
    (build,) = result.concept.manifest.builds
    assert build.provenance.training is not None
    assert build.provenance.training.steps == record["kept_step"] == result.steps


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_at_the_same_flat_step_when_it_goes_on(tmp_path: Path) -> None:
    settings = {**FLAT, "evaluate_every_steps": 2}
    whole = run(tmp_path, steps=60, settings=settings, title="work")

    def stop(event: TrainEvent) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedByUserError):
        run(tmp_path, steps=60, settings=settings, title="work", on_event=stop)
    resumed = run(tmp_path, steps=60, settings=settings, title="work", resume=True)
    assert resumed.steps == whole.steps
    assert resumed.concept.digest == whole.concept.digest


@pytest.mark.parametrize("method", ["textual_inversion", slowly("perfusion"), slowly("dreambooth")])
def test_the_values_with_the_lowest_loss_on_held_out_noise_are_stored(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "evaluate_every_steps": 2,
        "schedule": "constant",
    }  # so that a shorter run begins as a longer one
    early = run(tmp_path, method, steps=2, settings=settings, title="early")
    spoil_losses(monkeypatch, {1: 1e-6})  # 0 is before the first step, 1 after the second
    best = run(tmp_path, method, steps=6, settings=settings, title="best")
    assert best.fixed_loss_after == 1e-6
    assert json.loads(best.record.read_text(encoding="utf-8"))["kept_step"] == 2
    for file in early.concept.manifest.iter_files():
        kept = read_tensors(best.folder / file.path)
        for name, tensor in read_tensors(early.folder / file.path).items():
            assert np.array_equal(kept[name].to_numpy(), tensor.to_numpy()), name


@pytest.mark.slow
def test_the_last_values_are_stored_where_the_job_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, {1: 1e-6})
    result = run(tmp_path, steps=4, settings={"evaluate_every_steps": 2, "keep": "last"})
    assert json.loads(result.record.read_text(encoding="utf-8"))["kept_step"] == 4


def test_a_loss_that_is_not_a_number_is_never_the_best() -> None:
    best = BestValues()
    assert not best.offer(float("nan"), 1, {"x": torch.ones(1)})
    assert best.offer(2.0, 2, {"x": torch.full((1,), 2.0)})
    assert not best.offer(3.0, 3, {"x": torch.full((1,), 3.0)})
    into = {"x": torch.zeros(1)}
    best.put_back(into)
    assert (best.step, float(into["x"])) == (2, 2.0)


def diverge_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = loop._run_step

    def run_step(runs: Any, group: Any) -> Any:
        losses = real(runs, group)
        return [loss * float("nan") if runs[0].state.step + 1 == step else loss for loss in losses]

    monkeypatch.setattr(loop, "_run_step", run_step)


def test_a_run_that_diverges_keeps_the_best_values_before_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_at(monkeypatch, 5)
    spoil_losses(monkeypatch, {1: 1e-6})
    events: list[TrainEvent] = []
    settings = {"evaluate_every_steps": 2, "ema_decay": 0.5}
    result = run(tmp_path, steps=20, settings=settings, on_event=events.append)
    assert result.steps == 5
    assert json.loads(result.record.read_text(encoding="utf-8"))["kept_step"] == 2
    (warning,) = [event.message for event in events if event.kind == "warning"]
    assert "not finite at step 5: the values of step 2 are kept; lower the learning rate" in warning
    for tensor in read_tensors(result.folder / "embedding.safetensors").values():
        assert tensor.is_finite()


def test_a_run_that_diverges_before_anything_was_learned_leaves_no_concept(tmp_path: Path) -> None:
    settings = {"learning_rates": {"weights": 10.0}, "warmup_steps": 0, "evaluate_every_steps": 1}
    with pytest.raises(TrainingError, match="not finite") as caught:
        run(tmp_path, "dreambooth", steps=300, settings=settings)
    assert caught.value.hint
    assert "lower the learning rate" in caught.value.hint
    assert not (tmp_path / "work" / "concept").exists()


def test_no_memory_left_is_explained_with_what_to_lower_and_the_state_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._run_step

    def run_step(runs: Any, group: Any) -> Any:
        if runs[0].state.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(runs, group)

    monkeypatch.setattr(loop, "_run_step", run_step)
    with pytest.raises(TrainingError, match="no memory left") as caught:
        run(tmp_path, steps=6)
    assert caught.value.hint is not None
    assert "accumulation_steps=2" in caught.value.hint
    assert "gradient_checkpointing=true" in caught.value.hint
    monkeypatch.setattr(loop, "_run_step", real)
    resumed = run(tmp_path, steps=6, resume=True)
    assert resumed.concept.digest == run(tmp_path, steps=6).concept.digest


@pytest.mark.parametrize("optimizer", ["prodigy", "adamw_8bit"])
def test_an_optimizer_whose_package_is_missing_says_what_to_install(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conceptry.trainer import optimizers

    def refuse(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(optimizers, "import_module", refuse)
    with pytest.raises(MissingExtraError) as caught:
        run(tmp_path, settings={"optimizer": optimizer})
    assert caught.value.hint is not None
    assert "conceptry[optimizers]" in caught.value.hint


@pytest.mark.parametrize("method", ["perfusion", slowly("textual_inversion"), slowly("lora")])
def test_computing_activations_twice_changes_no_number(method: str, tmp_path: Path) -> None:
    plain = run(tmp_path, method, steps=3, title="plain")
    twice = run(tmp_path, method, steps=3, title="twice", settings={"gradient_checkpointing": True})
    assert twice.fixed_loss_after == plain.fixed_loss_after
    for file in plain.concept.manifest.iter_files():
        assert (twice.folder / file.path).stat().st_size == (plain.folder / file.path).stat().st_size


@pytest.mark.slow
def test_adafactor_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = {"optimizer": "adafactor"}
    whole = run(tmp_path, settings=settings)

    def stop(event: TrainEvent) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedByUserError):
        run(tmp_path, settings=settings, on_event=stop)
    assert run(tmp_path, settings=settings, resume=True).concept.digest == whole.concept.digest
