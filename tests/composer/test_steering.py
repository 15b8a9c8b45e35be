"""Strengths by part, by step and by region, turns and passes: against attaching by hand what is in effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from conceptry.composer import Composition, attach, presence, sequences
from conceptry.composer.attach import Attachment
from conceptry.composer.emphasis import emphasized, join_pieces
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention
from conceptry.composer.plan import make_plan
from conceptry.composer.prompts import parse_weights
from conceptry.composer.regions import make_mask
from conceptry.composer.slots import Slot
from conceptry.composer.ways import WAYS
from conceptry.composition import (
    CompositionDocument,
    Member,
    Region,
    Schedule,
    Use,
    format_composition,
    read_composition,
)
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError, UsageError
from conceptry.names import Reference
from tests.fakes.concepts import make_layered, make_lora, make_rank_one
from tests.fakes.pipelines import make_pipeline, render

STEPS = 6


@pytest.fixture
def pair(sd1: Any, tmp_path: Path) -> tuple[Concept, Concept]:
    first, second = (
        make_lora(tmp_path / name, sd1, name=f"test/{name}", placeholder=name, seed=seed)
        for seed, name in enumerate(("a", "b"))
    )
    return first, second


def draw(pipeline: Any, **settings: Any) -> torch.Tensor:
    """Latents, so that no rounding of a picture hides a difference."""
    found: torch.Tensor = pipeline(
        prompt=["a photo of a cat"],
        generator=[torch.Generator().manual_seed(3)],
        num_inference_steps=STEPS,
        output_type="latent",
        **settings,
    ).images
    return found


def draw_by_hand(
    pipeline: Any, attachment: Attachment, strengths: Callable[[int], dict[str, float]]
) -> torch.Tensor:
    """Sets strengths before each step, as a user would by hand."""

    def set_next(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        attachment.set_strengths(strengths(step + 1))
        return kwargs

    # The words are read with all strengths at 1, as only the denoiser is steered.
    embeds = encode_prompts(pipeline, ["a photo of a cat", ""])
    attachment.set_strengths(strengths(0))
    found: torch.Tensor = pipeline(
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=embeds[1:],
        generator=[torch.Generator().manual_seed(3)],
        num_inference_steps=STEPS,
        output_type="latent",
        callback_on_step_end=set_next,
    ).images
    return found


def predict(pipeline: Any, *, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    encoded = encode_prompts(pipeline, ["a photo of a cat"])
    with torch.no_grad():
        latents = torch.randn(1, 4, size, size, generator=generator)
        found: torch.Tensor = pipeline.unet(latents, 5, encoder_hidden_states=encoded).sample
    return found


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# --- by part ---------------------------------------------------------------------------------------------------------


def test_a_part_of_the_network_has_its_own_share_and_the_longest_name_counts(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    with attach(Composition(pair[0]), sd1):
        whole = predict(sd1)
    plain = predict(sd1)
    for parts, expected in (({"unet": 0.0, "text_encoder": 0.0}, plain), ({"unet": 1.0}, whole)):
        with attach(Composition(pair[0], use={"test/a": Use(parts=parts)}), sd1):
            assert torch.equal(predict(sd1), expected)
    with attach(Composition(pair[0] * 0.5), sd1):
        half = predict(sd1)
    doubled = Use(parts={"unet": 2.0, "text_encoder": 2.0, "unet.up_blocks.7": 0.0})
    with attach(Composition(pair[0] * 0.25, use={"test/a": doubled}), sd1):
        near(predict(sd1), half)


def test_a_block_that_is_left_out_changes_nothing_there(sd1: Any, pair: tuple[Concept, Concept]) -> None:
    blocks = {"unet.down_blocks": 0.0, "text_encoder": 0.0}
    with attach(Composition(pair[0], use={"test/a": Use(parts=blocks)}), sd1):
        kept = predict(sd1)
    with attach(Composition(pair[0], use={"test/a": Use(parts={"unet.mid_block": 0.0} | blocks)}), sd1):
        near(predict(sd1), predict_plain(sd1))
    assert not torch.allclose(kept, predict_plain(sd1))


def predict_plain(pipeline: Any) -> torch.Tensor:
    """The base's own answer, while something is attached: by a copy of its weights."""
    import copy

    return (
        predict(copy.deepcopy(pipeline))
        if not pipeline.__dict__.get("_conceptry_attachments")
        else _bare(pipeline)
    )


def _bare(pipeline: Any) -> torch.Tensor:
    attachments = list(pipeline.__dict__["_conceptry_attachments"])
    saved = {id(one): one.composition for one in attachments}
    for one in attachments:
        names = [str(member.concept.manifest.name) for member in one.composition.members]
        one.set_strengths(dict.fromkeys(names, 0.0))
    found = predict(pipeline)
    for one in attachments:
        one.change(saved[id(one)])
    return found


