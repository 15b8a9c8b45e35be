"""What a store does at its edges, in races and with what is damaged: found missing by mutants (docs/mutants.md)."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, InvalidFileError, StoreError
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, Tag, Version, parse_version
from conceptry.registry import Registry, checks, manifests, publish, trash
from conceptry.registry.buckets import BucketRemote
from conceptry.registry.builds import choose_build
from conceptry.registry.bundle_reading import _read, open_bundle
from conceptry.registry.bundles import make_header
from conceptry.registry.catalogs import _derive_catalog, parse_catalog
from conceptry.registry.checks import BlobChecks
from conceptry.registry.collection import collect_garbage
from conceptry.registry.diffs import _flatten, _Values
from conceptry.registry.directory import DirectoryRemote
from conceptry.registry.entries import choose_latest, make_entry
from conceptry.registry.file_reading import is_folder, read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.generations import Change, read_generation
from conceptry.registry.inspection import _audit_license
from conceptry.registry.listing import Filter
from conceptry.registry.manifests import add_manifest, read_manifest_bytes
from conceptry.registry.migrations import INDEX_MIGRATIONS
from conceptry.registry.objects import Bucket
from conceptry.registry.operations import PLATFORMS, FileOperations, current_operations, use_operations
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout
from conceptry.registry.placements import Made
from conceptry.registry.places import ViewLayout
from conceptry.registry.protocol import RemoteConcept, RemoteVersion, describe_concept
from conceptry.registry.refs import Resolved
from conceptry.registry.tags import TagMove, drop_damaged_moves
from conceptry.registry.views import _remove_others
from tests.registry.folders import CONTENTS, make_document, make_manifest

IMP = ConceptName("me", "imp")
STABLE = Tag("stable")
BLOB = Digest.of_bytes(CONTENTS)


@pytest.fixture
def published(registry: Registry, imp: Path) -> Registry:
    """Give a registry with one version."""
    registry.publish(imp)
    return registry


# --- manifests and blobs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["manifest", "blob"])
def test_what_a_collection_took_meanwhile_is_fetched_from_the_trash(published: Registry, kind: Any) -> None:
    layout, version = Layout(published.root), published.resolve("me/imp")
    digest = version.digest if kind == "manifest" else BLOB
    size_bytes = layout.item(kind, digest).stat().st_size
    trash.take_away(layout, [trash.Item(kind, digest, size_bytes)], time_ns=1)
    assert not layout.item(kind, digest).exists()
    assert published.get("me/imp").blobs[BLOB].read_bytes() == CONTENTS
    assert layout.item(kind, digest).exists()


def test_manifest_that_is_nowhere_is_said_to_be_missing(published: Registry) -> None:
    layout, version = Layout(published.root), published.resolve("me/imp")
    layout.manifest(version.digest).unlink()
    with pytest.raises(IntegrityError, match="the manifest of me/imp@1.0.0 is missing".replace(".", r"\.")):
        read_manifest_bytes(layout, version)


def test_damaged_manifest_that_somebody_puts_there_meanwhile_is_replaced(
    published: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, data = Layout(published.root), make_manifest("me/other").to_bytes()
    place = layout.manifest(Digest.of_bytes(data))
    writes: list[Path] = []

    def write(path: Path, contents: bytes, **how: Any) -> bool:
        writes.append(path)
        if len(writes) == 1:
            path.write_bytes(b"damaged")
        return write_file(path, contents, **how)

    monkeypatch.setattr(manifests, "write_file", write)
    add_manifest(layout, data)
    assert place.read_bytes() == data
    assert writes == [place, place]


def test_training_record_that_fills_its_limit_is_kept(
    registry: Registry, imp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MAX_RECORD_BYTES", 10)
    (imp / "train.json").write_bytes(b" " * 11)
    with pytest.raises(InvalidFileError, match="more than 10 bytes"):
        registry.publish(imp)
    (imp / "train.json").write_bytes(b" " * 10)
    assert registry.publish(imp).created


def test_each_damaged_move_of_a_tag_is_kept_in_the_trash(published: Registry) -> None:
    layout = Layout(published.root)
    published.tag("me/imp@1.0.0", STABLE)
    for number in (2, 3):
        layout.tag_move(IMP, STABLE, number).write_bytes(b"damaged %d" % number)
    move = drop_damaged_moves(layout, IMP, STABLE)
    assert move is not None
    assert (move.number, move.version) == (1, parse_version("1.0.0"))
    kept = {path.name.partition("-")[0]: path.read_bytes() for path in layout.damaged.iterdir()}
    assert kept == {Digest.of_bytes(data).hex: data for data in (b"damaged 2", b"damaged 3")}


def test_first_yank_of_a_concept_makes_its_folder(published: Registry) -> None:
    published.yank("me/imp@1.0.0", "the wrong pictures")
    assert published.show("me/imp@1.0.0").yanked == "the wrong pictures"


# --- files ---------------------------------------------------------------------------------------------------------


def test_error_of_the_system_is_told_in_its_own_words() -> None:
    with (
        pytest.raises(StoreError, match=r"cannot read '/x': no such device"),
        explain_os_errors("read", Path("/x")),
    ):
        raise OSError(errno.ENODEV, "No such device")
    with (
        pytest.raises(StoreError, match=r"cannot read '/x': something odd"),
        explain_os_errors("read", Path("/x")),
    ):
        raise OSError("Something odd")


def test_folder_that_may_not_be_listed_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(current_operations()), "names", staticmethod(refuse))
    assert is_folder(tmp_path) is True


def test_whatever_no_blob_can_be_called_is_cleared_from_the_downloads(published: Registry) -> None:
    layout = Layout(published.root)
    layout.partials.mkdir(parents=True, exist_ok=True)
    (layout.partials / "nonsense").write_bytes(b"x")
    collected = collect_garbage(published.store, grace_seconds=3600)
    assert (collected.leftovers, collected.leftover_bytes) == (1, 1)
    assert not (layout.partials / "nonsense").exists()


def test_new_folder_of_a_remote_is_made_with_all_above_it(published: Registry, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "studio"
    assert published.push("me/imp", target.as_uri()).created
    assert isinstance(published.open_remote(target.as_uri()), DirectoryRemote)
    assert (target / "store.json").is_file()


def test_symbolic_link_leads_to_what_it_was_made_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    current_operations().make_symbolic_link(tmp_path / "file", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"bytes"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_pipe_in_the_place_of_a_document_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="pipe"):
        read_small_file(tmp_path / "pipe", 10)


class WithoutLinks(FileOperations):
    """A disk where no file has two names."""

    def __init__(self) -> None:
        super().__init__(PLATFORMS["posix"])
        self.renamed: list[str] = []

    def link(self, source: Path, target: Path) -> None:
        """Refuses."""
        raise OSError(errno.EPERM, "Operation not permitted")

    def rename(self, source: Path, target: Path) -> None:
        """Notes what a file may have lost its name to."""
        self.renamed.append(target.name)
        super().rename(source, target)


def test_file_that_is_not_named_by_its_contents_never_replaces_one_that_came_first(tmp_path: Path) -> None:
    disk = WithoutLinks()
    with use_operations(disk):
        assert write_file(tmp_path / "first", b"ours", temporary=tmp_path / "tmp" / "1")
        assert not write_file(tmp_path / "first", b"later", temporary=tmp_path / "tmp" / "2")
    assert ((tmp_path / "first").read_bytes(), disk.renamed) == (b"ours", [])


# --- databases -----------------------------------------------------------------------------------------------------


class Held:
    """A connection that says whether it was closed."""

    def __init__(self, *, broken: bool) -> None:
        self.closed, self._broken = False, broken

    def execute(self, sql: str, values: tuple[str, ...]) -> Held:
        """Returns itself. Raises sqlite3.Error where it is broken."""
        if self._broken:
            raise sqlite3.DatabaseError("file is not a database")
        return self

    def fetchone(self) -> None:
        """Returns nothing."""

    def close(self) -> None:
        """Notes it."""
        self.closed = True


@pytest.mark.parametrize("broken", [True, False])
def test_database_of_checks_is_closed_also_where_it_is_damaged(
    published: Registry, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    held = Held(broken=broken)
    monkeypatch.setattr(checks, "_connect", lambda layout: held)
    with BlobChecks(Layout(published.root)) as found:
        assert found.is_intact(BLOB, len(CONTENTS))
        assert held.closed is broken
    assert held.closed


def test_change_that_somebody_else_got_in_front_of_settles_nothing(published: Registry) -> None:
    layout = Layout(published.root)
    change = Change(
        layout=layout, mark="x", previous="a", opened="open-b", others=frozenset(), is_alone=False
    )
    assert change.settle("c") is False
    assert not change.is_settled


# --- what is said of versions --------------------------------------------------------------------------------------


def test_files_of_a_version_are_listed_in_order_of_their_paths() -> None:
    rows = [
        {"path": name, "size": 1, "sha256": str(Digest.of_bytes(name.encode()))}
        for name in ("b.json", "a.json")
    ]
    document = make_document()
    document["builds"][0]["parts"][0]["files"] = rows
    entry = make_entry(Resolved(Reference(IMP, parse_version("1.0.0")), BLOB), document, "published")
    assert [row["path"] for row in entry.files] == ["a.json", "b.json"]


def test_latest_version_is_the_greatest_that_was_not_yanked() -> None:
    rows: list[tuple[Version, dict[str, Any]]] = [(parse_version(f"1.{minor}.0"), {}) for minor in range(3)]
    choose_latest(rows, {rows[2][0]: "the wrong pictures"})
    assert [row["latest"] for _, row in rows] == [0, 1, 0]
    assert [row["yanked"] for _, row in rows] == [None, None, "the wrong pictures"]
    choose_latest(rows, {})
    assert [row["latest"] for _, row in rows] == [0, 0, 1]


def test_what_differs_within_a_build_is_shown_and_its_files_are_compared_by_themselves() -> None:
    document = make_document()
    document["builds"][0]["parts"][0]["method"]["rank"] = 8
    places = [_flatten(Manifest.model_validate(one)) for one in (make_document(), document)]
    changed = {key for key in places[0] if places[0][key] != places[1][key]}
    assert changed == {"builds.sd1-lora.parts[0].method.rank"}
    assert not any(".files" in key for key in places[0])


def test_index_has_each_version_once() -> None:
    database = Database(memory=True, execute_plugins=False)
    with closing(database.conn):
        INDEX_MIGRATIONS.apply(database)
        table = database.table("versions")
        unique = [index.columns for index in table.indexes if index.unique]
    assert ["namespace", "name", "version"] in unique


@pytest.mark.parametrize(
    ("license", "faults"),
    [
        ({"spdx": "MIT"}, []),
        ({"spdx": "My-own"}, ["license_unknown"]),
        ({"name": "Ours", "url": "https://example.org"}, []),
        ({}, ["license_missing"]),
    ],
)
def test_licence_that_is_known_or_can_be_read_is_no_finding(
    license: dict[str, str], faults: list[str]
) -> None:
    found = _audit_license("me/imp@1.0.0", make_manifest(license=license))
    assert [one.fault for one in found] == faults


def test_catalog_of_another_format_is_refused() -> None:
    assert parse_catalog(b'{"concepts": [], "format": 1}') == ()
    with pytest.raises(IntegrityError, match="its format is not 1"):
        parse_catalog(b'{"concepts": [], "format": 2}')


def test_catalog_keeps_what_it_knows_and_describes_what_changed_or_is_missing(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    names = [ConceptName("me", name) for name in ("cup", "hat", "imp")]
    asked: list[ConceptName] = []

    def describe(name: ConceptName) -> RemoteConcept:
        asked.append(name)
        return describe_concept(make_manifest(str(name), title=f"{len(asked)}"))

    for name in names:
        layout.versions(name).mkdir(parents=True)
    data = _derive_catalog(layout, names[2], describe, None)
    assert (asked, [row.title for row in parse_catalog(data)]) == (names, ["1", "2", "3"])
    again = parse_catalog(_derive_catalog(layout, names[2], describe, data))
    assert (asked[3:], [row.title for row in again]) == ([names[2]], ["1", "2", "4"])


def test_of_a_long_search_the_first_two_hundred_characters_count(published: Registry) -> None:
    assert len(published.search("imp".ljust(200) + "zebra", Filter())) == 1
    assert len(published.search("imp".ljust(199) + "zebra")) == 0


def test_build_for_the_very_weights_asks_for_what_its_kind_needs() -> None:
    prints = {"unet": {"layout": str(Digest.of_bytes(b"unet")), "weights": [0.5, 0.25]}}
    document = make_document()
    document["builds"][0]["base"]["fingerprints"] = prints
    manifest = type(make_manifest()).model_validate(document)
    base = manifest.builds[0].base.identity
    assert choose_build(manifest, base).build == manifest.builds[0]


def test_files_whose_tensors_nobody_knows_are_never_said_to_be_the_same() -> None:
    packed, plain = (_Values(frozenset({"down"}), packed=one) for one in (True, False))
    assert not packed.are(plain)
    known = [dataclasses.replace(one, digest=BLOB) for one in (packed, plain)]
    assert known[0].are(known[1])
    assert not known[0].are(plain)


# --- bundles -------------------------------------------------------------------------------------------------------


def write_tar(path: Path, *headers: tuple[tarfile.TarInfo, bytes]) -> Path:
    """Return the path of an archive of those members."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for header, data in headers:
            tar.addfile(header, io.BytesIO(data))
    return path


