"""The benchmark on small real architectures: equal budgets, pieces that go on, methods of others, tables that merge."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptry.bases import FamilyId
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.errors import ConflictError, InvalidFileError, NotFoundError, TrainingError, UsageError
from conceptry.evaluation.bench_files import add_row
from conceptry.evaluation.bench_methods import (
    BenchMethod,
    Lesson,
    Taught,
    choose_methods,
    count_passes,
    find_method,
    list_methods,
    plan_job,
    use_gate,
)
from conceptry.evaluation.bench_results import merge_results, read_results, write_results
from conceptry.evaluation.bench_running import Bench, BenchOptions
from conceptry.evaluation.bench_strips import thin_prompts
from conceptry.evaluation.toybench import (
    FILE_NAME,
    digest_suite,
    list_own_subjects,
    load_suite,
    prepare_pictures,
    unify_digest,
)
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES, POSITIONS, STYLES
from conceptry.trainer.jobs import resolve
from conceptry.trainer.methods import TRAINERS
from conceptry.trainer.settings import resolve_settings
from tests.evaluation.lessons import make_lesson
from tests.evaluation.models import save_models
from tests.evaluation.rows import gather
from tests.fakes.concepts import make_rank_one
from tests.fakes.pipelines import make_pipeline, render
from tests.trainer.runs import paint_pictures

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' remarks

SUITE = load_suite()
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    for number, name in enumerate(("cat-1", "dog-2")):
        paint_pictures(folder / "subjects" / name, 4 + number)
    save_models(folder / "models")
    return folder


@pytest.fixture
def shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install the worked example of the documents as another package would lie there."""
    page = (DOCS / "benchmark_method.md").read_text(encoding="utf-8")
    source = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    assert source.count("\n") < 60
    place = tmp_path / "site"
    info = place / "text_shift-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "text_shift.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: text-shift\nVersion: 1.0\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[conceptry.benchmark_methods]\ntext-shift = text_shift:METHOD\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(place)
    return "text-shift"


def note(text: str) -> None:
    """Takes what a run says."""


def make_bench(folder: Path, out: Path, **changes: Any) -> Bench:
    options = BenchOptions(
        out=out,
        workdir=folder / "work",
        protocol="clip-dino",
        models={name: str(folder / "models" / name) for name in ("clip", "dino")},
        sample_passes=8,
        plain_pictures=2,
        superclass_pictures=1,
        most_prompts=2,
        steps=1,
    )
    return Bench(SUITE, make_pipeline("sd1"), replace(options, **changes))


def test_the_suite_is_frozen_and_as_large_as_it_says() -> None:
    instances = [one for one in SUITE.subjects if one.subject == "instance"]
    assert (len(instances), len({one.cls for one in instances})) == (24, 6)
    assert sum(1 for one in SUITE.subjects if one.subject == "style") == 6
    assert {subject: len(prompts) for subject, prompts in SUITE.prompts.items()} == {
        "instance": 20,
        "style": 20,
    }
    for prompt in (*SUITE.prompts["instance"], *SUITE.prompts["style"]):
        assert prompt.background in BACKGROUNDS
        assert prompt.kind in (None, *CLASSES)
        assert prompt.position in (None, *POSITIONS)
        assert prompt.style in (None, *STYLES)
        assert prompt.category in {"recontextualise", "recolour", "position", "style", "two objects"}
    assert len({one.category for one in thin_prompts(SUITE.prompts["instance"], 5)}) >= 4


def test_a_further_variant_voids_no_row_and_another_prompt_voids_all() -> None:
    document = tomllib.loads(files("conceptry.evaluation").joinpath(FILE_NAME).read_text(encoding="utf-8"))
    more = {"id": "lora-rank-2", "method": "lora", "settings": {"rank": 2}}
    assert digest_suite({**document, "variants": [*document["variants"], more]}) == SUITE.digest
    assert digest_suite({**document, "apart": []}) == SUITE.digest
    for name in document.keys() - {"variants", "apart"}:
        assert digest_suite({**document, name: "another"}) != SUITE.digest, name


def test_the_rows_that_are_kept_were_measured_with_the_suite_of_today() -> None:
    kept = [read_results(path) for path in sorted((DOCS / "toybench").glob("*.json"))]
    assert {unify_digest(one.suite_digest) for one in kept} == {str(SUITE.digest)}
    today = gather().model_copy(update={"suite_digest": str(SUITE.digest)})
    for one in kept:
        assert today.setting[:2] == one.setting[:2]
    other = gather().model_copy(update={"suite_digest": "sha256:" + "0" * 64})
    assert other.setting[:2] != today.setting[:2]


