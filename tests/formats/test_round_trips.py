"""What is exported and imported again is what it was: every program, every algorithm, any sizes and dtypes."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptry.bases import ComponentName, FamilyId
from conceptry.errors import IncompatibleError
from conceptry.formats.algorithms import ALGORITHMS, Form
from conceptry.formats.contract import Contents
from conceptry.formats.data_files import load_table
from conceptry.formats.embedding import EmbeddingContents
from conceptry.formats.export_contract import Writer, WriteRequest, Written
from conceptry.formats.exporting import write_for
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.lora import LoraContents, LoraModule
from conceptry.formats.lora_modules import check_module, list_numbers
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.formats.writers import WRITERS
from conceptry.kinds import KindId
from conceptry.names import ConceptName, Placeholder, parse_version

ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "unet.mid_block.resnets.0.conv1"
NORM = "unet.down_blocks.1.attentions.0.transformer_blocks.0.norm1"
DTYPES = ("F16", "BF16", "F32", "F8_E4M3", "F8_E5M2")
FORMS = [(row.id, form) for row in ALGORITHMS for form in row.forms]
# Different for each letter, such that blocks fill the outputs.
SIZES = {"r": 2, "o": 12, "i": 10, "a": 3, "b": 4, "c": 5, "d": 6, "k": 3, "m": 2, "e": 12, "t": 6}
NUMBERS = {"alpha": 1.5, "scale": 1.0, "constraint": 0.25, "on_input": 1.0, "neumann_terms": 5.0}


def make_module(algorithm: Any, form: Form, sizes: Mapping[str, int], **given: Any) -> LoraModule:
    """Return a module with random values in the shapes that ``form`` allows."""
    generator = np.random.default_rng(given.get("seed", 0))
    patterns = {**form.required, **(form.optional if given.get("full") else {})}
    kernel = given.get("kernel", ())
    values = {**sizes, **({"t": 3} if "t" in sizes else {})}
    if form.outputs and "o" not in form.outputs:
        values["o"] = int(np.prod([values[letter] for letter in form.outputs.split()]))
    parts = {
        part: make_tensor(shape_of(pattern, values, kernel), given.get("dtype", "F32"), generator)
        for part, pattern in patterns.items()
    }
    numbers = {**NUMBERS, **given.get("numbers", {})}
    if form.required.get("ia3_l") == "e 1":
        numbers["on_input"] = 0.0  # PEFT tells the side by the shape
    module = LoraModule(algorithm=algorithm, parts=parts, numbers={}, rule="alpha/rank")
    match = module.match()
    rules: dict[str, Any] = {
        "ranked": "alpha/rank",
        "stored": "one",
        "none": "none",
        "constraint": "constraint",
    }
    chosen = {name: numbers[name] for name in list_numbers(match)}
    return replace(module, numbers=chosen, algorithm=match.algorithm.id, rule=rules[match.form.scale])


def shape_of(pattern: str, sizes: Mapping[str, int], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that ``pattern`` of the table of algorithms stands for."""
    shape: list[int] = []
    for letter in pattern.split():
        if letter in ("*k", "*w"):
            shape += [*kernel] if letter == "*k" else [sizes["i"], *kernel]
        elif letter in ("*1", "*u"):
            shape += [1 for _ in kernel] or ([1] if letter == "*u" and pattern.startswith("o") else [])
        elif letter == "n":
            shape.append(sizes["i"] * int(np.prod(kernel)))
        else:
            shape.append(int(letter) if letter.isdigit() else sizes[letter])
    return tuple(shape)


