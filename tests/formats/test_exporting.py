"""Each program gets the names it reads; what it cannot hold is refused with the one that can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conceptry.bases import FAMILY_BY_ID
from conceptry.errors import IncompatibleError
from conceptry.formats.data_files import load_table
from conceptry.formats.export_names import make_speller
from conceptry.formats.header import Header, TensorInfo
from conceptry.formats.lora_keys import list_dialects, parse_keys
from tests.formats.adapters import GOLDEN, Shape, list_modules

READ_BY = {
    "diffusers": ("diffusers",),
    "peft": ("peft",),
    "kohya": ("kohya",),
    "a1111": ("kohya",),
    "comfyui": ("comfyui", "diffusers"),
}


def list_canonical(family: str) -> dict[str, Shape]:
    """Return every module of a family by its canonical name, with the shape of its weight."""
    written = {
        f"lora_{name.replace('.', '_')}.lora_down.weight": shape
        for name, shape in list_modules(family).items()
    }
    found = parse_keys(make_header(written), list_dialects()["kohya"])
    assert len(found.keys) == len(written)
    return {key.module: written[name] for name, key in found.keys.items()}


def make_header(shapes: dict[str, Shape]) -> Header:
    """Return the header of a file with one factor of rank 4 for each weight."""
    tensors = {name: TensorInfo("F16", (4, *shape[1:]), 0, 0) for name, shape in shapes.items()}
    return Header(tensors, {}, 0, 0)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("target", list(READ_BY))
def test_every_module_of_a_base_is_read_back_under_its_own_name(family: str, target: str) -> None:
    modules = list_canonical(family)
    speller = make_speller(target, family, modules)
    components = sorted({name.partition(".")[0] for name in modules}) if target == "peft" else [""]
    for component in components:
        mine = {
            name: shape
            for name, shape in modules.items()
            if name.startswith(f"{component}." if component else "")
        }
        written = {f"{speller.spell(name)}.lora_down.weight": shape for name, shape in mine.items()}
        assert len(written) == len(mine)
        found = parse_keys(make_header(written), list_dialects()[READ_BY[target][0]])
        assert {key.module for key in found.keys.values()} == set(mine)


@pytest.mark.parametrize(
    ("file", "targets"),
    [
        ("flux_lora_kohya_format", {"kohya", "comfyui", "peft"}),
        ("flux_lora_aitoolkit_format", {"kohya", "comfyui", "peft"}),
        ("flux_lora_diffusers_format", {"diffusers", "comfyui", "peft"}),
        ("krea2_lora_kohya_format", {"kohya", "comfyui", "peft"}),
    ],
)
def test_networks_with_names_of_their_own_are_written_only_where_those_are_read(
    file: str, targets: set[str]
) -> None:
    shapes = {name: tuple(shape) for name, shape in json.loads((GOLDEN / f"{file}.json").read_text()).items()}
    header = Header({name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes.items()}, {}, 0, 0)
    found = max(
        (parse_keys(header, dialect) for dialect in list_dialects().values()), key=lambda one: len(one.keys)
    )
    family = found.verdict.family
    assert family is not None
    modules = {key.module for key in found.keys.values() if key.part == "down"}
    for target, dialects in READ_BY.items():
        if target not in targets:
            with pytest.raises(IncompatibleError):
                [make_speller(target, family, modules).spell(name) for name in modules]
            continue
        speller = make_speller(target, family, modules)
        written = {
            f"{speller.spell(name)}.lora_down.weight": TensorInfo("F16", (4, 8), 0, 0) for name in modules
        }
        back = [parse_keys(Header(written, {}, 0, 0), list_dialects()[id], family) for id in dialects]
        assert modules in [{key.module for key in one.keys.values()} for one in back]


def test_a_base_that_a_program_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="a1111 does not run flux"):
        make_speller("a1111", "flux", ["transformer.img_in"])


def test_spellings_name_bases_that_exist() -> None:
    rows = load_table("spellings").values()
    named = {
        family for row in rows for family in [*row["blocks"], *row.get("families", ()), *row.get("of", {})]
    }
    assert named <= FAMILY_BY_ID.keys()