def test_every_method_of_the_trainer_takes_part_and_spends_the_same_budget(tmp_path: Path) -> None:
    ids = [method.id for method in list_methods(SUITE)]
    assert {row.id for row in TRAINERS} <= set(ids)
    assert len(ids) == len(set(ids))
    lesson = make_lesson(tmp_path, workdir=tmp_path)
    own = plan_job(replace(lesson, sample_passes=0), TRAINERS[0], {})
    assert own.steps == resolve_settings(TRAINERS[0].id, FamilyId("toybox"), {}).steps
    for row in TRAINERS:
        settings = resolve(plan_job(lesson, row, {}), FamilyId("toybox")).settings
        spent = settings.steps * count_passes(settings)
        assert SUITE.sample_passes - count_passes(settings) < spent <= SUITE.sample_passes, row.id
        assert settings.warmup_steps <= settings.steps


@pytest.fixture(scope="module")
def measured(folder: Path) -> Path:
    """Give the results of one method on two subjects, the run stopped after the first and begun again."""
    subjects, methods = list_own_subjects(folder / "subjects"), choose_methods(SUITE, ["textual_inversion"])
    bench = make_bench(folder, folder / "results")
    before = read_weights(bench)
    rows = bench.run(methods, subjects, note)
    next(rows)
    rows.close()
    stopped = read_results(folder / "results" / "textual_inversion.json")
    assert [row.subject for row in stopped.rows] == [subjects[0].id]
    again = make_bench(folder, folder / "results")
    assert [row.subject for row in again.run(methods, subjects, note)] == [subjects[1].id]
    assert list(again.run(methods, subjects, note)) == []
    for name, value in read_weights(bench).items():
        assert torch.equal(value, before[name]), name
    return folder / "results" / "textual_inversion.json"


def read_weights(bench: Bench) -> dict[str, torch.Tensor]:
    parts = (bench.pipeline.unet, bench.pipeline.text_encoder, bench.pipeline.vae)
    return {
        f"{place}.{name}": value.detach().clone()
        for place, part in enumerate(parts)
        for name, value in part.state_dict().items()
    }


def test_a_piece_goes_on_where_it_stopped_and_leaves_the_base_as_it_was(measured: Path) -> None:
    results = read_results(measured)
    assert [row.superclass for row in results.rows] == ["cat", "dog"]
    assert (results.sample_passes, {row.sample_passes for row in results.rows}) == (8, {8})
    for row in results.rows:
        assert row.pictures is not None
        with Image.open(measured.parent / row.pictures) as strip:
            assert strip.width == 2 * strip.height


def test_measuring_again_elsewhere_gives_the_same_scores(
    folder: Path, measured: Path, tmp_path: Path
) -> None:
    subjects, methods = (
        list_own_subjects(folder / "subjects")[:1],
        choose_methods(SUITE, ["textual_inversion"]),
    )
    (row,) = make_bench(folder, tmp_path, workdir=tmp_path / "work").run(methods, subjects, note)
    timing = {"training_seconds", "training_processor_seconds", "drawing_seconds"}
    assert row.model_dump(exclude=timing) == read_results(measured).rows[0].model_dump(exclude=timing)


def test_a_method_of_another_package_runs_by_name(folder: Path, tmp_path: Path, shift: str) -> None:
    subjects = list_own_subjects(folder / "subjects")[:1]
    (row,) = make_bench(folder, tmp_path).run([find_method(shift, SUITE)], subjects, note)
    assert row.size_bytes == 4 * 24
    assert row.identity.score != row.identity.floor
    assert read_results(tmp_path / "text-shift.json").rows == (row,)


def test_a_method_that_fails_is_named_and_the_others_are_measured(folder: Path, tmp_path: Path) -> None:
    def refuse(lesson: Lesson) -> Taught:
        raise TrainingError("the loss is not finite")

    bad = BenchMethod(id="bad", title="bad", teach=refuse)
    good = find_method("textual_inversion", SUITE)
    bench = make_bench(folder, tmp_path)
    subjects = list_own_subjects(folder / "subjects")[:1]
    rows = list(bench.run([bad, good], subjects, note))
    assert [row.method for row in rows] == ["textual_inversion"]
    assert [str(failure) for failure in bench.failures] == [
        f"bad on {subjects[0].id}: the loss is not finite"
    ]


