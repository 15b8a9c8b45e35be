"""A version whose full fine-tune is packed: from a base's files, back to the very file, and from no other base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conceptry.concepts import Concept, open_concept
from conceptry.digests import Digest, canonical_json
from conceptry.documents import load_strict_json
from conceptry.errors import IncompatibleError, InvalidFileError, InvalidManifestError, UsageError
from conceptry.formats.catalog import FORMAT_BY_ID
from conceptry.formats.contract import ReadRequest
from conceptry.formats.full import FullContents
from conceptry.formats.full_files import unpack_values
from conceptry.formats.header import read_header
from conceptry.formats.identify import identify
from conceptry.formats.packing import PackRequest, PackResult, pack_concept, unpack_concept
from conceptry.formats.tensors import read_tensors, write_tensors
from conceptry.manifest import FullMethod, parse_manifest
from tests.formats.tunes import BASE_FILE, FILE, NAMES, write_base, write_tune


def pack(concept: Concept, base: Path, folder: Path, **request: Any) -> tuple[Concept, PackResult]:
    folder.mkdir()
    result = pack_concept(concept, PackRequest(base=base, **request), folder)
    return open_concept(folder), result


def find_method(concept: Concept) -> FullMethod:
    method = concept.manifest.builds[0].parts[0].method
    assert isinstance(method, FullMethod)
    return method


@pytest.mark.parametrize(
    "dtypes", [(np.float32, np.float32), (np.float16, np.float32), (np.float32, np.float16)]
)
def test_a_packed_version_unpacks_to_the_very_file_it_was_made_of(
    tmp_path: Path, dtypes: tuple[Any, Any]
) -> None:
    base = write_base(tmp_path / "base", dtypes[0])
    plain = write_tune(tmp_path / "plain", base, dtypes[1])
    packed, result = pack(plain, base, tmp_path / "packed")
    assert packed.manifest.size_bytes < plain.manifest.size_bytes
    assert [row.after.path for row in result.rows] == [FILE]
    (tmp_path / "again").mkdir()
    unpack_concept(packed, PackRequest(base=base), tmp_path / "again")
    again = open_concept(tmp_path / "again")
    assert [file.sha256 for file in again.manifest.iter_files()] == [
        file.sha256 for file in plain.manifest.iter_files()
    ]
    assert find_method(again) == find_method(plain)


def test_the_manifest_says_against_which_base_and_that_every_bit_is_kept(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    plain = write_tune(tmp_path / "plain", base)
    packed, result = pack(plain, base, tmp_path / "packed")
    (stated,) = find_method(packed).packing or ()
    assert stated.base_files == (Digest.of_file(base / BASE_FILE),)
    assert stated.tensors == plain.manifest.builds[0].parts[0].files[1].tensor_sha256
    assert (stated.lossless, stated.relative_error, stated.greatest_error) == (True, 0, 0)
    assert str(packed.manifest.version) == "1.2.4"
    build = packed.manifest.builds[0]
    assert build.provenance.derived_from == (plain.digest,)
    assert [metric.value for metric in build.metrics] == [0.5]
    assert result.warnings == (
        "nothing tells whether this is the base that unet was trained from: it carries no fingerprint",
    )


def test_rounding_states_its_error_and_keeps_no_score_of_other_values(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    plain = write_tune(tmp_path / "plain", base)
    packed, _ = pack(plain, base, tmp_path / "packed", step=1.0)
    (stated,) = find_method(packed).packing or ()
    build = packed.manifest.builds[0]
    found = unpack_values(
        packed.locate(build.parts[0].files[1]), find_method(packed), base, build.base.identity.family
    )
    kept = read_tensors(plain.locate(plain.manifest.builds[0].parts[0].files[1]))
    wrong = [
        np.abs(found.tensors[name].to_numpy().astype(float) - one.to_numpy()).max()
        for name, one in kept.items()
    ]
    assert stated.greatest_error == max(wrong) > 0
    assert 0.2 < stated.relative_error < 0.4
    assert not stated.lossless
    assert build.metrics == ()


def test_the_same_weights_in_a_single_file_are_the_same_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {"time_embedding.linear_1.weight": "time_embed.0.weight", "conv_out.weight": "out.2.weight"}
    for name in list(NAMES):
        monkeypatch.delitem(NAMES, name)
    for name, shape in zip(published, ((96, 64), (4, 96, 3, 3)), strict=True):
        monkeypatch.setitem(NAMES, name, shape)
    base = write_base(tmp_path / "base")
    plain = write_tune(tmp_path / "plain", base)
    packed, _ = pack(plain, base, tmp_path / "packed")
    single = tmp_path / "single.safetensors"
    weights = read_tensors(base / BASE_FILE)
    write_tensors(single, {f"model.diffusion_model.{published[name]}": one for name, one in weights.items()})
    (tmp_path / "again").mkdir()
    unpack_concept(packed, PackRequest(base=single), tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "plain" / FILE).read_bytes()


def test_another_base_is_refused_with_what_to_do(tmp_path: Path) -> None:
    base, other = write_base(tmp_path / "base"), write_base(tmp_path / "other", seed=2)
    packed, _ = pack(write_tune(tmp_path / "plain", base), base, tmp_path / "packed")
    (tmp_path / "again").mkdir()
    with pytest.raises(IncompatibleError, match="packed against another base than this one") as caught:
        unpack_concept(packed, PackRequest(base=other), tmp_path / "again")
    assert (
        caught.value.hint
        == "open the very base that it was packed with, or there: concepts unpack REF --base BASE"
    )
    assert list((tmp_path / "again").iterdir()) == []


def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    plain = write_tune(tmp_path / "plain", base)
    packed, _ = pack(plain, base, tmp_path / "packed")
    paths = {
        kind: one.locate(one.manifest.builds[0].parts[0].files[1])
        for kind, one in (("p", plain), ("q", packed))
    }
    family = plain.manifest.builds[0].base.identity.family
    for path, method, said in (
        (paths["p"], find_method(packed), "is plain"),
        (paths["q"], find_method(plain), "packed"),
    ):
        with pytest.raises(InvalidFileError, match=f"{said}.*not what the manifest says of unet"):
            unpack_values(path, method, base, family)


def test_what_cannot_be_packed_is_said(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    plain = write_tune(tmp_path / "plain", base)
    packed, _ = pack(plain, base, tmp_path / "packed")
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"me/imp@1\.2\.4 is packed already"):
        pack_concept(packed, PackRequest(base=base), tmp_path / "none")
    with pytest.raises(UsageError, match=r"me/imp@1\.2\.3 is plain"):
        unpack_concept(plain, PackRequest(base=base), tmp_path / "none")
    with pytest.raises(UsageError, match="no build 'other'"):
        pack_concept(plain, PackRequest(base=base, build="other"), tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


def test_what_packing_would_not_make_smaller_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NAMES, "mid.weight", (1,))
    monkeypatch.setitem(NAMES, "out.weight", (1,))
    base = write_base(tmp_path / "base", np.float16)
    few = write_tune(tmp_path / "few", base, np.float16)
    (tmp_path / "packed").mkdir()
    with pytest.raises(IncompatibleError, match=r"makes no file of me/imp@1\.2\.3 smaller"):
        pack_concept(few, PackRequest(base=base), tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == []


@pytest.mark.parametrize(
    "packing",
    [
        {"component": "text_encoder"},
        {"relative_error": 0.1},
        {"base_files": []},
        {"greatest_error": -1.0, "lossless": False},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, packing: dict[str, Any]) -> None:
    base = write_base(tmp_path / "base")
    digest = str(Digest.of_bytes(b""))
    row = {"component": "unet", "base_files": [digest], "base_tensors": digest, "tensors": digest}
    concept = write_tune(tmp_path / "plain", base, packing=[row])
    text = concept.manifest.to_bytes()
    assert FullMethod.model_validate_json(find_method(concept).model_dump_json()) == find_method(concept)
    document: Any = load_strict_json(text)
    document["builds"][0]["parts"][0]["method"]["packing"][0].update(packing)
    with pytest.raises(InvalidManifestError) as caught:
        parse_manifest(canonical_json(document))
    assert "method" in str(caught.value.where)


def test_a_packed_file_is_recognised_and_read_with_its_base(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    plain = write_tune(tmp_path / "plain", base)
    pack(plain, base, tmp_path / "packed")
    path = tmp_path / "packed" / FILE
    found = identify(path)
    assert (found.kind, found.dialect, found.coverage.unexplained) == ("full", "canonical_full_planes", ())
    read = FORMAT_BY_ID["canonical_full_planes"].read
    assert read is not None
    request = ReadRequest(path=path, header=read_header(path), base=base)
    (contents,) = read(request).contents
    assert isinstance(contents, FullContents)
    assert contents.tensors == read_tensors(tmp_path / "plain" / FILE)
    with pytest.raises(UsageError, match="packed as its difference"):
        read(ReadRequest(path=path, header=read_header(path)))
