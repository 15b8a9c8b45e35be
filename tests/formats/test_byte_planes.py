"""Full fine-tunes packed as byte planes: every bit comes back, or an error that is stated, and from no other base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from conceptry.bases import ComponentName
from conceptry.errors import IncompatibleError, IntegrityError, InvalidFileError
from conceptry.formats.byte_planes import PLANES_KEY, is_packed, read_planes, write_planes
from conceptry.formats.full import FullContents
from conceptry.formats.header import read_header
from conceptry.formats.tensors import RawTensor, digest_tensor_file, read_tensors, write_tensors

UNET = ComponentName("unet")
GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
DTYPES: dict[str, Any] = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}


def make_tune(dtype: str, *, change: float = 2e-4) -> tuple[dict[str, RawTensor], FullContents]:
    """Return a base and what training made of it, with values of every size and sign."""
    rng = np.random.default_rng(5)
    base, new = {}, {}
    for name, shape in {"up.weight": (320, 320), "up.bias": (320,), "scale": ()}.items():
        old = rng.normal(scale=0.03, size=shape) * rng.choice([1e-4, 1.0], size=shape)
        base[name] = RawTensor.from_numpy(np.asarray(old).astype(DTYPES[dtype]))
        tuned = base[name].to_numpy().astype(np.float64) + rng.normal(scale=change, size=shape)
        new[name] = RawTensor.from_numpy(np.asarray(tuned).astype(DTYPES[dtype]))
    return base, FullContents(component=UNET, tensors=new)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(tmp_path: Path, dtype: str) -> None:
    base, tune = make_tune(dtype)
    packed = write_planes(tmp_path / "unet.safetensors", tune, base.get)
    assert read_planes(tmp_path / "unet.safetensors", base.get) == tune
    assert packed.relative_error == packed.greatest_error == 0
    assert packed.share < 0.9


def test_values_of_every_bit_pattern_come_back(tmp_path: Path) -> None:
    finite = np.array([bits for bits in range(1 << 16) if bits & 0x7C00 != 0x7C00], dtype="<u2")
    base = {"w": RawTensor("F16", (len(finite),), finite.tobytes())}
    tune = FullContents(
        component=UNET, tensors={"w": RawTensor("F16", (len(finite),), finite[::-1].tobytes())}
    )
    write_planes(tmp_path / "unet.safetensors", tune, base.get)
    assert read_planes(tmp_path / "unet.safetensors", base.get) == tune


def test_file_is_an_ordinary_one_and_the_same_each_time(tmp_path: Path) -> None:
    base, tune = make_tune("F16")
    first, second = (write_planes(tmp_path / name, tune, base.get, {"note": "x"}) for name in ("a", "b"))
    assert first == second
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {tensor.dtype for tensor in read_tensors(tmp_path / "a").values()} == {"U8"}
    assert digest_tensor_file(tmp_path / "a") == first.written.tensor_sha256
    assert is_packed(read_header(tmp_path / "a").metadata)


def test_rounding_states_its_error_and_is_the_same_each_time(tmp_path: Path) -> None:
    base, tune = make_tune("F16")
    packed = write_planes(tmp_path / "unet.safetensors", tune, base.get, step=1.0)
    found = read_planes(tmp_path / "unet.safetensors", base.get)
    squares = of_squares = greatest = 0.0
    for name, tensor in found.tensors.items():
        old, new = (one[name].to_numpy().astype(np.float64) for one in (base, tune.tensors))
        wrong = tensor.to_numpy().astype(np.float64) - new
        squares, of_squares = squares + (wrong**2).sum(), of_squares + ((new - old) ** 2).sum()
        greatest = max(greatest, float(np.abs(wrong).max()))
    assert packed.relative_error == pytest.approx((squares / of_squares) ** 0.5)
    assert packed.greatest_error == greatest
    assert 0.25 < packed.relative_error < 0.35  # 1 / sqrt(12) of a step
    assert packed.share < 0.15
    said = json.loads(read_header(tmp_path / "unet.safetensors").metadata[PLANES_KEY])
    assert (said["relative_error"], said["greatest_error"]) == (packed.relative_error, packed.greatest_error)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, tune = make_tune("F16")
    write_planes(tmp_path / "unet.safetensors", tune, base.get)
    other = bytearray(base["up.weight"].data)
    other[100] ^= 1
    for wrong, said in (
        (
            {**base, "up.weight": RawTensor("F16", (320, 320), bytes(other))},
            "planes of unet need a base whose tensors",
        ),
        ({name: base[name] for name in ("up.bias", "scale")}, "the base has no such tensor"),
        ({**base, "up.weight": base["up.weight"].reshape((160, 640))}, r"the base has F16 \[160, 640\]"),
    ):
        with pytest.raises(IncompatibleError, match=said):
            read_planes(tmp_path / "unet.safetensors", wrong.get)


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_of_the_first_version_are_read(dtype: str) -> None:
    base, tune = make_golden(dtype)
    assert read_planes(GOLDEN / f"full_planes_{dtype.lower()}.safetensors", base.get) == tune


def make_golden(dtype: str) -> tuple[dict[str, RawTensor], FullContents]:
    """Return a base and a fine-tune of exact arithmetic, which is the same everywhere."""
    places = np.arange(600).reshape(20, 30)
    old = (places - 300) / 4096
    base = {"up.weight": RawTensor.from_numpy(old.astype(DTYPES[dtype]))}
    new = base["up.weight"].to_numpy().astype(np.float64) + (places % 7 - 3) / 8192
    return base, FullContents(
        component=UNET, tensors={"up.weight": RawTensor.from_numpy(new.astype(DTYPES[dtype]))}
    )


def damage(path: Path, *, planes: dict[str, RawTensor] | None = None, **document: Any) -> None:
    header, tensors = read_header(path), read_tensors(path)
    said = {**json.loads(header.metadata[PLANES_KEY]), **document}
    write_tensors(path, {**tensors, **(planes or {})}, {**header.metadata, PLANES_KEY: json.dumps(said)})


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    base, tune = make_tune("F16")
    path = tmp_path / "unet.safetensors"
    noise = RawTensor("U8", (9,), bytes(9))
    for more, error, said in (
        ({"planes": {"up.bias#0": noise}}, InvalidFileError, "cannot be unpacked|another number"),
        (
            {"planes": {"up.bias#0": read_first(base, tune, tmp_path)}},
            InvalidFileError,
            "another number of bytes",
        ),
        ({"tensors": "sha256:" + "0" * 64}, IntegrityError, "unpacks to tensors of digest"),
        ({"base": "x"}, InvalidFileError, "does not say what its planes are"),
        ({"rows": {"up.bias": ["F16"]}}, InvalidFileError, "does not say what its planes are"),
        ({"rows": {"up.bias": ["F16", [1e999], None]}}, InvalidFileError, "does not say what its planes are"),
        ({"rows": {"up.bias": ["F16", [320], -1.0]}}, InvalidFileError, "does not say what its planes are"),
        ({"rows": {"up.bias": ["I64", [320], None]}}, IncompatibleError, "has no planes"),
    ):
        write_planes(path, tune, base.get)
        damage(path, **more)
        with pytest.raises(error, match=said):
            read_planes(path, base.get)


def read_first(base: dict[str, RawTensor], tune: FullContents, folder: Path) -> RawTensor:
    """Return the plane of a larger tensor."""
    write_planes(folder / "other.safetensors", tune, base.get)
    return read_tensors(folder / "other.safetensors")["up.weight#0"]


def test_step_that_is_none_is_refused(tmp_path: Path) -> None:
    base, tune = make_tune("F16")
    for step in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(InvalidFileError, match="is not between"):
            write_planes(tmp_path / "unet.safetensors", tune, base.get, step=step)
    assert list(tmp_path.iterdir()) == []