def test_a_gate_is_changed_in_use_and_what_was_trained_stays(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    concept = make_rank_one(tmp_path / "edit", pipeline)
    used = use_gate(concept, {"bias": 0.25, "temperature": 0.5})
    (part,) = used.manifest.builds[0].parts
    assert part.method.kind == "rank_one"
    assert (part.method.gate.bias, part.method.gate.temperature) == (0.25, 0.5)
    assert used.blobs == concept.blobs
    assert used.digest != concept.digest
    pictures = []
    for one in (concept, used):
        with attach(Composition(one), pipeline):
            pictures.append(render(pipeline, "a photo of <r> on the beach"))
    assert not torch.equal(*pictures)


def test_no_time_left_begins_nothing(folder: Path, tmp_path: Path) -> None:
    bench = make_bench(folder, tmp_path, seconds=0.0)
    assert (
        list(bench.run(choose_methods(SUITE, ["lora"]), list_own_subjects(folder / "subjects"), note)) == []
    )


def test_results_measured_otherwise_are_never_mixed(folder: Path, measured: Path) -> None:
    bench = make_bench(folder, measured.parent, sample_passes=16)
    with pytest.raises(ConflictError, match="another suite, protocol, base or budget"):
        list(
            bench.run(
                choose_methods(SUITE, ["textual_inversion"]), list_own_subjects(folder / "subjects"), note
            )
        )
    results = read_results(measured)
    other = results.model_copy(update={"sample_passes": 16})
    with pytest.raises(ConflictError, match="sample passes 8 and 16"):
        merge_results([(Path("a.json"), results), (Path("b.json"), other)])


def test_two_laboratories_files_merge_and_what_differs_is_named(measured: Path) -> None:
    results = read_results(measured)
    first = results.model_copy(update={"rows": results.rows[:1]})
    changed = results.rows[0].model_copy(
        update={"identity": results.rows[0].identity.model_copy(update={"score": 0.123})}
    )
    second = results.model_copy(update={"rows": (changed, results.rows[1])})
    merged, remarks = merge_results([(Path("a.json"), first), (Path("b.json"), second)])
    assert merged.rows == results.rows
    assert remarks == (
        f"textual_inversion on {results.rows[0].subject} differs between files; b.json is left out",
    )


def test_a_file_that_is_no_result_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(NotFoundError, match="no results at"):
        read_results(path)
    path.write_text(json.dumps({"schema": 1, "suite": 3}), encoding="utf-8")
    with pytest.raises(InvalidFileError) as caught:
        read_results(path)
    assert caught.value.where
    with pytest.raises(NotFoundError, match="no results yet"):
        merge_results([])


def test_too_few_pictures_and_unknown_names_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no folders of pictures"):
        list_own_subjects(tmp_path)
    paint_pictures(tmp_path / "dog-1", 3)
    with pytest.raises(UsageError, match="3 pictures in"):
        list_own_subjects(tmp_path)
    with pytest.raises(UsageError) as caught:
        find_method("perfusion-bias-0.7", SUITE)
    assert "did you mean" in str(caught.value.hint)
    with pytest.raises(UsageError, match="has no subject 'dragon'"):
        SUITE.find_subject("dragon")


def test_what_is_held_out_is_never_taught(folder: Path, tmp_path: Path) -> None:
    (subject, _) = list_own_subjects(folder / "subjects")
    assert subject.folder is not None
    (tmp_path / "pictures").mkdir()
    shutil.copyfile(subject.folder / "2.png", tmp_path / "pictures" / "earlier.png")
    truth = prepare_pictures(subject, 6, tmp_path / "pictures")
    taught = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert taught == {"0.png", "1.png", "3.png"}
    with Image.open(subject.folder / "2.png") as held_out:
        assert np.array_equal(np.asarray(truth.ceiling[0]), np.asarray(held_out.convert("RGB")))


def test_a_copy_of_a_picture_is_neither_counted_nor_held_out(tmp_path: Path) -> None:
    paint_pictures(tmp_path / "dog-1", 3)
    shutil.copyfile(tmp_path / "dog-1" / "0.png", tmp_path / "dog-1" / "2b.png")
    with pytest.raises(UsageError, match="3 pictures in"):
        list_own_subjects(tmp_path)
    paint_pictures(tmp_path / "dog-1", 4)
    (subject,) = list_own_subjects(tmp_path)
    truth = prepare_pictures(subject, 6, tmp_path / "pictures")
    assert (len(truth.training or ()), len(truth.ceiling)) == (3, 1)
    assert not (tmp_path / "pictures" / "2b.png").exists()


def test_other_pictures_under_the_same_name_are_another_subject(tmp_path: Path) -> None:
    paint_pictures(tmp_path / "dog-1", 4)
    (first,) = list_own_subjects(tmp_path)
    assert list_own_subjects(tmp_path) == (first,)
    shutil.copyfile(tmp_path / "dog-1" / "0.png", tmp_path / "spare.png")
    Image.new("RGB", (64, 64), "green").save(tmp_path / "dog-1" / "0.png")
    (second,) = list_own_subjects(tmp_path)
    assert second.id != first.id
    assert second.id.startswith("dog-1@")
    assert replace(SUITE, subjects=(second,)).find_subject("dog-1") == second


def test_other_models_are_another_protocol(folder: Path, tmp_path: Path) -> None:
    one = make_bench(folder, tmp_path)
    assert one.protocol.startswith("clip-dino ")
    shutil.copytree(folder / "models", tmp_path / "models")
    weights = tmp_path / "models" / "dino" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    models = {name: str(tmp_path / "models" / name) for name in ("clip", "dino")}
    other = Bench(SUITE, one.pipeline, replace(one.options, models=models))
    assert other.protocol != one.protocol
    assert Bench(SUITE, one.pipeline, replace(one.options, protocol="toybox-1")).protocol == "toybox-1"


def make_guest(teach: Any, id: str = "guest") -> BenchMethod:
    return BenchMethod(id=id, title=id, teach=teach, origin=f"{id} = package:METHOD")


def make_taught(passes: int) -> Taught:
    return Taught(word="sks cat", attach=nullcontext, size_bytes=1, sample_passes=passes, seconds=0.0)


def run_guests(folder: Path, out: Path, *methods: BenchMethod) -> tuple[list[str], list[str]]:
    """Returns which rows there are after guests ran before a method of ours, and what failed."""
    bench = make_bench(folder, out)
    own = find_method("textual_inversion", SUITE)
    rows = list(bench.run([*methods, own], list_own_subjects(folder / "subjects")[:1], note))
    return [row.method for row in rows], [str(failure) for failure in bench.failures]


def test_whatever_a_guest_raises_is_its_failure_alone(folder: Path, tmp_path: Path) -> None:
    def stumble(lesson: Lesson) -> Taught:
        raise KeyError("x")

    rows, failed = run_guests(folder, tmp_path, make_guest(stumble))
    assert rows == ["textual_inversion"]
    assert "entry point 'guest = package:METHOD' failed: KeyError: 'x'" in failed[0]


def test_a_guest_that_spends_more_than_the_budget_is_not_compared(folder: Path, tmp_path: Path) -> None:
    def hide(lesson: Lesson) -> Taught:
        latents, text = (
            torch.zeros(10, 4, 8, 8),
            torch.zeros(10, 4, lesson.pipeline.unet.config.cross_attention_dim),
        )
        lesson.pipeline.unet(latents, 0, text)
        return make_taught(8)

    greedy = make_guest(lambda lesson: make_taught(100 * lesson.sample_passes), "greedy")
    rows, failed = run_guests(folder, tmp_path, greedy, make_guest(hide, "hiding"))
    assert rows == ["textual_inversion"]
    assert "it spent 800 sample passes of 8" in failed[0]
    assert "it spent 10 sample passes of 8" in failed[1]


def test_a_guest_that_changes_the_base_ends_the_run_and_gets_no_row(folder: Path, tmp_path: Path) -> None:
    def soil(lesson: Lesson) -> Taught:
        with torch.no_grad():
            lesson.pipeline.unet.conv_out.weight.view(-1)[3] += 0.5
        return make_taught(8)

    rows, failed = run_guests(folder, tmp_path, make_guest(soil))
    assert rows == []
    assert "changed the weights of the base" in failed[0]
    assert not list(tmp_path.glob("*.json"))


def test_a_guest_with_a_name_that_is_taken_is_refused(shift: str, tmp_path: Path) -> None:
    entries = next((tmp_path / "site").rglob("entry_points.txt"))
    entries.write_text(
        entries.read_text(encoding="utf-8") + "text-again = text_shift:METHOD\n", encoding="utf-8"
    )
    with pytest.raises(UsageError, match="as does the entry point"):
        list_methods(SUITE)
    source = tmp_path / "site" / "text_shift.py"
    for name, said in (("lora", "as does the benchmark itself"), ("../lora", "names its method '../lora'")):
        (tmp_path / "site" / "renamed.py").write_text(
            source.read_text(encoding="utf-8").replace('id="text-shift"', f'id="{name}"'), encoding="utf-8"
        )
        sys.modules.pop("renamed", None)
        importlib.invalidate_caches()
        entries.write_text("[conceptry.benchmark_methods]\nlora = renamed:METHOD\n", encoding="utf-8")
        with pytest.raises(UsageError, match=said):
            list_methods(SUITE)


def test_two_processes_on_one_file_lose_no_row(measured: Path, tmp_path: Path) -> None:
    first, second = read_results(measured).rows
    fresh = read_results(measured).model_copy(update={"rows": ()})
    path = tmp_path / "textual_inversion.json"
    with ThreadPoolExecutor(8) as pool:
        rows = [first.model_copy(update={"seed": seed}) for seed in range(16)]
        list(pool.map(lambda row: add_row(path, row, fresh), [*rows, second]))
    assert {row.key for row in read_results(path).rows} == {row.key for row in (*rows, second)}
    add_row(path, second.model_copy(update={"title": "later"}), fresh)
    assert second in read_results(path).rows
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_written_results_are_read_as_they_were(measured: Path, tmp_path: Path) -> None:
    results = read_results(measured)
    write_results(tmp_path / "copy.json", results)
    assert read_results(tmp_path / "copy.json") == results