def test_bundle_with_a_header_that_was_changed_or_comes_twice_is_refused(tmp_path: Path) -> None:
    plain = make_header("index.json", 2)
    changed = make_header("index.json", 2)
    changed.mode = 0o777
    stranger = make_header("setup.py", 2)
    for number, headers in enumerate([[changed], [plain, plain], [stranger]]):
        path = write_tar(tmp_path / f"{number}.tar", *[(header, b"{}") for header in headers])
        with pytest.raises(IntegrityError, match="is not as it was written"):
            open_bundle(path)


@pytest.mark.parametrize(("offset_bytes", "count"), [(0, 0), (5, 3), (7, (2 << 20) + 9), ((1 << 20) - 1, 2)])
def test_piece_of_a_bundle_is_read_whole_whatever_its_length(
    tmp_path: Path, offset_bytes: int, count: int
) -> None:
    data = bytes(range(256)) * (3 << 12)
    (tmp_path / "b.tar").write_bytes(data)
    found = b"".join(_read(tmp_path / "b.tar", offset_bytes, count))
    assert found == data[offset_bytes : offset_bytes + count]


# --- changes of the references -------------------------------------------------------------------------------------


def test_marks_of_changes_that_ended_badly_go_once_the_index_has_caught_up(published: Registry) -> None:
    layout = Layout(published.root)
    dead = layout.lease_entry("dead")
    dead.parent.mkdir(parents=True, exist_ok=True)
    dead.write_bytes(b"")
    change = Change(
        layout=layout,
        mark="own",
        previous="",
        opened=read_generation(layout),
        others=frozenset({"dead"}),
        is_alone=True,
    )
    assert change.settle("later") is True
    assert not dead.exists()


