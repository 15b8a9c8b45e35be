"""A batch in pieces is the whole batch: in what is drawn beside it, what is kept beside parameters, and in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.trainer.context import Batch
from conceptry.trainer.fixed_loss import measure_fixed_loss
from conceptry.trainer.learners import Learner
from conceptry.trainer.perfusion import Perfusion
from conceptry.trainer.preparation import prepared
from conceptry.trainer.prior import ClassLatents
from conceptry.trainer.staging import Stage
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import stage_job, write_job


def stage(method: str, folder: Path, base: Any, **settings: Any) -> Stage:
    return stage_job(write_job(method, folder, settings=settings), folder, base)


def test_class_pictures_and_their_noise_are_those_of_the_whole_batch_in_every_piece(tmp_path: Path) -> None:
    base = make_pipeline()
    with prepared(base):
        ready = stage("dreambooth_lora", tmp_path, base, batch_size=5)
        learner, batch = ready.learner, ready.context.draw_batch(1)
        assert learner.preservation is not None
        latents = torch.randn(7, *batch.clean.shape[1:], generator=torch.Generator().manual_seed(1))
        prior = dataclasses.replace(learner.preservation, class_latents=(ClassLatents(latents),))
        with torch.no_grad(), learner.attached():
            whole = prior.compute_loss(learner, batch, 1)
            pieces = batch.split(2)[0].split(2) + batch.split(2)[1].split(3)  # as two processes share it
            parts = [prior.compute_loss(learner, piece, 1) * len(piece.prompts) for piece in pieces]
    assert [len(piece.prompts) for piece in pieces] == [1, 1, 1, 1, 1]
    torch.testing.assert_close(torch.stack(parts).sum() / 5, whole, rtol=1e-5, atol=0)


def test_the_running_mean_of_perfusion_follows_all_pieces_of_a_batch(tmp_path: Path) -> None:
    base = make_pipeline()
    texts = ["a photo of a <imp>", "a <imp> on the beach", "a <imp> in style"]
    moved = []
    with prepared(base):
        ready = stage("perfusion", tmp_path, base)
        learner = ready.learner
        assert isinstance(learner, Perfusion)
        start = learner.i_star.clone()
        for pieces in ([texts], [texts[:1], texts[1:]], [texts[2:], texts[:2]]):
            learner.i_star.copy_(start)
            with learner.attached():
                learner.condition(["the dog behind a <imp>"])
            with learner.attached():
                for piece in pieces:
                    learner.condition(piece)
                learner.finish_step()
            moved.append(learner.i_star - start)
    assert float(moved[0].abs().max()) > 0
    for other in moved[1:]:
        torch.testing.assert_close(other, moved[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("pieces", "largest"), [pytest.param(1, 4, marks=pytest.mark.slow), (3, 2)])
def test_no_measure_of_a_run_computes_more_samples_at_once_than_a_piece_has(
    pieces: int, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def predict(self: Learner, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.prompts))
        return torch.zeros_like(batch.target)

    base = make_pipeline()
    with prepared(base):
        ready = stage("textual_inversion", tmp_path, base, batch_size=4, accumulation_steps=pieces)
        monkeypatch.setattr(type(ready.learner), "predict", predict)
        loss = measure_fixed_loss(ready.context, ready.learner)
    expected = ready.context.draw_fixed_batch(16)
    errors = expected.target.square().mean(dim=(1, 2, 3)) * expected.weights
    assert (max(sizes), sum(sizes)) == (largest, 16)
    assert loss == pytest.approx(float(errors.mean()), rel=1e-5)
