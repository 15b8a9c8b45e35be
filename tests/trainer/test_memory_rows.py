"""What lowers the peak of memory: a frozen base in fewer bits, and blocks that wait in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conceptry.bases import FamilyId
from conceptry.errors import InterruptedByUserError, MissingExtraError, UsageError
from conceptry.formats.tensors import read_tensors
from conceptry.trainer import quantization
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.memory import estimate_memory
from conceptry.trainer.preparation import prepared
from conceptry.trainer.quantization import PRECISION_BY_ID, PRECISIONS, iter_packable, packed_base
from conceptry.trainer.settings import Settings, resolve_settings
from conceptry.trainer.training import TrainResult, train
from tests.fakes.pipelines import assert_same, make_pipeline, snapshot
from tests.trainer.runs import stage_job, write_job
from tests.trainer.test_training import open_toybox


def run(method: str, folder: Path, base: Any, work: str = "work", **changes: Any) -> TrainResult:
    options = {key: changes.pop(key) for key in ("on_event", "resume") if key in changes}
    job = write_job(method, folder, **changes)
    return train(job, base=base, workdir=folder / work, cache_folder=folder / "cache", **options)


def require_package(precision: str) -> None:
    if precision == "nf4":
        pytest.importorskip("bitsandbytes", reason="of the extra optimizers")


def choose(**settings: Any) -> Settings:
    return resolve_settings("lora", FamilyId("sd1"), settings)


# --- a frozen base in fewer bits -----------------------------------------------------------------------------------


def make_holder(layer: nn.Module) -> Any:
    """Returns a pipeline whose denoiser is one layer."""

    class Holder:
        unet = nn.Sequential(layer)

    return Holder()


LAYERS: dict[str, Callable[[], tuple[Any, torch.Tensor]]] = {
    "linear": lambda: (nn.Linear(64, 24), torch.randn(3, 5, 64)),
    "linear without bias": lambda: (nn.Linear(64, 24, bias=False), torch.randn(5, 64)),
    "convolution": lambda: (nn.Conv2d(8, 12, 3, padding=1, stride=2), torch.randn(2, 8, 9, 9)),
    "channels last": lambda: (
        nn.Conv2d(8, 12, 3, padding=1).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        torch.randn(2, 8, 9, 9),
    ),
}


@pytest.mark.parametrize(
    ("precision", "offload"),
    [(row.id, offload) for row in PRECISIONS for offload in (False, True)][1:],  # the first changes nothing
)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_layer_computes_with_the_weight_that_it_shows_forward_and_back(
    kind: str, precision: Any, offload: bool
) -> None:
    require_package(precision)
    torch.manual_seed(0)
    layer, x = LAYERS[kind]()
    layer = layer.double().requires_grad_(False)
    pipeline, own = make_holder(layer), layer.weight
    given = x.double().requires_grad_()
    with packed_base(pipeline, choose(base_precision=precision, offload_base=offload)):
        assert "weight" not in dict(layer.named_parameters())
        shown = layer.weight
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
            answer = layer(given)
        assert not saved
        (found,) = torch.autograd.grad(answer.square().sum(), given)
    assert layer.weight is own
    assert next(iter(dict(layer.named_parameters()))) == "weight"
    replaced = type(layer).forward
    layer.weight.data, original = shown, layer.weight.data
    exact = x.double().requires_grad_()
    expected = replaced(layer, exact)
    (gradient,) = torch.autograd.grad(expected.square().sum(), exact)
    layer.weight.data = original
    assert torch.allclose(answer, expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(found, gradient, rtol=1e-12, atol=1e-12)


def test_eight_bits_are_within_half_a_step_of_each_output() -> None:
    weight = (
        torch.randn(24, 8, 3, 3, dtype=torch.float64)
        * torch.logspace(-3, 2, 24).double()[:, None, None, None]
    )
    packed = PRECISION_BY_ID["int8"].pack(weight)
    step = weight.flatten(1).abs().amax(dim=1) / 127
    difference = (packed.unpack(torch.float64) - weight).flatten(1).abs().amax(dim=1)
    assert bool((difference <= 0.5001 * step).all())
    assert packed.size_bytes <= weight.nbytes / 8 + 4 * 24
    assert not PRECISION_BY_ID["int8"].pack(torch.zeros(4, 4)).unpack(torch.float32).any()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("method", ["textual_inversion", "perfusion", "lora", "custom_diffusion"])
def test_a_concept_learned_on_a_packed_base_is_for_the_base_as_it_is(
    method: str, precision: str, tmp_path: Path
) -> None:
    """``train`` reloads the file on the whole base and compares; here beside it: the loss fell, nothing else moved."""
    require_package(precision)
    base = open_toybox()
    before = snapshot(base)
    settings = {"batch_size": 8, "base_precision": precision}
    result = run(method, tmp_path, base, steps=12, settings=settings)
    assert result.fixed_loss_after < result.fixed_loss_before
    assert_same(before, snapshot(base))
    whole = run(method, tmp_path, base, "whole", steps=12, settings={"batch_size": 8})
    for path in result.folder.glob("*.safetensors"):
        tensors, others = read_tensors(path), read_tensors(whole.folder / path.name)
        assert {name: value.dtype for name, value in tensors.items()} == {
            name: value.dtype for name, value in others.items()
        }
    assert abs(result.fixed_loss_after / whole.fixed_loss_after - 1) < 0.1


def test_while_it_is_packed_the_denoiser_is_a_quarter_of_its_size_and_the_plan_says_so() -> None:
    base = make_pipeline()
    predicted = [
        estimate_memory(base, "lora", choose(base_precision=precision)).base_bytes
        for precision in ("full", "int8")
    ]
    sizes = [layer.weight.nbytes for layer in iter_packable(base)]
    with packed_base(base, choose(base_precision="int8")):
        left = [layer.packed.size_bytes for layer in base.unet.modules() if hasattr(layer, "packed")]
    assert len(left) == len(sizes)
    assert sum(left) < 0.3 * sum(sizes)
    assert predicted[0] - predicted[1] == pytest.approx(sum(sizes) - sum(left), rel=0.1)


def test_a_run_on_a_packed_base_resumes_exactly(tmp_path: Path) -> None:
    base = make_pipeline()
    settings: dict[str, Any] = {"base_precision": "int8", "keep": "last"}

    def stop_after_two(event: TrainEvent) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    whole = run("lora", tmp_path, base, "whole", steps=4, settings=settings)
    with pytest.raises(InterruptedByUserError):
        run("lora", tmp_path, base, "stopped", steps=4, settings=settings, on_event=stop_after_two)
    resumed = run("lora", tmp_path, base, "stopped", steps=4, settings=settings, resume=True)
    assert resumed.concept.digest == whole.concept.digest


@pytest.mark.slow
def test_on_a_packed_base_activations_may_be_computed_twice(tmp_path: Path) -> None:
    base = make_pipeline()
    settings: dict[str, Any] = {"base_precision": "int8", "keep": "last"}
    files = [
        run(
            "lora",
            tmp_path,
            base,
            str(twice),
            steps=4,
            settings={**settings, "gradient_checkpointing": twice},
        ).folder
        for twice in (False, True)
    ]
    first, second = (read_tensors(folder / "lora.safetensors") for folder in files)
    assert {name: value.data for name, value in first.items()} == {
        name: value.data for name, value in second.items()
    }


def test_a_denoiser_that_is_all_trained_cannot_be_packed_and_that_is_told(
    tmp_path: Path,
) -> None:
    base = make_pipeline()
    with prepared(base):
        stage = stage_job(write_job("dreambooth", tmp_path), tmp_path, base)
        with (
            pytest.raises(UsageError, match="nothing of the denoiser stays frozen") as caught,
            packed_base(base, choose(base_precision="int8"), [stage.learner]),
        ):
            pass
    assert caught.value.where == "settings.base_precision"


def test_a_package_that_is_missing_is_named_and_the_base_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(quantization, "import_module", refuse)
    base = make_pipeline()
    before = snapshot(base)
    with pytest.raises(MissingExtraError, match="4-bit weights need the package bitsandbytes") as caught:
        run("lora", tmp_path, base, settings={"base_precision": "nf4"})
    assert "base_precision=int8" in str(caught.value.hint)
    assert_same(before, snapshot(base))


# --- weights that wait in the host's memory ------------------------------------------------------------------------


def test_a_weight_that_waits_on_the_host_is_used_on_the_device() -> None:
    """With the device of shapes alone in the place of an accelerator: what is kept is here, what is used is there."""
    for row in PRECISIONS[:2]:
        packed = replace(row.pack(torch.randn(8, 4)), device=torch.device("meta")).move_to_host()
        assert {value.device.type for value in packed.values} == {"cpu"}
        used = packed.unpack(torch.bfloat16)
        assert (used.device.type, used.dtype, used.shape) == ("meta", torch.bfloat16, (8, 4))


def test_where_weights_wait_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    base = make_pipeline()
    before = snapshot(base)
    files = [
        run("lora", tmp_path, base, str(offload), steps=3, settings={"offload_base": offload}).folder
        for offload in (False, True)
    ]
    plain, offloaded = (read_tensors(folder / "lora.safetensors") for folder in files)
    assert {name: value.data for name, value in plain.items()} == {
        name: value.data for name, value in offloaded.items()
    }
    assert_same(before, snapshot(base))


def test_a_plan_leaves_the_weights_that_wait_out() -> None:
    base = make_pipeline()
    whole, left = (
        estimate_memory(base, "lora", choose(offload_base=offload)).base_bytes for offload in (False, True)
    )
    weights = [layer.weight.nbytes for layer in iter_packable(base)]
    assert whole - left == sum(weights) - max(weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{"base_precision": "int8"}, {"offload_base": True}])
def test_on_an_accelerator_the_peak_of_memory_is_lower(settings: dict[str, Any], tmp_path: Path) -> None:
    peaks = []
    base = open_toybox().to("cuda")
    for number, more in enumerate(({}, settings)):
        torch.cuda.reset_peak_memory_stats()
        with prepared(base):
            stage = stage_job(write_job("lora", tmp_path, settings={"batch_size": 1, **more}), tmp_path, base)
            with packed_base(base, stage.context.job.settings, [stage.learner]), stage.learner.attached():
                torch.cuda.reset_peak_memory_stats()
                batch = stage.context.draw_batch(number)
                torch.autograd.backward(stage.learner.compute_loss(batch, 0))
                peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]
