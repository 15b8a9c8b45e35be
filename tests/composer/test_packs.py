"""Files of plain factors, read in one piece: the numbers of the thorough way, and its errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.composer import Composition, attach, fuse
from conceptry.composer.deltas import load_factors
from conceptry.composer.packs import cut_factors, forget_packs, load_pack
from conceptry.composer.pipelines import find_module
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.errors import IntegrityError, InvalidFileError
from conceptry.formats.lora import LoraContents, LoraModule, read_lora, write_lora
from tests.fakes.concepts import make_lora
from tests.fakes.modules import FORMS, make_module
from tests.fakes.pipelines import assert_same, render, snapshot


def make_plain(shape: tuple[int, ...], dtype: torch.dtype, *, rank: int = 3, seed: int = 0) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    ones = tuple(1 for _ in shape[2:])
    down = torch.randn(rank, *shape[1:], generator=generator).to(dtype)
    up = torch.randn(shape[0], rank, *ones, generator=generator).to(dtype)
    return LoraModule.of_factors(down=from_torch(down), up=from_torch(up), alpha=1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [0o444, 0o644])
def test_factors_are_those_of_the_thorough_way_bit_for_bit(
    dtype: torch.dtype, wanted: torch.dtype, mode: int, tmp_path: Path
) -> None:
    shapes = {"unet.a": (7, 5), "unet.b": (6, 4, 3, 3), "unet.c.d": (8, 9, 1, 1), "text_encoder.e": (5, 11)}
    modules = {name: make_plain(shape, dtype, seed=len(name)) for name, shape in shapes.items()}
    path = tmp_path / "lora.safetensors"
    write_lora(path, LoraContents(modules=modules))
    path.chmod(mode)
    pack = load_pack(path)
    assert pack is not None
    assert (pack.file is not None) == (mode == 0o444)
    assert pack is load_pack(path)
    assert {module.name for module in pack.modules} == shapes.keys()
    for module in pack.modules:
        shape = shapes[module.name]
        layer = torch.nn.Linear(1, 1) if len(shape) == 2 else torch.nn.Conv2d(1, 1, 1)
        layer.weight = torch.nn.Parameter(torch.zeros(shape, dtype=wanted))
        found, expected = (
            cut_factors(pack, module, layer),
            load_factors(read_lora(path).modules[module.name], layer),
        )
        assert found is not None
        assert torch.equal(found.down, expected.down)
        assert torch.equal(found.up, expected.up)
        assert found.scale == expected.scale
        assert found.down.data_ptr() % (32 if pack.file is None else wanted.itemsize) == 0


def test_other_algorithms_and_mixed_precision_are_left_to_the_thorough_way(tmp_path: Path) -> None:
    for number, (name, row, form) in enumerate(FORMS):
        if row.id in ("dora", "loha"):
            path = tmp_path / f"{number}.safetensors"
            write_lora(path, LoraContents(modules={"unet.a": make_module(row, form, (16, 8), seed=number)}))
            assert load_pack(path) is None, name
    mixed = {"unet.a": make_plain((7, 5), torch.float32), "unet.b": make_plain((7, 5), torch.float16)}
    write_lora(tmp_path / "mixed.safetensors", LoraContents(modules=mixed))
    assert load_pack(tmp_path / "mixed.safetensors") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(sd1: Any, tmp_path: Path, value: float) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    (file,) = concept.manifest.builds[0].parts[0].files
    data = bytearray(concept.locate(file).read_bytes())
    data[-4:] = torch.tensor([value]).numpy().tobytes()
    concept.locate(file).write_bytes(data)
    with pytest.raises(InvalidFileError, match="NaN or infinite") as caught:
        attach(Composition(concept), sd1)
    assert "lora_" in str(caught.value.where)


def test_a_file_that_changed_is_read_anew(sd1: Any, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, LoraContents(modules={"unet.a": make_plain((7, 5), torch.float32)}))
    first = load_pack(path)
    path.unlink()
    write_lora(path, LoraContents(modules={"unet.a": make_plain((7, 5), torch.float32, seed=9)}))
    second = load_pack(path)
    assert first is not None
    assert second is not None
    assert not torch.equal(first.data, second.data)


def test_a_concept_takes_the_place_of_another_and_comes_back_from_memory(sd1: Any, tmp_path: Path) -> None:
    first = make_lora(tmp_path / "a", sd1, name="test/a", seed=1)
    second = make_lora(tmp_path / "b", sd1, name="test/b", seed=2)
    other = make_lora(tmp_path / "c", sd1, name="test/c", seed=3)
    before = snapshot(sd1, with_settings=False)
    pictures = {}
    for concept in (first, second):
        with attach(Composition(concept * 0.8, other), sd1):
            pictures[concept.label] = render(sd1, "a zork")
    attachment = attach(Composition(first * 0.8, other), sd1)
    for old, new in ((first, second), (second, first), (first, second)):
        report = attachment.replace(str(old.manifest.name), new * 0.8)
        assert [applied.label for applied in report.concepts] == [new.label, other.label]
        assert torch.allclose(render(sd1, "a zork"), pictures[new.label], rtol=1e-3, atol=1e-2)
        for file in old.manifest.iter_files():
            old.locate(file).unlink(missing_ok=True)  # what was in stays in memory
    attachment.detach()
    assert_same(before, snapshot(sd1, with_settings=False))


def test_a_replacement_that_does_not_fit_leaves_the_other_in(sd1: Any, sdxl: Any, tmp_path: Path) -> None:
    first, wrong = (
        make_lora(tmp_path / "a", sd1, name="test/a"),
        make_lora(tmp_path / "b", sdxl, name="test/b"),
    )
    with attach(Composition(first), sd1) as report:
        picture = render(sd1, "a zork")
        attachment = sd1.__dict__["_conceptry_attachments"][0]
        with pytest.raises(Exception, match="test/b"):
            attachment.replace("test/a", wrong)
        assert attachment.report == report
        assert torch.equal(render(sd1, "a zork"), picture)
    assert find_module(sd1.unet, "conv_in") is not None


def find_weights(concept: Concept) -> Path:
    (file,) = concept.manifest.builds[0].parts[0].files
    return concept.locate(file)


def test_a_file_that_nobody_may_write_is_used_where_it_lies(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    path = find_weights(concept)
    copied = load_pack(path)
    with attach(Composition(concept), sd1):
        expected = render(sd1, "a zork")
    path.chmod(0o444)
    forget_packs()
    mapped = load_pack(path)
    assert copied is not None
    assert copied.file is None
    assert mapped is not None
    assert mapped.file is not None
    begin = mapped.file.data.data_ptr()
    assert begin < mapped.data.data_ptr() < begin + path.stat().st_size
    with attach(Composition(concept), sd1):
        assert torch.equal(render(sd1, "a zork"), expected)
        path.unlink()
        forget_packs()
        assert torch.equal(render(sd1, "a zork"), expected)


@pytest.mark.parametrize("put", [attach, fuse])
def test_nothing_is_drawn_with_a_mapped_file_that_was_written_to(sd1: Any, tmp_path: Path, put: Any) -> None:
    concept = make_lora(tmp_path / "l", sd1)
    path = find_weights(concept)
    path.chmod(0o444)
    before = snapshot(sd1, with_settings=False)
    attachment = put(Composition(concept), sd1)
    first = render(sd1, "a zork")
    data = path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b") as file:  # in place, as no store ever does
        file.seek(len(data) - 64)
        file.write(bytes(64))
    path.chmod(0o444)
    with pytest.raises(IntegrityError, match="was written to while it was in use"):
        render(sd1, "a zork")
    attachment.detach()
    assert_same(before, snapshot(sd1, with_settings=False))
    with put(Composition(concept), sd1):
        assert not torch.equal(render(sd1, "a zork"), first)
    assert_same(before, snapshot(sd1, with_settings=False))


def test_a_slot_of_a_file_that_was_written_to_does_not_come_back(sd1: Any, tmp_path: Path) -> None:
    first, second = (make_lora(tmp_path / n, sd1, name=f"test/{n}", seed=i) for i, n in enumerate("ab"))
    path = find_weights(first)
    path.chmod(0o444)
    attachment = attach(Composition(first), sd1)
    attachment.replace("test/a", second)
    picture = render(sd1, "a zork")
    os.utime(path, ns=(1, 1))
    with pytest.raises(IntegrityError, match="was written to"):
        attachment.replace("test/b", first)
    assert torch.equal(render(sd1, "a zork"), picture)
    attachment.detach()
