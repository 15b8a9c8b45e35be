from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import StableDiffusionPipeline

from conceptry import toybox
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.concepts import open_concept
from conceptry.errors import (
    InterruptedByUserError,
    InvalidImagesError,
    InvalidPlaceholderError,
    StoreError,
    TrainingError,
    UsageError,
)
from conceptry.formats.tensors import read_tensors
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.training import TrainResult, train
from tests.fakes.pipelines import assert_same, make_pipeline, render, snapshot
from tests.trainer.runs import METHODS, paint_pictures, some_slowly, write_job

Shape = Literal["sd1", "sd2", "sdxl"]
PLAIN = {"lora", "dreambooth"}


def run(method: str, folder: Path, *, shape: Shape = "sd1", base: Any = None, **changes: Any) -> TrainResult:
    pipeline = make_pipeline(shape) if base is None else base
    options = {key: changes.pop(key) for key in ("on_event", "resume") if key in changes}
    work = folder / changes.pop("work", "work")
    return train(
        write_job(method, folder, **changes),
        base=pipeline,
        workdir=work,
        cache_folder=folder / "cache",
        **options,
    )


def open_toybox() -> Any:
    """Returns a base that knows something: in networks of random numbers chance outweighs what is learned."""
    return StableDiffusionPipeline.from_pretrained(toybox.path())


def say(method: str) -> str:
    return "a photo of a <imp> creature" if method in PLAIN else "a photo of a <imp>"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_the_finished_concept_changes_pictures_with_its_word_and_the_base_is_as_before(
    method: str, shape: Shape, tmp_path: Path
) -> None:
    pipeline = make_pipeline(shape)
    before = snapshot(pipeline)
    result = run(method, tmp_path, base=pipeline)
    assert_same(before, snapshot(pipeline))

    concept = open_concept(result.folder)
    assert concept.digest == result.concept.digest
    plain = render(pipeline, say(method))
    with attach(Composition(concept), pipeline):
        changed = render(pipeline, say(method))
    assert not torch.equal(plain, changed)
    assert torch.isfinite(changed).all()
    assert_same(before, snapshot(pipeline))


@pytest.mark.parametrize("method", some_slowly("perfusion", "dreambooth"))
def test_the_same_job_and_seed_give_the_same_bytes_and_another_seed_others(
    method: str, tmp_path: Path
) -> None:
    first = run(method, tmp_path, work="first")
    again = run(method, tmp_path, work="again")
    other = run(method, tmp_path, work="other", seed=1)
    assert again.concept.digest == first.concept.digest
    for file in first.concept.manifest.iter_files():
        assert (again.folder / file.path).read_bytes() == (first.folder / file.path).read_bytes()
        assert (other.folder / file.path).read_bytes() != (first.folder / file.path).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(method: str, tmp_path: Path) -> None:
    whole = run(method, tmp_path, work="whole", settings={"ema_decay": 0.9})

    def stop_after_three(event: TrainEvent) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedByUserError) as caught:
        run(method, tmp_path, work="stopped", settings={"ema_decay": 0.9}, on_event=stop_after_three)
    assert caught.value.exit_code == 130
    assert caught.value.hint
    assert caught.value.hint.startswith(f"concepts train {method} ")
    assert caught.value.hint.endswith(f" --resume --workdir {tmp_path / 'stopped'}")
    assert not (tmp_path / "stopped" / "concept").exists()

    resumed = run(method, tmp_path, work="stopped", settings={"ema_decay": 0.9}, resume=True)
    assert resumed.concept.digest == whole.concept.digest
    assert resumed.fixed_loss_before == whole.fixed_loss_before
    assert not (tmp_path / "stopped" / "checkpoints").exists()


def test_a_resumed_run_equals_one_that_was_not_stopped_in_the_memory_layout_that_processors_like(
    tmp_path: Path,
) -> None:
    def stop_after_three(event: TrainEvent) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    pipeline = make_pipeline("sd1")
    pipeline.unet.to(memory_format=torch.channels_last)
    whole = run("dreambooth", tmp_path, work="whole", base=pipeline)
    with pytest.raises(InterruptedByUserError):
        run("dreambooth", tmp_path, work="stopped", base=pipeline, on_event=stop_after_three)
    resumed = run("dreambooth", tmp_path, work="stopped", base=pipeline, resume=True)
    assert resumed.concept.digest == whole.concept.digest
    assert pipeline.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", some_slowly("dreambooth"))
