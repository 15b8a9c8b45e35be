"""The manifest: limits before reading, a closed schema, and bytes that are an identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptry.concepts import Concept, WeightedConcept, open_concept
from conceptry.digests import Digest, canonical_json
from conceptry.documents import MAX_DOCUMENT_BYTES, load_strict_json
from conceptry.errors import (
    ConceptryError,
    InvalidFileError,
    InvalidManifestError,
    NotFoundError,
)
from conceptry.fields import Model
from conceptry.kinds import KIND_BY_ID, KINDS
from conceptry.licenses import read_permissions
from conceptry.manifest import MAX_FILES, License, Manifest, check_member_path, parse_manifest
from conceptry.methods import CompositionMethod, FullMethod, HypernetworkMethod, LoraMethod, Packing
from conceptry.words import describe_speaker
from tests.registry.folders import CONTENTS, make_document, make_manifest, write_folder

Edit = Callable[[dict[str, Any]], object]


def file_of(document: dict[str, Any]) -> dict[str, Any]:
    file: dict[str, Any] = document["builds"][0]["parts"][0]["files"][0]
    return file


def part_of(document: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = document["builds"][0]["parts"][0]
    return part


def base_of(document: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = document["builds"][0]["base"]
    return base


def test_written_manifest_reads_back_to_the_same_identity() -> None:
    manifest = make_manifest(title="Blue imp", tags=("creature",))
    data = manifest.to_bytes()
    assert parse_manifest(data) == manifest
    assert manifest.digest == Digest.of_bytes(data)
    assert parse_manifest(data).to_bytes() == data == canonical_json(json.loads(data))


def test_identity_is_of_the_bytes_and_not_of_their_meaning() -> None:
    data = canonical_json(make_document())
    assert parse_manifest(data) == parse_manifest(data + b" ")
    assert Digest.of_bytes(data) != Digest.of_bytes(data + b" ")


# What must be refused, and the place that the error must name.
REFUSED: dict[str, tuple[Edit, str | None]] = {
    "unknown field": (lambda d: d.update(x=1), "x"),
    "unknown field deep inside": (
        lambda d: file_of(d).update(url="http://x"),
        "builds[0].parts[0].files[0].url",
    ),
    "schema 2": (lambda d: d.update(schema=2), "schema"),
    "schema as text": (lambda d: d.update(schema="1"), "schema"),
    "schema as a float": (lambda d: d.update(schema=1.5), "schema"),
    "no schema": (lambda d: d.pop("schema"), "schema"),
    "no name": (lambda d: d.pop("name"), "name"),
    "upper-case name": (lambda d: d.update(name="Me/Imp"), "name"),
    "escaping name": (lambda d: d.update(name="../x"), "name"),
    "name as a number": (lambda d: d.update(name=5), "name"),
    "version 1.0": (lambda d: d.update(version="1.0"), "version"),
    "no builds": (lambda d: d.update(builds=[]), "builds"),
    "no parts": (lambda d: d["builds"][0].update(parts=[]), "builds[0].parts"),
    "no files": (lambda d: part_of(d).update(files=[]), "builds[0].parts[0].files"),
    "two builds of one id": (lambda d: d["builds"].append(d["builds"][0]), None),
    "unknown kind": (lambda d: part_of(d).update(kind="x"), "builds[0].parts[0].kind"),
    "kind and method differ": (lambda d: part_of(d).update(kind="full"), "builds[0].parts[0]"),
    "unknown family": (lambda d: base_of(d).update(family="x"), "builds[0].base.family"),
    "unknown prediction": (
        lambda d: base_of(d).update(prediction_type="x"),
        "builds[0].base.prediction_type",
    ),
    "digest in upper case": (
        lambda d: file_of(d).update(sha256="sha256:" + "A" * 64),
        "builds[0].parts[0].files[0].sha256",
    ),
    "digest that is a path": (
        lambda d: file_of(d).update(sha256="sha256:../x"),
        "builds[0].parts[0].files[0].sha256",
    ),
    "digest as a number": (lambda d: file_of(d).update(sha256=5), "builds[0].parts[0].files[0].sha256"),
    "negative size": (lambda d: file_of(d).update(size=-1), "builds[0].parts[0].files[0].size"),
    "size as text": (lambda d: file_of(d).update(size="5"), "builds[0].parts[0].files[0].size"),
    "size with a fraction": (lambda d: file_of(d).update(size=5.5), "builds[0].parts[0].files[0].size"),
    "size as a truth value": (lambda d: file_of(d).update(size=True), "builds[0].parts[0].files[0].size"),
    "rank 0": (lambda d: part_of(d)["method"].update(rank=0), "builds[0].parts[0].method.lora.rank"),
    "number beyond 2^53": (lambda d: d.update(usage={"strength": 1e300}), "usage.strength"),
    "clock with a zone": (lambda d: d.update(created="2026-11-21T08:00:00+01:00"), "created"),
    "empty tag": (lambda d: d.update(tags=[""]), "tags[0]"),
    "blank placeholder": (lambda d: d.update(tokens=[{"placeholder": " "}]), "tokens[0].placeholder"),
    "string of 4097": (lambda d: d.update(description="x" * 4097), None),
    "64 parents and one more": (
        lambda d: d["builds"][0].update(provenance={"derived_from": ["sha256:" + "0" * 64] * 65}),
        "builds[0].provenance.derived_from",
    ),
    "65 probe values": (
        lambda d: base_of(d).update(
            fingerprints={"unet": {"layout": "sha256:" + "0" * 64, "weights": [0.0] * 65}}
        ),
        "builds[0].base.fingerprints.unet.weights",
    ),
    "1025 files": (
        lambda d: part_of(d).update(
            files=[{**file_of(d), "path": f"f{number:04d}"} for number in range(1025)]
        ),
        None,
    ),
    "files out of order": (
        lambda d: part_of(d).update(files=[{**file_of(d), "path": "b"}, {**file_of(d), "path": "a"}]),
        "builds[0].parts[0]",
    ),
    "names equal but for case": (
        lambda d: part_of(d).update(
            files=[{**file_of(d), "path": "A"}, {**file_of(d), "path": "a", "sha256": "sha256:" + "0" * 64}]
        ),
        None,
    ),
    "17 levels": (lambda d: d.update(extensions={"x": json.loads("[" * 16 + "]" * 16)}), None),
    "integer of 2^53": (lambda d: d.update(extensions={"x": 2**53}), None),
}


@pytest.mark.parametrize("what", REFUSED)
def test_document_outside_the_schema_is_refused_at_its_place(what: str) -> None:
    edit, place = REFUSED[what]
    document = make_document()
    edit(document)
    with pytest.raises(InvalidManifestError) as caught:
        parse_manifest(json.dumps(document).encode())
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) < 600
    if place is not None:
        assert caught.value.where == place


BAD_BYTES: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "a list": b"[]",
    "a number": b"1",
    "a BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"schema": 1}'.encode("utf-16"),
    "no UTF-8": b'{"schema": 1, "title": "\xff"}',
    "a key twice": b'{"schema": 1, "schema": 1}',
    "a key twice inside": b'{"schema": 1, "license": {"spdx": "MIT", "spdx": "CC0-1.0"}}',
    "NaN": b'{"schema": 1, "usage": {"strength": NaN}}',
    "Infinity": b'{"schema": 1, "usage": {"strength": -Infinity}}',
    "a number beyond all bounds": b'{"schema": 1, "extensions": {"x": 1e999}}',
    "a million digits": b'{"schema": ' + b"1" * 1_000_000 + b"}",
    "trailing data": b'{"schema": 1} {}',
    "a comment": b'{"schema": 1} // x',
    "a lone surrogate": b'{"schema": 1, "title": "\\ud800"}',
    "a lone surrogate as a key": b'{"schema": 1, "extensions": {"\\udfff": 1}}',
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "more than a mebibyte": b'{"schema": 1, "title": "' + b"x" * MAX_DOCUMENT_BYTES + b'"}',
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    "a zip": b"PK\x03\x04",
}


@pytest.mark.parametrize("what", BAD_BYTES)
def test_bytes_that_are_no_document_are_refused(what: str) -> None:
    with pytest.raises(InvalidManifestError) as caught:
        parse_manifest(BAD_BYTES[what])
    assert len(str(caught.value)) < 500


@given(st.binary(max_size=200))
def test_no_bytes_whatever_escape_as_another_error(data: bytes) -> None:
    with pytest.raises(InvalidManifestError):
        parse_manifest(data)


@given(st.integers(0, 1000), st.integers(0, 255))
def test_one_changed_byte_is_refused_or_is_another_identity(place: int, byte: int) -> None:
    data = bytearray(canonical_json(make_document()))
    before = bytes(data)
    data[place % len(data)] = byte
    try:
        parse_manifest(bytes(data))
    except ConceptryError:
        return
    assert (Digest.of_bytes(data) == Digest.of_bytes(before)) == (bytes(data) == before)


def test_limits_are_themselves_allowed() -> None:
    assert load_strict_json(b'{"x": 9007199254740991, "y": -9007199254740991}') is not None
    assert load_strict_json(b'"' + b"x" * 4096 + b'"') == "x" * 4096
    assert load_strict_json(b"[" * 16 + b"]" * 16) is not None
    assert len(make_manifest(description="x" * 4096).description) == 4096


def test_longest_and_deepest_file_name_is_allowed_and_one_more_is_not() -> None:
    longest = "/".join("x" * 63 for _ in range(4))
    assert len(longest) == 255
    for allowed in (longest, "x" * 100, "a/b/c/d"):
        assert check_member_path(allowed) == allowed
    for refused in (f"x{longest}", "x" * 101, "a/b/c/d/e"):
        with pytest.raises(ValueError, match="safe everywhere"):
            check_member_path(refused)


def test_greatest_counts_of_files_and_parents_are_allowed() -> None:
    document = make_document()
    part_of(document).update(
        files=[{**file_of(document), "path": f"f{number:04d}"} for number in range(MAX_FILES)]
    )
    parents = [f"sha256:{number:064x}" for number in range(64)]
    document["builds"][0].update(provenance={"derived_from": parents})
    manifest = parse_manifest(canonical_json(document))
    assert len(list(manifest.iter_files())) == MAX_FILES == 1024
    derived = manifest.builds[0].provenance
    assert derived is not None
    assert len(derived.derived_from) == 64


def test_document_of_a_mebibyte_is_read_and_one_byte_more_is_not() -> None:
    """Filled with strings within their own limit, so that nothing but the size decides."""
    document = make_document(extensions={"x": []})
    rest = MAX_DOCUMENT_BYTES - len(canonical_json(document))
    count, over = divmod(rest + 1, 4003)
    texts = ["x" * 4000] * count
    document["extensions"]["x"] = [*texts, "x" * (over - 3)]
    data = canonical_json(document)
    assert len(data) == MAX_DOCUMENT_BYTES == 1 << 20
    assert parse_manifest(data).extensions == document["extensions"]
    document["extensions"]["x"][-1] += "x"
    with pytest.raises(InvalidManifestError, match="has 1048577 bytes, at most 1048576 are allowed"):
        parse_manifest(canonical_json(document))


def test_extensions_are_kept_and_never_interpreted() -> None:
    extensions = {"org.example": {"__class__": "os.system", "path": "/etc/passwd", "list": [1, None, "x"]}}
    manifest = parse_manifest(canonical_json(make_document(extensions=extensions)))
    assert manifest.extensions == extensions
    assert parse_manifest(manifest.to_bytes()).extensions == extensions


SAFE_PATHS = [
    "a",
    "lora.safetensors",
    "unet/lora.safetensors",
    "a/b/c/d",
    "A-b_c.D",
    "x" * 100,
    "_x",
    "console",
    "con1",
]
UNSAFE_PATHS = [
    "",
    "/",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a/./b",
    "./a",
    "a//b",
    "a/",
    ".hidden",
    "a/.git",
    "-rf",
    "a/-x",
    "a.",
    "a. ",
    "a ",
    " a",
    "a b",
    "a\\b",
    "C:x",
    "C:\\x",
    "\\\\host\\share",
    "//host/share",
    "a:b",
    "a\0b",
    "a\n",
    "a\tb",
    "ä",
    "a\u202eb",
    "ａ",
    "~",
    "$x",
    "%2e%2e",
    "con",
    "CON",
    "Con.txt",
    "nul",
    "a/aux.safetensors",
    "com1",
    "LPT9.x",
    "a/b/c/d/e",
    "x" * 101,
    "/".join(["x" * 99] * 3),
    "a*",
    "a?",
    "a|b",
    'a"b',
    "a<b",
]


@pytest.mark.parametrize("path", SAFE_PATHS)
def test_file_name_that_every_platform_reads_alike_is_allowed(path: str) -> None:
    assert check_member_path(path) == path


def test_there_are_enough_unsafe_names() -> None:
    assert len(set(UNSAFE_PATHS)) >= 40


@pytest.mark.parametrize("path", UNSAFE_PATHS, ids=range(len(UNSAFE_PATHS)))
def test_file_name_that_some_platform_reads_otherwise_is_refused(path: str) -> None:
    document = make_document()
    file_of(document)["path"] = path
    with pytest.raises(InvalidManifestError) as caught:
        parse_manifest(json.dumps(document).encode())
    assert caught.value.where == "builds[0].parts[0].files[0].path"


def test_size_counts_equal_files_once() -> None:
    document = make_document()
    part_of(document)["files"] = [{**file_of(document), "path": name} for name in ("a", "b")]
    assert Manifest.model_validate(document).size_bytes == len(CONTENTS)


def test_manifest_cannot_be_changed_after_it_was_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make_manifest().title = "other"


def test_every_kind_has_one_row() -> None:
    kinds = ["embedding", "rank_one", "lora", "full", "hypernetwork", "composition"]
    assert [kind.id for kind in KINDS] == kinds
    assert set(KIND_BY_ID) == {kind.id for kind in KINDS}


def test_folder_is_a_concept_whose_files_can_be_located(tmp_path: Path) -> None:
    concept = open_concept(write_folder(tmp_path / "imp"))
    assert concept.label == "me/imp@1.0.0"
    (file,) = concept.manifest.iter_files()
    assert concept.locate(file).read_bytes() == CONTENTS
    with pytest.raises(NotFoundError, match=r"lora\.safetensors"):
        Concept(manifest=concept.manifest, digest=concept.digest, blobs={}).locate(file)


def test_concept_times_a_number_is_that_concept_at_that_strength(tmp_path: Path) -> None:
    concept = open_concept(write_folder(tmp_path / "imp"))
    assert concept * 0.7 == 0.7 * concept == WeightedConcept(concept, 0.7)


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        (lambda path: path.unlink(), "files[0].path"),
        (lambda path: path.write_bytes(CONTENTS[:-1]), "files[0].size"),
        (lambda path: path.write_bytes(b"X" + CONTENTS[1:]), "files[0].sha256"),
    ],
)
def test_folder_with_a_wrong_file_is_refused_at_its_place(
    tmp_path: Path, edit: Callable[[Path], object], place: str
) -> None:
    folder = write_folder(tmp_path / "imp")
    edit(folder / "lora.safetensors")
    with pytest.raises(InvalidFileError) as caught:
        open_concept(folder)
    assert caught.value.where == place


PACKING = {
    "component": "unet",
    "base_files": ["sha256:" + "0" * 64],
    "base_tensors": "sha256:" + "0" * 64,
    "tensors": "sha256:" + "0" * 64,
    "lossless": False,
    "relative_error": 0.25,
}
METHODS: dict[str, tuple[type[Model], dict[str, Any], dict[str, Any]]] = {
    "counted algorithms that are not mixed": (
        LoraMethod,
        {"variant": "mixed", "algorithms": {"lora": 1}, "modules": 1},
        {"variant": "lora"},
    ),
    "one concept twice": (
        CompositionMethod,
        {"members": [{"concept": "me/imp", "version": "1.0.0", "digest": "sha256:" + "0" * 64}]},
        {"members": [{"concept": "me/imp", "version": "1.0.0", "digest": "sha256:" + "0" * 64}] * 2},
    ),
    "a structure that ends with another width": (
        HypernetworkMethod,
        {"cross_attention": [768], "structure": [1, 2, 1]},
        {"structure": [1, 1, 2]},
    ),
    "a structure that begins with another width": (
        HypernetworkMethod,
        {"cross_attention": [768], "structure": [1, 1]},
        {"structure": [2, 1]},
    ),
    "packing of a component that is not there": (
        FullMethod,
        {"components": ["unet"], "changed_tensors": 1, "total_tensors": 1, "packing": [PACKING]},
        {"components": ["text_encoder"]},
    ),
    "an error below nothing": (
        Packing,
        PACKING,
        {"relative_error": -0.25},
    ),
}


@pytest.mark.parametrize("what", METHODS)
def test_method_says_what_agrees_with_itself(what: str) -> None:
    model, right, wrong = METHODS[what]
    document = model.model_validate(right).model_dump(mode="json")
    assert model.model_validate(document).model_dump(mode="json") == document
    with pytest.raises(ValueError, match="validation error"):
        model.model_validate({**right, **wrong})


def test_only_words_of_a_kind_with_tokens_of_its_own_are_expanded() -> None:
    tokens = [{"placeholder": "<imp>", "vectors": 2}, {"placeholder": "horns"}]
    lora = make_manifest(tokens=tokens)
    assert describe_speaker(lora, None, {}).expanding == frozenset()
    document = make_document(tokens=tokens)
    part_of(document).update(kind="embedding", method={"kind": "embedding", "components": ["text_encoder"]})
    speaker = describe_speaker(Manifest.model_validate(document), None, {})
    assert list(map(str, speaker.words)) == ["<imp>", "horns"]
    assert set(map(str, speaker.expanding)) == {"<imp>"}


@pytest.mark.parametrize(
    ("number", "right"), [(9007199254740991, True), (9007199254740992, False), (-9007199254740992, False)]
)
def test_integer_that_every_reader_holds_exactly_is_read_and_the_next_is_not(
    number: int, right: bool
) -> None:
    if right:
        assert load_strict_json(b"[%d]" % number) == [number]
        return
    with pytest.raises(InvalidManifestError):
        load_strict_json(b"[%d]" % number)


def test_licence_that_asks_for_credit_says_so() -> None:
    asks = {spdx: read_permissions(License(spdx=spdx)).credit_required for spdx in ("MIT", "CC0-1.0")}
    assert asks == {"MIT": "yes", "CC0-1.0": "no"}
