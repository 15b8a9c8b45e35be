"""Compositions that are concepts, in Python: out of a package and into a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conceptry.composer import Composition, attach, identify_pipeline, make_plan, open_composition
from conceptry.composer.packaged import PackageRequest, write_composition
from conceptry.composition import CompositionDocument, Member, Schedule
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError, NotFoundError, UsageError
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, parse_version
from tests.fakes.concepts import make_embedding, make_lora
from tests.fakes.forwards import make_calm_pipeline, run_components
from tests.fakes.pipelines import assert_same, snapshot


@dataclass
class Shelf:
    """Concepts by their digests, as a registry has them."""

    concepts: dict[Reference, Concept]

    def get(self, reference: Reference) -> Concept:
        if reference not in self.concepts:
            raise NotFoundError(f"no {reference}")
        return self.concepts[reference]

    def manifest(self, reference: Reference) -> Manifest:
        return self.get(reference).manifest


def test_an_opened_composition_computes_what_its_concepts_do_and_leaves_every_bit(tmp_path: Path) -> None:
    pipeline = make_calm_pipeline("sd1")
    words = make_embedding(tmp_path / "words", pipeline, "<e>", name="me/words")
    adapter = make_lora(tmp_path / "adapter", pipeline, name="me/adapter")
    shelf = Shelf({Reference(one.manifest.name, one.digest): one for one in (words, adapter)})
    references = list(shelf.concepts)
    document = CompositionDocument(
        concepts=(
            Member(reference=references[0], strength=0.8),
            Member(reference=references[1], strength=0.5, parts={"unet.mid_block": 0.3}),
        )
    )
    direct = Composition.of_document(document, [words, adapter])
    plan = make_plan(direct, identify_pipeline(pipeline))
    request = PackageRequest(name=ConceptName.parse("me/both"), version=parse_version("1.0.0"))
    packaged = write_composition(plan, document, (), request, tmp_path / "both")
    before = snapshot(pipeline)
    with attach(direct, pipeline):
        expected = run_components(pipeline, "a <e>")
    with attach(open_composition(packaged, shelf), pipeline) as report:
        assert [(one.label, one.strength) for one in report.concepts] == [
            ("me/words@1.0.0", 0.8),
            ("me/adapter@1.0.0", 0.5),
        ]
        found = run_components(pipeline, "a <e>")
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    assert_same(snapshot(pipeline), before)
    halved = open_composition(packaged, shelf, 0.5)
    assert [member.strength for member in halved.members] == [0.4, 0.25]
    with pytest.raises(UsageError, match="is no composition"):
        open_composition(words, shelf)
    with pytest.raises(IncompatibleError, match="the concepts that it names are to stand in its place"):
        attach(Composition(packaged), pipeline)
    assert_same(snapshot(pipeline), before)


def test_a_schedule_and_a_way_are_in_the_opened_composition(tmp_path: Path) -> None:
    pipeline = make_calm_pipeline("sd1")
    adapter = make_lora(tmp_path / "adapter", pipeline, name="me/adapter")
    other = make_lora(tmp_path / "other", pipeline, name="me/other", seed=5)
    shelf = Shelf({Reference(one.manifest.name, one.digest): one for one in (adapter, other)})
    first, second = shelf.concepts
    document = CompositionDocument(
        concepts=(Member(reference=first, schedule=Schedule(stop=0.5)), Member(reference=second)),
        way="switch",
        period=2,
    )
    plan = make_plan(Composition.of_document(document, [adapter, other]), identify_pipeline(pipeline))
    request = PackageRequest(name=ConceptName.parse("me/both"), version=parse_version("1.0.0"))
    packaged = write_composition(plan, document, (), request, tmp_path / "both")
    opened = open_composition(packaged, shelf)
    assert (opened.way, opened.period) == ("switch", 2)
    assert opened.members[0].use.schedule == Schedule(stop=0.5)
    del shelf.concepts[second]
    with pytest.raises(NotFoundError, match=r"me/both@1\.0\.0 names me/other@1\.0\.0 with the digest"):
        open_composition(packaged, shelf)
