"""What every kind of remote must do; each row of the table is held to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import (
    ConflictError,
    IdentityChangedError,
    IntegrityError,
    NotFoundError,
    RemoteError,
    UsageError,
)
from conceptry.names import ConceptName, Reference, RemoteName, Tag, parse_version
from conceptry.registry import Resolved
from conceptry.registry.blobs import ignore_bytes
from conceptry.registry.protocol import Remote
from conceptry.registry.remotes import REMOTES, open_remote
from tests.registry.folders import CONTENTS, files_below, make_manifest, temporaries_below
from tests.simulators.hub.use import ADDRESS, use_hub
from tests.simulators.registries import run_registry, run_s3

IMP, STABLE = ConceptName("me", "imp"), Tag("stable")
BLOB = Digest.of_bytes(CONTENTS)
(FILE,) = make_manifest().iter_files()
WRITERS = 8

READ_ONLY = {"http", "https"}
ENCRYPTED = {"oci"}  # the same over TLS, which no server in a test can prove


@contextmanager
def offer_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield (folder / "studio").as_uri()


@contextmanager
def offer_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with use_hub(folder / "hub", monkeypatch):
        yield ADDRESS


@contextmanager
def offer_registry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with run_registry(folder / "registry") as host:
        yield f"oci+http://{host}/studio"


@contextmanager
def offer_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with run_s3(monkeypatch) as bucket:
        yield f"s3://{bucket}/concepts"


Offer = Callable[[Path, pytest.MonkeyPatch], AbstractContextManager[str]]
OFFERS: dict[str, Offer] = {
    "file": offer_folder,
    "hf": offer_hub,
    "oci+http": offer_registry,
    "s3": offer_bucket,
}
"""What runs the other side of each writable kind of remote and gives its address."""


@pytest.fixture(params=OFFERS)
def remote(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Remote]:
    """Give an empty remote of each kind that can be written."""
    with OFFERS[request.param](tmp_path, monkeypatch) as address:
        yield open_remote(address, {})


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """Give a file with the bytes that the manifests declare."""
    path = tmp_path / "blob"
    path.write_bytes(CONTENTS)
    return path


def make_version(version: str = "1.0.0", title: str = "") -> tuple[Resolved, bytes]:
    """Return a version and its manifest's bytes."""
    manifest = make_manifest(version=version, title=title)
    return Resolved(Reference(IMP, parse_version(version)), manifest.digest), manifest.to_bytes()


def put_version(remote: Remote, version: Resolved, data: bytes, blob: Path) -> bool:
    """Put a version and its one file."""
    remote.put(version, FILE, blob, on_bytes=ignore_bytes)
    return remote.put_manifest(version, data, {BLOB: blob})


def test_every_kind_of_remote_is_held_to_this() -> None:
    assert set(OFFERS) == {row.scheme for row in REMOTES} - READ_ONLY - ENCRYPTED


def test_file_comes_back_whole_and_from_any_offset(remote: Remote, blob: Path) -> None:
    version, data = make_version()
    assert not remote.has(version, FILE)
    put_version(remote, version, data, blob)
    assert remote.has(version, FILE)
    found = remote.resolve(version.reference)
    for offset in (0, 1, 1000, len(CONTENTS) - 1, len(CONTENTS)):
        with remote.get(found, FILE, offset_bytes=offset) as chunks:
            assert b"".join(chunks) == CONTENTS[offset:]


def test_file_that_is_not_its_digest_is_not_taken(remote: Remote, blob: Path) -> None:
    version, _ = make_version()
    blob.write_bytes(b"X" * len(CONTENTS))
    with pytest.raises(IntegrityError):
        remote.put(version, FILE, blob, on_bytes=ignore_bytes)
    assert not remote.has(version, FILE)


def test_what_is_put_without_its_manifest_is_seen_by_nobody(remote: Remote, blob: Path) -> None:
    version, _ = make_version()
    remote.put(version, FILE, blob, on_bytes=ignore_bytes)
    assert list(remote.search()) == []
    assert remote.list_versions(IMP) == ()
    assert remote.read_version(IMP, parse_version("1.0.0")) is None


def test_missing_manifest_version_and_concept_are_not_found(remote: Remote, blob: Path) -> None:
    put_version(remote, *make_version(), blob)
    found, gone = remote.resolve(Reference.parse("me/imp")), make_version("2.0.0")[0]
    with pytest.raises((NotFoundError, IdentityChangedError)):
        remote.get_manifest(replace(found, reference=gone.reference, digest=gone.digest, commit="0" * 40))
    with pytest.raises(NotFoundError, match="has no version"):
        remote.resolve(Reference.parse("me/imp@2.0.0"))
    with pytest.raises(NotFoundError, match="no concept"):
        remote.resolve(Reference.parse("me/imq"))