def test_the_loss_on_fixed_samples_falls(method: str, tmp_path: Path) -> None:
    result = run(method, tmp_path, base=open_toybox(), steps=12, settings={"batch_size": 8})
    assert result.fixed_loss_after < result.fixed_loss_before
    (build,) = result.concept.manifest.builds
    named = {metric.name: metric.value for metric in build.metrics}
    assert named == {
        "fixed_loss_before": result.fixed_loss_before,
        "fixed_loss_after": result.fixed_loss_after,
    }


def test_the_saved_files_make_the_same_pictures_in_a_fresh_process(tmp_path: Path) -> None:
    folders = {method: run(method, tmp_path, work=method, steps=2).folder for method in METHODS}
    here = draw_each({method: str(folder) for method, folder in folders.items()})
    root = Path(__file__).parents[2]
    code = (
        "import json, sys; from tests.trainer.test_training import draw_each;"
        "print(json.dumps(draw_each(json.loads(sys.argv[1]))))"
    )
    told = json.dumps({method: str(folder) for method, folder in folders.items()})
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, told]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    assert json.loads(done.stdout.splitlines()[-1]) == here


def draw_each(folders: dict[str, str]) -> dict[str, str]:
    pipeline = make_pipeline()
    drawn = {}
    for method, folder in folders.items():
        with attach(Composition(open_concept(Path(folder))), pipeline):
            drawn[method] = render(pipeline, say(method)).numpy().tobytes().hex()
    return drawn


def test_only_the_rows_of_the_placeholder_are_stored_by_textual_inversion(tmp_path: Path) -> None:
    result = run("textual_inversion", tmp_path, shape="sdxl")
    tensors = read_tensors(result.folder / "embedding.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "text_encoder/<imp>": (2, 24),
        "text_encoder_2/<imp>": (2, 40),
    }
    (token,) = result.concept.manifest.tokens
    assert (token.placeholder, token.vectors, token.superclass) == ("<imp>", 2, "creature")


def test_perfusion_stores_values_for_every_layer_and_no_keys(tmp_path: Path) -> None:
    result = run("perfusion", tmp_path)
    names = set(read_tensors(result.folder / "rank_one.safetensors"))
    (part,) = result.concept.manifest.builds[0].parts
    assert part.method.kind == "rank_one"
    assert names == {"i_star", "c_inv_i_star", "text_encoder/<imp>"} | {
        f"o_v/{layer}" for layer in part.method.layers
    }
    assert (part.method.train_gate.bias, part.method.gate.temperature) == (0.75, 0.15)
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert 0 < record["facts"]["superclass_gate"] < 1


def test_i_star_is_the_running_mean_of_the_placeholders_encoding(tmp_path: Path) -> None:
    still = run("perfusion", tmp_path, work="one", steps=1, settings={"learning_rates": {"embedding": 1e-9}})
    moved = run("perfusion", tmp_path, work="two", steps=20, settings={"learning_rates": {"embedding": 0.05}})
    first, last = (
        read_tensors(result.folder / "rank_one.safetensors")["i_star"].to_numpy() for result in (still, moved)
    )
    assert abs(first - last).max() > 1e-3
    assert abs(first - last).mean() < abs(first).mean()


