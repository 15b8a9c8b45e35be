"""How far another model is from a concept's own base, in the layers that the concept changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.bases import ComponentName, Fit
from conceptry.composer import Composition, identify_pipeline, make_plan
from conceptry.composer.drift import Drift, measure_drift, read_weights
from conceptry.composer.overlaps import list_changed_modules
from tests.fakes.concepts import make_lora


def drift_on(pipeline: Any, other: Any, concept: Any, *, at_hand: bool = True) -> Drift:
    identity = identify_pipeline(other)
    (member,) = make_plan(Composition(concept), identity, Fit.ARCHITECTURE).members
    modules = list_changed_modules(member)
    mine = read_weights(pipeline, modules) if at_hand else None
    return measure_drift(member, identity, read_weights(other, modules), mine)


def test_drift_is_the_share_of_each_weight_that_changed(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    other = copy.deepcopy(sd1)
    touched = "mid_block.resnets.0.conv1"
    with torch.no_grad():
        other.unet.get_submodule(touched).weight.mul_(1.5)
        other.unet.conv_out.weight.mul_(3.0)  # which the concept does not touch
    found = drift_on(sd1, other, concept)
    assert found.layers[0].module == f"unet.{touched}"
    assert found.layers[0].drift == pytest.approx(0.5, rel=1e-4)
    assert found.layers[0].read_drift == pytest.approx(0.5, rel=1e-4)
    assert all(layer.drift == 0 for layer in found.layers[1:])
    assert found.mean == pytest.approx(0.5 / len(found.layers), rel=1e-4)


def test_drift_tells_what_a_concept_reads_from_what_it_does_not(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    other = copy.deepcopy(sd1)
    name = next(module for module in list_modules(sd1, concept) if module.endswith("attn2.to_k"))
    delta = read_delta(sd1, concept, name)
    layer = other.unet.get_submodule(name.removeprefix("unet."))
    basis = torch.linalg.qr(delta.down.T)[0]
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight) @ (torch.eye(len(basis)) - basis @ basis.T))
    found = next(row for row in drift_on(sd1, other, concept).layers if row.module == name)
    assert found.drift > 0.1
    assert found.read_drift is not None
    assert found.read_drift < 1e-4


def list_modules(pipeline: Any, concept: Any) -> tuple[str, ...]:
    (member,) = make_plan(Composition(concept), identify_pipeline(pipeline)).members
    return list_changed_modules(member)


def read_delta(pipeline: Any, concept: Any, name: str) -> Any:
    from conceptry.composer.layer_deltas import list_factors

    (member,) = make_plan(Composition(concept), identify_pipeline(pipeline)).members
    return list_factors(member)[name]()


def test_without_the_base_its_fingerprint_is_compared(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    other = copy.deepcopy(sd1)
    with torch.no_grad():
        for value in other.unet.parameters():
            value.mul_(1.25)
    found = drift_on(sd1, other, concept, at_hand=False)
    assert (found.layers, found.mean) == ((), None)
    assert found.components[ComponentName("unet")] == pytest.approx(0.25, rel=1e-4)
    assert found.components[ComponentName("text_encoder")] == 0.0