def test_manifest_comes_back_byte_for_byte_and_is_listed(remote: Remote, blob: Path) -> None:
    version, data = make_version()
    assert remote.read_version(IMP, parse_version("1.0.0")) is None
    assert put_version(remote, version, data, blob)
    assert not put_version(remote, version, data, blob)
    found = remote.resolve(Reference.parse("me/imp"))
    assert found.resolved == version
    assert remote.get_manifest(found) == data
    assert [entry.version for entry in remote.list_versions(IMP)] == [version.reference.version]
    assert remote.read_version(IMP, parse_version("1.0.0")) == version.digest


def test_version_is_resolved_by_number_and_by_digest(remote: Remote, blob: Path) -> None:
    for number in ("1.0.0", "1.1.0"):
        put_version(remote, *make_version(number), blob)
    version, _ = make_version("1.0.0")
    for selector in (version.reference.selector, version.digest):
        assert remote.resolve(Reference(IMP, selector)).resolved == version


def test_concept_is_found_by_its_words(remote: Remote, blob: Path) -> None:
    put_version(remote, *make_version(title="a blue creature"), blob)
    (found,) = remote.search("imp")
    assert (found.name, found.kinds, found.families) == (IMP, ("lora",), ("sd1",))
    assert list(remote.search("imp sd1")) == list(remote.search()) == [found]
    assert list(remote.search("nothing-has-this")) == []


def test_yanked_version_stays_and_is_no_longer_the_latest(remote: Remote, blob: Path) -> None:
    for number in ("1.0.0", "1.1.0"):
        put_version(remote, *make_version(number), blob)
    bad = parse_version("1.1.0")
    remote.yank(IMP, bad, "trained on the wrong pictures")
    assert remote.resolve(Reference.parse("me/imp")).resolved == make_version("1.0.0")[0]
    assert remote.resolve(Reference.parse("me/imp@1.1.0")).yanked == "trained on the wrong pictures"
    assert [entry.yanked for entry in remote.list_versions(IMP)] == [None, "trained on the wrong pictures"]
    remote.yank(IMP, bad, None)
    assert remote.resolve(Reference.parse("me/imp")).resolved == make_version("1.1.0")[0]


def test_concept_with_nothing_but_yanked_versions_has_no_latest(remote: Remote, blob: Path) -> None:
    put_version(remote, *make_version(), blob)
    remote.yank(IMP, parse_version("1.0.0"), "gone wrong")
    with pytest.raises(NotFoundError, match="every version of me/imp is yanked") as caught:
        remote.resolve(Reference.parse("me/imp"))
    assert "me/imp@1.0.0" in (caught.value.hint or "")


def test_what_is_not_there_cannot_be_yanked(remote: Remote, blob: Path) -> None:
    put_version(remote, *make_version(), blob)
    with pytest.raises(NotFoundError):
        remote.yank(IMP, parse_version("9.0.0"), "why")
    with pytest.raises(UsageError, match="needs a reason"):
        remote.yank(IMP, parse_version("1.0.0"), "  ")


def test_version_with_other_contents_is_a_conflict_and_stays(remote: Remote, blob: Path) -> None:
    version, data = make_version()
    put_version(remote, version, data, blob)
    with pytest.raises(ConflictError):
        put_version(remote, *make_version(title="other"), blob)
    assert remote.resolve(version.reference).resolved == version


def test_of_many_who_publish_one_version_at_once_exactly_one_wins(remote: Remote, blob: Path) -> None:
    barrier = threading.Barrier(WRITERS)

    def put(number: int) -> bool | str:
        version, data = make_version(title=f"writer {number}")
        barrier.wait()
        try:
            return put_version(remote, version, data, blob)
        except ConflictError:
            return "conflict"

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = list(pool.map(put, range(WRITERS)))
    there = remote.resolve(Reference.parse("me/imp")).resolved
    winners = [number for number, outcome in enumerate(outcomes) if outcome is True]
    assert there in [make_version(title=f"writer {number}")[0] for number in winners]
    if not remote.capabilities.compare_and_swap:
        return  # whoever put it first may have been told so before somebody else put theirs over it
    assert sorted(map(str, outcomes)) == sorted(["True"] + ["conflict"] * (WRITERS - 1))
    winner = outcomes.index(True)
    assert remote.resolve(Reference.parse("me/imp")).resolved == make_version(title=f"writer {winner}")[0]


def test_of_many_who_move_a_tag_at_once_exactly_one_wins(remote: Remote, blob: Path) -> None:
    if not remote.capabilities.compare_and_swap:
        pytest.skip("this kind of remote reads the tag back instead")
    versions = [make_version(f"1.{number}.0") for number in range(WRITERS)]
    for version, data in versions:
        put_version(remote, version, data, blob)
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
    assert remote.resolve(Reference.parse("me/imp:stable")).resolved == versions[outcomes.index(True)][0]


def test_nothing_temporary_is_left_in_a_folder(tmp_path: Path, blob: Path) -> None:
    remote = open_remote((tmp_path / "studio").as_uri(), {})
    put_version(remote, *make_version(), blob)
    assert temporaries_below(tmp_path / "studio") == []
    assert len(files_below(tmp_path / "studio")) == 6


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