def test_lora_writes_its_scale_out_and_trains_the_named_layers_only(tmp_path: Path) -> None:
    result = run("lora", tmp_path, settings={"targets": ["*.to_k", "*.conv1"], "alpha": 1.0})
    tensors = read_tensors(result.folder / "lora.safetensors")
    modules = {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_A" in name}
    assert modules
    assert all(name.startswith("unet.") and name.endswith(("to_k", "conv1")) for name in modules)
    assert {float(tensor.to_numpy()) for name, tensor in tensors.items() if name.endswith(".alpha")} == {1.0}
    (part,) = result.concept.manifest.builds[0].parts
    assert part.method.kind == "lora"
    assert part.method.scale == 0.5
    (token,) = result.concept.manifest.tokens
    assert token.vectors == 0


@pytest.mark.parametrize("prior", ["prediction", "pictures", "none"])
def test_dreambooth_stores_the_tensors_that_differ_and_no_other(prior: str, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    settings = {"targets": ["*.attn2.*"], "prior": prior, "prior_pictures": 3}
    result = run("dreambooth", tmp_path, base=pipeline, settings=settings)
    tensors = read_tensors(result.folder / "unet.safetensors")
    own = pipeline.unet.state_dict()
    assert tensors
    assert all(".attn2." in name for name in tensors)
    for name, tensor in tensors.items():
        assert not torch.equal(torch.from_numpy(tensor.to_numpy().copy()), own[name])
    (part,) = result.concept.manifest.builds[0].parts
    assert part.method.kind == "full"
    assert (part.method.changed_tensors, part.method.total_tensors) == (len(tensors), len(own))


def test_a_prior_keeps_the_superclass_nearer_to_the_base(tmp_path: Path) -> None:
    pipeline = open_toybox()
    prompt = "a photo of a creature"
    base = render(pipeline, prompt)
    moved = {}
    for prior in ("none", "prediction"):
        settings = {"prior": prior, "prior_weight": 10.0}
        result = run("dreambooth", tmp_path, base=pipeline, work=prior, steps=12, settings=settings)
        with attach(Composition(result.concept), pipeline):
            moved[prior] = float((render(pipeline, prompt) - base).abs().mean())
    assert moved["prediction"] < moved["none"]


def test_class_pictures_are_generated_once(tmp_path: Path) -> None:
    settings = {"prior": "pictures", "prior_pictures": 2}
    phases: list[str] = []

    def note(event: TrainEvent) -> None:
        phases.append(event.message)

    run("dreambooth", tmp_path, settings=settings, work="one", on_event=note)
    assert any("for the prior" in phase for phase in phases)
    phases.clear()
    run("dreambooth", tmp_path, settings=settings, work="two", on_event=note)
    assert not any("for the prior" in phase for phase in phases)


def test_instance_json_goes_into_the_manifest_and_nowhere_else(tmp_path: Path) -> None:
    paint_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "instance.json").write_text('{"class": "creature", "seed": 9}', encoding="utf-8")
    with_instance = run("lora", tmp_path, work="with")
    assert with_instance.concept.manifest.extensions == {"conceptry.toybox": {"class": "creature", "seed": 9}}
    (tmp_path / "pictures" / "instance.json").unlink()
    without = run("lora", tmp_path, work="without")
    assert without.concept.manifest.extensions == {}
    name = "lora.safetensors"
    assert (without.folder / name).read_bytes() == (with_instance.folder / name).read_bytes()


def test_the_manifest_says_all_that_is_needed_and_nothing_of_the_machine(tmp_path: Path) -> None:
    result = run("lora", tmp_path, title="An imp", license="CC0-1.0", seed=4)
    manifest = result.concept.manifest
    (build,) = manifest.builds
    assert (str(manifest.name), str(manifest.version), manifest.title) == ("tests/imp", "0.1.0", "An imp")
    assert manifest.usage.prompts == ("a photo of a <imp> creature",)
    assert build.base.family == "sd1"
    assert build.base.fingerprints.keys() == {"unet", "text_encoder"}
    training = build.provenance.training
    assert training is not None
    assert (training.trainer, training.seed, training.steps) == ("conceptry lora", 4, 6)
    assert str(tmp_path).encode() not in manifest.to_bytes()
    record = json.loads((result.folder / "train.json").read_text(encoding="utf-8"))
    assert record["machine"]["torch"] == torch.__version__
    assert record["seconds"] > 0


def test_one_picture_works_with_a_warning_and_unused_files_are_named(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "pictures", count=1)
    (folder / "letter.png").write_text("dear reader", encoding="utf-8")
    events: list[TrainEvent] = []
    run("lora", tmp_path, on_event=events.append)
    warnings = [event.message for event in events if event.kind == "warning"]
    assert any("only one picture" in warning for warning in warnings)
    assert any(warning.startswith("letter.png is no picture") for warning in warnings)
    steps = [event for event in events if event.kind == "step"]
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert all(event.total == 6 and event.loss is not None for event in steps)


def test_a_caption_that_the_base_would_cut_is_warned_of(tmp_path: Path) -> None:
    folder = paint_pictures(tmp_path / "pictures", count=2)
    (folder / "0.txt").write_text("a creature " + "on the beach " * 12, encoding="utf-8")
    events: list[TrainEvent] = []
    run("lora", tmp_path, on_event=events.append)
    assert any("its end is cut off" in event.message for event in events if event.kind == "warning")


@pytest.mark.parametrize("method", ["textual_inversion", "perfusion"])
def test_a_placeholder_that_is_a_word_is_refused_before_anything_is_written(
    method: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidPlaceholderError) as caught:
        run(method, tmp_path, placeholder="cat")
    assert "'cat' is a word" in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "work").exists()


