"""A packed fine-tune draws what the plain one draws, bit for bit, on its own base; on any other it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.base_locations import BaseLocation, resolve_base
from conceptry.bases import ComponentName, Fit
from conceptry.composer import Composition, attach, fuse
from conceptry.composer.export_folders import export_folder
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.loading import load_pipeline
from conceptry.composer.overlaps import find_overlaps
from conceptry.composer.pipelines import iter_tensors
from conceptry.composer.plan import make_plan
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept, open_concept
from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IncompatibleError
from conceptry.formats.byte_planes import PLANES_KEY
from conceptry.formats.full import FullContents, write_full
from conceptry.formats.header import read_header
from conceptry.formats.packing import PackRequest, pack_concept
from conceptry.formats.tensors import read_tensors, write_tensors
from tests.fakes.concepts import describe_base, write_concept
from tests.fakes.pipelines import assert_same, make_pipeline, render, snapshot

WORD = "a zork"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseLocation:
    """Give a small base in a folder of diffusers."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_pipeline("sd1").save_pretrained(folder)
    return resolve_base(str(folder), {})


@pytest.fixture
def pipeline(base: BaseLocation) -> Any:
    return load_pipeline(base)


def pack(concept: Concept, base: BaseLocation, folder: Path, **request: Any) -> Concept:
    folder.mkdir()
    assert base.path is not None
    pack_concept(concept, PackRequest(base=base.path, **request), folder)
    return open_concept(folder)


