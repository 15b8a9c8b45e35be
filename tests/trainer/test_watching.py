"""What looks on while a run is made: it changes nothing, and shows what is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from conceptry.composer.pipelines import Pipeline
from conceptry.errors import InterruptedByUserError, MissingExtraError
from conceptry.trainer import curves, previews
from conceptry.trainer.arithmetic import OperationCounter
from conceptry.trainer.events import TrainEvent, WatchOptions
from conceptry.trainer.training import TrainResult, train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import FAST, write_job

STEPS = 4
NAMES = ["000.png", "025.png", "050.png", "075.png", "100.png"]


def slowly(method: str) -> Any:
    return pytest.param(method, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _quick_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "STEPS", 1)
    monkeypatch.setattr(previews, "SEEDS", (0,))


def run(folder: Path, method: str, watch: WatchOptions | None, work: str, **options: Any) -> TrainResult:
    settings = {"ema_decay": 0.5, "evaluate_every_steps": 2}
    job = write_job(method, folder, steps=STEPS, settings=settings)
    return train(
        job,
        base=options.pop("base", None) or make_pipeline(),
        workdir=folder / work,
        cache_folder=folder / "cache",
        watch=watch,
        **options,
    )


def read_points(folder: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (folder / curves.HISTORY_NAME).read_text().splitlines()]
    return [(row["curve"], row["step"]) for row in rows]


@pytest.mark.parametrize(
    "method", ["textual_inversion", *(slowly(method) for method in FAST if method != "textual_inversion")]
)
def test_previews_curves_and_counting_change_no_bit_of_the_result(method: str, tmp_path: Path) -> None:
    plain = run(tmp_path, method, None, "plain")
    events: list[TrainEvent] = []
    drawn = method == "lora"  # matplotlib takes seconds for its first picture
    watch = WatchOptions(previews=True, curves=drawn, share=True)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    watched = run(tmp_path, method, watch, "watched", on_event=events.append)

    assert watched.concept.digest == plain.concept.digest
    assert torch.equal(torch.get_rng_state(), before)
    assert not any("cannot be made" in event.message for event in events)
    folder = tmp_path / "watched"
    assert sorted(path.name for path in (folder / "previews").iterdir()) == NAMES
    with Image.open(folder / "previews.png") as overview, Image.open(folder / "previews" / "000.png") as row:
        assert overview.size == (row.width, row.height * len(NAMES))
    if drawn:
        with Image.open(folder / "curves.png") as picture:
            assert picture.size[0] > 100
        points = read_points(folder)
        assert [step for curve, step in points if curve == "training"] == list(range(1, STEPS + 1))
        assert {step for curve, step in points if curve == "held_out"} == {0, 2, 4}
    share = [event.share for event in events if event.kind == "step"][-1]
    assert share is not None
    assert share > 0
    more = ["curves.png", "history.jsonl"] if drawn else []
    assert {path.name for path in folder.iterdir()} == {"concept", "previews", "previews.png", *more}


@pytest.mark.slow
def test_previews_show_the_saved_concept_and_are_the_same_each_time(tmp_path: Path) -> None:
    base: Pipeline = make_pipeline()
    result = run(tmp_path, "textual_inversion", WatchOptions(previews=True), "one", base=base)
    with Image.open(tmp_path / "one" / "previews" / "100.png") as kept:
        shown, said = kept.convert("RGB"), dict(kept.info)
    prompts = [said["prompts"]]
    assert "<imp>" in prompts[0]
    assert said["concept"] == "tests/imp@0.1.0"
    again = previews.draw_sheet(base, result.concept, prompts)
    assert ImageChops.difference(shown, again).getbbox() is None
    with Image.open(tmp_path / "one" / "previews" / "000.png") as first:
        assert ImageChops.difference(first.convert("RGB"), shown).getbbox() is not None


@pytest.mark.slow
def test_curves_of_a_run_that_was_stopped_go_on_where_it_did(tmp_path: Path) -> None:
    def stop(event: TrainEvent) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    watch = WatchOptions(curves=True)
    with pytest.raises(InterruptedByUserError):
        run(tmp_path, "textual_inversion", watch, "work", on_event=stop)
    (tmp_path / "work" / "curves.png").unlink()  # drawn of what there was
    left = tmp_path / "work" / ".finishing-of-a-process-that-was-killed"
    left.mkdir()
    run(tmp_path, "textual_inversion", watch, "work", resume=True)
    steps = [step for curve, step in read_points(tmp_path / "work") if curve == "training"]
    assert steps == list(range(1, STEPS + 1))
    assert (tmp_path / "work" / "curves.png").is_file()
    assert not left.exists()


@pytest.mark.slow
def test_to_go_on_where_nothing_was_saved_is_to_begin(tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    result = run(tmp_path, "textual_inversion", None, "work", resume=True, on_event=events.append)
    assert result.steps == STEPS
    warnings = [event.message for event in events if event.kind == "warning"]
    assert "there is no checkpoint to go on from: training begins anew" in warnings


@pytest.mark.slow
def test_a_preview_that_cannot_be_drawn_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(previews, "generate", fail)
    events: list[TrainEvent] = []
    watch = WatchOptions(previews=True)
    result = run(tmp_path, "textual_inversion", watch, "work", on_event=events.append)
    assert result.steps == STEPS
    warnings = [event.message for event in events if "previews" in event.message]
    assert warnings == ["the previews cannot be made now: CUDA out of memory"] * len(NAMES)


def test_what_is_missing_for_curves_or_events_is_said_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtraError, match="tensorboard") as caught:
        run(tmp_path, "lora", WatchOptions(tensorboard=tmp_path / "events"), "work")
    assert caught.value.hint is not None
    assert "pip install 'conceptry[tensorboard]'" in caught.value.hint
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="matplotlib") as caught:
        run(tmp_path, "lora", WatchOptions(curves=True), "work")
    assert caught.value.hint is not None
    assert "pip install 'conceptry[plots]'" in caught.value.hint
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "events").exists()


def test_losses_and_previews_are_events_of_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watch = WatchOptions(previews=True, tensorboard=tmp_path / "events")
    run(tmp_path, "textual_inversion", watch, "work")
    (folder,) = (tmp_path / "events").iterdir()
    found = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in found.Scalars("loss/training")] == list(range(1, STEPS + 1))
    assert [event.step for event in found.Images("previews")] == [0, 1, 2, 3, 4]


def test_operations_are_those_of_the_products_forward_and_back() -> None:
    layer = torch.nn.Linear(6, 10, bias=False)
    read = torch.ones(4, 6, requires_grad=True)
    with OperationCounter() as counter:
        layer(read).sum().backward()
    assert counter.operations == 3 * 2 * 4 * 6 * 10  # forward, gradient of the weight, gradient of the input
