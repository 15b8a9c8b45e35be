"""What every kind of remote must do; each row of the table is held to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import ConflictError, IntegrityError, NotFoundError, RemoteError, UsageError
from conceptry.names import ConceptName, Reference, RemoteName, Tag, parse_version
from conceptry.registry import Resolved
from conceptry.registry.blobs import ignore_bytes
from conceptry.registry.remotes import REMOTES, Remote, open_remote
from tests.registry.folders import CONTENTS, files_below, make_manifest, temporaries_below

IMP, STABLE = ConceptName("me", "imp"), Tag("stable")
BLOB = Digest.of_bytes(CONTENTS)
WRITERS = 8

ADDRESSES: dict[str, Callable[[Path], str]] = {"file": lambda folder: (folder / "studio").as_uri()}


@pytest.fixture(params=[row.scheme for row in REMOTES])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """Give an empty remote of each kind."""
    return open_remote(ADDRESSES[request.param](tmp_path), {})


def make_version(version: str = "1.0.0", title: str = "") -> tuple[Resolved, bytes]:
    """Return a version and its manifest's bytes."""
    manifest = make_manifest(version=version, title=title)
    return Resolved(Reference(IMP, parse_version(version)), manifest.digest), manifest.to_bytes()


def test_every_kind_of_remote_is_held_to_this() -> None:
    assert set(ADDRESSES) == {row.scheme for row in REMOTES}


def test_blob_comes_back_whole_and_from_any_offset(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(CONTENTS)
    assert not remote.has(BLOB, len(CONTENTS))
    remote.put(BLOB, len(CONTENTS), tmp_path / "blob", on_bytes=ignore_bytes)
    assert remote.has(BLOB, len(CONTENTS))
    for offset in (0, 1, 1000, len(CONTENTS) - 1, len(CONTENTS)):
        with remote.get(BLOB, offset_bytes=offset) as chunks:
            assert b"".join(chunks) == CONTENTS[offset:]


def test_blob_that_is_not_its_digest_is_not_taken(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"X" * len(CONTENTS))
    with pytest.raises(IntegrityError):
        remote.put(BLOB, len(CONTENTS), tmp_path / "blob", on_bytes=ignore_bytes)
    assert not remote.has(BLOB, len(CONTENTS))


def test_missing_blob_manifest_and_version_are_not_found(remote: Remote) -> None:
    version, data = make_version()
    remote.put_manifest(version, data)
    with pytest.raises(NotFoundError), remote.get(BLOB):
        pytest.fail("there is no such blob")
    with pytest.raises(NotFoundError):
        remote.get_manifest(make_version("2.0.0")[0])
    with pytest.raises(NotFoundError, match="has no version"):
        remote.resolve(Reference.parse("me/imp@2.0.0"))
    with pytest.raises(NotFoundError, match="no concept"):
        remote.resolve(Reference.parse("me/imq"))


def test_manifest_comes_back_byte_for_byte_and_is_listed(remote: Remote) -> None:
    version, data = make_version()
    assert remote.read_version(IMP, parse_version("1.0.0")) is None
    assert remote.put_manifest(version, data)
    assert not remote.put_manifest(version, data)
    assert remote.get_manifest(version) == data
    assert remote.resolve(Reference.parse("me/imp")) == version
    assert list(remote.list()) == list(remote.list(IMP)) == [version]
    assert remote.read_version(IMP, parse_version("1.0.0")) == version.digest


def test_version_with_other_contents_is_a_conflict_and_stays(remote: Remote) -> None:
    version, data = make_version()
    remote.put_manifest(version, data)
    with pytest.raises(ConflictError):
        remote.put_manifest(*make_version(title="other"))
    assert remote.resolve(version.reference) == version


def test_of_many_who_publish_one_version_at_once_exactly_one_wins(remote: Remote) -> None:
    barrier = threading.Barrier(WRITERS)

    def put(number: int) -> bool | str:
        version, data = make_version(title=f"writer {number}")
        barrier.wait()
        try:
            return remote.put_manifest(version, data)
        except ConflictError:
            return "conflict"

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = list(pool.map(put, range(WRITERS)))
    assert sorted(map(str, outcomes)) == sorted(["True"] + ["conflict"] * (WRITERS - 1))
    winner = outcomes.index(True)
    assert remote.resolve(Reference.parse("me/imp")) == make_version(title=f"writer {winner}")[0]


def test_of_many_who_move_a_tag_at_once_exactly_one_wins(remote: Remote) -> None:
    versions = [make_version(f"1.{number}.0") for number in range(WRITERS)]
    for version, data in versions:
        remote.put_manifest(version, data)
    seen = remote.read_tag(IMP, STABLE)
    barrier = threading.Barrier(WRITERS)

    def move(number: int) -> bool:
        barrier.wait()
        try:
            remote.move_tag(IMP, STABLE, versions[number][0], expected=seen)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = list(pool.map(move, range(WRITERS)))
    assert outcomes.count(True) == 1
    assert remote.resolve(Reference.parse("me/imp:stable")) == versions[outcomes.index(True)][0]


def test_nothing_temporary_is_left_in_a_folder(tmp_path: Path) -> None:
    remote = open_remote((tmp_path / "studio").as_uri(), {})
    (tmp_path / "blob").write_bytes(CONTENTS)
    remote.put(BLOB, len(CONTENTS), tmp_path / "blob", on_bytes=ignore_bytes)
    remote.put_manifest(*make_version())
    assert temporaries_below(tmp_path / "studio") == []
    assert len(files_below(tmp_path / "studio")) == 4


def test_folder_that_is_not_there_is_the_remotes_fault(tmp_path: Path) -> None:
    remote = open_remote((tmp_path / "unmounted").as_uri(), {})
    with pytest.raises(RemoteError, match="has no folder") as caught:
        remote.resolve(Reference.parse("me/imp"))
    assert caught.value.exit_code == 5
    assert not (tmp_path / "unmounted").exists()


@pytest.mark.parametrize("text", ['{"format": 2}', '{"format": "x"}', "{}", "not JSON", ""])
def test_folder_of_a_newer_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "studio").mkdir()
    (tmp_path / "studio" / "store.json").write_text(text, encoding="utf-8")
    with pytest.raises(RemoteError, match="format"):
        open_remote((tmp_path / "studio").as_uri(), {})


def test_name_that_is_no_remote_suggests_the_nearest() -> None:
    with pytest.raises(NotFoundError) as caught:
        open_remote("studoi", {RemoteName("studio"): "file:///x"})
    assert caught.value.hint == "did you mean 'studio'?"


@pytest.mark.parametrize("uri", ["ftp://host/x", "gopher://x", "s4://bucket"])
def test_address_of_no_kind_names_those_there_are(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remote(uri, {})
    assert caught.value.hint is not None
    assert "file:///" in caught.value.hint
