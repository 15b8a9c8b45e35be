"""The stored forms of all kinds: exact round trips, the same bytes each time, faults named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conceptry.bases import ComponentName
from conceptry.digests import Digest
from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.formats.embedding import EmbeddingContents, read_embedding, write_embedding
from conceptry.formats.full import FullContents, read_full, write_full
from conceptry.formats.header import read_header
from conceptry.formats.hypernetwork import (
    HyperLayer,
    HypernetworkContents,
    read_hypernetwork,
    write_hypernetwork,
)
from conceptry.formats.lora import LoraContents, LoraModule, read_lora, write_lora
from conceptry.formats.modelspec import make_metadata
from conceptry.formats.packages import describe_file
from conceptry.formats.rank_one import RankOneContents, read_rank_one, write_rank_one
from conceptry.formats.tensors import RawTensor, digest_tensors, read_tensors, write_tensors
from conceptry.names import Placeholder

IMP = Placeholder("<blue-imp>")
TEXT, TEXT_2, UNET = (ComponentName(name) for name in ("text_encoder", "text_encoder_2", "unet"))
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
LAYER = TO_K.removesuffix(".to_k")


def ramp(*shape: int, dtype: Any = np.float32) -> RawTensor:
    return RawTensor.from_numpy(np.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(dtype))


def bad(*shape: int) -> RawTensor:
    return RawTensor.from_numpy(np.full(shape, np.nan, np.float32))


EMBEDDING = EmbeddingContents(rows={(TEXT, IMP): ramp(2, 768), (TEXT_2, IMP): ramp(2, 1280)})
LAYERED = EmbeddingContents(rows={(TEXT, IMP): ramp(3, 1, 768)}, layers=("a", "b", "c"))
RANK_ONE = RankOneContents(
    i_star=ramp(768),
    c_inv_i_star=ramp(768),
    rows={(TEXT, IMP): ramp(1, 768)},
    o_v={LAYER: ramp(320), LAYER.replace("0", "1"): ramp(640)},
)
LINEAR = LoraModule.of_factors(down=ramp(4, 768), up=ramp(320, 4), alpha=2.0)
LORA = LoraContents(
    modules={
        f"unet.{TO_K}": LINEAR,
        "unet.conv_in": LoraModule.of_factors(
            down=ramp(2, 4, 3, 3), up=ramp(320, 2, 1, 1, dtype=np.float16), alpha=2.0
        ),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": LoraModule.of_factors(
            down=ramp(1, 768, dtype=np.float16), up=ramp(3072, 1, dtype=np.float16), alpha=0.3333333432674408
        ),
    }
)
FULL = FullContents(component=UNET, tensors={"conv_in.bias": ramp(320), f"{TO_K}.weight": ramp(320, 768)})


def layer(inputs: int, outputs: int, *, norm: bool = True) -> HyperLayer:
    behind = ramp(outputs) if norm else None
    return HyperLayer(weight=ramp(outputs, inputs), bias=ramp(outputs), norm_weight=behind, norm_bias=behind)


HYPERNETWORK = HypernetworkContents(
    networks={
        (width, target): (layer(width, int(1.5 * width)), layer(int(1.5 * width), width))
        for width in (32, 77)
        for target in ("keys", "values")
    },
    structure=(1.0, 1.5, 1.0),
    activation="relu",
    activate_output=False,
)
SMALL = {(8, "keys"): (layer(8, 8),), (8, "values"): (layer(8, 8),)}


def hyper(**changes: Any) -> HypernetworkContents:
    return HypernetworkContents(**{"networks": SMALL, "structure": (1.0, 1.0), **changes})


FORMS: dict[str, tuple[Callable[..., object], Callable[[Path], Any], Any]] = {
    "embedding": (write_embedding, read_embedding, EMBEDDING),
    "per-layer embedding": (write_embedding, read_embedding, LAYERED),
    "rank_one": (write_rank_one, read_rank_one, RANK_ONE),
    "lora": (write_lora, read_lora, LORA),
    "full": (write_full, read_full, FULL),
    "hypernetwork": (write_hypernetwork, read_hypernetwork, HYPERNETWORK),
}
each_form = pytest.mark.parametrize(("write", "read", "contents"), FORMS.values(), ids=FORMS.keys())


@each_form
def test_contents_come_back_as_they_were(write: Any, read: Any, contents: Any, tmp_path: Path) -> None:
    write(tmp_path / "file.safetensors", contents, {"modelspec.title": "imp"})
    assert read(tmp_path / "file.safetensors") == contents
    assert read_header(tmp_path / "file.safetensors").metadata["modelspec.title"] == "imp"


@each_form
def test_contents_are_the_same_bytes_each_time(write: Any, read: Any, contents: Any, tmp_path: Path) -> None:
    write(tmp_path / "1", contents)
    write(tmp_path / "2", read(tmp_path / "1"))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@each_form
def test_other_files_are_refused(write: Any, read: Any, contents: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"emb_params": ramp(5, 768)})
    with pytest.raises(InvalidFileError, match="no canonical file"):
        read(path)
    write(path, contents)
    tensors, metadata = read_tensors(path), dict(read_header(path).metadata)
    write_tensors(path, tensors, {**metadata, "conceptry.schema": "2"})
    with pytest.raises(InvalidFileError, match="schema '2'"):
        read(path)
    write_tensors(path, tensors, {**metadata, "conceptry.kind": "other"})
    with pytest.raises(InvalidFileError, match="'other'"):
        read(path)
    with pytest.raises(NotFoundError):
        read(tmp_path / "none")


FAULTS: dict[str, tuple[Callable[..., object], Any, str]] = {
    "hypernetwork: nothing": (write_hypernetwork, hyper(networks={}), "no network"),
    "hypernetwork: keys alone": (
        write_hypernetwork,
        hyper(networks={(8, "keys"): (layer(8, 8),)}),
        "no network for values",
    ),
    "hypernetwork: another width": (
        write_hypernetwork,
        hyper(networks={**SMALL, (8, "values"): (layer(8, 9),)}),
        "[8, 8]",
    ),
    "hypernetwork: more layers": (write_hypernetwork, hyper(structure=(1.0, 2.0, 1.0)), "says 2"),
    "hypernetwork: open end": (write_hypernetwork, hyper(structure=(1.0, 2.0)), "begin and end"),
    "hypernetwork: one norm": (
        write_hypernetwork,
        hyper(networks={**SMALL, (8, "values"): (layer(8, 8, norm=False),)}),
        "layer norm",
    ),
    "hypernetwork: strange activation": (write_hypernetwork, hyper(activation="prelu"), "'prelu'"),
    "hypernetwork: NaN": (
        write_hypernetwork,
        hyper(networks={**SMALL, (8, "keys"): (replace(layer(8, 8), weight=bad(8, 8)),)}),
        "NaN",
    ),
    "embedding: NaN": (write_embedding, EmbeddingContents(rows={(TEXT, IMP): bad(1, 768)}), "NaN"),
    "embedding: nothing": (write_embedding, EmbeddingContents(rows={}), "no row"),
    "embedding: one dimension": (write_embedding, EmbeddingContents(rows={(TEXT, IMP): ramp(768)}), "shape"),
    "embedding: whole numbers": (
        write_embedding,
        EmbeddingContents(rows={(TEXT, IMP): ramp(1, 768, dtype=np.int32)}),
        "I32",
    ),
    "embedding: encoders disagree": (
        write_embedding,
        EmbeddingContents(rows={(TEXT, IMP): ramp(2, 768), (TEXT_2, IMP): ramp(1, 1280)}),
        "1 vectors",
    ),
    "embedding: empty rows": (
        write_embedding,
        EmbeddingContents(rows={(TEXT, IMP): ramp(0, 768)}),
        "nothing",
    ),
    "embedding: layers miscounted": (write_embedding, replace(LAYERED, layers=("a", "b")), "[2, vectors"),
    "embedding: a layer twice": (write_embedding, replace(LAYERED, layers=("a", "b", "a")), "twice"),
    "rank_one: widths differ": (write_rank_one, replace(RANK_ONE, c_inv_i_star=ramp(1024)), "1024"),
    "rank_one: energy is negative": (
        write_rank_one,
        replace(RANK_ONE, c_inv_i_star=RawTensor.from_numpy(-RANK_ONE.i_star.to_numpy())),
        "not positive",
    ),
    "rank_one: no layer": (write_rank_one, replace(RANK_ONE, o_v={}), "o_v"),
    "rank_one: a matrix for a layer": (
        write_rank_one,
        replace(RANK_ONE, o_v={LAYER: ramp(77, 320)}),
        "dimension",
    ),
    "rank_one: infinite": (write_rank_one, replace(RANK_ONE, o_v={LAYER: bad(320)}), "NaN"),
    "lora: nothing": (write_lora, LoraContents(modules={}), "no module"),
    "lora: ranks differ": (
        write_lora,
        LoraContents(modules={"unet.a": LoraModule.of_factors(down=LINEAR.down, up=ramp(320, 3), alpha=2.0)}),
        "ranks",
    ),
    "lora: alpha is infinite": (
        write_lora,
        LoraContents(modules={"unet.a": replace(LINEAR, numbers={"alpha": float("inf")})}),
        "alpha is inf",
    ),
    "lora: half a convolution": (
        write_lora,
        LoraContents(
            modules={"unet.a": LoraModule.of_factors(down=LINEAR.down, up=ramp(320, 4, 1, 1), alpha=2.0)}
        ),
        "no linear layer",
    ),
    "lora: no component": (write_lora, LoraContents(modules={"vae.a": LINEAR}), "component"),
    "full: unknown component": (write_full, replace(FULL, component=ComponentName("vae")), "'vae'"),
    "full: nothing changed": (write_full, replace(FULL, tensors={}), "no tensor"),
    "full: NaN": (write_full, replace(FULL, tensors={"a": bad(3)}), "NaN"),
}


@pytest.mark.parametrize(("write", "contents", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_unsound_contents_are_never_written(write: Any, contents: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError) as caught:
        write(tmp_path / "file", contents)
    assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_lora_with_a_missing_half_names_it(lost: str, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(path, LORA)
    tensors, metadata = read_tensors(path), read_header(path).metadata
    del tensors[f"unet.conv_in.{lost}"]
    write_tensors(path, tensors, metadata)
    with pytest.raises(InvalidFileError) as caught:
        read_lora(path)
    assert str(caught.value.where).startswith("unet.conv_in.")


def test_effective_scale_is_alpha_by_rank(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora.safetensors", LORA)
    module = read_lora(tmp_path / "lora.safetensors").modules[f"unet.{TO_K}"]
    assert (module.rank, module.alpha, module.scale) == (4, 2.0, 0.5)


def test_rank_one_edit_of_real_size_is_at_most_64_kib(tmp_path: Path) -> None:
    widths = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] + [1280] * 3 + [640] * 3 + [320] * 3
    assert (len(widths), sum(widths)) == (16, 12_480)
    values = {LAYER.replace("0", str(index), 1): ramp(width) for index, width in enumerate(widths)}
    write_rank_one(
        tmp_path / "file", replace(RANK_ONE, o_v=values), make_metadata("rank_one", family="sd1", title="imp")
    )
    assert (tmp_path / "file").stat().st_size <= 64 << 10


def test_one_vector_for_sd1_takes_at_most_8_kb(tmp_path: Path) -> None:
    contents = EmbeddingContents(rows={(TEXT, IMP): ramp(1, 768)})
    metadata = make_metadata("embedding", family="sd1", title="imp", triggers=[IMP], license_text="CC0-1.0")
    write_embedding(tmp_path / "file", contents, metadata)
    assert (tmp_path / "file").stat().st_size <= 8000


def test_metadata_speaks_modelspec(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    metadata = make_metadata(
        "lora", family="sdxl", title="imp", triggers=["<a>", "<b>"], license_text="CC0-1.0"
    )
    write_lora(path, LORA, metadata)
    found = read_header(path).metadata
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["modelspec.trigger_phrase"] == "<a>, <b>"
    for key in ("sai_model_spec", "implementation", "title", "resolution"):
        assert found[f"modelspec.{key}"]


def test_file_is_described_by_size_bytes_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    written = write_lora(path, LORA)
    file = describe_file(path)
    assert file == describe_file(path, written=written)
    assert (file.path, file.size, file.sha256) == (path.name, path.stat().st_size, Digest.of_file(path))
    assert file.tensor_sha256 == digest_tensors(read_tensors(path))
    picture = tmp_path / "preview.png"
    picture.write_bytes(b"png")
    preview = describe_file(picture, "preview")
    assert (preview.role, preview.media_type, preview.tensor_sha256) == ("preview", "image/png", None)
    with pytest.raises(NotFoundError):
        describe_file(tmp_path / "none")
