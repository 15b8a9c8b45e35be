"""PyTorch's files become safetensors bit for bit: what torch itself saves, and what others have published."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

import hashlib
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from conceptry.composer.tensors import from_torch
from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.formats.conversion import (
    CONVERTED_NAME,
    LEFT_OUT_KEY,
    SOURCE_KEY,
    as_safetensors,
    convert_file,
    read_any_header,
    read_foreign_header,
    read_values,
)
from conceptry.formats.header import read_header
from conceptry.formats.tensors import RawTensor, read_tensors
from tests.formats.hostile import archive, call, dictionary, name, number, program, tensor, text

SHARED = Path(__file__).resolve().parents[3] / "shared" / "fixtures"


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linspace(-2, 2, max(1, torch.Size(shape).numel())).reshape(shape).to(dtype)


def save(value: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def convert(path: Path, folder: Path) -> dict[str, RawTensor]:
    return read_tensors(convert_file(path, folder).path)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    torch.bool,
]


def make_everything() -> dict[str, torch.Tensor]:
    base = ramp(6, 4)
    return {
        **{str(dtype).removeprefix("torch."): ramp(3, 5).abs().to(dtype) for dtype in DTYPES},
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "row of a shared storage": base[2],
        "rows of a shared storage": base[1:4],
        "columns of a shared storage": base[:, 1:3],
        "transposed": base.T,
        "every second": base[::2, ::2],
        "expanded": ramp(4).expand(3, 4),
        "permuted": ramp(2, 3, 4).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(ramp(3)),
        "parameter without gradient": torch.nn.Parameter(ramp(3), requires_grad=False),
        "needs a gradient": ramp(3).requires_grad_(),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "older form"])
def test_every_tensor_that_torch_saves_comes_back_bit_for_bit(legacy: bool, tmp_path: Path) -> None:
    given = make_everything()
    found = convert(save(OrderedDict(given), tmp_path / "file.pt", legacy=legacy), tmp_path)
    assert found.keys() == given.keys()
    for key, value in given.items():
        expected = value.detach().contiguous()
        assert found[key].shape == tuple(value.shape), key
        assert (
            bytes(found[key].data)
            == expected.view(torch.uint8 if expected.dim() else expected.dtype).numpy().tobytes()
        ), key
        if value.dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert found[key] == from_torch(expected), key


def test_described_header_is_that_of_the_converted_file(tmp_path: Path) -> None:
    path = save(make_everything(), tmp_path / "file.pt")
    described = read_foreign_header(path)
    converted = convert_file(path, tmp_path)
    assert described.tensors == converted.header.tensors == read_header(converted.path).tensors
    assert described.size_bytes == path.stat().st_size
    assert described.metadata[SOURCE_KEY] == converted.container == "torch_zip"


def test_same_file_gives_the_same_bytes_whatever_it_is_called(tmp_path: Path) -> None:
    data = save({"b": ramp(3), "a": ramp(2)}, tmp_path / "one.pt").read_bytes()
    (tmp_path / "two.safetensors").write_bytes(data)
    digests = set()
    for file_name in ("one.pt", "two.safetensors"):
        (tmp_path / "out").mkdir(exist_ok=True)
        digests.add(
            hashlib.sha256(convert_file(tmp_path / file_name, tmp_path / "out").path.read_bytes()).digest()
        )
    assert len(digests) == 1


# --- what programs of the field write ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [dict, torch.nn.ParameterDict], ids=["dict", "ParameterDict"])
def test_webui_embedding_keeps_its_vectors_its_name_and_its_token(parameters: Any, tmp_path: Path) -> None:
    vectors = ramp(2, 768)
    document = {
        "string_to_token": {"*": 265},
        "string_to_param": parameters({"*": torch.nn.Parameter(vectors)}),
        "name": "blue-imp",
        "step": 500,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": None,
    }
    found = convert_file(save(document, tmp_path / "imp.pt"), tmp_path)
    assert read_tensors(found.path) == {"string_to_param.*": from_torch(vectors)}
    values = {"string_to_token": {"*": 265}, "name": "blue-imp", "step": 500, "sd_checkpoint": "81761151"}
    assert found.values == read_values(read_any_header(tmp_path / "imp.pt").metadata) == values


def test_hypernetwork_keeps_its_layers_under_its_widths(tmp_path: Path) -> None:
    layers = OrderedDict({"linear.0.weight": ramp(4, 2), "linear.0.bias": ramp(4)})
    document = {320: (layers, layers), 768: (layers, layers), "name": "imp", "layer_structure": [1, 2, 1]}
    found = convert_file(save(document, tmp_path / "imp.pt"), tmp_path)
    assert {name for name in found.header.tensors if name.startswith("320")} == {
        f"320.{half}.linear.0.{part}" for half in (0, 1) for part in ("weight", "bias")
    }
    assert found.values == {"name": "imp", "layer_structure": [1, 2, 1]}


def test_adapter_keeps_its_names(tmp_path: Path) -> None:
    given = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": ramp(4, 1280, dtype=torch.float16),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": ramp(1280, 4, dtype=torch.float16),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(4.0),
    }
    assert convert(save(given, tmp_path / "a.bin"), tmp_path) == {
        key: from_torch(value) for key, value in given.items()
    }


def test_state_of_a_module_is_read_with_its_metadata_left_out(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    found = convert(save({"state_dict": module.state_dict()}, tmp_path / "file.ckpt"), tmp_path)
    assert found.keys() == {f"state_dict.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}


def test_bare_tensor_and_list_have_names(tmp_path: Path) -> None:
    assert list(convert(save(ramp(3), tmp_path / "a.pt"), tmp_path)) == ["tensor"]
    assert list(convert(save([ramp(3), ramp(2)], tmp_path / "a.pt"), tmp_path)) == ["0", "1"]


def test_module_that_was_saved_whole_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match=r"torch\.nn\.modules\.linear\.Linear"):
        convert_file(save(torch.nn.Linear(2, 2), tmp_path / "file.pt"), tmp_path)


def test_leftover_of_training_is_left_out_and_named(tmp_path: Path) -> None:
    callback = name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") + b")\x81" + b"}b"
    scalar = call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("f8")), b"C\x01x")
    body = dictionary({"a": tensor(), "callback": callback, "loss": scalar, "step": number(7)})
    (tmp_path / "file.ckpt").write_bytes(archive(program(body)))
    header = read_foreign_header(tmp_path / "file.ckpt")
    assert read_values(header.metadata) == {"step": 7}
    assert json.loads(header.metadata[LEFT_OUT_KEY]) == [
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    ]


def test_long_texts_and_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    document = {"a": ramp(1), "notes": "x" * 5000, "loss": float("nan"), "rate": 0.5, "flag": True}
    assert convert_file(save(document, tmp_path / "file.pt"), tmp_path).values == {"rate": 0.5, "flag": True}


def test_value_that_is_not_finite_is_refused_by_its_tensor(tmp_path: Path) -> None:
    path = save({"good": ramp(3), "bad": torch.tensor([1.0, float("inf")])}, tmp_path / "file.pt")
    with pytest.raises(InvalidFileError, match=r"bad: .*NaN or infinite"):
        convert_file(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match=r"torch\.ComplexFloatStorage"):
        convert_file(save({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "file.pt"), tmp_path)


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    for read in (read_foreign_header, read_any_header):
        with pytest.raises(NotFoundError):
            read(tmp_path / "none.pt")


def test_tensors_stay_readable_after_the_converted_file_is_gone(tmp_path: Path) -> None:
    given = ramp(64, 1024)
    with as_safetensors(save({"a": given}, tmp_path / "file.pt")) as readable:
        found = read_tensors(readable)
    assert not readable.exists()
    assert found["a"] == from_torch(given)


def test_reading_a_pickle_imports_no_torch() -> None:
    load = "import sys; from conceptry.formats import worker; worker.load_lazy_modules()"
    code = f"{load}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- real files -------------------------------------------------------------------------------------------------------


def test_real_embedding_is_converted(tmp_path: Path) -> None:
    path = SHARED / "cat_toy_learned_embeds.bin"
    if not path.exists():
        pytest.skip("cat_toy_learned_embeds.bin is in ../shared/fixtures only, which is absent here")
    found = convert(path, tmp_path)
    assert {key: (value.dtype, value.shape) for key, value in found.items()} == {"<cat-toy>": ("F32", (768,))}
    expected = torch.load(path, weights_only=True)  # noqa: TID251 - the reference, on a file that is known
    assert found["<cat-toy>"] == from_torch(expected["<cat-toy>"])


def test_real_covariance_is_converted(tmp_path: Path) -> None:
    path = SHARED / "covariance_clip_vit_l_14.pt"
    if not path.exists():
        pytest.skip("covariance_clip_vit_l_14.pt is in ../shared/fixtures only, which is absent here")
    found = convert(path, tmp_path)["tensor"].to_numpy()
    assert found.shape == (768, 768)
    assert abs(found - found.T).max() < 1e-3
    assert (tmp_path / CONVERTED_NAME).exists()
