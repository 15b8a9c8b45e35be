"""The first adapters of cloneofsimo: a list of factors without a name, of which shapes tell the layers."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

from dataclasses import replace
from pathlib import Path

import torch

from conceptry.concepts import open_concept
from conceptry.errors import InvalidFileError
from conceptry.formats.export_files import write_export
from conceptry.formats.exporting import ExportSettings, plan_export
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.importing import import_file
from conceptry.formats.lora import read_lora
from conceptry.names import ConceptName, parse_version
from tests.formats.networks import list_layers
from tests.formats.test_lidb import list_positions

SETTINGS = ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"), license="CC0-1.0")
STEM = "text_encoder.text_model.encoder.layers"
UNET = list_positions(mlp=False)[:128]
TEXT = [f"{STEM}.{number}.self_attn.{one}_proj" for number in range(12) for one in ("k", "v", "q", "out")]


def draw_factors(names: list[str]) -> list[torch.Tensor]:
    """Return the factors of all layers, up and down in turn, in half precision."""
    shapes = list_layers("sd1")
    factors = []
    for name in names:
        outputs, inputs = shapes[name]
        factors += [torch.randn(outputs, 2).half(), torch.randn(2, inputs).half()]
    return factors


@pytest.mark.parametrize("names", [UNET, TEXT], ids=["unet", "text"])
def test_shapes_tell_the_layers_and_every_factor_is_kept(names: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    factors = draw_factors(names)
    torch.save(factors, tmp_path / "lora_weight.pt")
    found = identify(tmp_path / "lora_weight.pt")
    assert (found.kind, found.dialect, found.family, found.stored) == ("lora", "cloneofsimo", "sd1", True)
    assert found.coverage.complete
    said = replace(SETTINGS, base=declare_base("sd1"))
    import_file(tmp_path / "lora_weight.pt", tmp_path / "package", said)
    modules = read_lora(tmp_path / "package" / "lora.safetensors").modules
    assert modules.keys() == set(names)
    assert {module.scale for module in modules.values()} == {1.0}
    for number, name in enumerate(names):
        assert bytes(modules[name].up.data) == factors[2 * number].numpy().tobytes()
        assert bytes(modules[name].down.data) == factors[2 * number + 1].numpy().tobytes()
    plan = plan_export(
        open_concept(tmp_path / "package"),
        ExportSettings(target="diffusers", path=tmp_path / "back.safetensors"),
    )
    [written] = write_export(plan)
    again = plan_import(written.path, said).reading.contents[0].modules  # type: ignore[union-attr]
    assert {name: module.parts for name, module in again.items()} == {
        name: module.parts for name, module in modules.items()
    }


def test_a_list_of_no_network_that_is_known_is_named_and_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for factors in (draw_factors(UNET[:12]), draw_factors(UNET)[:-1]):
        torch.save(factors, tmp_path / "lora_weight.pt")
        found = identify(tmp_path / "lora_weight.pt")
        assert (found.kind, found.dialect, found.stored) == ("lora", "cloneofsimo_list", False)
        assert found.coverage.complete
        with pytest.raises(InvalidFileError, match="bare list"):
            plan_import(tmp_path / "lora_weight.pt", SETTINGS)
