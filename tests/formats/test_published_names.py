"""Names that import gives to modules are those of real networks, with the shapes that their layers have."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

import json
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel

from conceptry.formats.module_names import choose_ldm_blocks, find_layout, spell_canonical, unflatten_path
from tests.formats.adapters import GOLDEN, Shape, list_modules
from tests.formats.networks import UNETS

FAMILIES = ("sd1", "sd2", "sdxl")


def list_published(family: str) -> dict[str, Shape]:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[family])
    return {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in unet.state_dict().items()
        if name.endswith(".weight") and tensor.ndim in (2, 4)
    }


def resolve(flat: Mapping[str, Shape], family: str) -> dict[str | None, Shape]:
    found: dict[str | None, Shape] = {}
    for name, shape in flat.items():
        path = unflatten_path(name)
        layout = find_layout(path)
        assert layout is not None, name
        found[spell_canonical(path, layout, choose_ldm_blocks([path], family))] = shape
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_of_the_network_is_found_under_its_published_name(family: str) -> None:
    flat = {
        name.removeprefix("unet.").replace(".", "_"): shape
        for name, shape in list_modules(family).items()
        if name.startswith("unet.")
    }
    assert resolve(flat, family) == list_published(family)


def test_blocks_of_the_original_sd1_network_are_all_known() -> None:
    path = GOLDEN / "sd1-ldm.json"
    schema = json.loads(path.read_text(encoding="utf-8"))["diffuser"]
    flat = {
        name.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_"): tuple(shape)
        for name, shape in schema.items()
        if name.endswith(".weight") and len(shape) in (2, 4)
    }
    assert resolve(flat, "sd1") == list_published("sd1")