def make_tune(folder: Path, pipeline: Any, *, seed: int = 14, name: str = "test/full") -> Concept:
    """Return a fine-tune as training makes it: many weights, each changed a little."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        path: from_torch(old.detach() + 1e-3 * torch.randn(old.shape, generator=generator))
        for path, old in iter_tensors(pipeline.unet)
        if path.startswith("mid_block") and old.dim() > 1
    }
    folder.mkdir()
    write_full(folder / "unet.safetensors", FullContents(component=ComponentName("unet"), tensors=tensors))
    return write_concept(
        folder,
        name,
        describe_base(identify_pipeline(pipeline)),
        {"kind": "full", "components": ["unet"], "changed_tensors": len(tensors), "total_tensors": 100},
        files=["unet.safetensors"],
        tokens=[{"placeholder": "zork", "vectors": 0, "superclass": "cat"}],
    )


def draw(pipeline: Any, *concepts: Concept, fused: bool = False) -> torch.Tensor:
    with (fuse if fused else attach)(Composition(*concepts), pipeline):
        return render(pipeline, WORD)


def test_the_picture_is_the_plain_one_s_bit_for_bit(
    pipeline: Any, base: BaseLocation, tmp_path: Path
) -> None:
    plain = make_tune(tmp_path / "plain", pipeline)
    packed = pack(plain, base, tmp_path / "packed")
    before, without = snapshot(pipeline), render(pipeline, WORD)
    wanted = draw(pipeline, plain)
    assert not torch.equal(wanted, without)
    assert torch.equal(draw(pipeline, packed), wanted)
    assert torch.equal(draw(pipeline, packed, fused=True), draw(pipeline, plain, fused=True))
    assert_same(before, snapshot(pipeline))


def test_a_base_opened_with_fewer_bits_is_read_again_from_its_files(
    base: BaseLocation, tmp_path: Path
) -> None:
    whole = load_pipeline(base)
    plain = make_tune(tmp_path / "plain", whole)
    packed = pack(plain, base, tmp_path / "packed")
    half = load_pipeline(base, dtype=torch.bfloat16)
    values = []
    for concept in (plain, packed):
        with attach(Composition(concept), half):
            values.append({name: tensor.clone() for name, tensor in iter_tensors(half.unet)})
    assert all(torch.equal(one, values[1][name]) for name, one in values[0].items())


def test_it_is_unpacked_past_what_other_concepts_put_in_its_place(
    pipeline: Any, base: BaseLocation, tmp_path: Path
) -> None:
    plain = make_tune(tmp_path / "plain", pipeline)
    other = make_tune(tmp_path / "other", pipeline, seed=99, name="test/other")
    packed = pack(plain, base, tmp_path / "packed")
    with attach(Composition(other), pipeline):
        assert torch.equal(draw(pipeline, packed), draw(pipeline, plain))


def test_values_of_a_text_encoder_are_packed_too(pipeline: Any, base: BaseLocation, tmp_path: Path) -> None:
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    old = dict(iter_tensors(pipeline.text_encoder))[name].detach()
    (tmp_path / "plain").mkdir()
    tensors = {
        name: from_torch(old + 1e-3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1)))
    }
    contents = FullContents(component=ComponentName("text_encoder"), tensors=tensors)
    write_full(tmp_path / "plain" / "text_encoder.safetensors", contents)
    plain = write_concept(
        tmp_path / "plain",
        "test/words",
        describe_base(identify_pipeline(pipeline)),
        {"kind": "full", "components": ["text_encoder"], "changed_tensors": 1, "total_tensors": 9},
        files=["text_encoder.safetensors"],
        tokens=[],
    )
    packed = pack(plain, base, tmp_path / "packed")
    assert torch.equal(draw(pipeline, packed), draw(pipeline, plain))


def test_another_base_is_refused_before_anything_changes(
    pipeline: Any, base: BaseLocation, tmp_path: Path
) -> None:
    packed = pack(make_tune(tmp_path / "plain", pipeline), base, tmp_path / "packed")
    other = make_pipeline("sd1", seed=5)
    before = snapshot(other)
    with pytest.raises(IncompatibleError, match="packed against another base than this one") as caught:
        attach(Composition(packed), other, fit=Fit.ARCHITECTURE)
    assert "concepts unpack" in (caught.value.hint or "")
    assert "test/full@1.0.1" in str(caught.value.where)
    assert_same(before, snapshot(other))


def test_one_bit_of_a_needed_weight_makes_another_base(
    pipeline: Any, base: BaseLocation, tmp_path: Path
) -> None:
    """The fingerprint looks at 64 values and does not see it; what is packed needs every one."""
    packed = pack(make_tune(tmp_path / "plain", pipeline), base, tmp_path / "packed")
    other = make_pipeline("sd1")
    weight = other.unet.get_parameter("mid_block.resnets.0.conv1.weight")
    weight.data.view(torch.int32).view(-1)[12] ^= 1
    assert identify_pipeline(other) == identify_pipeline(pipeline)
    with pytest.raises(IncompatibleError, match="packed against another base"):
        attach(Composition(packed), other)


def test_packing_against_another_base_than_it_was_trained_from_is_refused(
    pipeline: Any, tmp_path: Path
) -> None:
    make_pipeline("sd1", seed=5).save_pretrained(tmp_path / "other")
    plain = make_tune(tmp_path / "plain", pipeline)
    with pytest.raises(IncompatibleError, match="is not the one that the concept was trained from"):
        pack(plain, resolve_base(str(tmp_path / "other"), {}), tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == []


def test_damage_that_no_digest_of_the_file_tells_is_found(
    pipeline: Any, base: BaseLocation, tmp_path: Path
) -> None:
    packed = pack(make_tune(tmp_path / "plain", pipeline), base, tmp_path / "packed")
    (file,) = packed.manifest.iter_files()
    path = packed.locate(file)
    planes, header = read_tensors(path), read_header(path)
    first, second = [name for name in planes if name.endswith("#0")][:2]
    write_tensors(path, {**planes, first: planes[second], second: planes[first]}, header.metadata)
    damaged = Concept(manifest=packed.manifest, digest=packed.digest, blobs={file.sha256: path})
    before = snapshot(pipeline)
    with pytest.raises(ConceptryError, match=r"another number of bytes|unpacks to tensors of digest"):
        attach(Composition(damaged), pipeline)
    assert_same(before, snapshot(pipeline))
    said = header.metadata[PLANES_KEY].replace(
        str(read_digest(packed)), str(Digest.of_bytes(b"something else"))
    )
    write_tensors(path, planes, {**header.metadata, PLANES_KEY: said})
    with pytest.raises(ConceptryError, match="not what the manifest says"):
        attach(Composition(damaged), pipeline)


def read_digest(concept: Concept) -> Digest:
    """Return the digest of what comes out of the one packed file."""
    method: Any = concept.manifest.builds[0].parts[0].method
    digest: Digest = method.packing[0].tensors
    return digest


def test_a_whole_folder_exported_from_it_is_the_plain_one_s(
    pipeline: Any, base: BaseLocation, tmp_path: Path
) -> None:
    plain = make_tune(tmp_path / "plain", pipeline)
    packed = pack(plain, base, tmp_path / "packed")
    written = []
    for number, concept in enumerate((plain, packed)):
        export_folder(Composition(concept), pipeline, tmp_path / f"out-{number}")
        unet = tmp_path / f"out-{number}" / "unet" / "diffusion_pytorch_model.safetensors"
        written.append(unet.read_bytes())
    assert written[0] == written[1]


def test_what_it_overlaps_is_told_without_its_base(pipeline: Any, base: BaseLocation, tmp_path: Path) -> None:
    plain = make_tune(tmp_path / "plain", pipeline, name="test/plain")
    packed = pack(make_tune(tmp_path / "full", pipeline), base, tmp_path / "packed")
    (overlap,) = find_overlaps(make_plan(Composition(plain, packed), identify_pipeline(pipeline)))
    assert "unet.mid_block.resnets.0.conv1" in overlap.modules
    assert not any("#" in module for module in overlap.modules)
