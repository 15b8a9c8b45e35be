"""Several subjects in one run: one package, a word for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.bases import ComponentName, FamilyId
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention
from conceptry.composer.tensors import to_torch
from conceptry.composer.tokens import TokenPatch, TokenRows
from conceptry.errors import InterruptedByUserError, InvalidImagesError, UsageError
from conceptry.formats.embedding import read_embedding
from conceptry.formats.tensors import read_tensors
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.jobs import TrainJob, make_job, read_job, resolve
from conceptry.trainer.latents import take_turns
from conceptry.trainer.preparation import prepared
from conceptry.trainer.prompts import Wording, write_prompts_of_several
from conceptry.trainer.staging import Stage
from conceptry.trainer.training import TrainResult, train
from tests.fakes.pipelines import Shape, assert_same, make_pipeline, render, snapshot
from tests.trainer.runs import paint_pictures, stage_job, write_job

CASES: list[tuple[str, Shape, dict[str, Any]]] = [
    ("textual_inversion", "sdxl", {}),
    ("xti", "sdxl", {"vectors": 2}),
    ("lora", "sd1", {}),
    ("custom_diffusion", "sd1", {"prior": "pictures", "prior_pictures": 2}),
    ("dreambooth", "sd1", {}),
    ("pivotal", "sd1", {}),
]
_QUICK = ("textual_inversion", "custom_diffusion")
_LISTED = [pytest.param(*one, marks=() if one[0] in _QUICK else pytest.mark.slow, id=one[0]) for one in CASES]


def write_pair(method: str, folder: Path, **changes: Any) -> TrainJob:
    """Returns a job that learns an imp from three pictures and a rex from one."""
    rex = folder / "rex"
    if not rex.exists():
        paint_pictures(rex, count=1)
    also = [{"placeholder": "<rex>", "superclass": "dog", "images": rex}]
    return write_job(method, folder, also=also, **changes)


def run(method: str, folder: Path, base: Any, work: str = "work", **changes: Any) -> TrainResult:
    options = {key: changes.pop(key) for key in ("on_event", "resume") if key in changes}
    job = write_pair(method, folder, **changes)
    return train(job, base=base, workdir=folder / work, cache_folder=folder / "cache", **options)


def stage_pair(method: str, folder: Path, base: Any, **changes: Any) -> Stage:
    return stage_job(write_pair(method, folder, **changes), folder, base)


@pytest.mark.parametrize(("method", "shape", "settings"), _LISTED)
def test_one_package_answers_to_both_words_and_resumes_exactly(
    method: str, shape: Shape, settings: dict[str, Any], tmp_path: Path
) -> None:
    base = make_pipeline(shape)
    before = snapshot(base)
    settings = {"keep": "last", **settings}
    whole = run(method, tmp_path, base, "whole", steps=4, settings=settings)
    tokens = whole.concept.manifest.tokens
    assert [(token.placeholder, token.superclass) for token in tokens] == [
        ("<imp>", "creature"),
        ("<rex>", "dog"),
    ]

    def stop_after_two(event: TrainEvent) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedByUserError) as caught:
        run(method, tmp_path, base, "stopped", steps=4, settings=settings, on_event=stop_after_two)
    assert f"--also '<rex>' dog {tmp_path / 'rex'}" in str(caught.value.hint)
    resumed = run(method, tmp_path, base, "stopped", steps=4, settings=settings, resume=True)
    assert resumed.concept.digest == whole.concept.digest

    prompts = whole.concept.manifest.usage.prompts
    called = [next(text for text in prompts if word in text) for word in ("<imp>", "<rex>")]
    plain = [render(base, text) for text in called]
    with attach(Composition(whole.concept), base):
        changed = [render(base, text) for text in called]
    for was, now in zip(plain, changed, strict=True):
        assert torch.isfinite(now).all()
        assert not torch.equal(was, now)
    assert_same(before, snapshot(base))


def test_each_placeholder_has_rows_of_its_own(tmp_path: Path) -> None:
    result = run("textual_inversion", tmp_path, make_pipeline(), steps=2)
    rows = read_tensors(result.folder / "embedding.safetensors")
    assert set(rows) == {"text_encoder/<imp>", "text_encoder/<rex>"}
    assert len({value.data for value in rows.values()}) == 2


def test_a_prompt_with_both_words_is_read_by_each_layer_with_its_rows_of_both(tmp_path: Path) -> None:
    """While it is trained as in use: the composer reads the saved file by itself."""
    base = make_pipeline()
    prompt = "a <imp> beside a <REX>"
    with prepared(base):
        stage = stage_pair("xti", tmp_path, base, settings={"vectors": 2})
        with torch.no_grad():
            for number, row in enumerate(stage.learner.parameters.values()):
                row.add_(torch.randn(row.shape, generator=torch.Generator().manual_seed(number)))
        draft = stage.learner.draft()
        draft.parts[0].files["embedding.safetensors"](tmp_path / "embedding.safetensors", {})
        with stage.learner.attached(), torch.no_grad():
            states = stage.learner.condition([prompt]).states
    contents = read_embedding(tmp_path / "embedding.safetensors")
    layers = [path for path, _ in iter_cross_attention(base.unet)]
    assert contents.layers == tuple(layers)
    parts = states.chunk(len(layers), dim=1)
    for number, part in enumerate(parts):
        rows = [
            TokenRows(word, {ComponentName(component): to_torch(raw)[number]})
            for (component, word), raw in contents.rows.items()
        ]
        with TokenPatch(base, rows), torch.no_grad():
            assert torch.allclose(part, encode_prompts(base, [prompt]), atol=1e-5)
    assert not torch.allclose(parts[0], parts[1], atol=1e-3)


def test_both_subjects_are_drawn_equally_often_whatever_their_pictures(tmp_path: Path) -> None:
    base = make_pipeline()
    with prepared(base):
        context = stage_pair("lora", tmp_path, base, settings={"batch_size": 3}).context
    drawn = [pair for step in range(8) for pair in context.draw_batch(step).prompts]
    assert [sum(pair.subject == number for pair in drawn) for number in (0, 1)] == [12, 12]
    for pair in drawn:
        words = (("<imp> creature", "creature"), ("<rex> dog", "dog"))[pair.subject]
        assert words[0] in pair.concept
        assert words[1] in pair.plain
        assert "<" not in pair.plain
    assert {pair.subject for pair in context.draw_fixed_batch(2).prompts} == {0, 1}


def test_turns_of_one_subject_are_its_pictures_as_they_are() -> None:
    assert take_turns([0, 0, 0]) == ()
    assert take_turns([0, 0, 0, 1]) == (0, 3, 1, 3, 2, 3)


def test_a_caption_that_names_another_subject_is_written_in_full_and_the_base_is_not_asked_for_it() -> None:
    imp = Wording("<imp>", "creature", "<imp> creature", "object", FamilyId("sd1"))
    rex = Wording("<rex>", "dog", "<rex> dog", "object", FamilyId("sd1"))
    captions = ["a <imp> beside a <rex>", "a creature beside a <rex> dog"]
    for (pair,) in write_prompts_of_several(captions, [0, 0], [imp, rex]):
        assert pair.concept == "a <imp> creature beside a <rex> dog"
        assert pair.plain == "a creature beside a dog"


# --- how a job says it, and what is wrong with it ------------------------------------------------------------------

WRITTEN: dict[str, Any] = {
    "method": "lora",
    "images": "imp",
    "name": "alice/both",
    "placeholder": "<imp>",
    "superclass": "creature",
}
REX = {"placeholder": "<rex>", "superclass": "dog", "images": "rex"}


def test_a_file_and_python_give_the_same_job_and_the_recipe_tells_subjects_apart(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'method = "lora"\nimages = "imp"\nname = "alice/both"\nplaceholder = "<imp>"\nsuperclass = "creature"\n'
        '[[also]]\nplaceholder = "<rex>"\nsuperclass = "dog"\nimages = "rex"\n',
        encoding="utf-8",
    )
    read = read_job(tmp_path / "job.toml")
    also = [{**REX, "images": tmp_path / "rex"}]
    assert read == make_job({**WRITTEN, "images": tmp_path / "imp", "also": also})
    family = FamilyId("sd1")
    alone, other = make_job(WRITTEN), make_job({**WRITTEN, "also": [{**REX, "superclass": "cat"}]})
    assert len({resolve(job, family).recipe for job in (read, alone, other)}) == 3


@pytest.mark.parametrize(
    ("changes", "also", "where", "said"),
    [
        ({}, [{**REX, "placeholder": "<IMP>"}], "also.0", "'<IMP>' has the placeholder of '<imp>'"),
        ({}, [{**REX, "images": "imp"}], "also.0", "'<rex>' has the pictures of '<imp>'"),
        ({}, [REX, {**REX, "images": "max"}], "also.1", "has the placeholder of '<rex>'"),
        ({}, [{"placeholder": "<rex>", "superclass": "dog"}], "also.0.images", "needs 'also.0.images'"),
        ({}, [{**REX, "superclas": "dog"}], "also.0.superclas", "no key 'superclas'"),
        ({"method": "perfusion"}, [REX], "also", "Perfusion learns one subject in a run, this job has 2"),
    ],
)
def test_subjects_that_cannot_be_told_apart_are_refused(
    changes: dict[str, Any], also: list[dict[str, Any]], where: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_job({**WRITTEN, **changes, "also": also})
    assert caught.value.where == where
    assert said in caught.value.message
    assert caught.value.hint


def test_a_second_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "rex").mkdir()
    job = write_pair("lora", tmp_path)
    with pytest.raises(InvalidImagesError) as caught:
        train(job, base=make_pipeline(), workdir=tmp_path / "work", cache_folder=tmp_path / "cache")
    assert str(caught.value).startswith("also.0: ")
    assert "is empty" in str(caught.value)
