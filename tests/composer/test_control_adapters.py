"""Control adapters of Flux in a pipeline: new norms bit for bit, gone after, and a wider input asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.composer import Composition, attach, identify_pipeline
from conceptry.concepts import Concept, open_concept
from conceptry.errors import IncompatibleError
from conceptry.formats.import_plans import ImportSettings
from conceptry.formats.importing import import_file
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors
from conceptry.manifest import Base
from conceptry.names import ConceptName, parse_version
from tests.fakes.concepts import describe_base
from tests.fakes.flows import make_flow_pipeline

NORM = "transformer_blocks.0.attn.norm_q.weight"


def make_control(folder: Path, pipeline: Any, *, widened: int) -> Concept:
    """Return a control adapter of the input and one norm, as Black Forest Labs names them."""
    weights = pipeline.transformer.state_dict()
    generator = np.random.default_rng(0)
    outputs, inputs = weights["x_embedder.weight"].shape
    shapes = {
        "img_in.lora_A.weight": (2, inputs * widened),
        "img_in.lora_B.weight": (outputs, 2),
        "img_in.lora_B.bias": (outputs,),
        "double_blocks.0.img_attn.norm.query_norm.scale": tuple(weights[NORM].shape),
    }
    folder.mkdir()
    write_tensors(
        folder / "depth.safetensors",
        {
            name: RawTensor.from_numpy(generator.standard_normal(shape).astype(np.float32))
            for name, shape in shapes.items()
        },
    )
    said = ImportSettings(
        name=ConceptName("me", "depth"),
        version=parse_version("1.0.0"),
        base=Base.model_validate(describe_base(identify_pipeline(pipeline))),
    )
    import_file(folder / "depth.safetensors", folder / "package", said)
    return open_concept(folder / "package")


@torch.no_grad()
def test_new_norms_are_there_bit_for_bit_and_the_bases_own_come_back(tmp_path: Path) -> None:
    pipeline = make_flow_pipeline("flux")
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    concept = make_control(tmp_path / "narrow", pipeline, widened=1)
    with attach(Composition(concept), pipeline) as report:
        shown = pipeline.transformer.state_dict()[NORM].clone()
        assert report.concepts[0].unmatched == ()
    with attach(Composition(concept * 0.5), pipeline):
        half = pipeline.transformer.state_dict()[NORM].clone()
    stored = read_tensors(tmp_path / "narrow" / "depth.safetensors")
    new = stored["double_blocks.0.img_attn.norm.query_norm.scale"].to_numpy()
    assert np.array_equal(shown.numpy(), new)
    torch.testing.assert_close(half, (before[NORM] + shown) / 2)
    after = pipeline.transformer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_input_that_is_not_widened_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    pipeline = make_flow_pipeline("flux")
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    concept = make_control(tmp_path / "wide", pipeline, widened=2)
    with pytest.raises(IncompatibleError, match="x_embedder"):
        attach(Composition(concept), pipeline)
    after = pipeline.transformer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
