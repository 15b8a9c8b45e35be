"""Hypernetworks of A1111: read as data in the isolated process, kept bit for bit, their settings in the manifest."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

from pathlib import Path
from typing import Any

import torch

from conceptry.concepts import open_concept
from conceptry.digests import Digest
from conceptry.errors import IncompatibleError, InvalidFileError, MissingAnswerError
from conceptry.formats.exporting import ExportSettings, plan_export
from conceptry.formats.header import read_header
from conceptry.formats.hypernetwork import HYPERNETWORK_NAME, SETTINGS_KEY, read_hypernetwork
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.importing import import_file
from conceptry.formats.tensors import read_tensors, write_tensors
from conceptry.formats.writers import WRITERS
from conceptry.manifest import HypernetworkMethod, parse_manifest
from conceptry.names import ConceptName, parse_version
from tests.fakes.hypernetworks import make_document, save_hypernetwork


def settings(**changes: Any) -> ImportSettings:
    return ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"), **changes)


VARIANTS: dict[str, dict[str, Any]] = {
    "as usual": {"activation_func": "relu"},
    "norms and dropout": {
        "activation_func": "swish",
        "is_layer_norm": True,
        "use_dropout": True,
        "structure": (1, 2, 1.5, 1),
        "activate_output": False,
    },
    "the first spelling": {"old": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_value_is_kept_and_the_settings_are_in_the_manifest(variant: str, tmp_path: Path) -> None:
    given = VARIANTS[variant]
    path = tmp_path / "devil.pt"
    networks = save_hypernetwork(path, widths=(32, 320, 768), **given)
    found = identify(path)
    assert (found.kind, found.dialect, found.family, found.stored) == ("hypernetwork", "a1111", "sd1", True)
    assert found.coverage.complete
    manifest = import_file(path, tmp_path / "package", settings())
    assert manifest.builds[0].provenance.imported_from == Digest.of_file(path)
    assert parse_manifest(manifest.to_bytes()) == manifest
    method = manifest.builds[0].parts[0].method
    assert isinstance(method, HypernetworkMethod)
    assert (method.cross_attention, method.self_attention) == ((768,), (32, 320))
    assert method.structure == tuple(map(float, given.get("structure", (1, 2, 1))))
    assert method.activation == given.get("activation_func", "linear")
    assert method.activate_output is given.get("activate_output", True)
    assert method.layer_norm is given.get("is_layer_norm", False)
    kept = read_hypernetwork(tmp_path / "package" / HYPERNETWORK_NAME)
    for width, pair in networks.items():
        for target, network in zip(("keys", "values"), pair, strict=True):
            ours = [
                bytes(tensor.data)
                for layer in kept.networks[width, target]  # type: ignore[index]  # a literal of the loop
                for _, tensor in layer.list_parts()
            ]
            assert ours == [value.numpy().tobytes() for value in network.state_dict().values()]
    assert not any(
        "devil" in token.placeholder or "blue-imp" in token.placeholder for token in manifest.tokens
    )


def test_the_stored_file_by_itself_is_imported_to_the_same_contents(tmp_path: Path) -> None:
    save_hypernetwork(tmp_path / "imp.pt", activation_func="relu")
    first = import_file(tmp_path / "imp.pt", tmp_path / "one", settings())
    again = import_file(tmp_path / "one" / HYPERNETWORK_NAME, tmp_path / "two", settings())
    assert again.builds[0].parts == first.builds[0].parts
    assert again.builds[0].base == first.builds[0].base


def test_no_program_reads_one_without_a_pickle_so_none_is_written(tmp_path: Path) -> None:
    save_hypernetwork(tmp_path / "imp.pt")
    import_file(tmp_path / "imp.pt", tmp_path / "package", settings())
    concept = open_concept(tmp_path / "package")
    for writer in WRITERS:
        with pytest.raises(IncompatibleError, match="from a pickle alone") as caught:
            plan_export(concept, ExportSettings(target=writer.id, path=tmp_path / "to"))
        assert caught.value.hint == "share it as it is: concepts push me/imp@1.0.0 REMOTE"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"activation_func": "prelu"}, "its activation is 'prelu'"),
        ({"layer_structure": [1, 4, 1]}, "the structure says"),
        ({"layer_structure": [1, 2, 2, 1]}, "it has 2 layers, the structure says 3"),
        ({"layer_structure": "wide"}, "its layer_structure is wide"),
        ({"is_layer_norm": True}, "do not agree"),
        ({"skip_connection": True}, "is of a fork"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_leave_nothing(
    given: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "imp.pt"
    _, document = make_document(widths=(768,))
    torch.save({**document, **given}, path)
    with pytest.raises(InvalidFileError, match=expected):
        import_file(path, tmp_path / "package", settings())
    assert list(tmp_path.iterdir()) == [path]


def test_a_layer_without_its_half_or_a_tensor_of_nobody_is_named(tmp_path: Path) -> None:
    path = tmp_path / "imp.pt"
    _, document = make_document(widths=(768,))
    lost = document[768][1].pop("linear.1.bias")
    torch.save(document, path)
    with pytest.raises(InvalidFileError, match=r"768\.1\.linear\.1\.bias"):
        plan_import(path, settings())
    document[768][1]["linear.1.bias"] = lost
    torch.save({**document, "stray": torch.ones(3)}, path)
    with pytest.raises(InvalidFileError, match=r"1 of 9 tensors of 'imp\.pt' would be lost: 'stray'"):
        plan_import(path, settings())
    document[768][1]["linear2.bias"] = lost
    torch.save(document, path)
    with pytest.raises(InvalidFileError, match="under two names"):
        plan_import(path, settings())


def test_widths_that_several_bases_have_are_asked_for_and_others_refused(tmp_path: Path) -> None:
    save_hypernetwork(tmp_path / "imp.pt", widths=(320, 640))
    assert identify(tmp_path / "imp.pt").family is None
    with pytest.raises(MissingAnswerError, match="which base"):
        plan_import(tmp_path / "imp.pt", settings())
    plan_import(tmp_path / "imp.pt", settings(base=declare_base("sd2")))
    save_hypernetwork(tmp_path / "imp.pt", widths=(1024,))
    with pytest.raises(IncompatibleError, match="is for sd2, not for sd1"):
        plan_import(tmp_path / "imp.pt", settings(base=declare_base("sd1")))


def test_a_stored_file_whose_settings_are_damaged_is_refused(tmp_path: Path) -> None:
    save_hypernetwork(tmp_path / "imp.pt", widths=(768,))
    import_file(tmp_path / "imp.pt", tmp_path / "package", settings())
    path = tmp_path / "package" / HYPERNETWORK_NAME
    tensors, metadata = read_tensors(path), dict(read_header(path).metadata)
    for text in ("", "[]", "{}", '{"activate_output":1,"activation":"relu","structure":[1,2,1]}'):
        write_tensors(path, tensors, {**metadata, SETTINGS_KEY: text})
        with pytest.raises(InvalidFileError, match="settings"):
            read_hypernetwork(path)
    rest = {name: tensor for name, tensor in tensors.items() if name != "768.keys.0.bias"}
    write_tensors(path, rest, metadata)
    with pytest.raises(InvalidFileError, match=r"768\.keys\.0\.bias: this tensor is missing"):
        read_hypernetwork(path)
