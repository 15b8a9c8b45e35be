"""Compositions of all kinds in one pipeline: what fits, what is refused, and that nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.bases import Fit
from conceptry.composer import Composition, attach, detach
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.plan import make_plan
from conceptry.concepts import Concept
from conceptry.errors import (
    ConceptryError,
    IncompatibleError,
    InvalidFileError,
    InvalidPlaceholderError,
    NotFoundError,
    UsageError,
)
from tests.fakes.concepts import (
    MAKERS,
    describe_base,
    make_embedding,
    make_full,
    make_lora,
    make_rank_one,
)
from tests.fakes.pipelines import assert_same, make_pipeline, render, snapshot

PROMPT = "a photo of a <e> and a <r>, zork cat"


def make_all(folder: Path, pipeline: Any) -> list[Concept]:
    return [make(folder / kind, pipeline) for kind, make in MAKERS.items()]


def test_all_kinds_work_at_once_and_leave_nothing_behind(pipeline: Any, tmp_path: Path) -> None:
    embedding, rank_one, lora, full, network = make_all(tmp_path, pipeline)
    before = snapshot(pipeline)
    with attach(Composition(embedding, rank_one, lora * 0.7, full * 0.5, network), pipeline) as report:
        together = render(pipeline, PROMPT)
        assert [applied.fit for applied in report.concepts] == ["exact"] * 5
        assert all(applied.tensors > 0 and not applied.unmatched for applied in report.concepts)
        assert report.words == ("<e>", "<r>", "zork", "zork")
    detached = snapshot(pipeline, with_settings=False)
    assert_same(
        {key: value for key, value in before.items() if not key.startswith("tokenizer")},
        {key: value for key, value in detached.items() if not key.startswith("tokenizer")},
    )
    for left_out in (embedding, rank_one, lora, full, network):
        kept = [one for one in (embedding, rank_one, lora, full, network) if one is not left_out]
        with attach(Composition(*kept), pipeline):
            assert not torch.equal(render(pipeline, PROMPT), together)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (2, 0, 4, 3, 1)])
def test_separate_attachments_come_out_in_any_order(
    pipeline: Any, tmp_path: Path, order: tuple[int, ...]
) -> None:
    concepts = make_all(tmp_path, pipeline)
    before = snapshot(pipeline)
    attachments = [attach(Composition(concept), pipeline) for concept in concepts]
    assert (
        identify_pipeline(pipeline)
        == make_plan(Composition(concepts[0]), identify_pipeline(pipeline)).identity
    )
    for number in order:
        attachments[number].detach()
        attachments[number].detach()
    assert_same(before, snapshot(pipeline))


def test_an_exception_inside_the_block_takes_everything_out(pipeline: Any, tmp_path: Path) -> None:
    concepts = make_all(tmp_path, pipeline)
    own = pipeline.tokenizer
    before = snapshot(pipeline)

    def interrupt() -> None:
        with attach(Composition(*concepts), pipeline):
            assert pipeline.tokenizer is not own
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert pipeline.tokenizer is own
    assert_same(before, snapshot(pipeline))


def test_detach_takes_out_all_attachments_of_a_pipeline(sd1: Any, tmp_path: Path) -> None:
    before = snapshot(sd1)
    for concept in make_all(tmp_path, sd1):
        attach(Composition(concept), sd1)
    detach(sd1)
    assert_same(before, snapshot(sd1))
    detach(sd1)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_what_is_attached_together_is_what_is_attached_one_after_another(
    sd1: Any, tmp_path: Path, kind: str
) -> None:
    first = MAKERS[kind](tmp_path / "a", sd1, name="test/a")
    second = MAKERS[kind](tmp_path / "b", sd1, name="test/b", seed=77)
    renamed = {"test/b": {"<e>": "<f>", "<r>": "<s>"}}
    prompt = "a <e> and a <r> and a <f> and a <s>"
    with attach(Composition(first, second, rename=renamed), sd1):
        together = render(sd1, prompt)
    with attach(Composition(first), sd1), attach(Composition(second, rename=renamed), sd1):
        assert torch.allclose(render(sd1, prompt), together, rtol=1e-3, atol=1e-2)
    with attach(Composition(first), sd1):
        assert not torch.allclose(render(sd1, prompt), together, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_at_strength_nought_keep_every_bit_of_the_picture(
    sd1: Any, tmp_path: Path, kind: str
) -> None:
    plain = render(sd1, "a zork cat")
    concept = MAKERS[kind](tmp_path / kind, sd1)
    with attach(Composition(concept * 0.0), sd1) as report:
        assert torch.equal(render(sd1, "a zork cat"), plain)
        assert report.concepts[0].tensors > 0


def test_an_embedding_at_strength_nought_reads_as_its_superclass(sd1: Any, tmp_path: Path) -> None:
    concept = make_embedding(tmp_path / "e", sd1, vectors=1)
    plain = render(sd1, "a photo of a cat")
    with attach(Composition(concept * 0.0), sd1):
        assert torch.equal(render(sd1, "a photo of a <e>"), plain)


def test_colliding_placeholders_get_other_words_and_the_report_says_which(sd1: Any, tmp_path: Path) -> None:
    first = make_embedding(tmp_path / "a", sd1, "<x>", name="test/a")
    second = make_rank_one(tmp_path / "b", sd1, "<x>", name="test/b")
    with attach(Composition(first, second), sd1) as report:
        assert report.words == ("<x>", "<x-2>")
        assert "test/b@1.0.0: <x> is written <x-2> here" in report.warnings
        assert len(sd1.tokenizer("<x> <x-2>")["input_ids"]) == 2 + 2 + 1


def test_a_word_that_becomes_an_id_gives_way_to_one_that_is_plain_text(sd1: Any, tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "lora", sd1, placeholder="<x>")
    embedding = make_embedding(tmp_path / "e", sd1, "<x>")
    with attach(Composition(embedding, lora), sd1) as report:
        assert report.words == ("<x-2>", "<x>")


def test_a_composition_may_name_its_own_words(sd1: Any, tmp_path: Path) -> None:
    concept = make_embedding(tmp_path / "e", sd1)
    with attach(Composition(concept, rename={"test/embedding": {"<e>": "<imp>"}}), sd1) as report:
        assert report.words == ("<imp>",)
        assert len(sd1.tokenizer("<imp>")["input_ids"]) == 4


def test_a_second_attachment_of_the_same_placeholder_is_refused(sd1: Any, tmp_path: Path) -> None:
    concept, other = (make_embedding(tmp_path / name, sd1, name=f"test/{name}") for name in ("e", "f"))
    with attach(Composition(concept), sd1):
        picture = render(sd1, "a <e>")
        with pytest.raises(IncompatibleError) as caught:
            attach(Composition(other), sd1)
        assert "<e>" in caught.value.message
        assert "test/f@1.0.0" in str(caught.value)
        assert caught.value.hint is not None
        assert torch.equal(render(sd1, "a <e>"), picture)


@pytest.mark.parametrize("make", [make_embedding, make_rank_one])
def test_a_placeholder_that_is_a_word_already_is_refused(sd1: Any, tmp_path: Path, make: Any) -> None:
    concept = make(tmp_path / "c", sd1, "dog")
    before = snapshot(sd1)
    with pytest.raises(InvalidPlaceholderError, match="dog"):
        attach(Composition(concept), sd1)
    assert_same(before, snapshot(sd1))


# --- does it fit? --------------------------------------------------------------------------------------------------


def drop_files(concept: Concept) -> Concept:
    """Returns the concept without its files: whoever reads one gets NotFoundError."""
    return Concept(manifest=concept.manifest, digest=concept.digest, blobs={})


def test_a_concept_of_another_shape_is_refused_before_a_tensor_is_read(
    sd1: Any, sdxl: Any, tmp_path: Path
) -> None:
    concept = drop_files(make_lora(tmp_path / "l", sdxl))
    with pytest.raises(IncompatibleError) as caught:
        attach(Composition(concept), sd1, fit=Fit.ARCHITECTURE)
    assert "test/lora@1.0.0" in caught.value.message
    assert "refused" in caught.value.message
    assert caught.value.exit_code == 6
    assert caught.value.where == "builds[0].base"


def test_other_weights_of_the_same_shape_take_adapters_with_a_warning(sd1: Any, tmp_path: Path) -> None:
    sibling = make_pipeline("sd1", seed=5)
    for make in (make_lora, make_embedding):
        concept = make(tmp_path / make.__name__, sibling)
        with attach(Composition(concept), sd1) as report:
            assert report.concepts[0].fit == "architecture"
            assert any("other weights" in warning for warning in report.warnings)


@pytest.mark.parametrize("make", [make_rank_one, make_full])
def test_other_weights_of_the_same_shape_refuse_what_is_bound_to_them_unless_asked(
    sd1: Any, tmp_path: Path, make: Any
) -> None:
    concept = make(tmp_path / "c", make_pipeline("sd1", seed=5))
    with pytest.raises(IncompatibleError, match="lineage") as caught:
        attach(Composition(drop_files(concept)), sd1)
    assert caught.value.hint is not None
    assert "architecture" in caught.value.hint
    with attach(Composition(concept), sd1, fit=Fit.ARCHITECTURE) as report:
        assert report.concepts[0].fit == "architecture"


def test_a_caller_may_ask_for_the_very_same_base(sd1: Any, tmp_path: Path) -> None:
    sibling = make_lora(tmp_path / "l", make_pipeline("sd1", seed=5))
    with pytest.raises(IncompatibleError, match="exact"):
        attach(Composition(sibling), sd1, fit=Fit.EXACT)
    with attach(Composition(make_lora(tmp_path / "own", sd1)), sd1, fit=Fit.EXACT) as report:
        assert report.concepts[0].fit == "exact"


def test_a_declared_parent_is_lineage(sd1: Any, tmp_path: Path) -> None:
    sibling = make_pipeline("sd1", seed=5)
    concept = make_rank_one(tmp_path / "r", sibling)
    found = identify_pipeline(sd1)
    child = type(found)(
        family=found.family,
        prediction_type=found.prediction_type,
        fingerprints=found.fingerprints,
        parents=(identify_pipeline(sibling).fingerprints,),
    )
    assert make_plan(Composition(concept), child).members[0].verdict.fit is Fit.LINEAGE


def test_another_prediction_type_is_a_warning(sd1: Any, tmp_path: Path) -> None:
    base = {**describe_base(identify_pipeline(sd1)), "prediction_type": "v_prediction"}
    with attach(Composition(make_lora(tmp_path / "l", sd1, base=base)), sd1) as report:
        assert any("v_prediction" in warning for warning in report.warnings)


def test_rank_one_edits_of_different_covariances_are_not_mixed(sd1: Any, tmp_path: Path) -> None:
    first = make_rank_one(tmp_path / "a", sd1, "<a>", name="test/a")
    second = make_rank_one(tmp_path / "b", sd1, "<b>", name="test/b", covariance="sha256:" + "d" * 64)
    with pytest.raises(IncompatibleError, match="different covariances"):
        attach(Composition(drop_files(first), drop_files(second)), sd1)


def test_concepts_that_say_they_conflict_are_not_mixed(sd1: Any, tmp_path: Path) -> None:
    first = make_lora(tmp_path / "a", sd1, name="test/a", conflicts=["test/b@^1"])
    second = make_lora(tmp_path / "b", sd1, name="test/b")
    with pytest.raises(IncompatibleError, match="conflicts with test/b"):
        attach(Composition(first, second), sd1)


def test_a_concept_of_which_nothing_applies_is_an_error(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    modules = _read_modules(concept)
    elsewhere = {f"unet.elsewhere.{number}": module for number, module in enumerate(modules.values())}
    other = make_lora(tmp_path / "m", sd1, modules=elsewhere)
    with pytest.raises(IncompatibleError, match="no tensor of test/lora"):
        attach(Composition(other), sd1)


def test_what_has_no_place_in_the_pipeline_is_listed(sd1: Any, tmp_path: Path) -> None:
    modules = _read_modules(make_lora(tmp_path / "l", sd1))
    extra = next(iter(modules.values()))
    concept = make_lora(tmp_path / "m", sd1, modules={**modules, "text_encoder_2.nothing": extra})
    with attach(Composition(concept), sd1) as report:
        assert report.concepts[0].unmatched == ("text_encoder_2.nothing",)


def _read_modules(concept: Concept) -> dict[str, Any]:
    from conceptry.formats.lora import read_lora

    (file,) = concept.manifest.builds[0].parts[0].files
    return dict(read_lora(concept.locate(file)).modules)


def test_a_broken_file_is_named_with_its_concept(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    (file,) = concept.manifest.builds[0].parts[0].files
    concept.locate(file).write_bytes(b"\x00" * 100)
    with pytest.raises(InvalidFileError) as caught:
        attach(Composition(concept), sd1)
    assert str(caught.value.where).startswith("test/lora@1.0.0 parts[0]")


def test_a_file_that_is_not_here_names_the_command_that_gets_it(sd1: Any, tmp_path: Path) -> None:
    concept = drop_files(make_lora(tmp_path / "l", sd1))
    with pytest.raises(NotFoundError) as caught:
        attach(Composition(concept), sd1)
    assert caught.value.hint == "concepts pull test/lora@1.0.0"


def test_an_error_while_attaching_takes_out_what_was_in_already(sd1: Any, tmp_path: Path) -> None:
    good = make_full(tmp_path / "f", sd1)
    bad = make_embedding(tmp_path / "e", sd1, "cat")
    before = snapshot(sd1)
    with pytest.raises(ConceptryError):
        attach(Composition(good, bad), sd1)
    assert_same(before, snapshot(sd1))


# --- compositions --------------------------------------------------------------------------------------------------


def test_compositions_that_mean_nothing_are_refused(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    with pytest.raises(UsageError, match="at least one"):
        Composition()
    with pytest.raises(UsageError, match="twice"):
        Composition(concept, concept * 0.5)
    with pytest.raises(UsageError, match="test/other"):
        Composition(concept, rename={"test/other": {"<x>": "<y>"}})


def test_the_strictest_licence_counts(sd1: Any, tmp_path: Path) -> None:
    def with_permissions(**answers: str) -> dict[str, Any]:
        return {"license": {"name": "terms of our own", "permissions": answers}}

    free = make_lora(
        tmp_path / "a",
        sd1,
        name="test/a",
        **with_permissions(commercial="yes", credit_required="yes", derivatives="yes"),
    )
    strict = make_lora(
        tmp_path / "b", sd1, name="test/b", **with_permissions(commercial="no", credit_required="no")
    )
    found = make_plan(Composition(free, strict), identify_pipeline(sd1)).permissions
    assert found.commercial == "no"
    assert found.credit_required == "yes"
    assert found.derivatives == "unknown"


def test_a_strength_outside_what_the_author_suggests_is_a_warning(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1, usage={"min": 0.2, "max": 0.8})
    found = make_plan(Composition(concept * 1.2), identify_pipeline(sd1))
    assert found.warnings == (
        "test/lora@1.0.0: strength 1.2 is outside what its author suggests, 0.2 to 0.8",
    )


def test_the_report_reproduces_the_composition(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    with attach(Composition(concept * 0.25), sd1) as report:
        (entry,) = report.to_json()["concepts"]
    assert entry["reference"] == "test/lora@1.0.0"
    assert entry["digest"] == str(concept.digest)
    assert entry["strength"] == 0.25


def test_a_compiled_denoiser_has_adapters_in_its_weights_where_it_sees_them(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    concept = make_lora(tmp_path / "l", pipeline)
    weight = pipeline.unet.mid_block.resnets[0].conv1.weight
    plain = weight.clone()
    pipeline.unet.compile(backend="eager")
    with attach(Composition(concept), pipeline):
        assert not torch.equal(weight, plain)
        assert not any(module._forward_hooks for module in pipeline.unet.modules())
    assert torch.equal(weight, plain)