# --- by step ---------------------------------------------------------------------------------------------------------


def test_a_schedule_is_what_setting_strengths_by_hand_before_each_step_is(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    schedule = Schedule(start=0.0, stop=0.5)
    with attach(Composition(*pair, use={"test/b": Use(schedule=schedule, parts={"text_encoder": 0.0})}), sd1):
        timed = draw(sd1)
        again = draw(sd1)
    assert torch.equal(timed, again)
    quiet = Use(parts={"text_encoder": 0.0})
    attachment = attach(Composition(*pair, use={"test/b": quiet}), sd1)
    with attachment:
        by_hand = draw_by_hand(sd1, attachment, lambda step: {"test/b": float(step / STEPS < 0.5)})
        always = draw(sd1)
    assert torch.equal(timed, by_hand)
    assert not torch.allclose(timed, always)


def test_a_schedule_rises_and_falls_over_its_ramp() -> None:
    schedule = Schedule(start=0.2, stop=0.8, ramp=0.2)
    assert [round(schedule.factor(step / 10), 3) for step in range(10)] == [0, 0, 0, 0.5, 1, 1, 1, 0.5, 0, 0]
    assert [Schedule(ramp=0.5).factor(progress) for progress in (0.0, 0.5, 0.99)] == [1, 1, 1]
    with pytest.raises(ValidationError, match="is not before stop"):
        Schedule(start=0.5, stop=0.5)


# --- ways ------------------------------------------------------------------------------------------------------------


def test_switch_gives_each_concept_its_turn(sd1: Any, pair: tuple[Concept, Concept]) -> None:
    use = {f"test/{name}": Use(parts={"text_encoder": 0.0}) for name in ("a", "b")}
    with attach(Composition(*pair, use=use, way="switch", period=2), sd1):
        by_turns = draw(sd1)
    attachment = attach(Composition(*pair, use=use), sd1)
    with attachment:
        turns = [("test/a", "test/b")[step // 2 % 2] for step in range(STEPS + 1)]
        by_hand = draw_by_hand(
            sd1, attachment, lambda step: {name: float(name == turns[step]) for name in ("test/a", "test/b")}
        )
    assert torch.equal(by_turns, by_hand)


def test_composite_is_the_mean_of_what_each_alone_predicts(sd1: Any, pair: tuple[Concept, Concept]) -> None:
    use = {f"test/{name}": Use(parts={"text_encoder": 0.0}) for name in ("a", "b")}
    alone = []
    for concept in pair:
        with attach(
            Composition(concept, use={str(concept.manifest.name): Use(parts={"text_encoder": 0.0})}), sd1
        ):
            alone.append(predict(sd1))
    with attach(Composition(*pair, use=use, way="composite"), sd1):
        near(predict(sd1), (alone[0] + alone[1]) / 2)
        draw(sd1)


def test_every_way_is_known_by_its_paper_and_leaves_nothing_behind(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    for row in WAYS:
        assert row.paper
        with attach(Composition(*pair, way=row.id), sd1):
            draw(sd1)


# --- by region -------------------------------------------------------------------------------------------------------


def test_a_region_has_its_own_concepts_and_the_rest_has_none(sd1: Any, pair: tuple[Concept, Concept]) -> None:
    left, right = Region(box=(0.0, 0.0, 0.5, 1.0)), Region(box=(0.5, 0.5, 1.0, 1.0))
    quiet = {"text_encoder": 0.0}
    alone = [predict(sd1)]
    for concept in pair:
        with attach(Composition(concept, use={str(concept.manifest.name): Use(parts=quiet)}), sd1):
            alone.append(predict(sd1))
    use = {"test/a": Use(parts=quiet, region=left), "test/b": Use(parts=quiet, region=right)}
    with attach(Composition(*pair, use=use), sd1):
        found = predict(sd1)
    near(found[..., :4], alone[1][..., :4])
    near(found[..., 4:, 4:], alone[2][..., 4:, 4:])
    near(found[..., :4, 4:], alone[0][..., :4, 4:])


def test_regions_that_overlap_are_averaged(sd1: Any, pair: tuple[Concept, Concept]) -> None:
    quiet, whole, alone = {"text_encoder": 0.0}, (0.0, 0.0, 1.0, 1.0), []
    for concept in pair:
        with attach(Composition(concept, use={str(concept.manifest.name): Use(parts=quiet)}), sd1):
            alone.append(predict(sd1))
    # Two regions of one box are one region: only a feather that the whole picture has no edge for tells them apart.
    use = {
        "test/a": Use(parts=quiet, region=Region(box=whole)),
        "test/b": Use(parts=quiet, region=Region(box=whole, feather=0.1)),
    }
    with attach(Composition(*pair, use=use), sd1):
        near(predict(sd1), (alone[0] + alone[1]) / 2)


def test_a_region_may_be_drawn_by_a_prompt_of_its_own(sd1: Any, pair: tuple[Concept, Concept]) -> None:
    def paint(prompt: str | None) -> torch.Tensor:
        region = Region(box=(0.0, 0.0, 0.5, 1.0), prompt=prompt)
        with attach(Composition(pair[0], use={"test/a": Use(region=region)}), sd1):
            return draw(sd1)

    assert torch.equal(paint("a photo of a cat"), paint(None))
    assert not torch.allclose(paint("a dog on the beach"), paint(None))


def test_words_of_a_regions_prompt_are_weighed_and_concepts_are_not_named_there(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    def paint(prompt: str) -> torch.Tensor:
        region = Region(box=(0.0, 0.0, 0.5, 1.0), prompt=prompt)
        with attach(Composition(pair[0], use={"test/a": Use(region=region)}), sd1):
            return predict(sd1)

    plain = paint("a dog on the beach")
    assert torch.equal(paint("a (dog:1.0) on the beach"), plain)
    assert not torch.equal(paint("a (dog:1.8) on the beach"), plain)
    region = Region(box=(0.0, 0.0, 0.5, 1.0), prompt="a dog <lora:imp:0.5>")
    with pytest.raises(
        UsageError, match=r"test/a@1\.0\.0 names the lora 'imp'"
    ):  # before a composition is written too
        make_plan(Composition(pair[0], use={"test/a": Use(region=region)}), identify_pipeline(sd1))


@pytest.mark.parametrize(
    ("make", "settings", "prompt"),
    [
        (make_layered, {}, "a dog and <w>"),
        (make_rank_one, {"key_lock": "global"}, "a dog and <w>"),
        (make_rank_one, {}, "a dog"),
    ],
    ids=["vectors for each layer", "keys locked for a whole prompt", "a gate that no word opens"],
)
def test_a_regions_prompt_is_known_after_any_number_of_pictures(
    make: Any, settings: Any, prompt: str, sd1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (presence, sequences):
        monkeypatch.setattr(module, "RECENT_SEQUENCES", 4)
    concept = make(tmp_path / "c", sd1, "<w>", **settings)
    use = {str(concept.manifest.name): Use(region=Region(box=(0.0, 0.0, 0.5, 1.0), prompt=prompt))}
    with attach(Composition(concept, use=use), sd1):
        first = render(sd1, "a <w> cat")
        encode_prompts(sd1, ["a", "b", "c", "d", "e"])
        assert torch.equal(render(sd1, "a <w> cat"), first)


def test_a_regions_prompt_is_read_with_what_came_into_the_text_encoder_later(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    region = Region(box=(0.0, 0.0, 0.5, 1.0), prompt="a dog on the beach")
    one, other = (
        Composition(concept, use={str(concept.manifest.name): use})
        for concept, use in zip(
            pair,
            (Use(region=region, parts={"text_encoder": 0.0}), Use(parts={"unet": 0.0})),
            strict=True,
        )
    )
    with attach(other, sd1), attach(one, sd1):
        expected = draw(sd1)
    with attach(one, sd1), attach(other, sd1):
        assert torch.equal(draw(sd1), expected)


def test_weights_of_a_pictures_words_are_none_of_the_same_words_in_a_region(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    read: list[torch.Tensor] = []
    pieces = parse_weights("a (dog:1.8) on the beach")
    region = Region(box=(0.0, 0.0, 0.5, 1.0), prompt="a dog on the beach")
    with attach(Composition(pair[0], use={"test/a": Use(region=region)}), sd1):
        plain = encode_prompts(sd1, ["a dog on the beach"])[0]
        with emphasized(sd1, pieces):
            _, attention = next(iter_cross_attention(sd1.unet))
            handle = attention.to_k.register_forward_pre_hook(lambda _, args: read.append(args[0][-1]))
            render(sd1, join_pieces(pieces), steps=1)
            handle.remove()
    assert [torch.equal(one, plain) for one in read] == [False, True]


def test_a_feather_is_soft_inside_the_picture_only() -> None:
    hard = make_mask(Region(box=(0.0, 0.0, 0.5, 1.0)), 4, 8)
    assert hard[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    soft = make_mask(Region(box=(0.0, 0.0, 0.5, 1.0), feather=0.25), 4, 8)
    assert soft[:, 0].tolist() == [1, 1, 1, 1]
    assert soft[0].tolist() == [1, 1, 1, 0.75, 0.25, 0, 0, 0]
    with pytest.raises(ValidationError, match="is empty"):
        Region(box=(0.5, 0.0, 0.5, 1.0))


# --- what is refused, and what is left -------------------------------------------------------------------------------


def test_two_compositions_cannot_follow_the_steps_of_one_pipeline(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    with attach(Composition(pair[0], use={"test/a": Use(schedule=Schedule(stop=0.5))}), sd1):
        with pytest.raises(IncompatibleError, match="follows the steps of this pipeline already"):
            attach(Composition(pair[1], use={"test/b": Use(schedule=Schedule(stop=0.5))}), sd1)
        timed = draw(sd1)
    assert not torch.allclose(timed, draw(sd1))


def test_regions_in_passes_of_their_own_are_refused_before_anything_changes(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    use = {"test/a": Use(region=Region(box=(0.0, 0.0, 0.5, 1.0)))}
    with pytest.raises(UsageError, match="both take passes"):
        attach(Composition(*pair, use=use, way="composite"), sd1)
    with pytest.raises(UsageError, match="'test/c' is to be set but not in the composition"):
        Composition(*pair, use={"test/c": Use()})


def test_a_composition_file_says_parts_steps_regions_and_the_way(tmp_path: Path) -> None:
    member = Member(
        reference=Reference.parse("me/imp@1.0.0"),
        strength=0.8,
        parts={"text_encoder": 0.5, "unet.up_blocks.1": 0.0},
        schedule=Schedule(start=0.1, stop=0.9, ramp=0.1),
        region=Region(box=(0.0, 0.0, 0.5, 1.0), prompt="an imp"),
    )
    document = CompositionDocument(concepts=(member,), way="switch", period=3)
    path = tmp_path / "composition.toml"
    path.write_text(format_composition(document), encoding="utf-8")
    assert read_composition(path) == document
    path.write_text(
        '[[concepts]]\nreference = "me/imp"\nschedule = {start = 0.9, stop = 0.1}\nschema = 1\n',
        encoding="utf-8",
    )
    with pytest.raises(UsageError):
        read_composition(path)


@pytest.mark.parametrize("fault", ["the new way is refused", "a concept cannot be put in"])
def test_a_change_that_fails_leaves_what_follows_the_steps(
    sd1: Any, pair: tuple[Concept, Concept], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    timed = Composition(pair[0] * 0.5, use={"test/a": Use(schedule=Schedule(stop=0.5))})
    region = {"test/b": Use(region=Region(box=(0.0, 0.0, 0.5, 1.0)))}
    with attach(timed, sd1):
        expected = draw(sd1)
    attachment = attach(timed, sd1)
    if fault == "the new way is refused":
        with pytest.raises(UsageError, match="both take passes"):
            attachment.change(Composition(*pair, use=region, way="composite"))
    else:
        monkeypatch.setattr(Slot, "put_in", refuse_once(Slot.put_in))
        with pytest.raises(IncompatibleError, match="not today"):
            attachment.change(Composition(*pair))
    assert torch.equal(draw(sd1), expected)
    attachment.detach()
    assert not torch.allclose(draw(sd1), expected)


def refuse_once(put_in: Callable[[Slot], None]) -> Callable[[Slot], None]:
    """Return what fails the first time, as a layer that somebody else holds does, and then does as before."""
    calls: list[Slot] = []

    def refuse(slot: Slot) -> None:
        calls.append(slot)
        if len(calls) == 1:
            raise IncompatibleError("not today")
        put_in(slot)

    return refuse


@pytest.mark.parametrize("compiled", ["in place", "wrapped"])
def test_passes_run_uncompiled_code_however_the_denoiser_was_compiled(
    pair: tuple[Concept, Concept], compiled: str, tmp_path: Path
) -> None:
    pipeline, traced = make_pipeline("sd1"), []
    use = {"test/a": Use(region=Region(box=(0.0, 0.0, 0.5, 1.0)))}
    asked = (
        Composition(*pair, way="focus"),
        Composition(*pair, way="composite"),
        Composition(*pair, use=use),
    )
    expected = []
    for composition in asked:
        with attach(composition, pipeline):
            expected.append(predict(pipeline))

    def compile_nothing(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        traced.append(graph)
        return graph.forward

    if compiled == "wrapped":
        pipeline.unet = torch.compile(pipeline.unet, backend=compile_nothing)
    else:
        pipeline.unet.compile(backend=compile_nothing)
    before = dict(vars(pipeline.unet))
    for composition, answer in zip(asked, expected, strict=True):
        with attach(composition, pipeline):
            near(predict(pipeline), answer, 1e-4)
    assert not traced
    assert vars(pipeline.unet) == before  # and compiled code runs again