# --- views ---------------------------------------------------------------------------------------------------------


def test_file_of_a_view_goes_with_its_concept_and_one_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    layout = ViewLayout(tmp_path)
    names = [layout.name(layout.file(f"loras/{word}.safetensors")) for word in ("cup", "gone", "mine")]
    known = {name: Made(BLOB, "stored copy", BLOB, len(CONTENTS)) for name in names}
    layout.file(names[0]).parent.mkdir(parents=True)
    layout.file(names[0]).write_bytes(CONTENTS)
    layout.file(names[2]).write_bytes(b"changed since")
    assert _remove_others(layout, known, {}) == ([names[0]], [names[2]])
    assert not layout.file(names[0]).exists()
    assert layout.file(names[2]).exists()


# --- buckets -------------------------------------------------------------------------------------------------------


class Objects:
    """The file system of a bucket that holds one object."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def cat_file(self, key: str, *, start: int, end: int) -> bytes:
        """Returns a part of it."""
        return self.data[start:end]

    def info(self, key: str, *, refresh: bool) -> dict[str, int]:
        """Returns its size."""
        return {"size": len(self.data)}


def test_document_in_a_bucket_is_read_to_one_byte_more_than_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    bucket = Bucket("s3://b", "b", Objects(b"0123456789"))
    assert [bucket.read(Path("x"), limit) for limit in (10, 9, 3)] == [b"0123456789", b"0123456789", b"0123"]


def test_blob_in_a_bucket_with_another_size_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (file,) = make_manifest().iter_files()
    remote = BucketRemote("s3://b", Bucket("s3://b", "b", Objects(b"short")))
    version = RemoteVersion(reference=Reference(IMP, parse_version("1.0.0")), digest=BLOB)
    with pytest.raises(IntegrityError, match="has 5 bytes"), remote.get(version, file):
        pytest.fail("it has not the bytes that were declared")


def test_tag_in_a_bucket_that_is_there_already_is_not_moved() -> None:
    remote = BucketRemote("s3://b", Bucket("s3://b", "b", None))
    to = Resolved(Reference(IMP, parse_version("1.0.0")), BLOB)
    there = TagMove(4, parse_version("1.0.0"), BLOB)
    assert remote.move_tag(IMP, STABLE, to, expected=there) is there


def test_where_there_is_no_store_nothing_is_listed(registry: Registry) -> None:
    found = registry.survey()
    assert (found.rows, found.count) == ((), 0)
    assert registry.roots() == ()
