"""The training recipes' common ground: runs that stop anywhere and go on as if nothing had happened."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conceptry import toybox
from conceptry.toybox.autoencoder import train_decoder
from conceptry.toybox.diffusion import VelocityLoss, weigh_objects
from conceptry.toybox.sampling import draw_scenes
from conceptry.toybox.scorer_training import contrast, separate
from conceptry.toybox.starting import unpack
from conceptry.toybox.train import FULL, RECIPES
from conceptry.toybox.training import Run, Settings


def _fit(out: Path, steps: int, *, plan: int = 60) -> Run:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    run = Run("fit", Settings(out=out, steps=plan), {"net": net}, peak_lr=0.05)
    while run.running() and run.step < steps:
        data = torch.randn(16, 4, generator=torch.Generator().manual_seed(run.step))
        run.update((net(data) - data[:, :3]).square().mean())
    run.finish()
    return run


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    _fit(tmp_path / "once", 60)
    _fit(tmp_path / "twice", 31)
    _fit(tmp_path / "twice", 60)
    for name in ("modules", "average", "net"):
        first, second = (
            load_file(tmp_path / part / "fit" / f"{name}.safetensors") for part in ("once", "twice")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_that_is_done_does_not_go_on(tmp_path: Path) -> None:
    _fit(tmp_path, 60)
    assert _fit(tmp_path, 90).step == 60


def test_the_curve_falls_and_is_kept_as_a_table(tmp_path: Path) -> None:
    _fit(tmp_path, 60)
    with (tmp_path / "fit" / "curve.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [25, 50]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])


def test_velocity_and_noisy_latents_give_the_clean_ones_back() -> None:
    loss = VelocityLoss(torch.device("cpu"))
    clean, noise = torch.randn(5, 4, 16, 16), torch.randn(5, 4, 16, 16)
    steps = torch.tensor([0, 100, 500, 900, 999])
    noisy, velocity = loss.mix(clean, noise, steps)
    a, s = (values[steps].view(-1, 1, 1, 1) for values in (loss.signal, loss.noise))
    assert torch.allclose(a * noisy - s * velocity, clean, atol=1e-5)
    assert torch.equal(noisy[-1], noise[-1])


def test_object_cells_count_more_and_all_cells_together_as_before() -> None:
    cells = weigh_objects(draw_scenes(2, 50))
    assert cells.shape == (50, 1, 16, 16)
    assert cells.mean().item() == pytest.approx(1.0, abs=1e-4)
    assert cells.max() > 2 * cells.min()


def test_an_error_that_many_cells_share_weighs_more_than_one_that_flickers() -> None:
    loss, steps, cells = VelocityLoss(torch.device("cpu")), torch.tensor([500]), torch.ones(1, 1, 16, 16)
    target = torch.zeros(1, 4, 16, 16)
    flickering = (torch.arange(16) % 2 * 2.0 - 1.0).expand(1, 4, 16, 16)
    assert loss(torch.ones_like(target), target, steps, cells) > 4 * loss(flickering, target, steps, cells)
    assert loss(target, target, steps, cells) == 0


def test_training_the_decoder_leaves_the_way_into_latents_alone(tmp_path: Path) -> None:
    unpack(toybox.path(), tmp_path)
    before = load_file(tmp_path / "autoencoder" / "vae.safetensors")
    train_decoder(Settings(out=tmp_path, steps=2, batch=2, pictures=8, device="cpu"))
    after = load_file(tmp_path / "autoencoder" / "vae.safetensors")
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"decoder", "post_quant_conv"}


def test_contrast_prefers_equal_ids_together() -> None:
    ids = torch.tensor([0, 0, 1, 1])
    together = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert contrast(together, ids) < contrast(together[[0, 2, 1, 3]], ids)


def test_views_of_one_instance_are_drawn_nearer_than_those_of_its_variant() -> None:
    one, other = torch.eye(4)[0], torch.eye(4)[1]
    apart = torch.stack([one, one, other, other])[None]
    mixed = torch.stack([one, other, one, other])[None]
    assert separate(apart) == 0
    assert separate(mixed) > separate(torch.stack([one, one, one, one])[None]) > 0


def test_the_full_plan_names_every_recipe_and_uses_all_the_time() -> None:
    assert {part.recipe for part in FULL} == set(RECIPES)
    assert sum(part.share for part in FULL) == pytest.approx(1.0)
