"""All kinds at once on SD1.5 in full size and on SDXL with every block, layer and head."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.composer import Composition, attach
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.pipelines import iter_cross_attention
from conceptry.concepts import Concept
from tests.fakes.concepts import MAKERS, make_embedding
from tests.fakes.pipelines import render
from tests.fakes.real import make_narrow_sdxl, make_sd15

pytestmark = pytest.mark.slow

KIBIBYTE = 1024


def digest_weights(pipeline: Any) -> str:
    hasher = hashlib.sha256()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
                hasher.update(f"{name} {tensor.data_ptr()}".encode())
                hasher.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def measure_file_bytes(concept: Concept) -> int:
    (file,) = concept.manifest.builds[0].parts[0].files
    return file.size


@pytest.mark.parametrize(
    ("make_base", "family", "layers"), [(make_sd15, "sd1", 16), (make_narrow_sdxl, "sdxl", 70)]
)
def test_every_kind_fits_and_leaves_nothing_behind(
    make_base: Callable[[], Any], family: str, layers: int, tmp_path: Path
) -> None:
    pipeline = make_base()
    pipeline.set_progress_bar_config(disable=True)
    assert len(list(iter_cross_attention(pipeline.unet))) == layers
    assert identify_pipeline(pipeline).family == family
    concepts = [make(tmp_path / kind, pipeline) for kind, make in MAKERS.items()]
    plain = render(pipeline, "a cat", steps=1)
    before = digest_weights(pipeline)
    with attach(Composition(*concepts[:2]), pipeline):
        assert torch.equal(render(pipeline, "a cat", steps=1), plain)
        assert not torch.equal(render(pipeline, "a <e> and a <r>", steps=1), plain)
    with attach(Composition(*concepts), pipeline) as report:
        assert {applied.fit for applied in report.concepts} == {"exact"}
        assert len(report.concepts) == len(MAKERS)
        assert bool(render(pipeline, "a <e> and a <r>", steps=1).isfinite().all())
    assert digest_weights(pipeline) == before
    assert min(time_identification(pipeline) for _ in range(10)) < 0.010


def time_identification(pipeline: Any) -> float:
    start = time.perf_counter()
    identify_pipeline(pipeline)
    return time.perf_counter() - start


def test_packages_for_sd15_are_as_small_as_promised(tmp_path: Path) -> None:
    pipeline = make_sd15()
    rank_one = MAKERS["rank_one"](tmp_path / "r", pipeline)
    assert measure_file_bytes(rank_one) <= 64 * KIBIBYTE
    assert measure_file_bytes(make_embedding(tmp_path / "e", pipeline, vectors=1)) <= 8000