def make_tensor(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> RawTensor:
    empty = RawTensor(dtype, (0,), b"").to_numpy().dtype
    return RawTensor.from_numpy(generator.standard_normal(shape).astype(np.float32).astype(empty))


def export(writer: Writer, kind: KindId, contents: Contents, **given: Any) -> Written:
    """Return the files of ``contents`` for one program."""
    family = FamilyId(given.pop("family", "sd1"))
    request = WriteRequest(contents=contents, family=family, stem="x", metadata={}, **given)
    return write_for(writer, kind, request)


def read_back(written: Written, folder: Path, family: str, word: str | None = None) -> list[Contents]:
    """Return what importing the files gives, together where they belong together."""
    for file in written.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.data is None:
            write_tensors(path, file.tensors, file.metadata)
        else:
            path.write_bytes(file.data)
    base = declare_base(family)
    said = ImportSettings(
        name=ConceptName.parse("me/x"),
        version=parse_version("1.0.0"),
        base=base,
        placeholder=Placeholder(word) if word else None,
    )
    paths = [folder / file.name for file in written.files if file.data is None]
    return [one for path in paths for one in plan_import(path, said).reading.contents]


def join(contents: list[Contents]) -> dict[Any, Any]:
    """Return modules or rows of all files in one mapping."""
    joined: dict[Any, Any] = {}
    for one in contents:
        found: Mapping[Any, Any] = {}
        if isinstance(one, LoraContents):
            found = {name: as_meant(module) for name, module in one.modules.items()}
        elif isinstance(one, EmbeddingContents):
            found = one.rows
        assert not joined.keys() & found.keys()
        joined |= found
    return joined


def as_meant(module: LoraModule) -> tuple[Any, ...]:
    """Return what a module does: the rule that once gave its scale is no part of that, nor are ones in a shape."""
    parts = {
        part: tensor.reshape((tensor.elements,)) if part.startswith("magnitude") else tensor
        for part, tensor in module.parts.items()
    }
    return module.algorithm, parts, dict(module.numbers)


def is_readable(target: str, module: LoraModule) -> bool:
    """Return whether the table says that ``target`` applies all of the module as it is."""
    row = load_table("spellings")[target]
    keeps, needs = row.get("keeps", {}), row.get("needs", {})
    lacking = [
        part for part in module.parts if part in row["lacks"] and module.algorithm not in keeps.get(part, ())
    ]
    present = all(part in module.parts for part in needs.get(module.algorithm, ()))
    return module.algorithm in row["algorithms"] and present and not lacking


def assert_round_trip(target: Writer, modules: Mapping[str, LoraModule]) -> None:
    contents = LoraContents(modules=modules)
    for name, module in modules.items():
        check_module(name, module)
    if not all(is_readable(target.id, module) for module in modules.values()):
        with pytest.raises(IncompatibleError):
            export(target, "lora", contents)
        return
    with tempfile.TemporaryDirectory() as folder:
        back = read_back(export(target, "lora", contents), Path(folder), "sd1")
        assert join(back) == {name: as_meant(module) for name, module in modules.items()}


@pytest.mark.parametrize("target", WRITERS, ids=lambda row: row.id)
@pytest.mark.parametrize(
    ("algorithm", "form"), FORMS, ids=[f"{id}-{'-'.join(f.required)}" for id, f in FORMS]
)
def test_every_form_of_every_algorithm_comes_back_from_every_program_or_is_refused(
    target: Writer, algorithm: Any, form: Form
) -> None:
    kernels: list[tuple[int, ...]] = [()]
    if algorithm not in ("lora", "norm"):
        kernels = [(3, 3)] if has_core(form) else [(), (3, 3)]
    for kernel, full in itertools.product(kernels, (False, True)):
        module = make_module(algorithm, form, SIZES, kernel=kernel, full=full)
        name = NORM if algorithm == "norm" else CONVOLUTION if kernel else ATTENTION
        if "core" in form.required and not full and target.id in ("diffusers", "peft"):
            continue  # multiplied out, see test_exporting_losses
        assert_round_trip(target, {name: module})


def has_core(form: Form) -> bool:
    """Return whether a part of the form is a kernel that other parts stand around."""
    return any(part in form.required for part in ("core", "hada_t1", "lokr_t2", "bm"))


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, LoraModule]:
    """Draw a few modules of several algorithms, ranks and dtypes."""
    names = [f"unet.down_blocks.{block}.attentions.0.proj_in" for block in range(3)]
    names += [f"text_encoder.text_model.encoder.layers.{layer}.mlp.fc1" for layer in range(2)]
    modules = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)):
        algorithm, form = draw(st.sampled_from(FORMS[:2]))
        sizes = {letter: draw(st.integers(1, 9)) for letter in ("r", "o", "i")}
        modules[name] = make_module(
            algorithm,
            form,
            sizes,
            dtype=draw(st.sampled_from(DTYPES)),
            seed=draw(st.integers(0, 99)),
            numbers={"alpha": draw(st.floats(2.0**-10, 1e4, width=32))},
        )
    return modules


@settings(max_examples=60)
@given(modules=adapters(), target=st.sampled_from(WRITERS))
def test_any_adapter_comes_back_bit_for_bit(modules: dict[str, LoraModule], target: Writer) -> None:
    assert_round_trip(target, modules)


@settings(max_examples=40)
@given(
    target=st.sampled_from([row for row in WRITERS if "embedding" in row.write]),
    vectors=st.integers(1, 8),
    dtype=st.sampled_from(DTYPES),
    family=st.sampled_from(["sd1", "sd2", "sdxl", "toybox"]),
)
def test_any_rows_of_a_word_come_back_bit_for_bit(
    target: Writer, vectors: int, dtype: str, family: str
) -> None:
    encoders = {"sdxl": {"text_encoder": 768, "text_encoder_2": 1280}, "sd2": {"text_encoder": 1024}}
    widths = encoders.get(family, {"text_encoder": 128 if family == "toybox" else 768})
    generator = np.random.default_rng(vectors)
    rows = {
        (ComponentName(component), Placeholder("<imp>")): make_tensor((vectors, width), dtype, generator)
        for component, width in widths.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        written = export(target, "embedding", EmbeddingContents(rows=rows), family=family)
        assert join(read_back(written, Path(folder), family, "<imp>")) == rows
