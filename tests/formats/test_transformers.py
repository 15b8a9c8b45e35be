"""Adapters of the newer networks come back as they were: in the names of diffusers, and in their authors' own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from conceptry.formats.data_files import load_table
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.lora import LoraContents
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.formats.writers import find_writer
from conceptry.names import ConceptName, parse_version
from tests.formats import adapter_shapes as spelled
from tests.formats.networks import Shape, list_layers
from tests.formats.test_dialects import ORIGINAL
from tests.formats.test_round_trips import export, join, read_back

# One block of each kind has all names that there are; blocks differ by their number alone, which identification tests.
FIRST = ("blocks.0.", "layers.0.", "refiner.0.", "blocks.11.")


def import_keys(shapes: Mapping[str, Shape], family: str, folder: Path) -> LoraContents:
    """Return what a file with these names holds: distinct numbers in each tensor, alpha not the rank."""
    generator = np.random.default_rng(0)
    tensors = {
        name: RawTensor.from_numpy(generator.standard_normal(shape).astype(np.float16) if shape else HALF)
        for name, shape in shapes.items()
    }
    path = folder / "given.safetensors"
    write_tensors(path, tensors)
    settings = ImportSettings(
        name=ConceptName.parse("me/x"), version=parse_version("1.0.0"), base=declare_base(family)
    )
    [contents] = plan_import(path, settings).reading.contents
    assert isinstance(contents, LoraContents)
    assert 3 * len(contents.modules) == len(shapes)
    return contents


HALF = np.array(0.5, np.float16)


@pytest.mark.parametrize("target", ["diffusers", "comfyui", "peft"])
@pytest.mark.parametrize("family", ["flux", "sd3", "wan", "qwen_image", "z_image"])
def test_adapters_with_the_names_of_diffusers_come_back(family: str, target: str, tmp_path: Path) -> None:
    modules = spelled.pick(spelled.of(list_layers(family), ["transformer"]), *FIRST)
    given = import_keys(
        spelled.write(modules, spelled.replace(spelled.DIFFUSERS), spelled.with_alpha, 1), family, tmp_path
    )
    assert given.modules.keys() == modules.keys()
    written = export(find_writer(target), "lora", given, family=family)
    assert join(read_back(written, tmp_path / "out", family)) == join([given])


@pytest.mark.parametrize("target", ["kohya", "comfyui", "peft"])
@pytest.mark.parametrize("family", ORIGINAL)
def test_adapters_with_the_names_of_the_authors_come_back(family: str, target: str, tmp_path: Path) -> None:
    modules = spelled.pick(ORIGINAL[family], *FIRST)
    given = import_keys(
        spelled.write(modules, spelled.flatten(spelled.KOHYA_TWO), spelled.with_alpha, 1), family, tmp_path
    )
    assert given.modules.keys() == modules.keys()
    assert family in load_table("spellings")[target].get("families", [family])
    written = export(find_writer(target), "lora", given, family=family)
    assert join(read_back(written, tmp_path / "out", family)) == join([given])