def test_perfusion_refuses_a_superclass_of_several_tokens_and_names_its_head(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlaceholderError) as caught:
        run("perfusion", tmp_path, superclass="beach house")
    assert "'beach house' is 2 tokens" in caught.value.message
    assert caught.value.hint == "take its head word: --superclass house"


@pytest.mark.parametrize("method", ["textual_inversion", "lora", "dreambooth"])
def test_the_other_methods_take_a_superclass_of_several_tokens(method: str, tmp_path: Path) -> None:
    assert run(method, tmp_path, superclass="beach house", steps=2).steps == 2


def test_pictures_that_cannot_be_read_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("text", encoding="utf-8")
    with pytest.raises(InvalidImagesError):
        run("lora", tmp_path)
    assert not (tmp_path / "work").exists()


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    events: list[TrainEvent] = []
    with pytest.raises(StoreError, match="nothing can be written"):
        run("lora", tmp_path, work="file/work", on_event=events.append)
    assert not any(event.kind == "step" for event in events)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_hint_and_no_concept(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("inf"))
    with pytest.raises(TrainingError, match="at step 1") as caught:
        run("lora", tmp_path, base=pipeline)
    assert caught.value.hint
    assert not (tmp_path / "work").exists()


def test_latents_that_are_not_finite_name_their_picture(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    with torch.no_grad():
        pipeline.vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(TrainingError) as caught:
        run("lora", tmp_path, base=pipeline)
    assert caught.value.where == "images/0.png"
    assert not (tmp_path / "work").exists()


def test_a_checkpoint_of_other_pictures_is_not_resumed(tmp_path: Path) -> None:
    def stop(event: TrainEvent) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedByUserError):
        run("lora", tmp_path, on_event=stop)
    paint_pictures(tmp_path / "pictures", count=4)
    with pytest.raises(UsageError, match="another job"):
        run("lora", tmp_path, resume=True)


def test_a_real_interrupt_saves_the_state_at_a_whole_step(tmp_path: Path) -> None:
    def interrupt(event: TrainEvent) -> None:
        if event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedByUserError, match="after step 2 of 6"):
        run("lora", tmp_path, on_event=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (
        run("lora", tmp_path, resume=True).concept.digest
        == run("lora", tmp_path, work="whole").concept.digest
    )


@pytest.mark.parametrize("method", some_slowly("perfusion"))
def test_accumulated_gradients_are_those_of_the_whole_batch(method: str, tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {1: [], 4: []}
    for pieces, seen in losses.items():
        settings = {"accumulation_steps": pieces}
        run(
            method,
            tmp_path,
            steps=3,
            settings=settings,
            on_event=lambda event, seen=seen: note_loss(event, seen),
        )
    assert losses[1] == pytest.approx(losses[4], rel=2e-3)
    assert len(losses[1]) == 3


def note_loss(event: TrainEvent, seen: list[float]) -> None:
    if event.loss is not None:
        seen.append(event.loss)


def test_training_in_bfloat16_works(tmp_path: Path) -> None:
    result = run("lora", tmp_path, precision="bfloat16")
    assert all(tensor.is_finite() for tensor in read_tensors(result.folder / "lora.safetensors").values())
