"""What a program cannot hold exactly is refused, or approximated where that is asked for, with its error said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conceptry.bases import FamilyId
from conceptry.errors import IncompatibleError
from conceptry.formats.algorithms import ALGORITHM_BY_ID
from conceptry.formats.deltas import dense_delta
from conceptry.formats.export_approximation import approximate, approximate_product
from conceptry.formats.export_contract import WriteRequest, Written
from conceptry.formats.exporting import write_for
from conceptry.formats.lora import LoraContents, LoraModule
from conceptry.formats.writers import find_writer
from tests.formats.test_round_trips import ATTENTION, CONVOLUTION, NORM, make_module

SIZES = {"r": 3, "o": 24, "i": 20, "a": 4, "b": 4, "c": 6, "d": 5, "k": 3, "m": 2, "e": 24}


def make(algorithm: Any, form: int = 0, **given: Any) -> LoraModule:
    """Return a module of one form of an algorithm."""
    return make_module(algorithm, ALGORITHM_BY_ID[algorithm].forms[form], given.pop("sizes", SIZES), **given)


def export(target: str, modules: dict[str, LoraModule], *, lossy: bool = False) -> Written:
    request = WriteRequest(
        contents=LoraContents(modules=modules), family=FamilyId("sd1"), stem="x", metadata={}, lossy=lossy
    )
    return write_for(find_writer(target), "lora", request)


def read_delta(written: Written, name: str) -> np.ndarray[Any, Any]:
    """Return up times down of one module of a diffusers file, as that program computes it."""
    tensors = written.files[0].tensors
    up, down = (tensors[f"{name}.lora_{part}.weight"].to_numpy().astype(np.float64) for part in "BA")
    return up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)


def test_loha_is_refused_by_diffusers_with_the_program_that_holds_it() -> None:
    with pytest.raises(IncompatibleError, match="diffusers would change 1 modules") as caught:
        export("diffusers", {ATTENTION: make("loha")})
    assert (
        caught.value.hint == "add --lossy to take the approximation, or use --for peft, which loses nothing"
    )


@pytest.mark.parametrize(
    ("algorithm", "kernel"),
    [("loha", ()), ("loha", (3, 3)), ("lokr", ()), ("lokr", (3, 3)), ("full", (3, 3))],
)
def test_the_error_that_is_said_is_that_of_the_delta(algorithm: str, kernel: tuple[int, ...]) -> None:
    name = CONVOLUTION if kernel else ATTENTION
    module = make(algorithm, kernel=kernel)
    written = export("diffusers", {name: module}, lossy=True)
    (loss,) = written.losses
    low = read_delta(written, name)
    exact = dense_delta(module, (low.shape[0], low.shape[1] // (9 if kernel else 1), *kernel))
    assert exact is not None
    exact = exact.reshape(low.shape)
    error = np.linalg.norm(exact - low) / np.linalg.norm(exact)
    assert loss.relative_error == pytest.approx(error, rel=1e-3, abs=1e-7)
    assert error <= 0.01
    assert written.files[0].tensors[f"{name}.lora_A.weight"].shape[2:] == kernel


def test_losses_come_with_every_module_and_its_reason() -> None:
    modules = {
        ATTENTION: make("loha"),
        CONVOLUTION: make("full", full=True, kernel=(3, 3)),
        NORM: make("norm"),
    }
    losses = {
        (loss.module, loss.relative_error): loss.why
        for loss in export("diffusers", modules, lossy=True).losses
    }
    assert losses[CONVOLUTION, 1.0] == "diffusers reads no bias beside full difference"
    assert losses[NORM, 1.0] == "diffusers reads no difference of a norm"
    assert len(losses) == 4


def test_a_core_is_multiplied_out_to_the_same_delta() -> None:
    module = make("locon", 1, kernel=(3, 3))
    written = export("diffusers", {CONVOLUTION: module})
    assert written.losses == ()
    assert written.warnings[0] == "1 modules were multiplied out, to the precision of float32"
    exact = dense_delta(module, (24, 20, 3, 3))
    assert exact is not None
    low = module.scale * read_delta(written, CONVOLUTION)
    assert np.abs(low - exact.reshape(low.shape)).max() <= 1e-6 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("target", "algorithm", "form", "nearest"),
    [
        ("diffusers", "dora", 1, "kohya"),
        ("a1111", "dora", 0, "diffusers"),
        ("peft", "glora", 0, "kohya"),
        ("comfyui", "ia3", 0, "kohya"),
        ("a1111", "oft", 0, "kohya"),
        ("diffusers", "boft", 0, "kohya"),
    ],
)
def test_what_depends_on_the_base_is_refused_even_as_an_approximation(
    target: str, algorithm: str, form: int, nearest: str
) -> None:
    with pytest.raises(IncompatibleError, match="whose effect depends on the base's weight") as caught:
        export(target, {ATTENTION: make(algorithm, form)}, lossy=True)
    assert caught.value.hint == f"--for {nearest} holds all of it"


def test_some_dora_among_plain_modules_is_refused_where_there_is_one_switch_for_all() -> None:
    other = ATTENTION.replace("to_q", "to_k")
    with pytest.raises(IncompatibleError, match="1 of 2 modules are DoRA"):
        export("diffusers", {ATTENTION: make("dora"), other: make("lora")})


def test_a_scale_of_two_whole_kronecker_factors_goes_into_one_of_them() -> None:
    module = make("lokr", numbers={"scale": 0.3})
    plain = make("lokr")
    tensors = export("kohya", {ATTENTION: module}).files[0].tensors
    (first,) = (tensor for name, tensor in tensors.items() if name.endswith("lokr_w1"))
    expected = plain.parts["lokr_w1"].to_numpy().astype(np.float64) * module.scale
    np.testing.assert_allclose(first.to_numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["lora", "loha", "glora"])
def test_an_alpha_of_zero_stays_a_delta_of_zero_in_programs_that_read_it_as_unsaid(algorithm: str) -> None:
    written = export("kohya", {ATTENTION: make(algorithm, numbers={"alpha": 0.0})})
    assert "alpha 0" in written.warnings[0]
    ends = {name.partition(".")[2]: tensor.to_numpy() for name, tensor in written.files[0].tensors.items()}
    assert float(ends["alpha"]) == 3.0
    zero = {"lora": ["lora_up.weight"], "loha": ["hada_w1_a"], "glora": ["a1.weight", "b1.weight"]}[algorithm]
    assert not any(ends[name].any() for name in zero)


def test_the_truncation_is_that_of_the_singular_values_whichever_way_it_is_computed() -> None:
    generator = np.random.default_rng(0)
    up, down = generator.standard_normal((40, 12)), generator.standard_normal((12, 30))
    dense = approximate(up @ down, most_rank=5, tolerance=0)
    factored = approximate_product(up, down, most_rank=5, tolerance=0)
    values = np.linalg.svd(up @ down, compute_uv=False)
    expected = np.sqrt((values[5:] ** 2).sum() / (values**2).sum())
    assert dense.relative_error == pytest.approx(expected, rel=1e-5)
    assert factored.relative_error == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(dense.up @ dense.down, factored.up @ factored.down, atol=1e-4)
