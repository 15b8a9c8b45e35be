"""DreamBooth on the bundled base, packed: smaller, and the pictures are the plain one's to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.base_locations import resolve_base
from conceptry.composer import Composition, attach
from conceptry.composer.generate import generate
from conceptry.composer.loading import load_pipeline
from conceptry.concepts import Concept, open_concept
from conceptry.formats.packing import PackRequest, pack_concept
from conceptry.trainer.training import train
from tests.trainer.runs import write_job


@pytest.mark.slow
def test_a_packed_dreambooth_draws_what_the_plain_one_draws(tmp_path: Path) -> None:
    location = resolve_base("toybox", {})
    assert location.path is not None
    base = load_pipeline(location)
    settings = {
        "learning_rates": {"weights": 5e-5},
        "targets": ["mid_block.*"],
        "batch_size": 1,
        "keep": "last",
    }
    job = write_job("dreambooth", tmp_path, steps=2, settings=settings)
    trained = train(job, base=base, workdir=tmp_path / "work", cache_folder=tmp_path / "cache").concept
    (tmp_path / "packed").mkdir()
    (row,) = pack_concept(trained, PackRequest(base=location.path), tmp_path / "packed").rows
    assert row.after.size < row.before.size
    packed = open_concept(tmp_path / "packed")
    drawn = [draw(base, concept) for concept in (trained, packed)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != draw(base)


def draw(base: object, *concepts: Concept) -> bytes:
    """Return the bytes of a picture."""
    if not concepts:
        return generate(base, ["an <imp> creature"], [1], steps=2, guidance=2.0)[0].tobytes()
    with attach(Composition(*concepts), base):
        return generate(base, ["an <imp> creature"], [1], steps=2, guidance=2.0)[0].tobytes()
