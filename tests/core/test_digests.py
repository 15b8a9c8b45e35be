"""A digest is a type that cannot be built from bad text, and canonical JSON has one spelling."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptry.digests import Digest, canonical_json
from conceptry.errors import IntegrityError, InvalidDigestError, InvalidManifestError

HEX = "0123456789abcdef" * 4
GOOD = f"sha256:{HEX}"

BAD = [
    "",
    " ",
    "sha256",
    "sha256:",
    "sha256: ",
    HEX,
    f":{HEX}",
    f"sha256{HEX}",
    f"sha256-{HEX}",
    f"sha256/{HEX}",
    f"sha256::{HEX}",
    f"sha256: {HEX}",
    f"sha256:{HEX} ",
    f" sha256:{HEX}",
    f"sha256:{HEX}\n",
    f"\nsha256:{HEX}",
    f"sha256:{HEX}\r\n",
    f"sha256:{HEX}\t",
    f"sha256:{HEX}\0",
    f"sha256:\0{HEX[1:]}",
    f"sha256:{HEX}\u200b",
    f"\ufeffsha256:{HEX}",
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX[:-1]}g",
    f"sha256:{HEX[:-1]}G",
    f"sha256:{HEX.upper()}",
    f"sha256:{HEX[:-1]}F",
    f"SHA256:{HEX}",
    f"Sha256:{HEX}",
    f"sha-256:{HEX}",
    f"sha512:{HEX}{HEX}",
    f"sha1:{HEX[:40]}",
    f"md5:{HEX[:32]}",
    f"blake3:{HEX}",
    "sha256:../../x",
    "sha256:../x",
    "../../x",
    f"sha256:../{HEX[3:]}",
    f"sha256:/{HEX[1:]}",
    f"sha256:{HEX[:32]}/{HEX[:31]}",
    f"sha256:{HEX[:32]}\\{HEX[:31]}",
    f"sha256:0x{HEX[2:]}",
    f"sha256:+{HEX[1:]}",
    f"sha256:-{HEX[1:]}",
    f"sha256:{HEX[:-1]}\uff11",
    f"sha256:{HEX[:-1]}\u0661",
    f"sha256:{HEX[:-1]}\uff41",
    f"sha256:{HEX[:31]}_{HEX[:32]}",
    f"sha256:{HEX},sha256:{HEX}",
    f"sha256:{HEX}" * 2,
    f"sha256:%30{HEX[1:]}",
    "sha256:" + "a" * 100_000,
]


def test_there_are_enough_bad_digests() -> None:
    assert len(set(BAD)) >= 40


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_text_that_is_no_digest_is_refused_in_a_short_message(text: str) -> None:
    with pytest.raises(InvalidDigestError) as caught:
        Digest.parse(text)
    assert isinstance(caught.value, IntegrityError)
    assert caught.value.exit_code == 4
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_digest_cannot_be_built_around_the_parser(text: str) -> None:
    hex_part = text.removeprefix("sha256:")
    if HEX not in (text, hex_part):
        with pytest.raises(InvalidDigestError):
            Digest(hex_part)


@given(st.text(max_size=100))
def test_only_64_lower_case_digits_ever_become_a_digest(text: str) -> None:
    good = len(text) == 64 and set(text) <= set("0123456789abcdef")
    try:
        assert Digest(text).hex == text
        assert good
    except InvalidDigestError:
        assert not good


@given(st.binary(max_size=1000))
def test_digest_is_sha_256_and_reads_back(data: bytes) -> None:
    digest = Digest.of_bytes(data)
    assert digest.hex == hashlib.sha256(data).hexdigest()
    assert Digest.parse(str(digest)) == digest == Digest.of_chunks([data[:3], memoryview(data)[3:]])


def test_digest_of_a_file_longer_than_one_piece(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "blob").write_bytes(data)
    assert Digest.of_file(tmp_path / "blob") == Digest.of_bytes(data)


def test_short_form_is_for_people() -> None:
    assert Digest(HEX).short == "0123456789ab"
    assert str(Digest(HEX)) == GOOD


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ({"b": 1, "a": 2}, b'{"a":2,"b":1}'),
        ({"x": 1.0, "y": 0.1, "z": 1e21, "n": -0.0}, b'{"n":0,"x":1,"y":0.1,"z":1e+21}'),
        ([1e-7, 1.5e300, 5e-324, 9007199254740991], b"[1e-7,1.5e+300,5e-324,9007199254740991]"),
        ({"ö": "€", "\u0001": '\n"\\'}, '{"\\u0001":"\\n\\"\\\\","ö":"€"}'.encode()),
        ({"\U0001f600": 1, "\ufb33": 2}, '{"\U0001f600":1,"\ufb33":2}'.encode()),
        ([True, False, None, []], b"[true,false,null,[]]"),
    ],
)
def test_canonical_json_has_the_literal_bytes_of_rfc_8785(value: Any, data: bytes) -> None:
    assert canonical_json(value) == data


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_canonical_json_is_a_fixed_point_and_says_the_same(value: Any) -> None:
    data = canonical_json(value)
    assert canonical_json(json.loads(data)) == data
    assert _equal(json.loads(data), value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, int | float) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=0, abs_tol=0)
    return bool(a == b)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**53, -(2**53), 10**400])
def test_number_that_json_cannot_carry_is_refused(value: float) -> None:
    with pytest.raises(InvalidManifestError):
        canonical_json({"a": [value]})
