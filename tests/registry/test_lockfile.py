"""``concepts.lock``: equal contents are equal bytes, and nothing is believed that was not written by us."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, InvalidLockError
from conceptry.names import ConceptName, Placeholder, RemoteName, Requirement, parse_version
from conceptry.registry.lockfile import (
    Lock,
    LockedBase,
    LockedConcept,
    LockedFile,
    LockedSource,
    format_lock,
    parse_lock,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "registry" / "concepts-1.lock"
ONE, TWO = Digest("1" * 64), Digest("2" * 64)
IMP = LockedConcept(
    name=ConceptName("me", "imp"),
    version=parse_version("1.2.0"),
    manifest=ONE,
    files=(LockedFile("lora.safetensors", 10, TWO),),
    remote=RemoteName("studio"),
    commit="a" * 40,
    identity="repo-1",
    build="sd1-lora",
    strength=0.7,
    tokens={Placeholder("<imp>"): Placeholder("<imp-2>")},
    requires=(Requirement.parse("me/hat@^1"),),
)
HAT = LockedConcept(
    name=ConceptName("me", "hat"),
    version=parse_version("0.0.0+0123456789abcdef"),
    manifest=TWO,
    files=(),
    source=LockedSource("path", "files/hat.safetensors", 5, ONE),
)
BASE = LockedBase(reference="sd1", family="sd1", prediction_type="epsilon")
LOCK = Lock(requirements=ONE, base=BASE, remotes={RemoteName("studio"): "file:///srv"}, concepts=(HAT, IMP))


def test_lock_is_read_back_as_it_was_written() -> None:
    assert parse_lock(format_lock(LOCK)) == LOCK


def test_order_in_memory_changes_no_byte() -> None:
    assert format_lock(replace(LOCK, concepts=(IMP, HAT))) == format_lock(LOCK)


def test_lock_of_the_first_format_is_read_and_written_as_ever() -> None:
    assert format_lock(LOCK) == GOLDEN.read_bytes()


def test_lock_checked_out_with_windows_line_ends_is_the_same() -> None:
    assert parse_lock(format_lock(LOCK).replace(b"\n", b"\r\n")) == LOCK


def test_changed_bytes_and_cuts_are_found() -> None:
    data = format_lock(LOCK)
    for place in range(0, len(data), 11):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(InvalidLockError):
            parse_lock(bytes(changed))
        with pytest.raises(InvalidLockError):
            parse_lock(data[:place])


def test_lock_edited_by_hand_is_a_wish_only() -> None:
    edited = format_lock(LOCK).replace(b'version = "1.2.0"', b'version = "1.3.0"')
    with pytest.raises(InvalidLockError, match="was edited after it was written") as caught:
        parse_lock(edited)
    assert (caught.value.exit_code, caught.value.where) == (4, "contents")
    wish = parse_lock(edited, check_contents=False).find(IMP.name)
    assert wish is not None
    assert str(wish.version) == "1.3.0"


def test_lock_of_a_newer_version_is_refused() -> None:
    newer = format_lock(LOCK).replace(b"format = 1", b"format = 2")
    with pytest.raises(InvalidLockError, match="has format 2, this version knows 1") as caught:
        parse_lock(newer)
    assert caught.value.hint == "update conceptry: python -m pip install --upgrade conceptry"


def test_lock_with_marks_of_a_merge_is_refused() -> None:
    with pytest.raises(InvalidLockError, match="a merge that went wrong"):
        parse_lock(b"<<<<<<< ours\n" + format_lock(LOCK))


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_whatever_end_in_another_error(data: bytes) -> None:
    with pytest.raises(InvalidLockError):
        parse_lock(data)


values = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
keys = st.sampled_from(
    ["name", "version", "manifest", "files", "tokens", "requires", "source", "remote", "strength"]
)


@given(row=st.dictionaries(keys, values, max_size=6))
def test_no_row_whatever_ends_in_another_error(row: dict[str, object]) -> None:
    import tomlkit

    plain = {key: value for key, value in row.items() if value is not None}
    text = tomlkit.dumps({"format": 1, "requirements": str(ONE), "concept": [plain]})
    try:
        parse_lock(text.encode(), check_contents=False)
    except ConceptryError as error:
        assert isinstance(error, InvalidLockError)  # noqa: PT017  # either it is read or it ends in this error
